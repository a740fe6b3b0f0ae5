//! Faults and load as they are carried out. Whatever a decision leaves open is drawn from the world's chance.

use std::time::Duration;

use common::ApplianceId;
use common::mutant::{self, Mutant};
use common::{Edition, Generation, Life, ProcessIdentity};
use coordinator_core::machine::Event;
use worker_core::session::StopRequest;

use super::SimTime;
use super::database::{ApplianceRow, DatabaseWrite};
use super::modes::any_subject;
use super::plan::What;
use super::service::Who;
use super::world::{SimEvent, SimHost, SimWorld};

impl SimWorld {
    pub(super) fn carry_out_decision(&mut self, number: usize) {
        let decision = self.decisions[number].clone();
        let (who, amount) = (decision.who, SimTime::from(decision.amount) * 1_000_000);
        let until = self.now + amount;
        let place = who as usize % self.places.len();
        let coordinator = (who >> 8) as usize % self.coordinators.len();
        if self.now == decision.at {
            self.note(|| format!("-- {decision}"));
        }
        match decision.what {
            What::KillWorker | What::StopWorker => {
                if decision.what == What::StopWorker {
                    self.stop_worker(place, StopRequest::Leave);
                } else {
                    self.end_worker(place);
                }
                self.after(amount, SimEvent::StartWorker(place));
            }
            What::DrainWorker => {
                self.stop_worker(place, StopRequest::Drain);
                self.after(amount, SimEvent::StartWorker(place));
            }
            What::PauseWorker => self.pause_worker(place, until),
            What::KillCoordinator => {
                self.kill_coordinator(coordinator);
                self.after(amount, SimEvent::StartCoordinator(coordinator));
            }
            What::PauseCoordinator => {
                self.coordinators[coordinator].paused_until = self.coordinators[coordinator].paused_until.max(until);
            }
            What::PauseLeader => {
                if let Some(coordinator) = self.leading(who) {
                    self.coordinators[coordinator].paused_until =
                        self.coordinators[coordinator].paused_until.max(until);
                }
            }
            What::Resign => {
                if self.external()
                    && let Some(coordinator) = self.leading(who)
                {
                    self.end_term(coordinator);
                    self.candidate_resigns(coordinator);
                }
            }
            What::BreakStream => {
                if let Some(stream) = self.any_stream(who) {
                    self.break_stream(stream, who % 5 != 0);
                }
            }
            What::StallStream => {
                if let Some(stream) = self.any_stream(who) {
                    let sides = (who >> 16) % 3;
                    if sides != 1 {
                        self.streams[stream].up.stall(until);
                    }
                    if sides != 0 {
                        self.streams[stream].down.stall(until);
                    }
                }
            }
            What::CutSession => self.cut_ways(who, SimHost::Worker(place), SimHost::Coordinator(coordinator), until),
            What::CutStore => self.cut_ways(who, SimHost::Coordinator(coordinator), SimHost::Database, until),
            What::CutWorker => {
                for coordinator in 0..self.coordinators.len() {
                    self.cut_ways(0, SimHost::Worker(place), SimHost::Coordinator(coordinator), until);
                }
                if self.external() {
                    self.service_cut_off(Who::Worker(place), until);
                }
            }
            What::CutCoordinator => {
                for place in 0..self.places.len() {
                    self.cut_ways(0, SimHost::Worker(place), SimHost::Coordinator(coordinator), until);
                }
                if self.external() {
                    self.service_cut_off(Who::Coordinator(coordinator), until);
                }
                if who % 2 == 0 {
                    self.cut_ways(0, SimHost::Coordinator(coordinator), SimHost::Database, until);
                }
            }
            What::Service => {
                if self.external() {
                    self.service_fault(who, decision.amount);
                }
            }
            What::StoreRefuses => self.database.refuses_until = self.database.refuses_until.max(until),
            // The embedded store is what the terms themselves are kept in: who puts it back gives the promises up.
            What::Backup if self.external() => self.database.copy = Some(self.database.rows.clone()),
            What::Restore if self.external() => self.restore_database(),
            What::Backup | What::Restore => {}
            What::Stranger => self.stranger_comes(who),
            What::Evict => self.evict(who),
            What::SlowBackend => self.slow_backend_until = self.slow_backend_until.max(until),
            What::Create
            | What::Update
            | What::Delete
            | What::Check
            | What::SetMode
            | What::ClearMode
            | What::Order => {
                self.load(number, decision.what, who);
            }
            What::LoseWorker => self.lose_worker(who),
            What::LoseCoordinator => {
                if self.coordinators.iter().filter(|coordinator| !coordinator.lost).count() > 1 {
                    self.kill_coordinator(coordinator);
                    self.coordinators[coordinator].lost = true;
                }
            }
        }
    }

    /// A coordinator that leads, or thinks so.
    fn leading(&self, who: u32) -> Option<usize> {
        let leading: Vec<usize> = (0..self.coordinators.len())
            .filter(|&coordinator| self.coordinators[coordinator].leader().is_some())
            .collect();
        (!leading.is_empty()).then(|| leading[who as usize % leading.len()])
    }

    fn cut_ways(&mut self, who: u32, a: SimHost, b: SimHost, until: SimTime) {
        let ways = (who >> 16) % 3;
        if ways != 1 {
            self.cut(a, b, until);
        }
        if ways != 2 {
            self.cut(b, a, until);
        }
    }

    fn pause_worker(&mut self, place: usize, until: SimTime) {
        let from = self.now.max(self.places[place].paused_until);
        if self.places[place].process.is_none() || until <= from {
            return;
        }
        self.places[place].paused_until = until;
        if mutant::is(Mutant::StandingClock) {
            self.places[place].clock.stop(from, until);
        }
    }

    fn evict(&mut self, who: u32) {
        let Some(coordinator) =
            self.leading(who >> 8).filter(|&coordinator| self.coordinators[coordinator].paused_until <= self.now)
        else {
            return;
        };
        let name = self.places[who as usize % self.places.len()].name.clone();
        let Some(life) = self.coordinators[coordinator].leader().and_then(|leader| leader.machine.life_of(&name))
        else {
            return;
        };
        self.leader_step(coordinator, Event::Evict(Life::new(name, life)));
    }

    /// A process has ended. Whether witnesses saw it, and when they tell, is as it comes: at once or late, once or more often.
    pub(super) fn witnesses_tell(&mut self, process: Option<ProcessIdentity>) {
        for _ in 0..self.rng.below(4) {
            let late = if self.rng.chance(70) { self.rng.millis(0, 100) } else { self.rng.millis(100, 8_000) };
            if let Some(process) = process {
                self.after(late, SimEvent::Witnessed(process));
            }
        }
    }

    /// Everybody who leads, or thinks so, hears of a witness.
    pub(super) fn hear_witness(&mut self, process: ProcessIdentity) {
        for coordinator in 0..self.coordinators.len() {
            if self.coordinators[coordinator].paused_until > self.now {
                continue;
            }
            let Some(leader) = self.coordinators[coordinator].leader() else { continue };
            let lives: Vec<Life> = leader.machine.lives_of(process).cloned().collect();
            for life in lives {
                self.leader_step(coordinator, Event::Witnessed(life, Duration::from_millis(100)));
            }
        }
    }

    fn load(&mut self, number: usize, what: What, who: u32) {
        // Callers reach whoever thinks to lead, and try again when nobody does.
        let Some(coordinator) =
            self.leading(who >> 8).filter(|&coordinator| self.coordinators[coordinator].paused_until <= self.now)
        else {
            if self.faulty() {
                let delay = self.rng.millis(100, 600);
                self.after(delay, SimEvent::Decided(number));
            }
            return;
        };
        match what {
            What::SetMode => return self.set_mode(coordinator, who),
            What::ClearMode => return self.clear_mode(coordinator, who),
            What::Order => return self.give_order(coordinator, who),
            _ => {}
        }
        let max = self.settings.max_appliances;
        let Some(leader) = self.coordinators[coordinator].leader_mut() else { return };
        let (term, reign) = (leader.machine.term(), leader.reign);
        if what == What::Create {
            if leader.catalog.len() < max {
                self.created += 1;
                let id = ApplianceId::from_u128(self.created | (u128::from(self.seed) << 64));
                let driver = Self::any_driver(&mut self.rng);
                let (edition, subject) = (Edition::new(Generation::new(1), term), any_subject(&mut self.rng));
                let record = ApplianceRow { id, driver, edition, deleting: false, subject };
                if let Some(leader) = self.coordinators[coordinator].leader_mut() {
                    leader.changing.insert(id);
                }
                self.submit(coordinator, reign, term, DatabaseWrite::Put(record));
            }
            return;
        }
        let candidates: Vec<ApplianceId> =
            leader.catalog.keys().filter(|id| !leader.changing.contains(id)).copied().collect();
        if candidates.is_empty() {
            return;
        }
        let id = candidates[who as usize % candidates.len()];
        if what == What::Check {
            self.checks_asked += 1;
            let number = self.checks_asked;
            return self.leader_step(coordinator, Event::Check(id, number));
        }
        let record = &leader.catalog[&id];
        if record.deleting {
            return;
        }
        let edition = Edition::new(record.edition.generation.next(), term);
        let mut changed = ApplianceRow { edition, deleting: what == What::Delete, ..record.clone() };
        if self.rng.chance(30) {
            changed.subject.labels = any_subject(&mut self.rng).labels;
        }
        let Some(leader) = self.coordinators[coordinator].leader_mut() else { return };
        leader.changing.insert(id);
        self.submit(coordinator, reign, term, DatabaseWrite::Put(changed));
    }

    /// A worker never comes back: what it held has to find others, or a reason why it cannot.
    fn lose_worker(&mut self, who: u32) {
        let Some(place) = self.places.get(who as usize) else { return };
        if place.lost || self.places.iter().filter(|place| !place.lost).count() == 1 {
            return;
        }
        self.end_worker(who as usize);
        self.places[who as usize].lost = true;
    }

    /// From now on everything works, and the world has to come to rest.
    pub(super) fn end_faults(&mut self) {
        self.note(|| "-- no more faults".to_owned());
        self.database.refuses_until = 0;
        self.slow_backend_until = 0;
        self.heal();
        if self.external() {
            self.heal_service();
        }
        for place in 0..self.places.len() {
            self.after(0, SimEvent::StartWorker(place));
        }
        for coordinator in 0..self.coordinators.len() {
            self.after(0, SimEvent::StartCoordinator(coordinator));
        }
        self.after(2_000_000_000, SimEvent::Settled { calm_since: None });
    }
}
