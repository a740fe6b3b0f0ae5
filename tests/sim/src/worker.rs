//! A worker process around the holdings, after `worker::session`: one stream at a time to whoever seems to lead, what is
//! said on it, and what the leader says. Its lives are in `life`, what it does with grants in `tasks`.

use std::collections::BTreeMap;
use std::time::Duration;

use common::driver::{DriverCapabilities, DriverName};
use common::session::{Ack, DeltaEntry, Report, ToCoordinator};
use common::{ApplianceId, Edition, Profile, Term, Timestamp, Token, WorkerId};
use worker_core::assignments::Assignments;
use worker_core::gate::Gate;

use super::SimTime;
use super::backend::BackendCall;
use super::clock::DriftingClock;
use super::life::WorkerLife;
use super::net::{SimDesired, WorkerMessage};
use super::rng::Rng;
use super::service::Who;
use super::tasks::{CallReply, SimTask};
use super::world::{SimEvent, SimHost, SimWorld};

/// How often the transport asks whether the other side is there, with the time it waits for the answer.
pub(super) const KEEP_ALIVE: SimTime = 5_000_000_000;

/// Something a worker waits for.
#[derive(Clone, Debug)]
pub(super) enum WorkerTimer {
    Connect,
    /// Begin a life, or see that one has begun.
    Join,
    /// A heartbeat of this life to the service.
    ServiceBeat(u64),
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
    /// Send a digest of what is held.
    Claim(usize),
    /// Begin a step.
    Act(ApplianceId, Token),
    /// A call that has passed the gate is sent.
    Send(Box<BackendCall>),
    Called((ApplianceId, Token, u64), CallReply),
    /// A call was not answered.
    CallDue(ApplianceId, Token, u64),
    /// Something that was told to stop tries once more.
    Straggles(ApplianceId, Token),
    /// The appliance is given up.
    ReleaseDone(ApplianceId, Token),
    /// Everything of it is removed.
    DestroyDone(ApplianceId, Token),
    /// For a mutant: these instructions come again.
    Again(usize, Vec<DeltaEntry<SimDesired>>),
}

/// Where a worker runs: its name, host and clock outlive its processes.
#[derive(Debug)]
pub(super) struct WorkerHost {
    pub(super) name: WorkerId,
    pub(super) profile: Profile,
    pub(super) clock: DriftingClock,
    /// How long before the end of its lease it stops to make calls without token.
    pub(super) margin: Duration,
    pub(super) paused_until: SimTime,
    /// It does not come back.
    pub(super) lost: bool,
    pub(super) process: Option<WorkerProcess>,
    processes: u64,
    /// Highest token any process here took, by appliance (I3).
    pub(super) newest: BTreeMap<ApplianceId, Token>,
}

#[derive(Debug)]
pub(super) struct WorkerLink {
    pub(super) stream: usize,
    pub(super) seat: usize,
    pub(super) hello_sent: Timestamp,
    pub(super) lease: Duration,
    pub(super) welcomed: bool,
    pub(super) beat: u64,
    pub(super) beat_sent: Option<Timestamp>,
    flush_due: bool,
}

/// One process of a worker.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    pub(super) number: u64,
    pub(super) assignments: Assignments,
    pub(super) gate: Gate,
    pub(super) link: Option<WorkerLink>,
    pub(super) ack: Ack,
    pub(super) waiting: bool,
    pub(super) tasks: BTreeMap<ApplianceId, SimTask>,
    pub(super) failures: u32,
    /// Which of the known coordinators is tried next; the first is the one that seems to lead.
    pub(super) aim: usize,
    pub(super) shown: Option<usize>,
    pub(super) life: WorkerLife,
    pub(super) draining: bool,
    /// Highest term whose messages were applied (I5).
    pub(super) term: Term,
}

impl WorkerHost {
    pub(super) fn new(n: usize, rng: &mut Rng, hold: Option<Duration>) -> Self {
        let drivers = match rng.below(4) {
            0 => vec![DriverName::process()],
            1 => vec![DriverName::simulated()],
            _ => vec![DriverName::process(), DriverName::simulated()],
        };
        let profile = Profile {
            weight: 1 + rng.below(3) as u32,
            zone: String::new(),
            host: format!("host-{}", rng.below(2)),
            drivers: drivers.into_iter().map(|driver| offer(driver, hold)).collect(),
            version: String::new(),
            pid: 1,
            lease: rng.duration(400, 2_500),
        };
        Self {
            name: WorkerId::new(&format!("w{}", n + 1)).expect("letters and digits"),
            profile,
            clock: DriftingClock::new(rng),
            margin: rng.duration(20, 120),
            paused_until: 0,
            lost: false,
            process: None,
            processes: 0,
            newest: BTreeMap::new(),
        }
    }

    pub(super) fn is_running(&self, process: u64) -> bool {
        self.process.as_ref().is_some_and(|p| p.number == process)
    }

    /// Under which token it may act on an appliance at this moment of the world, holds aside.
    pub(super) fn able(&self, now: SimTime, id: ApplianceId) -> Option<Token> {
        let process = self.process.as_ref()?;
        let token = process.tasks.get(&id)?.token;
        (process.gate.lease_stands(self.clock.local(now)) && process.gate.is_held(id, token)).then_some(token)
    }
}

impl WorkerProcess {
    /// The edition a task knows.
    pub(super) fn edition(&self, id: ApplianceId) -> Option<Edition> {
        self.tasks.get(&id).map(|task| task.edition)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.waiting || self.tasks.values().any(|task| task.releasing)
    }
}

/// What a worker says about a driver; no token fences calls of the simulated one if there is a `fence_delay`.
fn offer(driver: DriverName, fence_delay: Option<Duration>) -> (DriverName, DriverCapabilities) {
    let capabilities = match driver == DriverName::process() {
        true => DriverCapabilities::of_all_kinds(Some("")),
        false => DriverCapabilities { fence_delay, ..DriverCapabilities::of_all_kinds(None) },
    };
    (driver, capabilities)
}

impl SimWorld {
    pub(super) fn start_worker(&mut self, place: usize) {
        let external = self.external();
        let p = &mut self.places[place];
        if p.process.is_some() || p.lost {
            return;
        }
        p.processes += 1;
        p.profile.pid += 1;
        if p.processes > 1 && self.rng.chance(15) {
            // Restarted with other settings.
            p.profile.weight = 1 + self.rng.below(3) as u32;
            p.profile.lease = self.rng.duration(400, 2_500);
            if self.rng.chance(30) {
                let added = offer(Self::any_driver(&mut self.rng), self.settings.hold);
                let offered = p.profile.drivers.iter().map(|(name, it)| (name.clone(), it.clone()));
                p.profile.drivers = offered.chain([added]).collect();
            }
        }
        p.process = Some(WorkerProcess {
            number: p.processes,
            assignments: Assignments::default(),
            gate: Gate::with_margin(p.margin),
            link: None,
            ack: Ack::default(),
            waiting: false,
            tasks: BTreeMap::new(),
            failures: 0,
            aim: 0,
            shown: None,
            life: WorkerLife::default(),
            draining: false,
            term: Term::default(),
        });
        self.note(|| format!("w{} starts", place + 1));
        self.timer(place, 0, if external { WorkerTimer::Join } else { WorkerTimer::Connect });
    }

    /// Kills a process, or with `farewell` stops it in order.
    pub(super) fn end_worker(&mut self, place: usize, farewell: bool) {
        let p = &mut self.places[place];
        let Some(process) = p.process.take() else { return };
        p.paused_until = 0;
        self.note(|| format!("w{} {}", place + 1, if farewell { "stops" } else { "is killed" }));
        if self.external() {
            self.leave_service(place, &process, farewell);
        }
        if let Some(link) = &process.link
            && farewell
            && let Some(from) = process.assignments.envelope()
        {
            self.send_up(link.stream, WorkerMessage::Message(from, ToCoordinator::Leave));
        }
        if process.draining && !self.faulty() {
            // Whoever drained into the time of peace comes back.
            self.after(100_000_000, SimEvent::StartWorker(place));
        }
        let open: Vec<usize> = self.open.iter().copied().filter(|&s| self.streams[s].place == place).collect();
        for stream in open {
            self.streams[stream].down.lose_all();
            self.break_stream(stream, false);
        }
    }

    pub(super) fn timer(&mut self, place: usize, delay: SimTime, timer: WorkerTimer) {
        let Some(process) = self.places[place].process.as_ref().map(|p| p.number) else { return };
        self.after(delay, SimEvent::Timer { place, process, timer });
    }

    /// A timer of the worker's own clock.
    pub(super) fn local_timer(&mut self, place: usize, delay: Duration, timer: WorkerTimer) {
        let clock = &self.places[place].clock;
        let at = clock.world(self.now, clock.local(self.now) + delay);
        self.timer(place, at - self.now, timer);
    }

    pub(super) fn process(&mut self, place: usize) -> Option<&mut WorkerProcess> {
        self.places[place].process.as_mut()
    }

    pub(super) fn link(&mut self, place: usize, stream: usize) -> Option<&mut WorkerLink> {
        self.process(place)?.link.as_mut().filter(|link| link.stream == stream)
    }

    pub(super) fn worker_timer(&mut self, place: usize, timer: WorkerTimer) {
        match timer {
            WorkerTimer::Connect => self.connect(place),
            WorkerTimer::Join => self.join(place),
            WorkerTimer::ServiceBeat(life) => self.service_beat(place, life),
            WorkerTimer::KeepAlive(stream) => self.keep_alive(place, stream),
            WorkerTimer::DrainDue => self.end_worker(place, true),
            WorkerTimer::WelcomeDue(stream) => {
                if self.link(place, stream).is_some_and(|link| !link.welcomed) {
                    self.abandon(place, stream, 0);
                }
            }
            WorkerTimer::Beat(stream) => self.beat(place, stream),
            WorkerTimer::Flush(stream) => self.flush(place, stream),
            WorkerTimer::Claim(stream) => self.claim(place, stream),
            WorkerTimer::Act(id, token) => self.act(place, id, token),
            WorkerTimer::Send(call) => self.call_starts(*call),
            WorkerTimer::Called(of, said) => self.called(place, of, said),
            WorkerTimer::CallDue(id, token, number) => self.call_due(place, id, token, number),
            WorkerTimer::Straggles(id, token) => self.straggles(place, id, token),
            WorkerTimer::ReleaseDone(id, token) => self.release_done(place, id, token),
            WorkerTimer::DestroyDone(id, token) => self.destroy_done(place, id, token),
            WorkerTimer::Again(stream, tells) => self.delivered_again(place, stream, tells),
        }
    }

    /// The coordinator to be tried next: the one that is shown as leader, then the others.
    fn aim(&mut self, place: usize) -> usize {
        let shown = if self.external() { self.shown_leader(Who::Worker(place)) } else { Some(0) };
        let seats = self.seats.len();
        let Some(process) = self.process(place) else { return 0 };
        process.shown = shown;
        (shown.unwrap_or(0) + process.aim) % seats
    }

    /// Another coordinator leads than the one that is spoken to.
    pub(super) fn look_who_leads(&mut self, place: usize) {
        let shown = self.shown_leader(Who::Worker(place));
        let Some(process) = self.process(place) else { return };
        if shown.is_none() || process.shown == shown {
            return;
        }
        process.shown = shown;
        let stream = process.link.as_ref().filter(|link| Some(link.seat) != shown).map(|link| link.stream);
        if let Some(stream) = stream {
            process.aim = 0;
            process.failures = 0;
            self.note(|| format!("w{} sees another leader", place + 1));
            self.break_stream(stream, false);
            if let Some(process) = self.process(place) {
                process.link = None;
            }
            self.timer(place, 0, WorkerTimer::Connect);
        }
    }

    fn connect(&mut self, place: usize) {
        let external = self.external();
        let Some(process) = self.process(place).filter(|process| process.link.is_none()) else { return };
        if external && !process.life.has_begun() {
            return;
        }
        let number = process.number;
        let seat = self.aim(place);
        let (there, back) = (SimHost::Place(place), SimHost::Seat(seat));
        let instance = self.seats[seat].process.as_ref().map(|process| process.instance);
        let reachable = self.reaches(there, back) && self.reaches(back, there);
        let Some(instance) = instance.filter(|_| reachable) else {
            return self.connect_later(place, 0);
        };
        let stream = self.open_stream(place, number, seat, instance);
        if self.faulty() && self.rng.chance(5) {
            // Stuck from its first byte: a later stream may well overtake it.
            let until = self.now + self.rng.millis(100, 6_000);
            self.streams[stream].up.stall(until);
        }
        let sent = self.places[place].clock.local(self.now);
        let (worker, profile) = (self.places[place].name.clone(), self.places[place].profile.clone());
        let Some(process) = self.process(place) else { return };
        let (from, hello) = process.assignments.hello(&worker, &profile);
        process.ack = Ack::default();
        process.waiting = false;
        process.link = Some(WorkerLink {
            stream,
            seat,
            hello_sent: sent,
            lease: Duration::ZERO,
            welcomed: false,
            beat: 0,
            beat_sent: None,
            flush_due: false,
        });
        self.note(|| format!("{worker} hello on s{stream} ({}) to c{seat}", from.stream));
        self.send_up(stream, WorkerMessage::Message(from, ToCoordinator::Hello(Box::new(hello))));
        let patience = self.settings.connect_timeout;
        self.local_timer(place, patience, WorkerTimer::WelcomeDue(stream));
    }

    fn keep_alive(&mut self, place: usize, stream: usize) {
        let Some(link) = self.link(place, stream) else { return };
        let (here, there) = (SimHost::Place(place), SimHost::Seat(link.seat));
        if self.streams[stream].broken || !self.reaches(here, there) || !self.reaches(there, here) {
            return self.abandon(place, stream, 0);
        }
        self.timer(place, KEEP_ALIVE, WorkerTimer::KeepAlive(stream));
    }

    pub(super) fn connect_later(&mut self, place: usize, at_least: SimTime) {
        let Some(process) = self.process(place) else { return };
        let welcomed = process.link.take().is_some_and(|link| link.welcomed);
        process.aim = if welcomed { 0 } else { process.aim + 1 };
        process.failures = (process.failures + 1).min(5);
        let cap = 100 << (process.failures - 1);
        let delay = self.rng.millis(cap / 2, cap).max(at_least);
        self.timer(place, delay, WorkerTimer::Connect);
    }

    /// The worker leaves a stream by itself and opens another one.
    pub(super) fn abandon(&mut self, place: usize, stream: usize, at_least: SimTime) {
        self.note(|| format!("w{} leaves s{stream}", place + 1));
        self.break_stream(stream, false);
        self.connect_later(place, at_least);
    }

    /// Has the leader hear what this worker has met meanwhile.
    pub(super) fn say_hello_again(&mut self, place: usize) {
        if let Some(stream) = self.process(place).and_then(|p| p.link.as_ref().map(|link| link.stream)) {
            self.abandon(place, stream, 0);
        }
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
        let Some(from) = process.assignments.envelope() else { return };
        let Some(link) = process.link.as_mut().filter(|link| link.stream == stream) else { return };
        let lease = link.lease;
        match link.beat_sent {
            Some(sent) if now.since(sent) >= lease => return self.abandon(place, stream, 0),
            Some(_) => {}
            None => {
                link.beat += 1;
                link.beat_sent = Some(now);
                let number = link.beat;
                self.send_up(stream, WorkerMessage::Message(from, ToCoordinator::Beat(number)));
            }
        }
        self.local_timer(place, lease / 4, WorkerTimer::Beat(stream));
    }

    fn flush(&mut self, place: usize, stream: usize) {
        let Some(process) = self.process(place) else { return };
        let Some(from) = process.assignments.envelope() else { return };
        let Some(link) = process.link.as_mut().filter(|link| link.stream == stream) else { return };
        link.flush_due = false;
        if std::mem::take(&mut process.waiting) {
            let applied = process.ack.applied;
            let ack = std::mem::replace(&mut process.ack, Ack { applied, ..Ack::default() });
            self.send_up(stream, WorkerMessage::Message(from, ToCoordinator::Ack(ack)));
        }
    }

    /// Says what is held in short; after everything that was said of it.
    fn claim(&mut self, place: usize, stream: usize) {
        let Some(process) = self.process(place) else { return };
        let Some(from) = process.assignments.envelope() else { return };
        if process.link.as_ref().is_none_or(|link| link.stream != stream) {
            return;
        }
        if !process.waiting {
            let report = Report { statuses: Vec::new(), owned: Some(process.assignments.digest()) };
            self.send_up(stream, WorkerMessage::Message(from, ToCoordinator::Report(report)));
        }
        let next = self.rng.millis(500, 1_500);
        self.timer(place, next, WorkerTimer::Claim(stream));
    }

    pub(super) fn say(&mut self, place: usize, add: impl FnOnce(&mut Ack)) {
        let Some(process) = self.process(place) else { return };
        add(&mut process.ack);
        process.waiting = true;
        self.flush_soon(place);
    }

    pub(super) fn flush_soon(&mut self, place: usize) {
        let delay = self.rng.micros(10, 2_000);
        let Some(process) = self.process(place) else { return };
        if let Some(link) = process.link.as_mut().filter(|link| link.welcomed && !link.flush_due) {
            link.flush_due = true;
            let stream = link.stream;
            self.timer(place, delay, WorkerTimer::Flush(stream));
        }
    }
}
