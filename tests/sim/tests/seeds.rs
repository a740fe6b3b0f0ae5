//! Randomised runs of both cores under a virtual clock. See `sim` for what is modelled.
//!
//! | setting            | does                                                                                |
//! |--------------------|-------------------------------------------------------------------------------------|
//! | `RUG_SIM_SEEDS=n`  | runs that many seeds, from the first                                                |
//! | `RUG_SIM_SEED=n`   | runs that seed, or begins with it                                                   |
//! | `RUG_SIM_SURVEY=1` | lists every seed that fails, instead of the first with its log                      |
//! | `RUG_SIM_REPLAY=x` | runs exactly what a failure printed, or the file of that name says, with its log    |

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::mutant::Mutant;
use sim::Case;

/// Seeds of a run without settings.
const DEFAULT_SEEDS: u64 = 20_000;

/// Seeds in which every mutant has to be found.
const MUTANT_SEEDS: u64 = 6_000;

/// Mutants that the model has to find, each with the reason.
const UNSEEN: [(Mutant, &str); 0] = [];

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name} must be a number, is {text:?}: {e}")))
}

/// Runs seeds on two threads until one fails; the lowest that did is told.
fn run_all(first: u64, count: u64) {
    let next = AtomicU64::new(first);
    let totals: [AtomicU64; 4] = std::array::from_fn(|_| AtomicU64::new(0));
    let contested = AtomicU64::new(0);
    let most = AtomicUsize::new(0);
    let started = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return Ok(());
            }
            let outcome = sim::run(&Case::from(seed), None, false);
            if outcome.failure.is_some() {
                next.store(first + count, Ordering::Relaxed);
                return Err((seed, Box::new(outcome)));
            }
            for (total, of) in totals.iter().zip([outcome.steps, outcome.effects, outcome.time, outcome.terms]) {
                total.fetch_add(of, Ordering::Relaxed);
            }
            contested.fetch_add(u64::from(outcome.leaders > 1), Ordering::Relaxed);
            most.fetch_max(outcome.leaders, Ordering::Relaxed);
        }
    };
    let results = std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.map(|thread| thread.join().expect("the simulation does not panic"))
    });
    if let Some((seed, outcome)) = results.into_iter().filter_map(Result::err).min_by_key(|(seed, _)| *seed) {
        panic!("{}", sim::report(&Case::from(seed), None, &outcome));
    }
    let ([steps, effects, time, terms], took) = (totals.map(AtomicU64::into_inner), started.elapsed());
    println!(
        "{count} seeds, {} steps each, {steps} in all, {effects} effects, {terms} terms, {:.0?} of simulated time; two or \
         more led at once in {} seeds, at most {}; {took:.1?}: {:.0} steps per second",
        steps / count.max(1),
        Duration::from_nanos(time),
        contested.into_inner(),
        most.into_inner(),
        steps as f64 / took.as_secs_f64(),
    );
}

#[test]
fn ownership_holds_whatever_fails() {
    if std::env::var_os("RUG_SIM_REPLAY").is_some() {
        return;
    }
    let seeds = setting("RUG_SIM_SEEDS");
    match (setting("RUG_SIM_SEED"), std::env::var_os("RUG_SIM_SURVEY")) {
        (first, Some(_)) => survey(first.unwrap_or(1), seeds.unwrap_or(DEFAULT_SEEDS)),
        (Some(seed), None) => run_all(seed, seeds.unwrap_or(1)),
        (None, None) => run_all(1, seeds.unwrap_or(DEFAULT_SEEDS)),
    }
}

/// Runs what `RUG_SIM_REPLAY` says, a case or the name of a file with one; nothing without it.
#[test]
fn replay() {
    let Ok(text) = std::env::var("RUG_SIM_REPLAY") else { return };
    let text = std::fs::read_to_string(&text).unwrap_or(text);
    let case: Case = text.parse().unwrap_or_else(|e| panic!("RUG_SIM_REPLAY: {e}"));
    let outcome = sim::run(&case, None, true);
    println!("{}", outcome.log.join("\n"));
    assert_eq!(outcome.failure, None, "step {}", outcome.steps);
}

#[test]
fn a_seed_always_runs_the_same_way() {
    for seed in 1..6 {
        let first = sim::run(&Case::from(seed), None, true);
        let again = sim::run(&Case { seed, decisions: Some(first.decisions) }, None, false);
        assert_eq!((first.steps, first.digest), (again.steps, again.digest), "seed {seed} ran two ways");
    }
}

/// Does something for every seed, on two threads, and gathers what comes of it in the order of the seeds.
fn each<T: Send>(seeds: std::ops::Range<u64>, run: impl Fn(u64) -> Option<T> + Sync, first: bool) -> Vec<(u64, T)> {
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut found = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return found;
            }
            if let Some(one) = run(seed) {
                found.push((seed, one));
                if first {
                    next.store(seeds.end, Ordering::Relaxed);
                }
            }
        }
    };
    let mut all: Vec<_> = std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.into_iter().flat_map(|thread| thread.join().expect("the simulation does not panic")).collect()
    });
    all.sort_by_key(|(seed, _)| *seed);
    all
}

/// For a person at work: a line for each seed that fails, instead of the first one with its log.
fn survey(first: u64, count: u64) {
    let failures = each(
        first..first + count,
        |seed| {
            let outcome = sim::run(&Case::from(seed), None, false);
            outcome.failure.inspect(|failure| println!("seed {seed}, step {}: {failure}", outcome.steps))
        },
        false,
    );
    assert_eq!(failures.len(), 0, "of {count} seeds from {first}");
}

#[test]
fn every_mutant_is_found() {
    if std::env::var_os("RUG_SIM_REPLAY").is_some() || std::env::var_os("RUG_SIM_SURVEY").is_some() {
        return;
    }
    let mut missed = Vec::new();
    for mutant in Mutant::ALL {
        if let Some((_, why)) = UNSEEN.iter().find(|(unseen, _)| *unseen == mutant) {
            println!("{mutant:?}: not to be seen here: {why}");
            continue;
        }
        let find = |seed| {
            let outcome = sim::run(&Case::from(seed), Some(mutant), false);
            let failure = outcome.failure?;
            // The mutant, and nothing else, has to be what fails.
            let without = sim::run(&Case::from(seed), None, false);
            without.failure.is_none().then_some((outcome.steps, failure))
        };
        match each(1..MUTANT_SEEDS + 1, find, true).first() {
            Some((seed, (steps, failure))) => println!("{mutant:?}: seed {seed}, step {steps}: {failure}"),
            None => missed.push(mutant),
        }
    }
    assert_eq!(missed, [], "in {MUTANT_SEEDS} seeds each");
}
