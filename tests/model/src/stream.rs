//! Streams between workers and coordinators: messages in order, and what is left of a stream that broke.

use std::collections::VecDeque;

use common::canon::{Canon, Canonical};
use common::session::{Delta, DeltaEntry, Envelope, Refused, RefusedReason, ToCoordinator, ToWorker};
use common::{Edition, StreamNumber, Term};
use coordinator_core::machine::{Refusal, StreamId};

/// A message to a coordinator.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every value is the large one, and a run makes millions of them")]
pub(crate) enum UpMessage {
    Message(Envelope, ToCoordinator),
    /// The worker's side of the stream has ended.
    End,
}

/// A message to a worker.
#[derive(Clone, Debug)]
pub(crate) struct DownMessage {
    pub(crate) from: Envelope,
    pub(crate) message: ToWorker<Edition>,
}

impl DownMessage {
    /// The coordinator ends the stream.
    fn refused(reason: RefusedReason) -> Self {
        let from = Envelope { term: Term::default(), incarnation: None, stream: StreamNumber::default() };
        let refused = Refused { reason, detail: String::new(), retry_after: None };
        Self { from, message: ToWorker::Refused(refused) }
    }
}

/// One stream.
#[derive(Clone, Debug)]
pub(crate) struct ModelStream {
    pub(crate) conn: StreamId,
    /// Which worker opened it.
    pub(crate) worker: usize,
    /// Term of the leader it was opened to.
    pub(crate) term: Term,
    /// What the worker was welcomed with; what goes down is signed with it.
    pub(crate) envelope: Option<Envelope>,
    /// The worker is at its end. What is on it otherwise is late.
    pub(crate) read: bool,
    /// The leader is at its end.
    pub(crate) heard: bool,
    pub(crate) up: VecDeque<UpMessage>,
    pub(crate) down: VecDeque<DownMessage>,
}

impl ModelStream {
    /// Nothing can come of it any more.
    pub(crate) fn is_over(&self) -> bool {
        !self.heard && !self.read && self.down.is_empty()
    }

    /// The leader's side ends: what was on its way to it is lost, and the worker learns it after all that was sent to it.
    pub(crate) fn close(&mut self, why: Option<Refusal>) {
        self.heard = false;
        self.up.clear();
        if self.read {
            // Without a reason it leads no more.
            let reason = why.map_or(RefusedReason::NotLeading, |why| why.reason());
            self.down.push_back(DownMessage::refused(reason));
        }
    }

    /// The worker's side ends, and the leader learns it after all that was sent to it. With `late` what was on its way to the
    /// worker may arrive even so.
    pub(crate) fn leave(&mut self, late: bool) {
        self.read = false;
        if self.heard {
            self.up.push_back(UpMessage::End);
        }
        if !late {
            self.down.clear();
        }
        // Whoever left learns nothing of the end.
        self.down.retain(|down| !matches!(down.message, ToWorker::Refused(_)));
    }
}

impl Canonical for ModelStream {
    fn canon(&self, to: &mut Canon) {
        let Self { conn, worker, term, envelope, read, heard, up, down } = self;
        to.conn(*conn);
        to.put(&(worker, term, envelope));
        to.put(&(read, heard));
        to.put(up);
        to.put(down);
    }
}

impl Canonical for UpMessage {
    fn canon(&self, to: &mut Canon) {
        match self {
            Self::Message(from, message) => {
                to.put(&(0_u32, from));
                put_message(message, to);
            }
            Self::End => to.plain(2),
        }
    }
}

pub(crate) fn put_message(message: &ToCoordinator, to: &mut Canon) {
    match message {
        ToCoordinator::Hello(hello) => to.put(&(0_u32, hello)),
        ToCoordinator::Ack(ack) => to.put(&(1_u32, ack)),
        ToCoordinator::Leave => to.plain(2),
        other => unreachable!("{other:?} is not sent here"),
    }
}

fn put_entry(entry: &DeltaEntry<Edition>, to: &mut Canon) {
    match entry {
        DeltaEntry::Grant { appliance, token, carryover, mode, .. } => {
            to.put(&((1_u32, appliance), (token, mode), carryover));
        }
        DeltaEntry::Mode { appliance, token, mode } => to.put(&((3_u32, appliance), token, mode)),
        DeltaEntry::Release(grant) => to.put(&(2_u32, grant)),
        other => unreachable!("{other:?} is not sent here"),
    }
}

impl Canonical for DownMessage {
    fn canon(&self, to: &mut Canon) {
        let Self { from, message } = self;
        match message {
            ToWorker::Welcome(welcome) => to.put(&(0_u32, from, &welcome.keep)),
            ToWorker::Delta(Delta { base, target, rebalance: _, entries }) => {
                to.put(&(1_u32, from));
                to.put(&(base, target, entries.len()));
                entries.iter().for_each(|entry| put_entry(entry, to));
            }
            ToWorker::Confirm(confirm) => to.put(&(2_u32, from, &confirm.released)),
            // What a worker makes of a reason is one of two things.
            ToWorker::Refused(refused) => to.put(&(3_u32, refused.reason == RefusedReason::IncarnationOver)),
            other => unreachable!("{other:?} is not sent here"),
        }
    }
}
