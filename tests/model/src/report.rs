//! Runs the checker, and tells what it found so that people can follow it.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::checker::{Action, Hypothesis};
use crate::promises::unsettled;
use crate::setup::Setup;
use crate::state::State;

/// Threads of the checker.
const THREADS: usize = 2;

/// What was exhausted.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Different states.
    pub unique: usize,
    /// States that were made, most of them more than once.
    pub generated: usize,
    /// Longest of the shortest ways to a state, or nearly so.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
}

/// A promise that does not hold, and the way there.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What does not hold.
    pub promise: &'static str,
    /// What happened, in order.
    pub path: Vec<Action>,
    /// How it was broken, and the state in which it was.
    pub text: String,
    /// Different states that were seen before.
    pub unique: usize,
}

fn finding(checker: &impl Checker<Hypothesis>) -> Option<Finding> {
    let mut found: Vec<_> = checker.discoveries().into_iter().collect();
    found.sort_by_key(|(name, path)| (path.clone().into_actions().len(), *name));
    let (promise, path) = found.into_iter().next()?;
    let last: State = path.last_state().clone();
    let path = path.into_actions();
    let mut text = String::new();
    let why = match &last.wrong {
        Some(wrong) => format!("{wrong:?}"),
        None => unsettled(checker.model(), &last).unwrap_or_default(),
    };
    _ = writeln!(text, "{promise}\n{why}");
    for (number, action) in path.iter().enumerate() {
        _ = writeln!(text, "{:>4}. {action:?}", number + 1);
    }
    Some(Finding { promise, path, text, unique: checker.unique_state_count() })
}

/// Checks every state there is.
///
/// # Errors
/// A promise that does not hold.
pub fn exhaust(setup: Setup) -> Result<Summary, Box<Finding>> {
    let started = Instant::now();
    let checker = Hypothesis::new(setup).checker().finish_when(HasDiscoveries::AnyFailures).threads(THREADS);
    let checker = checker.spawn_bfs().join();
    if let Some(finding) = finding(&checker) {
        return Err(Box::new(finding));
    }
    checker.assert_properties();
    Ok(Summary {
        unique: checker.unique_state_count(),
        generated: checker.state_count(),
        depth: checker.max_depth(),
        took: started.elapsed(),
    })
}

/// Looks for a promise that does not hold, in at most so many states that are made.
#[must_use]
pub fn find(setup: Setup, limit: usize) -> Option<Finding> {
    let checker = Hypothesis::new(setup).checker().finish_when(HasDiscoveries::AnyFailures);
    finding(&checker.threads(THREADS).target_state_count(limit).spawn_bfs().join())
}
