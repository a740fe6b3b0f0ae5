//! What went wrong with a call, as far as callers do different things about it.

use common::text::clip;
use kube::client::AuthError;
use kube::core::Status;

use crate::policy::DeadlineExceeded;
use crate::throttle::NoTurn;

/// Longest message that is kept of what the API server says, in bytes.
pub const MAX_MESSAGE: usize = 1_024;

/// Why a call did not do what it was asked. Its texts are the API server's own, bounded; they are not escaped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The object has changed since it was read, or is another one: a precondition did not hold. Nothing was done.
    #[error("conflict: {0}")]
    Conflict(String),
    /// An object of that name is there already. Nothing was done.
    #[error("already exists: {0}")]
    AlreadyExists(String),
    /// There is no such object.
    #[error("not found: {0}")]
    NotFound(String),
    /// The version that a watch was to begin at is too old.
    #[error("expired: {0}")]
    Expired(String),
    /// The caller has not the right. Nothing was done.
    #[error("forbidden: {0}")]
    Forbidden(String),
    /// A quota would be exceeded. Nothing was done.
    #[error("quota: {0}")]
    Quota(String),
    /// The API server, or a policy that it asks, does not take the object. Nothing was done.
    #[error("refused: {0}")]
    Invalid(String),
    /// The API server had no time for it, or this client has too many calls to make. Nothing was done.
    #[error("throttled: {0}")]
    Throttled(String),
    /// The API server did not do it, or could not say whether it did.
    #[error("API server: {0}")]
    Unavailable(String),
    /// No answer in time. It may have been done.
    #[error("{0}")]
    TimedOut(String),
    /// No answer. It may have been done.
    #[error("{0}")]
    NoAnswer(String),
    /// The answer could not be read, or the call could not be made.
    #[error("{0}")]
    Unreadable(String),
}

impl Error {
    /// Whether it is certain that nothing was done.
    #[must_use]
    pub const fn is_without_effect(&self) -> bool {
        match self {
            Self::Conflict(_)
            | Self::AlreadyExists(_)
            | Self::NotFound(_)
            | Self::Expired(_)
            | Self::Forbidden(_)
            | Self::Quota(_)
            | Self::Invalid(_)
            | Self::Throttled(_) => true,
            Self::Unavailable(_) | Self::TimedOut(_) | Self::NoAnswer(_) | Self::Unreadable(_) => false,
        }
    }

    /// Whether the same call can succeed without that somebody changes something first.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Conflict(_) | Self::Throttled(_) | Self::Unavailable(_) | Self::TimedOut(_) | Self::NoAnswer(_)
        )
    }

    /// What an answer that is no success says.
    #[must_use]
    pub fn of_status(status: &Status) -> Self {
        let code = status.code;
        let text =
            if status.message.is_empty() { format!("status {code} {}", status.reason) } else { status.message.clone() };
        let text = clip(&text, MAX_MESSAGE).to_owned();
        match (code, status.reason.as_str()) {
            (_, "AlreadyExists") => Self::AlreadyExists(text),
            (409, _) => Self::Conflict(text),
            (404, _) => Self::NotFound(text),
            (410, _) => Self::Expired(text),
            // The version is one of before the data of the API server were put back to an older copy.
            (504, _) if text.contains("Too large resource version") => Self::Expired(text),
            // Of an account that is known: a token that has ended, or an authenticator that is away. The next token may do.
            (401, _) => Self::Unavailable(text),
            (403, _) if text.contains("exceeded quota") => Self::Quota(text),
            // Roles are spoken of so; what else is forbidden, a policy forbids.
            (403, _) if text.contains("User \"") && text.contains(" cannot ") => Self::Forbidden(text),
            (400 | 403 | 405 | 406 | 413 | 415 | 422, _) => Self::Invalid(text),
            (429, _) => Self::Throttled(text),
            _ => Self::Unavailable(text),
        }
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&kube::Error> for Error {
    fn from(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            kube::Error::Service(error) => match error.downcast_ref::<DeadlineExceeded>() {
                Some(late) => Self::TimedOut(late.to_string()),
                None if error.is::<NoTurn>() => Self::Throttled(NoTurn.to_string()),
                None => Self::NoAnswer(format!("no connection to the API server: {}", innermost(error.as_ref()))),
            },
            kube::Error::HyperError(error) => {
                Self::NoAnswer(format!("the API server did not answer: {}", innermost(error)))
            }
            kube::Error::Auth(error) => Self::Unreadable(innermost(error)),
            kube::Error::ReadEvents(error) => Self::NoAnswer(format!("the watch broke off: {}", innermost(error))),
            other => Self::Unreadable(clip(&other.to_string(), MAX_MESSAGE).to_owned()),
        }
    }
}

/// The cause of the causes, which says what happened. Not what a program printed that a kubeconfig names for credentials: it may have
/// printed them.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    loop {
        if let Some(AuthError::AuthExecRun { cmd, out }) = cause.downcast_ref() {
            let text = format!("the program {cmd} of the kubeconfig ended with {}", out.status);
            return clip(&text, MAX_MESSAGE).to_owned();
        }
        let Some(deeper) = cause.source() else { break };
        cause = deeper;
    }
    clip(&cause.to_string(), MAX_MESSAGE).to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn what_the_api_server_says_is_told_apart() {
        let of =
            |code, reason: &str, message: &str| Error::of_status(&Status::failure(message, reason).with_code(code));
        let rights = r#"pods is forbidden: User "system:serviceaccount:a:b" cannot create resource "pods""#;
        assert!(matches!(of(403, "Forbidden", rights), Error::Forbidden(_)));
        let quota = r#"pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"#;
        assert!(matches!(of(403, "Forbidden", quota), Error::Quota(_)));
        let policy = r#"pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged"#;
        assert!(matches!(of(403, "Forbidden", policy), Error::Invalid(_)));
        assert!(matches!(of(400, "BadRequest", "admission webhook \"w\" denied the request"), Error::Invalid(_)));
        assert!(matches!(of(409, "AlreadyExists", "x"), Error::AlreadyExists(_)));
        assert!(matches!(of(409, "Conflict", "x"), Error::Conflict(_)));
        assert!(matches!(of(410, "Expired", "x"), Error::Expired(_)));
        assert!(matches!(of(504, "Timeout", "Too large resource version: 9, current: 5"), Error::Expired(_)));
        assert!(matches!(of(504, "Timeout", "x"), Error::Unavailable(_)));
        assert!(matches!(of(401, "Unauthorized", "x"), Error::Unavailable(_)));
        assert_eq!(of(500, "InternalError", ""), Error::Unavailable("status 500 InternalError".to_owned()));
        let out = std::process::Output { status: ExitStatus::from_raw(256), stdout: b"a token".into(), stderr: vec![] };
        let error = kube::Error::Auth(AuthError::AuthExecRun { cmd: "login".into(), out: Box::new(out) });
        let told = Error::from(error).to_string();
        assert_eq!(told, "the program login of the kubeconfig ended with exit status: 1");
        let Error::Invalid(text) = of(422, "Invalid", &"é".repeat(MAX_MESSAGE)) else { panic!("refused") };
        assert_eq!(text.len(), MAX_MESSAGE);
    }
}
