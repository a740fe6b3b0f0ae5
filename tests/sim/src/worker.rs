//! A worker process around the holdings, after `worker::session`, `worker::gate` and `worker::runner`: one stream at a
//! time, heartbeats, a gate for each life, and tasks that act at random moments while the gate lets them.

use std::collections::BTreeMap;
use std::time::Duration;

use common::appliance::Driver;
use common::status::Progress;
use common::{ApplianceId, Generation, Incarnation, Term, Timestamp, Token, WorkerId};
use coordinator_core::audit::Claim;
use coordinator_core::grants::Profile;
use coordinator_core::handoff;
use coordinator_core::machine::{self, Answers, Held, Refusal, Said};
use worker_core::holdings::{Effect, Envelope, Handed, Holdings, Refused};

use super::clock::Clock;
use super::net::{Desired, Down, Up};
use super::rng::Rng;
use super::service::{Answer, Ask};
use super::world::{Ev, World};
use super::{Mutant, Time};

/// How often the transport asks whether the other side is there, with the time it waits for the answer.
const KEEP_ALIVE: Time = 5_000_000_000;

/// Something a worker waits for.
#[derive(Clone, Debug)]
pub(super) enum Timer {
    Connect,
    /// Ask the service for a life.
    Join,
    /// A heartbeat of this life to the service.
    ServiceBeat(Incarnation),
    /// The transport asks whether the other side of this stream is there: the only sign of life where no heartbeats are on
    /// it.
    KeepAlive(usize),
    /// A stopping worker has waited long enough.
    DrainDue,
    /// `Hello` on this stream was not answered.
    WelcomeDue(usize),
    Beat(usize),
    /// Say what waits to be said.
    Flush(usize),
    Act(ApplianceId, Token),
    /// The running step has ended, and the appliance is given up.
    ReleaseDone(ApplianceId, Token),
    Destroy(ApplianceId, Token),
    /// Everything of it is removed.
    DestroyDone(ApplianceId, Token),
}

/// Where a worker runs: its name, host and clock outlive its processes.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: WorkerId,
    pub(super) profile: Profile,
    pub(super) clock: Clock,
    pub(super) paused_until: Time,
    /// Nobody is reached from here before.
    pub(super) cut_until: Time,
    /// The service is not reached from here before, nor its answers.
    pub(super) adrift_until: Time,
    /// It does not come back.
    pub(super) dead: bool,
    pub(super) process: Option<Process>,
    processes: u64,
    /// Highest token any process here took, by appliance (I3).
    newest: BTreeMap<ApplianceId, Token>,
}

/// The gate of one life, as `worker::gate`.
#[derive(Debug, Default)]
pub(super) struct Gate {
    deadline: Timestamp,
    ended: bool,
    pub(super) grants: BTreeMap<ApplianceId, Token>,
}

#[derive(Debug)]
struct Task {
    token: Token,
    generation: Generation,
    deleting: bool,
    destroyed: bool,
    releasing: bool,
    progress: Progress,
}

#[derive(Debug)]
struct Link {
    stream: usize,
    hello_sent: Timestamp,
    lease: Duration,
    welcomed: bool,
    beat: u64,
    beat_sent: Option<Timestamp>,
    flush_due: bool,
}

/// One process of a worker.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) number: u64,
    pub(super) holdings: Holdings,
    pub(super) gate: Gate,
    link: Option<Link>,
    answers: Answers,
    waiting: bool,
    tasks: BTreeMap<ApplianceId, Task>,
    failures: u32,
    /// Its life in the service, and the one before.
    life: Option<Incarnation>,
    former: Option<Incarnation>,
    /// When what is asked of the service was sent; one thing at a time.
    asked: Option<(u64, Timestamp)>,
    asks: u64,
    draining: bool,
    /// Highest term whose messages were applied (I5).
    term: Term,
}

impl Place {
    pub(super) fn new(n: usize, rng: &mut Rng) -> Self {
        let drivers = match rng.below(4) {
            0 => [Driver::Process].into(),
            1 => [Driver::Simulated].into(),
            _ => [Driver::Process, Driver::Simulated].into(),
        };
        let profile = Profile {
            weight: 1 + rng.below(3) as u32,
            zone: String::new(),
            host: format!("host-{}", rng.below(2)),
            drivers,
            version: String::new(),
            pid: 1,
            lease: rng.duration(400, 2_500),
        };
        Self {
            name: WorkerId::new(&format!("w{}", n + 1)).expect("letters and digits"),
            profile,
            clock: Clock::new(rng),
            paused_until: 0,
            cut_until: 0,
            adrift_until: 0,
            dead: false,
            process: None,
            processes: 0,
            newest: BTreeMap::new(),
        }
    }

    pub(super) fn is_running(&self, process: u64) -> bool {
        self.process.as_ref().is_some_and(|p| p.number == process)
    }

    /// Whether a call for this grant would pass the gate at this moment of the world.
    pub(super) fn passes(&self, now: Time, id: ApplianceId, token: Token, mutant: Option<Mutant>) -> bool {
        let Some(process) = &self.process else { return false };
        let gate = &process.gate;
        let stands = self.clock.local(now) < gate.deadline || mutant == Some(Mutant::NoLease);
        let held =
            gate.grants.get(&id) == Some(&token) || (mutant == Some(Mutant::GatePerWorker) && !gate.grants.is_empty());
        stands && !gate.ended && held
    }

    /// The appliances this worker may act on right now, with their tokens.
    pub(super) fn able(&self, now: Time, mutant: Option<Mutant>) -> impl Iterator<Item = (ApplianceId, Token)> {
        let tasks = self.process.iter().flat_map(|p| p.tasks.iter().map(|(id, task)| (*id, task.token)));
        tasks.filter(move |(id, token)| self.passes(now, *id, *token, mutant))
    }
}

impl Process {
    /// The generation a task knows.
    pub(super) fn generation(&self, id: ApplianceId) -> Option<Generation> {
        self.tasks.get(&id).map(|task| task.generation)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.waiting || self.tasks.values().any(|task| task.releasing)
    }
}

impl World {
    pub(super) fn start_worker(&mut self, place: usize) {
        let p = &mut self.places[place];
        if p.process.is_some() || p.dead {
            return;
        }
        p.processes += 1;
        p.profile.pid += 1;
        if p.processes > 1 && self.rng.chance(15) {
            // Restarted with other settings.
            p.profile.weight = 1 + self.rng.below(3) as u32;
            p.profile.lease = self.rng.duration(400, 2_500);
            if self.rng.chance(30) {
                p.profile.drivers.insert(Self::any_driver(&mut self.rng));
            }
        }
        p.process = Some(Process {
            number: p.processes,
            holdings: Holdings::default(),
            gate: Gate::default(),
            link: None,
            answers: Answers::default(),
            waiting: false,
            tasks: BTreeMap::new(),
            failures: 0,
            life: None,
            former: None,
            asked: None,
            asks: 0,
            draining: false,
            term: Term::default(),
        });
        let name = p.name.clone();
        self.note(|| format!("{name} starts"));
        let first = if self.external() { Timer::Join } else { Timer::Connect };
        self.timer(place, 0, first);
    }

    /// Kills a process, or with `farewell` stops it in order.
    pub(super) fn end_worker(&mut self, place: usize, farewell: bool) {
        let p = &mut self.places[place];
        let Some(mut process) = p.process.take() else { return };
        p.paused_until = 0;
        let name = p.name.clone();
        self.note(|| format!("{name} {}", if farewell { "stops" } else { "is killed" }));
        process.gate.ended = true;
        if let Some(life) = process.life.filter(|_| farewell) {
            self.ask(place, process.number, Ask::Close(life));
        }
        if let Some(link) = &process.link
            && farewell
            && let Some(from) = process.holdings.envelope()
        {
            self.send_up(link.stream, Up::Leave(machine_envelope(from)));
        }
        if process.draining && !self.faulty() {
            // Whoever drained into the time of peace comes back.
            self.after(100_000_000, Ev::StartWorker(place));
        }
        for stream in 0..self.streams.len() {
            if self.streams[stream].place == place {
                self.streams[stream].down.lose_all();
                self.break_stream(stream, false);
            }
        }
    }

    fn timer(&mut self, place: usize, delay: Time, timer: Timer) {
        let Some(process) = self.places[place].process.as_ref().map(|p| p.number) else { return };
        self.after(delay, Ev::Timer { place, process, timer });
    }

    /// A timer of the worker's own clock.
    fn local_timer(&mut self, place: usize, delay: Duration, timer: Timer) {
        let clock = &self.places[place].clock;
        let at = clock.world(self.now, clock.local(self.now) + delay);
        self.timer(place, at - self.now, timer);
    }

    fn process(&mut self, place: usize) -> Option<&mut Process> {
        self.places[place].process.as_mut()
    }

    fn link(&mut self, place: usize, stream: usize) -> Option<&mut Link> {
        self.process(place)?.link.as_mut().filter(|link| link.stream == stream)
    }

    pub(super) fn worker_timer(&mut self, place: usize, timer: Timer) {
        match timer {
            Timer::Connect => self.connect(place),
            Timer::Join => self.join(place),
            Timer::ServiceBeat(life) => self.service_beat(place, life),
            Timer::KeepAlive(stream) => self.keep_alive(place, stream),
            Timer::DrainDue => self.end_worker(place, true),
            Timer::WelcomeDue(stream) => {
                if self.link(place, stream).is_some_and(|link| !link.welcomed) {
                    self.abandon(place, stream, 0);
                }
            }
            Timer::Beat(stream) => self.beat(place, stream),
            Timer::Flush(stream) => self.flush(place, stream),
            Timer::Act(id, token) => self.act(place, id, token),
            Timer::ReleaseDone(id, token) => self.release_done(place, id, token),
            Timer::Destroy(id, token) => self.destroy(place, id, token),
            Timer::DestroyDone(id, token) => self.destroy_done(place, id, token),
        }
    }

    fn connect(&mut self, place: usize) {
        let (now, p) = (self.now, &self.places[place]);
        let reachable = now >= p.cut_until;
        let external = self.external();
        let Some(process) = p.process.as_ref().filter(|process| process.link.is_none()) else { return };
        if external && process.life.is_none() {
            return;
        }
        let number = process.number;
        let Some(instance) = self.leader.as_ref().map(|l| l.instance).filter(|_| reachable) else {
            return self.connect_later(place, 0);
        };
        let stream = self.open_stream(place, number, instance);
        if self.faulty() && self.rng.chance(10) {
            // Stuck from its first byte: a later stream may well overtake it.
            let until = now + self.rng.millis(100, 6_000);
            self.streams[stream].up.stall(until);
        }
        let sent = self.places[place].clock.local(now);
        let (worker, profile) = (self.places[place].name.clone(), self.places[place].profile.clone());
        let Some(process) = self.process(place) else { return };
        let hello = process.holdings.hello();
        process.answers = Answers::default();
        process.waiting = false;
        process.link = Some(Link {
            stream,
            hello_sent: sent,
            lease: Duration::ZERO,
            welcomed: false,
            beat: 0,
            beat_sent: None,
            flush_due: false,
        });
        let held = hello.held.iter();
        let released = hello.released.into_iter();
        let message = machine::Hello {
            worker,
            incarnation: hello.incarnation,
            stream: hello.stream,
            profile,
            held: held.map(|(id, h)| Held { appliance: *id, token: h.token, generation: h.generation }).collect(),
            released: released.map(|(appliance, token, handed)| said(appliance, token, handed)).collect(),
            gone: hello.gone,
            highest_term: hello.highest_term,
        };
        self.note(|| format!("{} hello on s{stream} ({})", message.worker, message.stream));
        self.send_up(stream, Up::Hello(Box::new(message)));
        let patience = self.settings.connect_timeout;
        self.local_timer(place, patience, Timer::WelcomeDue(stream));
    }

    fn keep_alive(&mut self, place: usize, stream: usize) {
        if self.link(place, stream).is_none() {
            return;
        }
        if self.streams[stream].broken || self.now < self.places[place].cut_until {
            return self.abandon(place, stream, 0);
        }
        self.say_holdings(place, stream);
        self.timer(place, KEEP_ALIVE, Timer::KeepAlive(stream));
    }

    /// Sends something to the service, if it can be reached.
    fn ask(&mut self, place: usize, process: u64, ask: Ask) {
        if self.now >= self.places[place].adrift_until {
            let delay = self.delay();
            self.after(delay, Ev::Asked { place, process, ask });
        }
    }

    fn join(&mut self, place: usize) {
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place).filter(|p| p.life.is_none()) else { return };
        process.asks += 1;
        process.asked = Some((process.asks, now));
        let (number, former) = (process.number, process.former);
        self.ask(place, number, Ask::Join(former));
        // Again, should nothing come of it.
        let again = self.rng.millis(300, 900);
        self.timer(place, again, Timer::Join);
    }

    fn service_beat(&mut self, place: usize, life: Incarnation) {
        let lease = self.places[place].profile.lease;
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place).filter(|p| p.life == Some(life)) else { return };
        if now.since(process.gate.deadline) > lease * 2 {
            // Fenced for a whole session timeout.
            return self.end_life(place);
        }
        // One at a time; one without an answer is given up after a while, whatever became of it.
        if process.asked.is_none_or(|(_, sent)| now.since(sent) >= lease) {
            process.asks += 1;
            process.asked = Some((process.asks, now));
            let (number, beat) = (process.number, process.asks);
            self.ask(place, number, Ask::Beat(life, beat));
        }
        self.local_timer(place, lease / 4, Timer::ServiceBeat(life));
    }

    /// The service has answered.
    pub(super) fn worker_answered(&mut self, place: usize, answer: &Answer) {
        let lease = self.places[place].profile.lease;
        let Some(process) = self.process(place) else { return };
        match answer {
            Answer::Joined(incarnation) if process.life.is_none() => {
                let Some((_, sent)) = process.asked.take() else { return };
                process.life = Some(*incarnation);
                process.former = Some(*incarnation);
                process.gate = Gate::default();
                process.gate.deadline = sent + lease;
                process.holdings.begin_life(Some(*incarnation));
                self.timer(place, 0, Timer::Connect);
                self.local_timer(place, lease / 4, Timer::ServiceBeat(*incarnation));
            }
            Answer::Committed(number) => {
                if let Some((_, sent)) = process.asked.take_if(|(asked, _)| asked == number) {
                    process.gate.deadline = process.gate.deadline.max(sent + lease);
                }
            }
            Answer::Over if process.life.is_some() => self.end_life(place),
            Answer::Taken | Answer::Joined(_) | Answer::Over => {}
        }
        self.check_gates();
    }

    /// The life is over: nothing of it acts any more, and the service is asked for another one.
    fn end_life(&mut self, place: usize) {
        let Some(process) = self.process(place) else { return };
        process.gate = Gate { ended: true, ..Gate::default() };
        process.holdings.end_life();
        process.tasks.clear();
        process.answers = Answers::default();
        process.waiting = false;
        process.failures = 0;
        process.asked = None;
        let (number, life) = (process.number, process.life.take());
        if let Some(link) = process.link.take() {
            self.break_stream(link.stream, false);
        }
        self.note(|| format!("worker {} begins another life", place + 1));
        if let Some(life) = life
            && self.rng.chance(50)
        {
            self.ask(place, number, Ask::Close(life));
        }
        let delay = self.rng.millis(0, 200);
        self.timer(place, delay, Timer::Join);
    }

    /// Stops a worker in good order: what it holds is handed over first.
    pub(super) fn drain_worker(&mut self, place: usize) {
        let Some(process) = self.process(place) else { return };
        if std::mem::replace(&mut process.draining, true) {
            return;
        }
        let said = process.link.as_ref().filter(|link| link.welcomed).map(|link| link.stream);
        let from = process.holdings.envelope();
        self.note(|| format!("worker {} drains", place + 1));
        if let (Some(stream), Some(from)) = (said, from) {
            self.send_up(stream, Up::Drain(machine_envelope(from), false));
        }
        let patience = self.rng.millis(200, 5_000);
        self.timer(place, patience, Timer::DrainDue);
    }

    fn connect_later(&mut self, place: usize, at_least: Time) {
        let Some(process) = self.process(place) else { return };
        process.link = None;
        process.failures = (process.failures + 1).min(5);
        let cap = 100 << (process.failures - 1);
        let delay = self.rng.millis(cap / 2, cap).max(at_least);
        self.timer(place, delay, Timer::Connect);
    }

    /// The worker leaves a stream by itself and opens another one.
    fn abandon(&mut self, place: usize, stream: usize, at_least: Time) {
        self.note(|| format!("worker {} leaves s{stream}", place + 1));
        self.break_stream(stream, false);
        self.connect_later(place, at_least);
    }

    pub(super) fn worker_broken(&mut self, stream: usize) {
        let (place, process) = (self.streams[stream].place, self.streams[stream].process);
        if self.places[place].is_running(process) && self.link(place, stream).is_some() {
            self.connect_later(place, 0);
        }
    }

    fn beat(&mut self, place: usize, stream: usize) {
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place) else { return };
        let Some(from) = process.holdings.envelope() else { return };
        let Some(link) = process.link.as_mut().filter(|link| link.stream == stream) else { return };
        let lease = link.lease;
        match link.beat_sent {
            Some(sent) if now.since(sent) >= lease => return self.abandon(place, stream, 0),
            Some(_) => {}
            None => {
                link.beat += 1;
                link.beat_sent = Some(now);
                let number = link.beat;
                self.send_up(stream, Up::Beat(machine_envelope(from), number));
                self.say_holdings(place, stream);
            }
        }
        self.local_timer(place, lease / 4, Timer::Beat(stream));
    }

    fn flush(&mut self, place: usize, stream: usize) {
        let Some(process) = self.process(place) else { return };
        let Some(from) = process.holdings.envelope() else { return };
        let Some(link) = process.link.as_mut().filter(|link| link.stream == stream) else { return };
        link.flush_due = false;
        if std::mem::take(&mut process.waiting) {
            let applied = process.answers.applied;
            let answers = std::mem::replace(&mut process.answers, Answers { applied, ..Answers::default() });
            self.send_up(stream, Up::Answers(machine_envelope(from), answers));
            self.say_holdings(place, stream);
        }
    }

    /// Says what is held, sometimes: it has to agree with the leader's table whenever that compares it.
    fn say_holdings(&mut self, place: usize, stream: usize) {
        if !self.rng.chance(30) {
            return;
        }
        let Some(process) = self.process(place).filter(|p| !p.waiting) else { return };
        let Some(from) = process.holdings.envelope() else { return };
        let claim = Claim { applied: process.holdings.version(), held: process.holdings.digest() };
        self.send_up(stream, Up::Holds(machine_envelope(from), claim));
    }

    fn say(&mut self, place: usize, add: impl FnOnce(&mut Answers)) {
        let Some(process) = self.process(place) else { return };
        add(&mut process.answers);
        process.waiting = true;
        self.flush_soon(place);
    }

    fn flush_soon(&mut self, place: usize) {
        let delay = self.rng.micros(10, 2_000);
        let Some(process) = self.process(place) else { return };
        if let Some(link) = process.link.as_mut().filter(|link| link.welcomed && !link.flush_due) {
            link.flush_due = true;
            let stream = link.stream;
            self.timer(place, delay, Timer::Flush(stream));
        }
    }

    pub(super) fn worker_receives(&mut self, stream: usize, from: Option<Envelope>, message: Down) {
        let (place, number) = (self.streams[stream].place, self.streams[stream].process);
        let lies = self.mutant == Some(Mutant::OldStreams);
        let Some(process) = self.process(place).filter(|p| p.number == number) else { return };
        // Without a stream nobody reads.
        let Some(link) = &process.link else { return };
        let late = link.stream != stream;
        let welcomed = link.welcomed;
        let mut from = from;
        let mut message = message;
        if late && lies {
            let Some(now) = process.holdings.envelope() else { return };
            from = Some(now);
            if let Down::Delta { base, target, .. } = &mut message {
                (*base, *target) = (process.holdings.version(), process.holdings.version() + 1);
            }
        } else if late && matches!(message, Down::Refused(_)) {
            return;
        }
        if (!late || lies) && !matches!(message, Down::BeatAck(_)) {
            self.note(|| format!("worker {} <- s{stream} {message:?}", place + 1));
        }
        match message {
            Down::Refused(refusal) => self.refused(place, stream, &refusal),
            Down::Welcome { keep, lease } => self.welcomed(place, stream, from, &keep, lease),
            // Nothing applies between `Hello` and `Welcome`; what is late still has to be refused by the holdings.
            _ if !welcomed && !late => {}
            Down::BeatAck(answered) => self.beat_answered(place, from, answered),
            Down::Delta { base, target, tells } => {
                let Some((from, process)) = from.zip(self.process(place)) else { return };
                match process.holdings.delta(from, base, target, tells) {
                    Ok(effects) => {
                        process.answers.applied = target;
                        process.waiting = true;
                        self.applied(place, from.term);
                        self.apply(place, effects);
                        self.flush_soon(place);
                    }
                    Err(Refused::Stale) => {}
                    Err(Refused::Base { .. }) => {
                        if !lies {
                            self.fail(format!("a delta on s{stream} does not apply to what came before it"));
                        }
                        self.abandon(place, stream, 0);
                    }
                }
            }
            Down::Confirm(list) => {
                let Some((from, process)) = from.zip(self.process(place)) else { return };
                if process.holdings.confirm(from, &list).is_ok() {
                    self.applied(place, from.term);
                }
                if self.process(place).is_some_and(|p| p.draining && p.holdings.is_settled() && !p.waiting) {
                    self.end_worker(place, true);
                }
            }
            Down::Drained => {
                if from.zip(self.process(place)).is_some_and(|(from, p)| p.draining && p.holdings.counts(from)) {
                    self.end_worker(place, true);
                }
            }
        }
        self.check_gates();
    }

    fn applied(&mut self, place: usize, term: Term) {
        let Some(process) = self.process(place) else { return };
        let highest = std::mem::replace(&mut process.term, term);
        if term < highest {
            self.fail(format!("I5: worker {} applies a message of {term} after one of {highest}", place + 1));
        }
    }

    fn refused(&mut self, place: usize, stream: usize, refusal: &Refusal) {
        match refusal {
            Refusal::IncarnationOver | Refusal::NotMember if self.external() => self.end_life(place),
            Refusal::IncarnationOver => {
                let Some(process) = self.process(place) else { return };
                process.gate = Gate::default();
                process.holdings.end_life();
                process.tasks.clear();
                process.answers = Answers::default();
                process.waiting = false;
                process.failures = 0;
                self.break_stream(stream, false);
                if let Some(process) = self.process(place) {
                    process.link = None;
                }
                self.timer(place, 0, Timer::Connect);
            }
            Refusal::NameTaken(wait) => {
                let wait = u64::try_from(wait.as_nanos()).unwrap_or(Time::MAX).min(30_000_000_000);
                self.abandon(place, stream, wait);
            }
            Refusal::Superseded => self.abandon(place, stream, 0),
            Refusal::ImplausibleTerm(term) => self.fail(format!("a worker is said to have met {term}")),
            Refusal::StoreUnavailable => self.abandon(place, stream, 500_000_000),
            Refusal::UnknownLife if self.external() => self.abandon(place, stream, 500_000_000),
            Refusal::NoLife | Refusal::UnknownLife | Refusal::NotMember | Refusal::Differs => {
                self.fail(format!("a worker is refused with {refusal:?}"));
            }
        }
    }

    fn welcomed(
        &mut self,
        place: usize,
        stream: usize,
        from: Option<Envelope>,
        keep: &[(ApplianceId, Token)],
        lease: Duration,
    ) {
        let own = self.places[place].profile.lease;
        let Some((from, process)) = from.zip(self.process(place)) else { return };
        let Ok(effects) = process.holdings.welcome(from, keep) else {
            if self.link(place, stream).is_some() {
                self.abandon(place, stream, 500_000_000);
            }
            return;
        };
        let Some(link) = &mut process.link else { return };
        let lease = lease.min(own);
        link.welcomed = true;
        link.lease = lease;
        let current = link.stream;
        process.failures = 0;
        let deadline = link.hello_sent + lease;
        self.applied(place, from.term);
        // The gate is shut for what is not kept before the lease is extended.
        self.apply(place, effects);
        if self.external() {
            // Only the service extends the lease.
            let draining = self.process(place).is_some_and(|p| p.draining);
            self.timer(place, KEEP_ALIVE, Timer::KeepAlive(current));
            if draining {
                self.send_up(stream, Up::Drain(machine_envelope(from), false));
            }
            if self.process(place).is_some_and(|p| p.waiting) {
                self.flush_soon(place);
            }
            return;
        }
        if let Some(process) = self.process(place) {
            process.gate.deadline = process.gate.deadline.max(deadline);
        }
        self.timer(place, 0, Timer::Beat(current));
        if self.process(place).is_some_and(|p| p.waiting) {
            self.flush_soon(place);
        }
    }

    fn beat_answered(&mut self, place: usize, from: Option<Envelope>, number: u64) {
        let Some((from, process)) = from.zip(self.process(place)) else { return };
        if !process.holdings.counts(from) {
            return;
        }
        let Some(link) = process.link.as_mut().filter(|link| link.beat == number) else { return };
        if let Some(sent) = link.beat_sent.take() {
            process.gate.deadline = process.gate.deadline.max(sent + link.lease);
            self.applied(place, from.term);
        }
    }

    fn apply(&mut self, place: usize, effects: Vec<Effect<Desired>>) {
        for effect in effects {
            match effect {
                Effect::Take { appliance, token, desired, handed, .. } => {
                    self.take_grant(place, appliance, token, desired, handed);
                }
                Effect::Decline(id, token) => self.say(place, |a| a.declined.push((id, token))),
                Effect::Fence(id, token) => {
                    if let Some(process) = self.process(place)
                        && process.gate.grants.get(&id) == Some(&token)
                    {
                        process.gate.grants.remove(&id);
                    }
                    self.begin_release(place, id, token);
                }
                Effect::Release(id, token) => self.begin_release(place, id, token),
                Effect::Again(id, token, handed) => self.say(place, |a| a.released.push(said(id, token, handed))),
                Effect::Update { appliance, token, desired } => {
                    let generation = self.process(place).and_then(|p| {
                        p.holdings.iter().find(|(id, _)| *id == appliance).map(|(_, held)| held.generation)
                    });
                    let Some(task) = self.process(place).and_then(|p| p.tasks.get_mut(&appliance)) else { continue };
                    task.generation = generation.unwrap_or(task.generation);
                    if desired.deleting && !std::mem::replace(&mut task.deleting, true) {
                        let delay = self.rng.millis(1, 800);
                        self.timer(place, delay, Timer::Destroy(appliance, token));
                    }
                }
                Effect::Check(..) => {}
            }
        }
    }

    fn take_grant(&mut self, place: usize, id: ApplianceId, token: Token, desired: Desired, handed: Handed) {
        self.check_taken(place, id, token);
        let draining = self.process(place).is_some_and(|p| p.draining);
        let unwilling = draining || (self.faulty() && self.rng.chance(2));
        if unwilling || !self.places[place].profile.drivers.contains(&desired.driver) {
            if let Some(process) = self.process(place) {
                process.holdings.declined(id, token);
            }
            return self.say(place, |a| a.declined.push((id, token)));
        }
        if let Some(newest) = self.places[place].newest.insert(id, token)
            && newest >= token
        {
            self.fail(format!("I3: worker {} takes {id} under {token} after {newest}", place + 1));
        }
        if desired.driver.is_host_bound() {
            self.journals.entry(id).or_default().is_bound = true;
        }
        let Some(process) = self.process(place) else { return };
        let generation = process.holdings.iter().find(|(held, _)| *held == id).map(|(_, h)| h.generation);
        let task = Task {
            token,
            generation: generation.unwrap_or_default(),
            deleting: desired.deleting,
            destroyed: false,
            releasing: false,
            progress: handed.progress,
        };
        if process.tasks.insert(id, task).is_some() {
            self.fail(format!("worker {} takes {id} while it still has a task for it", place + 1));
        }
        if let Some(process) = self.process(place) {
            process.gate.grants.insert(id, token);
        }
        self.say(place, |a| a.granted.push((id, token)));
        let delay = self.rng.millis(0, 300);
        let first = if desired.deleting { Timer::Destroy(id, token) } else { Timer::Act(id, token) };
        self.timer(place, delay, first);
    }

    fn begin_release(&mut self, place: usize, id: ApplianceId, token: Token) {
        let early = self.mutant == Some(Mutant::EarlyRelease);
        let Some(task) = self.process(place).and_then(|p| p.tasks.get_mut(&id)).filter(|t| t.token == token) else {
            return self.fail(format!("worker {} has no task for {id} under {token}", place + 1));
        };
        task.releasing = true;
        if early {
            self.say_released(place, id, token);
        }
        let takes = if self.rng.chance(10) { self.rng.millis(500, 3_000) } else { self.rng.millis(0, 300) };
        self.timer(place, takes, Timer::ReleaseDone(id, token));
    }

    fn say_released(&mut self, place: usize, id: ApplianceId, token: Token) {
        let Some(process) = self.process(place) else { return };
        let progress = process.tasks.get(&id).map(|t| t.progress.clone()).unwrap_or_default();
        let handed = Handed { progress, hold: Duration::ZERO };
        if process.holdings.released(id, token, handed.clone()) {
            self.say(place, |a| a.released.push(said(id, token, handed)));
        }
    }

    fn release_done(&mut self, place: usize, id: ApplianceId, token: Token) {
        let per_worker = self.mutant == Some(Mutant::GatePerWorker);
        let Some(process) = self.process(place) else { return };
        if process.tasks.get(&id).is_none_or(|t| t.token != token) {
            return;
        }
        process.gate.grants.remove(&id);
        self.say_released(place, id, token);
        // A task that runs on after it was told to stop: only a gate that is asked per grant holds it back.
        if let Some(process) = self.process(place)
            && !per_worker
        {
            process.tasks.remove(&id);
        }
    }

    /// One call that changes the world, if the gate lets it.
    fn touch(&mut self, place: usize, id: ApplianceId, token: Token) -> bool {
        if !self.places[place].passes(self.now, id, token, self.mutant) {
            return false;
        }
        self.effects += 1;
        if self.faulty() {
            self.note(|| format!("worker {} acts on {id} under {token}", place + 1));
        }
        self.check_touched(place, id, token);
        true
    }

    fn act(&mut self, place: usize, id: ApplianceId, token: Token) {
        let task = self.process(place).and_then(|p| p.tasks.get(&id)).filter(|t| t.token == token);
        if task.is_none_or(|task| task.destroyed || task.deleting) {
            return;
        }
        if self.touch(place, id, token) {
            self.journals.entry(id).or_default().exists = true;
            if let Some(task) = self.process(place).and_then(|p| p.tasks.get_mut(&id))
                && task.progress.attempts.is_empty()
            {
                task.progress.attempts.push(1);
            }
        }
        let delay = self.rng.millis(20, 600);
        self.timer(place, delay, Timer::Act(id, token));
    }

    fn destroy(&mut self, place: usize, id: ApplianceId, token: Token) {
        let task = self.process(place).and_then(|p| p.tasks.get(&id)).filter(|t| t.token == token);
        if task.is_none_or(|task| task.destroyed) {
            return;
        }
        if !self.touch(place, id, token) {
            let delay = self.rng.millis(20, 400);
            return self.timer(place, delay, Timer::Destroy(id, token));
        }
        self.journals.entry(id).or_default().exists = false;
        if let Some(task) = self.process(place).and_then(|p| p.tasks.get_mut(&id)) {
            task.destroyed = true;
        }
        let delay = self.rng.millis(0, 100);
        self.timer(place, delay, Timer::DestroyDone(id, token));
    }

    fn destroy_done(&mut self, place: usize, id: ApplianceId, token: Token) {
        let Some(process) = self.process(place) else { return };
        if process.tasks.get(&id).is_none_or(|t| t.token != token) {
            return;
        }
        process.gate.grants.remove(&id);
        process.tasks.remove(&id);
        if process.holdings.gone(id, token) {
            self.say(place, |a| a.gone.push((id, token)));
        }
    }
}

fn machine_envelope(from: Envelope) -> machine::Envelope {
    machine::Envelope { term: from.term, incarnation: from.incarnation, stream: from.stream }
}

fn said(appliance: ApplianceId, token: Token, handed: Handed) -> Said {
    Said { appliance, token, handed: handoff::Handed { progress: handed.progress, hold: handed.hold } }
}
