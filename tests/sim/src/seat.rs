//! A coordinator process, after `coordinator::leadership`: it stands by until the service elects it, raises the term there
//! and in the store, leads, and steps down. Everything only a leader may do hangs off its [`Leader`].
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

use super::Time;
use super::clock::Clock;
use super::database::{Reply, Request};
use super::leader::Leader;
use super::net::Down;
use super::rng::Rng;
use super::service::CandidateNews;
use super::world::{Ev, World};
use super::writer::Writer;

/// Something a coordinator waits for.
#[derive(Clone, Debug)]
pub(super) enum Timer {
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
pub(super) enum Role {
    Standby,
    Reading,
    Raising,
    Beginning(Term),
    Leading(Box<Leader>),
}

impl Role {
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
pub(super) struct Coordinator {
    pub(super) instance: u64,
    pub(super) role: Role,
    pub(super) writer: Writer,
    pub(super) last_news: Time,
    /// Highest term it was told of.
    seen: Term,
}

/// Where a coordinator runs: its clock outlives its processes.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) clock: Clock,
    pub(super) paused_until: Time,
    /// It does not come back.
    pub(super) lost: bool,
    pub(super) process: Option<Coordinator>,
}

impl Seat {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self { clock: Clock::new(rng), paused_until: 0, lost: false, process: None }
    }

    pub(super) fn is_running(&self, instance: u64) -> bool {
        self.process.as_ref().is_some_and(|process| process.instance == instance)
    }

    /// What leads here, or thinks so.
    pub(super) fn leader(&self) -> Option<&Leader> {
        match self.process.as_ref().map(|process| &process.role) {
            Some(Role::Leading(leader)) => Some(leader),
            _ => None,
        }
    }

    pub(super) fn leader_mut(&mut self) -> Option<&mut Leader> {
        match self.process.as_mut().map(|process| &mut process.role) {
            Some(Role::Leading(leader)) => Some(leader),
            _ => None,
        }
    }
}

impl World {
    pub(super) fn start_seat(&mut self, seat: usize) {
        if self.seats[seat].process.is_some() || self.seats[seat].lost {
            return;
        }
        self.instances += 1;
        self.seats[seat].process = Some(Coordinator {
            instance: self.instances,
            role: Role::Standby,
            writer: Writer::default(),
            last_news: 0,
            seen: Term::default(),
        });
        self.note(|| format!("c{seat} starts"));
        if self.external() {
            self.candidate_starts(seat);
        } else {
            self.begin_reading(seat);
        }
    }

    /// Kills a coordinator. Of what it sent to the database, some may still take effect, and nobody is told.
    pub(super) fn kill_seat(&mut self, seat: usize) {
        let Some(process) = self.seats[seat].process.take() else { return };
        self.note(|| format!("c{seat} is killed"));
        self.seats[seat].paused_until = 0;
        if self.external() {
            self.candidate_ends(seat, false);
        }
        let open: Vec<usize> =
            self.open.iter().copied().filter(|&s| self.streams[s].instance == process.instance).collect();
        for stream in open {
            self.streams[stream].up.lose_all();
            // Some workers get no word of it and have to find out by themselves.
            let told = self.rng.chance(80);
            self.break_stream(stream, told);
            self.streams[stream].up.lose_all();
        }
    }

    pub(super) fn seat_timer_after(&mut self, seat: usize, delay: Time, timer: Timer) {
        let Some(instance) = self.seats[seat].process.as_ref().map(|process| process.instance) else { return };
        self.after(delay, Ev::Seat { seat, instance, timer });
    }

    /// A timer of the coordinator's own clock.
    pub(super) fn seat_local_timer(&mut self, seat: usize, delay: Duration, timer: Timer) {
        let clock = &self.seats[seat].clock;
        let at = clock.world(self.now, clock.local(self.now) + delay);
        self.seat_timer_after(seat, at - self.now, timer);
    }

    pub(super) fn seat_timer(&mut self, seat: usize, timer: Timer) {
        match timer {
            Timer::Tick { reign, number } => self.leader_tick(seat, reign, number),
            Timer::StoreDue(number) => self.store_due(seat, number),
            Timer::Seen(reign) => self.write_seen(seat, reign),
            Timer::Look => self.look_for_database(seat),
            Timer::Begin => self.begin_in_store(seat),
        }
    }

    fn role(&self, seat: usize) -> Option<&Role> {
        self.seats[seat].process.as_ref().map(|process| &process.role)
    }

    fn set_role(&mut self, seat: usize, role: Role) {
        if let Some(process) = &mut self.seats[seat].process {
            process.role = role;
        }
    }

    /// The coordination service has news for a coordinator.
    pub(super) fn candidate_told(&mut self, seat: usize, news: CandidateNews) {
        match (news, self.role(seat)) {
            (_, None) => {}
            (CandidateNews::Elected, Some(Role::Standby)) => {
                self.note(|| format!("c{seat} is elected"));
                self.begin_reading(seat);
            }
            (CandidateNews::Raised { term, .. }, Some(Role::Raising)) => {
                self.set_role(seat, Role::Beginning(term));
                self.begin_in_store(seat);
            }
            (CandidateNews::Lost(why), Some(role)) => {
                if !matches!(role, Role::Standby) {
                    self.note(|| format!("c{seat} loses the leadership: {why}"));
                }
                self.end_term(seat);
            }
            (CandidateNews::News(event), Some(Role::Leading(_))) => self.leader_told(seat, event),
            // Of a leadership that has ended meanwhile.
            (CandidateNews::Elected | CandidateNews::Raised { .. } | CandidateNews::News(_), Some(_)) => {}
        }
    }

    fn begin_reading(&mut self, seat: usize) {
        if self.seats[seat].process.as_ref().is_none_or(|process| process.writer.is_away()) {
            // The database has not said what became of a batch: leave the lead to somebody else.
            return self.give_up(seat);
        }
        let number = self.request(seat, Request::HighestTerm);
        if let Some(process) = &mut self.seats[seat].process {
            process.writer.awaited = Some(number);
            process.role = Role::Reading;
        }
    }

    fn begin_in_store(&mut self, seat: usize) {
        let Some(process) = &mut self.seats[seat].process else { return };
        let Role::Beginning(term) = process.role else { return };
        if process.writer.awaited.is_some() {
            return;
        }
        if !process.writer.is_idle() {
            let delay = self.rng.millis(5, 50);
            return self.seat_timer_after(seat, delay, Timer::Begin);
        }
        let number = self.request(seat, Request::Begin(term));
        if let Some(process) = &mut self.seats[seat].process {
            process.writer.awaited = Some(number);
        }
    }

    /// The store has answered what was asked of it for the begin of a term.
    pub(super) fn seat_store_answered(&mut self, seat: usize, reply: Reply) {
        let external = self.external();
        let Some(process) = &mut self.seats[seat].process else { return };
        match (&process.role, reply) {
            (Role::Reading, Reply::HighestTerm(stored)) => {
                let above = stored.max(process.seen);
                if external {
                    process.role = Role::Raising;
                    self.candidate_raises(seat, above);
                } else {
                    process.role = Role::Beginning(above.next());
                    self.begin_in_store(seat);
                }
            }
            (Role::Beginning(term), Reply::Begun(rows)) => {
                let term = *term;
                self.writer_leads(seat, term);
                self.lead(seat, term, *rows);
                if external {
                    self.candidate_follows(seat);
                }
            }
            (Role::Reading | Role::Beginning(_), reply) => {
                self.note(|| format!("c{seat} cannot begin a term: {reply:?}"));
                self.give_up(seat);
            }
            // The lock was lost meanwhile.
            (Role::Standby | Role::Raising | Role::Leading(_), _) => {}
        }
    }

    /// A term cannot be begun, or its store is lost: another coordinator shall try.
    pub(super) fn give_up(&mut self, seat: usize) {
        self.end_term(seat);
        if self.external() {
            self.candidate_resigns(seat);
        } else {
            self.kill_seat(seat);
            let delay = self.rng.millis(100, 1_000);
            self.after(delay, Ev::StartSeat(seat));
        }
    }

    /// A higher term was met: begins another one above it, under the same leadership.
    pub(super) fn raise_above(&mut self, seat: usize, met: Term) {
        self.note(|| format!("c{seat} has met {met}"));
        self.end_term(seat);
        if let Some(process) = &mut self.seats[seat].process {
            process.seen = process.seen.max(met);
        }
        self.begin_reading(seat);
    }

    /// Ends whatever term is led or begun here. Writes that were submitted may still be stored.
    pub(super) fn end_term(&mut self, seat: usize) {
        let Some(process) = &mut self.seats[seat].process else { return };
        process.writer.awaited = None;
        let role = std::mem::replace(&mut process.role, Role::Standby);
        let Role::Leading(leader) = role else { return };
        self.note(|| format!("c{seat} steps down from {}", leader.machine.term()));
        for stream in leader.into_streams() {
            self.send_down(stream, Down::NotLeading);
        }
    }
}
