//! Faults and load, at random moments and in a random mix.

use common::{ApplianceId, Generation};
use coordinator_core::machine::Event;

use super::Mutant;
use super::store::{Record, Write};
use super::world::{Ev, World};

impl World {
    pub(super) fn fault(&mut self) {
        if !self.faulty() {
            return;
        }
        let place = self.rng.index(self.places.len());
        match self.rng.below(15) {
            0 | 1 => {
                self.end_worker(place, false);
                self.restart_worker(place);
            }
            2 => {
                self.end_worker(place, true);
                self.restart_worker(place);
            }
            3 | 4 => self.pause_worker(place),
            5 => {
                self.kill_leader();
                let away = self.rng.millis(0, 5_000);
                self.after(away, Ev::StartLeader);
            }
            6 => {
                let until = self.now + self.rng.millis(50, 5_000);
                self.leader_paused_until = self.leader_paused_until.max(until);
                self.note(|| "leader is paused".to_owned());
            }
            7 | 8 => {
                if let Some(stream) = self.any_stream() {
                    self.note(|| format!("s{stream} breaks"));
                    let told = self.rng.chance(80);
                    self.break_stream(stream, told);
                }
            }
            9 => {
                if let Some(stream) = self.any_stream() {
                    let until = self.now + self.rng.millis(10, 6_000);
                    let sides = self.rng.below(3);
                    self.note(|| format!("s{stream} stalls ({sides})"));
                    if sides != 1 {
                        self.streams[stream].up.stall(until);
                    }
                    if sides != 0 {
                        self.streams[stream].down.stall(until);
                    }
                }
            }
            10 => self.cut(place),
            11 => {
                self.drain_worker(place);
                self.restart_worker(place);
            }
            12 | 13 if self.external() => self.service_fault(),
            _ => {
                self.store_refuses_until = self.now + self.rng.millis(50, 3_000);
                self.note(|| "the store takes nothing for a while".to_owned());
            }
        }
        let next = self.rng.millis(20, self.settings.calm_ms);
        self.after(next, Ev::Fault);
    }

    fn restart_worker(&mut self, place: usize) {
        let away = if self.rng.chance(30) { self.rng.millis(0, 200) } else { self.rng.millis(200, 8_000) };
        self.after(away, Ev::StartWorker(place));
    }

    fn pause_worker(&mut self, place: usize) {
        let until = self.now + self.rng.millis(50, 6_000);
        let from = self.now.max(self.places[place].paused_until);
        if self.places[place].process.is_none() || until <= from {
            return;
        }
        self.places[place].paused_until = until;
        if self.mutant == Some(Mutant::StandingClock) {
            self.places[place].clock.stop(from, until);
        }
        self.note(|| format!("worker {} is paused", place + 1));
    }

    /// A place reaches nobody, and nobody learns it from the network.
    fn cut(&mut self, place: usize) {
        let until = self.now + self.rng.millis(100, 6_000);
        self.places[place].cut_until = until;
        self.note(|| format!("worker {} is cut off", place + 1));
        for stream in self.streams.iter_mut().filter(|s| s.place == place && !s.broken) {
            stream.up.stall(until);
            stream.down.stall(until);
        }
    }

    fn any_stream(&mut self) -> Option<usize> {
        let open: Vec<usize> = (0..self.streams.len()).filter(|&n| !self.streams[n].broken).collect();
        (!open.is_empty()).then(|| open[self.rng.index(open.len())])
    }

    pub(super) fn load(&mut self) {
        if !self.faulty() {
            return;
        }
        self.load_once();
        let next = if self.rng.chance(20) { self.rng.millis(1, 50) } else { self.rng.millis(50, 1_500) };
        self.after(next, Ev::Load);
    }

    fn load_once(&mut self) {
        if self.leader_paused_until > self.now {
            return;
        }
        let what = self.rng.below(10);
        let driver = Self::any_driver(&mut self.rng);
        let max = self.settings.max_appliances as usize;
        let Some(leader) = &mut self.leader else { return };
        if what < 5 {
            if leader.catalog.len() < max {
                self.created += 1;
                let id = ApplianceId::from_u128(self.created | (u128::from(self.seed) << 64));
                leader.changing.insert(id);
                self.submit(Write::Put(Record { id, driver, generation: Generation::new(1), deleting: false }));
            }
            return;
        }
        let candidates: Vec<ApplianceId> =
            leader.catalog.keys().filter(|id| !leader.changing.contains(id)).copied().collect();
        if candidates.is_empty() {
            return;
        }
        let id = candidates[self.rng.index(candidates.len())];
        if what == 9 {
            self.checks_asked += 1;
            return self.leader_step(Event::Check(id, self.checks_asked));
        }
        let record = &leader.catalog[&id];
        if record.deleting {
            return;
        }
        let changed = Record { generation: record.generation.next(), deleting: what == 8, ..record.clone() };
        leader.changing.insert(id);
        self.submit(Write::Put(changed));
    }

    /// From now on everything works, and the world has to come to rest.
    pub(super) fn end_faults(&mut self) {
        self.note(|| "no more faults".to_owned());
        self.store_refuses_until = 0;
        for place in 0..self.places.len() {
            // Some workers never come back: what they held has to find others, or a reason why it cannot.
            let spared = self.places.iter().filter(|p| !p.dead).count() == 1;
            if !spared && self.rng.chance(15) {
                self.end_worker(place, false);
                self.places[place].dead = true;
            } else {
                self.after(0, Ev::StartWorker(place));
            }
        }
        self.after(0, Ev::StartLeader);
        self.after(2_000_000_000, Ev::Settled { calm_since: None });
    }
}
