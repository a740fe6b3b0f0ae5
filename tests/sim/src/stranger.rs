//! Strangers: they can open streams, know what anybody can read (names, incarnations, terms, tokens, numbers of streams), and
//! say anything at any time. One that speaks for another's life has to be refused, and nothing of that life may change;
//! one that asks for a life under a free name (embedded) gets it, and then is a worker that does not keep its word.

use common::session::{
    Ack, Envelope, GrantRef, Hello, OwnedGrant, Release, Report, StatusReport, ToCoordinator, ToWorker,
};
use common::{Incarnation, Mode, StreamNumber, Term, Token, WorkerId};
use coordinator_core::machine::{Event, WorkerSnapshot};

use super::net::{LeaderMessage, WorkerMessage};
use super::worker::secret;
use super::world::SimWorld;

/// Who opened a stream that no worker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// It speaks for the life of a worker.
    Impostor,
    /// It asks for a life of its own.
    Newcomer,
}

/// A process that no worker is.
const NOBODY: u64 = u64::MAX;

impl SimWorld {
    /// A stranger opens a stream to a coordinator that leads, and says `Hello` and perhaps more.
    pub(super) fn stranger_comes(&mut self, who: u32) {
        let leaders: Vec<usize> = (0..self.coordinators.len())
            .filter(|&coordinator| self.coordinators[coordinator].leader().is_some())
            .collect();
        let Some(&coordinator) = leaders.get((who >> 8) as usize % leaders.len().max(1)) else { return };
        let Some(instance) = self.coordinators[coordinator].process.as_ref().map(|process| process.instance) else {
            return;
        };
        let place = who as usize % self.places.len();
        let name = self.places[place].name.clone();
        let known = self.coordinators[coordinator].leader().and_then(|leader| leader.machine.life_of(&name));
        let kind = if known.is_some() && !self.rng.chance(25) { Stranger::Impostor } else { Stranger::Newcomer };
        let stream = self.open_stream(place, NOBODY, coordinator, instance);
        self.streams[stream].stranger = Some(kind);
        let (from, hello) = match kind {
            Stranger::Impostor => self.impostor_says(coordinator, place, known),
            Stranger::Newcomer => self.newcomer_says(coordinator, place),
        };
        self.note(|| format!("a stranger ({kind:?}) says hello on s{stream} to c{coordinator} as {}", hello.worker));
        self.send_up(stream, WorkerMessage::Message(from, ToCoordinator::Hello(Box::new(hello))));
        if self.rng.chance(50) {
            let message = self.strange_message(coordinator);
            let term = self.coordinators[coordinator].leader().map_or(Term::default(), |leader| leader.machine.term());
            self.send_up(stream, WorkerMessage::Message(Envelope { term, ..from }, message));
        }
    }

    fn impostor_says(&mut self, coordinator: usize, place: usize, known: Option<Incarnation>) -> (Envelope, Hello) {
        let process = self.places[place].process.as_ref();
        // The number it would use next, or any other.
        let newest = process.map_or(0, |p| {
            let host = &self.places[place];
            p.conversation.assignments().clone().hello(&host.name, &host.profile, &host.secret).0.stream.get()
        });
        let stream = match self.rng.below(6) {
            0 => u64::MAX,
            1 => newest.saturating_sub(1),
            2 => newest + 1 + self.rng.below(1_000),
            _ => newest,
        };
        let said = match self.rng.below(3) {
            0 => None,
            // Another worker's own.
            1 => Some(secret((place as u64 + 1) % self.places.len() as u64)),
            _ => Some(secret(self.rng.draw() | 1 << 40)),
        };
        let name = self.places[place].name.clone();
        let incarnation = if self.rng.chance(90) { known } else { Some(Incarnation::new(self.rng.draw().into())) };
        let hello = Hello {
            secret: said.filter(|s| *s != self.places[place].secret),
            ..self.strange_hello(coordinator, place, name)
        };
        (Envelope { term: hello.highest_term, incarnation, stream: StreamNumber::new(stream) }, hello)
    }

    fn newcomer_says(&mut self, coordinator: usize, place: usize) -> (Envelope, Hello) {
        let name = match self.rng.chance(50) {
            true => self.places[place].name.clone(),
            false => WorkerId::new(&format!("x{}", self.rng.below(3))).expect("letters and digits"),
        };
        self.liars.insert(name.clone());
        let said = secret(self.rng.draw() | 1 << 40);
        let hello = Hello { secret: Some(said), ..self.strange_hello(coordinator, place, name) };
        (Envelope { term: hello.highest_term, incarnation: None, stream: StreamNumber::new(1) }, hello)
    }

    fn strange_hello(&mut self, coordinator: usize, place: usize, worker: WorkerId) -> Hello {
        let term = self.coordinators[coordinator].leader().map_or(0, |leader| leader.machine.term().get());
        let highest_term = Term::new(match self.rng.below(5) {
            0 => term + 1 + self.rng.below(600),
            1 => u64::MAX,
            2 => 0,
            _ => term,
        });
        let tokens: Vec<_> = (0..self.rng.below(4)).filter_map(|_| self.any_grant(coordinator)).collect();
        let edition = |_| common::Edition::new(common::Generation::new(1), Term::new(1));
        Hello {
            worker,
            profile: self.places[place].profile.clone(),
            owned: tokens
                .iter()
                .map(|g| OwnedGrant {
                    appliance: g.appliance,
                    token: g.token,
                    edition: edition(g),
                    mode: Mode::default(),
                })
                .collect(),
            released: self.any_grant(coordinator).into_iter().map(release).collect(),
            removed: self.any_grant(coordinator).into_iter().collect(),
            highest_term,
            secret: None,
            knows_modes: self.rng.chance(80),
        }
    }

    /// Some grant of which a client can read.
    fn any_grant(&mut self, coordinator: usize) -> Option<GrantRef> {
        let table = self.coordinators[coordinator].leader()?.machine.table();
        let granted: Vec<_> =
            table.iter().filter_map(|(_, row)| Some(GrantRef::new(row.id, row.state.grant()?.token))).collect();
        let any = granted.get(self.rng.index(granted.len().max(1))).copied()?;
        Some(if self.rng.chance(20) { GrantRef::new(any.appliance, Token::new(Term::new(1), 1)) } else { any })
    }

    fn strange_message(&mut self, coordinator: usize) -> ToCoordinator {
        let grants: Vec<GrantRef> = self.any_grant(coordinator).into_iter().collect();
        match self.rng.below(6) {
            0 => ToCoordinator::Leave,
            1 => ToCoordinator::Drain { hand_back: self.rng.chance(50) },
            2 => ToCoordinator::Beat(self.rng.below(10)),
            3 => ToCoordinator::Report(Report {
                statuses: grants
                    .iter()
                    .map(|g| StatusReport {
                        appliance: g.appliance,
                        token: g.token,
                        status: common::status::Status::default(),
                        checked: 0,
                        adopted: false,
                        would_have: vec![],
                    })
                    .collect(),
                owned: None,
            }),
            4 => ToCoordinator::Ack(Ack {
                applied: self.rng.below(3),
                released: grants.into_iter().map(release).collect(),
                ..Ack::default()
            }),
            _ => ToCoordinator::Ack(Ack {
                applied: self.rng.below(3),
                granted: grants.clone(),
                removed: grants,
                ..Ack::default()
            }),
        }
    }

    /// A stranger is answered. Whoever was welcomed shows that its stream lives, and says one thing more.
    pub(super) fn stranger_receives(&mut self, stream: usize, message: LeaderMessage) {
        let LeaderMessage { from, message } = message;
        match message {
            ToWorker::Welcome(_) => {
                let ack = ToCoordinator::Ack(Ack::default());
                self.send_up(stream, WorkerMessage::Message(from, ack));
                let more = self.strange_message(self.streams[stream].coordinator);
                self.send_up(stream, WorkerMessage::Message(from, more));
            }
            ToWorker::Refused(_) => self.break_stream(stream, false),
            _ => {}
        }
    }

    /// An impostor is heard: nothing of any life may change by that, and the term goes on.
    pub(super) fn impostor_is_heard(&mut self, coordinator: usize, event: Event) {
        // What is due anyway happens first.
        self.leader_step(coordinator, Event::Tick);
        let Some((reign, before)) = self.lives_seen(coordinator) else { return };
        self.leader_step(coordinator, event.clone());
        let after = self.lives_seen(coordinator);
        if after != Some((reign, before)) {
            self.fail(format!("stranger: {event:?} of somebody else changes what c{coordinator} believes"));
        }
    }

    /// What a leader believes of the lives there are.
    fn lives_seen(&self, coordinator: usize) -> Option<(u64, Vec<WorkerSnapshot>)> {
        let now = self.coordinators[coordinator].clock.local(self.now);
        let leader = self.coordinators[coordinator].leader()?;
        Some((leader.reign, leader.machine.workers(now)))
    }
}

fn release(grant: GrantRef) -> Release {
    Release { appliance: grant.appliance, token: grant.token, carryover: Default::default() }
}
