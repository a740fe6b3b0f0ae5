//! What went wrong with a call, as far as callers do different things about it.

use std::fmt;

use common::text::clip;
use serde_json::Value;

/// Longest message that is kept of what a service says, in bytes.
pub const MAX_MESSAGE: usize = 1_024;
/// Longest request id that is kept.
const MAX_REQUEST_ID: usize = 64;

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The credentials are not accepted. Nothing was done.
    Unauthenticated,
    /// The user has not the right. Nothing was done.
    Forbidden,
    /// There is no such object.
    NotFound,
    /// The object is in a state in which this cannot be done, or something of it is taken. Nothing was done.
    Conflict,
    /// A quota would be exceeded. Nothing was done.
    Quota,
    /// The service does not take what it was asked. Nothing was done.
    Invalid,
    /// The service had no time for it, or this client has too many calls to make. Nothing was done.
    Throttled,
    /// The service did not do it, or could not say whether it did.
    Unavailable,
    /// No answer in time. It may have been done.
    TimedOut,
    /// No connection could be opened. Nothing was done.
    NoConnection,
    /// The connection broke off before there was an answer. It may have been done.
    NoAnswer,
    /// The answer could not be read. It may have been done.
    Unreadable,
    /// The catalog has no such service, or not in this region, or the service is too old.
    NoService,
    /// The caller's guard did not let the call pass. Nothing was sent.
    Withheld,
}

impl ErrorKind {
    /// The name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Quota => "quota",
            Self::Invalid => "invalid",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timeout",
            Self::NoConnection => "no_connection",
            Self::NoAnswer => "no_answer",
            Self::Unreadable => "unreadable",
            Self::NoService => "no_service",
            Self::Withheld => "withheld",
        }
    }
}

/// Why a call did not do what it was asked. The message is the service's own, bounded and not escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// What the service says, or what happened.
    pub message: String,
    /// The service's id of the request (`x-openstack-request-id`), by which its logs can be searched.
    pub request_id: Option<String>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl AsRef<str>) -> Self {
        Self { kind, message: clip(message.as_ref(), MAX_MESSAGE).to_owned(), request_id: None }
    }

    pub(crate) fn unreadable(what: &str, problem: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unreadable, format!("{what}: the answer cannot be read: {problem}"))
    }

    pub(crate) fn of_request(mut self, id: Option<&str>) -> Self {
        self.request_id = id.map(|id| clip(id, MAX_REQUEST_ID).to_owned());
        self
    }

    /// Whether it is certain that nothing was done.
    #[must_use]
    pub const fn is_without_effect(&self) -> bool {
        !matches!(self.kind, ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::NoAnswer | ErrorKind::Unreadable)
    }

    /// Whether the same call can succeed without that somebody changes something first.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Conflict
                | ErrorKind::Throttled
                | ErrorKind::Unavailable
                | ErrorKind::TimedOut
                | ErrorKind::NoConnection
                | ErrorKind::NoAnswer
        )
    }

    /// Whether there is no such object.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.kind == ErrorKind::NotFound
    }

    /// What an answer that is no success says.
    pub(crate) fn of_status(status: u16, body: &[u8]) -> Self {
        let Said { kind, message } = Said::read(body);
        let text = message.unwrap_or_else(|| format!("status {status}"));
        let lower = text.to_ascii_lowercase();
        // Nova says 403 where a quota is exceeded, Neutron 409.
        let of_quota = kind.as_deref() == Some("OverQuota")
            || lower.contains("quota exceeded")
            || lower.contains("exceeded quota");
        let kind = match status {
            401 => ErrorKind::Unauthenticated,
            403 | 409 | 413 if of_quota => ErrorKind::Quota,
            403 => ErrorKind::Forbidden,
            404 | 410 => ErrorKind::NotFound,
            409 => ErrorKind::Conflict,
            // Nova's former answer to too many requests.
            413 if lower.contains("too many") || lower.contains("limit") => ErrorKind::Throttled,
            429 => ErrorKind::Throttled,
            300..500 => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind, text)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = match self.kind {
            ErrorKind::Unauthenticated => "not authenticated: ",
            ErrorKind::Forbidden => "forbidden: ",
            ErrorKind::NotFound => "not found: ",
            ErrorKind::Conflict => "conflict: ",
            ErrorKind::Quota => "quota: ",
            ErrorKind::Invalid => "refused: ",
            ErrorKind::Throttled => "throttled: ",
            ErrorKind::Unavailable => "unavailable: ",
            ErrorKind::NoService | ErrorKind::TimedOut | ErrorKind::NoConnection => "",
            ErrorKind::NoAnswer | ErrorKind::Unreadable | ErrorKind::Withheld => "",
        };
        write!(f, "{before}{}", self.message)?;
        match &self.request_id {
            Some(id) => write!(f, " ({id})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// What the body of an error says. Services have the same form but for the name at its top: `{"badRequest": {"message": ..}}`.
struct Said {
    kind: Option<String>,
    message: Option<String>,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        let nothing = Self { kind: None, message: None };
        let Ok(whole) = serde_json::from_slice::<Value>(body) else {
            // A proxy before the service writes pages, of which the title says most.
            let text = String::from_utf8_lossy(&body[..body.len().min(4 * MAX_MESSAGE)]).into_owned();
            let title =
                text.split_once("<title>").and_then(|(_, rest)| Some(rest.split_once("</title>")?.0.trim().to_owned()));
            return Self { message: title.filter(|title| !title.is_empty()), ..nothing };
        };
        let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        // An object with a message, at the top or one below it.
        let Value::Object(fields) = &whole else { return nothing };
        let found = fields.values().find(|value| value.get("message").is_some()).unwrap_or(&whole);
        let plain = || fields.values().find_map(Value::as_str).map(str::to_owned);
        Self {
            kind: text(found, "type"),
            message: text(found, "message").or_else(plain).filter(|text| !text.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_services_say_is_told_apart() {
        let of = |status, body: &str| {
            let error = Error::of_status(status, body.as_bytes());
            (error.kind, error.message)
        };
        let nova = r#"{"forbidden": {"code": 403, "message": "Quota exceeded for instances: Requested 1, but already used 2 of 2 instances"}}"#;
        assert_eq!(of(403, nova).0, ErrorKind::Quota);
        let policy = r#"{"forbidden": {"code": 403, "message": "Policy doesn't allow os_compute_api:servers:create to be performed."}}"#;
        assert_eq!(of(403, policy).0, ErrorKind::Forbidden);
        let neutron = r#"{"NeutronError": {"type": "OverQuota", "message": "Quota exceeded for resources: ['port'].", "detail": ""}}"#;
        assert_eq!(of(409, neutron).0, ErrorKind::Quota);
        let taken =
            r#"{"NeutronError": {"type": "IpAddressInUse", "message": "Unable to complete operation.", "detail": ""}}"#;
        assert_eq!(of(409, taken), (ErrorKind::Conflict, "Unable to complete operation.".to_owned()));
        let page = "<html><head><title>503 Service Unavailable</title></head></html>";
        assert_eq!(of(503, page), (ErrorKind::Unavailable, "503 Service Unavailable".to_owned()));
        for odd in ["", "null", "[1]", "{\"message\": 7}", "\u{fffd}", "{\"a\": {\"message\": \"\"}}"] {
            assert_eq!(of(500, odd), (ErrorKind::Unavailable, "status 500".to_owned()), "{odd}");
        }
    }

    #[test]
    fn an_error_names_its_request_and_is_bounded() {
        let body = format!(r#"{{"x": {{"message": "{}"}}}}"#, "m".repeat(5_000));
        let error = Error::of_status(400, body.as_bytes()).of_request(Some("req-1"));
        assert_eq!(error.message.len(), MAX_MESSAGE);
        assert!(error.to_string().ends_with(" (req-1)"));
    }
}
