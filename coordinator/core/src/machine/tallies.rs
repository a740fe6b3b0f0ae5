//! What is counted from the states of the table, kept in step with them: `checks` compares the two.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::{Life, Timestamp};

use super::fence_delays::FenceWaits;
use crate::handoff::HandoffState;
use crate::slot::Slot;
use crate::unowned::UnownedAppliances;

/// Counts and lists made of the table.
#[derive(Clone, Debug, Default)]
pub(super) struct Tallies {
    /// Appliances granted to each life, from `Granting` to `Releasing`.
    pub(super) granted: BTreeMap<Life, BTreeSet<Slot>>,
    /// Appliances in each state.
    states: HashMap<&'static str, u64>,
    /// Appliances without an owner, and since when.
    pub(super) unowned: UnownedAppliances,
    /// Owners that wait before they act.
    pub(super) fence_waits: FenceWaits,
}

impl Tallies {
    /// An appliance came into the table, unowned.
    pub(super) fn created(&mut self) {
        *self.states.entry(HandoffState::Unowned.name()).or_default() += 1;
    }

    /// An unowned appliance went out of the table.
    pub(super) fn removed(&mut self, now: Timestamp, slot: Slot) {
        self.unowned.end(now, slot);
        self.leave(&HandoffState::Unowned);
    }

    /// An appliance went from one state to another.
    pub(super) fn moved(&mut self, from: &HandoffState, to: &HandoffState) {
        if from.name() != to.name() {
            self.leave(from);
            *self.states.entry(to.name()).or_default() += 1;
        }
    }

    fn leave(&mut self, state: &HandoffState) {
        if let Some(count) = self.states.get_mut(state.name()) {
            *count -= 1;
        }
    }

    /// An appliance went from one life to another.
    pub(super) fn regrant(&mut self, slot: Slot, from: Option<&Life>, to: Option<Life>) {
        if let Some(life) = from
            && let Some(set) = self.granted.get_mut(life)
        {
            set.remove(&slot);
            if set.is_empty() {
                self.granted.remove(life);
            }
        }
        if let Some(life) = to {
            self.granted.entry(life).or_default().insert(slot);
        }
    }

    /// Appliances granted to a life.
    pub(super) fn of(&self, life: &Life) -> BTreeSet<Slot> {
        self.granted.get(life).cloned().unwrap_or_default()
    }

    /// How many appliances are in each state that any is in.
    pub(super) fn states(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.states.iter().filter(|(_, n)| **n > 0).map(|(name, n)| (*name, *n))
    }
}
