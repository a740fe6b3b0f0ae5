//! What a drill came to: figures and violations, as a table for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::checker::{self, Evidence, Violation};
use super::load::Figures;
use super::nemesis::{DrillEvent, millis};
use super::watch::Observed;
use crate::tenures::percentile;

/// Some durations of one kind, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// The smallest.
    pub min_ms: u64,
    /// The median.
    pub p50_ms: u64,
    /// 99 of 100 are no longer.
    pub p99_ms: u64,
    /// The largest.
    pub max_ms: u64,
}

impl Spread {
    /// Of these durations, in any order.
    #[must_use]
    pub fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        let at = |share| millis(percentile(&durations, share));
        let min = durations.first().copied().unwrap_or_default();
        Self { count: durations.len(), min_ms: millis(min), p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, min_ms, p50_ms, p99_ms, max_ms } = self;
        write!(f, "{count:>6}   min {min_ms} ms, p50 {p50_ms} ms, p99 {p99_ms} ms, max {max_ms} ms")
    }
}

/// Longest times without an owner that a report lists, for those who want to know what they come from.
pub const LONGEST: usize = 10;

/// One long time without an owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Longest {
    /// The appliance.
    pub appliance: String,
    /// When it began, in milliseconds since the drill did.
    pub at_ms: u64,
    /// How long it was.
    pub ms: u64,
}

/// What a drill came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DrillReport {
    /// Of everything that was drawn.
    pub seed: u64,
    /// How long faults were injected.
    pub seconds: u64,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Side effects that were judged.
    pub actions: usize,
    /// Appliances that ever were.
    pub appliances: usize,
    /// Calls of clients: changes that were acknowledged, refused, without an answer; tries repeated; reads; checks.
    pub calls: Calls,
    /// Hand-overs: an appliance taken after somebody else, or a former life, had it.
    pub hand_overs: usize,
    /// Times without an owner, see [`checker::unowned`].
    pub unowned: Spread,
    /// The longest of them, at most [`LONGEST`].
    pub longest: Vec<Longest>,
    /// Lives of workers, those that leaders called gone, and how long before that each could act last.
    pub lives: usize,
    /// See there.
    pub gone: Spread,
    /// Rebalances.
    pub rebalances: usize,
    /// Times another coordinator, or the same one in a new term, began to lead.
    pub leader_changes: usize,
    /// Looks at the cluster's state that nobody answered in time, of how many.
    pub unanswered: (u64, u64),
    /// Daemons that found their name taken and were started again.
    pub names_taken: u64,
    /// How long it took, each time all faults were mended and clients rested, until everything was at rest.
    pub recoveries: Spread,
    /// Everything that was broken, in order.
    pub events: Vec<DrillEvent>,
    /// What must not be.
    pub violations: Vec<String>,
}

/// [`Figures`] as JSON has them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Calls {
    /// Changes that were acknowledged.
    pub acknowledged: u64,
    /// Changes that were refused.
    pub refused: u64,
    /// Changes whose outcome nobody said in time.
    pub unknown: u64,
    /// Tries that had to be repeated.
    pub repeated: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Checks that were answered.
    pub checks: u64,
}

impl From<Figures> for Calls {
    fn from(figures: Figures) -> Self {
        let Figures { acknowledged, refused, unknown, repeated, reads, checks } = figures;
        Self { acknowledged, refused, unknown, repeated, reads, checks }
    }
}

impl DrillReport {
    /// Whether nothing was found that must not be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// Takes in what was done in a drill that began at this moment of CLOCK_BOOTTIME.
    pub fn judge(&mut self, evidence: &Evidence, begun_ns: u64) {
        self.actions = checker::actions(evidence);
        self.hand_overs = evidence.tenures.values().map(|tenures| tenures.len().saturating_sub(1)).sum();
        let mut gaps = checker::unowned(evidence);
        gaps.sort_by_key(|gap| std::cmp::Reverse(gap.ns));
        let longest = gaps.iter().take(LONGEST).map(|gap| Longest {
            appliance: gap.appliance.clone(),
            at_ms: gap.since_ns.saturating_sub(begun_ns) / 1_000_000,
            ms: gap.ns / 1_000_000,
        });
        self.longest = longest.collect();
        self.unowned = Spread::of(gaps.iter().map(|gap| Duration::from_nanos(gap.ns)).collect());
        self.lives = evidence.lives.len();
        let slacks = evidence.lives.values().filter_map(|life| u64::try_from(life.slack_ns()?).ok());
        self.gone = Spread::of(slacks.map(Duration::from_nanos).collect());
    }

    /// Takes in what was seen.
    pub fn saw(&mut self, seen: &Observed) {
        self.rebalances = seen.rebalances.len();
        self.leader_changes = seen.leaders.len().saturating_sub(1);
        self.unanswered = (seen.looks.1, seen.looks.0);
    }

    /// Takes in what was broken.
    pub fn broke(&mut self, events: &[DrillEvent]) {
        self.events = events.to_vec();
        for event in events {
            *self.faults.entry(event.kind.clone()).or_default() += 1;
        }
    }

    /// Takes in what must not be, each once.
    pub fn violated(&mut self, violations: impl IntoIterator<Item = Violation>) {
        let mut found: Vec<String> = violations.into_iter().map(|v| format!("{}: {}", v.rule, v.text)).collect();
        found.sort();
        found.dedup();
        self.violations = found;
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}

impl fmt::Display for DrillReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = &self.calls;
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<28}{value}");
        row("seed", &self.seed)?;
        row("seconds", &self.seconds)?;
        row("faults", &format!("{:>6}", self.events.len()))?;
        for (kind, count) in &self.faults {
            row(&format!("  {kind}"), &format!("{count:>6}"))?;
        }
        row("actions checked", &format!("{:>6}   on {} appliances", self.actions, self.appliances))?;
        let changes = format!(
            "{:>6}   {} refused, {} without an answer, {} tries repeated",
            calls.acknowledged, calls.refused, calls.unknown, calls.repeated
        );
        row("changes acknowledged", &changes)?;
        row("reads, checks", &format!("{:>6}   {}", calls.reads, calls.checks))?;
        row("hand-overs", &format!("{:>6}", self.hand_overs))?;
        row("unowned", &self.unowned)?;
        row("lives of workers", &format!("{:>6}", self.lives))?;
        row("  last right to act to gone", &self.gone)?;
        row("rebalances", &format!("{:>6}", self.rebalances))?;
        row("leader changes", &format!("{:>6}", self.leader_changes))?;
        row("looks without answer", &format!("{:>6}   of {}", self.unanswered.0, self.unanswered.1))?;
        row("names found taken", &format!("{:>6}", self.names_taken))?;
        row("recoveries", &self.recoveries)?;
        row("violations", &format!("{:>6}", self.violations.len()))?;
        for violation in &self.violations {
            writeln!(f, "  {violation}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_its_figures_and_every_violation_once() {
        let mut report = DrillReport { seed: 7, ..DrillReport::default() };
        let violation = || Violation { rule: "one owner at a time", text: "w1 and w2".to_owned() };
        report.violated([violation(), violation()]);
        assert!(!report.is_clean());
        report.unowned = Spread::of([3, 1, 2].map(Duration::from_millis).to_vec());
        let text = report.to_string();
        for line in ["seed                        7\n", "min 1 ms, p50 2 ms, p99 3 ms, max 3 ms", "     1\n  one owner"]
        {
            assert!(text.contains(line), "{line:?} is not in\n{text}");
        }
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
