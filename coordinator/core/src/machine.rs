//! The coordinator as one machine: `step(now, event) -> output`.
//!
//! Composes membership, table, hand-off, planner, outboxes and rebalances, and decides nothing that one of them could
//! decide alone. Invariants it keeps, checked by [`crate::checks`] after every step of the simulator:
//! a grant is offered only after the store has it; a token is used once; answers count only from the stream, life and term
//! they belong to; a life's appliances are orphaned only when membership calls it gone; nothing is planned before every
//! stored member has spoken or the grace has passed.
//!
//! The shell calls [`Machine::step`] for each event in order, carries out the actions in order, and sends `Event::Tick`
//! when `wake_at` has come and whenever its input queue is empty.

mod budgets;
#[cfg(feature = "canon")]
mod canon;
mod config;
mod conflicts;
mod epoch;
mod events;
mod fence_delays;
mod greeting;
mod hands_off;
mod members;
mod orders;
mod outgoing;
mod ownership;
mod pacing;
mod placement;
mod sessions;
mod tallies;
mod unbind;
mod view;
mod window;
mod writes;

use std::collections::BTreeSet;
use std::time::Duration;

use common::mutant::{self, Mutant};
use common::session::{Carryover, ToWorker};
use common::status::Progress;
use common::{Life, Term, Timestamp, Token, WorkerId};

use self::conflicts::Conflicts;
use self::epoch::Epoch;
use self::outgoing::Outgoing;
use self::pacing::Pacing;
use self::tallies::Tallies;
use self::writes::Writes;
use crate::brake::Brake;
use crate::budget::Ledger;
use crate::grants::{Granted, Profile, StoredGrant, StoredMember};
use crate::handoff::HandoffState;
use crate::membership::Membership;
use crate::modes::Modes;
use crate::orders::Orders;
use crate::planner::Planner;
use crate::quarantine::{self, Quarantine};
use crate::rebalance::Rebalances;
use crate::table::{RowPlacement, Seed, Table, TableRow};
use crate::unowned::{self, UnownedCause};
use crate::violation::ViolationKind;

pub use config::Config;
pub use events::{Action, BatchId, Commit, Counters, Event, Output, Pause, Refusal, Restored, TermClaim};
pub use fence_delays::FenceWait;
pub use hands_off::{HandsOff, ModeNumber, ModeOutcome, ModeProgress, ModeWait};
pub use placement::SLOW;
pub use sessions::StreamId;
pub use unbind::{UnbindNumber, UnbindRefused};
pub use view::{FreezeView, OwnershipExplanation, WorkerSnapshot};
pub use window::MoveWindow;

/// How often time is looked at while any life has a lease. A longer silence means that this process did not run, and
/// every lease is waited for anew (see `Membership::start_waits_anew`).
pub const TICK: Duration = Duration::from_millis(250);

/// How much longer than [`TICK`] between two steps counts as not having run.
const STALL: Duration = Duration::from_millis(750);

/// Age of an unread message from which the leader has fallen behind, as if it had not run (see [`Event::FellBehind`]).
pub const BEHIND: Duration = Duration::from_secs(1);

/// After how long a write that failed is tried again.
const WRITE_RETRY: Duration = Duration::from_millis(500);

/// The coordinator while it leads one term.
#[derive(Clone, Debug)]
pub struct Machine {
    config: Config,
    epoch: Epoch,
    table: Table,
    /// What is counted from the table.
    tallies: Tallies,
    planner: Planner,
    membership: Membership,
    /// What is watched of the members besides their leases.
    members: members::Watch,
    sessions: sessions::WorkerSessions,
    writes: Writes,
    conflicts: Conflicts,
    quarantine: Quarantine,
    /// What operators keep everybody's hands off.
    modes: Modes,
    /// What operators order about placement.
    orders: Orders,
    /// How many are unavailable, where operators limit that.
    budgets: Ledger,
    pacing: Pacing,
    /// What this step leads to.
    out: Outgoing,
    counters: Counters,
}

impl Machine {
    /// Begins `term` with what the store knows.
    #[must_use]
    pub fn new(config: Config, term: Term, now: Timestamp, restored: Restored) -> Self {
        let (missed, mut members): (Vec<_>, Vec<_>) = restored.members.into_iter().partition(|m| m.departed);
        for member in &mut members {
            // They may have been stored under other limits. Whatever is too much is shown once the worker says it again.
            member.profile = config.limits.apply(&member.worker, std::mem::take(&mut member.profile)).0;
        }
        let awaited: BTreeSet<Life> = members.iter().map(|m| m.life()).collect();
        let live = members.iter().map(|m| m.worker.clone());
        let brake = Brake::restore(config.brake(), now, live, missed.iter().map(|m| m.worker.clone()));
        let writes = Writes::new(missed.iter().map(StoredMember::life));
        let modes = if mutant::is(Mutant::ModeForgotten) { Vec::new() } else { restored.modes };
        let modes = Modes::new(term, now, modes);
        let membership = Membership::restore(config.authority, now, members);
        let lives: Vec<Life> = membership.lives().cloned().collect();
        let window = MoveWindow::new(config.gap_target, config.max_moves_per_worker);
        let due = placement::Due::at_start(now, config.reconnect_grace, config.debounce, awaited);
        let mut this = Self {
            planner: Planner::new(config.planner, term),
            epoch: Epoch::new(term, now),
            table: Table::default(),
            tallies: Tallies::default(),
            membership,
            members: members::Watch::new(now, lives, config.authority),
            sessions: sessions::WorkerSessions::new(now + restored.raise_after),
            writes,
            conflicts: Conflicts::default(),
            quarantine: Quarantine::new(quarantine::Config {
                strikes: config.quarantine_strikes,
                probation: config.suspect_probation,
            }),
            modes,
            orders: restored.orders,
            budgets: Ledger::default(),
            pacing: Pacing::new(due, window, brake, Rebalances::new(term, restored.unfinished), restored.paused),
            out: Outgoing::default(),
            counters: Counters::default(),
            config,
        };
        this.forget_missed(now);
        this.budgets.set_rules(this.orders.budgets().clone());
        this.refresh_members();
        for (seed, stored) in restored.appliances {
            this.restore(seed, stored);
        }
        this.abort_rebalance();
        this
    }

    fn restore(&mut self, seed: Seed, stored: StoredGrant) {
        let state = match stored.granted {
            None => HandoffState::Unowned,
            // Taken for owned until its worker says `Hello` or its lease ends.
            Some(g) if self.membership.is_alive(&g.life()) => HandoffState::Owned(g),
            Some(g) => HandoffState::Orphaned(g),
        };
        let mut needs = seed.needs.clone();
        if stored.site.is_some() {
            needs.site = stored.site;
        }
        let granted_before =
            stored.ever || state.grant().is_some() || needs.site.is_some() || stored.progress != Progress::default();
        let preferred = state.grant().map(|g| g.worker.clone());
        let handed = Carryover { progress: stored.progress, fence_delay: stored.fence_delay };
        let handed = match state {
            HandoffState::Unowned => (handed != Carryover::default()).then(|| Box::new(handed)),
            _ => aged(handed),
        };
        self.admit(Seed { needs, ..seed }, state, handed, preferred, granted_before);
    }

    fn admit(
        &mut self,
        seed: Seed,
        state: HandoffState,
        handed: Option<Box<Carryover>>,
        preferred: Option<WorkerId>,
        granted_before: bool,
    ) {
        let entry = TableRow {
            id: seed.id,
            needs: seed.needs.clone(),
            edition: seed.edition,
            size: seed.size,
            deleting: seed.deleting,
            state: HandoffState::Unowned,
            fence_delay_if_lost: handed
                .as_ref()
                .filter(|_| state != HandoffState::Unowned)
                .map_or(Duration::ZERO, |h| h.fence_delay),
            handed,
            placement: RowPlacement { preferred: preferred.clone(), ..RowPlacement::default() },
            binding: None,
            granted_before,
            subject: Box::new(seed.subject),
            mode: self.modes.first(),
            quiet: None,
            // Known once its owner has said so in this term.
            available: false,
        };
        let id = entry.id;
        let tenant = entry.subject.tenant.clone();
        let Some(slot) = self.table.insert(entry) else {
            self.violation(ViolationKind::CreatedTwice, format!("appliance {id} was created twice"));
            return;
        };
        self.tallies.created();
        self.planner.insert(slot, id, &seed.placement_key, seed.needs, None, preferred.as_ref());
        self.planner.set_tenant(slot, Some(&tenant));
        self.planner.set_pin(slot, self.orders.pin(id).cloned());
        if seed.deleting {
            self.planner.set_deleting(slot);
        }
        if !unowned::has_owner(&state) {
            let cause = match &state {
                HandoffState::Orphaned(_) => UnownedCause::Lost,
                _ if granted_before => UnownedCause::Other,
                _ => UnownedCause::Created,
            };
            self.tallies.unowned.begin(self.epoch.last_step, slot, cause);
        }
        if state != HandoffState::Unowned {
            self.set_state(slot, state);
        }
        self.refresh_mode(slot);
        self.note_budget(slot);
        if self.versions_excluded(slot).next().is_some() {
            self.tell_excluded(slot);
        }
        self.pacing.due.want_owner();
        self.out.push(Action::Assigned(id));
    }

    /// Takes one fact in.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Output {
        if now.since(self.epoch.last_step) > TICK + STALL {
            // This process did not run for a while; beats may lie unread in its sockets.
            self.membership.start_waits_anew(now);
        }
        self.epoch.last_step = self.epoch.last_step.max(now);
        self.pacing.due.advance(now);
        match event {
            Event::Received(stream, envelope, message) => self.received(now, stream, envelope, message),
            Event::Read { members, leases } => self.read(now, members, &leases),
            Event::Members(members) => self.members_changed(now, members),
            Event::Observed(life, node) => self.observed(now, &life, node),
            Event::Over(life) => self.over(now, &life),
            Event::Evict(life) => self.evict(now, &life),
            Event::Witnessed(life, gather) => self.witnessed(now, &life, gather),
            Event::Forget(name) => self.forget_worker(now, &name),
            Event::Pause(pause) => self.pause(now, pause),
            Event::Resume => self.resume(now),
            Event::Orders(ops) => self.take_orders(&ops),
            Event::Closed(conn) => self.closed(now, conn),
            Event::Durable(batch) => self.written(now, batch, true),
            Event::Undone(batch) => self.written(now, batch, false),
            Event::Created(seed) => self.admit(seed, HandoffState::Unowned, None, None, false),
            Event::Updated { id, edition, kind, size, deleting } => self.updated(id, edition, kind, size, deleting),
            Event::Labelled(id, subject) => self.labelled(id, subject),
            Event::SetMode(mode, number) => self.set_mode(now, mode, number),
            Event::ClearMode(id, number) => self.clear_mode(id, number),
            Event::Unbind { id, site, number } => self.unbind(now, id, site.as_ref(), number),
            Event::Check(id, number) => self.check(id, number),
            Event::Disrupt { id, begins } => self.disrupt(id, begins),
            Event::FellBehind => self.membership.start_waits_anew(now),
            Event::Tick => self.tick(now),
        }
        self.flush(now);
        let (actions, regained) = self.out.take();
        Output { actions, wake_at: self.wake_at(now), regained }
    }

    fn tick(&mut self, now: Timestamp) {
        for (life, profile) in self.membership.take_gone(now) {
            self.gone(now, &life, profile, false);
        }
        self.watch_members(now);
        self.end_fence_waits(now);
        self.quarantine.tick(now);
        self.expire_modes(now);
        while let Some(slot) = self.writes.take_retry(now) {
            self.write_again(slot);
        }
        self.forgive(now);
        self.follow_claims(now);
        self.place(now);
        self.write_freed();
    }

    fn wake_at(&self, now: Timestamp) -> Option<Timestamp> {
        let watched = self.membership.lives().next().is_some() || self.pacing.brake.missing().next().is_some();
        let watch = watched.then(|| {
            let end = self.membership.next_end().unwrap_or(now + TICK);
            end.min(now + TICK)
        });
        let (write, forgive) = (self.writes.wake_at(now), self.pacing.next_forgiven());
        // What keeps everything from being planned ends by an event, not by time.
        let plan = self.pacing.due.due_at(now).filter(|_| self.members.has_read() && !self.pacing.plans_nothing());
        let claim = self.sessions.greetings.wake_at();
        let mode = self.modes.next_expiry();
        [watch, write, forgive, plan, claim, mode].into_iter().flatten().min()
    }

    /// Sends what this step collected: writes first, so that nothing on the wire precedes its write.
    fn flush(&mut self, now: Timestamp) {
        if let Some((batch, commit)) = self.writes.next_commit(now) {
            self.out.push(Action::Commit(batch, commit));
        }
        for (stream, confirm) in self.out.take_confirmations() {
            self.send(stream, ToWorker::Confirm(confirm));
        }
        self.flush_outboxes();
    }

    fn violation(&mut self, kind: ViolationKind, text: String) {
        self.counters.violations += 1;
        self.counters.kinds.add(kind);
        self.out.push(Action::Violation(text));
    }

    fn granted_to(&self, life: &Life, token: Token) -> Granted {
        Granted { worker: life.worker.clone(), incarnation: life.incarnation, token }
    }

    /// The term this machine leads.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.epoch.term
    }
}

/// The carryover from before the present owner took over: its counts stand, its waits are long over.
fn aged(handed: Carryover) -> Option<Box<Carryover>> {
    let progress = Progress { wait: Duration::ZERO, cooling: false, ..handed.progress };
    let handed = Carryover { progress, fence_delay: handed.fence_delay };
    (handed != Carryover::default()).then(|| Box::new(handed))
}

#[cfg(test)]
mod tests;
