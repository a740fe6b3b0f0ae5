//! How a command ends: the exit code and what is printed about it.
//!
//! Every error reported to the user is a [`Failure`]. Scripts rely on the exit codes, so gRPC codes are mapped to them
//! here and nowhere else; docs/rugctl.md lists them.

use std::fmt;
use std::io;

use common::appliance::FieldViolation;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Success. Also used when the reader of our output closed the pipe.
    Ok = 0,
    /// The operation, or the wait for its effect, failed.
    Failed = 1,
    /// Bad usage or bad input; nothing was changed.
    Usage = 2,
    /// The server did not answer.
    Unreachable = 3,
    /// The named object does not exist.
    NotFound = 4,
    /// A concurrent change won, or the name is taken.
    Conflict = 5,
    /// Ctrl-C.
    Interrupted = 130,
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit code of the process.
    pub(crate) exit: Exit,
    /// Message without a final line break; when empty, nothing is printed.
    pub(crate) message: String,
    /// Fields that the server rejected.
    pub(crate) fields: Vec<FieldViolation>,
    /// The server's code, of a call that it refused.
    pub(crate) code: Option<Code>,
    /// Exit status of a command that was run elsewhere, in place of `exit`.
    pub(crate) exit_status: Option<i32>,
}

impl Failure {
    /// A failure with this code and message.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), fields: Vec::new(), code: None, exit_status: None }
    }

    /// A command that was run elsewhere ended with this status.
    pub(crate) fn with_status(status: i32, message: impl Into<String>) -> Self {
        Self { exit_status: Some(status), ..Self::new(Exit::Failed, message) }
    }

    /// Exit status of this process.
    pub(crate) fn status(&self) -> i32 {
        self.exit_status.unwrap_or(self.exit as i32)
    }

    /// The operation failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// The command line or the input is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// The same failure with the operation in front of its message.
    pub(crate) fn during(mut self, what: &str) -> Self {
        if !self.message.is_empty() {
            self.message = format!("{what}: {}", self.message);
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.fields.len() == 1 {
            return Ok(());
        }
        self.fields.iter().try_for_each(|field| write!(f, "\n  {field}"))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let exit = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Exit::Usage,
            Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
            Code::NotFound => Exit::NotFound,
            Code::Aborted | Code::AlreadyExists => Exit::Conflict,
            _ => Exit::Failed,
        };
        let fields: Vec<_> = status
            .get_details_bad_request()
            .map(|details| {
                details.field_violations.into_iter().map(|v| FieldViolation::new(v.field, v.description)).collect()
            })
            .unwrap_or_default();
        let message = match (fields.as_slice(), status.message()) {
            // With a single invalid field, that field's message is enough.
            ([only], _) => only.to_string(),
            // What the transport says of itself is no word for people.
            _ if std::error::Error::source(&status).is_some() => "the connection to the server broke".to_owned(),
            (_, "") => status.code().description().to_lowercase(),
            (_, text) => text.to_owned(),
        };
        Self { exit, message, fields, code: Some(status.code()), exit_status: None }
    }
}

impl From<io::Error> for Failure {
    /// For writes to stdout: a closed pipe (`| head`) is not a failure.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Exit::Ok, ""),
            _ => Self::failed(format!("write output: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation as Wire};

    use super::*;

    #[test]
    fn each_grpc_code_has_its_exit_code() {
        for (code, exit) in [
            (Code::InvalidArgument, 2),
            (Code::OutOfRange, 2),
            (Code::Unavailable, 3),
            (Code::DeadlineExceeded, 3),
            (Code::NotFound, 4),
            (Code::Aborted, 5),
            (Code::AlreadyExists, 5),
            (Code::FailedPrecondition, 1),
            (Code::Internal, 1),
            (Code::ResourceExhausted, 1),
        ] {
            assert_eq!(Failure::from(Status::new(code, "x")).exit as i32, exit, "{code:?}");
        }
        assert_eq!(Exit::Interrupted as i32, 130);
    }

    #[test]
    fn every_invalid_field_gets_a_line() {
        let details = ErrorDetails::with_bad_request(vec![
            Wire::new("spec.replicas", "must be 1 to 16, is 99"),
            Wire::new("name", "must not be empty"),
        ]);
        let status = Status::with_error_details(Code::InvalidArgument, "2 fields are at fault", details);
        assert_eq!(
            Failure::from(status).to_string(),
            "2 fields are at fault\n  spec.replicas: must be 1 to 16, is 99\n  name: must not be empty"
        );
    }

    #[test]
    fn a_single_invalid_field_is_the_message() {
        let details = ErrorDetails::with_bad_request(vec![Wire::new("name", "must not be empty")]);
        let status = Status::with_error_details(Code::InvalidArgument, "bad request", details);
        assert_eq!(Failure::from(status).to_string(), "name: must not be empty");
    }

    #[test]
    fn what_the_transport_says_is_not_shown() {
        let broken = io::Error::new(io::ErrorKind::ConnectionReset, "h2 protocol error: error reading a body");
        let failure = Failure::from(Status::from_error(Box::new(broken)));
        assert_eq!(failure.to_string(), "the connection to the server broke");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).exit, Exit::Ok);
    }
}
