//! What one step leads to: actions in their order, and messages that are sent together at its end.

use std::collections::BTreeMap;

use common::WorkerId;
use common::session::{AnnouncedStep, Confirm, GrantRef};

use super::events::{Action, Refusal};
use super::sessions::StreamId;
use crate::outbox::MAX_ENTRIES;
use crate::rebalance::RebalanceEvent;
use crate::unowned::Regained;

/// What a step has collected so far. Empty between two steps.
#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    actions: Vec<Action>,
    /// Releases and removals to be confirmed to each stream.
    confirmed: BTreeMap<StreamId, Vec<GrantRef>>,
    /// Announced steps that may begin, of each stream.
    begin: BTreeMap<StreamId, Vec<AnnouncedStep>>,
    /// Appliances that have an owner again.
    regained: Vec<Regained>,
}

impl Outgoing {
    pub(super) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn close(&mut self, stream: StreamId, refusal: Refusal) {
        self.actions.push(Action::Close(stream, refusal));
    }

    pub(super) fn worker_changed(&mut self, worker: WorkerId) {
        self.actions.push(Action::WorkerChanged(worker));
    }

    pub(super) fn rebalance(&mut self, events: Vec<RebalanceEvent>) {
        self.actions.extend(events.into_iter().map(Action::Rebalance));
    }

    pub(super) fn regained(&mut self, regained: Regained) {
        self.regained.push(regained);
    }

    /// A release or removal that the store has.
    pub(super) fn confirm(&mut self, stream: StreamId, grant: GrantRef) {
        self.confirmed.entry(stream).or_default().push(grant);
    }

    /// An announced step may begin.
    pub(super) fn may_begin(&mut self, stream: StreamId, step: AnnouncedStep) {
        self.begin.entry(stream).or_default().push(step);
    }

    /// The confirmations of this step, each within the bounds of a message.
    pub(super) fn take_confirmations(&mut self) -> Vec<(StreamId, Confirm)> {
        let mut messages = Vec::new();
        for (stream, released) in std::mem::take(&mut self.confirmed) {
            let part = |part: &[GrantRef]| (stream, Confirm { released: part.to_vec(), ..Confirm::default() });
            messages.extend(released.chunks(MAX_ENTRIES).map(part));
        }
        for (stream, steps) in std::mem::take(&mut self.begin) {
            let part = |part: &[AnnouncedStep]| (stream, Confirm { begin: part.to_vec(), ..Confirm::default() });
            messages.extend(steps.chunks(MAX_ENTRIES).map(part));
        }
        messages
    }

    /// Everything; what is left is empty.
    pub(super) fn take(&mut self) -> (Vec<Action>, Vec<Regained>) {
        (std::mem::take(&mut self.actions), std::mem::take(&mut self.regained))
    }

    /// Whether nothing was collected, as between two steps.
    #[cfg(feature = "canon")]
    pub(super) fn is_empty(&self) -> bool {
        self.actions.is_empty() && self.confirmed.is_empty() && self.begin.is_empty()
    }
}
