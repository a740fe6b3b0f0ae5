//! Drills: a cluster of real processes on hosts of its own, clients that change appliances all the time, and a nemesis
//! that breaks everything it can reach; then proof that nothing went wrong that must not.
//!
//! | file | |
//! |---|---|
//! | `plan` | what will be broken, drawn from the seed |
//! | `nemesis` | breaks and mends it |
//! | `load`, `ledger` | what clients ask for and are told, and what follows from that |
//! | `watch` | looks on |
//! | `evidence`, `checker` | what was left behind, and whether it contradicts a rule |
//! | `report` | the figures |
//!
//! A seed fixes what is broken when, and what clients ask for; what becomes of it depends on the machine as well. Every
//! few storms the clients rest until all is calm, everything is compared, and the time that took is a figure: also that
//! everything is owned and configured again is a promise.

pub mod checker;
pub mod evidence;
pub mod ledger;
pub mod load;
pub mod nemesis;
pub mod plan;
pub mod report;
pub mod watch;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use runtime::clock;

use self::checker::{Evidence, FinalState, RunningInstance, Violation};
use self::load::{Load, Size};
use self::nemesis::{Nemesis, millis};
use self::plan::{Shape, Storms};
use self::report::{DrillReport, Spread};
use self::watch::{Observed, Observer};
use crate::cluster::logs;
use crate::fleet::{Fleet, Hosts, Options};
use crate::tenures::TELL_TENURES;

/// How long it may take until everything is at rest once nothing is broken any more: sessions that end, a brake that
/// waits, a leader that waits for workers, appliances that are booted anew, on a machine that is busy with other tests.
const RECOVERY: Duration = Duration::from_secs(150);
/// How long nothing may change before it counts as rest. An instance whose new owner is on another host, where it does not
/// answer, is replaced after three probes, a second apart.
const STABLE: Duration = Duration::from_secs(5);
/// Violations kept; one is enough to fail.
const VIOLATIONS: usize = 200;
/// What daemons may log at level `ERROR` while everything around them breaks.
const TOLERATED: [&str; 0] = [];

/// A drill.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Of everything that is drawn.
    pub seed: u64,
    /// How long faults are injected.
    pub length: Duration,
    /// Session timeout of coordinators and workers.
    pub session: Duration,
    /// How large the cluster is.
    pub shape: Shape,
    /// How much there is to do.
    pub size: Size,
    /// Keep all files in any case; otherwise only after a violation.
    pub keep: bool,
    /// Say on standard error what is being done.
    pub talks: bool,
}

impl Config {
    /// A drill of this length with this seed.
    #[must_use]
    pub const fn new(seed: u64, length: Duration) -> Self {
        Self {
            seed,
            length,
            session: Duration::from_secs(4),
            shape: Shape { workers: 4, coordinators: 3, zookeepers: 3 },
            size: Size { clients: 4, processes: 3, simulations: 6 },
            keep: false,
            talks: true,
        }
    }
}

/// Runs a drill. Needs [`servers::netns::Network::available`].
///
/// # Errors
/// When it cannot be run. Violations are no errors, they are in the report.
pub async fn run(config: &Config) -> Result<DrillReport> {
    let world = tempfile::tempdir().context("make a directory for the simulated driver")?;
    let mut fleet = Fleet::start(options(config, world.path())).await.context("start the cluster")?;
    let drill = Drill {
        config,
        world: world.path(),
        nemesis: Nemesis::new(config.seed, config.shape, config.talks),
        violations: BTreeSet::new(),
        recoveries: Vec::new(),
        evidence: Evidence::default(),
    };
    let report = drill.run(&mut fleet).await;
    let keep = config.keep || report.as_ref().map_or(true, |report| !report.is_clean());
    fleet.dismantle(keep)?;
    report
}

fn options(config: &Config, world: &Path) -> Options {
    let Shape { workers, coordinators, zookeepers } = config.shape;
    Options {
        zookeepers: zookeepers.into(),
        coordinators,
        workers,
        drivers: vec!["process", "simulated"],
        session: config.session,
        hosts: Hosts::Each,
        proxies: true,
        coordinator_env: vec![
            // It is the nemesis that kills workers, not an appliance.
            ("RUG_COORDINATOR_MACHINE__QUARANTINE_STRIKES", "1000000".to_owned()),
            // So that cuts between workers and coordinators come to evictions at times.
            ("RUG_COORDINATOR_MACHINE__UNREACHABLE_AFTER", "10s".to_owned()),
        ],
        worker_env: vec![
            (TELL_TENURES.0, TELL_TENURES.1.to_owned()),
            ("RUG_WORKER_SIMULATED__WORLD", world.to_string_lossy().into_owned()),
            ("RUG_WORKER_SIMULATED__BOOT_LATENCY", "50ms".to_owned()),
            ("RUG_WORKER_SESSION__RETRY_CAP", "500ms".to_owned()),
            ("RUG_WORKER_SESSION__DRAIN_TIMEOUT", "10s".to_owned()),
            ("RUG_WORKER_PROCESS__STOP_GRACE", "2s".to_owned()),
            // An instance that was handed over before it first answered does not answer its new owner, on another host.
            ("RUG_WORKER_RUNNER__LIFECYCLE__BOOT_TIMEOUT", "10s".to_owned()),
            // Boots fail when their worker is stopped in the middle; that says nothing about the next one.
            ("RUG_WORKER_RUNNER__LIFECYCLE__ERROR_COOLDOWN", "3s".to_owned()),
            ("RUG_WORKER_RUNNER__LIFECYCLE__STABLE_AFTER", "1s".to_owned()),
        ],
        ..Options::default()
    }
}

struct Drill<'a> {
    config: &'a Config,
    world: &'a Path,
    nemesis: Nemesis,
    violations: BTreeSet<Violation>,
    recoveries: Vec<Duration>,
    /// As of the last check.
    evidence: Evidence,
}

impl Drill<'_> {
    async fn run(mut self, fleet: &mut Fleet) -> Result<DrillReport> {
        let load = Load::start(self.config.seed, self.config.size, &fleet.apis);
        let watch = Observer::start(&fleet.apis, fleet.root());
        self.nemesis.say(&format!("seed {}: the cluster is up, files in {}", self.config.seed, fleet.root().display()));
        let begun_ns = clock::now().as_nanos();
        let deadline = Instant::now() + self.config.length;
        for storm in Storms::new(self.config.seed, self.config.shape) {
            self.nemesis.storm(fleet, &storm, deadline).await?;
            if Instant::now() >= deadline {
                break;
            }
            self.nemesis.wait(fleet, deadline.min(Instant::now() + storm.calm)).await?;
            if storm.recovers && Instant::now() < deadline {
                load.rest().await;
                let recovered = self.recover(fleet, &load).await?;
                if !recovered {
                    break;
                }
                load.work();
            }
        }
        let seconds = self.nemesis.elapsed().as_secs();
        self.nemesis.mend_all(fleet).await?;
        self.nemesis.say("everything is mended; waiting for calm");
        load.rest().await;
        self.recover(fleet, &load).await?;
        let (book, seen) = (load.stop().await, watch.seen());
        drop(watch);
        self.judge_seen(&seen, fleet.root());
        self.violations.extend(
            book.contradictions
                .iter()
                .map(|text| Violation { rule: "no acknowledged change is lost", text: text.clone() }),
        );
        self.violations.extend(std::mem::take(&mut self.nemesis.violations));

        let mut report = DrillReport { seed: self.config.seed, seconds, ..DrillReport::default() };
        report.appliances = book.ledger.len();
        report.calls = book.figures.into();
        report.names_taken = self.nemesis.names_taken;
        report.recoveries = Spread::of(self.recoveries);
        report.broke(&self.nemesis.events);
        report.saw(&seen);
        report.judge(&self.evidence, begun_ns);
        report.violated(self.violations);
        Ok(report)
    }

    /// Waits until everything is at rest, and compares everything. Whether it came to rest in time.
    async fn recover(&mut self, fleet: &mut Fleet, load: &Load) -> Result<bool> {
        let begun = Instant::now();
        let mut last = String::new();
        // Since when the same instances were there at every look.
        let mut since: Option<(Instant, Vec<RunningInstance>)> = None;
        let end = loop {
            match self.at_rest(fleet, load).await {
                Ok(end) => match &since {
                    Some((at, running)) if *running == end.running => {
                        if at.elapsed() >= STABLE {
                            break Some((end, at.duration_since(begun)));
                        }
                    }
                    _ => since = Some((Instant::now(), end.running)),
                },
                Err(problem) => (since, last) = (None, format!("{problem:#}")),
            }
            if since.is_none() && begun.elapsed() >= RECOVERY {
                break None;
            }
            self.nemesis.wait(fleet, Instant::now() + Duration::from_millis(100)).await?;
        };
        let Some((mut end, took)) = end else {
            self.nemesis.say(&format!("not at rest: {last}"));
            self.violations.insert(Violation {
                rule: "everything comes to rest",
                text: format!("not within {RECOVERY:?} after everything was mended: {last}"),
            });
            self.check(fleet);
            return Ok(false);
        };
        end.stored = evidence::stored(fleet).await?;
        self.recoveries.push(took);
        let found = checker::check_end(&end);
        let done = self.check(fleet);
        let bad = found.len() + done;
        self.keep(found);
        self.nemesis.say(&format!(
            "at rest after {} ms: {} appliances, {bad} violations",
            millis(took),
            end.resting.len()
        ));
        Ok(true)
    }

    async fn at_rest(&self, fleet: &Fleet, load: &Load) -> Result<FinalState> {
        let ledger = load.book().ledger;
        let mut last = None;
        for api in &fleet.apis {
            match evidence::at_rest(api, fleet.root(), self.world, &ledger).await {
                Ok(end) => return Ok(end),
                Err(problem) => last = Some(problem),
            }
        }
        last.map_or_else(|| bail!("there is no coordinator"), Err)
    }

    /// Checks everything that was done so far. Answers with how much contradicts the rules.
    fn check(&mut self, fleet: &Fleet) -> usize {
        let found = match evidence::gather(fleet, self.world, &self.nemesis.exits) {
            Ok(evidence) => {
                let found = checker::check(&evidence);
                self.evidence = evidence;
                found
            }
            Err(problem) => vec![Violation { rule: "logs make sense", text: format!("{problem:#}") }],
        };
        let count = found.len();
        self.keep(found);
        count
    }

    fn keep(&mut self, found: Vec<Violation>) {
        for violation in found {
            if self.violations.len() < VIOLATIONS && self.violations.insert(violation.clone()) {
                self.nemesis.say(&format!("VIOLATION {}: {}", violation.rule, violation.text));
            }
        }
    }

    fn judge_seen(&mut self, seen: &Observed, root: &Path) {
        let mut found = Vec::new();
        for text in &seen.doubles {
            found.push(Violation { rule: "no instance runs twice", text: text.clone() });
        }
        for (term, count) in seen.violations.iter().filter(|(_, count)| **count > 0) {
            let text = format!("the leader of term {term} met {count}: {:?}", seen.notes);
            found.push(Violation { rule: "nothing contradicts the table", text });
        }
        for line in logs::unexpected(root, &TOLERATED.map(str::to_owned)) {
            found.push(Violation { rule: "logs show no error", text: line });
        }
        self.keep(found);
    }
}
