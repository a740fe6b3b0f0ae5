//! A deterministic simulation of both cores: the coordinator's machine and the workers' holdings run as they ship, and
//! everything around them is a model that a seed drives.
//!
//! Modelled: clocks of different rates, streams that delay, stall, break and deliver late, workers that are killed,
//! stopped and paused, a coordinator that is killed and paused, a store that is slow, refuses, or commits without the
//! coordinator living to hear of it. The shells are modelled after `worker::session` and `coordinator::leader`: what they
//! do besides moving messages (gates, lease deadlines, coalescing) is written again here in its simplest form.
//!
//! After every step the promises I1 and I3 to I5 of the ownership rules are checked; when the faults are over the world
//! has to come to rest with everything placed (I2). A run depends on its seed alone, so a failure is replayed with its
//! log by running the seed again.
//!
//! | file          | what it models                                            |
//! |---------------|-----------------------------------------------------------|
//! | `world`       | time, the queue of events, who takes which                |
//! | `leader`      | a coordinator process around `Machine`                    |
//! | `worker`      | a worker process around `Holdings`: session, gate, runner |
//! | `service`     | the coordination service, for lives that are taken from it |
//! | `store`, `net`, `clock`, `rng` | what both stand on                       |
//! | `trouble`     | faults and load                                           |
//! | `invariants`  | what must hold                                            |

mod clock;
mod invariants;
mod leader;
mod net;
mod rng;
mod service;
mod store;
mod trouble;
mod worker;
mod world;

pub use rng::Rng;

/// Nanoseconds of the world, which only the simulation itself can see.
pub type Time = u64;

/// A deliberate mistake in the simulated shells, to show that the checks find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Workers act whether or not their lease stands.
    NoLease,
    /// Workers take messages of streams they have left for messages of the present one.
    OldStreams,
    /// The leader says a write is durable before it is.
    OfferBeforeDurable,
    /// The store loses grants it said it has.
    ForgetfulStore,
    /// The leader calls a worker gone when its stream breaks.
    GoneWithStream,
    /// Workers say that they released while a step still runs.
    EarlyRelease,
    /// Workers use a clock that stands still while they are paused.
    StandingClock,
    /// One gate for all grants of a worker: what it released it can still act on while it holds anything.
    GatePerWorker,
    /// The leader calls a worker gone as soon as its lease node is.
    GoneWithNode,
    /// The leader goes on with what it knew of the nodes after its connection to the service broke.
    CachedMembers,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::NoLease,
        Self::OldStreams,
        Self::OfferBeforeDurable,
        Self::ForgetfulStore,
        Self::GoneWithStream,
        Self::EarlyRelease,
        Self::StandingClock,
        Self::GatePerWorker,
        Self::GoneWithNode,
        Self::CachedMembers,
    ];
}

/// How one run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it was run with.
    pub seed: u64,
    /// Events that were taken.
    pub steps: u64,
    /// Simulated time.
    pub time: Time,
    /// Side effects the workers had.
    pub effects: u64,
    /// Stands for everything that happened, in order.
    pub digest: u64,
    /// What did not hold, if something did not.
    pub failure: Option<String>,
    /// The last events, when they were asked for.
    pub log: Vec<String>,
}

/// Runs one seed to its end. Recording the log takes longer and changes nothing else.
#[must_use]
pub fn run(seed: u64, mutant: Option<Mutant>, record: bool) -> Outcome {
    world::World::new(seed, mutant, record).run()
}

/// Runs one seed; if something did not hold, runs it again with its log.
///
/// # Errors
/// What did not hold, the last events before it, and how to replay them.
pub fn check(seed: u64) -> Result<Outcome, String> {
    let outcome = run(seed, None, false);
    let Some(failure) = &outcome.failure else { return Ok(outcome) };
    let replayed = run(seed, None, true);
    let repeatable = if replayed.digest == outcome.digest { "" } else { "(the replay went another way!)\n" };
    Err(format!(
        "{}\n{repeatable}seed {seed}, step {}: {failure}\nreplay: RUG_SIM_SEED={seed} cargo test --profile sim -p sim",
        replayed.log.join("\n"),
        outcome.steps,
    ))
}
