//! What readers may know of the machine: workers, why an appliance is where it is, counters.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use common::driver::DriverOffers;
use common::mutant::{self, Mutant};
use common::{ApplianceId, Incarnation, Life, ProcessIdentity, RebalanceId, Timestamp, WorkerId};

use super::{Counters, HandsOff, Machine, Pause};
use crate::audit::AuditCounts;
use crate::grants::Profile;
use crate::handoff::HandoffState;
use crate::health::{self, Health};
use crate::orders::{Orders, Pin};
use crate::planner::{PlacementCandidate, Planner};
use crate::slot::Slot;
use crate::table::Table;
use crate::unowned::UnownedAppliances;

/// Most workers that are remembered after they are gone.
const MAX_DEPARTED: usize = 1_000;

/// For how long a worker is shown after its lease was over.
const DEAD: Duration = Duration::from_secs(3600);

/// For how long one is shown that left in good order: long enough to be seen, and nothing to be done about.
const LEFT: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
pub(super) struct Departed {
    incarnation: Incarnation,
    profile: Option<Profile>,
    at: Timestamp,
    /// It said that it leaves.
    left: bool,
}

impl Departed {
    fn is_shown(&self, now: Timestamp) -> bool {
        now.since(self.at) < if self.left { LEFT } else { DEAD }
    }
}

/// One worker, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerSnapshot {
    /// Its name.
    pub id: WorkerId,
    /// Its life.
    pub incarnation: Incarnation,
    /// How well it is.
    pub health: Health,
    /// What it published.
    pub profile: Option<Profile>,
    /// Appliances granted to it.
    pub appliances: u64,
    /// Time since its last heartbeat, or since it was called gone.
    pub silent: Duration,
    /// It gets nothing new and gives up what it has: it is about to stop, or an operator drains it.
    pub draining: bool,
    /// The weight in force, where it is another one than it publishes.
    pub weight: Option<u32>,
    /// Of one that an operator drains: appliances that no other worker can take now.
    pub immovable: u64,
    /// It is a member of the ring.
    pub member: bool,
    /// What does not count of what it says of itself, one sentence each.
    pub limited: Vec<String>,
}

/// What keeps the leader from moving anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeView {
    /// For how long.
    pub since: Duration,
    /// Names that are missed.
    pub missing: Vec<WorkerId>,
    /// Workers that are there.
    pub live: usize,
}

/// Why an appliance is where it is.
#[derive(Clone, Debug)]
pub struct OwnershipExplanation {
    /// One sentence.
    pub summary: String,
    /// Every member in ring order, and whether it could take the appliance.
    pub candidates: Vec<PlacementCandidate>,
}

impl Machine {
    pub(super) fn departed(&mut self, now: Timestamp, life: &Life, profile: Profile, left: bool) {
        if self.membership.any_life_of(&life.worker).is_none() {
            self.members.limited.remove(&life.worker);
        }
        let departed = Departed { incarnation: life.incarnation, profile: Some(profile), at: now, left };
        let all = &mut self.members.departed;
        all.insert(life.worker.clone(), departed);
        all.retain(|_, d| d.is_shown(now));
        if all.len() > MAX_DEPARTED
            && let Some(oldest) = all.iter().min_by_key(|(_, d)| d.at).map(|(name, _)| name.clone())
        {
            all.remove(&oldest);
        }
    }

    /// Every worker: members, lives that wait for their end, those lost within the last hour, and those that left within
    /// the last five minutes.
    #[must_use]
    pub fn workers(&self, now: Timestamp) -> Vec<WorkerSnapshot> {
        let mut views = BTreeMap::new();
        for (id, d) in self.members.departed.iter().filter(|(_, d)| d.is_shown(now)) {
            let view = WorkerSnapshot {
                id: id.clone(),
                incarnation: d.incarnation,
                health: if d.left { Health::Left } else { Health::Dead },
                profile: d.profile.clone(),
                appliances: 0,
                silent: now.since(d.at),
                draining: false,
                weight: self.ordered_weight(id),
                immovable: 0,
                member: false,
                limited: Vec::new(),
            };
            views.insert(id.clone(), view);
        }
        for life in self.membership.lives() {
            let is_member = self.membership.is_member(life);
            if !is_member
                && views
                    .get(&life.worker)
                    .is_some_and(|v: &WorkerSnapshot| !matches!(v.health, Health::Dead | Health::Left))
            {
                continue;
            }
            let beat = self.membership.last_beat(now, life);
            let drained = self.orders.is_drained(&life.worker);
            let view = WorkerSnapshot {
                id: life.worker.clone(),
                incarnation: life.incarnation,
                health: health::judge(beat, self.sessions.state(life)),
                profile: self.membership.profile(life).cloned(),
                appliances: self.tallies.granted.get(life).map_or(0, |set| set.len() as u64),
                silent: beat.map(|(age, _)| age).unwrap_or_default(),
                draining: self.membership.is_draining(life) || drained,
                weight: self.ordered_weight(&life.worker),
                immovable: if drained { self.planner.immovable(&life.worker) } else { 0 },
                member: is_member,
                limited: self.members.limited.get(&life.worker).cloned().unwrap_or_default(),
            };
            views.insert(life.worker.clone(), view);
        }
        views.into_values().collect()
    }

    /// Why an appliance is where it is, or is nowhere; `None` when it is not known.
    #[must_use]
    pub fn explain(&self, now: Timestamp, id: ApplianceId) -> Option<OwnershipExplanation> {
        let slot = self.table.slot(id)?;
        let entry = self.table.get(slot)?;
        let waiting = self.waiting(now).filter(|_| entry.state.wants_owner() && !self.is_barred(slot, id));
        let summary = waiting.unwrap_or_else(|| self.reason(slot).into_owned());
        let summary = match self.fence_wait(now, slot) {
            Some(wait) => format!("{summary}; {wait}"),
            None => summary,
        };
        let summary = match self.orders.pin(id) {
            Some(Pin { worker, strict: true }) => format!("{summary}; it is pinned to {worker} alone"),
            Some(Pin { worker, strict: false }) => {
                format!("{summary}; it is pinned to {worker} while that can take it")
            }
            None => summary,
        };
        let summary = match self.hands_off_at(now, slot, entry) {
            HandsOff::On => summary,
            HandsOff::Off(_) => format!("{summary}; hands are off it"),
            HandsOff::Waits(why) => format!("{summary}; hands are to be off it: {why}"),
        };
        let owned = matches!(entry.state, HandoffState::Owned(_));
        let held = if owned { self.held_by(id) } else { Vec::new() };
        let summary = held.into_iter().fold(summary, |summary, why| format!("{summary}; {why}"));
        Some(OwnershipExplanation { summary, candidates: self.planner.explain(slot) })
    }

    /// Why an appliance is where it is, in one clause.
    #[must_use]
    pub fn reason(&self, slot: Slot) -> Cow<'static, str> {
        let Some(entry) = self.table.get(slot) else { return Cow::Borrowed("it is gone") };
        if let Some(by) = self.conflicts.owner(slot) {
            let by = &by.worker;
            return Cow::Owned(format!(
                "{by} owns it against the table; no other worker gets it before that has ended"
            ));
        }
        if self.writes.is_unbinding(slot) {
            return Cow::Borrowed("it is being freed from its site");
        }
        match (&entry.placement.unplaced, entry.placement.reason, entry.state.wants_owner()) {
            (Some(why), _, true) => Cow::Owned(why.to_string()),
            (None, _, true) => match self.pacing.paused.as_ref().filter(|pause| !pause.moves_only) {
                Some(pause) => Cow::Owned(format!("placement is paused: {}", pause.why)),
                None => Cow::Borrowed("waits for the next plan"),
            },
            (_, Some(reason), false) => Cow::Borrowed(reason.text()),
            (_, None, false) => Cow::Borrowed("owned since before this leader"),
        }
    }

    /// Why nothing is placed right now, if nothing is.
    #[must_use]
    pub fn waiting(&self, now: Timestamp) -> Option<String> {
        if let Some(Pause { why, moves_only: false, .. }) = &self.pacing.paused {
            return Some(format!("paused: {why}"));
        }
        if !self.members.has_read() {
            return Some("a new leader reads who is there".to_owned());
        }
        let awaited = self.pacing.due.awaited(now);
        let names: Vec<&str> = awaited.iter().take(5).map(WorkerId::as_str).collect();
        (!awaited.is_empty()).then(|| format!("a new leader waits for {} to say what it holds", names.join(", ")))
    }

    /// What the brake holds, if it does.
    #[must_use]
    pub fn frozen(&self, now: Timestamp) -> Option<FreezeView> {
        self.pacing.brake.frozen_since().map(|since| FreezeView {
            since: now.since(since),
            missing: self.pacing.brake.missing().cloned().collect(),
            live: self.pacing.brake.live(),
        })
    }

    /// What an operator stopped, and why.
    #[must_use]
    pub const fn paused(&self) -> Option<&Pause> {
        self.pacing.paused.as_ref()
    }

    /// The rebalance that makes moves, if one does.
    #[must_use]
    pub const fn current_rebalance(&self) -> Option<RebalanceId> {
        self.pacing.rebalances.current()
    }

    /// Whether a rebalance has not ended.
    #[must_use]
    pub fn is_rebalancing(&self, id: RebalanceId) -> bool {
        self.pacing.rebalances.is_open(id)
    }

    /// What keeps an appliance with its owner, of what keeps others as well; one sentence each.
    #[must_use]
    pub fn held_by(&self, id: ApplianceId) -> Vec<String> {
        let mut held = Vec::new();
        if let Some(Pause { why, moves_only: true, .. }) = &self.pacing.paused {
            held.push(format!("moves are paused: {why}"));
        }
        held.extend(self.refuses_disruption(id).map(|spent| spent.to_string()));
        held
    }

    /// Orders of operators about placement.
    #[must_use]
    pub const fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Moves that did not end in time and no longer count against the limits.
    #[must_use]
    pub fn stalled_moves(&self) -> u64 {
        self.pacing.in_flight.stalled() as u64
    }

    /// The life under this name that heartbeats still keep: the member's, or else any.
    #[must_use]
    pub fn life_of(&self, worker: &WorkerId) -> Option<Incarnation> {
        let mut lives = self.membership.lives().filter(|l| l.worker == *worker && self.membership.is_alive(l));
        let any = lives.next_back()?;
        let member =
            self.membership.current(worker).filter(|i| self.membership.is_alive(&Life::new(worker.clone(), *i)));
        Some(member.unwrap_or(any.incarnation))
    }

    /// Whether the worker of this life is at the other end of a stream that was welcomed.
    #[must_use]
    pub fn is_connected(&self, life: &Life) -> bool {
        self.sessions.state(life) == health::SessionState::Settled
    }

    /// Processes of the lives that are waited for, as they published them.
    pub fn processes(&self) -> impl Iterator<Item = ProcessIdentity> {
        self.membership.lives().filter_map(|life| self.membership.profile(life)?.process)
    }

    /// Lives that this process published itself for.
    pub fn lives_of(&self, process: ProcessIdentity) -> impl Iterator<Item = &Life> {
        let is_it = move |published: ProcessIdentity| {
            published == process
                || mutant::is(Mutant::WitnessByPlace) && published.pid_namespace == process.pid_namespace
        };
        let published = move |life: &&Life| self.membership.profile(life).and_then(|p| p.process).is_some_and(is_it);
        self.membership.lives().filter(published)
    }

    /// Whether heartbeats of a life still count.
    #[must_use]
    pub fn is_alive(&self, life: &Life) -> bool {
        self.membership.is_alive(life)
    }

    /// Whether a worker of this name is known: it has a life, or is shown as one that was lost or has left.
    #[must_use]
    pub fn knows(&self, worker: &WorkerId) -> bool {
        self.members.departed.contains_key(worker) || self.membership.any_life_of(worker).is_some()
    }

    /// Whether a life of this name may still act.
    #[must_use]
    pub fn has_life(&self, worker: &WorkerId) -> bool {
        self.membership.any_life_of(worker).is_some()
    }

    /// What each live worker offers, including those that a new leader knows from the store.
    pub fn offers(&self) -> impl Iterator<Item = &DriverOffers> {
        let lives = self.membership.lives().filter(|life| self.membership.is_alive(life));
        lives.filter_map(|life| self.membership.profile(life)).map(|profile| &profile.drivers)
    }

    /// What counts of what a life says of itself.
    #[must_use]
    pub fn profile(&self, life: &Life) -> Option<&common::Profile> {
        self.membership.profile(life)
    }

    /// The table, for readers and checks.
    #[must_use]
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// How many hand-offs one worker is part of at once.
    #[must_use]
    pub const fn move_window(&self) -> &super::MoveWindow {
        &self.pacing.window
    }

    /// Its settings.
    #[must_use]
    pub const fn config(&self) -> &super::Config {
        &self.config
    }

    /// The planner, for ring and location queries.
    #[must_use]
    pub const fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Appliances by the state of their hand-off.
    pub fn states(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.tallies.states()
    }

    /// Moves under way.
    #[must_use]
    pub fn moves_in_flight(&self) -> u64 {
        self.pacing.in_flight.len() as u64
    }

    /// What was begun and has not ended, by sort: writes, retries, what is still to be sent to workers. All are 0 at rest.
    #[must_use]
    pub fn backlog(&self) -> [(&'static str, usize); 4] {
        [
            ("writes under way", self.writes.in_flight()),
            ("writes to be tried again", self.writes.waiting()),
            ("entries waiting to be sent", self.sessions.unsent()),
            ("appliances held against the table", self.conflicts.len()),
        ]
    }

    /// Appliances without an owner.
    #[must_use]
    pub const fn unowned(&self) -> &UnownedAppliances {
        &self.tallies.unowned
    }

    /// Appliances whose steps are announced because a former owner died, and those of them that are granted to no worker.
    #[must_use]
    pub fn suspects(&self) -> (u64, u64) {
        self.quarantine.counts()
    }

    /// What comparing workers' digests with the table came to.
    #[must_use]
    pub const fn audits(&self) -> AuditCounts {
        self.conflicts.audit.counts()
    }

    /// Counters for metrics.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Time since this machine began its term.
    #[must_use]
    pub const fn age(&self, now: Timestamp) -> Duration {
        now.since(self.epoch.started)
    }

    pub(crate) fn granted(&self) -> &BTreeMap<Life, std::collections::BTreeSet<Slot>> {
        &self.tallies.granted
    }

    pub(crate) fn membership(&self) -> &crate::membership::Membership {
        &self.membership
    }

    pub(crate) fn expected(&self, life: &Life) -> common::Digest {
        self.conflicts.audit.expected(life)
    }

    /// Whether it is granted to no worker until a user changes it.
    #[must_use]
    pub fn is_quarantined(&self, id: ApplianceId) -> bool {
        self.quarantine.quarantined(id).is_some()
    }

    pub(crate) const fn next_sequence(&self) -> u64 {
        self.epoch.next_sequence
    }
}
