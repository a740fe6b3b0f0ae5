//! Commands that operators run in instances, as leader and worker speak of them.
//!
//! An execution belongs to the stream of the session on which it was begun, is named by the number of the inquiry that began it, and ends with the
//! stream, with the grant, with the lease, with its instance, or with its caller. Its output is asked for piece by piece, its input given in pieces, so
//! that a caller that does not read holds up the command and nothing else.

use std::fmt;
use std::time::Duration;

use crate::session::Desired;
use crate::status::EndCause;
use crate::{ApplianceId, Token};

/// Executions on one worker at a time.
pub const MAX_EXECUTIONS: usize = 16;

/// Inquiries about executions that may be open on one stream: for each one that begins it or takes its output, one with input, and one that ends it.
pub const MAX_OPEN_STEPS: usize = 3 * MAX_EXECUTIONS;

/// Words of a command, its program among them.
pub const MAX_COMMAND_WORDS: usize = 1_024;

/// Bytes of all words of a command.
pub const MAX_COMMAND_BYTES: usize = 64 << 10;

/// Bytes of one piece of input or output.
pub const MAX_PIECE: usize = 32 << 10;

/// Longest time that a command may take.
pub const MAX_EXECUTION_TIME: Duration = Duration::from_secs(24 * 3_600);

/// A command for an instance.
#[derive(Clone, PartialEq, Eq)]
pub struct ExecCommand {
    /// The appliance.
    pub appliance: ApplianceId,
    /// The grant under which it is run.
    pub token: Token,
    /// The appliance as it shall be: only in an instance of this specification the command is run.
    pub desired: Box<Desired>,
    /// Position of the instance among the replicas.
    pub ordinal: u16,
    /// Program and arguments.
    pub command: Vec<String>,
    /// How long it may take.
    pub limit: Duration,
}

impl fmt::Debug for ExecCommand {
    /// Without the words, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { appliance, token, ordinal, limit, .. } = self;
        f.debug_struct("ExecCommand")
            .field("appliance", appliance)
            .field("token", token)
            .field("ordinal", ordinal)
            .field("limit", limit)
            .finish_non_exhaustive()
    }
}

/// What is asked about an execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecStep {
    /// Begin it.
    Begin(ExecCommand),
    /// Give it input.
    Input {
        /// The number of the inquiry that began it.
        execution: u64,
        /// The piece.
        data: Bytes,
        /// There is no more after it.
        ends: bool,
    },
    /// The next piece of output, or its end; answered once there is one, or after a while without.
    Output {
        /// The number of the inquiry that began it.
        execution: u64,
    },
    /// End it: nobody waits for it any more.
    End {
        /// The number of the inquiry that began it.
        execution: u64,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecAnswer {
    /// To [`ExecStep::Begin`].
    Begun,
    /// To [`ExecStep::Begin`]: it is not run, and why.
    Refused(String),
    /// To [`ExecStep::Input`]: whether it was taken; otherwise it is to be given again.
    Taken(bool),
    /// To [`ExecStep::Output`].
    Stdout(Bytes),
    /// To [`ExecStep::Output`].
    Stderr(Bytes),
    /// To [`ExecStep::Output`]: nothing for now.
    Nothing,
    /// To [`ExecStep::Output`], and to whatever comes after that: it is over.
    Ended(ExecEnd),
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// The command ended like that.
    Command(EndCause),
    /// It took too long and was killed.
    TimedOut,
    /// It was killed, for this reason.
    Stopped(String),
    /// It could not be run, for this reason.
    NotRun(String),
}

/// Input or output, which may hold secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}
