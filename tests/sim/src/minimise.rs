//! Delta debugging: finds few decisions that still lead to the same sort of failure.
//!
//! Taking a decision away changes the course of everything after it, so that a run may fail elsewhere or not at all; such
//! a try is simply not taken. What is left is small, not smallest.

use common::mutant::Mutant;

use super::plan::{Case, Decision};
use super::{RunOutcome, run};

/// Runs that are tried at most: some ten seconds.
const TRIES: usize = 1_500;

/// What a failure is called before its particulars: two failures of one sort are taken for the same.
pub(super) fn sort(failure: &str) -> &str {
    failure.split_once(": ").map_or(failure, |(sort, _)| sort)
}

/// The shortest case found whose run fails in the same way as `outcome`, the run of `case`.
#[must_use]
pub fn minimise(case: &Case, mutant: Option<Mutant>, outcome: &RunOutcome) -> Case {
    let Some(failure) = &outcome.failure else { return case.clone() };
    let mut best = outcome.decisions.clone();
    let mut tries = 0;
    let mut fails = |decisions: Vec<Decision>| {
        tries += 1;
        let case = Case { seed: case.seed, decisions: Some(decisions) };
        let tried = run(&case, mutant, false);
        let same = tried.failure.as_deref().is_some_and(|other| sort(other) == sort(failure));
        (same, tries < TRIES)
    };
    // What was decided after the failure did not cause it.
    let before: Vec<Decision> = best.iter().filter(|decision| decision.at <= outcome.time).cloned().collect();
    if fails(before.clone()).0 {
        best = before;
    }
    let mut size = best.len().div_ceil(2);
    while size > 0 {
        let mut shorter = false;
        let mut from = 0;
        while from < best.len() {
            let mut tried = best.clone();
            tried.drain(from..(from + size).min(best.len()));
            let (same, more) = fails(tried.clone());
            if same {
                (best, shorter) = (tried, true);
            } else {
                from += size;
            }
            if !more {
                return Case { seed: case.seed, decisions: Some(best) };
            }
        }
        if !shorter || size > 1 {
            size /= 2;
        }
    }
    Case { seed: case.seed, decisions: Some(best) }
}
