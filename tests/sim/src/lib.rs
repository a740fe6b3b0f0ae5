//! A deterministic simulation of both cores: the coordinator's machine and the worker's machines run as they ship, and
//! everything around them is a model that a seed drives.
//!
//! Modelled: several coordinator processes of which one leads, or believes so; workers; clocks of different rates; streams
//! that delay, stall, break and deliver late; nodes that are killed, paused, and cut off from each other, one way too; a
//! coordination service; a store whose commits come late, or with an unknown outcome, and that is restored to older
//! copies; and what the drivers call, slow, with and without tokens. Of a worker's session, of membership and of the election
//! the machines that ship are run ([`worker_core::session`], [`common::membership`], [`common::election`]); here their actions
//! are carried out. The shells of the coordinator (`leadership`, `leader`, `store`) are written again in their simplest form.
//!
//! After every step the promises I1 and I3 to I6 of docs/protocol.md are checked; when the faults are over the world
//! has to come to rest with everything placed (I2). A run depends on its [`Case`] alone: a seed, and the faults and the
//! load that it comes to or that are given. One that fails is run again with ever fewer of those ([`minimise`]) and reported
//! with its log.
//!
//! | file          | what it models                                                   |
//! |---------------|------------------------------------------------------------------|
//! | `world`       | time, the queue of events, who takes which                       |
//! | `plan`, `trouble` | faults and load: as a list, and as they are carried out      |
//! | `coordinator` | a coordinator process: elections, terms, stepping down           |
//! | `leader`      | what leads one term: the machine, its actions                    |
//! | `writer`, `database` | the coordinator's and the database's half of the store    |
//! | `worker`, `incoming`, `life`, `tasks` | a worker process: session, life, what it does with grants |
//! | `backend`     | what the drivers call                                            |
//! | `service`     | the coordination service                                         |
//! | `stranger`    | who speaks for others                                            |
//! | `modes`       | operators that set debug modes, and what they are answered (I6)   |
//! | `orders`      | operators that cordon, drain and weight workers, and pin appliances |
//! | `net`, `clock`, `rng` | what all stand on                                        |
//! | `invariants`, `rest` | what must hold after each step, and when all is over      |

mod backend;
mod clock;
mod coordinator;
mod database;
mod incoming;
mod invariants;
mod leader;
mod life;
mod minimise;
mod modes;
mod net;
mod orders;
mod plan;
mod rest;
mod rng;
mod service;
mod stranger;
mod tasks;
mod trouble;
mod worker;
mod world;
mod writer;

use common::mutant::{self, Mutant};

pub use minimise::minimise;
pub use plan::{Case, Decision, What};
pub use rng::Rng;

/// Nanoseconds of the world, which only the simulation itself can see.
pub type SimTime = u64;

/// How one run ended.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// Events that were taken.
    pub steps: u64,
    /// Simulated time.
    pub time: SimTime,
    /// Calls that took effect.
    pub effects: u64,
    /// Terms that were begun.
    pub terms: u64,
    /// Most coordinators that led, or thought so, at the same time.
    pub leaders: usize,
    /// Stands for everything that happened, in order.
    pub digest: u64,
    /// What did not hold, if something did not.
    pub failure: Option<String>,
    /// What was decided, as far as it was asked for or the run failed.
    pub decisions: Vec<Decision>,
    /// The last events, when they were asked for.
    pub log: Vec<String>,
}

/// Runs one case to its end. Recording the log takes longer and changes nothing else.
#[must_use]
pub fn run(case: &Case, mutant: Option<Mutant>, record: bool) -> RunOutcome {
    mutant::with(mutant, || world::SimWorld::new(case, record).run())
}

/// Runs one case; if something did not hold, looks for a shorter one and runs that with its log.
///
/// # Errors
/// What did not hold, the last events before it, and how to replay them.
pub fn check(case: &Case) -> Result<RunOutcome, String> {
    let outcome = run(case, None, false);
    if outcome.failure.is_none() {
        return Ok(outcome);
    }
    Err(report(case, None, &outcome))
}

/// What to tell of a run that failed.
#[must_use]
pub fn report(case: &Case, mutant: Option<Mutant>, outcome: &RunOutcome) -> String {
    let shorter = minimise(case, mutant, outcome);
    let replayed = run(&shorter, mutant, true);
    let decisions = shorter.decisions.as_deref().unwrap_or_default();
    format!(
        "{}\nseed {}, step {}: {}\nthe same with {} of {} decisions, step {}: {}\nreplay: RUG_SIM_REPLAY='{shorter}' \
         cargo test --profile sim -p sim -- --nocapture replay",
        replayed.log.join("\n"),
        case.seed,
        outcome.steps,
        outcome.failure.as_deref().unwrap_or_default(),
        decisions.len(),
        outcome.decisions.len(),
        replayed.steps,
        replayed.failure.as_deref().unwrap_or("(it went another way)"),
    )
}
