//! The world: its time, the queue of what will happen, and who takes which event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use common::driver::DriverName;
use common::{ApplianceId, Generation, ModeId, ProcessIdentity, RebalanceId, Term, Token, WorkerId};
use coordinator_core::machine;
use coordinator_core::membership::LeaseAuthority;
use coordinator_core::planner::{self, Spread, Strategy};

use super::backend::{BackendCall, Journal};
use super::coordinator::{self, CoordinatorHost};
use super::database::{self, SimDatabase};
use super::modes;
use super::net::SimStream;
use super::plan::{self, Case, Decision};
use super::rng::Rng;
use super::service::{self, ZooKeeper};
use super::worker::{WorkerHost, WorkerTimer};
use super::writer::WriteResult;
use super::{RunOutcome, SimTime};

/// Lines of log that are kept.
const LOG_LINES: usize = 1_000;

/// More events than any run needs; one that takes them runs in circles.
const MAX_STEPS: u64 = 600_000;

/// Everything that is kept for speed is compared with what it stands for once in so many steps.
const LOOK_AT_ALL: u64 = 512;

/// Something that happens.
#[derive(Debug)]
pub(super) enum SimEvent {
    /// A message of a stream arrives, unless it is stalled.
    Up(usize),
    Down(usize),
    /// The worker learns that its stream broke.
    Broken(usize),
    StartWorker(usize),
    StartCoordinator(usize),
    /// Something of the coordination service.
    Service(service::ServiceTask),
    /// Something a worker waits for.
    Timer {
        place: usize,
        process: u64,
        timer: WorkerTimer,
    },
    /// Something a coordinator waits for.
    Coordinator {
        coordinator: usize,
        instance: u64,
        timer: coordinator::CoordinatorTimer,
    },
    /// The leader hears what became of a write.
    News {
        coordinator: usize,
        reign: u64,
        news: Box<WriteResult>,
    },
    /// A coordinator's request reaches the database.
    Asked {
        coordinator: usize,
        instance: u64,
        ask: Box<database::DatabaseRequest>,
    },
    /// The database's answer reaches the coordinator.
    Answered {
        coordinator: usize,
        instance: u64,
        answer: Box<database::DatabaseReply>,
    },
    /// A call leaves its worker, takes effect.
    Starts(Box<BackendCall>),
    Lands(Box<BackendCall>),
    Decided(usize),
    /// A witness tells whoever leads that a worker's process has ended.
    Witnessed(ProcessIdentity),
    EndOfFaults,
    Settled {
        calm_since: Option<SimTime>,
    },
}

/// Who can be cut off from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SimHost {
    Worker(usize),
    Coordinator(usize),
    Database,
}

/// What differs between runs.
#[derive(Clone, Debug)]
pub(super) struct SimSettings {
    pub(super) machine: machine::Config,
    pub(super) max_appliances: usize,
    pub(super) faults_end: SimTime,
    /// How long `Hello` may stay without an answer, as in `worker::session::Config`.
    pub(super) connect_timeout: Duration,
    /// How long the database may take over a batch before its connection is given up.
    pub(super) store_timeout: Duration,
    /// Percent of messages that are much slower than others.
    pub(super) slow_messages: u64,
    /// Percent of batches that fail, take long, or whose answers are lost, while there are faults.
    pub(super) failing_commits: u64,
    pub(super) slow_commits: u64,
    pub(super) lost_answers: u64,
    /// Percent of drivers' calls that take effect late.
    pub(super) slow_calls: u64,
    /// Percent of offers that workers refuse.
    pub(super) unwilling: u64,
    /// How long calls of the driver that knows no tokens may take effect; `None` when it knows them.
    pub(super) fence_delay: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct SimWorld {
    pub(super) seed: u64,
    pub(super) settings: SimSettings,
    pub(super) now: SimTime,
    pub(super) rng: Rng,
    queue: BTreeMap<(SimTime, u64), SimEvent>,
    sequence: u64,
    pub(super) streams: Vec<SimStream>,
    /// Streams that are not over, or whose messages may still arrive.
    pub(super) open: BTreeSet<usize>,
    pub(super) places: Vec<WorkerHost>,
    pub(super) coordinators: Vec<CoordinatorHost>,
    /// Coordinator processes and terms of them that were begun, each with a number of its own.
    pub(super) instances: u64,
    pub(super) reigns: u64,
    pub(super) begun: BTreeSet<Term>,
    pub(super) database: SimDatabase,
    pub(super) service: ZooKeeper,
    cuts: Vec<SimTime>,
    pub(super) slow_backend_until: SimTime,
    pub(super) journals: BTreeMap<ApplianceId, Journal>,
    pub(super) calls: u64,
    /// Tokens that were sent to somebody.
    pub(super) offered: BTreeSet<Token>,
    /// Changes that were acknowledged to whoever asked for them.
    pub(super) acknowledged: BTreeMap<ApplianceId, Generation>,
    pub(super) created: u128,
    /// Rebalances that have not ended, and what they moved, as the history has it.
    pub(super) unfinished: BTreeMap<RebalanceId, BTreeSet<ApplianceId>>,
    /// Names under which strangers asked for a life of their own.
    pub(super) liars: BTreeSet<WorkerId>,
    pub(super) checks_asked: u64,
    /// Rules of debug modes that were set.
    pub(super) rules_set: u128,
    /// For what whoever set a rule was answered (I6).
    pub(super) answered: BTreeSet<(ModeId, ApplianceId)>,
    pub(super) decisions: Vec<Decision>,
    pub(super) steps: u64,
    pub(super) effects: u64,
    most_leaders: usize,
    digest: u64,
    failure: Option<String>,
    done: bool,
    log: Option<VecDeque<String>>,
}

fn settings(rng: &mut Rng) -> SimSettings {
    let strategy = if rng.chance(70) { Strategy::Bounded } else { Strategy::Ring };
    let machine = machine::Config {
        planner: planner::Config { strategy, ..planner::Config::default() },
        debounce: Duration::from_millis([0, 100, 500][rng.index(3)]),
        freeze_fraction: [0.5, 1.0][rng.index(2)],
        departure_grace: Duration::from_millis([0, 0, 5_000][rng.index(3)]),
        reconnect_grace: Duration::from_millis([300, 2_000, 5_000][rng.index(3)]),
        max_moves_in_flight: [1, 3, 512][rng.index(3)],
        max_moves_per_worker: [1, 2, 128][rng.index(3)],
        gap_target: Duration::from_millis([0, 10, 1_000][rng.index(3)]),
        decline_backoff: Duration::from_millis([500, 5_000][rng.index(2)]),
        authority: if rng.chance(30) { LeaseAuthority::Embedded } else { LeaseAuthority::External },
        unreachable_after: Duration::from_millis([1_000, 5_000, 60_000][rng.index(3)]),
        release_deadline: Duration::from_millis([1_000, 30_000][rng.index(2)]),
        ..machine::Config::default()
    };
    let max_appliances = 1 + rng.index(20);
    // Follows from what was drawn already: a draw of its own would make another run of every seed.
    let spread = if max_appliances.is_multiple_of(2) { Spread::Tenant } else { Spread::None };
    SimSettings {
        machine: machine::Config { planner: planner::Config { spread, ..machine.planner }, ..machine },
        max_appliances,
        faults_end: rng.millis(10_000, 35_000),
        connect_timeout: Duration::from_millis([300, 1_000, 5_000][rng.index(3)]),
        store_timeout: Duration::from_millis([200, 1_000, 3_000][rng.index(3)]),
        slow_messages: [0, 2, 20][rng.index(3)],
        failing_commits: [0, 3, 20][rng.index(3)],
        slow_commits: [0, 2, 20][rng.index(3)],
        lost_answers: [0, 2, 20][rng.index(3)],
        slow_calls: [0, 5, 30][rng.index(3)],
        unwilling: [0, 2, 30][rng.index(3)],
        // Longer than leases and sessions last, or shorter.
        fence_delay: [None, Some(2_000), Some(12_000)][rng.index(3)].map(|longest| rng.duration(200, longest)),
    }
}

impl SimWorld {
    pub(super) fn new(case: &Case, record: bool) -> Self {
        let mut rng = Rng::new(case.seed);
        let settings = settings(&mut rng);
        let decisions = case.decisions.clone().unwrap_or_else(|| plan::decide(case.seed, settings.faults_end));
        let coordinators = if settings.machine.authority == LeaseAuthority::Embedded { 1 } else { 2 + rng.index(2) };
        let mut places =
            (0..2 + rng.index(4)).map(|n| WorkerHost::new(n, &mut rng, settings.fence_delay)).collect::<Vec<_>>();
        if modes::are_left_at_end(case.seed) {
            // Where rules outlast the run every worker has to keep them.
            places.iter_mut().for_each(|place| place.knows_modes = true);
        }
        let coordinators = (0..coordinators).map(|_| CoordinatorHost::new(&mut rng)).collect::<Vec<_>>();
        let mut this = Self {
            seed: case.seed,
            settings,
            now: 1_000_000,
            rng,
            queue: BTreeMap::new(),
            sequence: 0,
            streams: Vec::new(),
            open: BTreeSet::new(),
            cuts: vec![0; (places.len() + coordinators.len() + 1) * (places.len() + coordinators.len() + 1)],
            places,
            coordinators,
            instances: 0,
            reigns: 0,
            begun: BTreeSet::new(),
            database: SimDatabase::default(),
            service: ZooKeeper::default(),
            slow_backend_until: 0,
            journals: BTreeMap::new(),
            calls: 0,
            offered: BTreeSet::new(),
            acknowledged: BTreeMap::new(),
            created: 0,
            unfinished: BTreeMap::new(),
            liars: BTreeSet::new(),
            checks_asked: 0,
            rules_set: 0,
            answered: BTreeSet::new(),
            decisions,
            steps: 0,
            effects: 0,
            most_leaders: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            failure: None,
            done: false,
            log: record.then(VecDeque::new),
        };
        this.begin();
        this
    }

    fn begin(&mut self) {
        if self.external() {
            self.begin_service();
        }
        for coordinator in 0..self.coordinators.len() {
            let delay = if coordinator == 0 { 0 } else { self.rng.millis(0, 1_500) };
            self.after(delay, SimEvent::StartCoordinator(coordinator));
        }
        for place in 0..self.places.len() {
            let delay = self.rng.millis(0, 1_500);
            self.after(delay, SimEvent::StartWorker(place));
        }
        for n in 0..self.decisions.len() {
            self.at(self.decisions[n].at, SimEvent::Decided(n));
        }
        self.at(self.settings.faults_end, SimEvent::EndOfFaults);
    }

    pub(super) fn run(mut self) -> RunOutcome {
        while self.failure.is_none() && !self.done {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                self.fail("I2: nothing will ever happen again");
                break;
            };
            self.now = at;
            // A paused node takes its events when it runs again, in the same order.
            if let Some(resumes) = self.paused_until(&event).filter(|until| *until > self.now) {
                self.at(resumes, event);
                continue;
            }
            self.steps += 1;
            self.digest = (self.digest ^ self.now ^ (self.sequence << 32)).wrapping_mul(0x0100_0000_01b3);
            if self.steps > MAX_STEPS {
                self.fail("I2: the world does not come to rest, with too many events");
                break;
            }
            self.take(event);
            if self.steps.is_multiple_of(LOOK_AT_ALL) {
                self.check_everything();
            }
        }
        let failed = self.failure.is_some() || self.log.is_some();
        RunOutcome {
            steps: self.steps,
            time: self.now,
            effects: self.effects,
            terms: self.begun.len() as u64,
            leaders: self.most_leaders,
            digest: self.digest,
            failure: self.failure,
            decisions: if failed { self.decisions } else { Vec::new() },
            log: self.log.unwrap_or_default().into(),
        }
    }

    fn take(&mut self, event: SimEvent) {
        match event {
            SimEvent::Up(stream) => self.arrive_up(stream),
            SimEvent::Down(stream) => self.arrive_down(stream),
            SimEvent::Broken(stream) => self.worker_broken(stream),
            SimEvent::StartWorker(place) => self.start_worker(place),
            SimEvent::StartCoordinator(coordinator) => self.start_coordinator(coordinator),
            SimEvent::Service(event) => self.service_event(event),
            SimEvent::Timer { place, process, timer } => {
                if self.places[place].is_running(process) {
                    self.worker_timer(place, timer);
                }
            }
            SimEvent::Coordinator { coordinator, instance, timer } => {
                if self.coordinators[coordinator].is_running(instance) {
                    self.coordinator_timer(coordinator, timer);
                }
            }
            SimEvent::News { coordinator, reign, news } => self.leader_news(coordinator, reign, *news),
            SimEvent::Asked { coordinator, instance, ask } => self.database_asked(coordinator, instance, *ask),
            SimEvent::Answered { coordinator, instance, answer } => {
                if self.coordinators[coordinator].is_running(instance) {
                    self.database_answered(coordinator, *answer);
                }
            }
            SimEvent::Starts(call) => self.call_starts(*call),
            SimEvent::Lands(call) => self.call_lands(*call),
            SimEvent::Decided(n) => self.carry_out_decision(n),
            SimEvent::Witnessed(process) => self.hear_witness(process),
            SimEvent::EndOfFaults => self.end_faults(),
            SimEvent::Settled { calm_since } => self.look_whether_settled(calm_since),
        }
    }

    fn paused_until(&self, event: &SimEvent) -> Option<SimTime> {
        let coordinator = |n: usize| self.coordinators[n].paused_until;
        let place = |n: usize| self.places[n].paused_until;
        match event {
            SimEvent::Up(stream) => Some(coordinator(self.streams[*stream].coordinator)),
            SimEvent::Coordinator { coordinator: n, .. }
            | SimEvent::News { coordinator: n, .. }
            | SimEvent::Answered { coordinator: n, .. } => Some(coordinator(*n)),
            SimEvent::Down(stream) | SimEvent::Broken(stream) => Some(place(self.streams[*stream].place)),
            SimEvent::Timer { place: n, .. } => Some(place(*n)),
            SimEvent::Service(event) => event.owner().map(|who| match who {
                service::Who::Worker(n) => place(n),
                service::Who::Coordinator(n) => coordinator(n),
            }),
            SimEvent::StartWorker(_)
            | SimEvent::StartCoordinator(_)
            | SimEvent::Asked { .. }
            | SimEvent::Starts(_)
            | SimEvent::Lands(_)
            | SimEvent::Decided(_)
            | SimEvent::Witnessed(_)
            | SimEvent::EndOfFaults
            | SimEvent::Settled { .. } => None,
        }
    }

    pub(super) fn at(&mut self, at: SimTime, event: SimEvent) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    pub(super) fn after(&mut self, delay: SimTime, event: SimEvent) {
        self.at(self.now + delay, event);
    }

    /// Lives are taken from the coordination service.
    pub(super) fn external(&self) -> bool {
        self.settings.machine.authority == LeaseAuthority::External
    }

    pub(super) fn faulty(&self) -> bool {
        self.now < self.settings.faults_end
    }

    pub(super) fn finish(&mut self) {
        self.done = true;
    }

    pub(super) fn count_leaders(&mut self) {
        let leaders = self.coordinators.iter().filter(|coordinator| coordinator.leader().is_some()).count();
        self.most_leaders = self.most_leaders.max(leaders);
    }

    /// Something does not hold. The first counts. What stands before ": " says of which sort it is.
    pub(super) fn fail(&mut self, what: impl Into<String>) {
        if self.failure.is_none() {
            let what = what.into();
            self.note(|| format!("FAILED: {what}"));
            self.failure = Some(what);
        }
    }

    /// Whether there is a log.
    pub(super) const fn is_recorded(&self) -> bool {
        self.log.is_some()
    }

    /// Adds to the log; the text is only made when there is one.
    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(format!("{:>9.6} {}", self.now as f64 / 1e9, text()));
        }
    }

    /// How long a message is under way.
    pub(super) fn delay(&mut self) -> SimTime {
        if self.faulty() && self.rng.chance(self.settings.slow_messages) {
            self.rng.millis(5, 900)
        } else {
            self.rng.micros(50, 2_000)
        }
    }

    fn pair(&self, from: SimHost, to: SimHost) -> usize {
        let number = |node| match node {
            SimHost::Worker(n) => n,
            SimHost::Coordinator(n) => self.places.len() + n,
            SimHost::Database => self.places.len() + self.coordinators.len(),
        };
        number(from) * (self.places.len() + self.coordinators.len() + 1) + number(to)
    }

    /// Nothing gets from one to the other before `until`.
    pub(super) fn cut(&mut self, from: SimHost, to: SimHost, until: SimTime) {
        let pair = self.pair(from, to);
        self.cuts[pair] = self.cuts[pair].max(until);
    }

    /// Until when nothing gets from one to the other; in the past when something does.
    pub(super) fn cut_until(&self, from: SimHost, to: SimHost) -> SimTime {
        self.cuts[self.pair(from, to)]
    }

    pub(super) fn reaches(&self, from: SimHost, to: SimHost) -> bool {
        self.cut_until(from, to) <= self.now
    }

    pub(super) fn heal(&mut self) {
        self.cuts.fill(0);
    }

    pub(super) fn any_driver(rng: &mut Rng) -> DriverName {
        if rng.chance(40) { DriverName::process() } else { DriverName::simulated() }
    }
}
