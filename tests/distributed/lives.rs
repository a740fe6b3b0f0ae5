//! What the logs tell of workers' lives, and the journals of what was done: until when each life might act, when a leader
//! called it gone, who did what when. All moments are nanoseconds of CLOCK_BOOTTIME, which every process here shares.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::cluster::daemon::Daemon;
use tests::fleet::Fleet;

/// One life of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    /// The newest deadline after which it was fenced, or the moment its gate was shut for good if that came before.
    pub(crate) until: Option<u64>,
    /// It ended at the worker: no gate of it opens again.
    pub(crate) over: bool,
    /// When the first leader called it gone.
    pub(crate) gone: Option<u64>,
}

impl Life {
    /// Time between the worker's last right to act and the leader's word that it is gone. Negative is a violation.
    pub(crate) fn slack_ns(&self) -> Option<i64> {
        let (gone, until) = (i64::try_from(self.gone?).ok()?, i64::try_from(self.until?).ok()?);
        Some(gone - until)
    }
}

/// Lives by worker and incarnation.
pub(crate) type Lives = BTreeMap<(String, String), Life>;

/// Everything the logs tell so far.
pub(crate) fn lives(fleet: &Fleet) -> Lives {
    let mut lives = Lives::new();
    for worker in &fleet.workers {
        let mut current = None;
        for line in worker.log_text().lines() {
            if let Some(incarnation) = field(line, "incarnation").filter(|_| line.contains(" joined ")) {
                current = Some((worker.name().to_owned(), incarnation.to_owned()));
            }
            let fenced = number(line, "deadline_ns").filter(|_| line.contains("fenced: "));
            let over = number(line, "may_act_until_ns").filter(|_| line.contains("this life is over: "));
            if let (Some(until), Some(life)) = (fenced.or(over), &current) {
                let life = lives.entry(life.clone()).or_default();
                life.until = life.until.max(Some(until));
                life.over |= over.is_some();
            }
        }
    }
    for (worker, incarnation, at) in fleet.coordinators.iter().flat_map(called_gone) {
        let life: &mut Life = lives.entry((worker, incarnation)).or_default();
        life.gone = Some(life.gone.map_or(at, |earlier| earlier.min(at)));
    }
    lives
}

/// Workers whose lives this coordinator called gone: name, incarnation, moment.
fn called_gone(coordinator: &Daemon) -> Vec<(String, String, u64)> {
    let gone = |line: &str| {
        let fields = (field(line, "worker")?.to_owned(), field(line, "incarnation")?.to_owned());
        Some((fields.0, fields.1, number(line, "at_ns")?))
    };
    coordinator.log_text().lines().filter(|line| line.contains("gone: its lease is over")).filter_map(gone).collect()
}

/// Worker, appliance and token.
type Grant<'a> = (&'a str, &'a str, (u64, u64));

/// A side effect as its journal has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    /// Which appliance.
    pub(crate) appliance: String,
    /// Who did it.
    pub(crate) worker: String,
    /// Term and sequence of the token it was done with.
    pub(crate) token: (u64, u64),
    /// What was done.
    pub(crate) action: String,
    /// When it began.
    pub(crate) at_ns: u64,
}

/// All side effects that began, in the order of time.
///
/// # Errors
/// When a journal cannot be read.
pub(crate) fn effects(state_dir: &Path) -> Result<Vec<Effect>> {
    let mut found = Vec::new();
    for path in fs::read_dir(state_dir.join("fences"))?.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        let appliance = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        for line in fs::read_to_string(&path)?.lines() {
            // The last line may be half written by now.
            let Ok(entry) = serde_json::from_str::<Value>(line) else { continue };
            let number = |name: &str| entry.get(name).and_then(Value::as_u64).unwrap_or_default();
            let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            if text("outcome") == "begun" {
                let (worker, action) = (text("worker"), text("action"));
                let (token, at_ns) = ((number("term"), number("sequence")), number("at_boot_ns"));
                found.push(Effect { appliance: appliance.clone(), worker, token, action, at_ns });
            }
        }
    }
    found.sort_by_key(|effect| effect.at_ns);
    Ok(found)
}

/// No life acted after it was called gone: neither might it by its own gate, nor did it by the journals. Answers with the
/// slack of each life that was called gone, with the moment of that.
///
/// # Errors
/// What contradicts that, and a life that was called gone while its worker has not noticed.
pub(crate) fn nobody_acts_once_gone(lives: &Lives, effects: &[Effect]) -> Result<Vec<(u64, Duration)>> {
    let mut uses = BTreeMap::<Grant<'_>, Vec<&Effect>>::new();
    for effect in effects {
        uses.entry((&effect.worker, &effect.appliance, effect.token)).or_default().push(effect);
    }
    let mut slacks = Vec::new();
    for ((worker, incarnation), life) in lives {
        let Some(gone) = life.gone else { continue };
        ensure!(life.over, "{worker} {incarnation} is gone and does not know it: {life:?}");
        let until = life.until.context("it is over")?;
        let slack = life.slack_ns().context("both are known")?;
        ensure!(slack >= 0, "{worker} {incarnation} might act for {} ns after it was called gone", -slack);
        slacks.push((gone, Duration::from_nanos(slack.unsigned_abs())));
        // Lives of one worker follow each other, so a token that was used before this one's end is its own or older.
        for ((by, _, _), used) in &uses {
            let late = used.iter().find(|effect| effect.at_ns > gone);
            let own = *by == worker && used.first().is_some_and(|first| first.at_ns <= until);
            ensure!(
                !own || late.is_none(),
                "{worker} {incarnation} acted after it was called gone at {gone}: {late:?}"
            );
        }
    }
    Ok(slacks)
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let after = line.split_once(&format!(" {name}="))?.1;
    after.split_ascii_whitespace().next()
}

fn number(line: &str, name: &str) -> Option<u64> {
    field(line, name)?.parse().ok()
}

#[test]
fn a_life_that_acts_or_might_act_after_it_was_called_gone_is_found() {
    let of = |until, gone| {
        let life = Life { until: Some(until), over: true, gone: Some(gone) };
        Lives::from([(("w1".to_owned(), "i1".to_owned()), life)])
    };
    let effect = |at_ns, sequence| Effect {
        appliance: "a".to_owned(),
        worker: "w1".to_owned(),
        token: (1, sequence),
        action: "spawn".to_owned(),
        at_ns,
    };
    let slacks =
        nobody_acts_once_gone(&of(10, 30), &[effect(5, 1), effect(40, 2)]).expect("the second is a new life's");
    assert_eq!(slacks, [(30, Duration::from_nanos(20))]);
    let might = nobody_acts_once_gone(&of(31, 30), &[]).expect_err("might act");
    assert!(might.to_string().contains("might act for 1 ns"), "{might}");
    let did = nobody_acts_once_gone(&of(10, 30), &[effect(5, 1), effect(40, 1)]).expect_err("did act");
    assert!(did.to_string().contains("acted after"), "{did}");
}

#[test]
fn fields_of_log_lines_are_found_wherever_they_stand() {
    let line = "2026-01-01T00:00:00Z  INFO a: gone: its lease is over, or it left worker=w1 incarnation=i1f at_ns=17";
    assert_eq!((field(line, "worker"), number(line, "at_ns"), field(line, "absent")), (Some("w1"), Some(17), None));
}
