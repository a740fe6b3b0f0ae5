//! Runs a target: over what is kept, and over mutated seeds.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::mutate::{Random, mutate};
use crate::{Outcome, Target, corpus, memory};

/// Most time of the processor one input may take. Inputs have at most 4 KiB, and take microseconds.
pub const SLOW: Duration = Duration::from_secs(2);
/// Stack of a thread that runs targets: that of a main thread, on which `rugctl` reads documents. Each level that YAML is nested takes
/// some kilobytes of it without optimisation, before the depth is looked at.
pub const STACK: usize = 8 * 1024 * 1024;
/// Most seeds of a run; a bound on its memory.
const MOST_SEEDS: usize = 4096;

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// After so many inputs.
    pub inputs: u64,
    /// After this long.
    pub time: Duration,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Inputs that were fed.
    pub inputs: u64,
    /// How many different outcomes there were.
    pub outcomes: usize,
    /// Most bytes that were allocated at a time for one input, and the length of that input.
    pub peak: (usize, usize),
    /// Most time of the processor one input took.
    pub slowest: Duration,
    /// What went wrong.
    pub failures: Vec<Failure>,
}

/// An input that broke something.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The input.
    pub input: Vec<u8>,
    /// What happened.
    pub what: String,
}

impl Report {
    /// Adds what another run of the same target came to.
    pub fn add(&mut self, other: Self) {
        self.inputs += other.inputs;
        self.outcomes = self.outcomes.max(other.outcomes);
        self.peak = self.peak.max(other.peak);
        self.slowest = self.slowest.max(other.slowest);
        self.failures.extend(other.failures);
    }

    /// Feeds one input and notes what happened.
    fn feed(&mut self, target: &Target, input: &[u8]) -> Option<Outcome> {
        memory::start();
        let begun = thread_time();
        let fed = catch_unwind(AssertUnwindSafe(|| (target.feed)(input)));
        let (took, peak) = (thread_time().saturating_sub(begun), memory::peak());
        self.inputs += 1;
        self.peak = if fed.is_ok() { self.peak.max((peak, input.len())) } else { self.peak };
        self.slowest = self.slowest.max(took);
        let mut fail = |what: String| self.failures.push(Failure { input: input.to_vec(), what });
        // A panic takes memory for its backtrace.
        if fed.is_ok() && peak > memory::allowed(input.len()) {
            fail(format!("allocates {peak} bytes for an input of {}", input.len()));
        }
        if took > SLOW {
            fail(format!("takes {took:?}"));
        }
        match fed {
            Ok(outcome) => Some(outcome),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                fail(text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default());
                None
            }
        }
    }
}

/// Time of the processor this thread has used. Wall clock would count what other programs use as well: on a busy machine any input
/// may wait for seconds.
fn thread_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.try_into().unwrap_or(0))
}

/// Feeds everything that is kept, and every seed.
///
/// # Errors
/// When the corpus cannot be read.
pub fn replay(target: &Target) -> std::io::Result<Report> {
    let mut report = Report::default();
    for (_, input) in corpus::kept(target)? {
        report.feed(target, &input);
    }
    for input in (target.seeds)() {
        report.feed(target, &input);
    }
    Ok(report)
}

/// Feeds mutated seeds until a limit is reached, or after ten failures.
///
/// # Errors
/// When the corpus cannot be read.
pub fn search(target: &Target, seed: u64, limits: Limits) -> std::io::Result<Report> {
    let begun = Instant::now();
    let mut report = Report::default();
    let mut random = Random::new(seed);
    let mut seeds: Vec<Vec<u8>> = corpus::kept(target)?.into_iter().map(|(_, input)| input).collect();
    seeds.extend((target.seeds)());
    seeds.push(Vec::new());
    let mut seen = BTreeSet::new();
    let mut input = Vec::new();
    while report.inputs < limits.inputs && report.failures.len() < 10 {
        if report.inputs % 256 == 0 && begun.elapsed() >= limits.time {
            break;
        }
        mutate(&mut random, &seeds, &mut input);
        let Some(outcome) = report.feed(target, &input) else { continue };
        if seen.len() < MOST_SEEDS && seen.insert(outcome) && seeds.len() < MOST_SEEDS {
            seeds.push(input.clone());
        }
    }
    report.outcomes = seen.len();
    Ok(report)
}
