//! `rugctl watch` and the `watch` of workers, rebalances and the cluster: one line for each change.
//!
//! A broken stream is opened again and then lists the current state. Only lines that differ from the last one of the
//! same object are printed, so a broken stream shows as a note and not as a repetition of everything.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use clap::Args;
use proto::admin::v1;
use serde::Serialize;
use tokio::time::sleep;
use tonic::{Code, Status, Streaming};

use crate::client::Backoff;
use crate::commands::CommandContext;
use crate::commands::filter::FilterArgs;
use crate::complete;
use crate::document::view;
use crate::error::Failure;
use crate::output::Tone;
use crate::output::view as shown;
use crate::status::summary;
use crate::text::one_line;
use crate::wait::may_reopen;

/// Arguments of `watch`.
#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// Name or id; all appliances that match when omitted
    #[arg(add = complete::appliances())]
    name: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
}

/// The last line printed for each object, so that no line is repeated.
#[derive(Debug, Default)]
struct PrintedLines(BTreeMap<String, String>);

impl PrintedLines {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn is_new(&mut self, id: &str, line: &str) -> bool {
        self.0.insert(id.to_owned(), line.to_owned()).is_none_or(|before| before != line)
    }
}

/// The time of day, in UTC.
fn clock() -> String {
    let text = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    text.split_once('T').map(|(_, time)| time.to_owned()).unwrap_or(text)
}

/// Opens a stream and hands on its messages, until one of them ends the watch. A stream that breaks, or ends, is opened again.
pub(crate) async fn each<T>(
    context: &CommandContext,
    open: impl AsyncFn() -> Result<Streaming<T>, Failure>,
    take: impl FnMut(T) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    read(context, open, take, false).await
}

/// The same of streams that have an end: there it is over.
pub(crate) async fn until_end<T>(
    context: &CommandContext,
    open: impl AsyncFn() -> Result<Streaming<T>, Failure>,
    take: impl FnMut(T) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    read(context, open, take, true).await
}

async fn read<T>(
    context: &CommandContext,
    open: impl AsyncFn() -> Result<Streaming<T>, Failure>,
    mut take: impl FnMut(T) -> Result<ControlFlow<()>, Failure>,
    has_end: bool,
) -> Result<(), Failure> {
    let mut backoff = Backoff::new();
    loop {
        let mut stream = open().await?;
        let status = loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    backoff = Backoff::new();
                    if take(message)?.is_break() {
                        return Ok(());
                    }
                }
                Ok(None) if has_end => return Ok(()),
                Ok(None) => break None,
                Err(status) => break Some(status),
            }
        };
        lost(context, status, &mut backoff).await?;
    }
}

/// Handles the end of a stream: a note and a pause, or the failure.
async fn lost(context: &CommandContext, status: Option<Status>, backoff: &mut Backoff) -> Result<(), Failure> {
    match status {
        Some(status) if !may_reopen(status.code()) => Err(status.into()),
        status => {
            // ABORTED means that this reader was too slow, not that anything is wrong with the server.
            if status.as_ref().is_none_or(|s| s.code() != Code::Aborted) {
                context.ui.note("the watch was interrupted; opening it again");
            }
            sleep(backoff.next()).await;
            Ok(())
        }
    }
}

/// Runs `watch`.
pub(crate) async fn run(context: &CommandContext, args: &WatchArgs) -> Result<(), Failure> {
    let Some(name) = &args.name else { return matching(context, &args.filter).await };
    if !args.filter.is_tenant_only() {
        return Err(Failure::usage("conditions other than --tenant are for a watch without a name"));
    }
    one(context, context.find(name, args.filter.tenant.as_ref()).await?).await
}

/// Prints an appliance and each change of it, until it is gone.
pub(crate) async fn one(context: &CommandContext, one: v1::Appliance) -> Result<(), Failure> {
    // Only its tenant: the appliance may be given another name while it is watched.
    let filter = v1::ApplianceFilter { tenant: one.tenant, ..v1::ApplianceFilter::default() };
    follow(context, filter, Some(one.id)).await
}

/// Prints the appliances that match, and each change of them.
pub(crate) async fn matching(context: &CommandContext, filter: &FilterArgs) -> Result<(), Failure> {
    follow(context, filter.filter(context.ui.tenant.as_ref())?, None).await
}

async fn follow(context: &CommandContext, filter: v1::ApplianceFilter, only: Option<String>) -> Result<(), Failure> {
    let mut printed = PrintedLines::default();
    let mut noted = false;
    let open = async || context.client.watch(filter.clone()).await;
    each(context, open, |event| {
        if event.r#type() == v1::appliance_event::Type::Synced && printed.is_empty() && !noted {
            noted = true;
            context.ui.note("no appliance matches; waiting for one");
        }
        let ours = event.appliance.as_ref().is_some_and(|a| only.as_ref().is_none_or(|id| *id == a.id));
        let is_gone = ours && show(context, &event, &mut printed)?;
        Ok(if is_gone && only.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
    .await
}

/// Prints an event; `true` when the appliance is gone.
fn show(context: &CommandContext, event: &v1::ApplianceEvent, printed: &mut PrintedLines) -> Result<bool, Failure> {
    use v1::appliance_event::Type;

    let Some(appliance) = &event.appliance else { return Ok(false) };
    let kind = match event.r#type() {
        Type::Current => "current",
        Type::Created => "created",
        Type::Changed => "changed",
        Type::Gone => "gone",
        Type::Synced | Type::Unspecified => return Ok(false),
    };
    let gone = kind == "gone";
    let ui = &context.ui;
    if ui.format.is_structured() {
        let subject = shown::ApplianceEvent { appliance: view::Appliance::full(appliance, view::Secrets::Hidden) };
        ui.print_event(&shown::WatchEvent { kind, subject })?;
        return Ok(gone);
    }
    let line = if gone { "gone".to_owned() } else { appliance_line(context, appliance) };
    if printed.is_new(&appliance.id, &line) {
        ui.print(&format!("{}  {kind:<7}  {:<28}  {line}", clock(), ui.label(appliance)))?;
    }
    Ok(gone)
}

fn appliance_line(context: &CommandContext, appliance: &v1::Appliance) -> String {
    let phase = view::phase(appliance);
    let assignment = appliance.assignment.clone().unwrap_or_default();
    let status = appliance.status.clone().unwrap_or_default();
    let mut parts = vec![
        context.ui.paint(Tone::of(phase), &format!("{phase:<10}")),
        format!("{:<12}", if assignment.worker.is_empty() { "-" } else { &assignment.worker }),
        format!("generation {}/{}", status.observed_generation, appliance.generation),
    ];
    if !matches!(assignment.state.as_str(), "owned" | "") {
        parts.push(format!("{} ({})", assignment.state, one_line(&assignment.reason)));
    }
    if !status.last_error.is_empty() {
        parts.push(one_line(&status.last_error));
    }
    parts.join("  ")
}

/// Time between two looks at what has no stream of its changes.
const LOOK: Duration = Duration::from_secs(1);

/// Prints what `look` finds, by its ids, and then each of it that is another line than before, or is gone. Of programs' formats every
/// change is an event.
pub(crate) async fn looks<T: Serialize>(
    context: &CommandContext,
    look: impl AsyncFn() -> Result<Vec<(String, String, T)>, Failure>,
) -> Result<(), Failure> {
    let mut printed = PrintedLines::default();
    loop {
        let found = look().await?;
        let gone: Vec<_> =
            printed.0.keys().filter(|id| !found.iter().any(|(found, ..)| found == *id)).cloned().collect();
        for id in gone {
            printed.0.remove(&id);
            if !context.ui.format.is_structured() {
                context.ui.print(&format!("{}  {id}  gone", clock()))?;
            }
        }
        for (id, line, event) in found {
            let shown = if context.ui.format.is_structured() {
                serde_json::to_string(&event).map_err(|e| Failure::failed(format!("write JSON: {e}")))?
            } else {
                line.clone()
            };
            match (printed.is_new(&id, &shown), context.ui.format.is_structured()) {
                (true, true) => context.ui.print_event(&event)?,
                (true, false) => context.ui.print(&format!("{}  {line}", clock()))?,
                (false, _) => {}
            }
        }
        sleep(LOOK).await;
    }
}

/// Runs `worker watch`.
pub(crate) async fn workers(context: &CommandContext) -> Result<(), Failure> {
    let mut printed = PrintedLines::default();
    each(
        context,
        async || context.client.watch_workers().await,
        |message| show_worker(context, &message, &mut printed).map(ControlFlow::Continue),
    )
    .await
}

fn show_worker(context: &CommandContext, event: &v1::WorkerEvent, printed: &mut PrintedLines) -> Result<(), Failure> {
    use v1::worker_event::Type;

    let Some(worker) = &event.worker else { return Ok(()) };
    let kind = match event.r#type() {
        Type::Current => "current",
        Type::Joined => "joined",
        Type::Changed => "changed",
        Type::Gone => "gone",
        Type::Synced | Type::Unspecified => return Ok(()),
    };
    let ui = &context.ui;
    if ui.format.is_structured() {
        return ui.print_event(&shown::WatchEvent { kind, subject: shown::WorkerEvent { worker: worker.into() } });
    }
    let health = view::health(worker.health());
    let line = if kind == "gone" {
        kind.to_owned()
    } else {
        let reason = if worker.reason.is_empty() { String::new() } else { format!("  {}", one_line(&worker.reason)) };
        let appliances = crate::output::count(worker.appliances, "appliance");
        format!("{}  {appliances}{reason}", ui.paint(Tone::of(health), &format!("{health:<8}")))
    };
    if printed.is_new(&worker.id, &line) {
        ui.print(&format!("{}  {kind:<7}  {:<16}  {line}", clock(), worker.id))?;
    }
    Ok(())
}

/// Runs `rebalance watch`.
pub(crate) async fn rebalances(context: &CommandContext) -> Result<(), Failure> {
    let mut printed = PrintedLines::default();
    each(
        context,
        async || context.client.watch_rebalances(false).await,
        |message| show_rebalance(context, &message, &mut printed).map(ControlFlow::Continue),
    )
    .await
}

fn show_rebalance(
    context: &CommandContext,
    rebalance: &v1::Rebalance,
    printed: &mut PrintedLines,
) -> Result<(), Failure> {
    let ui = &context.ui;
    if ui.format.is_structured() {
        return ui.print_event(&shown::Rebalance::from(rebalance));
    }
    let line = format!(
        "{}  {}/{} moves  {}",
        ui.paint(Tone::of(&rebalance.outcome), &format!("{:<11}", rebalance.outcome)),
        rebalance.moves_done,
        rebalance.moves,
        one_line(&rebalance.cause)
    );
    if printed.is_new(&rebalance.id, &line) {
        ui.print(&format!("{}  {:<8}  {line}", clock(), rebalance.id))?;
    }
    Ok(())
}

/// Runs `cluster watch`.
pub(crate) async fn cluster(context: &CommandContext) -> Result<(), Failure> {
    let mut printed = PrintedLines::default();
    each(
        context,
        async || context.client.watch_cluster().await,
        |message| show_cluster(context, &message, &mut printed).map(ControlFlow::Continue),
    )
    .await
}

fn show_cluster(
    context: &CommandContext,
    status: &v1::ClusterStatus,
    printed: &mut PrintedLines,
) -> Result<(), Failure> {
    if context.ui.format.is_structured() {
        return context.ui.print_event(&shown::ClusterStatus::from(status));
    }
    let line = format!("{} leads in term {}; {}", status.coordinator, status.term, summary(status));
    if printed.is_new("", &line) {
        context.ui.print(&format!("{}  {line}", clock()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_printed_twice() {
        let mut printed = PrintedLines::default();
        assert!(printed.is_new("a", "Up"));
        assert!(!printed.is_new("a", "Up"));
        assert!(printed.is_new("a", "Configured"));
        assert!(printed.is_new("b", "Up"));
    }
}
