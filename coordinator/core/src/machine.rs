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

#[cfg(feature = "canon")]
mod canon;
mod holds;
mod members;
mod ownership;
mod placement;
mod sessions;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use common::session::{AnnouncedStep, Carryover, Confirm, Envelope, GrantRef, StatusReport, ToCoordinator, ToWorker};
use common::status::Progress;
use common::{ApplianceId, Edition, Incarnation, Life, Term, Timestamp, Token, WorkerId};
use serde::{Deserialize, Serialize};

use crate::audit::Audit;
use crate::brake::{self, Brake};
use crate::grants::{GrantOp, Granted, Profile, StoredGrant, StoredMember};
use crate::handoff::State;
use crate::membership::{Authority, LeaseNode, Membership, Node};
use crate::planner::{self, Planner, Slot};
use crate::quarantine::{self, Quarantine};
use crate::rebalance::{News, Rebalances};
use crate::table::{Seed, Table, TableRow};
use crate::unowned::{self, Unowned};
use crate::violation::{self, Kind};

pub use sessions::StreamId;
pub use view::{Explanation, WorkerView, reason};

/// Settings of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How members share the appliances.
    pub planner: planner::Config,
    /// How long joins are gathered before anything moves to them, in milliseconds. Longer makes fewer, larger rebalances.
    pub debounce_ms: u64,
    /// How long a new leader waits for the members of its predecessor to say what they hold, in milliseconds.
    pub reconnect_grace_ms: u64,
    /// Most appliances on the move from one owner to another at once. Orphans are exempt.
    pub max_moves_in_flight: usize,
    /// Most of them that leave, or come to, one worker.
    pub max_moves_per_worker: usize,
    /// Most of those that began in the last quarter of a second. Whoever moves at once shares commits and waits for
    /// them: more moves more per second, and leaves each unattended for longer. One whose owner has to end a step first
    /// is attended meanwhile, and does not keep others from moving.
    pub moves_at_once: usize,
    /// How long a worker that declined an appliance is not asked again, in milliseconds.
    pub decline_backoff_ms: u64,
    /// Workers that may die during an announced step of one appliance before nobody is granted it any more. Fewer spare
    /// workers, more are fairer to an appliance that was struck by chance.
    pub quarantine_strikes: u32,
    /// How long one worker has to hold an appliance whose former owner died for it to count as innocent, in milliseconds.
    pub suspect_probation_ms: u64,
    /// Part of the live workers that may vanish within `freeze_window_ms` before nothing moves any more: more likely the
    /// leader lost sight of them. Above 0, at most 1; 1 never freezes.
    pub freeze_fraction: f64,
    /// Losses further apart than this are not one event, in milliseconds.
    pub freeze_window_ms: u64,
    /// How long what a vanished worker held waits for its name to come back, in milliseconds. Longer saves moves when
    /// workers restart, and leaves appliances unattended for as long when they do not.
    pub departure_grace_ms: u64,
    /// How long a worker may hold a lease without a session while a move waits on it, before it is evicted, in
    /// milliseconds.
    pub unreachable_after_ms: u64,
    /// After how long a move counts as stalled: it is shown, and no longer counts against the limits, in milliseconds.
    pub release_deadline_ms: u64,
    /// Who ends leases. Follows from the coordination; not a setting.
    #[serde(skip)]
    pub authority: Authority,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            planner: planner::Config::default(),
            debounce_ms: 500,
            reconnect_grace_ms: 5_000,
            max_moves_in_flight: 512,
            max_moves_per_worker: 128,
            moves_at_once: 2,
            decline_backoff_ms: 5_000,
            quarantine_strikes: 3,
            suspect_probation_ms: 60_000,
            freeze_fraction: 0.5,
            freeze_window_ms: 10_000,
            departure_grace_ms: 0,
            unreachable_after_ms: 60_000,
            release_deadline_ms: 30_000,
            authority: Authority::Embedded,
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn validate(&self) -> Result<(), String> {
        if !self.planner.band.is_finite() || self.planner.band < 1.0 {
            return Err(format!("planner.band must be at least 1, is {}", self.planner.band));
        }
        for (field, value) in [
            ("max_moves_in_flight", self.max_moves_in_flight),
            ("max_moves_per_worker", self.max_moves_per_worker),
            ("moves_at_once", self.moves_at_once),
        ] {
            if value == 0 {
                return Err(format!("{field} must be at least 1"));
            }
        }
        if self.quarantine_strikes == 0 {
            return Err("quarantine_strikes must be at least 1".to_owned());
        }
        if !(self.freeze_fraction > 0.0 && self.freeze_fraction <= 1.0) {
            return Err(format!("freeze_fraction must be above 0 and at most 1, is {}", self.freeze_fraction));
        }
        for (field, value) in
            [("unreachable_after_ms", self.unreachable_after_ms), ("release_deadline_ms", self.release_deadline_ms)]
        {
            if value < 1_000 {
                return Err(format!("{field} must be at least 1000"));
            }
        }
        Ok(())
    }

    fn brake(&self) -> brake::Config {
        brake::Config {
            fraction: self.freeze_fraction,
            window: Duration::from_millis(self.freeze_window_ms),
            grace: Duration::from_millis(self.departure_grace_ms),
            settle: Duration::from_millis(self.debounce_ms) * 4,
        }
    }
}

/// How often time is looked at while anybody holds a lease. A longer silence means that this process did not run, and
/// every lease is waited for anew (see `Membership::start_waits_anew`).
pub const TICK: Duration = Duration::from_millis(250);

/// How much longer than [`TICK`] between two steps counts as not having run.
const STALL: Duration = Duration::from_millis(750);

/// Age of an unread message from which the leader has fallen behind, as if it had not run (see [`Event::FellBehind`]).
pub const BEHIND: Duration = Duration::from_secs(1);

/// How far above the leader's own a term may be that a worker claims to have met. Terms grow by one with each election: a
/// larger step is nonsense, and taking it up would burn the terms that are left.
const PLAUSIBLE_TERMS: u64 = 1 << 32;

/// After how long a write that failed is tried again.
const WRITE_RETRY: Duration = Duration::from_millis(500);

/// Number of one group of writes.
pub type BatchId = u64;

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker sent a message: the stream it came on, which conversation it names, and what it says.
    Received(StreamId, Envelope, ToCoordinator),
    /// A stream ended.
    Closed(StreamId),
    /// External: every node was read, after the connection was made anew. Nothing counts before the first of these.
    Read {
        /// The member nodes.
        members: BTreeMap<WorkerId, Node>,
        /// The lease nodes.
        leases: BTreeMap<Life, LeaseNode>,
    },
    /// External: the member nodes, read after one came or went.
    Members(BTreeMap<WorkerId, Node>),
    /// External: a lease node was read, or a heartbeat seen.
    Observed(Life, LeaseNode),
    /// External: no further heartbeat of this life can arrive; all that did were told before.
    Over(Life),
    /// An operator wants the lease of a life ended.
    Evict(Life),
    /// An operator stops all planning, for this reason.
    Pause(String),
    /// An operator lets planning go on, also where the brake holds it.
    Resume,
    /// The store has a batch.
    Durable(BatchId),
    /// The store surely does not have a batch.
    Undone(BatchId),
    /// An appliance was stored.
    Created(Seed),
    /// A stored appliance changed.
    Updated {
        /// The appliance.
        id: ApplianceId,
        /// Its new edition.
        edition: Edition,
        /// About how many bytes its specification has on the wire.
        size: usize,
        /// It is to be removed.
        deleting: bool,
    },
    /// Somebody wants an appliance probed now.
    Check(ApplianceId, u64),
    /// What workers say has waited so long to be read that a lease may seem over which is not.
    FellBehind,
    /// Nothing but time has passed.
    Tick,
}

/// Why a stream is ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The life's lease is over, or was never known.
    IncarnationOver,
    /// Somebody else under this name may still act, for at most this long if nothing is heard of it.
    NameTaken(Duration),
    /// A newer stream of the same life took over.
    Superseded,
    /// It claims to have met a term that no cluster reaches.
    ImplausibleTerm(Term),
    /// The store cannot be written now.
    StoreUnavailable,
    /// It names no life, though lives are taken from the coordination service.
    NoLife,
    /// No lease node of this life was seen.
    UnknownLife,
    /// What it holds differs from the table: it shall say `Hello` again, which settles it.
    Differs,
    /// Its member node was taken away, and it holds nothing any more: it may come back in a new life.
    NotMember,
}

/// Writes to be made in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// Changes of ownership.
    pub grants: Vec<GrantOp>,
    /// Members to be stored.
    pub put_members: Vec<StoredMember>,
    /// Members to be removed.
    pub remove_members: Vec<Life>,
}

impl Commit {
    fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.put_members.is_empty() && self.remove_members.is_empty()
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make durable, then say `Event::Durable` or `Event::Undone`. Batches are committed in order.
    Commit(BatchId, Commit),
    /// Send to a worker, as part of this conversation. Nothing is owed when the stream broke.
    Send(StreamId, Envelope, ToWorker<()>),
    /// End a stream.
    Close(StreamId, Refusal),
    /// Statuses that come from the owners of their appliances: to be stored, and shown to readers.
    Reports(Vec<StatusReport>),
    /// Ownership of an appliance changed, for readers.
    Assigned(ApplianceId),
    /// An appliance is gone for ever and its rows with it.
    Removed(ApplianceId),
    /// A worker joined, changed or is gone, for readers.
    WorkerChanged(WorkerId),
    /// A life is gone, decided at this moment: others may act on what it held from then on. To be logged.
    Gone(Life, Timestamp),
    /// News of a rebalance.
    Rebalance(News),
    /// So many workers died while a step of this appliance ran; nobody is granted it any more.
    Quarantined(ApplianceId, u32),
    /// Somebody holds, or says, what contradicts the table. To be logged and counted.
    Violation(String),
    /// Write over the lease node of a life, so that no further heartbeat of it commits.
    Evict(Life),
    /// A higher term was met: begin a new one above it. Nothing this machine does counts any more.
    RaiseTerm(Term),
}

/// What a step leads to.
#[derive(Debug, Default)]
pub struct Output {
    /// To be carried out in order.
    pub actions: Vec<Action>,
    /// When to send `Event::Tick` at the latest.
    pub wake_at: Option<Timestamp>,
    /// For how long appliances had no owner that got one in this step.
    pub regained: Vec<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pending {
    /// A grant, a release or a removal under this token.
    Slot(Slot, Token),
    /// The member behind a stream that waits for its welcome.
    Member(StreamId),
    /// The end of a life: its row is removed, or (`true`) kept as that of a missed name.
    Departed(Life, bool),
}

/// What the leader starts from.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Every appliance with what the store knows of its ownership.
    pub appliances: Vec<(Seed, StoredGrant)>,
    /// Members as of the last change.
    pub members: Vec<StoredMember>,
}

/// Counters for metrics and `Cluster.Status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Contradictions met.
    pub violations: u64,
    /// The same by kind.
    pub kinds: violation::Counts,
    /// Messages dropped because they named another stream, life or term.
    pub stale_messages: u64,
    /// Plans made.
    pub plans: u64,
}

/// The coordinator while it leads one term.
#[derive(Clone, Debug)]
pub struct Machine {
    config: Config,
    term: Term,
    next_sequence: u64,
    next_incarnation: u64,
    next_batch: BatchId,
    last_step: Timestamp,
    started: Timestamp,
    table: Table,
    planner: Planner,
    membership: Membership,
    sessions: sessions::Sessions,
    /// Appliances granted to each life, from `Granting` to `Releasing`.
    granted: BTreeMap<Life, BTreeSet<Slot>>,
    /// Lives that act on an appliance against the table; it is granted to nobody until they ended.
    intruders: BTreeMap<Slot, BTreeSet<(Life, Token)>>,
    /// Workers that declined an appliance, until when.
    declined: BTreeMap<Slot, BTreeMap<WorkerId, Timestamp>>,
    pending: BTreeMap<BatchId, Vec<Pending>>,
    commit: Commit,
    commit_pending: Vec<Pending>,
    /// Releases to be confirmed to each stream in this step.
    confirm: BTreeMap<StreamId, Vec<GrantRef>>,
    /// Given up since the last plan: what was handed in is written with the next grant if that plan makes one.
    freed: BTreeSet<Slot>,
    /// Writes that failed and are tried again.
    retries: BTreeSet<(Timestamp, Slot)>,
    /// Lives that are gone and may still be in the store as ones that act. Every commit ends them until one that did is
    /// durable: a write that counts on their end must not outlive it, or the next leader would let them act again. With a
    /// profile the row stays, as that of a missed name.
    ending: BTreeMap<Life, Option<Profile>>,
    /// Rows of missed names.
    remembered: BTreeMap<WorkerId, BTreeSet<Incarnation>>,
    /// When they are ended in a commit of their own.
    remove_at: Option<Timestamp>,
    quarantine: Quarantine,
    brake: Brake,
    /// Why an operator stopped all planning.
    paused: Option<String>,
    members: members::Watch,
    /// Announced steps to be confirmed to each stream in this step.
    clear: BTreeMap<StreamId, Vec<AnnouncedStep>>,
    rebalances: Rebalances,
    placement: placement::Due,
    in_flight: placement::InFlight,
    states: HashMap<&'static str, u64>,
    departed: BTreeMap<WorkerId, view::Departed>,
    counters: Counters,
    audit: Audit,
    unowned: Unowned,
    /// Durations without an owner that ended in this step.
    regained: Vec<Duration>,
    actions: Vec<Action>,
}

impl Machine {
    /// Begins `term` with what the store knows.
    #[must_use]
    pub fn new(config: Config, term: Term, now: Timestamp, restored: Restored) -> Self {
        let (missed, members): (Vec<_>, Vec<_>) = restored.members.into_iter().partition(|m| m.departed);
        let awaited: BTreeSet<Life> = members.iter().map(|m| m.life()).collect();
        let live = members.iter().map(|m| m.worker.clone());
        let brake = Brake::restore(config.brake(), now, live, missed.iter().map(|m| m.worker.clone()));
        let mut remembered: BTreeMap<WorkerId, BTreeSet<Incarnation>> = BTreeMap::new();
        for member in missed {
            remembered.entry(member.worker).or_default().insert(member.incarnation);
        }
        let membership = Membership::restore(config.authority, now, members);
        let membership_lives: Vec<Life> = membership.lives().cloned().collect();
        let mut this = Self {
            planner: Planner::new(config.planner.clone()),
            term,
            next_sequence: 1,
            next_incarnation: 1,
            next_batch: 1,
            last_step: now,
            started: now,
            table: Table::default(),
            membership,
            sessions: sessions::Sessions::default(),
            granted: BTreeMap::new(),
            intruders: BTreeMap::new(),
            declined: BTreeMap::new(),
            pending: BTreeMap::new(),
            commit: Commit::default(),
            commit_pending: Vec::new(),
            confirm: BTreeMap::new(),
            freed: BTreeSet::new(),
            retries: BTreeSet::new(),
            ending: BTreeMap::new(),
            remembered,
            remove_at: None,
            quarantine: Quarantine::new(quarantine::Config {
                strikes: config.quarantine_strikes,
                probation: Duration::from_millis(config.suspect_probation_ms),
            }),
            brake,
            paused: None,
            members: members::Watch::new(now, membership_lives, config.authority),
            clear: BTreeMap::new(),
            rebalances: Rebalances::new(term),
            placement: placement::Due::at_start(now, Duration::from_millis(config.reconnect_grace_ms), awaited),
            in_flight: placement::InFlight::default(),
            states: HashMap::new(),
            departed: BTreeMap::new(),
            counters: Counters::default(),
            audit: Audit::default(),
            unowned: Unowned::default(),
            regained: Vec::new(),
            actions: Vec::new(),
            config,
        };
        this.forget_missed(now);
        this.refresh_members();
        for (seed, stored) in restored.appliances {
            this.restore(seed, stored);
        }
        this
    }

    fn restore(&mut self, seed: Seed, stored: StoredGrant) {
        let state = match stored.granted {
            None => State::Unowned,
            // Taken for owned until its worker says `Hello` or its lease ends.
            Some(g) if self.membership.is_alive(&g.life()) => State::Owned(g),
            Some(g) => State::Orphaned(g),
        };
        let mut needs = seed.needs.clone();
        if stored.site.is_some() {
            needs.site = stored.site;
        }
        let granted_before =
            stored.ever || state.grant().is_some() || needs.site.is_some() || stored.progress != Progress::default();
        let preferred = state.grant().map(|g| g.worker.clone());
        let handed = Carryover { progress: stored.progress, fence_delay: stored.hold };
        let handed = match state {
            State::Unowned => (handed != Carryover::default()).then(|| Box::new(handed)),
            _ => aged(handed),
        };
        self.admit(Seed { needs, ..seed }, state, handed, preferred, granted_before);
    }

    fn admit(
        &mut self,
        seed: Seed,
        state: State,
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
            state: State::Unowned,
            hold_if_lost: handed.as_ref().filter(|_| state != State::Unowned).map_or(Duration::ZERO, |h| h.fence_delay),
            handed,
            preferred: preferred.clone(),
            moved_from: None,
            reason: None,
            unplaced: None,
            rebalance: None,
            binding: None,
            granted_before,
        };
        let id = entry.id;
        let Some(slot) = self.table.insert(entry) else {
            self.violation(Kind::CreatedTwice, format!("appliance {id} was created twice"));
            return;
        };
        *self.states.entry(State::Unowned.name()).or_default() += 1;
        self.planner.insert(slot, &seed.placement_key, seed.needs, None, preferred.as_ref());
        if !unowned::has_owner(&state) {
            self.unowned.begin(self.last_step, slot);
        }
        if state != State::Unowned {
            self.set_state(slot, state);
        }
        self.placement.want_owner();
        self.actions.push(Action::Assigned(id));
    }

    /// Takes one fact in.
    pub fn step(&mut self, now: Timestamp, event: Event) -> Output {
        if now.since(self.last_step) > TICK + STALL {
            // This process did not run for a while; beats may lie unread in its sockets.
            self.membership.start_waits_anew(now);
        }
        self.last_step = self.last_step.max(now);
        match event {
            Event::Received(stream, envelope, message) => self.received(now, stream, envelope, message),
            Event::Read { members, leases } => self.read(now, members, &leases),
            Event::Members(members) => self.members_changed(now, members),
            Event::Observed(life, node) => self.observed(now, &life, node),
            Event::Over(life) => self.over(now, &life),
            Event::Evict(life) => self.evict(now, &life),
            Event::Pause(why) => self.pause(now, why),
            Event::Resume => self.resume(now),
            Event::Closed(conn) => self.closed(now, conn),
            Event::Durable(batch) => self.written(now, batch, true),
            Event::Undone(batch) => self.written(now, batch, false),
            Event::Created(seed) => self.admit(seed, State::Unowned, None, None, false),
            Event::Updated { id, edition, size, deleting } => self.updated(id, edition, size, deleting),
            Event::Check(id, number) => self.check(id, number),
            Event::FellBehind => self.membership.start_waits_anew(now),
            Event::Tick => self.tick(now),
        }
        self.flush(now);
        Output {
            actions: std::mem::take(&mut self.actions),
            wake_at: self.wake_at(now),
            regained: std::mem::take(&mut self.regained),
        }
    }

    fn tick(&mut self, now: Timestamp) {
        for (life, profile) in self.membership.take_gone(now) {
            self.gone(now, &life, profile, false);
        }
        self.watch_members(now);
        self.quarantine.tick(now);
        while let Some(&(at, slot)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            self.write_again(slot);
        }
        self.forgive(now);
        self.place(now);
        self.write_freed();
    }

    fn wake_at(&self, now: Timestamp) -> Option<Timestamp> {
        let watched = self.membership.lives().next().is_some() || self.brake.missing().next().is_some();
        let watch = watched.then(|| {
            let end = self.membership.next_end().unwrap_or(now + TICK);
            end.min(now + TICK)
        });
        let freed = (!self.freed.is_empty()).then_some(now);
        let retry = self.retries.first().map(|(at, _)| *at);
        let forgive = self.declined.values().flat_map(BTreeMap::values).min().copied();
        // What keeps everything from being planned ends by an event, not by time.
        let plan = self.placement.due_at(now).filter(|_| self.members.has_read() && self.paused.is_none());
        [watch, freed, retry, self.remove_at, forgive, plan].into_iter().flatten().min()
    }

    /// Sends what this step collected: writes first, so that nothing on the wire precedes its write.
    fn flush(&mut self, now: Timestamp) {
        let removal_is_due = self.remove_at.is_some_and(|at| at <= now);
        if removal_is_due || !self.commit.is_empty() {
            self.remove_at = None;
            for (life, missed) in &self.ending {
                self.commit_pending.push(Pending::Departed(life.clone(), missed.is_some()));
                match missed.clone() {
                    None => self.commit.remove_members.push(life.clone()),
                    Some(profile) => self.commit.put_members.push(StoredMember {
                        worker: life.worker.clone(),
                        incarnation: life.incarnation,
                        profile,
                        departed: true,
                    }),
                }
            }
            let batch = self.next_batch;
            self.next_batch += 1;
            self.pending.insert(batch, std::mem::take(&mut self.commit_pending));
            self.actions.push(Action::Commit(batch, std::mem::take(&mut self.commit)));
        }
        for (conn, released) in std::mem::take(&mut self.confirm) {
            for part in released.chunks(crate::outbox::MAX_ENTRIES) {
                self.send(conn, ToWorker::Confirm(Confirm { released: part.to_vec(), ..Confirm::default() }));
            }
        }
        for (conn, steps) in std::mem::take(&mut self.clear) {
            for part in steps.chunks(crate::outbox::MAX_ENTRIES) {
                self.send(conn, ToWorker::Confirm(Confirm { begin: part.to_vec(), ..Confirm::default() }));
            }
        }
        self.flush_outboxes();
    }

    fn violation(&mut self, kind: Kind, text: String) {
        self.counters.violations += 1;
        self.counters.kinds.add(kind);
        self.actions.push(Action::Violation(text));
    }

    fn granted_to(&self, life: &Life, token: Token) -> Granted {
        Granted { worker: life.worker.clone(), incarnation: life.incarnation, token }
    }

    /// The term this machine leads.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }
}

/// What was handed in before the present owner took over: its counts stand, its waits are long over.
fn aged(handed: Carryover) -> Option<Box<Carryover>> {
    let progress = Progress { wait: Duration::ZERO, cooling: false, ..handed.progress };
    let handed = Carryover { progress, fence_delay: handed.fence_delay };
    (handed != Carryover::default()).then(|| Box::new(handed))
}

#[cfg(test)]
mod audited;
#[cfg(test)]
mod external;
#[cfg(test)]
mod held;
#[cfg(test)]
mod passing;
#[cfg(test)]
mod regressions;
#[cfg(test)]
mod tests;
