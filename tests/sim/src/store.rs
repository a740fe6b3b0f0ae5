//! The store: commits in order, late, and with three outcomes: durable, surely not durable, and durable without anybody
//! being told because the coordinator died meanwhile.

use std::collections::{BTreeMap, VecDeque};

use common::appliance::Driver;
use common::{ApplianceId, Generation, Term, Token};
use coordinator_core::grants::{GrantOp, Granted, StoredGrant, StoredMember};
use coordinator_core::machine::{BatchId, Commit};
use coordinator_core::membership::Life;

/// An appliance as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) id: ApplianceId,
    pub(super) driver: Driver,
    pub(super) generation: Generation,
    pub(super) deleting: bool,
}

/// A write that waits for the disk.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Batch(BatchId, Commit),
    Put(Record),
}

/// What the disk has.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) term: Term,
    pub(super) records: BTreeMap<ApplianceId, Record>,
    pub(super) grants: BTreeMap<ApplianceId, StoredGrant>,
    pub(super) members: BTreeMap<Life, StoredMember>,
    /// Every grant that was ever durable (I4).
    pub(super) ever: BTreeMap<Token, (ApplianceId, Granted)>,
    newest: BTreeMap<ApplianceId, Token>,
    /// Submitted and not written.
    pub(super) pending: VecDeque<(Term, Write)>,
}

impl Store {
    /// Makes a write durable. `forget` says for each grant whether it is left out: only for a mutant.
    ///
    /// # Errors
    /// What promise it breaks.
    pub(super) fn apply(
        &mut self,
        term: Term,
        write: &Write,
        mut forget: impl FnMut() -> bool,
    ) -> Result<Vec<ApplianceId>, String> {
        if term != self.term {
            return Err(format!("I5: a write of {term} is applied in {}", self.term));
        }
        let mut removed = Vec::new();
        match write {
            Write::Put(record) => {
                self.records.insert(record.id, record.clone());
            }
            Write::Batch(_, commit) => {
                for life in &commit.remove_members {
                    self.members.remove(life);
                }
                for member in &commit.put_members {
                    self.members.insert((member.worker.clone(), member.incarnation), member.clone());
                }
                for op in &commit.grants {
                    self.grant(op, &mut forget, &mut removed)?;
                }
            }
        }
        Ok(removed)
    }

    fn grant(
        &mut self,
        op: &GrantOp,
        forget: &mut impl FnMut() -> bool,
        removed: &mut Vec<ApplianceId>,
    ) -> Result<(), String> {
        match op {
            GrantOp::Grant { appliance, to, host } => {
                if forget() {
                    return Ok(());
                }
                if let Some(newest) = self.newest.get(appliance)
                    && *newest >= to.token
                {
                    return Err(format!("I3: the store gets {} for {appliance} after {newest}", to.token));
                }
                if !self.records.contains_key(appliance) {
                    return Err(format!("{appliance} is granted, but the store does not have it"));
                }
                self.newest.insert(*appliance, to.token);
                if let Some((other, _)) = self.ever.insert(to.token, (*appliance, to.clone())) {
                    return Err(format!("{} was used twice, for {other} and for {appliance}", to.token));
                }
                let grant = self.grants.entry(*appliance).or_default();
                grant.granted = Some(to.clone());
                grant.host.clone_from(host);
            }
            GrantOp::Free { appliance, progress, hold } => {
                let grant = self.grants.entry(*appliance).or_default();
                grant.granted = None;
                grant.progress = progress.clone();
                grant.hold = *hold;
            }
            GrantOp::Remove { appliance } => {
                self.records.remove(appliance);
                self.grants.remove(appliance);
                removed.push(*appliance);
            }
        }
        Ok(())
    }
}
