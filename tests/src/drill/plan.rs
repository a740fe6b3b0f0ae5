//! What the nemesis will do: storms of overlapping faults with calms between them, all from one seed.
//!
//! Pure: the same seed and shape give the same storms. Two faults that are in force at the same time never share what
//! they break (a process, a link, a forwarder), so that each can be undone by itself; and at most one of them breaks
//! ZooKeeper servers or what is between those, so that a majority is left, except where all of it is broken on purpose.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Workers, from 1.
    pub workers: u16,
    /// Coordinators, from 1.
    pub coordinators: u16,
    /// ZooKeeper servers, from 1.
    pub zookeepers: u16,
}

/// A part of the cluster. Who leads is found out when the fault begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultTarget {
    /// A worker.
    Worker(u16),
    /// A coordinator.
    Coordinator(u16),
    /// The coordinator that leads.
    Leader,
    /// A ZooKeeper server.
    ZooKeeper(u16),
    /// The ZooKeeper server that leads.
    ZooKeeperLeader,
    /// All ZooKeeper servers.
    EveryZooKeeper,
    /// The database; as a place, its host, where the clients are as well.
    Database,
}

/// A forwarder that can delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedLink {
    /// What goes to one coordinator, from workers and other coordinators.
    ToCoordinator(u16),
    /// What goes from one coordinator to the database.
    ToDatabase(u16),
    /// What goes to one ZooKeeper server from its clients.
    ToZooKeeper(u16),
}

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrillFault {
    /// `kill -9`; started again afterwards.
    Kill(FaultTarget),
    /// SIGSTOP; SIGCONT afterwards.
    Pause(FaultTarget),
    /// SIGTERM; started again afterwards.
    Stop(FaultTarget),
    /// Packets from one to the other vanish.
    CutOneWay(FaultTarget, FaultTarget),
    /// Packets between the two vanish.
    Cut(FaultTarget, FaultTarget),
    /// All packets to and from it vanish.
    Isolate(FaultTarget),
    /// Everything on this way comes later, by so many milliseconds in each direction.
    Delay(ForwardedLink, u64),
    /// `kill -9` of a running instance: gives its owner, and whoever takes itself for it, a reason to act.
    KillInstance,
}

/// A fault with its place in a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When it begins, since the storm did.
    pub after: Duration,
    /// How long it is in force.
    pub lasts: Duration,
    /// What goes wrong.
    pub fault: DrillFault,
}

impl Planned {
    fn overlaps(&self, other: &Self) -> bool {
        self.after <= other.after + other.lasts + MARGIN && other.after <= self.after + self.lasts + MARGIN
    }
}

/// Faults that may overlap, then a calm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storm {
    /// In the order of their beginnings.
    pub faults: Vec<Planned>,
    /// How long nothing new goes wrong once all of them are over.
    pub calm: Duration,
    /// Whether the calm lasts until everything has recovered, which is asserted.
    pub recovers: bool,
}

/// What is broken stays exclusive for so long after it was mended.
const MARGIN: Duration = Duration::from_millis(500);
/// One in so many storms is followed by a recovery.
const RECOVERY_EVERY: usize = 3;
/// How often a fault that meets another one is drawn again before the storm has one fewer.
const DRAWS: usize = 12;

/// Storms without end.
#[derive(Debug)]
pub struct Storms {
    rng: StdRng,
    shape: Shape,
    count: usize,
}

impl Storms {
    /// The storms of this seed.
    #[must_use]
    pub fn new(seed: u64, shape: Shape) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), shape, count: 0 }
    }

    fn draw(&mut self, window: Duration) -> Planned {
        let fault = self.fault();
        let lasts = match fault {
            DrillFault::KillInstance => 0.0..=0.0,
            DrillFault::Kill(FaultTarget::EveryZooKeeper) | DrillFault::Pause(FaultTarget::EveryZooKeeper) => 1.0..=8.0,
            DrillFault::Kill(_) => 0.2..=9.0,
            // From a hiccup to beyond any lease and session.
            DrillFault::Pause(_) if self.rng.random_bool(0.5) => 0.05..=2.0,
            DrillFault::Pause(_) => 2.0..=10.0,
            DrillFault::Stop(_) => 1.0..=12.0,
            DrillFault::Cut(..) | DrillFault::CutOneWay(..) | DrillFault::Isolate(_) => 0.3..=14.0,
            DrillFault::Delay(..) => 2.0..=12.0,
        };
        let lasts = Duration::from_secs_f64(self.rng.random_range(lasts));
        Planned { after: window.mul_f64(self.rng.random_range(0.0..1.0)), lasts, fault }
    }

    fn fault(&mut self) -> DrillFault {
        match self.rng.random_range(0..100) {
            0..20 => DrillFault::Kill(self.victim()),
            20..40 => DrillFault::Pause(self.victim()),
            40..47 => DrillFault::Stop(if self.rng.random_bool(0.6) { self.worker() } else { self.coordinator() }),
            47..63 => {
                let (one, other) = self.neighbours();
                DrillFault::Cut(one, other)
            }
            63..77 => {
                let (one, other) = self.neighbours();
                if self.rng.random_bool(0.5) {
                    DrillFault::CutOneWay(one, other)
                } else {
                    DrillFault::CutOneWay(other, one)
                }
            }
            77..86 => {
                let place = match self.rng.random_range(0..4) {
                    0 => self.zookeeper(),
                    1 => self.coordinator(),
                    _ => self.worker(),
                };
                DrillFault::Isolate(place)
            }
            _ => {
                let link = match self.rng.random_range(0..3) {
                    0 => ForwardedLink::ToCoordinator(self.rng.random_range(1..=self.shape.coordinators)),
                    1 => ForwardedLink::ToDatabase(self.rng.random_range(1..=self.shape.coordinators)),
                    _ => ForwardedLink::ToZooKeeper(self.rng.random_range(1..=self.shape.zookeepers)),
                };
                DrillFault::Delay(link, self.rng.random_range(20..=900))
            }
        }
    }

    /// A process that is killed or paused.
    fn victim(&mut self) -> FaultTarget {
        match self.rng.random_range(0..100) {
            0..45 => self.worker(),
            45..70 => self.coordinator(),
            70..90 => self.zookeeper(),
            90..94 => FaultTarget::EveryZooKeeper,
            _ => FaultTarget::Database,
        }
    }

    fn worker(&mut self) -> FaultTarget {
        FaultTarget::Worker(self.rng.random_range(1..=self.shape.workers))
    }

    /// Half of the time whichever leads, about whom there is most to break.
    fn coordinator(&mut self) -> FaultTarget {
        if self.rng.random_bool(0.5) {
            FaultTarget::Leader
        } else {
            FaultTarget::Coordinator(self.rng.random_range(1..=self.shape.coordinators))
        }
    }

    fn zookeeper(&mut self) -> FaultTarget {
        if self.rng.random_bool(0.4) {
            FaultTarget::ZooKeeperLeader
        } else {
            FaultTarget::ZooKeeper(self.rng.random_range(1..=self.shape.zookeepers))
        }
    }

    /// Two that speak to each other.
    fn neighbours(&mut self) -> (FaultTarget, FaultTarget) {
        match self.rng.random_range(0..100) {
            0..30 => (self.worker(), self.coordinator()),
            30..58 => (self.worker(), self.zookeeper()),
            58..73 => (self.coordinator(), self.zookeeper()),
            73..85 => (self.coordinator(), FaultTarget::Database),
            85..90 if self.shape.coordinators > 1 => {
                let one = self.rng.random_range(1..=self.shape.coordinators);
                (FaultTarget::Coordinator(one), FaultTarget::Coordinator(one % self.shape.coordinators + 1))
            }
            _ => {
                let one = self.rng.random_range(1..=self.shape.zookeepers);
                (FaultTarget::ZooKeeper(one), FaultTarget::ZooKeeper(one % self.shape.zookeepers + 1))
            }
        }
    }
}

impl Iterator for Storms {
    type Item = Storm;

    fn next(&mut self) -> Option<Storm> {
        self.count += 1;
        let window = Duration::from_secs_f64(self.rng.random_range(3.0..10.0));
        let wanted = [1, 2, 3, 3, 4, 5][self.rng.random_range(0..6)];
        let mut faults: Vec<Planned> = Vec::new();
        for _ in 0..wanted {
            for _ in 0..DRAWS {
                let planned = self.draw(window);
                let meets = |other: &Planned| {
                    planned.overlaps(other)
                        && share(&breaks(planned.fault, self.shape), &breaks(other.fault, self.shape))
                };
                if !faults.iter().any(meets) {
                    faults.push(planned);
                    break;
                }
            }
        }
        let end = faults.iter().map(|f| f.after + f.lasts).max().unwrap_or(window);
        for _ in 0..self.rng.random_range(2..8) {
            let after = end.mul_f64(self.rng.random_range(0.0..1.0));
            faults.push(Planned { after, lasts: Duration::ZERO, fault: DrillFault::KillInstance });
        }
        faults.sort_by_key(|planned| planned.after);
        let recovers = self.count.is_multiple_of(RECOVERY_EVERY);
        Some(Storm { faults, calm: Duration::from_secs_f64(self.rng.random_range(0.3..4.0)), recovers })
    }
}

/// What a fault needs for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BrokenPart {
    Process(FaultTarget),
    Link(FaultTarget, FaultTarget),
    Forwarder(ForwardedLink),
    /// ZooKeeper's majority: whatever could cost it.
    Quorum,
}

fn share(some: &[BrokenPart], others: &[BrokenPart]) -> bool {
    some.iter().any(|one| others.contains(one))
}

/// What a fault needs for itself; a leader stands for everybody who may lead.
fn breaks(fault: DrillFault, shape: Shape) -> Vec<BrokenPart> {
    match fault {
        DrillFault::Kill(part) | DrillFault::Pause(part) | DrillFault::Stop(part) => {
            let mut broken: Vec<BrokenPart> = candidates(part, shape).into_iter().map(BrokenPart::Process).collect();
            broken.extend(is_zookeeper(part).then_some(BrokenPart::Quorum));
            broken
        }
        DrillFault::Cut(one, other) | DrillFault::CutOneWay(one, other) => {
            let mut broken = Vec::new();
            for a in candidates(one, shape) {
                broken.extend(candidates(other, shape).into_iter().map(|b| link(a, b)));
            }
            broken.extend((is_zookeeper(one) && is_zookeeper(other)).then_some(BrokenPart::Quorum));
            broken
        }
        DrillFault::Isolate(part) => {
            let mut broken = Vec::new();
            for a in candidates(part, shape) {
                broken.extend(everybody(shape).into_iter().filter(|b| *b != a).map(|b| link(a, b)));
            }
            broken.extend(is_zookeeper(part).then_some(BrokenPart::Quorum));
            broken
        }
        DrillFault::Delay(link, _) => vec![BrokenPart::Forwarder(link)],
        DrillFault::KillInstance => Vec::new(),
    }
}

fn link(one: FaultTarget, other: FaultTarget) -> BrokenPart {
    let order = |part: FaultTarget| match part {
        FaultTarget::Worker(n) => (0, n),
        FaultTarget::Coordinator(n) => (1, n),
        FaultTarget::ZooKeeper(n) => (2, n),
        FaultTarget::Leader | FaultTarget::ZooKeeperLeader | FaultTarget::EveryZooKeeper | FaultTarget::Database => {
            (3, 0)
        }
    };
    if order(one) <= order(other) { BrokenPart::Link(one, other) } else { BrokenPart::Link(other, one) }
}

/// Whom a part may turn out to be.
fn candidates(part: FaultTarget, shape: Shape) -> Vec<FaultTarget> {
    match part {
        FaultTarget::Leader => (1..=shape.coordinators).map(FaultTarget::Coordinator).collect(),
        FaultTarget::ZooKeeperLeader | FaultTarget::EveryZooKeeper => {
            (1..=shape.zookeepers).map(FaultTarget::ZooKeeper).collect()
        }
        known => vec![known],
    }
}

/// Every host.
#[must_use]
pub fn everybody(shape: Shape) -> Vec<FaultTarget> {
    let workers = (1..=shape.workers).map(FaultTarget::Worker);
    let coordinators = (1..=shape.coordinators).map(FaultTarget::Coordinator);
    let zookeepers = (1..=shape.zookeepers).map(FaultTarget::ZooKeeper);
    workers.chain(coordinators).chain(zookeepers).chain([FaultTarget::Database]).collect()
}

const fn is_zookeeper(part: FaultTarget) -> bool {
    matches!(part, FaultTarget::ZooKeeper(_) | FaultTarget::ZooKeeperLeader | FaultTarget::EveryZooKeeper)
}

impl fmt::Display for FaultTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(n) => write!(f, "w{n}"),
            Self::Coordinator(n) => write!(f, "c{n}"),
            Self::Leader => f.write_str("the leader"),
            Self::ZooKeeper(n) => write!(f, "zk{n}"),
            Self::ZooKeeperLeader => f.write_str("ZooKeeper's leader"),
            Self::EveryZooKeeper => f.write_str("all of ZooKeeper"),
            Self::Database => f.write_str("the database"),
        }
    }
}

impl fmt::Display for ForwardedLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ToCoordinator(n) => write!(f, "to c{n}"),
            Self::ToDatabase(n) => write!(f, "from c{n} to the database"),
            Self::ToZooKeeper(n) => write!(f, "to zk{n}"),
        }
    }
}

impl DrillFault {
    /// What kind of fault of what, as reports count them.
    #[must_use]
    pub fn kind(&self) -> String {
        let what = |part: &FaultTarget| match part {
            FaultTarget::Worker(_) => "worker",
            FaultTarget::Coordinator(_) => "coordinator",
            FaultTarget::Leader => "leader",
            FaultTarget::ZooKeeper(_) | FaultTarget::ZooKeeperLeader => "ZooKeeper server",
            FaultTarget::EveryZooKeeper => "all of ZooKeeper",
            FaultTarget::Database => "database",
        };
        match self {
            Self::Kill(part) => format!("kill {}", what(part)),
            Self::Pause(part) => format!("pause {}", what(part)),
            Self::Stop(part) => format!("stop {}", what(part)),
            Self::Cut(one, other) => format!("cut {} - {}", what(one), what(other)),
            Self::CutOneWay(from, to) => format!("cut {} > {}", what(from), what(to)),
            Self::Isolate(part) => format!("isolate {}", what(part)),
            Self::Delay(ForwardedLink::ToCoordinator(_), _) => "delay to coordinator".to_owned(),
            Self::Delay(ForwardedLink::ToDatabase(_), _) => "delay to database".to_owned(),
            Self::Delay(ForwardedLink::ToZooKeeper(_), _) => "delay to ZooKeeper server".to_owned(),
            Self::KillInstance => "kill instance".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { workers: 4, coordinators: 3, zookeepers: 3 };

    #[test]
    fn a_seed_gives_the_same_storms_again_and_another_one_others() {
        let storms = |seed| Storms::new(seed, SHAPE).take(20).collect::<Vec<_>>();
        assert_eq!(storms(7), storms(7));
        assert_ne!(storms(7), storms(8));
    }

    #[test]
    fn faults_in_force_at_the_same_time_share_nothing_and_leave_a_majority() {
        for storm in Storms::new(1, SHAPE).take(2_000) {
            for (i, one) in storm.faults.iter().enumerate() {
                for other in &storm.faults[i + 1..] {
                    let both = share(&breaks(one.fault, SHAPE), &breaks(other.fault, SHAPE));
                    assert!(!(both && one.overlaps(other)), "{one:?} and {other:?}");
                }
            }
        }
    }

    #[test]
    fn every_kind_of_fault_comes_and_some_overlap() {
        let (mut kinds, mut together) = (std::collections::BTreeSet::new(), 0);
        for storm in Storms::new(3, SHAPE).take(400) {
            let lasting: Vec<_> = storm.faults.iter().filter(|f| !f.lasts.is_zero()).collect();
            together += lasting.windows(2).filter(|pair| pair[1].after < pair[0].after + pair[0].lasts).count();
            kinds.extend(storm.faults.iter().map(|planned| planned.fault.kind()));
        }
        assert!(together > 100, "{together}");
        for kind in ["kill worker", "pause leader", "stop worker", "kill all of ZooKeeper", "kill database"] {
            assert!(kinds.contains(kind), "{kind} is not in {kinds:?}");
        }
        assert!(kinds.len() > 35, "{kinds:?}");
    }
}
