//! The database under the store: transactions one after the other, each beginning with its place in the chain of the
//! leading term; requests and answers that are late or lost; and older copies that it is put back to.
//!
//! A transaction holds the lock on its place from its first statement until it ends, however long its commit takes, and
//! whoever else wants the lock waits. So what is read under the lock is not changed by transactions of connections that
//! were given up. What is asked with a connection from before a copy was put back has no effect.

use std::collections::BTreeMap;

use common::Life;
use common::driver::DriverName;
use common::mode::ModeRule;
use common::mutant::{self, Mutant};
use common::{ApplianceId, Edition, Generation, ModeId, ModeSubject, Term, Token};
use coordinator_core::grants::{GrantOp, Granted, StoredGrant, StoredMember};
use coordinator_core::machine::{BatchId, Commit};
use coordinator_core::modes::ModeOp;
use coordinator_core::orders::{OrderOp, Orders};

use super::SimTime;
use super::world::{SimEvent, SimHost, SimWorld};

/// Term and number of a batch.
pub(super) type Position = (Term, u64);

/// An appliance as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApplianceRow {
    pub(super) id: ApplianceId,
    pub(super) driver: DriverName,
    pub(super) edition: Edition,
    pub(super) deleting: bool,
    pub(super) subject: ModeSubject,
}

/// What is to be stored.
#[derive(Clone, Debug)]
pub(super) enum DatabaseWrite {
    Batch(BatchId, Commit),
    Put(ApplianceRow),
    Order(OrderOp),
    /// When workers were last seen, which nothing depends on.
    Seen,
}

/// A write and who wants to hear of it.
#[derive(Clone, Debug)]
pub(super) struct SubmittedWrite {
    pub(super) term: Term,
    pub(super) reign: u64,
    /// Rises with every submission of the world.
    pub(super) order: u64,
    pub(super) write: DatabaseWrite,
}

/// A request of a coordinator.
#[derive(Clone, Debug)]
pub(super) struct DatabaseRequest {
    /// Its number within the process.
    pub(super) number: u64,
    pub(super) epoch: u64,
    pub(super) request: DatabaseCall,
}

#[derive(Clone, Debug)]
pub(super) enum DatabaseCall {
    HighestTerm,
    Begin(Term),
    /// Where the chain stands, once nothing of an earlier connection can change it.
    Settle,
    Write(Position, Vec<SubmittedWrite>),
    /// The transaction of a batch, which holds the lock, ends.
    Commit(Position, Vec<SubmittedWrite>),
}

/// What the database says to a request.
#[derive(Clone, Debug)]
pub(super) struct DatabaseReply {
    pub(super) number: u64,
    pub(super) reply: CallResult,
}

#[derive(Clone, Debug)]
pub(super) enum CallResult {
    HighestTerm(Term),
    Begun(Box<Rows>),
    Settled(Position),
    Written,
    /// Another term leads, or the place in the chain is taken.
    Deposed,
    /// Surely nothing was done.
    Refused,
}

/// What is stored.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    pub(super) place: Position,
    pub(super) records: BTreeMap<ApplianceId, ApplianceRow>,
    pub(super) grants: BTreeMap<ApplianceId, StoredGrant>,
    pub(super) members: BTreeMap<Life, StoredMember>,
    pub(super) modes: BTreeMap<ModeId, ModeRule>,
    pub(super) orders: Orders,
}

/// The database, and what the checks remember of it.
#[derive(Debug, Default)]
pub(super) struct SimDatabase {
    pub(super) rows: Rows,
    pub(super) copy: Option<Rows>,
    /// Connections from before a copy was put back are of an earlier one.
    pub(super) epoch: u64,
    pub(super) restored: bool,
    pub(super) refuses_until: SimTime,
    /// A transaction holds the lock until then.
    locked_until: SimTime,
    /// Every grant that was ever durable (I4).
    pub(super) ever: BTreeMap<Token, (ApplianceId, Granted)>,
    newest: BTreeMap<ApplianceId, Token>,
    /// The term that led in the copy which was put back last: its leader may still write (I3).
    copied_term: Option<Term>,
    /// Term and order of the last write (I5).
    last: (Term, u64),
}

impl SimDatabase {
    /// Writes a batch, whose place has been taken. Returns what was removed.
    ///
    /// # Errors
    /// What promise it breaks.
    fn write(&mut self, submissions: &[SubmittedWrite]) -> Result<Vec<ApplianceId>, String> {
        let mut removed = Vec::new();
        for submission in submissions {
            let now = (submission.term, submission.order);
            if now < self.last {
                return Err(format!("I5: write {now:?} follows {:?} in the store", self.last));
            }
            self.last = now;
            match &submission.write {
                DatabaseWrite::Seen => {}
                DatabaseWrite::Put(record) => self.put(record)?,
                DatabaseWrite::Order(op) => self.rows.orders.apply(op),
                DatabaseWrite::Batch(_, commit) => {
                    for life in &commit.remove_members {
                        self.rows.members.remove(life);
                    }
                    for member in &commit.put_members {
                        self.rows.members.insert(member.life(), member.clone());
                    }
                    for op in &commit.grants {
                        self.grant(op, &mut removed)?;
                    }
                    for op in &commit.modes {
                        match op {
                            ModeOp::Set(rule) => _ = self.rows.modes.insert(rule.id, rule.clone()),
                            ModeOp::Clear(id) => _ = self.rows.modes.remove(id),
                        }
                    }
                }
            }
        }
        Ok(removed)
    }

    fn put(&mut self, record: &ApplianceRow) -> Result<(), String> {
        let stored = self.rows.records.get(&record.id);
        let before = stored.map_or(Generation::default(), |stored| stored.edition.generation);
        if record.edition.generation != before.next()
            || stored.is_some_and(|stored| stored.deleting && !record.deleting)
        {
            return Err(format!("lost change: {record:?} is put over {stored:?}"));
        }
        self.rows.records.insert(record.id, record.clone());
        Ok(())
    }

    fn grant(&mut self, op: &GrantOp, removed: &mut Vec<ApplianceId>) -> Result<(), String> {
        match op {
            GrantOp::Grant { appliance, to, site, fence_delay } => {
                let newest = self.newest.get(appliance).copied().unwrap_or_default();
                if newest >= to.token && self.copied_term != Some(to.token.term) {
                    return Err(format!("I3: the store gets {} for {appliance} after {newest}", to.token));
                }
                if !self.rows.records.contains_key(appliance) {
                    return Err(format!("store: {appliance} is granted and has no row"));
                }
                self.newest.insert(*appliance, newest.max(to.token));
                if let Some((other, _)) = self.ever.insert(to.token, (*appliance, to.clone())) {
                    return Err(format!("I3: {} was used twice, for {other} and for {appliance}", to.token));
                }
                let grant = self.rows.grants.entry(*appliance).or_default();
                grant.granted = Some(to.clone());
                grant.site.clone_from(site);
                grant.fence_delay = *fence_delay;
            }
            GrantOp::Free { appliance, progress, fence_delay } => {
                let grant = self.rows.grants.entry(*appliance).or_default();
                grant.granted = None;
                grant.progress = progress.clone();
                grant.fence_delay = *fence_delay;
            }
            GrantOp::Unbind { appliance, progress, fence_delay } => {
                let grant = self.rows.grants.entry(*appliance).or_default();
                grant.granted = None;
                grant.site = None;
                grant.progress = progress.clone();
                grant.fence_delay = *fence_delay;
            }
            GrantOp::Remove { appliance } => {
                self.rows.records.remove(appliance);
                self.rows.grants.remove(appliance);
                self.rows.orders.apply(&OrderOp::Pin { appliance: *appliance, pin: None });
                removed.push(*appliance);
            }
        }
        Ok(())
    }
}

impl SimWorld {
    /// Sends a request on its way.
    pub(super) fn ask_database(&mut self, coordinator: usize, instance: u64, ask: DatabaseRequest) {
        let until = self.cut_until(SimHost::Coordinator(coordinator), SimHost::Database);
        let mut delay = self.rng.micros(50, 2_000);
        if until > self.now {
            match self.rng.below(4) {
                // It lies in somebody's buffers until then.
                0 if !matches!(ask.request, DatabaseCall::Write(..)) => delay += until - self.now,
                // Only the end of the transaction was lost: the lock is held until the database gives up.
                1 if matches!(ask.request, DatabaseCall::Write(..)) => {
                    let held = self.now + self.rng.millis(500, 3_000);
                    self.database.locked_until = self.database.locked_until.max(held);
                    return;
                }
                _ => return,
            }
        }
        self.after(delay, SimEvent::Asked { coordinator, instance, ask: Box::new(ask) });
    }

    pub(super) fn database_asked(&mut self, coordinator: usize, instance: u64, ask: DatabaseRequest) {
        let DatabaseRequest { number, epoch, request } = ask;
        if epoch != self.database.epoch {
            return;
        }
        let (commits, reads) =
            (matches!(request, DatabaseCall::Commit(..)), matches!(request, DatabaseCall::HighestTerm));
        if !commits && !reads && self.now < self.database.locked_until {
            let later = self.database.locked_until + self.rng.micros(1, 500);
            let ask = Box::new(DatabaseRequest { number, epoch, request });
            return self.at(later, SimEvent::Asked { coordinator, instance, ask });
        }
        if matches!(request, DatabaseCall::Write(..)) && !self.is_waited_for(coordinator, instance, number) {
            // The word that would end the transaction follows the answer to its begin, which nobody waits for any more.
            return;
        }
        if commits && !self.coordinators[coordinator].is_running(instance) && self.rng.chance(50) {
            // It was killed before it had said the last word.
            return;
        }
        let refuses =
            self.now < self.database.refuses_until || (self.faulty() && self.rng.chance(self.settings.failing_commits));
        let reply = if refuses {
            self.note(|| format!("the store refuses request {number} of c{coordinator}"));
            CallResult::Refused
        } else {
            match self.database_does(request) {
                Ok(reply) => reply,
                Err(commit) => {
                    // Placed; the end of the transaction follows.
                    let slow = self.faulty() && self.rng.chance(self.settings.slow_commits);
                    let takes = if slow { self.rng.millis(20, 2_500) } else { self.rng.micros(50, 2_000) };
                    self.database.locked_until = self.now + takes;
                    let ask = Box::new(DatabaseRequest { number, epoch, request: commit });
                    return self.after(takes, SimEvent::Asked { coordinator, instance, ask });
                }
            }
        };
        let until = self.cut_until(SimHost::Database, SimHost::Coordinator(coordinator));
        let lost = until > self.now || (self.faulty() && self.rng.chance(self.settings.lost_answers));
        if lost {
            self.note(|| format!("the answer to request {number} of c{coordinator} is lost"));
        } else {
            let delay = self.rng.micros(20, 2_000);
            let answer = Box::new(DatabaseReply { number, reply });
            self.after(delay, SimEvent::Answered { coordinator, instance, answer });
        }
    }

    /// Answers, or begins a transaction and says how it ends.
    fn database_does(&mut self, request: DatabaseCall) -> Result<CallResult, DatabaseCall> {
        let (term, last) = self.database.rows.place;
        Ok(match request {
            DatabaseCall::HighestTerm => CallResult::HighestTerm(term),
            DatabaseCall::Settle => CallResult::Settled((term, last)),
            DatabaseCall::Begin(new) if new <= term => CallResult::Deposed,
            DatabaseCall::Begin(new) => {
                self.database.rows.place = (new, 0);
                CallResult::Begun(Box::new(self.database.rows.clone()))
            }
            DatabaseCall::Write((of, number), submissions) => {
                let leads = of == term || mutant::is(Mutant::NoTermCheck);
                let follows = of != term || number == last + 1 || mutant::is(Mutant::UnchainedBatches);
                if leads && follows {
                    return Err(DatabaseCall::Commit((of, number), submissions));
                }
                self.note(|| format!("batch {of}/{number} has no place after {term}/{last}"));
                CallResult::Deposed
            }
            DatabaseCall::Commit((of, number), submissions) => {
                self.database.rows.place = (term, if of == term { number } else { last });
                self.make_durable(of, number, &submissions);
                CallResult::Written
            }
        })
    }

    fn make_durable(&mut self, term: Term, number: u64, submissions: &[SubmittedWrite]) {
        // One after the other, so that what breaks off in between is noticed.
        for part in submissions.chunks(1) {
            self.make_part_durable(term, number, part);
            self.forget_answers();
        }
    }

    fn make_part_durable(&mut self, term: Term, number: u64, submissions: &[SubmittedWrite]) {
        for submission in submissions {
            if !matches!(submission.write, DatabaseWrite::Seen) {
                self.note(|| format!("batch {term}/{number}: {:?}", submission.write));
            }
            let DatabaseWrite::Batch(_, commit) = &submission.write else { continue };
            for op in &commit.grants {
                if let GrantOp::Grant { appliance, site: Some(_), .. } = op {
                    self.journals.entry(*appliance).or_default().may_be_bound = true;
                }
            }
        }
        match self.database.write(submissions) {
            Ok(removed) => removed.into_iter().for_each(|id| self.removed(id)),
            Err(broken) => self.fail(broken),
        }
    }

    fn removed(&mut self, id: ApplianceId) {
        let restored = self.database.restored;
        let journal = self.journals.entry(id).or_default();
        journal.removed = true;
        if journal.exists && !restored {
            self.fail(format!("removed: {id} goes from the store while its instances may exist"));
        }
    }

    /// Puts the store back to the last copy that was made, if one was: what the store keeps no longer counts, what tokens
    /// fence still does.
    pub(super) fn restore_database(&mut self) {
        let Some(copy) = self.database.copy.take() else { return };
        self.note(|| format!("the store is put back to a copy of {}", copy.place.0));
        for id in copy.records.keys() {
            self.journals.entry(*id).or_default().removed = false;
        }
        self.database.rows = copy;
        // A leader of the copy's term that does not know yet that it was deposed finds its place in the chain again, and
        // writes until it knows: only what is stopped before its store is put back cannot. Its tokens are older than what
        // workers have seen, so nobody follows them, and no token is used twice.
        self.database.last = (Term::default(), 0);
        self.database.copied_term = Some(self.database.rows.place.0);
        self.database.epoch += 1;
        self.database.restored = true;
        self.answered.clear();
    }
}
