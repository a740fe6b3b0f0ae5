//! What the leader asks a worker beside the protocol of ownership, and what is answered.
//!
//! An [`Inquiry`] does not change who owns an appliance, nor, but for [`Question::Exec`], an instance. It belongs to one stream and ends with it, has a number
//! that is given once there, and a time after which nobody waits for its [`Answer`]. A worker is asked only what it has said in its
//! profile that it answers ([`judges`](crate::driver::DriverCapabilities::judges), [`logs`](crate::driver::DriverCapabilities::logs)), but for
//! [`Question::ReloadConfig`] and [`Question::Exec`]: one that does not know these says so.

use std::fmt;
use std::time::Duration;

use crate::appliance::FieldViolation;
use crate::driver::DriverName;
use crate::execution::{ExecAnswer, ExecStep};
use crate::reload::Reloaded;
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

/// Inquiries that read logs or a configuration, and may be open on one stream beside others.
pub const MAX_OPEN_READINGS: usize = 16;

/// Most bytes of output in one answer.
pub const MAX_LOG_PART: usize = 128 << 10;

/// Longest place in a log, in bytes.
pub const MAX_LOG_PLACE: usize = 256;

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
    /// What did an instance print?
    ReadLog(Box<LogQuery>),
    /// Read your configuration again, as on SIGHUP.
    ReloadConfig,
    /// Run a command in an instance, or go on with one.
    Exec(Box<ExecStep>),
    /// Something that this version does not know, or that cannot be read; with what is wrong.
    Unreadable(String),
}

impl Question {
    /// Its name in logs and traces.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Judge { .. } => "Judge",
            Self::ReadLog(_) => "ReadLog",
            Self::ReloadConfig => "ReloadConfig",
            Self::Exec(_) => "Exec",
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
    /// To [`Question::ReadLog`].
    Log(LogPart),
    /// To [`Question::ReloadConfig`]: what changed, or why the configuration cannot be used, so that nothing did.
    Reloaded(Result<Reloaded, String>),
    /// To [`Question::Exec`].
    Exec(ExecAnswer),
    /// It could not be found out; with the reason.
    Unanswered(String),
}

/// Which part of the output of an instance is asked for: from a place on that an earlier answer has named, or from where reading begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// The appliance.
    pub appliance: ApplianceId,
    /// Where its instances run; what no worker offers when absent.
    pub driver: Option<DriverName>,
    /// Position of the instance among the replicas.
    pub ordinal: u16,
    /// Where to go on; empty: at the begin.
    pub place: String,
    /// Begin with so many last lines; with the first one that is kept when absent.
    pub tail: Option<u32>,
    /// Begin with what was printed at most so long ago, where that is known.
    pub since: Option<Duration>,
    /// Begin before the instance that runs: with older output that is kept.
    pub previous: bool,
}

/// Part of the output of an instance.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct LogPart {
    /// At most [`MAX_LOG_PART`] bytes, which may end within a line.
    pub data: Vec<u8>,
    /// Where the next part begins; empty as long as there is nothing.
    pub place: String,
    /// There is more now.
    pub more: bool,
    /// What was at the place that was asked for is not kept any more: something is missing before this.
    pub lost: bool,
}

impl fmt::Debug for LogPart {
    /// Output may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { data, place, more, lost } = self;
        f.debug_struct("LogPart")
            .field("bytes", &data.len())
            .field("place", place)
            .field("more", more)
            .field("lost", lost)
            .finish()
    }
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
