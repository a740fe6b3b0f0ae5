//! The store: what is durable, whose term it is, where the chain of batches stands, and commits that a broken connection
//! left behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use common::Life;
use common::canon::{Canon, Canonical};
use common::mutant::{self, Mutant};
use common::{ApplianceId, Term, Token};
use coordinator_core::grants::{GrantOp, StoredGrant, StoredMember};
use coordinator_core::machine::{Commit, Restored};
use coordinator_core::modes::{ModeOp, StoredMode};

use crate::promises::{Promise, Wrong};
use crate::setup::Setup;

/// A commit that was given up by whoever made it and may take place all the same.
#[derive(Clone, Debug)]
pub(crate) struct Floating {
    pub(crate) term: Term,
    pub(crate) number: u64,
    pub(crate) commit: Arc<Commit>,
}

/// What the disk has.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelStore {
    pub(crate) term: Term,
    /// Number of the newest batch of the term.
    pub(crate) batch: u64,
    pub(crate) grants: BTreeMap<ApplianceId, StoredGrant>,
    members: BTreeMap<Life, StoredMember>,
    /// The rule that is in force.
    pub(crate) rule: Option<u8>,
    /// Highest token ever stored for each appliance (I3).
    newest: BTreeMap<ApplianceId, Token>,
    pub(crate) floating: Vec<Floating>,
}

impl ModelStore {
    /// Whether batch `number` of `term` is the next in the chain.
    pub(crate) fn takes(&self, term: Term, number: u64) -> bool {
        if term == self.term {
            number == self.batch + 1 || mutant::is(Mutant::UnchainedBatches)
        } else {
            mutant::is(Mutant::NoTermCheck)
        }
    }

    /// Makes a batch durable.
    ///
    /// # Errors
    /// The promise that it breaks.
    pub(crate) fn apply(&mut self, term: Term, number: u64, commit: &Commit) -> Result<(), Wrong> {
        if term != self.term {
            return Err(Wrong::new(Promise::I5, format!("a write of {term} is applied in {}", self.term)));
        }
        if number <= self.batch {
            return Err(Wrong::new(Promise::I5, format!("batch {number} is applied after {}", self.batch)));
        }
        self.batch = number;
        for life in &commit.remove_members {
            self.members.remove(life);
        }
        for member in &commit.put_members {
            self.members.insert(member.life(), member.clone());
        }
        for op in &commit.modes {
            self.rule = match op {
                ModeOp::Set(rule) => u8::try_from(rule.id.get()).ok(),
                ModeOp::Clear(_) => None,
            };
        }
        for op in &commit.grants {
            match op {
                GrantOp::Grant { appliance, to, site, fence_delay } => {
                    if self.newest.get(appliance).is_some_and(|newest| *newest >= to.token) {
                        return Err(Wrong::new(Promise::I3, format!("the store gets {} for {appliance}", to.token)));
                    }
                    self.newest.insert(*appliance, to.token);
                    let row = self.grants.entry(*appliance).or_default();
                    row.granted = Some(to.clone());
                    row.site.clone_from(site);
                    row.fence_delay = *fence_delay;
                    row.ever = true;
                }
                GrantOp::Free { appliance, progress, fence_delay } => {
                    let row = self.grants.entry(*appliance).or_default();
                    row.granted = None;
                    row.progress = progress.clone();
                    row.fence_delay = *fence_delay;
                }
                GrantOp::Remove { appliance } | GrantOp::Unbind { appliance, .. } => {
                    return Err(Wrong::new(
                        Promise::Checks,
                        format!("{appliance} is removed or unbound, which nobody asked for"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// A new leader raises the term and reads everything, in one transaction.
    pub(crate) fn begin(&mut self, setup: &Setup) -> (Term, Restored) {
        self.term = self.term.next();
        self.batch = 0;
        let appliances = setup.ids().map(|id| (Setup::seed(id), self.grants.get(&id).cloned().unwrap_or_default()));
        let members = self.members.values().cloned().collect();
        let rule = self.rule.map(|number| StoredMode { rule: Setup::rule(number), expires_in: None });
        let modes = rule.into_iter().collect();
        (self.term, Restored { appliances: appliances.collect(), members, modes, ..Restored::default() })
    }
}

impl Canonical for ModelStore {
    fn canon(&self, to: &mut Canon) {
        let Self { term, batch, grants, members, rule, newest, floating } = self;
        to.put(term);
        to.place(*batch);
        to.put(&floating.len());
        for Floating { term, number, commit } in floating {
            to.put(term);
            to.place(*number);
            to.put(&**commit);
        }
        to.put(grants);
        to.put(members);
        to.put(&rule.map(u32::from));
        to.put(newest);
    }
}
