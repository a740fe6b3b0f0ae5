//! What the leader asks a worker beside the protocol of ownership, and what is answered.
//!
//! An [`Inquiry`] changes nothing: neither who owns an appliance, nor an instance. It belongs to one stream and ends with it, has a number
//! that is given once there, and a time after which nobody waits for its [`Answer`]. A worker is asked only what it has said in its
//! profile that it answers ([`DriverCapabilities::judges`](crate::driver::DriverCapabilities::judges)).

use std::time::Duration;

use crate::appliance::FieldViolation;
use crate::session::Desired;
use crate::{ApplianceId, TraceContext};

/// Inquiries that may be open on one stream. What comes beyond is answered at once: there is no room for it.
pub const MAX_OPEN_INQUIRIES: usize = 64;

/// Bytes that an inquiry and an answer may have on the wire.
pub const MAX_INQUIRY_BYTES: usize = 1 << 20;

/// Longest time that an inquiry may be under way.
pub const MAX_INQUIRY_TIME: Duration = Duration::from_secs(60);

/// Longest reason in an answer, in bytes.
pub const MAX_ANSWER_TEXT: usize = 2_048;

/// A question to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry {
    /// Which one, on its stream.
    pub number: u64,
    /// How long an answer is of use, from when the inquiry arrives.
    pub within: Duration,
    /// The call that it is asked for.
    pub call: TraceContext,
    /// What is asked.
    pub question: Question,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Could instances of this be made?
    Judge {
        /// The appliance, which may not exist.
        appliance: ApplianceId,
        /// What it would be.
        desired: Box<Desired>,
    },
    /// Something that this version does not know, or that cannot be read; with what is wrong.
    Unreadable(String),
}

impl Question {
    /// Its name in logs and traces.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Judge { .. } => "Judge",
            Self::Unreadable(_) => "Unreadable",
        }
    }
}

/// What a worker says to an inquiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The inquiry.
    pub number: u64,
    /// What is said.
    pub finding: Finding,
}

/// What an inquiry came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// To [`Question::Judge`].
    Judgement(Verdict),
    /// It could not be found out; with the reason.
    Unanswered(String),
}

/// What where instances run has to say about a specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is against it.
    Accepted,
    /// No instance can be made of it as it is. The field is `spec`, or one below it.
    Refused(FieldViolation),
    /// No instance can be made now, for a reason that is none of the specification: a quota that is used up, a right that the worker lacks,
    /// something that the specification names and that is not there yet.
    Unclear(String),
}
