//! Waits until appliances have reached the goal of a command: configured, or gone.
//!
//! [`Tracker`] decides from watch events alone, without time or network; [`settle`] feeds it, reopens broken streams
//! and gives up at the deadline. Phase `Error` counts as a failure while it lasts: the worker may succeed after its
//! cooldown, but a waiting user should see the error now.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::ProgressBar;
use proto::admin::v1;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Code;

use crate::client::{AdminClient, Backoff, CALL_TIMEOUT};
use crate::document::view;
use crate::error::Failure;
use crate::output::Ui;
use crate::text::one_line;

/// Without a progress bar, progress is printed for at most this many appliances.
const MAX_LINES: usize = 20;

/// The goal of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Phase `Configured`, with this generation or a later one acted on.
    Configured {
        /// The generation that the command created or found.
        generation: u64,
    },
    /// This phase, with this generation or a later one acted on. Phase `Error` is no failure: it may yet come.
    Becomes {
        /// The phase.
        phase: v1::Phase,
        /// The generation; 0 for any.
        generation: u64,
    },
    /// A worker owns it.
    Owned,
    /// Removed completely.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum GoalState {
    Waiting,
    Reached,
    Failed,
}

#[derive(Debug)]
struct WaitTarget {
    label: String,
    goal: Goal,
    state: GoalState,
    /// Reported since the stream was opened.
    seen: bool,
    phase: &'static str,
    /// The last error.
    error: String,
}

impl WaitTarget {
    fn describe(&self) -> String {
        let error = if self.error.is_empty() { String::new() } else { format!(": {}", self.error) };
        format!("{}: {}{error}", self.label, self.phase)
    }
}

/// The appliances that are waited for.
#[derive(Debug)]
pub(crate) struct Tracker {
    targets: BTreeMap<String, WaitTarget>,
    tenants: Vec<String>,
    /// The state of all of them has been seen at least once.
    is_synced: bool,
}

impl Tracker {
    /// A tracker for these appliances and their goals.
    pub(crate) fn new<'a>(ui: &Ui, appliances: impl IntoIterator<Item = (&'a v1::Appliance, Goal)>) -> Self {
        let mut tenants = Vec::new();
        let mut targets = BTreeMap::new();
        for (appliance, goal) in appliances {
            if !tenants.contains(&appliance.tenant) {
                tenants.push(appliance.tenant.clone());
            }
            let target = WaitTarget {
                label: ui.label(appliance),
                goal,
                state: GoalState::Waiting,
                seen: false,
                phase: view::phase(appliance),
                error: String::new(),
            };
            targets.insert(appliance.id.clone(), target);
        }
        Self { targets, tenants, is_synced: false }
    }

    /// Filter of a watch that covers them all.
    fn filter(&self) -> v1::ApplianceFilter {
        match self.tenants.as_slice() {
            [tenant] => v1::ApplianceFilter { tenant: tenant.clone(), ..v1::ApplianceFilter::default() },
            _ => v1::ApplianceFilter::default(),
        }
    }

    /// A new stream was opened: what it has not reported by `SYNCED` is gone.
    fn begin(&mut self) {
        self.targets.values_mut().for_each(|target| target.seen = false);
    }

    /// Applies an event; returns a line to print when something relevant has changed.
    fn observe(&mut self, event: &v1::ApplianceEvent) -> Option<String> {
        use v1::appliance_event::Type;

        if event.r#type() == Type::Synced {
            self.is_synced = true;
            let missing = self.targets.values_mut().filter(|t| !t.seen);
            let lines: Vec<_> = missing.filter_map(Self::gone).collect();
            return (!lines.is_empty()).then(|| lines.join("\n"));
        }
        let appliance = event.appliance.as_ref()?;
        let target = self.targets.get_mut(&appliance.id)?;
        target.seen = true;
        if event.r#type() == Type::Gone {
            return Self::gone(target);
        }
        let status = appliance.status.clone().unwrap_or_default();
        let error = problem(appliance, &status);
        let reached = |is_reached| if is_reached { GoalState::Reached } else { GoalState::Waiting };
        let state = match target.goal {
            Goal::Gone => GoalState::Waiting,
            Goal::Becomes { phase, generation } => {
                // What deletion leads to is waited for while it goes on; nothing else comes any more.
                let is_lost = appliance.deleting && !matches!(phase, v1::Phase::Deleting | v1::Phase::Gone);
                let is_there = status.phase() == phase && status.observed_generation >= generation;
                if is_lost && !is_there { GoalState::Failed } else { reached(is_there) }
            }
            Goal::Owned => reached(appliance.assignment.as_ref().is_some_and(|assignment| assignment.state == "owned")),
            Goal::Configured { generation } => match status.phase() {
                _ if appliance.deleting => GoalState::Failed,
                v1::Phase::Configured if status.observed_generation >= generation => GoalState::Reached,
                v1::Phase::Error if status.observed_generation >= generation => GoalState::Failed,
                _ => GoalState::Waiting,
            },
        };
        let error = if state == GoalState::Reached { String::new() } else { error };
        let changed = state != target.state || (!error.is_empty() && error != target.error);
        target.phase = view::phase(appliance);
        target.error =
            if appliance.deleting && state == GoalState::Failed { "is being deleted".to_owned() } else { error };
        target.state = state;
        changed.then(|| target.describe())
    }

    fn gone(target: &mut WaitTarget) -> Option<String> {
        let state = if target.goal == Goal::Gone { GoalState::Reached } else { GoalState::Failed };
        let changed = target.state != state;
        target.state = state;
        target.phase = "Gone";
        target.error = String::new();
        changed.then(|| target.describe())
    }

    fn reached(&self) -> u64 {
        self.targets.values().filter(|t| t.state == GoalState::Reached).count() as u64
    }

    fn is_settled(&self) -> bool {
        self.targets.values().all(|t| t.state != GoalState::Waiting)
    }

    /// A line for each appliance that has not reached its goal.
    fn missing(&self) -> Vec<String> {
        let mut missing: Vec<_> = self.targets.values().filter(|t| t.state != GoalState::Reached).collect();
        missing.sort_by(|a, b| a.label.cmp(&b.label));
        missing.into_iter().map(WaitTarget::describe).collect()
    }
}

/// What keeps an appliance from its goal, as far as is known now: the last error, or why no worker has it.
fn problem(appliance: &v1::Appliance, status: &v1::Status) -> String {
    if appliance.assignment.as_ref().is_some_and(|assignment| assignment.hands_off) {
        return "a debug mode keeps hands off it; this is done once that is cleared (rugctl debug list)".to_owned();
    }
    let assignment = appliance.assignment.as_ref().filter(|assignment| assignment.worker.is_empty());
    match assignment {
        Some(assignment) if !assignment.reason.is_empty() => {
            format!("waits for a worker: {}", one_line(&assignment.reason))
        }
        _ => one_line(&status.last_error),
    }
}

/// Waits until every appliance has reached its goal or has failed.
///
/// # Errors
/// Exit code 1 with a line for each appliance that failed or is not there after `limit`.
pub(crate) async fn settle(
    client: &AdminClient,
    ui: &Ui,
    mut tracker: Tracker,
    limit: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    let bar = ui.bar(tracker.targets.len() as u64);
    // No time at all means to look once, for which the calls have theirs.
    let once = limit.is_zero();
    let deadline = if once { Instant::now() + CALL_TIMEOUT } else { deadline };
    let result = match timeout_at(deadline, follow(client, ui, &bar, &mut tracker, once)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::failed(format!("not done after {}", humantime::format_duration(limit)))),
    };
    bar.finish_and_clear();
    let missing = tracker.missing();
    match result {
        Ok(()) if missing.is_empty() => Ok(()),
        Ok(()) => Err(Failure::failed(missing.join("\n"))),
        Err(mut failure) => {
            failure.message = format!("{}\n{}", failure.message, missing.join("\n"));
            Err(failure)
        }
    }
}

async fn follow(
    client: &AdminClient,
    ui: &Ui,
    bar: &ProgressBar,
    tracker: &mut Tracker,
    once: bool,
) -> Result<(), Failure> {
    let mut backoff = Backoff::new();
    let is_over = |tracker: &Tracker| tracker.is_settled() || (once && tracker.is_synced);
    while !is_over(tracker) {
        let mut stream = client.watch(tracker.filter()).await?;
        tracker.begin();
        while !is_over(tracker) {
            let event = match stream.message().await {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(status) if may_reopen(status.code()) => break,
                Err(status) => return Err(status.into()),
            };
            backoff = Backoff::new();
            if let Some(line) = tracker.observe(&event) {
                print_progress(ui, bar, tracker, &line);
            }
        }
        if !is_over(tracker) {
            sleep(backoff.next()).await;
        }
    }
    Ok(())
}

/// Whether a stream that ended with this code should be reopened: the server stopped, or this reader was too slow.
pub(crate) fn may_reopen(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Aborted | Code::DataLoss | Code::Cancelled | Code::ResourceExhausted | Code::Unknown
    )
}

fn print_progress(ui: &Ui, bar: &ProgressBar, tracker: &Tracker, line: &str) {
    bar.set_position(tracker.reached());
    let each = tracker.targets.len() <= MAX_LINES;
    match (ui.progress, each) {
        // Printed above the bar, where it stays when the bar is cleared.
        (true, true) => bar.println(line),
        (true, false) => bar.set_message(line.lines().last().unwrap_or_default().to_owned()),
        (false, true) => ui.note(line),
        (false, false) => {}
    }
}

#[cfg(test)]
mod tests {
    use v1::appliance_event::Type;

    use super::*;

    fn appliance(id: &str, phase: v1::Phase, observed: u64, error: &str) -> v1::Appliance {
        let spec = v1::Spec { kind: Some(v1::spec::Kind::Custom(v1::Custom::default())), ..v1::Spec::default() };
        v1::Appliance {
            id: id.into(),
            name: format!("n{id}"),
            spec: Some(spec),
            status: Some(v1::Status {
                phase: phase.into(),
                observed_generation: observed,
                last_error: error.into(),
                ..v1::Status::default()
            }),
            ..v1::Appliance::default()
        }
    }

    fn event(kind: Type, appliance: v1::Appliance) -> v1::ApplianceEvent {
        v1::ApplianceEvent { r#type: kind.into(), appliance: Some(appliance) }
    }

    fn synced() -> v1::ApplianceEvent {
        v1::ApplianceEvent { r#type: Type::Synced.into(), appliance: None }
    }

    fn tracker(goal: Goal) -> Tracker {
        Tracker::new(
            &crate::output::Ui::plain(crate::output::OutputFormat::Table),
            [(&appliance("1", v1::Phase::Down, 0, ""), goal)],
        )
    }

    #[test]
    fn configured_with_an_older_generation_is_not_enough() {
        let mut tracker = tracker(Goal::Configured { generation: 2 });
        tracker.begin();
        tracker.observe(&event(Type::Current, appliance("1", v1::Phase::Configured, 1, "")));
        tracker.observe(&synced());
        assert!(!tracker.is_settled());
        let line = tracker.observe(&event(Type::Changed, appliance("1", v1::Phase::Configured, 2, "old error")));
        assert_eq!(line.as_deref(), Some("custom/n1: Configured"));
        assert!(tracker.is_settled() && tracker.missing().is_empty());
    }

    #[test]
    fn errors_are_printed_while_waiting_and_phase_error_fails() {
        let mut tracker = tracker(Goal::Configured { generation: 1 });
        let busy = appliance("1", v1::Phase::Booting, 1, "port 8080 is in use");
        let line = tracker.observe(&event(Type::Changed, busy.clone()));
        assert_eq!(line.as_deref(), Some("custom/n1: Booting: port 8080 is in use"));
        assert_eq!(tracker.observe(&event(Type::Changed, busy)), None, "the same error is printed once");
        tracker.observe(&event(Type::Changed, appliance("1", v1::Phase::Error, 1, "port 8080 is in use")));
        assert!(tracker.is_settled());
        assert_eq!(tracker.missing(), ["custom/n1: Error: port 8080 is in use"]);
        tracker.observe(&event(Type::Changed, appliance("1", v1::Phase::Configured, 1, "")));
        assert!(tracker.missing().is_empty(), "a later success counts");
    }

    #[test]
    fn why_no_worker_has_it_is_told_while_waiting() {
        let mut tracker = tracker(Goal::Configured { generation: 1 });
        let mut waiting = appliance("1", v1::Phase::Down, 0, "");
        let assignment = |worker: &str, reason: &str| v1::Assignment {
            state: if worker.is_empty() { "unowned" } else { "owned" }.into(),
            worker: worker.into(),
            reason: reason.into(),
            ..v1::Assignment::default()
        };
        waiting.assignment = Some(assignment("", "paused: night work"));
        let line = tracker.observe(&event(Type::Changed, waiting.clone()));
        assert_eq!(line.as_deref(), Some("custom/n1: Down: waits for a worker: paused: night work"));
        assert_eq!(tracker.missing(), ["custom/n1: Down: waits for a worker: paused: night work"]);
        waiting.assignment = Some(assignment("w1", "ring preference"));
        tracker.observe(&event(Type::Changed, waiting));
        assert_eq!(tracker.missing(), ["custom/n1: Down"], "a worker has it");
    }

    #[test]
    fn a_phase_that_is_waited_for_may_come_after_an_error() {
        let goal = Goal::Becomes { phase: v1::Phase::Configured, generation: 2 };
        let mut tracker = tracker(goal);
        tracker.observe(&event(Type::Changed, appliance("1", v1::Phase::Error, 2, "no port")));
        assert!(!tracker.is_settled());
        assert_eq!(tracker.missing(), ["custom/n1: Error: no port"]);
        tracker.observe(&event(Type::Changed, appliance("1", v1::Phase::Configured, 2, "")));
        assert!(tracker.is_settled() && tracker.missing().is_empty());
        let deleted = v1::Appliance { deleting: true, ..appliance("1", v1::Phase::Deleting, 2, "") };
        tracker.observe(&event(Type::Changed, deleted));
        assert_eq!(tracker.missing(), ["custom/n1: Deleting: is being deleted"]);
    }

    #[test]
    fn an_owner_is_waited_for() {
        let mut tracker = tracker(Goal::Owned);
        let assignment = v1::Assignment { state: "granting".into(), worker: "w1".into(), ..v1::Assignment::default() };
        let mut found = v1::Appliance { assignment: Some(assignment), ..appliance("1", v1::Phase::Down, 0, "") };
        tracker.observe(&event(Type::Changed, found.clone()));
        assert!(!tracker.is_settled());
        found.assignment.iter_mut().for_each(|assignment| assignment.state = "owned".into());
        tracker.observe(&event(Type::Changed, found));
        assert!(tracker.is_settled());
    }

    #[test]
    fn an_appliance_missing_at_synced_is_gone() {
        for (goal, missing) in [(Goal::Gone, 0), (Goal::Configured { generation: 1 }, 1)] {
            let mut tracker = tracker(goal);
            tracker.begin();
            tracker.observe(&event(Type::Current, appliance("2", v1::Phase::Configured, 1, "")));
            tracker.observe(&synced());
            assert!(tracker.is_settled());
            assert_eq!(tracker.missing().len(), missing, "{goal:?}");
        }
    }

    #[test]
    fn waiting_for_a_deleting_appliance_fails() {
        let mut tracker = tracker(Goal::Configured { generation: 1 });
        let mut deleted = appliance("1", v1::Phase::Configured, 1, "");
        deleted.deleting = true;
        tracker.observe(&event(Type::Changed, deleted));
        assert_eq!(tracker.missing(), ["custom/n1: Configured: is being deleted"]);
    }

    #[test]
    fn events_of_other_appliances_are_ignored() {
        let mut tracker = tracker(Goal::Gone);
        assert_eq!(tracker.observe(&event(Type::Gone, appliance("9", v1::Phase::Gone, 1, ""))), None);
        assert!(!tracker.is_settled());
    }
}
