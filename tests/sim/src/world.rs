//! The world: its time, the queue of what will happen, and who takes which event.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use common::appliance::Driver;
use common::{ApplianceId, Token};
use coordinator_core::grants::GrantOp;
use coordinator_core::machine;
use coordinator_core::membership::{Authority, Life};
use coordinator_core::planner::{self, Strategy};

use super::clock::Clock;
use super::leader::{Leader, News};
use super::net::{Lane, Stream, Up};
use super::rng::Rng;
use super::service::{Answer, Ask, Service};
use super::store::{Store, Write};
use super::worker::{Place, Timer};
use super::{Mutant, Outcome, Time};

/// Lines of log that are kept.
const LOG_LINES: usize = 400;

/// More events than any run needs; one that takes them runs in circles.
const MAX_STEPS: u64 = 600_000;

/// Something that happens.
#[derive(Clone, Debug)]
pub(super) enum Ev {
    /// A message of a stream arrives, unless it is stalled.
    Up(usize),
    Down(usize),
    /// The worker learns that its stream broke.
    Broken(usize),
    /// The leader looks at the time; only the newest of these counts.
    Tick {
        instance: u64,
        number: u64,
    },
    /// The oldest write reaches the disk.
    Commit,
    /// The leader hears what became of a write.
    News {
        instance: u64,
        news: News,
    },
    StartLeader,
    StartWorker(usize),
    /// A worker's call reaches the coordination service.
    Asked {
        place: usize,
        process: u64,
        ask: Ask,
    },
    /// The service's answer reaches the worker.
    Answered {
        place: usize,
        process: u64,
        answer: Answer,
    },
    /// The service looks whether a session is over.
    Expiry(Life),
    /// The leader's wish to evict reaches the service.
    Evict(Life),
    /// The leader's connection to the service stands again.
    FeedBegins(u64),
    /// A change reaches the leader.
    Fed(u64),
    Timer {
        place: usize,
        process: u64,
        timer: Timer,
    },
    Fault,
    Load,
    EndOfFaults,
    Settled {
        calm_since: Option<Time>,
    },
}

/// What happened to one appliance, as the appliance itself saw it.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    /// Highest token it was touched with.
    pub(super) token: Token,
    /// Instances may exist.
    pub(super) exists: bool,
    /// A grant that bound it to a host was durable, so that somebody may have taken it there.
    pub(super) may_be_bound: bool,
    /// Somebody took it on a host that it is bound to.
    pub(super) is_bound: bool,
    /// Its rows are gone.
    pub(super) removed: bool,
}

/// What differs between runs.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) machine: machine::Config,
    pub(super) max_appliances: u64,
    pub(super) faults_end: Time,
    /// How long `Hello` may stay without an answer, as in `worker::session::Config`.
    pub(super) connect_timeout: Duration,
    /// Longest time between two faults, in milliseconds.
    pub(super) calm_ms: u64,
    /// Percent of messages that are much slower than others.
    pub(super) slow_messages: u64,
    /// Percent of commits that fail while there are faults.
    pub(super) failing_commits: u64,
    pub(super) slow_commits: u64,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) mutant: Option<Mutant>,
    pub(super) settings: Settings,
    pub(super) now: Time,
    pub(super) rng: Rng,
    queue: BTreeMap<(Time, u64), Ev>,
    sequence: u64,
    pub(super) streams: Vec<Stream>,
    pub(super) places: Vec<Place>,
    pub(super) leader: Option<Leader>,
    pub(super) leader_clock: Clock,
    pub(super) leader_paused_until: Time,
    pub(super) instances: u64,
    pub(super) store: Store,
    pub(super) service: Service,
    pub(super) store_refuses_until: Time,
    pub(super) commit_scheduled: bool,
    pub(super) last_news: Time,
    pub(super) journals: BTreeMap<ApplianceId, Journal>,
    pub(super) created: u128,
    pub(super) checks_asked: u64,
    pub(super) steps: u64,
    pub(super) effects: u64,
    digest: u64,
    pub(super) failure: Option<String>,
    done: bool,
    log: Option<VecDeque<String>>,
}

impl World {
    pub(super) fn new(seed: u64, mutant: Option<Mutant>, record: bool) -> Self {
        let mut rng = Rng::new(seed);
        let strategy = if rng.chance(70) { Strategy::Bounded } else { Strategy::Ring };
        let machine = machine::Config {
            planner: planner::Config { strategy, ..planner::Config::default() },
            debounce_ms: [0, 100, 500][rng.index(3)],
            freeze_fraction: [0.5, 1.0][rng.index(2)],
            departure_grace_ms: [0, 0, 5_000][rng.index(3)],
            reconnect_grace_ms: [300, 2_000, 5_000][rng.index(3)],
            max_moves_in_flight: [1, 3, 512][rng.index(3)],
            max_moves_per_worker: [1, 2, 128][rng.index(3)],
            decline_backoff_ms: [500, 5_000][rng.index(2)],
            authority: if rng.chance(50) { Authority::Embedded } else { Authority::External },
            unreachable_after_ms: [1_000, 5_000, 60_000][rng.index(3)],
            release_deadline_ms: [1_000, 30_000][rng.index(2)],
            ..machine::Config::default()
        };
        let settings = Settings {
            machine,
            max_appliances: 1 + rng.below(20),
            faults_end: rng.millis(5_000, 25_000),
            connect_timeout: Duration::from_millis([300, 1_000, 5_000][rng.index(3)]),
            calm_ms: [200, 1_000, 3_000, 6_000][rng.index(4)],
            slow_messages: [0, 2, 20][rng.index(3)],
            failing_commits: [0, 3, 20][rng.index(3)],
            slow_commits: [0, 2, 20][rng.index(3)],
        };
        let leader_clock = Clock::new(&mut rng);
        let count = 2 + rng.index(4);
        let places = (0..count).map(|n| Place::new(n, &mut rng)).collect();
        let mut this = Self {
            seed,
            mutant,
            settings,
            now: 1_000_000,
            rng,
            queue: BTreeMap::new(),
            sequence: 0,
            streams: Vec::new(),
            places,
            leader: None,
            leader_clock,
            leader_paused_until: 0,
            instances: 0,
            store: Store::default(),
            service: Service::default(),
            store_refuses_until: 0,
            commit_scheduled: false,
            last_news: 0,
            journals: BTreeMap::new(),
            created: 0,
            checks_asked: 0,
            steps: 0,
            effects: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            failure: None,
            done: false,
            log: record.then(VecDeque::new),
        };
        this.after(0, Ev::StartLeader);
        for n in 0..count {
            let delay = this.rng.millis(0, 1_500);
            this.after(delay, Ev::StartWorker(n));
        }
        this.after(1_000_000, Ev::Load);
        let first = this.rng.millis(500, 3_000);
        this.after(first, Ev::Fault);
        this.at(this.settings.faults_end, Ev::EndOfFaults);
        this
    }

    pub(super) fn run(mut self) -> Outcome {
        while self.failure.is_none() && !self.done {
            let Some(((at, _), event)) = self.queue.pop_first() else {
                self.fail("nothing will ever happen again");
                break;
            };
            self.now = at;
            self.steps += 1;
            if self.steps > MAX_STEPS {
                self.fail("the world does not come to rest: too many events");
                break;
            }
            self.take(event);
        }
        Outcome {
            seed: self.seed,
            steps: self.steps,
            time: self.now,
            effects: self.effects,
            digest: self.digest,
            failure: self.failure,
            log: self.log.unwrap_or_default().into(),
        }
    }

    fn take(&mut self, event: Ev) {
        // A paused node takes its events when it runs again, in the same order.
        if let Some(resumes) = self.paused_until(&event).filter(|until| *until > self.now) {
            self.at(resumes, event);
            return;
        }
        match event {
            Ev::Up(stream) => self.arrive_up(stream),
            Ev::Down(stream) => self.arrive_down(stream),
            Ev::Broken(stream) => self.worker_broken(stream),
            Ev::Tick { instance, number } => self.leader_tick(instance, number),
            Ev::Commit => self.commit(),
            Ev::News { instance, news } => self.leader_news(instance, news),
            Ev::StartLeader => self.start_leader(),
            Ev::StartWorker(place) => self.start_worker(place),
            Ev::Asked { place, process, ask } => self.service_asked(place, process, &ask),
            Ev::Answered { place, process, answer } => {
                if self.places[place].is_running(process) {
                    self.worker_answered(place, &answer);
                }
            }
            Ev::Expiry(life) => self.expiry(&life),
            Ev::Evict(life) => self.service_evicts(&life),
            Ev::FeedBegins(instance) => self.feed_begins(instance),
            Ev::Fed(instance) => self.fed(instance),
            Ev::Timer { place, process, timer } => {
                if self.places[place].is_running(process) {
                    self.worker_timer(place, timer);
                }
            }
            Ev::Fault => self.fault(),
            Ev::Load => self.load(),
            Ev::EndOfFaults => self.end_faults(),
            Ev::Settled { calm_since } => self.look_whether_settled(calm_since),
        }
    }

    fn paused_until(&self, event: &Ev) -> Option<Time> {
        match event {
            Ev::Up(_) | Ev::Tick { .. } | Ev::News { .. } | Ev::Fed(_) => Some(self.leader_paused_until),
            Ev::Down(stream) | Ev::Broken(stream) => Some(self.places[self.streams[*stream].place].paused_until),
            Ev::Timer { place, .. } | Ev::Answered { place, .. } => Some(self.places[*place].paused_until),
            Ev::Commit
            | Ev::Asked { .. }
            | Ev::Expiry(_)
            | Ev::Evict(_)
            | Ev::FeedBegins(_)
            | Ev::StartLeader
            | Ev::StartWorker(_)
            | Ev::Fault
            | Ev::Load
            | Ev::EndOfFaults
            | Ev::Settled { .. } => None,
        }
    }

    pub(super) fn at(&mut self, at: Time, event: Ev) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), event);
    }

    pub(super) fn after(&mut self, delay: Time, event: Ev) {
        self.at(self.now + delay, event);
    }

    /// Lives are taken from the coordination service.
    pub(super) fn external(&self) -> bool {
        self.settings.machine.authority == Authority::External
    }

    pub(super) fn faulty(&self) -> bool {
        self.now < self.settings.faults_end
    }

    pub(super) fn finish(&mut self) {
        self.done = true;
    }

    /// Something does not hold. The first counts.
    pub(super) fn fail(&mut self, what: impl Into<String>) {
        if self.failure.is_none() {
            let what = what.into();
            self.note(|| format!("FAILED: {what}"));
            self.failure = Some(what);
        }
    }

    /// Adds to the log; the text is only made when there is one.
    pub(super) fn note(&mut self, text: impl FnOnce() -> String) {
        self.digest = (self.digest ^ self.now ^ (self.rng_state() << 1)).wrapping_mul(0x0100_0000_01b3);
        if let Some(log) = &mut self.log {
            if log.len() == LOG_LINES {
                log.pop_front();
            }
            log.push_back(format!("{:>9.6} {}", self.now as f64 / 1e9, text()));
        }
    }

    fn rng_state(&self) -> u64 {
        self.rng.clone().draw()
    }

    /// How long a message is under way.
    pub(super) fn delay(&mut self) -> Time {
        if self.faulty() && self.rng.chance(self.settings.slow_messages) {
            self.rng.millis(5, 900)
        } else {
            self.rng.micros(50, 2_000)
        }
    }

    pub(super) fn open_stream(&mut self, place: usize, process: u64, instance: u64) -> usize {
        self.streams.push(Stream {
            place,
            process,
            instance,
            up: Lane::default(),
            down: Lane::default(),
            broken: false,
        });
        self.streams.len() - 1
    }

    pub(super) fn send_up(&mut self, stream: usize, message: Up) {
        let at = self.now + self.delay();
        let s = &mut self.streams[stream];
        if !s.broken {
            let at = s.up.push(at, message);
            self.at(at, Ev::Up(stream));
        }
    }

    fn arrive_up(&mut self, stream: usize) {
        match self.streams[stream].up.pop(self.now) {
            Ok(message) => self.leader_receives(stream, message),
            Err(Some(later)) => self.at(later, Ev::Up(stream)),
            Err(None) => {}
        }
    }

    fn arrive_down(&mut self, stream: usize) {
        match self.streams[stream].down.pop(self.now) {
            Ok((from, message)) => self.worker_receives(stream, from, message),
            Err(Some(later)) => self.at(later, Ev::Down(stream)),
            Err(None) => {}
        }
    }

    /// Ends a stream: what is under way in each direction is lost from some point on, or arrives late, or as if nothing
    /// had happened. The leader learns of the end after everything else.
    pub(super) fn break_stream(&mut self, stream: usize, tell_worker: bool) {
        if self.streams[stream].broken {
            return;
        }
        self.streams[stream].broken = true;
        let late = [self.lateness(), self.lateness()];
        let lost = [self.rng.chance(40), self.rng.chance(40)];
        let (now, rng, s) = (self.now, &mut self.rng, &mut self.streams[stream]);
        s.up.stall(now + late[0]);
        s.down.stall(now + late[1]);
        if lost[0] {
            s.up.lose_tail(rng);
        }
        if lost[1] {
            s.down.lose_tail(rng);
        }
        let at = s.up.push(now + late[0], Up::End);
        self.at(at, Ev::Up(stream));
        if tell_worker {
            let delay = self.rng.millis(0, 400);
            self.after(delay, Ev::Broken(stream));
        }
    }

    pub(super) fn lateness(&mut self) -> Time {
        if self.faulty() && self.rng.chance(30) { self.rng.millis(10, 5_000) } else { self.rng.micros(10, 500) }
    }

    pub(super) fn submit(&mut self, write: Write) {
        let term = self.store.term;
        self.store.pending.push_back((term, write));
        if !self.commit_scheduled {
            self.schedule_commit();
        }
    }

    fn schedule_commit(&mut self) {
        self.commit_scheduled = true;
        let slow = self.faulty() && self.rng.chance(self.settings.slow_commits);
        let takes = if slow { self.rng.millis(20, 1_500) } else { self.rng.micros(100, 4_000) };
        self.after(takes, Ev::Commit);
    }

    fn commit(&mut self) {
        self.commit_scheduled = false;
        let Some((term, write)) = self.store.pending.pop_front() else { return };
        let refused =
            self.now < self.store_refuses_until || (self.faulty() && self.rng.chance(self.settings.failing_commits));
        self.answer(&write, !refused);
        if refused {
            self.note(|| format!("store refuses {write:?}"));
            // The database takes nothing: those that wait behind fail with it.
            if self.rng.chance(50) {
                for (_, write) in std::mem::take(&mut self.store.pending) {
                    self.answer(&write, false);
                }
            }
        } else {
            self.make_durable(term, &write);
        }
        if !self.store.pending.is_empty() {
            self.schedule_commit();
        }
    }

    fn answer(&mut self, write: &Write, durable: bool) {
        let news = match write {
            Write::Batch(batch, _) => News::Batch(*batch, durable),
            Write::Put(record) => News::Put(record.clone(), durable),
        };
        self.last_news = (self.now + self.rng.micros(20, 2_000)).max(self.last_news);
        let instance = self.instances;
        self.at(self.last_news, Ev::News { instance, news });
    }

    pub(super) fn make_durable(&mut self, term: common::Term, write: &Write) {
        self.note(|| format!("store has {write:?}"));
        if let Write::Batch(_, commit) = write {
            for op in &commit.grants {
                if let GrantOp::Grant { appliance, host: Some(_), .. } = op {
                    self.journals.entry(*appliance).or_default().may_be_bound = true;
                }
            }
        }
        let forgets = self.mutant == Some(Mutant::ForgetfulStore);
        let rng = &mut self.rng;
        match self.store.apply(term, write, || forgets && rng.chance(20)) {
            Ok(removed) => removed.into_iter().for_each(|id| self.removed(id)),
            Err(broken) => self.fail(broken),
        }
    }

    fn removed(&mut self, id: ApplianceId) {
        let journal = self.journals.entry(id).or_default();
        journal.removed = true;
        if journal.exists {
            self.fail(format!("{id} is removed from the store while its instances may exist"));
        }
    }

    pub(super) fn any_driver(rng: &mut Rng) -> Driver {
        if rng.chance(50) { Driver::Process } else { Driver::Simulated }
    }
}
