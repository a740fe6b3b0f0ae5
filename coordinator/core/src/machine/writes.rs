//! What is to be written to the store, what is being written, and what has to be written again.
//!
//! A step collects changes; [`Writes::next_commit`] makes one transaction of them, which the shell makes durable or not.
//! Nothing else of the machine numbers batches or knows what waits for one.

use std::collections::{BTreeMap, BTreeSet};

use common::{Incarnation, Life, ModeId, Timestamp, Token, WorkerId};

use super::events::{BatchId, Commit};
use super::hands_off::ModeNumber;
use super::sessions::StreamId;
use super::unbind::UnbindNumber;
use crate::grants::{GrantOp, Profile, StoredMember};
use crate::modes::ModeOp;
use crate::slot::Slot;

/// What waits for a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// A grant, a release or a removal under this token.
    Slot(Slot, Token),
    /// The member behind a stream that waits for its welcome.
    Member(StreamId),
    /// The end of a life: its row is removed, or (`true`) kept as that of a missed name.
    Departed(Life, bool),
    /// An appliance that is freed from its site, by this request.
    Unbound(Slot, UnbindNumber),
    /// A change of this rule, by this request; none when it ends by itself.
    Mode(ModeId, Option<ModeNumber>),
}

/// The writes of one term.
#[derive(Clone, Debug)]
pub(super) struct Writes {
    pub(super) next_batch: BatchId,
    /// What waits for each batch under way.
    pub(super) under_way: BTreeMap<BatchId, Vec<Pending>>,
    /// The next batch, and what will wait for it.
    pub(super) commit: Commit,
    pub(super) pending: Vec<Pending>,
    /// Given up since the last plan: the carryover is written with the next grant if that plan makes one.
    pub(super) freed: BTreeSet<Slot>,
    /// Appliances that are being freed from their site: granted to no worker until the store has that.
    pub(super) unbinding: BTreeSet<Slot>,
    /// Writes that failed and are tried again.
    pub(super) retries: BTreeSet<(Timestamp, Slot)>,
    /// Lives that are gone and may still be in the store as ones that act. Every commit ends them until one that did is
    /// durable: a write that counts on their end must not outlive it, or the next leader would let them act again. With a
    /// profile the row stays, as that of a missed name.
    pub(super) ending: BTreeMap<Life, Option<Profile>>,
    /// Rows of missed names.
    pub(super) remembered: BTreeMap<WorkerId, BTreeSet<Incarnation>>,
    /// When lives are ended in a commit of their own.
    pub(super) end_at: Option<Timestamp>,
}

impl Writes {
    /// Nothing is written yet; the store has rows of these missed names.
    pub(super) fn new(missed: impl IntoIterator<Item = Life>) -> Self {
        let mut this = Self {
            next_batch: 1,
            under_way: BTreeMap::new(),
            commit: Commit::default(),
            pending: Vec::new(),
            freed: BTreeSet::new(),
            unbinding: BTreeSet::new(),
            retries: BTreeSet::new(),
            ending: BTreeMap::new(),
            remembered: BTreeMap::new(),
            end_at: None,
        };
        for life in missed {
            this.remember(life);
        }
        this
    }

    /// Writes a change of ownership; its outcome is reported under this token.
    pub(super) fn change(&mut self, slot: Slot, token: Token, op: GrantOp) {
        self.commit.grants.push(op);
        self.pending.push(Pending::Slot(slot, token));
    }

    /// Writes a change of ownership whose outcome nothing waits for.
    pub(super) fn note(&mut self, op: GrantOp) {
        self.commit.grants.push(op);
    }

    /// Writes that an appliance is freed from its site; `number` names the request that waits for it.
    pub(super) fn unbind(&mut self, slot: Slot, number: UnbindNumber, op: GrantOp) {
        self.unbinding.insert(slot);
        self.commit.grants.push(op);
        self.pending.push(Pending::Unbound(slot, number));
    }

    /// The write of [`Writes::unbind`] has ended.
    pub(super) fn unbound(&mut self, slot: Slot) {
        self.unbinding.remove(&slot);
    }

    /// Whether an appliance is being freed from its site.
    pub(super) fn is_unbinding(&self, slot: Slot) -> bool {
        self.unbinding.contains(&slot)
    }

    /// Writes a change of a rule; `number` names the request that waits for it.
    pub(super) fn mode(&mut self, op: ModeOp, number: Option<ModeNumber>) {
        self.pending.push(Pending::Mode(op.id(), number));
        self.commit.modes.push(op);
    }

    /// Writes a member; the stream waits for it.
    pub(super) fn member(&mut self, stream: StreamId, member: StoredMember) {
        self.commit.put_members.push(member);
        self.pending.push(Pending::Member(stream));
    }

    /// What an owner handed over is written after the next plan, unless that plan makes a grant which takes it along.
    pub(super) fn free_later(&mut self, slot: Slot) {
        self.freed.insert(slot);
    }

    /// A grant takes along what the former owner handed over.
    pub(super) fn free_with_grant(&mut self, slot: Slot, op: GrantOp) {
        self.freed.remove(&slot);
        self.commit.grants.push(op);
    }

    /// What found no next owner in the plan just made.
    pub(super) fn take_freed(&mut self) -> BTreeSet<Slot> {
        std::mem::take(&mut self.freed)
    }

    /// A write failed; it is made again at this time.
    pub(super) fn retry(&mut self, at: Timestamp, slot: Slot) {
        self.retries.insert((at, slot));
    }

    /// The next write that is to be made again by now.
    pub(super) fn take_retry(&mut self, now: Timestamp) -> Option<Slot> {
        let &(at, slot) = self.retries.first().filter(|(at, _)| *at <= now)?;
        self.retries.remove(&(at, slot));
        Some(slot)
    }

    /// The row of a missed name stays.
    pub(super) fn remember(&mut self, life: Life) {
        self.remembered.entry(life.worker).or_default().insert(life.incarnation);
    }

    /// A life is gone: its row is removed, or with `missed` kept as that of a missed name.
    pub(super) fn end(&mut self, now: Timestamp, life: Life, missed: Option<Profile>) {
        self.ending.insert(life, missed);
        self.end_at = Some(now);
    }

    /// Removes the rows of names that are not missed any more.
    pub(super) fn forget_names(&mut self, now: Timestamp, is_missed: impl Fn(&WorkerId) -> bool) {
        let forgotten: Vec<WorkerId> = self.remembered.keys().filter(|name| !is_missed(name)).cloned().collect();
        for name in forgotten {
            for incarnation in self.remembered.remove(&name).unwrap_or_default() {
                self.end(now, Life::new(name.clone(), incarnation), None);
            }
        }
    }

    /// A batch that ended a life is durable, or has to be made again at `retry_at`. What becomes of the row may have been
    /// decided anew meanwhile, or another commit may have had it.
    pub(super) fn life_written(&mut self, life: &Life, missed: bool, durable: bool, retry_at: Timestamp) {
        if self.ending.get(life).is_some_and(|profile| profile.is_some() == missed) {
            if durable {
                self.ending.remove(life);
            } else {
                self.end_at = Some(retry_at);
            }
        }
    }

    /// What waited for a batch that has ended.
    pub(super) fn take_batch(&mut self, batch: BatchId) -> Vec<Pending> {
        self.under_way.remove(&batch).unwrap_or_default()
    }

    /// What is to be committed now, if there is anything.
    pub(super) fn next_commit(&mut self, now: Timestamp) -> Option<(BatchId, Commit)> {
        let lives_are_due = self.end_at.is_some_and(|at| at <= now);
        if !lives_are_due && self.commit.is_empty() {
            return None;
        }
        self.end_at = None;
        for (life, missed) in &self.ending {
            self.pending.push(Pending::Departed(life.clone(), missed.is_some()));
            match missed.clone() {
                None => self.commit.remove_members.push(life.clone()),
                Some(profile) => self.commit.put_members.push(StoredMember {
                    worker: life.worker.clone(),
                    incarnation: life.incarnation,
                    profile,
                    departed: true,
                    seal: None,
                }),
            }
        }
        let batch = self.next_batch;
        self.next_batch += 1;
        self.under_way.insert(batch, std::mem::take(&mut self.pending));
        Some((batch, std::mem::take(&mut self.commit)))
    }

    /// When something is to be written at the latest.
    pub(super) fn wake_at(&self, now: Timestamp) -> Option<Timestamp> {
        let freed = (!self.freed.is_empty()).then_some(now);
        let retry = self.retries.first().map(|(at, _)| *at);
        [freed, retry, self.end_at].into_iter().flatten().min()
    }

    /// Batches under way.
    pub(super) fn in_flight(&self) -> usize {
        self.under_way.len()
    }

    /// Writes that are to be made again.
    pub(super) fn waiting(&self) -> usize {
        self.retries.len() + self.ending.len()
    }
}
