//! Being a member of a group in ZooKeeper: decisions alone.
//!
//! A member is two ephemeral nodes, the member node and the lease node, made in one transaction, so that both carry the
//! session and the transaction that made them: that pair is the life. [`GroupEntry`] makes them, [`LeaseKeeper`] writes
//! heartbeats into the lease node until the life is over. Both say what to call next and take in what came of it; calls,
//! paths and bytes belong to whoever drives them. The rules are in docs/protocol.md, Leases and lives.
//!
//! A call fails in one of five ways ([`CallFailure`]). What is not known to have failed may have happened, or may happen
//! still: it is found out by reading before anything is built on it.

mod entry;
mod keeper;

use std::fmt;

pub use entry::{EntryAction, EntryEvent, EntryFailure, FoundNodes, GroupEntry, NodeOwner, OwnNode, OwnNodeState};
pub use keeper::{FIRST_BEAT, LeaseAction, LeaseCall, LeaseEvent, LeaseKeeper, LeaseNodeState};

/// Why a call had no effect that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallFailure {
    /// Another client created, deleted or wrote a node in between. Nothing changed.
    Raced,
    /// Access was denied. Nothing changed.
    Denied(String),
    /// The server refused it for another reason. Nothing changed.
    Refused(String),
    /// It may have happened, or may happen still.
    Unknown(String),
    /// The session is over; its ephemeral nodes go.
    SessionOver(String),
}

/// Why a life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEnd {
    /// The session expired, or was lost for longer than it lasts.
    SessionOver(String),
    /// Another client deleted the lease node, or wrote over it.
    LeaseTaken(String),
    /// The leader evicted the member.
    Evicted,
    /// The process left by itself.
    Left,
}

impl fmt::Display for MembershipEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SessionOver(why) => write!(f, "the session is over: {why}"),
            Self::LeaseTaken(what) => write!(f, "the lease node was taken away: {what}"),
            Self::Evicted => f.write_str("the leader evicted it"),
            Self::Left => f.write_str("it left"),
        }
    }
}
