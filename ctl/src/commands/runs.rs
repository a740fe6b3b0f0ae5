//! `rugctl runs`: what workers did about appliances, and how their phases changed.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::SystemTime;

use clap::Args;
use common::ApplianceId;
use common::run::RunOutcome;
use proto::admin::v1;

use crate::commands::audit::parse_time;
use crate::commands::{CommandContext, watch};
use crate::complete;
use crate::document::view::phase_name as phase;
use crate::error::{Exit, Failure};
use crate::names::Tenant;
use crate::output::view::Run;
use crate::output::{TextTable, Tone, moment};
use crate::text::one_line;

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct RunsArgs {
    /// Only those of this appliance, by name or id; also one that is gone
    #[arg(add = complete::appliances())]
    name: Option<String>,
    /// Only those of this worker
    #[arg(long, value_name = "WORKER", add = complete::workers())]
    worker: Option<String>,
    /// Only those that ended like this: completed, failed, released, removed, interrupted, observed
    #[arg(long, value_parser = parse_outcome, add = complete::words(outcomes))]
    outcome: Option<RunOutcome>,
    /// Not ended before this: a time, or how long ago
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<SystemTime>,
    /// Ended before this: a time, or how long ago
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<SystemTime>,
    /// Also changes of phase that nothing was done for
    #[arg(long, conflicts_with = "outcome")]
    phases: bool,
    /// Most runs to show, the newest
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print what ends from now on, after what --since asks for
    #[arg(short, long, conflicts_with_all = ["limit", "until"])]
    follow: bool,
    #[command(flatten)]
    tenant: Tenant,
}

fn outcomes() -> Vec<String> {
    RunOutcome::ALL.into_iter().map(|outcome| outcome.name().to_owned()).collect()
}

fn parse_outcome(text: &str) -> Result<RunOutcome, String> {
    RunOutcome::of_name(text).ok_or_else(|| format!("must be one of {}", outcomes().join(", ")))
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, args: &RunsArgs) -> Result<(), Failure> {
    let filter = v1::RunFilter {
        since: args.since.map(prost_types::Timestamp::from),
        until: args.until.map(prost_types::Timestamp::from),
        appliance: match &args.name {
            Some(name) => appliance_of(context, args, name).await?,
            None => String::new(),
        },
        // That of a name is in the name.
        tenant: match (&args.name, &args.tenant.tenant) {
            (None, Some(tenant)) => tenant.to_string(),
            _ => String::new(),
        },
        worker: args.worker.clone().unwrap_or_default(),
        outcome: args.outcome.map(|outcome| outcome.name().to_owned()).unwrap_or_default(),
        with_steps: !args.phases && args.outcome.is_none(),
    };
    if args.follow {
        return follow(context, filter).await;
    }
    let runs = context.client.runs(&filter, args.limit as usize).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&runs.iter().map(Run::from).collect::<Vec<_>>());
    }
    if runs.is_empty() {
        context.ui.note("no run matches");
        return Ok(());
    }
    context.ui.print_table(&table(context, &runs))
}

/// The appliance as a filter names it: one that is gone by the name it had.
async fn appliance_of(context: &CommandContext, args: &RunsArgs, text: &str) -> Result<String, Failure> {
    if text.parse::<ApplianceId>().is_ok() {
        return Ok(text.to_owned());
    }
    let name = context.name(text, args.tenant.tenant.as_ref())?;
    match name.find(&context.client).await {
        Ok(appliance) => Ok(appliance.id),
        Err(failure) if failure.exit == Exit::NotFound => name.tenant_and_name().ok_or(failure),
        Err(failure) => Err(failure),
    }
}

async fn follow(context: &CommandContext, filter: v1::RunFilter) -> Result<(), Failure> {
    // As with the audit trail: a stream that breaks goes on after the last one, whose number is known.
    let last = Cell::new((0, filter.since));
    let open = async || {
        let (number, since) = last.get();
        let stream = context.client.watch_runs(v1::RunFilter { since, ..filter.clone() }).await?;
        last.set((number, since.or_else(|| Some(SystemTime::now().into()))));
        Ok(stream)
    };
    watch::each(context, open, |run| {
        let (number, since) = last.get();
        if run.number > number {
            last.set((run.number, run.end_time.or(since)));
            print(context, &run)?;
        }
        Ok(ControlFlow::Continue(()))
    })
    .await
}

fn print(context: &CommandContext, run: &v1::Run) -> Result<(), Failure> {
    if context.ui.format.is_structured() {
        return context.ui.print_event(&Run::from(run));
    }
    let outcome = context.ui.paint(Tone::of(&run.outcome), &format!("{:<11}", run.outcome));
    let name = format!("{}/{}", run.tenant, run.name);
    let line = format!("{}  {outcome}  {name}  {}  {}  {}", moment(run.end_time), run.worker, cause(run), did(run));
    context.ui.print(line.trim_end())
}

fn cause(run: &v1::Run) -> String {
    one_line(&run.cause)
}

/// What was done, or how the phase changed, and what was wrong.
fn did(run: &v1::Run) -> String {
    let mut text = if run.steps.is_empty() {
        let phases = run.changes.iter().map(|change| format!("{} -> {}", phase(change.from), phase(change.to)));
        phases.collect::<Vec<_>>().join(", ")
    } else {
        let steps = run.steps.iter().map(|step| match step.outcome.as_str() {
            "booted" | "configured" | "replugged" | "destroyed" | "forgotten" | "answered" | "observed" => {
                step.step.clone()
            }
            outcome => format!("{} ({outcome})", step.step),
        });
        steps.collect::<Vec<_>>().join(", ")
    };
    if !run.error.is_empty() {
        text = format!("{text}: {}", run.error);
    }
    one_line(&text)
}

fn took(run: &v1::Run) -> String {
    let time = |time: Option<prost_types::Timestamp>| time.and_then(|time| SystemTime::try_from(time).ok());
    let times = time(run.start_time).zip(time(run.end_time));
    match times.and_then(|(start, end)| end.duration_since(start).ok()) {
        Some(took) if !run.steps.is_empty() => format!("{:.1}s", took.as_secs_f64()),
        _ => "-".to_owned(),
    }
}

fn table(context: &CommandContext, runs: &[v1::Run]) -> TextTable {
    let heads = ["ENDED", "TOOK", "APPLIANCE", "WORKER", "CAUSE", "OUTCOME", "WHAT"];
    let mut table = TextTable::new(&heads).with_prose(&["WHAT"]);
    for run in runs {
        let label = match &context.ui.tenant {
            Some(tenant) if run.tenant == tenant.as_str() => run.name.clone(),
            _ => format!("{}/{}", run.tenant, run.name),
        };
        table.row([
            (moment(run.end_time), Tone::Plain),
            (took(run), Tone::Plain),
            (label, Tone::Plain),
            (run.worker.clone(), Tone::Plain),
            (cause(run), Tone::Plain),
            (run.outcome.clone(), Tone::of(&run.outcome)),
            (did(run), Tone::Plain),
        ]);
    }
    table
}

/// Changes of phase that `explain` shows.
const SHOWN: usize = 10;

/// What was done last about an appliance, newest first: enough for the changes of phase that are shown.
pub(crate) async fn last_of(context: &CommandContext, appliance: &str) -> Vec<v1::Run> {
    let filter = v1::RunFilter { appliance: appliance.to_owned(), ..v1::RunFilter::default() };
    // A server of a version before has none, which is no reason to explain nothing.
    context.client.runs(&filter, SHOWN).await.unwrap_or_default()
}

/// The newest changes of phase of these runs.
pub(crate) fn transitions(runs: &[v1::Run]) -> TextTable {
    let mut table = TextTable::new(&["TIME", "FROM", "TO", "CAUSE", "WORKER", "RUN"]).with_prose(&["RUN"]);
    let changes = runs.iter().flat_map(|run| run.changes.iter().rev().map(move |change| (run, change)));
    for (run, change) in changes.take(SHOWN) {
        let (from, to) = (phase(change.from), phase(change.to));
        let of = match run.steps.is_empty() {
            true => one_line(&run.error),
            false => format!("{}, {}", cause(run), run.outcome),
        };
        table.row([
            (moment(change.time), Tone::Plain),
            (from.to_owned(), Tone::of(from)),
            (to.to_owned(), Tone::of(to)),
            (one_line(&change.cause), Tone::Plain),
            (run.worker.clone(), Tone::Plain),
            (of, Tone::Plain),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: &str, outcome: &str) -> v1::RunStep {
        v1::RunStep { step: step.into(), outcome: outcome.into(), took: None }
    }

    #[test]
    fn a_run_says_what_was_done_and_what_was_wrong() {
        let steps = vec![step("destroy 0", "destroyed"), step("boot 0", "failed")];
        let run = v1::Run { steps, error: "no\nimage".into(), ..v1::Run::default() };
        assert_eq!(did(&run), "destroy 0, boot 0 (failed): no image");
        let change = v1::PhaseChange {
            from: v1::Phase::Configured.into(),
            to: v1::Phase::Down.into(),
            cause: "silent".into(),
            time: None,
        };
        let run = v1::Run { changes: vec![change], ..v1::Run::default() };
        assert_eq!(did(&run), "Configured -> Down");
        assert_eq!(took(&run), "-");
    }

    #[test]
    fn outcomes_are_those_there_are() {
        assert_eq!(parse_outcome("failed"), Ok(RunOutcome::Failed));
        assert!(parse_outcome("brilliant").is_err_and(|why| why.contains("interrupted")));
    }
}
