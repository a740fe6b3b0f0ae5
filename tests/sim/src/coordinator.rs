//! A coordinator process, after `coordinator::leadership`: it stands by until the service elects it, raises the term there
//! and in the store, leads, and steps down. Everything only a leader may do hangs off its [`SimLeader`].
//!
//! | role      | waits for                                   | then                                       |
//! |-----------|---------------------------------------------|--------------------------------------------|
//! | Standby   | the lock (embedded: nothing)                | asks the store for its term                |
//! | Reading   | the store's term                            | raises the term in the service             |
//! | Raising   | the service                                 | begins the term in the store, reads it all |
//! | Beginning | the store                                   | leads                                      |
//! | Leading   | the end: lock lost or in doubt, store lost, a higher term, an operator | stands by, or begins again |
//!
//! Embedded, there is one coordinator, which is its own authority; where others would give the lock up, its process ends
//! and is started anew.

use std::time::Duration;

use common::Term;
use common::session::RefusedReason;

use super::SimTime;
use super::clock::DriftingClock;
use super::database::{CallResult, DatabaseCall};
use super::leader::SimLeader;
use super::net::LeaderMessage;
use super::rng::Rng;
use super::service::CandidateEvent;
use super::world::{SimEvent, SimWorld};
use super::writer::SimWriter;

/// Something a coordinator waits for.
#[derive(Clone, Debug)]
pub(super) enum CoordinatorTimer {
    /// The leader looks at the time; only the newest of these counts.
    Tick { reign: u64, number: u64 },
    /// A request to the store was not answered in time.
    StoreDue(u64),
    /// The leader writes when it saw whom.
    Seen(u64),
    /// The database is looked for again.
    Look,
    /// A term is begun as soon as the writer has nothing else to do.
    Begin,
}

/// What a coordinator process is.
#[derive(Debug)]
pub(super) enum CoordinatorRole {
    Standby,
    Reading,
    Raising,
    Beginning(Term),
    Leading(Box<SimLeader>),
}

impl CoordinatorRole {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Standby => "standby",
            Self::Reading => "reading",
            Self::Raising => "raising",
            Self::Beginning(_) => "beginning",
            Self::Leading(_) => "leading",
        }
    }
}

/// One process of a coordinator.
#[derive(Debug)]
pub(super) struct CoordinatorProcess {
    pub(super) instance: u64,
    pub(super) role: CoordinatorRole,
    pub(super) writer: SimWriter,
    pub(super) last_news: SimTime,
    /// Highest term that was reported to it.
    seen: Term,
}

/// Where a coordinator runs: its clock outlives its processes.
#[derive(Debug)]
pub(super) struct CoordinatorHost {
    pub(super) clock: DriftingClock,
    pub(super) paused_until: SimTime,
    /// It does not come back.
    pub(super) lost: bool,
    pub(super) process: Option<CoordinatorProcess>,
}

impl CoordinatorHost {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self { clock: DriftingClock::new(rng), paused_until: 0, lost: false, process: None }
    }

    pub(super) fn is_running(&self, instance: u64) -> bool {
        self.process.as_ref().is_some_and(|process| process.instance == instance)
    }

    /// What leads here, or thinks so.
    pub(super) fn leader(&self) -> Option<&SimLeader> {
        match self.process.as_ref().map(|process| &process.role) {
            Some(CoordinatorRole::Leading(leader)) => Some(leader),
            _ => None,
        }
    }

    pub(super) fn leader_mut(&mut self) -> Option<&mut SimLeader> {
        match self.process.as_mut().map(|process| &mut process.role) {
            Some(CoordinatorRole::Leading(leader)) => Some(leader),
            _ => None,
        }
    }
}

impl SimWorld {
    pub(super) fn start_coordinator(&mut self, coordinator: usize) {
        if self.coordinators[coordinator].process.is_some() || self.coordinators[coordinator].lost {
            return;
        }
        self.instances += 1;
        self.coordinators[coordinator].process = Some(CoordinatorProcess {
            instance: self.instances,
            role: CoordinatorRole::Standby,
            writer: SimWriter::default(),
            last_news: 0,
            seen: Term::default(),
        });
        self.note(|| format!("c{coordinator} starts"));
        if self.external() {
            self.candidate_starts(coordinator);
        } else {
            self.begin_reading(coordinator);
        }
    }

    /// Kills a coordinator. Of what it sent to the database, some may still take effect, and no answer comes.
    pub(super) fn kill_coordinator(&mut self, coordinator: usize) {
        let Some(process) = self.coordinators[coordinator].process.take() else { return };
        self.note(|| format!("c{coordinator} is killed"));
        self.coordinators[coordinator].paused_until = 0;
        if self.external() {
            self.candidate_ends(coordinator, false);
        }
        let open: Vec<usize> =
            self.open.iter().copied().filter(|&s| self.streams[s].instance == process.instance).collect();
        for stream in open {
            self.streams[stream].up.lose_all();
            // Some workers do not notice that and have to find out by themselves.
            let notices = self.rng.chance(80);
            self.break_stream(stream, notices);
            self.streams[stream].up.lose_all();
        }
    }

    pub(super) fn coordinator_timer_after(&mut self, coordinator: usize, delay: SimTime, timer: CoordinatorTimer) {
        let Some(instance) = self.coordinators[coordinator].process.as_ref().map(|process| process.instance) else {
            return;
        };
        self.after(delay, SimEvent::Coordinator { coordinator, instance, timer });
    }

    /// A timer of the coordinator's own clock.
    pub(super) fn coordinator_local_timer(&mut self, coordinator: usize, delay: Duration, timer: CoordinatorTimer) {
        let clock = &self.coordinators[coordinator].clock;
        let at = clock.world(self.now, clock.local(self.now) + delay);
        self.coordinator_timer_after(coordinator, at - self.now, timer);
    }

    pub(super) fn coordinator_timer(&mut self, coordinator: usize, timer: CoordinatorTimer) {
        match timer {
            CoordinatorTimer::Tick { reign, number } => self.leader_tick(coordinator, reign, number),
            CoordinatorTimer::StoreDue(number) => self.store_due(coordinator, number),
            CoordinatorTimer::Seen(reign) => self.write_seen(coordinator, reign),
            CoordinatorTimer::Look => self.look_for_database(coordinator),
            CoordinatorTimer::Begin => self.begin_in_store(coordinator),
        }
    }

    fn role(&self, coordinator: usize) -> Option<&CoordinatorRole> {
        self.coordinators[coordinator].process.as_ref().map(|process| &process.role)
    }

    fn set_role(&mut self, coordinator: usize, role: CoordinatorRole) {
        if let Some(process) = &mut self.coordinators[coordinator].process {
            process.role = role;
        }
    }

    /// The coordination service has news for a coordinator.
    pub(super) fn candidate_event(&mut self, coordinator: usize, news: CandidateEvent) {
        match (news, self.role(coordinator)) {
            (_, None) => {}
            (CandidateEvent::Elected, Some(CoordinatorRole::Standby)) => {
                self.note(|| format!("c{coordinator} is elected"));
                self.begin_reading(coordinator);
            }
            (CandidateEvent::Raised { term, .. }, Some(CoordinatorRole::Raising)) => {
                self.set_role(coordinator, CoordinatorRole::Beginning(term));
                self.begin_in_store(coordinator);
            }
            (CandidateEvent::Lost(why), Some(role)) => {
                if !matches!(role, CoordinatorRole::Standby) {
                    self.note(|| format!("c{coordinator} loses the leadership: {why}"));
                }
                self.end_term(coordinator);
            }
            (CandidateEvent::Roster(event), Some(CoordinatorRole::Leading(_))) => {
                self.leader_roster_event(coordinator, event)
            }
            // Of a leadership that has ended meanwhile.
            (CandidateEvent::Elected | CandidateEvent::Raised { .. } | CandidateEvent::Roster(_), Some(_)) => {}
        }
    }

    fn begin_reading(&mut self, coordinator: usize) {
        if self.coordinators[coordinator].process.as_ref().is_none_or(|process| process.writer.is_away()) {
            // The database has not said what became of a batch: leave the lead to somebody else.
            return self.give_up(coordinator);
        }
        let number = self.request(coordinator, DatabaseCall::HighestTerm);
        if let Some(process) = &mut self.coordinators[coordinator].process {
            process.writer.awaited = Some(number);
            process.role = CoordinatorRole::Reading;
        }
    }

    fn begin_in_store(&mut self, coordinator: usize) {
        let Some(process) = &mut self.coordinators[coordinator].process else { return };
        let CoordinatorRole::Beginning(term) = process.role else { return };
        if process.writer.awaited.is_some() {
            return;
        }
        if !process.writer.is_idle() {
            let delay = self.rng.millis(5, 50);
            return self.coordinator_timer_after(coordinator, delay, CoordinatorTimer::Begin);
        }
        let number = self.request(coordinator, DatabaseCall::Begin(term));
        if let Some(process) = &mut self.coordinators[coordinator].process {
            process.writer.awaited = Some(number);
        }
    }

    /// The store has answered what was asked of it for the begin of a term.
    pub(super) fn coordinator_store_answered(&mut self, coordinator: usize, reply: CallResult) {
        let external = self.external();
        let Some(process) = &mut self.coordinators[coordinator].process else { return };
        match (&process.role, reply) {
            (CoordinatorRole::Reading, CallResult::HighestTerm(stored)) => {
                let above = stored.max(process.seen);
                if external {
                    process.role = CoordinatorRole::Raising;
                    self.candidate_raises(coordinator, above);
                } else {
                    process.role = CoordinatorRole::Beginning(above.next());
                    self.begin_in_store(coordinator);
                }
            }
            (CoordinatorRole::Beginning(term), CallResult::Begun(rows)) => {
                let term = *term;
                self.writer_leads(coordinator, term);
                self.lead(coordinator, term, *rows);
                if external {
                    self.candidate_follows(coordinator);
                }
            }
            (CoordinatorRole::Reading | CoordinatorRole::Beginning(_), reply) => {
                self.note(|| format!("c{coordinator} cannot begin a term: {reply:?}"));
                self.give_up(coordinator);
            }
            // The lock was lost meanwhile.
            (CoordinatorRole::Standby | CoordinatorRole::Raising | CoordinatorRole::Leading(_), _) => {}
        }
    }

    /// A term cannot be begun, or its store is lost: another coordinator shall try.
    pub(super) fn give_up(&mut self, coordinator: usize) {
        self.end_term(coordinator);
        if self.external() {
            self.candidate_resigns(coordinator);
        } else {
            self.kill_coordinator(coordinator);
            let delay = self.rng.millis(100, 1_000);
            self.after(delay, SimEvent::StartCoordinator(coordinator));
        }
    }

    /// A higher term was met: begins another one above it, under the same leadership.
    pub(super) fn raise_above(&mut self, coordinator: usize, met: Term) {
        self.note(|| format!("c{coordinator} has met {met}"));
        self.end_term(coordinator);
        if let Some(process) = &mut self.coordinators[coordinator].process {
            process.seen = process.seen.max(met);
        }
        self.begin_reading(coordinator);
    }

    /// Ends whatever term is led or begun here. Writes that were submitted may still be stored.
    pub(super) fn end_term(&mut self, coordinator: usize) {
        let Some(process) = &mut self.coordinators[coordinator].process else { return };
        process.writer.awaited = None;
        let role = std::mem::replace(&mut process.role, CoordinatorRole::Standby);
        let CoordinatorRole::Leading(leader) = role else { return };
        self.note(|| format!("c{coordinator} steps down from {}", leader.machine.term()));
        for stream in leader.into_streams() {
            self.send_down(stream, LeaderMessage::refused(RefusedReason::NotLeading, None));
        }
    }
}
