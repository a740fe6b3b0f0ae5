//! What the logs tell of workers' lives: until when each might act, and when a leader called it gone; and the check that
//! none acted after that. All moments are nanoseconds of CLOCK_BOOTTIME, which every process here shares.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::daemon::Daemon;
use crate::fleet::Fleet;
use crate::journal::JournalLine;

/// One life of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoggedLife {
    /// The deadline after which it is fenced, or the moment its gate was shut for good if that came before; absent while
    /// its lease stands, and for one that was killed.
    pub until: Option<u64>,
    /// It ended at the worker: no gate of it opens again.
    pub over: bool,
    /// When the first leader called it gone.
    pub gone: Option<u64>,
    /// Which of its worker's lives it is, from 0.
    pub number: usize,
    /// From when to when it was fenced; open when its lease did not stand again.
    pub fenced: Vec<(u64, Option<u64>)>,
}

impl LoggedLife {
    /// Time between the worker's last right to act and the leader's word that it is gone. Negative is a violation.
    #[must_use]
    pub fn slack_ns(&self) -> Option<i64> {
        let (gone, until) = (i64::try_from(self.gone?).ok()?, i64::try_from(self.until?).ok()?);
        Some(gone - until)
    }
}

/// Lives by worker and incarnation.
pub type Lives = BTreeMap<(String, String), LoggedLife>;

/// Everything the logs tell so far.
#[must_use]
pub fn lives(fleet: &Fleet) -> Lives {
    let mut lives = Lives::new();
    for worker in &fleet.workers {
        told(worker.name(), &worker.log_text(), &mut lives);
    }
    for (worker, incarnation, at) in fleet.coordinators.iter().flat_map(called_gone) {
        let life: &mut LoggedLife = lives.entry((worker, incarnation)).or_default();
        life.gone = Some(life.gone.map_or(at, |earlier| earlier.min(at)));
    }
    lives
}

/// Takes in what one worker's log tells of its lives.
fn told(worker: &str, log: &str, lives: &mut Lives) {
    let (mut current, mut number_of) = (None, 0);
    for line in log.lines() {
        if let Some(incarnation) = field(line, "incarnation").filter(|_| line.contains(" joined ")) {
            let life = (worker.to_owned(), incarnation.to_owned());
            // Said twice of each.
            if current.as_ref() != Some(&life) {
                lives.entry(life.clone()).or_default().number = number_of;
                number_of += 1;
            }
            current = Some(life);
        }
        let Some(life) = current.as_ref().and_then(|life| lives.get_mut(life)) else { continue };
        let fenced = number(line, "deadline_ns").filter(|_| line.contains("fenced: "));
        let over = number(line, "may_act_until_ns").filter(|_| line.contains("this life is over: "));
        if let Some(until) = fenced.or(over) {
            life.until = life.until.max(Some(until));
            life.over |= over.is_some();
        }
        life.fenced.extend(fenced.map(|since| (since, None)));
        if let (Some(ms), Some((since, end))) = (number(line, "fenced_ms"), life.fenced.last_mut()) {
            *end = Some(*since + ms * 1_000_000);
            // It may act again, nobody knows until when.
            life.until = None;
        }
    }
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
type LoggedGrant<'a> = (&'a str, &'a str, (u64, u64));

/// No life acted after it was called gone: neither might it by its own gate, nor did it by the journals. Answers with the
/// slack of each life that was called gone, with the moment of that.
///
/// # Errors
/// What contradicts that, and a life that was called gone while its worker has not noticed.
pub fn nobody_acts_once_gone(lives: &Lives, effects: &[JournalLine]) -> Result<Vec<(u64, Duration)>> {
    let mut uses = BTreeMap::<LoggedGrant<'_>, Vec<&JournalLine>>::new();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_acts_or_might_act_after_it_was_called_gone_is_found() {
        let of = |until, gone| {
            let life = LoggedLife { until: Some(until), over: true, gone: Some(gone), ..LoggedLife::default() };
            Lives::from([(("w1".to_owned(), "i1".to_owned()), life)])
        };
        let effect = |at_ns, sequence| JournalLine {
            appliance: "a".to_owned(),
            worker: "w1".to_owned(),
            token: (1, sequence),
            action: "spawn".to_owned(),
            at_ns,
            ..JournalLine::default()
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
    fn lives_follow_each_other_in_a_log_and_are_fenced_from_time_to_time() {
        let log = "\
            INFO group: joined worker=w1 incarnation=ia\n\
            INFO session: joined worker=w1 incarnation=ia lease=2s\n\
            WARN fence: fenced: the lease has run out worker=w1 deadline_ns=1000\n\
            INFO fence: the lease stands again worker=w1 fenced_ms=2\n\
            WARN fence: fenced: the lease has run out worker=w1 deadline_ns=9000000\n\
            WARN session: this life is over: the session ended worker=w1 held=3 may_act_until_ns=9000000\n\
            INFO group: joined worker=w1 incarnation=ib\n";
        let mut lives = Lives::new();
        told("w1", log, &mut lives);
        let former = LoggedLife {
            until: Some(9_000_000),
            over: true,
            gone: None,
            number: 0,
            fenced: vec![(1_000, Some(2_001_000)), (9_000_000, None)],
        };
        let life = |name: &str| ("w1".to_owned(), name.to_owned());
        let newer = LoggedLife { number: 1, ..LoggedLife::default() };
        assert_eq!(lives, Lives::from([(life("ia"), former), (life("ib"), newer)]));
    }

    #[test]
    fn a_lease_that_stands_again_has_no_known_end() {
        let log = "\
            INFO group: joined worker=w1 incarnation=ia\n\
            WARN fence: fenced: the lease has run out worker=w1 deadline_ns=1000\n\
            INFO fence: the lease stands again worker=w1 fenced_ms=2\n";
        let mut lives = Lives::new();
        told("w1", log, &mut lives);
        let life = lives.values().next().expect("one joined");
        assert_eq!((life.until, life.fenced.as_slice()), (None, [(1_000, Some(2_001_000))].as_slice()));
    }

    #[test]
    fn fields_of_log_lines_are_found_wherever_they_stand() {
        let line =
            "2026-01-01T00:00:00Z  INFO a: gone: its lease is over, or it left worker=w1 incarnation=i1f at_ns=17";
        assert_eq!((field(line, "worker"), number(line, "at_ns"), field(line, "absent")), (Some("w1"), Some(17), None));
    }
}
