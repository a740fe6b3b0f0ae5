//! Why something moves later, or not at all: plans that are not due, moves under way, workers that declined, the brake, and
//! an operator's pause.

use std::collections::{BTreeMap, BTreeSet};

use common::{Timestamp, WorkerId};

use super::events::Pause;
use super::placement::{Due, InFlight};
use super::window::MoveWindow;
use crate::brake::Brake;
use crate::rebalance::Rebalances;
use crate::slot::Slot;

/// What placement has to wait for.
#[derive(Clone, Debug)]
pub(super) struct Pacing {
    /// When the next plan is due.
    pub(super) due: Due,
    /// Moves that have not ended.
    pub(super) in_flight: InFlight,
    /// How many of one worker are made at once.
    pub(super) window: MoveWindow,
    /// Workers that declined an appliance, until when.
    pub(super) declined: BTreeMap<Slot, BTreeMap<WorkerId, Timestamp>>,
    /// Holds back what most workers that vanished at once had.
    pub(super) brake: Brake,
    /// Rebalances that have not ended.
    pub(super) rebalances: Rebalances,
    /// An operator stopped planning, or a part of it.
    pub(super) paused: Option<Pause>,
}

impl Pacing {
    /// Nothing is under way; an operator may have `paused` planning in an earlier term.
    pub(super) fn new(
        due: Due,
        window: MoveWindow,
        brake: Brake,
        rebalances: Rebalances,
        paused: Option<Pause>,
    ) -> Self {
        Self { due, in_flight: InFlight::default(), window, declined: BTreeMap::new(), brake, rebalances, paused }
    }

    /// Whether an operator stopped all planning.
    pub(super) fn plans_nothing(&self) -> bool {
        self.paused.as_ref().is_some_and(|pause| !pause.moves_only)
    }

    /// Whether an operator has everything stay with the worker that has it.
    pub(super) const fn moves_nothing(&self) -> bool {
        self.paused.is_some()
    }

    /// A worker declined an appliance and is not asked again before `until`.
    pub(super) fn declined(&mut self, slot: Slot, worker: WorkerId, until: Timestamp) {
        self.declined.entry(slot).or_default().insert(worker, until);
    }

    /// Workers that declined an appliance not long ago.
    pub(super) fn decliners(&self, slot: Slot) -> BTreeSet<WorkerId> {
        self.declined.get(&slot).map(|by| by.keys().cloned().collect()).unwrap_or_default()
    }

    /// Whether this worker declined the appliance not long ago.
    pub(super) fn has_declined(&self, slot: Slot, worker: &WorkerId) -> bool {
        self.declined.get(&slot).is_some_and(|by| by.contains_key(worker))
    }

    /// Lets workers be asked again that declined long enough ago. Returns the appliances concerned.
    pub(super) fn forgive(&mut self, now: Timestamp) -> Vec<Slot> {
        let due: Vec<Slot> =
            self.declined.iter().filter(|(_, by)| by.values().any(|until| *until <= now)).map(|(s, _)| *s).collect();
        for slot in &due {
            if let Some(by) = self.declined.get_mut(slot) {
                by.retain(|_, until| *until > now);
                if by.is_empty() {
                    self.declined.remove(slot);
                }
            }
        }
        due
    }

    /// When a worker may be asked again.
    pub(super) fn next_forgiven(&self) -> Option<Timestamp> {
        self.declined.values().flat_map(BTreeMap::values).min().copied()
    }
}
