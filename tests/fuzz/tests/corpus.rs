//! What was found once stays mended, and a second of each target finds nothing new.

use std::time::Duration;

use fuzz::Target;
use fuzz::run::{Failure, Limits, Report, STACK, replay, search};
use fuzz::targets::TARGETS;

fn failures(target: &Target, report: &Report) -> Vec<String> {
    let line = |failure: &Failure| {
        format!("{}: {} for {:?}", target.name, failure.what, String::from_utf8_lossy(&failure.input))
    };
    report.failures.iter().map(line).collect()
}

/// Runs a test on a thread with the stack that targets need.
fn on_large_stack(test: fn()) {
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(test).expect("a thread");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn what_was_found_once_stays_mended_and_seeds_are_read() {
    on_large_stack(replay_all);
}

fn replay_all() {
    let mut found = Vec::new();
    for target in &TARGETS {
        let report = replay(target).expect("the corpus is in the tree");
        found.extend(failures(target, &report));
        assert!(report.inputs > 0, "{} has no seeds", target.name);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn a_second_of_each_target_finds_nothing() {
    on_large_stack(search_all);
}

fn search_all() {
    let seed = std::env::var("RUG_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut found = Vec::new();
    for target in &TARGETS {
        let limits = Limits { inputs: u64::MAX, time: Duration::from_secs(1) };
        let report = search(target, seed, limits).expect("the corpus is in the tree");
        found.extend(failures(target, &report));
        println!("{}: {} inputs, {} outcomes, peak {:?}", target.name, report.inputs, report.outcomes, report.peak);
        // Mutations get past the first check: more comes of them than one refusal.
        if report.outcomes <= 3 {
            found.push(format!("{}: only {} outcomes", target.name, report.outcomes));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
