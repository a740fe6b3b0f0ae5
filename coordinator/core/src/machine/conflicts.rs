//! Who contradicts the table: workers that act on an appliance against it, and digests that differ from it.

use std::collections::{BTreeMap, BTreeSet};

use common::session::OwnedGrant;
use common::{Life, Token};

use crate::audit::Audit;
use crate::planner::Slot;

/// Contradictions of one term.
#[derive(Clone, Debug, Default)]
pub(super) struct Conflicts {
    /// Lives that act on an appliance against the table; it is granted to no worker until they ended.
    owners: BTreeMap<Slot, BTreeSet<(Life, Token)>>,
    /// Compares digests of workers with the table.
    pub(super) audit: Audit,
}

impl Conflicts {
    /// A life acts on an appliance against the table.
    pub(super) fn add(&mut self, slot: Slot, life: Life, token: Token) {
        self.owners.entry(slot).or_default().insert((life, token));
    }

    /// Whether a life acts on this appliance against the table.
    pub(super) fn concern(&self, slot: Slot) -> bool {
        self.owners.contains_key(&slot)
    }

    /// One life that acts on this appliance against the table.
    pub(super) fn owner(&self, slot: Slot) -> Option<&Life> {
        self.owners.get(&slot)?.first().map(|(life, _)| life)
    }

    /// Appliances that a life acts on against the table.
    pub(super) fn of(&self, life: &Life) -> Vec<Slot> {
        self.owners.iter().filter(|(_, by)| by.iter().any(|(l, _)| l == life)).map(|(slot, _)| *slot).collect()
    }

    /// What a life acted on against the table and, as its `Hello` shows, owns no more. `is` tells which slot a grant is of.
    pub(super) fn not_among(
        &self,
        life: &Life,
        owned: &[OwnedGrant],
        is: impl Fn(Slot, &OwnedGrant) -> bool,
    ) -> Vec<(Slot, Token)> {
        self.owners
            .iter()
            .flat_map(|(slot, by)| by.iter().filter(|(l, _)| l == life).map(|(_, token)| (*slot, *token)))
            .filter(|(slot, token)| !owned.iter().any(|o| is(*slot, o) && o.token == *token))
            .collect()
    }

    /// A life does not act under this token any more. Returns whether that was the last contradiction of the appliance.
    pub(super) fn end(&mut self, slot: Slot, life: &Life, token: Token) -> bool {
        self.retain(slot, |(l, t)| !(l == life && *t == token))
    }

    /// A life is gone. Returns whether that was the last contradiction of the appliance.
    pub(super) fn end_life(&mut self, slot: Slot, life: &Life) -> bool {
        self.retain(slot, |(l, _)| l != life)
    }

    fn retain(&mut self, slot: Slot, keep: impl Fn(&(Life, Token)) -> bool) -> bool {
        let Some(by) = self.owners.get_mut(&slot) else { return false };
        by.retain(keep);
        let ended = by.is_empty();
        if ended {
            self.owners.remove(&slot);
        }
        ended
    }

    /// The appliance is gone for ever.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.owners.remove(&slot);
    }

    /// Appliances that a life acts on against the table.
    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }

    /// Every contradiction, for the canonical form.
    #[cfg(feature = "canon")]
    pub(super) const fn owners(&self) -> &BTreeMap<Slot, BTreeSet<(Life, Token)>> {
        &self.owners
    }
}
