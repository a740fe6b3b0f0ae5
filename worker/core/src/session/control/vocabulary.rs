//! What the course of a worker is given and what it asks for: settings, events, actions, and facts for the log.

use std::time::Duration;

use common::Timestamp;

use crate::session::departure::{LeaveReason, StopRequest};

/// Settings of the course of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long sending `Hello`, and the answer to it, may take.
    pub connect_timeout: Duration,
    /// Longest pause between two tries.
    pub retry_cap: Duration,
    /// How long draining may take.
    pub drain_timeout: Duration,
    /// How long to wait, beyond the lease of whoever had it, for the own name to become free where the leader gives lives.
    pub name_timeout: Duration,
}

/// What a life comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    /// How long the worker may act after a heartbeat.
    pub lease: Duration,
    /// Heartbeats are sent on the stream (embedded), so that what is said there extends the lease.
    pub beats_on_stream: bool,
}

/// Whether a failed join is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinFailure {
    /// Another worker has the name.
    NameTaken,
    /// The next try fails the same way: credentials, paths, names.
    Permanent,
    /// The coordination service was not reached, or did not answer.
    Transient,
}

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// Open another one, after this time at least.
    Again(Duration),
    /// The coordinator stops; another try is worth it after this time.
    CoordinatorStops(Duration),
    /// The leader says that the life is over, with its reason.
    LifeOver(String),
    /// Another worker has the name; its lease is over after this time unless it is alive.
    NameTaken(Duration),
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// Time has passed.
    Tick,
    /// The worker is asked to stop.
    Stop(StopRequest),
    /// The runner has ended by itself.
    RunnerEnded,
    /// Addresses of coordinators, the leader's first.
    Coordinators(Vec<String>),
    /// A life has begun.
    Joined(Membership),
    /// A life could not begin.
    JoinFailed(JoinFailure, String),
    /// The life is over, for this reason; its gate is shut.
    LifeOver(String),
    /// A stream is open, and `Hello` is on its way.
    Connected,
    /// No stream could be opened.
    ConnectFailed(String),
    /// All of `Hello` was sent.
    HelloSent,
    /// The leader welcomed this worker and grants this lease.
    Welcomed(Duration),
    /// The stream ended.
    StreamEnded(StreamEnd),
    /// The heartbeat with this number was answered.
    BeatAnswered(u64),
    /// All grants that other workers take are handed over, and the leader knows.
    HandedOver,
    /// Running steps have ended, or not `in_time`.
    WorkEnded {
        /// Before the time that was given.
        in_time: bool,
    },
    /// The stream has ended after a `Leave`, or not in time.
    LeaveSaid,
    /// The group was left, or not `in_time`.
    LeftGroup {
        /// Before the time that was given.
        in_time: bool,
    },
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAction {
    /// Begin a life.
    Join,
    /// The life is over: shut its gate, forget its grants, then let go of the membership.
    EndLife(String),
    /// Open a stream to this address.
    Connect(String),
    /// Let go of the stream, or of the try to open one.
    Disconnect,
    /// Say `Hello` on the stream.
    SayHello,
    /// Let the lease stand until then.
    Extend(Timestamp),
    /// Send this heartbeat, before everything else.
    Beat(u64),
    /// Tell the leader that this worker drains.
    SayDrain,
    /// Shut the gate for good and let running steps end, within this time.
    EndWork(Duration),
    /// Tell the leader that this worker leaves, and wait for the end of the stream, within this time.
    SayLeave(Duration),
    /// End the life and leave the group, within this time.
    LeaveGroup(Duration),
    /// The worker has stopped.
    End(Outcome),
    /// Worth a line in the log.
    Note(Notice),
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In order.
    Left,
    /// The last try to join failed for a reason that waiting does not mend, or another worker keeps the name.
    CannotJoin,
}

/// A fact for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A try to join failed, this many in a row by now.
    JoinFailed(u32, String),
    /// No address of a coordinator is known.
    NoCoordinator,
    /// A coordinator could not be reached, this many tries in a row by now.
    ConnectFailed(String, u32, String),
    /// Another coordinator leads.
    LeaderChanged,
    /// `Hello` was not answered in time.
    HelloUnanswered,
    /// Heartbeats were not answered for a lease.
    BeatsUnanswered,
    /// The worker leaves.
    Leaving(LeaveReason),
    /// Running steps did not end in time.
    WorkGoesOn,
    /// The coordination service did not answer in time.
    GroupNotLeft,
}
