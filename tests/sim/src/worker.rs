//! A worker process around its machines, as `worker::session` is in the product: [`Control`] decides which life, which
//! stream and when to leave, [`Conversation`] what messages do. Here their actions are carried out in the world; those that
//! begin and end lives are in `life`, messages in `incoming`, what is done with grants in `tasks`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use common::driver::{DriverCapabilities, DriverName};
use common::secret::LifeSecret;
use common::session::{DeltaEntry, ToCoordinator};
use common::{ApplianceId, Edition, Mode, ProcessIdentity, Profile, Term, Timestamp, Token, WorkerId};
use worker_core::gate::Gate;
use worker_core::session::{
    Control, ControlAction, ControlEvent, Conversation, ConversationSettings, Settings, StopRequest, StreamEnd,
};

use super::SimTime;
use super::backend::BackendCall;
use super::clock::DriftingClock;
use super::life::WorkerLife;
use super::net::{SimDesired, WorkerMessage};
use super::rng::Rng;
use super::tasks::{CallReply, SimTask};
use super::world::{SimEvent, SimHost, SimWorld};

/// Times of conversations: shorter than in the product, because a run is short.
const CONVERSATION: ConversationSettings =
    ConversationSettings { audit: Duration::from_secs(1), raise_pause: Duration::from_secs(1) };

/// Longest pause between two tries to connect or to join.
const RETRY_CAP: Duration = Duration::from_millis(1_600);

/// How often the transport asks whether the other side is there, with the time it waits for the answer.
pub(super) const KEEP_ALIVE: SimTime = 5_000_000_000;

/// Something a worker waits for.
#[derive(Clone, Debug)]
pub(super) enum WorkerTimer {
    /// A machine wants to look at the time, at this moment of the worker's clock; only the newest of these counts.
    Wake(Timestamp),
    /// The try to connect of this number has come to the coordinator, or has failed.
    Opened(u64, usize),
    /// Something that takes time has come to its end.
    Ended(ControlEvent),
    /// Ask the service for a life again, should nothing have come of it.
    Join,
    /// A heartbeat of this life to the service.
    ServiceBeat(u64),
    /// The transport asks whether the other side of this stream is there: the only sign of life where no heartbeats are on
    /// it.
    KeepAlive(usize),
    /// Send what waits to be sent.
    Flush(usize),
    /// Begin a step.
    Act(ApplianceId, Token),
    /// A call that has passed the gate is sent.
    Send(Box<BackendCall>),
    Called((ApplianceId, Token, u64), CallReply),
    /// A call was not answered.
    CallDue(ApplianceId, Token, u64),
    /// A step that was asked to stop tries once more.
    Straggles(ApplianceId, Token),
    /// Hands are off an appliance: it is said once nothing runs.
    FallsQuiet(ApplianceId, Token),
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
    /// Of all its lives; only that nobody else has it matters.
    pub(super) secret: LifeSecret,
    pub(super) clock: DriftingClock,
    /// How long before the end of its lease it stops to make calls without token.
    pub(super) margin: Duration,
    pub(super) paused_until: SimTime,
    /// It is of a version that knows debug modes.
    pub(super) knows_modes: bool,
    /// It does not come back.
    pub(super) lost: bool,
    pub(super) process: Option<WorkerProcess>,
    processes: u64,
    /// Highest token any process here took, by appliance (I3).
    pub(super) newest: BTreeMap<ApplianceId, Token>,
}

/// The stream a worker is at the end of.
#[derive(Debug)]
pub(super) struct WorkerLink {
    pub(super) stream: usize,
    pub(super) coordinator: usize,
    flush_due: bool,
}

/// One process of a worker.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    pub(super) number: u64,
    pub(super) control: Control,
    /// What [`Control`] asked for and is not carried out yet.
    actions: VecDeque<ControlAction>,
    pub(super) conversation: Conversation,
    pub(super) gate: Gate,
    pub(super) link: Option<WorkerLink>,
    /// Counts tries to connect; only the newest one is awaited.
    attempts: u64,
    /// When the machines look at the time next.
    wake_at: Option<Timestamp>,
    pub(super) tasks: BTreeMap<ApplianceId, SimTask>,
    pub(super) life: WorkerLife,
    /// Highest term whose messages were applied (I5).
    pub(super) term: Term,
}

/// The secret of the worker with this number.
pub(super) fn secret(number: u64) -> LifeSecret {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    LifeSecret::new(bytes)
}

impl WorkerHost {
    pub(super) fn new(n: usize, rng: &mut Rng, fence_delay: Option<Duration>) -> Self {
        let drivers = match rng.below(4) {
            0 => vec![DriverName::process()],
            1 => vec![DriverName::simulated()],
            _ => vec![DriverName::process(), DriverName::simulated()],
        };
        let profile = Profile {
            weight: 1 + rng.below(3) as u32,
            zone: format!("zone-{}", n % 3),
            host: format!("host-{}", rng.below(2)),
            drivers: drivers.into_iter().map(|driver| offer(driver, fence_delay)).collect(),
            version: String::new(),
            pid: 1,
            process: None,
            lease: rng.duration(400, 2_500),
        };
        Self {
            name: WorkerId::new(&format!("w{}", n + 1)).expect("letters and digits"),
            profile,
            secret: secret(n as u64),
            clock: DriftingClock::new(rng),
            margin: rng.duration(20, 120),
            paused_until: 0,
            knows_modes: rng.chance(90),
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
        self.conversation.owes_an_answer() || self.tasks.values().any(|task| task.releasing)
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
        let (pid, pid_namespace) = (p.profile.pid, place as u64);
        p.profile.process = Some(ProcessIdentity { boot: 0, pid_namespace, pid, start: 0 });
        if p.processes > 1 && self.rng.chance(50) {
            // Upgraded.
            p.knows_modes = true;
        }
        if p.processes > 1 && self.rng.chance(15) {
            // Restarted with other settings.
            p.profile.weight = 1 + self.rng.below(3) as u32;
            p.profile.lease = self.rng.duration(400, 2_500);
            if self.rng.chance(30) {
                let added = offer(Self::any_driver(&mut self.rng), self.settings.fence_delay);
                let offered = p.profile.drivers.iter().map(|(name, it)| (name.clone(), it.clone()));
                p.profile.drivers = offered.chain([added]).collect();
            }
        }
        let settings = Settings {
            connect_timeout: self.settings.connect_timeout,
            retry_cap: RETRY_CAP,
            drain_timeout: self.rng.duration(200, 5_000),
            // No two workers of one name are started here, and strangers keep none for long.
            name_timeout: Duration::from_secs(24 * 3600),
        };
        let (control, actions) = Control::new(settings, p.clock.local(self.now));
        p.process = Some(WorkerProcess {
            number: p.processes,
            control,
            actions: actions.into(),
            conversation: Conversation::new(CONVERSATION),
            gate: Gate::with_margin(p.margin),
            link: None,
            attempts: 0,
            wake_at: None,
            tasks: BTreeMap::new(),
            life: WorkerLife::default(),
            term: Term::default(),
        });
        self.note(|| format!("w{} starts", place + 1));
        if !external {
            self.step(place, ControlEvent::Coordinators(vec![address(0)]));
        }
        self.settle(place);
    }

    /// Asks a worker to stop in order.
    pub(super) fn stop_worker(&mut self, place: usize, request: StopRequest) {
        self.note(|| format!("w{} is asked to stop: {request:?}", place + 1));
        self.step(place, ControlEvent::Stop(request));
        self.settle(place);
    }

    /// A process is gone: it was killed, or has ended.
    pub(super) fn end_worker(&mut self, place: usize) {
        let p = &mut self.places[place];
        if p.process.take().is_none() {
            return;
        }
        p.paused_until = 0;
        let process = p.profile.process;
        self.note(|| format!("w{} is gone", place + 1));
        self.witnesses_tell(process);
        if self.external() {
            self.member_dies(place);
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
            WorkerTimer::Wake(at) => self.wake(place, at),
            WorkerTimer::Opened(attempt, coordinator) => self.opened(place, attempt, coordinator),
            WorkerTimer::Ended(event) => self.step(place, event),
            WorkerTimer::Join => self.join(place),
            WorkerTimer::ServiceBeat(life) => self.service_beat(place, life),
            WorkerTimer::KeepAlive(stream) => self.keep_alive(place, stream),
            WorkerTimer::Flush(stream) => self.flush(place, stream),
            WorkerTimer::Act(id, token) => self.act(place, id, token),
            WorkerTimer::Send(call) => self.call_starts(*call),
            WorkerTimer::Called(of, said) => self.called(place, of, said),
            WorkerTimer::CallDue(id, token, number) => self.call_due(place, id, token, number),
            WorkerTimer::Straggles(id, token) => self.straggles(place, id, token),
            WorkerTimer::FallsQuiet(id, token) => self.fall_quiet(place, id, token),
            WorkerTimer::ReleaseDone(id, token) => self.release_done(place, id, token),
            WorkerTimer::DestroyDone(id, token) => self.destroy_done(place, id, token),
            WorkerTimer::Again(stream, tells) => self.delivered_again(place, stream, tells),
        }
        self.settle(place);
    }

    /// Has a worker's course take in one fact. What follows is carried out by [`SimWorld::settle`].
    pub(super) fn step(&mut self, place: usize, event: ControlEvent) {
        let now = self.places[place].clock.local(self.now);
        let jitter = self.rng.below(1_001) as f64 / 1_000.0;
        let Some(process) = self.process(place) else { return };
        let settled = process.conversation.assignments().is_settled();
        let actions = process.control.step(now, event, jitter, settled);
        process.actions.extend(actions);
    }

    /// Carries out what waits to be carried out, and sees to it that the worker goes on when it has to.
    pub(super) fn settle(&mut self, place: usize) {
        loop {
            let Some(process) = self.process(place) else { return };
            if let Some(action) = process.actions.pop_front() {
                self.carry_out_control(place, action);
            } else if process.control.is_draining()
                && process.control.is_streaming()
                && process.conversation.is_handed_over()
            {
                self.step(place, ControlEvent::HandedOver);
            } else {
                break;
            }
        }
        self.flush_soon(place);
        self.wake_later(place);
    }

    fn carry_out_control(&mut self, place: usize, action: ControlAction) {
        match action {
            ControlAction::Join => self.begin_joining(place),
            ControlAction::EndLife(why) => self.end_life(place, &why),
            ControlAction::Connect(address) => self.connect(place, &address),
            ControlAction::Disconnect => self.disconnect(place),
            ControlAction::SayHello => self.say_hello(place),
            ControlAction::Extend(until) => self.extend(place, until),
            ControlAction::Beat(number) => self.send(place, ToCoordinator::Beat(number)),
            ControlAction::SayDrain => {
                if let Some(process) = self.process(place) {
                    process.conversation.drain(false);
                }
            }
            ControlAction::EndWork(within) => self.end_work(place, within),
            ControlAction::SayLeave(within) => {
                self.send(place, ToCoordinator::Leave);
                self.ends_soon(place, within, ControlEvent::LeaveSaid);
            }
            ControlAction::LeaveGroup(within) => self.leave_group(place, within),
            ControlAction::End(_) => {
                self.end_worker(place);
                if !self.faulty() {
                    // Whoever stops when the faults are over comes back.
                    self.after(100_000_000, SimEvent::StartWorker(place));
                }
            }
            ControlAction::Note(notice) => self.note(|| format!("w{} {notice:?}", place + 1)),
        }
    }

    /// Something comes to its end before the time that is given for it.
    pub(super) fn ends_soon(&mut self, place: usize, within: Duration, end: ControlEvent) {
        let most = (within.as_millis() as u64).min(300);
        let delay = self.rng.millis(0, most);
        self.timer(place, delay, WorkerTimer::Ended(end));
    }

    fn wake(&mut self, place: usize, at: Timestamp) {
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place).filter(|process| process.wake_at == Some(at)) else { return };
        process.wake_at = None;
        process.conversation.let_time_pass(now);
        self.step(place, ControlEvent::Tick);
    }

    fn wake_later(&mut self, place: usize) {
        let Some(process) = self.process(place) else { return };
        let wake_at = process.control.wake_at().into_iter().chain(process.conversation.wake_at()).min();
        if std::mem::replace(&mut process.wake_at, wake_at) != wake_at
            && let Some(at) = wake_at
        {
            let world = self.places[place].clock.world(self.now, at);
            self.timer(place, world - self.now, WorkerTimer::Wake(at));
        }
    }

    fn connect(&mut self, place: usize, address: &str) {
        let Some(coordinator) = (0..self.coordinators.len()).find(|&coordinator| self::address(coordinator) == address)
        else {
            return;
        };
        let delay = self.delay();
        let Some(process) = self.process(place) else { return };
        process.attempts += 1;
        let attempt = process.attempts;
        self.timer(place, delay, WorkerTimer::Opened(attempt, coordinator));
    }

    fn opened(&mut self, place: usize, attempt: u64, coordinator: usize) {
        let Some(process) = self.process(place).filter(|process| process.attempts == attempt) else { return };
        let number = process.number;
        let (there, back) = (SimHost::Worker(place), SimHost::Coordinator(coordinator));
        let instance = self.coordinators[coordinator].process.as_ref().map(|process| process.instance);
        let reachable = self.reaches(there, back) && self.reaches(back, there);
        let Some(instance) = instance.filter(|_| reachable) else {
            return self.step(place, ControlEvent::ConnectFailed(String::new()));
        };
        let stream = self.open_stream(place, number, coordinator, instance);
        if self.faulty() && self.rng.chance(5) {
            // Stuck from its first byte: a later stream may well overtake it.
            let until = self.now + self.rng.millis(100, 6_000);
            self.streams[stream].up.stall(until);
        }
        if let Some(process) = self.process(place) {
            process.link = Some(WorkerLink { stream, coordinator, flush_due: false });
        }
        self.step(place, ControlEvent::Connected);
    }

    fn disconnect(&mut self, place: usize) {
        let Some(process) = self.process(place) else { return };
        process.attempts += 1;
        process.conversation.close();
        if let Some(link) = process.link.take() {
            self.note(|| format!("w{} leaves s{}", place + 1, link.stream));
            self.break_stream(link.stream, false);
        }
    }

    fn say_hello(&mut self, place: usize) {
        let host = &mut self.places[place];
        let now = host.clock.local(self.now);
        let Some(process) = &mut host.process else { return };
        let Some(link) = &process.link else { return };
        let (stream, coordinator) = (link.stream, link.coordinator);
        let (from, mut hello) = process.conversation.hello(now, &host.name, &host.profile, &host.secret);
        if !host.knows_modes {
            hello.knows_modes = false;
            hello.owned.iter_mut().for_each(|owned| owned.mode = Mode::default());
        }
        self.note(|| format!("{} hello on s{stream} ({}) to c{coordinator}", hello.worker, from.stream));
        self.send_up(stream, WorkerMessage::Message(from, ToCoordinator::Hello(Box::new(hello))));
        self.step(place, ControlEvent::HelloSent);
    }

    fn keep_alive(&mut self, place: usize, stream: usize) {
        let Some(link) = self.link(place, stream) else { return };
        let (here, there) = (SimHost::Worker(place), SimHost::Coordinator(link.coordinator));
        if self.streams[stream].broken || !self.reaches(here, there) || !self.reaches(there, here) {
            return self.step(place, ControlEvent::StreamEnded(StreamEnd::Again(Duration::ZERO)));
        }
        self.timer(place, KEEP_ALIVE, WorkerTimer::KeepAlive(stream));
    }

    pub(super) fn worker_broken(&mut self, stream: usize) {
        let (place, process) = (self.streams[stream].place, self.streams[stream].process);
        if self.places[place].is_running(process) && self.link(place, stream).is_some() {
            self.step(place, ControlEvent::StreamEnded(StreamEnd::Again(Duration::ZERO)));
            self.settle(place);
        }
    }

    /// Sends a message at once, if the stream is open.
    fn send(&mut self, place: usize, message: ToCoordinator) {
        let Some(process) = self.process(place) else { return };
        if let Some((from, link)) = process.conversation.envelope().zip(process.link.as_ref()) {
            let stream = link.stream;
            self.send_up(stream, WorkerMessage::Message(from, message));
        }
    }

    fn flush(&mut self, place: usize, stream: usize) {
        let Some(link) = self.link(place, stream) else { return };
        link.flush_due = false;
        while let Some((from, message)) = self.process(place).and_then(|process| process.conversation.next_message()) {
            self.send_up(stream, WorkerMessage::Message(from, message));
        }
    }

    fn flush_soon(&mut self, place: usize) {
        let Some(process) = self.process(place) else { return };
        if process.control.is_streaming()
            && process.conversation.is_waiting()
            && let Some(link) = process.link.as_mut().filter(|link| !link.flush_due)
        {
            link.flush_due = true;
            let stream = link.stream;
            let delay = self.rng.micros(10, 2_000);
            self.timer(place, delay, WorkerTimer::Flush(stream));
        }
    }
}

/// Under which address workers know a coordinator.
pub(super) fn address(coordinator: usize) -> String {
    format!("c{coordinator}")
}
