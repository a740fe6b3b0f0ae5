//! A coordinator process around the machine, after `coordinator::leader`: events in, actions out, writes through the
//! store, a tick after every input and whenever it is due.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{ApplianceId, Generation, RebalanceId};
use coordinator_core::machine::{self, Action, BatchId, Event, Machine, Restored};
use coordinator_core::membership::Life;
use coordinator_core::planner::Needs;
use coordinator_core::rebalance;
use coordinator_core::table::Seed;
use worker_core::holdings::{self, Envelope, Tell};

use super::net::{Desired, Down, Up};
use super::store::{Record, Write};
use super::world::{Ev, World};
use super::{Mutant, Time};

/// The longest the runner sleeps, as in `coordinator::leader`.
const REFRESH: Duration = Duration::from_secs(1);

/// What became of a write.
#[derive(Clone, Debug)]
pub(super) enum News {
    Batch(BatchId, bool),
    Put(Record, bool),
}

/// A coordinator process.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) instance: u64,
    pub(super) machine: Machine,
    pub(super) catalog: BTreeMap<ApplianceId, Record>,
    /// Appliances with a change under way: one at a time.
    pub(super) changing: BTreeSet<ApplianceId>,
    pub(super) rebalances: BTreeSet<RebalanceId>,
    /// It has read the nodes of the service at least once.
    pub(super) has_read: bool,
    conns: BTreeMap<usize, Option<Envelope>>,
    tick: (u64, Time),
}

fn seed(record: &Record) -> Seed {
    Seed {
        id: record.id,
        placement_key: record.id.to_string(),
        needs: Needs { driver: record.driver.clone(), host: None },
        generation: record.generation,
        size: 200,
        deleting: record.deleting,
    }
}

impl World {
    pub(super) fn start_leader(&mut self) {
        if self.leader.is_some() {
            return;
        }
        self.instances += 1;
        let term = self.store.term.next();
        self.store.term = term;
        let mut members: Vec<_> = self.store.members.values().cloned().collect();
        // The database promises no order.
        for n in (1..members.len()).rev() {
            members.swap(n, self.rng.index(n + 1));
        }
        let appliances = self.store.records.values();
        let appliances =
            appliances.map(|r| (seed(r), self.store.grants.get(&r.id).cloned().unwrap_or_default())).collect();
        let now = self.leader_clock.local(self.now);
        let machine = Machine::new(self.settings.machine.clone(), term, now, Restored { appliances, members });
        self.leader = Some(Leader {
            instance: self.instances,
            machine,
            catalog: self.store.records.clone(),
            changing: BTreeSet::new(),
            rebalances: BTreeSet::new(),
            has_read: false,
            conns: BTreeMap::new(),
            tick: (0, Time::MAX),
        });
        self.note(|| format!("leader starts {term}"));
        if self.external() {
            self.begin_feed();
        }
        self.leader_step(Event::Tick);
    }

    pub(super) fn kill_leader(&mut self) {
        let Some(leader) = self.leader.take() else { return };
        self.note(|| "leader is killed".to_owned());
        self.leader_paused_until = 0;
        for stream in 0..self.streams.len() {
            if self.streams[stream].instance == leader.instance {
                self.streams[stream].up.lose_all();
                // Some workers get no word of it and have to find out by themselves.
                let told = self.rng.chance(80);
                self.break_stream(stream, told);
                self.streams[stream].up.lose_all();
            }
        }
        // Of what was submitted, some is on disk, and nobody was told.
        let durable = self.rng.index(self.store.pending.len() + 1);
        for (n, (term, write)) in std::mem::take(&mut self.store.pending).into_iter().enumerate() {
            if n < durable {
                self.make_durable(term, &write);
            }
        }
    }

    pub(super) fn leader_receives(&mut self, stream: usize, message: Up) {
        let instance = self.streams[stream].instance;
        let Some(leader) = self.leader.as_mut().filter(|l| l.instance == instance) else { return };
        let conn = stream as u64;
        let event = match message {
            Up::Hello(hello) => {
                leader.conns.insert(stream, None);
                Event::Hello(conn, hello)
            }
            Up::Beat(from, number) => Event::Beat(conn, from, number),
            Up::Answers(from, answers) => Event::Answers(conn, from, answers),
            Up::Holds(from, claim) => Event::Holds(conn, from, claim),
            Up::Drain(from, hand_back) => Event::Drain(conn, from, hand_back),
            Up::Leave(from) => {
                leader.conns.remove(&stream);
                Event::Leave(conn, from)
            }
            Up::End => {
                let known = leader.conns.remove(&stream).is_some();
                if self.mutant == Some(Mutant::GoneWithStream)
                    && let Some(from) = self.last_envelope(stream)
                {
                    self.leader_step(Event::Leave(conn, from));
                }
                if !known {
                    return;
                }
                Event::Closed(conn)
            }
        };
        if !matches!(event, Event::Beat(..) | Event::Holds(..)) {
            self.note(|| format!("leader <- s{stream} {event:?}"));
        }
        self.leader_step(event);
        self.tick_soon();
    }

    /// News of the service. `gone` is called gone at once, which only a mutant does.
    pub(super) fn leader_told(&mut self, event: Event, gone: Option<Life>) {
        self.leader_step(event);
        if let Some(life) = gone {
            let open = (0..self.streams.len()).rev().find(|&s| self.places[self.streams[s].place].name == life.0);
            if let Some((stream, from)) = open.and_then(|s| Some((s, self.last_envelope(s)?))) {
                self.leader_step(Event::Leave(stream as u64, from));
            }
        }
        self.tick_soon();
    }

    /// What the worker of a stream would sign with, for the mutant that forges its farewell.
    fn last_envelope(&self, stream: usize) -> Option<machine::Envelope> {
        let s = &self.streams[stream];
        let process = self.places[s.place].process.as_ref().filter(|p| p.number == s.process)?;
        let from = process.holdings.envelope()?;
        Some(machine::Envelope { term: from.term, incarnation: from.incarnation, stream: from.stream })
    }

    pub(super) fn leader_news(&mut self, instance: u64, news: News) {
        let Some(leader) = self.leader.as_mut().filter(|l| l.instance == instance) else { return };
        let event = match news {
            News::Batch(batch, true) => Event::Durable(batch),
            News::Batch(batch, false) => Event::Undone(batch),
            News::Put(record, durable) => {
                leader.changing.remove(&record.id);
                if !durable {
                    return;
                }
                let created = record.generation == Generation::new(1);
                let event = if created {
                    Event::Created(seed(&record))
                } else {
                    let Record { id, generation, deleting, .. } = record.clone();
                    Event::Updated { id, generation, size: 200, deleting }
                };
                if created || leader.catalog.contains_key(&record.id) {
                    leader.catalog.insert(record.id, record);
                }
                event
            }
        };
        self.note(|| format!("leader: {event:?}"));
        self.leader_step(event);
        self.tick_soon();
    }

    pub(super) fn leader_tick(&mut self, instance: u64, number: u64) {
        if self.leader.as_ref().is_some_and(|l| l.instance == instance && l.tick.0 == number) {
            self.leader_step(Event::Tick);
        }
    }

    fn tick_soon(&mut self) {
        let at = self.now + self.rng.micros(1, 500);
        self.tick_at(at);
    }

    fn tick_at(&mut self, at: Time) {
        let Some(leader) = &mut self.leader else { return };
        if at < leader.tick.1 || leader.tick.1 <= self.now {
            leader.tick = (leader.tick.0 + 1, at);
            let (instance, number) = (leader.instance, leader.tick.0);
            self.at(at, Ev::Tick { instance, number });
        }
    }

    pub(super) fn leader_step(&mut self, event: Event) {
        let local = self.leader_clock.local(self.now);
        let Some(leader) = &mut self.leader else { return };
        let was_tick = event == Event::Tick;
        let output = leader.machine.step(local, event);
        if was_tick {
            leader.tick.1 = Time::MAX;
        }
        for action in output.actions {
            self.carry_out(action);
        }
        let wake = output.wake_at.unwrap_or(local + REFRESH).as_nanos().min((local + REFRESH).as_nanos());
        let at = self.leader_clock.world(self.now, common::Timestamp::from_nanos(wake)).max(self.now + 20_000);
        self.tick_at(at);
        self.check_leader();
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Commit(batch, commit) => {
                self.submit(Write::Batch(batch, commit));
                if self.mutant == Some(Mutant::OfferBeforeDurable) {
                    self.leader_step(Event::Durable(batch));
                }
            }
            Action::Send(conn, down) => self.leader_sends(conn as usize, down),
            Action::Close(conn, refusal) => {
                let stream = conn as usize;
                let Some(leader) = &mut self.leader else { return };
                let Some(from) = leader.conns.remove(&stream) else { return };
                self.note(|| format!("leader closes s{stream}: {refusal:?}"));
                self.put_down(stream, from, Down::Refused(refusal));
            }
            Action::Evict(life) => {
                let delay = self.delay();
                self.after(delay, Ev::Evict(life));
            }
            Action::Removed(id) => {
                if let Some(leader) = &mut self.leader {
                    leader.catalog.remove(&id);
                }
            }
            Action::Rebalance(news) => {
                let Some(leader) = &mut self.leader else { return };
                match news {
                    rebalance::News::Opened { id, .. } => drop(leader.rebalances.insert(id)),
                    rebalance::News::Closed { id, .. } => drop(leader.rebalances.remove(&id)),
                    rebalance::News::Moved { .. } => {}
                }
            }
            Action::Violation(text) => self.fail(format!("the machine reports a violation: {text}")),
            Action::RaiseTerm(term) => self.fail(format!("the machine wants a term above {term}")),
            // For readers only.
            _ => {}
        }
    }

    fn leader_sends(&mut self, stream: usize, down: machine::Down) {
        let Some(leader) = &mut self.leader else { return };
        let term = leader.machine.term();
        let Some(envelope) = leader.conns.get_mut(&stream) else { return };
        if let machine::Down::Welcome { incarnation, stream, .. } = &down {
            *envelope = Some(Envelope { term, incarnation: *incarnation, stream: *stream });
        }
        let from = *envelope;
        let message = match down {
            machine::Down::Welcome { keep, lease, .. } => Down::Welcome { keep, lease },
            machine::Down::BeatAck(number) => Down::BeatAck(number),
            machine::Down::Confirm(list) => Down::Confirm(list),
            machine::Down::Delta { base, target, tell, .. } => {
                let mut tells: Vec<_> = tell.into_iter().filter_map(|t| content(&leader.catalog, t)).collect();
                // The wire has one list for each sort, in this order.
                tells.sort_by_key(|tell| match tell {
                    Tell::Prepare(_) => 0,
                    Tell::Grant { .. } => 1,
                    Tell::Release(..) => 2,
                    Tell::Update { .. } => 3,
                    Tell::Check(..) => 4,
                });
                Down::Delta { base, target, tells }
            }
            machine::Down::Drained => Down::Drained,
            // Workers here announce no steps, so there is nothing to clear.
            machine::Down::Clear(_) => return,
        };
        if !matches!(message, Down::BeatAck(_)) {
            self.note(|| format!("leader -> s{stream} {message:?}"));
        }
        self.put_down(stream, from, message);
    }

    fn put_down(&mut self, stream: usize, from: Option<Envelope>, message: Down) {
        let at = self.now + self.delay();
        let s = &mut self.streams[stream];
        if !s.broken {
            let at = s.down.push(at, (from, message));
            self.at(at, Ev::Down(stream));
        }
    }
}

/// An instruction with the specification as it is when the message is made.
fn content(catalog: &BTreeMap<ApplianceId, Record>, tell: machine::Tell) -> Option<Tell<Desired>> {
    let desired = |id: &ApplianceId| {
        let record = catalog.get(id)?;
        Some((record.generation, Desired { driver: record.driver.clone(), deleting: record.deleting }))
    };
    Some(match tell {
        machine::Tell::Prepare(id) => Tell::Prepare(id),
        machine::Tell::Grant { appliance, token, handed, suspect } => {
            let (generation, desired) = desired(&appliance)?;
            let handed = holdings::Handed { progress: handed.progress, hold: handed.hold };
            Tell::Grant { appliance, token, generation, desired, handed, suspect }
        }
        machine::Tell::Release(id, token) => Tell::Release(id, token),
        machine::Tell::Update(appliance, token) => {
            let (generation, desired) = desired(&appliance)?;
            Tell::Update { appliance, token, generation, desired }
        }
        machine::Tell::Check(id, token, number) => Tell::Check(id, token, number),
    })
}
