//! Runs the checker, and tells what it found so that people can follow it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::checker::{Hypothesis, ModelAction};
use crate::promises::unsettled;
use crate::setup::Setup;
use crate::shared::hash;
use crate::state::ModelState;

/// Threads of the checker.
const THREADS: usize = 2;

/// States that may be made to find a shorter way to a promise that fell.
const SHORT: usize = 10_000_000;

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
pub struct BrokenPromise {
    /// What does not hold.
    pub promise: &'static str,
    /// What happened, in order.
    pub path: Vec<ModelAction>,
    /// How it was broken, and the state in which it was.
    pub text: String,
    /// Different states that were seen before.
    pub unique: usize,
}

fn finding(checker: &impl Checker<Hypothesis>) -> Option<BrokenPromise> {
    let mut found: Vec<_> = checker.discoveries().into_iter().collect();
    found.sort_by_key(|(name, path)| (path.clone().into_actions().len(), *name));
    let (promise, path) = found.into_iter().next()?;
    let last: ModelState = path.last_state().clone();
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
    Some(BrokenPromise { promise, path, text, unique: checker.unique_state_count() })
}

/// Checks every state there is. Goes deep first, so that few states wait in memory.
///
/// # Errors
/// A promise that does not hold.
pub fn exhaust(setup: Setup) -> Result<Summary, Box<BrokenPromise>> {
    let started = Instant::now();
    let model = Hypothesis::new(setup.clone());
    let checker = model.checker().finish_when(HasDiscoveries::AnyFailures).threads(THREADS).spawn_dfs().join();
    if let Some(deep) = finding(&checker) {
        // The way there is a long one; where there is a short one, tell that.
        return Err(Box::new(find(setup, SHORT).unwrap_or(deep)));
    }
    checker.assert_properties();
    Ok(Summary {
        unique: checker.unique_state_count(),
        generated: checker.state_count(),
        depth: checker.max_depth(),
        took: started.elapsed(),
    })
}

/// Checks that states that count as equal go on to equal states: only then does a state stand for all that equal
/// it, whichever was met first. Answers how many were met.
///
/// # Errors
/// Two states that count as equal and do not go on alike, with what happens in only one of them.
pub fn alike(setup: Setup) -> Result<usize, String> {
    let model = Hypothesis::new(setup);
    let follow = |state: &ModelState| {
        let mut actions = Vec::new();
        model.actions(state, &mut actions);
        let next = actions.into_iter().filter_map(|action| Some((model.next_state(state, action.clone())?, action)));
        let mut next: Vec<_> = next.map(|(next, action)| (hash(&next), action, next)).collect();
        next.sort_by_key(|(print, ..)| *print);
        next
    };
    let mut met = 0;
    let mut known: HashMap<u64, (ModelState, Vec<u64>)> = HashMap::new();
    let mut pending = model.init_states();
    while let Some(state) = pending.pop() {
        met += 1;
        let next = follow(&state);
        let prints: Vec<u64> = next.iter().map(|(print, ..)| *print).collect();
        match known.entry(hash(&state)) {
            Entry::Vacant(free) => {
                free.insert((state, prints));
                pending.extend(next.into_iter().map(|(.., next)| next));
            }
            Entry::Occupied(first) if first.get().1 == prints => {}
            Entry::Occupied(first) => {
                let (equal, theirs) = first.get();
                let only: Vec<_> = next.iter().filter(|n| !theirs.contains(&n.0)).map(|n| &n.1).collect();
                let others = follow(equal);
                let lacks: Vec<_> = others.iter().filter(|n| !prints.contains(&n.0)).map(|n| &n.1).collect();
                return Err(format!("only {only:?} leads on from\n{state:#?}\nand only {lacks:?} from\n{equal:#?}"));
            }
        }
    }
    Ok(met)
}

/// Looks for a promise that does not hold, in at most so many states that are made.
#[must_use]
pub fn find(setup: Setup, limit: usize) -> Option<BrokenPromise> {
    let checker = Hypothesis::new(setup).checker().finish_when(HasDiscoveries::AnyFailures);
    finding(&checker.threads(THREADS).target_state_count(limit).spawn_bfs().join())
}
