//! What the servers agree on: nodes, sessions, and the transactions that change them.
//!
//! A transaction is checked once, by the server that leads, against everything it has proposed before; its outcome is
//! part of it, so that the servers apply it blindly and all come to the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::roster::NodeChange;
use common::{Incarnation, Profile, Term};

use crate::SimTime;

/// Number of a transaction: epoch and counter.
pub(crate) type Zxid = u64;

/// A session; 0 is nobody's.
pub(crate) type SessionId = u64;

/// Where a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dir {
    /// Member nodes of workers, by the number of their place.
    Members,
    /// Their lease nodes.
    Leases,
    /// Member nodes of coordinators, by their number.
    Coordinators,
    /// Their lease nodes.
    CoordinatorLeases,
    /// Contenders, by sequence and mark.
    Locks,
    /// The term, under 0.
    Own,
}

/// A node's name.
pub(crate) type Path = (Dir, u64);

/// The node that holds the term.
pub(crate) const TERM: Path = (Dir::Own, 0);

/// How many bits of a contender's name are its mark; the others are its sequence number, so that names order by that.
const MARK_BITS: u32 = 32;

/// The mark in a contender's name, by which it is found again.
pub(crate) const fn mark(name: u64) -> u64 {
    name & ((1 << MARK_BITS) - 1)
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// What a member publishes.
    Profile(Arc<Profile>),
    /// A heartbeat of a session.
    Beat { number: u64, lease: Duration, by: SessionId },
    /// What was written over one.
    Evicted { lease: Duration },
    /// The coordinator that contends.
    Contender(usize),
    /// A term.
    Term(Term),
}

/// A node as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ZkNode {
    pub(crate) owner: SessionId,
    pub(crate) created: Zxid,
    pub(crate) version: u32,
    pub(crate) data: Data,
}

impl ZkNode {
    /// The life that made it.
    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation::new((u128::from(self.owner) << 64) | u128::from(self.created))
    }
}

/// One step of a write.
#[derive(Clone, Debug)]
pub(crate) enum TxnOp {
    Create {
        path: Path,
        data: Data,
        ephemeral: bool,
    },
    /// A contender with this mark.
    Contend {
        mark: u64,
        data: Data,
    },
    Set {
        path: Path,
        data: Data,
        version: Option<u32>,
    },
    Delete {
        path: Path,
        version: Option<u32>,
    },
    Check(Path),
    Open(SessionId, SimTime),
    Close(SessionId),
}

/// Why a call brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZkFailure {
    NoNode,
    NodeExists,
    BadVersion,
    /// The node that had to be there is not.
    CheckFailed,
    /// Nobody knows whether it happened, or may happen still.
    Unknown,
    /// The session is over.
    Over,
}

/// What a write did: the nodes it made or wrote, as they were then.
pub(crate) type TxnResult = Result<Vec<(Path, ZkNode)>, ZkFailure>;

/// A transaction.
#[derive(Debug)]
pub(crate) struct Txn {
    pub(crate) zxid: Zxid,
    pub(crate) ops: Vec<TxnOp>,
    pub(crate) by: SessionId,
    pub(crate) outcome: TxnResult,
    /// The connection that waits for it.
    pub(crate) connection: Option<usize>,
}

/// The state after some transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) zxid: Zxid,
    pub(crate) nodes: BTreeMap<Path, ZkNode>,
    pub(crate) sessions: BTreeMap<SessionId, SimTime>,
    sequence: u64,
}

impl Tree {
    /// Checks a write and takes it in.
    pub(crate) fn prepare(&mut self, zxid: Zxid, by: SessionId, ops: Vec<TxnOp>, connection: Option<usize>) -> Txn {
        let known = by == 0 || self.sessions.contains_key(&by);
        let outcome = if known { self.run(zxid, by, &ops) } else { Err(ZkFailure::Over) };
        self.zxid = zxid;
        Txn { zxid, ops, by, outcome, connection }
    }

    /// Takes a transaction in. Returns what changed.
    pub(crate) fn apply(&mut self, txn: &Txn) -> Vec<(Path, NodeChange)> {
        let mut changes = Vec::new();
        if txn.outcome.is_ok() {
            for op in &txn.ops {
                // The server that led has checked it.
                _ = self.step(txn.zxid, txn.by, op, &mut Vec::new(), &mut changes);
            }
        }
        self.zxid = txn.zxid;
        changes
    }

    fn run(&mut self, zxid: Zxid, by: SessionId, ops: &[TxnOp]) -> TxnResult {
        let (mut wrote, mut changes) = (Vec::new(), Vec::new());
        if let [op] = ops {
            self.step(zxid, by, op, &mut wrote, &mut changes)?;
            return Ok(wrote);
        }
        let mut trial = self.clone();
        for op in ops {
            trial.step(zxid, by, op, &mut wrote, &mut changes)?;
        }
        *self = trial;
        Ok(wrote)
    }

    /// One step, which changes nothing when it fails.
    fn step(
        &mut self,
        zxid: Zxid,
        by: SessionId,
        op: &TxnOp,
        wrote: &mut Vec<(Path, ZkNode)>,
        changes: &mut Vec<(Path, NodeChange)>,
    ) -> Result<(), ZkFailure> {
        match op {
            TxnOp::Create { path, data, ephemeral } => {
                if self.nodes.contains_key(path) {
                    return Err(ZkFailure::NodeExists);
                }
                let owner = if *ephemeral { by } else { 0 };
                self.create(zxid, *path, owner, data, wrote, changes);
            }
            TxnOp::Contend { mark, data } => {
                let path = (Dir::Locks, (self.sequence << MARK_BITS) | mark);
                self.sequence += 1;
                self.create(zxid, path, by, data, wrote, changes);
            }
            TxnOp::Set { path, data, version } => {
                let node = self.nodes.get_mut(path).ok_or(ZkFailure::NoNode)?;
                if version.is_some_and(|version| version != node.version) {
                    return Err(ZkFailure::BadVersion);
                }
                node.version += 1;
                node.data = data.clone();
                wrote.push((*path, node.clone()));
                changes.push((*path, NodeChange::Changed));
            }
            TxnOp::Delete { path, version } => {
                let node = self.nodes.get(path).ok_or(ZkFailure::NoNode)?;
                if version.is_some_and(|version| version != node.version) {
                    return Err(ZkFailure::BadVersion);
                }
                self.nodes.remove(path);
                changes.push((*path, NodeChange::Deleted));
            }
            TxnOp::Check(path) => {
                if !self.nodes.contains_key(path) {
                    return Err(ZkFailure::CheckFailed);
                }
            }
            TxnOp::Open(session, timeout) => _ = self.sessions.insert(*session, *timeout),
            TxnOp::Close(session) => {
                self.sessions.remove(session);
                let owned = self.nodes.iter().filter(|(_, node)| node.owner == *session);
                let owned: BTreeSet<Path> = owned.map(|(path, _)| *path).collect();
                for path in owned {
                    self.nodes.remove(&path);
                    changes.push((path, NodeChange::Deleted));
                }
            }
        }
        Ok(())
    }

    fn create(
        &mut self,
        zxid: Zxid,
        path: Path,
        owner: SessionId,
        data: &Data,
        wrote: &mut Vec<(Path, ZkNode)>,
        changes: &mut Vec<(Path, NodeChange)>,
    ) {
        let node = ZkNode { owner, created: zxid, version: 0, data: data.clone() };
        wrote.push((path, node.clone()));
        self.nodes.insert(path, node);
        changes.push((path, NodeChange::Created));
    }

    /// Names in a directory, in order.
    pub(crate) fn names(&self, dir: Dir) -> Vec<u64> {
        self.nodes.range((dir, 0)..=(dir, u64::MAX)).map(|((_, name), _)| *name).collect()
    }

    /// The coordinator whose contender stands first.
    pub(crate) fn first_contender(&self) -> Option<usize> {
        let (_, node) = self.nodes.range((Dir::Locks, 0)..=(Dir::Locks, u64::MAX)).next()?;
        match node.data {
            Data::Contender(n) => Some(n),
            _ => None,
        }
    }
}
