//! What leads one term, after `coordinator::leader`: events into the machine, actions out, writes through the store, a
//! tick after every input and whenever it is due.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::kind::KindName;
use common::session::{DeltaEntry, Envelope, RefusedReason, ToCoordinator, ToWorker};
use common::{ApplianceId, Generation, RebalanceId, Term, Timestamp};
use coordinator_core::machine::{Action, Event, Machine, Restored};
use coordinator_core::planner::Needs;
use coordinator_core::rebalance::{RebalanceEvent, UnfinishedRebalance};
use coordinator_core::table::Seed;

use super::SimTime;
use super::coordinator::{CoordinatorRole, CoordinatorTimer};
use super::database::{ApplianceRow, DatabaseWrite, Rows};
use super::net::{LeaderMessage, SimDesired, WorkerMessage};
use super::stranger::Stranger;
use super::world::SimWorld;
use super::writer::{Fate, WriteResult};

/// The longest the runner sleeps, as in `coordinator::leader`.
const REFRESH: Duration = Duration::from_secs(1);

/// The leader of one term.
#[derive(Debug)]
pub(super) struct SimLeader {
    pub(super) reign: u64,
    pub(super) machine: Machine,
    pub(super) catalog: BTreeMap<ApplianceId, ApplianceRow>,
    /// Appliances with a change under way: one at a time.
    pub(super) changing: BTreeSet<ApplianceId>,
    /// An order is being stored: one at a time.
    pub(super) ordering: bool,
    pub(super) rebalances: BTreeMap<RebalanceId, BTreeSet<ApplianceId>>,
    streams: BTreeSet<usize>,
    /// Number of the newest tick, and when it is due.
    tick: (u64, SimTime),
    steps: u64,
    /// The stream whose message is being taken in.
    hears: Option<usize>,
}

impl SimLeader {
    /// The streams that are open to it.
    pub(super) fn into_streams(self) -> impl Iterator<Item = usize> {
        self.streams.into_iter()
    }
}

fn seed(record: &ApplianceRow) -> Seed {
    Seed {
        id: record.id,
        placement_key: record.id.to_string(),
        needs: Needs { driver: record.driver.clone(), kind: KindName::Custom, site: None },
        edition: record.edition,
        size: 200,
        deleting: record.deleting,
        subject: record.subject.clone(),
    }
}

impl SimWorld {
    /// Begins to lead with what the store has.
    pub(super) fn lead(&mut self, coordinator: usize, term: Term, rows: Rows) {
        self.reigns += 1;
        let reign = self.reigns;
        let mut members: Vec<_> = rows.members.into_values().collect();
        // The database promises no order.
        for n in (1..members.len()).rev() {
            members.swap(n, self.rng.index(n + 1));
        }
        let stored = |r: &ApplianceRow| {
            let grant = rows.grants.get(&r.id);
            machine_grant(grant)
        };
        let appliances = rows.records.values().map(|r| (seed(r), stored(r))).collect();
        let now = self.coordinators[coordinator].clock.local(self.now);
        let unfinished = self.unfinished_rebalance();
        let rebalances = unfinished.iter().map(|it| (it.id, it.moved.clone())).collect();
        let modes = rows.modes.values().map(|rule| self.read_rule(rule)).collect();
        let orders = rows.orders.clone();
        let restored = Restored { appliances, members, unfinished, modes, orders, ..Restored::default() };
        let machine = Machine::new(self.settings.machine.clone(), term, now, restored);
        if !self.begun.insert(term) && !self.database.restored {
            self.fail(format!("I5: {term} is begun twice"));
        }
        let leader = SimLeader {
            reign,
            machine,
            catalog: rows.records,
            changing: BTreeSet::new(),
            ordering: false,
            rebalances,
            streams: BTreeSet::new(),
            tick: (0, SimTime::MAX),
            steps: 0,
            hears: None,
        };
        if let Some(process) = &mut self.coordinators[coordinator].process {
            process.role = CoordinatorRole::Leading(Box::new(leader));
        }
        self.note(|| format!("c{coordinator} leads {term}"));
        self.count_leaders();
        self.leader_step(coordinator, Event::Tick);
        self.write_seen(coordinator, reign);
    }

    /// The rebalance that the history says a former leader did not end. History is written apart from ownership: moves
    /// may be missing from it.
    fn unfinished_rebalance(&mut self) -> Option<UnfinishedRebalance> {
        let (id, mut moved) = std::mem::take(&mut self.unfinished).pop_last()?;
        moved.retain(|_| !self.rng.chance(25));
        self.unfinished.insert(id, moved.clone());
        Some(UnfinishedRebalance { id, moved })
    }

    /// Writes now and then when nothing else is written: a leader whose store was put back, or is led by another one,
    /// learns of it.
    pub(super) fn write_seen(&mut self, coordinator: usize, reign: u64) {
        let Some(leader) = self.coordinators[coordinator].leader().filter(|leader| leader.reign == reign) else {
            return;
        };
        let term = leader.machine.term();
        self.submit(coordinator, reign, term, DatabaseWrite::Seen);
        let delay = self.rng.millis(1_000, 2_000);
        self.coordinator_timer_after(coordinator, delay, CoordinatorTimer::Seen(reign));
    }

    pub(super) fn leader_receives(&mut self, stream: usize, message: WorkerMessage) {
        let (coordinator, instance) = (self.streams[stream].coordinator, self.streams[stream].instance);
        if !self.coordinators[coordinator].is_running(instance) {
            return;
        }
        let Some(leader) = self.coordinators[coordinator].leader_mut() else {
            if matches!(message, WorkerMessage::Message(_, ToCoordinator::Hello(_))) {
                self.send_down(stream, LeaderMessage::refused(RefusedReason::NotLeading, None));
            }
            return;
        };
        let id = stream as u64;
        let event = match message {
            WorkerMessage::Message(from, message) => {
                match &message {
                    ToCoordinator::Hello(_) => _ = leader.streams.insert(stream),
                    ToCoordinator::Leave => _ = leader.streams.remove(&stream),
                    _ => {}
                }
                Event::Received(id, from, message)
            }
            WorkerMessage::End => {
                if !leader.streams.remove(&stream) {
                    return;
                }
                Event::Closed(id)
            }
        };
        if !matches!(event, Event::Received(_, _, ToCoordinator::Beat(_) | ToCoordinator::Report(_))) {
            self.note(|| format!("c{coordinator} <- s{stream} {event:?}"));
        }
        if let Some(leader) = self.coordinators[coordinator].leader_mut() {
            leader.hears = Some(stream);
        }
        if self.streams[stream].stranger == Some(Stranger::Impostor) {
            self.impostor_is_heard(coordinator, event);
        } else {
            self.leader_step(coordinator, event);
        }
        if let Some(leader) = self.coordinators[coordinator].leader_mut() {
            leader.hears = None;
        }
        self.tick_soon(coordinator);
    }

    /// News of the service.
    pub(super) fn leader_roster_event(&mut self, coordinator: usize, event: Event) {
        if !matches!(event, Event::Observed(..)) {
            self.note(|| format!("c{coordinator}: {event:?}"));
        }
        self.leader_step(coordinator, event);
        self.tick_soon(coordinator);
    }

    pub(super) fn leader_news(&mut self, coordinator: usize, reign: u64, news: WriteResult) {
        let Some(leader) = self.coordinators[coordinator].leader_mut().filter(|leader| leader.reign == reign) else {
            return;
        };
        let event = match news {
            WriteResult::Batch(_, Fate::Lost)
            | WriteResult::Put(_, Fate::Lost)
            | WriteResult::Order(_, Fate::Lost)
            | WriteResult::Seen(Fate::Lost) => {
                self.note(|| format!("c{coordinator} has lost the store"));
                return self.give_up(coordinator);
            }
            WriteResult::Seen(_) => return,
            WriteResult::Order(_, Fate::Undone) => {
                leader.ordering = false;
                return;
            }
            WriteResult::Order(op, Fate::Durable) => {
                leader.ordering = false;
                self.ordered(coordinator, op);
                return self.tick_soon(coordinator);
            }
            WriteResult::Batch(batch, Fate::Durable) => Event::Durable(batch),
            WriteResult::Batch(batch, Fate::Undone) => Event::Undone(batch),
            WriteResult::Put(record, fate) => {
                leader.changing.remove(&record.id);
                if fate == Fate::Undone {
                    return;
                }
                let created = record.edition.generation == Generation::new(1);
                let ApplianceRow { id, edition, deleting, ref subject, .. } = record;
                let labelled = Event::Labelled(id, subject.clone());
                let event = if created {
                    Event::Created(seed(&record))
                } else {
                    Event::Updated { id, edition, kind: KindName::Custom, size: 200, deleting }
                };
                if created || leader.catalog.contains_key(&record.id) {
                    leader.catalog.insert(record.id, record);
                }
                self.acknowledged.insert(id, edition.generation);
                self.leader_step(coordinator, labelled);
                event
            }
        };
        self.note(|| format!("c{coordinator}: {event:?}"));
        self.leader_step(coordinator, event);
        self.tick_soon(coordinator);
    }

    pub(super) fn leader_tick(&mut self, coordinator: usize, reign: u64, number: u64) {
        if self.coordinators[coordinator].leader().is_some_and(|l| l.reign == reign && l.tick.0 == number) {
            self.leader_step(coordinator, Event::Tick);
        }
    }

    fn tick_soon(&mut self, coordinator: usize) {
        let at = self.now + self.rng.micros(1, 500);
        self.tick_at(coordinator, at);
    }

    fn tick_at(&mut self, coordinator: usize, at: SimTime) {
        let now = self.now;
        let Some(leader) = self.coordinators[coordinator].leader_mut() else { return };
        if at < leader.tick.1 || leader.tick.1 <= now {
            leader.tick = (leader.tick.0 + 1, at);
            let (reign, number) = (leader.reign, leader.tick.0);
            self.coordinator_timer_after(coordinator, at - now, CoordinatorTimer::Tick { reign, number });
        }
    }

    pub(super) fn leader_step(&mut self, coordinator: usize, event: Event) {
        let local = self.coordinators[coordinator].clock.local(self.now);
        let available = self.available(coordinator);
        let Some(leader) = self.coordinators[coordinator].leader_mut() else { return };
        let was_tick = event == Event::Tick;
        let output = leader.machine.step(local, event);
        leader.steps += 1;
        if was_tick {
            leader.tick.1 = SimTime::MAX;
        }
        let (reign, steps) = (leader.reign, leader.steps);
        if !available.is_empty() {
            self.check_budgets(coordinator, &available);
        }
        for action in output.actions {
            self.carry_out(coordinator, reign, action);
        }
        let wake = output.wake_at.unwrap_or(local + REFRESH).as_nanos().min((local + REFRESH).as_nanos());
        let at =
            self.coordinators[coordinator].clock.world(self.now, Timestamp::from_nanos(wake)).max(self.now + 20_000);
        self.tick_at(coordinator, at);
        self.look_for_answers(coordinator);
        self.check_leader(coordinator, steps);
    }

    fn carry_out(&mut self, coordinator: usize, reign: u64, action: Action) {
        // What follows the end of the term in the same step has no place any more.
        let Some(leader) = self.coordinators[coordinator].leader_mut().filter(|leader| leader.reign == reign) else {
            return;
        };
        match action {
            Action::Commit(batch, commit) => {
                let term = leader.machine.term();
                self.submit(coordinator, reign, term, DatabaseWrite::Batch(batch, commit));
            }
            Action::Send(id, from, message) => self.leader_sends(coordinator, id as usize, from, message),
            Action::Close(id, refusal) => {
                let stream = id as usize;
                if !leader.streams.remove(&stream) {
                    return;
                }
                self.note(|| format!("c{coordinator} closes s{stream}: {refusal:?}"));
                if self.streams[stream].stranger.is_none() {
                    self.check_refusal(&refusal);
                }
                self.send_down(stream, LeaderMessage::refused(refusal.reason(), refusal.retry_after()));
            }
            Action::Evict(life) => self.candidate_evicts(coordinator, life),
            Action::Removed(id) => drop(leader.catalog.remove(&id)),
            Action::Rebalance(news) => match news {
                RebalanceEvent::Opened { id, .. } => {
                    leader.rebalances.insert(id, BTreeSet::new());
                    self.unfinished.insert(id, BTreeSet::new());
                }
                RebalanceEvent::Resumed { .. } | RebalanceEvent::Planned { .. } => {}
                RebalanceEvent::Moved { id, appliance, .. } => {
                    self.unfinished.entry(id).or_default().insert(appliance);
                    if !leader.rebalances.entry(id).or_default().insert(appliance) {
                        self.fail(format!("rebalance: {id} moves {appliance} twice"));
                    }
                }
                RebalanceEvent::Closed { id, moves, done, .. } => {
                    self.unfinished.remove(&id);
                    let moved = leader.rebalances.remove(&id).map_or(0, |moved| moved.len() as u64);
                    if moved != done || done > moves {
                        self.fail(format!("rebalance: {id} moved {moved}, says {done} of {moves}"));
                    }
                }
            },
            // What a worker holds that the copy of the store knows nothing of.
            Action::Violation(text) if self.database.restored => {
                self.note(|| format!("c{coordinator}: violation: {text}"))
            }
            // Who is given a life of its own may claim anything.
            Action::Violation(text) if self.liars.iter().any(|liar| text.starts_with(liar.as_str())) => {
                self.note(|| format!("c{coordinator}: violation of a stranger: {text}"));
            }
            // A `Hello` that was stuck since before this term may claim anything: it takes nothing from anybody, but it is
            // reported before its stream has to prove that it is alive.
            Action::Violation(text) if leader.hears.is_some_and(|stream| self.streams[stream].broken) => {
                self.note(|| format!("c{coordinator}: violation, said late: {text}"));
            }
            Action::Violation(text) => self.fail(format!("violation: {text}")),
            Action::RaiseTerm(claim) => self.raise_above(coordinator, claim.met),
            // For readers only.
            _ => {}
        }
    }

    fn leader_sends(&mut self, coordinator: usize, stream: usize, from: Envelope, message: ToWorker<()>) {
        let Some(leader) =
            self.coordinators[coordinator].leader_mut().filter(|leader| leader.streams.contains(&stream))
        else {
            return;
        };
        let mut message = message.fill(|id| leader.catalog.get(&id).map(desired));
        if let ToWorker::Delta(delta) = &mut message {
            // The wire has one list for each sort, in this order.
            delta.entries.sort_by_key(|entry| match entry {
                DeltaEntry::Grant { .. } => 1,
                DeltaEntry::Mode { .. } => 2,
                DeltaEntry::Release(_) => 3,
                DeltaEntry::Update { .. } => 4,
                DeltaEntry::Check { .. } => 5,
            });
            self.check_offers(&delta.entries);
        }
        if !matches!(message, ToWorker::BeatAck(_)) {
            self.note(|| format!("c{coordinator} -> s{stream} {message:?}"));
        }
        self.send_down(stream, LeaderMessage { from, message });
    }
}

/// What an appliance shall be, as it is when the message is made.
fn desired(record: &ApplianceRow) -> SimDesired {
    SimDesired { edition: record.edition, driver: record.driver.clone(), deleting: record.deleting }
}

/// What the store has of an appliance's ownership, as `coordinator::leader` hands it to the machine.
fn machine_grant(stored: Option<&coordinator_core::grants::StoredGrant>) -> coordinator_core::grants::StoredGrant {
    coordinator_core::grants::StoredGrant { ever: stored.is_some(), ..stored.cloned().unwrap_or_default() }
}
