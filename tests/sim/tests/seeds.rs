//! Randomised runs of both cores under a virtual clock. See `sim` for what is modelled.
//!
//! `RUG_SIM_SEED=n` runs one seed, with its log if it fails; `RUG_SIM_SEEDS=n` runs that many, from the first; the
//! default takes about 20 s unoptimised. With `RUG_SIM_SURVEY=1` every failing seed is listed, from `RUG_SIM_SEED` on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sim::Mutant;

/// Seeds of a run without settings.
const DEFAULT_SEEDS: u64 = 600;

/// Seeds in which every mutant has to be found.
const MUTANT_SEEDS: u64 = 400;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|e| panic!("{name} must be a number, is {text:?}: {e}")))
}

/// Runs seeds on two threads until one fails; the lowest that did is told.
fn run_all(first: u64, count: u64) {
    let next = AtomicU64::new(first);
    let (steps, effects, time) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return Ok(());
            }
            match sim::check(seed) {
                Ok(outcome) => {
                    steps.fetch_add(outcome.steps, Ordering::Relaxed);
                    effects.fetch_add(outcome.effects, Ordering::Relaxed);
                    time.fetch_add(outcome.time, Ordering::Relaxed);
                }
                Err(report) => {
                    next.store(first + count, Ordering::Relaxed);
                    return Err((seed, report));
                }
            }
        }
    };
    let results = std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.map(|thread| thread.join().expect("the simulation does not panic"))
    });
    if let Some((_, report)) = results.into_iter().filter_map(Result::err).min_by_key(|(seed, _)| *seed) {
        panic!("{report}");
    }
    let (steps, took) = (steps.into_inner(), started.elapsed());
    println!(
        "{count} seeds, {steps} steps, {} side effects, {:.0?} of simulated time in {took:.1?}: {:.0} steps per second",
        effects.into_inner(),
        Duration::from_nanos(time.into_inner()),
        steps as f64 / took.as_secs_f64(),
    );
}

#[test]
fn ownership_holds_whatever_fails() {
    let seeds = setting("RUG_SIM_SEEDS");
    match (setting("RUG_SIM_SEED"), std::env::var_os("RUG_SIM_SURVEY")) {
        (first, Some(_)) => survey(first.unwrap_or(1), seeds.unwrap_or(DEFAULT_SEEDS)),
        (Some(seed), None) => run_all(seed, 1),
        (None, None) => run_all(1, seeds.unwrap_or(DEFAULT_SEEDS)),
    }
}

#[test]
fn a_seed_always_runs_the_same_way() {
    for seed in 1..4 {
        let (first, second) = (sim::run(seed, None, false), sim::run(seed, None, true));
        assert_eq!((first.steps, first.digest), (second.steps, second.digest), "seed {seed} ran two ways");
    }
}

#[test]
fn every_mutant_is_found() {
    for mutant in Mutant::ALL {
        let found = (1..=MUTANT_SEEDS).find_map(|seed| sim::run(seed, Some(mutant), false).failure.map(|f| (seed, f)));
        let (seed, failure) = found.unwrap_or_else(|| panic!("{mutant:?} was not found in {MUTANT_SEEDS} seeds"));
        println!("{mutant:?}: seed {seed}: {failure}");
    }
}

/// For a person at work: a line for each seed that fails, instead of the first one with its log.
fn survey(first: u64, count: u64) {
    let mut failures = 0;
    for seed in first..first + count {
        let outcome = sim::run(seed, None, false);
        if let Some(failure) = outcome.failure {
            failures += 1;
            println!("seed {seed}, step {}: {failure}", outcome.steps);
        }
    }
    assert_eq!(failures, 0, "of {count} seeds from {first}");
}
