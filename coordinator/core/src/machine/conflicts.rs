//! Who contradicts the table: workers that act on an appliance against it, and digests that differ from it.

use std::collections::{BTreeMap, BTreeSet};

use common::mutant::{self, Mutant};
use common::session::OwnedGrant;
use common::{ApplianceId, Life, Term, Token};

use super::Machine;
use crate::audit::Audit;
use crate::handoff::HandoffState;
use crate::slot::Slot;
use crate::violation::ViolationKind;

/// Most appliances named in one violation.
const CLAIMS_SHOWN: usize = 5;

/// Most tokens that are kept of one life for one appliance. An honest worker acts under one.
const CLAIMS_KEPT: usize = 8;
/// Stands for the tokens of a life beyond [`CLAIMS_KEPT`]. No release names it, so it lasts until the life is over, or says in
/// a `Hello` what it owns.
const MORE: Token = Token::new(Term::new(u64::MAX), u64::MAX);

/// Contradictions of one term.
#[derive(Clone, Debug, Default)]
pub(super) struct Conflicts {
    /// Lives that act on an appliance against the table; it is granted to no worker until they ended.
    owners: BTreeMap<Slot, BTreeSet<(Life, Token)>>,
    /// Compares digests of workers with the table.
    pub(super) audit: Audit,
}

impl Conflicts {
    /// A life acts on an appliance against the table. Returns whether that is new. Of a life that claims more and more
    /// tokens only the first are kept, and [`MORE`] for all others.
    pub(super) fn add(&mut self, slot: Slot, life: Life, token: Token) -> bool {
        let by = self.owners.entry(slot).or_default();
        let known = by.range((life.clone(), Token::default())..=(life.clone(), MORE)).count();
        let kept = if known < CLAIMS_KEPT || by.contains(&(life.clone(), token)) { token } else { MORE };
        by.insert((life, kept))
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

    /// What a life acted on against the table and, as its `Hello` shows, owns no more. `id` tells which appliance has a slot.
    pub(super) fn not_among(
        &self,
        life: &Life,
        owned: &[OwnedGrant],
        id: impl Fn(Slot) -> Option<ApplianceId>,
    ) -> Vec<(Slot, Token)> {
        let owned: BTreeSet<_> = owned.iter().map(|grant| (Some(grant.appliance), grant.token)).collect();
        self.owners
            .iter()
            .flat_map(|(slot, by)| by.iter().filter(|(l, _)| l == life).map(|(_, token)| (*slot, *token)))
            .filter(|(slot, token)| !owned.contains(&(id(*slot), *token)))
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

    /// Every contradiction.
    pub(super) const fn owners(&self) -> &BTreeMap<Slot, BTreeSet<(Life, Token)>> {
        &self.owners
    }
}

impl Machine {
    /// Whether a token is known to stand for another grant than that of this appliance to this life: the table has it so,
    /// which was read from the store, or this leader gave it. Who says that it owns the appliance under such a token lies,
    /// or is wrong. Of an older token of an earlier term nothing is known: after a restore it may be the true one.
    pub(crate) fn is_given_elsewhere(&self, slot: Slot, life: &Life, token: Token) -> bool {
        let Some(row) = self.table.get(slot) else { return false };
        let former = if let HandoffState::Passing { from, .. } = &row.state { Some(from) } else { None };
        let known = row.state.grant().into_iter().chain(former).find(|granted| granted.token == token);
        match known {
            Some(granted) => !granted.is_of(life),
            None => self.epoch.gave_elsewhere(token, row.id, life),
        }
    }

    /// Whether what a life says of a grant of this appliance is not believed.
    pub(super) fn is_false_claim(&self, slot: Slot, life: &Life, token: Token) -> bool {
        !mutant::is(Mutant::ClaimsBelieved) && self.is_given_elsewhere(slot, life, token)
    }

    /// Notes what a life claims to own, or to have released, and never was granted.
    pub(super) fn note_false_claims(&mut self, life: &Life, claimed: &[(Slot, Token)]) {
        if claimed.is_empty() {
            return;
        }
        let named = claimed.iter().take(CLAIMS_SHOWN).filter_map(|(slot, token)| {
            let row = self.table.get(*slot)?;
            Some(format!("{} under {token}", row.id))
        });
        let named = named.collect::<Vec<_>>().join(", ");
        let more = match claimed.len().saturating_sub(CLAIMS_SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let text = format!("{} claims what was never granted to it: {named}{more}; that is not believed", life.worker);
        self.violation(ViolationKind::ClaimedGrant, text);
    }

    /// Lives that act on an appliance against the table.
    pub(crate) const fn conflicting_owners(&self) -> &BTreeMap<Slot, BTreeSet<(Life, Token)>> {
        self.conflicts.owners()
    }
}

#[cfg(test)]
mod tests {
    use common::session::OwnedGrant;
    use common::{Edition, Incarnation, Mode, WorkerId};

    use super::*;

    #[test]
    fn of_a_life_that_claims_more_and_more_a_few_are_kept_and_its_next_hello_settles_the_rest() {
        let (mut conflicts, slot) = (Conflicts::default(), Slot(1));
        let life = |n| Life::new(WorkerId::new("w1").expect("valid"), Incarnation::new(n));
        let token = |n| Token::new(Term::new(1), n);
        let new = (1..=1_000).filter(|n| conflicts.add(slot, life(1), token(*n))).count();
        assert_eq!(new, CLAIMS_KEPT + 1);
        assert!(conflicts.add(slot, life(2), token(1)), "another life counts by itself");
        assert!(!conflicts.end_life(slot, &life(2)));
        // What is released one by one is not the rest.
        assert!((1..=1_000).all(|n| !conflicts.end(slot, &life(1), token(n))) && conflicts.concern(slot));
        let appliance = ApplianceId::from_u128(1);
        let owned = [OwnedGrant { appliance, token: token(7), edition: Edition::default(), mode: Mode::default() }];
        let ended = conflicts.not_among(&life(1), &owned, |_| Some(appliance));
        assert_eq!(ended, [(slot, MORE)]);
        assert!(conflicts.end(slot, &life(1), MORE) && !conflicts.concern(slot));
    }
}
