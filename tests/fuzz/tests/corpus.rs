//! What was found once stays mended, and a second of each target finds nothing new.

use std::time::Duration;

use fuzz::Target;
use fuzz::run::{Limits, Report, replay, search};
use fuzz::targets::TARGETS;

fn check(target: &Target, report: &Report) {
    let failures: Vec<_> = report
        .failures
        .iter()
        .map(|failure| format!("{}: {} for {:?}", target.name, failure.what, String::from_utf8_lossy(&failure.input)))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_was_found_once_stays_mended_and_seeds_are_read() {
    for target in &TARGETS {
        let report = replay(target).expect("the corpus is in the tree");
        check(target, &report);
        assert!(report.inputs > 0, "{} has no seeds", target.name);
    }
}

#[test]
fn a_second_of_each_target_finds_nothing() {
    let seed = std::env::var("RUG_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for target in &TARGETS {
        let limits = Limits { inputs: u64::MAX, time: Duration::from_secs(1) };
        let report = search(target, seed, limits).expect("the corpus is in the tree");
        check(target, &report);
        // Mutations get past the first check: more comes of them than one refusal.
        assert!(report.outcomes > 3, "{}: {} outcomes of {} inputs", target.name, report.outcomes, report.inputs);
    }
}
