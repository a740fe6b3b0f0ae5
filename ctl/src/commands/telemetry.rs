//! `rugctl log-level` and `rugctl sampling`: what processes log and trace, changed while they run.

use std::time::Duration;

use clap::Args;
use proto::admin::v1;
use runtime::telemetry::{self, Ratio};
use serde::Serialize;

use crate::commands::{CommandContext, parse_duration};
use crate::complete;
use crate::error::Failure;
use crate::output::{TextTable, Tone, short};
use crate::text::one_line;

/// Arguments of `log-level`.
#[derive(Args, Debug)]
pub(crate) struct LogLevelArgs {
    /// What to log beside what is configured, such as debug or worker::runner=debug; without it the orders in force are shown
    #[arg(value_parser = parse_filter)]
    filter: Option<String>,
    /// Only this coordinator or worker
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new(), add = complete::workers())]
    process: Option<String>,
    /// How long, at most 24h
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = parse_duration, requires = "filter")]
    lasts: Duration,
    /// Go back to what is configured
    #[arg(long, conflicts_with = "filter")]
    reset: bool,
    /// Reason, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// Arguments of `sampling`.
#[derive(Args, Debug)]
pub(crate) struct SamplingArgs {
    /// Share of traces that are kept whatever happens in them, 0 to 1; without it and --slow the orders in force are shown
    #[arg(long)]
    ratio: Option<Ratio>,
    /// What takes longer is kept
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    slow: Option<Duration>,
    /// Only this coordinator or worker
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new(), add = complete::workers())]
    process: Option<String>,
    /// How long, at most 24h; until it is changed again when absent
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    lasts: Option<Duration>,
    /// Go back to what is configured
    #[arg(long, conflicts_with_all = ["ratio", "slow", "lasts"])]
    reset: bool,
    /// Reason, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

fn parse_filter(text: &str) -> Result<String, String> {
    telemetry::check_filter(text).map(|()| text.to_owned())
}

/// Shows or changes what is logged.
pub(crate) async fn log_level(context: &CommandContext, args: &LogLevelArgs) -> Result<(), Failure> {
    let log = args.filter.clone().map(|filter| v1::LogOrder { filter, lasts: Some(wire(args.lasts)) });
    let state = if log.is_some() || args.reset {
        let process = args.process.clone().unwrap_or_default();
        context.client.set_log_filter(v1::SetLogFilterRequest { process, log, reason: args.reason.clone() }).await?
    } else {
        context.client.telemetry().await?
    };
    show(context, state, args.process.as_deref())
}

/// Shows or changes what is traced.
pub(crate) async fn sampling(context: &CommandContext, args: &SamplingArgs) -> Result<(), Failure> {
    let sampling = (args.ratio.is_some() || args.slow.is_some()).then(|| v1::SamplingOrder {
        ratio: args.ratio.map(Ratio::get),
        slow: args.slow.map(wire),
        lasts: args.lasts.map(wire),
    });
    if sampling.is_none() && args.lasts.is_some() {
        return Err(Failure::usage("--for needs --ratio or --slow"));
    }
    let state = if sampling.is_some() || args.reset {
        let process = args.process.clone().unwrap_or_default();
        let request = v1::SetSamplingRequest { process, sampling, reason: args.reason.clone() };
        context.client.set_sampling(request).await?
    } else {
        context.client.telemetry().await?
    };
    show(context, state, args.process.as_deref())
}

fn wire(duration: Duration) -> prost_types::Duration {
    proto::convert::scalar::duration_to_wire(duration)
}

/// An order, as it is printed.
#[derive(Debug, Serialize)]
struct Order {
    /// Empty for all that have no order of their own.
    process: String,
    log_filter: String,
    /// Time that is left.
    log_seconds: Option<u64>,
    sample_ratio: Option<f64>,
    sample_slow_seconds: Option<f64>,
    sample_seconds: Option<u64>,
}

impl From<v1::TelemetryOrder> for Order {
    fn from(order: v1::TelemetryOrder) -> Self {
        let (log, sampling) = (order.log.unwrap_or_default(), order.sampling.unwrap_or_default());
        Self {
            process: order.process,
            log_filter: log.filter,
            log_seconds: read(log.lasts).map(|lasts| lasts.as_secs()),
            sample_ratio: sampling.ratio,
            sample_slow_seconds: read(sampling.slow).map(|slow| slow.as_secs_f64()),
            sample_seconds: read(sampling.lasts).map(|lasts| lasts.as_secs()),
        }
    }
}

fn read(wire: Option<prost_types::Duration>) -> Option<Duration> {
    proto::convert::scalar::duration_from_wire(&wire?).ok()
}

fn show(context: &CommandContext, state: v1::TelemetryState, process: Option<&str>) -> Result<(), Failure> {
    let mut orders: Vec<_> = state.orders.into_iter().map(Order::from).collect();
    if let Some(process) = process {
        orders.retain(|order| order.process.is_empty() || order.process == process);
    }
    if context.ui.format.is_structured() {
        return context.ui.print_value(&orders);
    }
    if orders.is_empty() {
        return context.ui.print("all processes log and sample as they are configured to");
    }
    context.ui.print_table(&table(&orders))
}

fn table(orders: &[Order]) -> TextTable {
    let mut table = TextTable::new(&["PROCESS", "LOG", "LEFT", "RATIO", "SLOW", "LEFT"]);
    let left = |seconds: Option<u64>| seconds.map_or_else(|| "-".to_owned(), |left| short(Duration::from_secs(left)));
    for order in orders {
        let process = if order.process.is_empty() { "all" } else { &order.process };
        let log = if order.log_filter.is_empty() { "-" } else { &order.log_filter };
        let slow = order.sample_slow_seconds.map_or_else(|| "-".to_owned(), |slow| format!("{slow}s"));
        let cells = [
            one_line(process),
            one_line(log),
            left(order.log_seconds),
            order.sample_ratio.map_or_else(|| "-".to_owned(), |ratio| ratio.to_string()),
            slow,
            left(order.sample_seconds),
        ];
        table.row(cells.map(|cell| (cell, Tone::Plain)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_shown_with_the_time_that_is_left() {
        let log = v1::LogOrder { filter: "worker=debug".into(), lasts: Some(wire(Duration::from_secs(90))) };
        let sampling = v1::SamplingOrder { ratio: Some(0.1), ..v1::SamplingOrder::default() };
        let order = v1::TelemetryOrder { process: String::new(), log: Some(log), sampling: Some(sampling) };
        let text = table(&[Order::from(order)]).render(false);
        let row: Vec<_> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(row, ["all", "worker=debug", "1m30s", "0.1", "-", "-"]);
        assert!(parse_filter("worker=loud").is_err());
    }
}
