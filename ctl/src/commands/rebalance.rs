//! `rugctl rebalance`: the history of moves and their causes.

mod trace;

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use proto::admin::v1;

use crate::commands::{CommandContext, appliance, plan, watch, why};
use crate::complete;
use crate::error::Failure;
use crate::output::{OutputFormat, TextTable, Tone, Ui, age, moment, view as shown};
use crate::text::one_line;

/// Arguments; without a command the history is listed.
#[derive(Args, Debug)]
pub(crate) struct RebalanceArgs {
    #[command(subcommand)]
    command: Option<RebalanceCommand>,
}

impl RebalanceArgs {
    /// Whether it can write spans.
    pub(crate) const fn draws_trace(&self) -> bool {
        matches!(self.command, Some(RebalanceCommand::Trace { .. }))
    }
}

/// Commands.
#[derive(Debug, Subcommand)]
enum RebalanceCommand {
    /// List rebalances, newest first
    List {
        /// Most entries to show
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one rebalance with its moves
    Get {
        /// Id, such as r3-17
        #[arg(add = complete::rebalances())]
        id: String,
    },
    /// Explain what a rebalance is for, what it has made, and what it waits for
    Explain {
        /// Id, such as r3-17; the newest one when absent
        #[arg(add = complete::rebalances())]
        id: Option<String>,
    },
    /// Draw what happened in a rebalance, appliance by appliance, from the history
    Trace {
        /// Id, such as r3-17
        #[arg(add = complete::rebalances())]
        id: String,
        /// Most appliances to draw; the slowest ones
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Have the rebalance that runs end with the moves that are under way, and pause moves until `placement resume`
    Abort {
        /// Id, such as r3-17; the one that runs when absent
        #[arg(add = complete::rebalances())]
        id: Option<String>,
        /// Reason, shown to other operators
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Show what undoing a rebalance comes to, and do it: what it moved goes back and is pinned there
    ///
    /// The pins hold until `placement unpin --undo-of ID`.
    Undo {
        /// Id, such as r3-17
        #[arg(add = complete::rebalances())]
        id: String,
        /// Reason, shown to other operators
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
        /// Do not ask for confirmation
        #[arg(short, long)]
        yes: bool,
    },
    /// Watch rebalances begin, progress and end
    Watch,
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, args: &RebalanceArgs) -> Result<(), Failure> {
    match &args.command {
        None => list(context, 50).await,
        Some(RebalanceCommand::List { limit }) => list(context, *limit as usize).await,
        Some(RebalanceCommand::Get { id }) => get(context, id).await,
        Some(RebalanceCommand::Explain { id }) => why::rebalance(context, id.as_deref()).await,
        Some(RebalanceCommand::Trace { id, limit }) => trace::run(context, id, *limit as usize).await,
        Some(RebalanceCommand::Abort { id, reason }) => abort(context, id.as_deref(), reason).await,
        Some(RebalanceCommand::Undo { id, reason, yes }) => plan::undo(context, id, reason, *yes).await,
        Some(RebalanceCommand::Watch) => watch::rebalances(context).await,
    }
}

async fn list(context: &CommandContext, limit: usize) -> Result<(), Failure> {
    let rebalances = context.client.rebalances(limit).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&rebalances.iter().map(shown::Rebalance::from).collect::<Vec<_>>());
    }
    if rebalances.is_empty() {
        context.ui.note("no rebalances");
        return Ok(());
    }
    let wide = context.ui.format == OutputFormat::Wide && rebalances.iter().any(|it| !it.trace_url.is_empty());
    context.ui.print_table(&table(&rebalances, wide, SystemTime::now()))
}

/// How long it took, or has been running.
fn duration(rebalance: &v1::Rebalance, now: SystemTime) -> String {
    let time = |t: Option<prost_types::Timestamp>| t.and_then(|t| SystemTime::try_from(t).ok());
    let Some(start) = time(rebalance.start_time) else { return String::new() };
    let took = time(rebalance.end_time).unwrap_or(now).duration_since(start).unwrap_or_default();
    // Most take milliseconds; anything below is noise.
    let took = Duration::from_millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    humantime::format_duration(took).to_string()
}

fn table(rebalances: &[v1::Rebalance], links: bool, now: SystemTime) -> TextTable {
    let mut header = vec!["ID", "CAUSE", "MOVES", "AGE", "DURATION", "OUTCOME", "TRACE"];
    if links {
        header.push("LINK");
    }
    let mut table = TextTable::new(&header).with_prose(&["CAUSE"]);
    for r in rebalances {
        let plain = |text: &str| (text.to_owned(), Tone::Plain);
        let mut row = vec![
            plain(&r.id),
            plain(&r.cause),
            plain(&format!("{}/{}", r.moves_done, r.moves)),
            plain(&age(r.start_time.as_ref(), now)),
            plain(&duration(r, now)),
            (r.outcome.clone(), Tone::of(&r.outcome)),
            plain(&r.trace_id),
        ];
        if links {
            row.push(plain(&r.trace_url));
        }
        table.row(row);
    }
    table
}

async fn abort(context: &CommandContext, id: Option<&str>, reason: &str) -> Result<(), Failure> {
    let aborted = context.client.abort_rebalance(id.unwrap_or_default(), reason).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::Rebalance::from(&aborted));
    }
    context.ui.print(&format!(
        "rebalance {} ends with the moves that are under way; moves are paused until `rugctl placement resume`",
        aborted.id
    ))
}

async fn get(context: &CommandContext, id: &str) -> Result<(), Failure> {
    let rebalance = context.client.rebalance(id).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::Rebalance::from(&rebalance));
    }
    context.ui.print(&description(&context.ui, &rebalance, SystemTime::now()))
}

/// A rebalance with its moves.
pub(crate) fn description(ui: &Ui, rebalance: &v1::Rebalance, now: SystemTime) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<16}{value}");
        }
    };
    line("Id", &rebalance.id);
    line("Cause", &one_line(&rebalance.cause));
    line("Outcome", &ui.paint(Tone::of(&rebalance.outcome), &rebalance.outcome));
    line("Moves", &format!("{} of {} done", rebalance.moves_done, rebalance.moves));
    line("Started", &moment(rebalance.start_time));
    line("Duration", &duration(rebalance, now));
    line("Trace", &rebalance.trace_id);
    line("Link", &one_line(&rebalance.trace_url));
    if !rebalance.r#move.is_empty() {
        let _ = write!(text, "\n{}", ui.table_text(&appliance::moves(&rebalance.r#move, true), 0));
        let hidden = rebalance.moves.saturating_sub(rebalance.r#move.len() as u64);
        if hidden > 0 {
            let _ = write!(text, "\nand {hidden} more");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_shows_cause_moves_and_trace() {
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        let ended = v1::Rebalance {
            id: "r1-2".into(),
            cause: "worker-gone worker-2".into(),
            trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
            start_time: at(10, 0),
            end_time: at(10, 412_000_345),
            outcome: "completed".into(),
            moves: 10,
            moves_done: 10,
            ..v1::Rebalance::default()
        };
        let running = v1::Rebalance {
            id: "r1-3".into(),
            cause: "worker-joined worker-2".into(),
            start_time: at(40, 0),
            outcome: "running".into(),
            moves: 9,
            moves_done: 3,
            ..v1::Rebalance::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(41);
        assert_eq!(
            table(&[running, ended], false, now).render(false),
            "ID    CAUSE                   MOVES  AGE  DURATION  OUTCOME    TRACE\n\
             r1-3  worker-joined worker-2  3/9    1s   1s        running    -\n\
             r1-2  worker-gone worker-2    10/10  31s  412ms     completed  0af7651916cd43dd8448eb211c80319c"
        );
    }
}
