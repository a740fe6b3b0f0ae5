//! What the roster knows of the nodes, and which of them have to be read.
//!
//! A lease node that changes is not read each time: a change most often is a heartbeat. But an eviction looks the same
//! and is the last change of its life, so that a node whose last change was not read, and after which nothing follows,
//! is read once it has been silent for longer than a living worker would be. That read is sent after the change and so
//! shows it; no node is read twice for one change.

use std::collections::{BTreeMap, VecDeque};

use super::{LeaseNode, MemberNode, NodeKind, NodeName};
use crate::{Timestamp, WorkerId};

/// How long a lease node changes no more before it is read, in percent of its lease: longer than a living worker leaves
/// out, and not later than a life that has ended would be over.
const SILENT_PERCENT: u32 = 115;

/// What is known of one lease node.
#[derive(Clone, Debug)]
pub(super) struct KnownLease {
    /// As it was read last.
    pub(super) node: LeaseNode,
    /// It was told that it can take no further heartbeat.
    pub(super) ended: bool,
    /// When it was read last.
    pub(super) read: Timestamp,
    /// When it changed last, as far as is known.
    heard: Timestamp,
    /// It changed after the last read of it was sent.
    unread: bool,
}

impl KnownLease {
    /// One that was just read.
    pub(super) const fn new(node: LeaseNode, ended: bool, now: Timestamp) -> Self {
        Self { node, ended, read: now, heard: now, unread: false }
    }

    /// It changed.
    pub(super) const fn changed(&mut self, now: Timestamp) {
        self.heard = now;
        self.unread = true;
    }

    /// Takes over what happened since the read was sent that this is the answer to.
    pub(super) const fn keep_unread(&mut self, former: &Self) {
        self.heard = former.heard;
        self.unread = former.unread;
    }

    /// Whether the last change may have been an eviction.
    fn is_silent(&self, now: Timestamp) -> bool {
        self.unread && !self.ended && now.since(self.heard) >= self.node.lease * SILENT_PERCENT / 100
    }
}

/// What is known between one full read and the next break.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownNodes {
    pub(super) members: BTreeMap<WorkerId, MemberNode>,
    pub(super) leases: BTreeMap<WorkerId, KnownLease>,
    /// Names that are being read, or wait for it; true when they have to be read once more after that.
    reading: BTreeMap<NodeName, bool>,
    /// Those of them whose read has not been sent.
    waiting: VecDeque<NodeName>,
    /// Members changed since they were told.
    pub(super) changed: bool,
}

impl KnownNodes {
    /// Makes a node be read, after whatever has happened so far.
    pub(super) fn read(&mut self, name: NodeName) {
        match self.reading.get_mut(&name) {
            Some(again) => *again = true,
            None => {
                self.reading.insert(name.clone(), false);
                self.waiting.push_back(name);
            }
        }
    }

    /// A read was answered; it is repeated if something happened since it was sent.
    pub(super) fn answered(&mut self, name: &NodeName) {
        if self.reading.remove(name) == Some(true) {
            self.read(name.clone());
        }
    }

    /// The next read to send.
    pub(super) fn next_read(&mut self) -> Option<NodeName> {
        let name = self.waiting.pop_front()?;
        if name.0 == NodeKind::Lease
            && let Some(lease) = self.leases.get_mut(&name.1)
        {
            lease.unread = false;
        }
        Some(name)
    }

    /// Makes lease nodes be read that have changed and then fallen silent.
    pub(super) fn sweep(&mut self, now: Timestamp) {
        let silent = self.leases.iter().filter(|(_, lease)| lease.is_silent(now));
        let silent: Vec<NodeName> = silent.map(|(worker, _)| (NodeKind::Lease, worker.clone())).collect();
        for name in silent {
            // One that waits, or is under way, was asked for after the change.
            if !self.reading.contains_key(&name) {
                self.read(name);
            }
        }
    }

    pub(super) fn reads_members(&self) -> bool {
        self.reading.keys().any(|(kind, _)| *kind == NodeKind::Member)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Incarnation;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    /// A node with a lease of a second, read at 0.
    fn known() -> (KnownNodes, NodeName) {
        let worker = WorkerId::new("w").expect("valid");
        let lease = Duration::from_secs(1);
        let node =
            LeaseNode { worker: worker.clone(), incarnation: Incarnation::new(1), lease, evicted: false, seal: None };
        let mut known = KnownNodes::default();
        known.leases.insert(worker.clone(), KnownLease::new(node, false, at(0)));
        (known, (NodeKind::Lease, worker))
    }

    #[test]
    fn a_lease_node_is_read_when_nothing_follows_its_last_change() {
        let (mut known, name) = known();
        known.sweep(at(10_000));
        assert_eq!(known.next_read(), None, "what was read has not changed since");
        for ms in [250, 500, 1600] {
            known.leases.get_mut(&name.1).expect("it is known").changed(at(ms));
            known.sweep(at(ms + 1149));
            assert_eq!(known.next_read(), None, "a heartbeat may still come");
        }
        known.sweep(at(2750));
        known.sweep(at(2751));
        assert_eq!(known.next_read(), Some(name.clone()));
        assert_eq!(known.next_read(), None, "it is being read");
        known.answered(&name);
        known.sweep(at(20_000));
        assert_eq!(known.next_read(), None, "once is enough");
    }

    #[test]
    fn a_change_after_the_sending_of_a_read_is_read_as_well() {
        let (mut known, name) = known();
        known.leases.get_mut(&name.1).expect("it is known").changed(at(250));
        known.sweep(at(2000));
        assert_eq!(known.next_read(), Some(name.clone()));
        let former = known.leases.get_mut(&name.1).expect("it is known");
        former.changed(at(2001));
        let mut read = KnownLease::new(former.node.clone(), false, at(2002));
        read.keep_unread(former);
        *former = read;
        known.answered(&name);
        known.sweep(at(3150));
        assert_eq!(known.next_read(), None);
        known.sweep(at(3151));
        assert_eq!(known.next_read(), Some(name));
    }
}
