//! How many of what there is, and what may go wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use common::appliance::Name;
use common::canon::NEVER;
use common::driver::{DriverCapabilities, DriverName};
use common::kind::KindName;
use common::mode::{ModeRule, ModeScope};
use common::mutant::Mutant;
use common::secret::LifeSecret;
use common::{ApplianceId, Edition, Generation, ModeId, ModeSubject, Profile, Term, Timestamp, WorkerId};
use coordinator_core::machine;
use coordinator_core::membership::{LeaseAuthority, lease_wait};
use coordinator_core::planner::{self, Needs};
use coordinator_core::table::Seed;

/// Lease of every worker, by its own clock.
pub(crate) const LEASE: Duration = Duration::from_millis(1_000);

/// The same by a leader's clock at most: the worker's is 5 % slow, the leader's 5 % fast.
pub(crate) const LEASE_SEEN: Duration = Duration::from_millis(1_106);

/// How long a call without token may go on to take effect. Waited out with the slack of the gate, that is two waits for a
/// lease.
pub(crate) const FENCE_DELAY: Duration = Duration::from_millis(2_000);

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A worker is killed. Its session ends some time after.
    Crash,
    /// The session of a worker that lives ends.
    LeaseEnd,
    /// Somebody deletes the member node of a worker.
    NodeDeleted,
    /// A stream breaks; what was on it may still arrive, on either side.
    Break,
    /// A worker is cut off from the service, and for a while its heartbeats are lost.
    Cut,
    /// A leader is cut off from the service: what it would have been told is lost, and it reads everything anew.
    LeaderCut,
    /// The outcome of a commit is not known to whoever made it.
    Unknown,
    /// Another coordinator begins to lead, and the former leader does not know it yet.
    Deposed,
    /// A call times out at the worker and takes effect later.
    Late,
    /// Somebody speaks for a life without its secret, and knows everything else of it.
    Stranger,
    /// A witness of a killed worker's end tells a leader; it need not, and may tell more than one, and late.
    Witness,
}

impl Fault {
    /// Everything that can strike a single leader.
    pub const ALL: [Self; 11] = [
        Self::Crash,
        Self::LeaseEnd,
        Self::NodeDeleted,
        Self::Break,
        Self::Cut,
        Self::LeaderCut,
        Self::Unknown,
        Self::Deposed,
        Self::Late,
        Self::Stranger,
        Self::Witness,
    ];
}

/// What keeps apart the calls of two owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FencingMode {
    /// What the appliance runs on refuses older tokens.
    Tokens,
    /// It looks at no token: a new owner waits.
    FenceDelay,
}

/// How many of what there is, and what may go wrong.
#[derive(Clone, Debug)]
pub struct Setup {
    /// For people.
    pub name: &'static str,
    /// Workers, at most 9.
    pub workers: usize,
    /// Appliances.
    pub appliances: usize,
    /// Faults per run, at most.
    pub budget: u8,
    /// Which faults there are.
    pub faults: &'static [Fault],
    /// What keeps calls apart.
    pub fencing: FencingMode,
    /// Killed workers come back under their name.
    pub restart: bool,
    /// Steps of time in which the wait for a lease is over.
    pub steps: u32,
    /// Steps of time that may pass while anything is on its way, until nothing is.
    pub delay: u8,
    /// Calls are looked at one by one, and not only whether they may start.
    pub calls: bool,
    /// One in so many states is left to itself, to see whether it comes to rest in good order.
    pub sample: u64,
    /// Times that an operator sets or clears a debug mode for everything.
    pub orders: u8,
    /// A rule to be broken.
    pub mutant: Option<Mutant>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            name: "",
            workers: 2,
            appliances: 1,
            budget: 1,
            faults: &Fault::ALL,
            fencing: FencingMode::Tokens,
            restart: false,
            steps: 1,
            delay: 2,
            calls: true,
            sample: 64,
            orders: 0,
            mutant: None,
        }
    }
}

impl Setup {
    pub(crate) fn step(&self) -> Duration {
        lease_wait(LEASE) / self.steps
    }

    pub(crate) fn allows(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    pub(crate) fn machine(&self) -> machine::Config {
        let whole_millis = |time: Duration| Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let (never, step) = (whole_millis(NEVER), whole_millis(self.step()));
        machine::Config {
            debounce: Duration::ZERO,
            // A leader waits a step for the workers to say what they hold.
            reconnect_grace: step,
            decline_backoff: step,
            suspect_probation: Duration::ZERO,
            freeze_fraction: 1.0,
            freeze_window: Duration::ZERO,
            departure_grace: Duration::ZERO,
            unreachable_after: never,
            release_deadline: never,
            quarantine_strikes: u32::MAX,
            authority: LeaseAuthority::External,
            // Two appliances of two workers are held by one each, and move as soon as that is not so. In a wider band they
            // would stay together for good, and two would show no more than one.
            planner: planner::Config { band: 1.0, ..planner::Config::default() },
            ..machine::Config::default()
        }
    }

    pub(crate) fn worker(number: usize) -> WorkerId {
        WorkerId::new(&format!("w{}", number + 1)).expect("letters and digits")
    }

    /// The secret of all lives of a worker: only that nobody else has it matters.
    pub(crate) fn secret(number: usize) -> LifeSecret {
        LifeSecret::new([u8::try_from(number).unwrap_or(u8::MAX); 32])
    }

    pub(crate) fn profile(&self, number: usize) -> Profile {
        let fence_delay = match self.fencing {
            FencingMode::Tokens => None,
            FencingMode::FenceDelay => Some(FENCE_DELAY),
        };
        let simulated = DriverCapabilities { fence_delay, ..DriverCapabilities::of_all_kinds(None) };
        Profile {
            weight: 1,
            zone: String::new(),
            host: format!("h{}", number + 1),
            drivers: [(DriverName::simulated(), simulated)].into(),
            version: String::new(),
            pid: 1,
            process: None,
            lease: LEASE,
        }
    }

    /// A rule for everything, of this number.
    pub(crate) fn rule(number: u8) -> ModeRule {
        let (reason, by) = (String::new(), String::new());
        let (since_unix_ms, expires_unix_ms) = (0, None);
        let id = ModeId::new(number.into());
        ModeRule { id, scope: ModeScope::Global, reason, by, since_unix_ms, expires_unix_ms }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = ApplianceId> + use<> {
        (1..=self.appliances as u128).map(ApplianceId::from_u128)
    }

    pub(crate) fn seed(id: ApplianceId) -> Seed {
        Seed {
            id,
            placement_key: id.to_string(),
            needs: Needs { driver: DriverName::simulated(), kind: KindName::Custom, site: None },
            edition: Edition::new(Generation::new(1), Term::new(1)),
            size: 200,
            deleting: false,
            subject: ModeSubject { tenant: Name::new("t").expect("a letter"), labels: BTreeMap::new() },
        }
    }
}

/// The moment at which every run begins.
pub(crate) const START: Timestamp = Timestamp::from_millis(1_000_000);
