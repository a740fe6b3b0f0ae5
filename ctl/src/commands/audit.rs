//! `rugctl audit`: who did what.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::SystemTime;

use clap::Args;
use common::ApplianceId;
use proto::admin::v1;

use crate::commands::{CommandContext, watch};
use crate::complete;
use crate::error::{Exit, Failure};
use crate::names::Tenant;
use crate::output::view::AuditEvent;
use crate::output::{TextTable, Tone, moment};
use crate::text::one_line;

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct AuditArgs {
    /// Only what was done to this appliance or worker, by name or id
    #[arg(add = complete::appliances())]
    subject: Option<String>,
    /// Only what this caller did
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: Option<String>,
    /// Only this action, such as delete or evict
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new(), add = complete::actions())]
    action: Option<String>,
    /// Not before this: a time, or how long ago
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<SystemTime>,
    /// Before this: a time, or how long ago
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<SystemTime>,
    /// Most events to show, the newest
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print what is done from now on, after what --since asks for
    #[arg(short, long, conflicts_with_all = ["limit", "until"])]
    follow: bool,
    #[command(flatten)]
    tenant: Tenant,
}

/// Reads a moment, or how long ago it was.
pub(crate) fn parse_time(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| "is too long ago".to_owned());
    }
    humantime::parse_rfc3339_weak(text)
        .map_err(|_| "must be how long ago, such as 2h, or a time in UTC, such as 2026-03-01T12:00:00Z".to_owned())
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, args: &AuditArgs) -> Result<(), Failure> {
    let filter = v1::AuditFilter {
        since: args.since.map(prost_types::Timestamp::from),
        until: args.until.map(prost_types::Timestamp::from),
        actor: args.actor.clone().unwrap_or_default(),
        action: args.action.clone().unwrap_or_default(),
        subject: match &args.subject {
            Some(subject) => subject_of(context, args, subject).await?,
            None => String::new(),
        },
    };
    if args.follow {
        return follow(context, filter).await;
    }
    let events = context.client.audit(&filter, args.limit as usize).await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&events.iter().map(AuditEvent::from).collect::<Vec<_>>());
    }
    if events.is_empty() {
        context.ui.note("no event matches");
        return Ok(());
    }
    context.ui.print_table(&table(&events))
}

/// The subject as events have it. What is no appliance of now may have been one, or is a worker.
async fn subject_of(context: &CommandContext, args: &AuditArgs, text: &str) -> Result<String, Failure> {
    if text.parse::<ApplianceId>().is_ok() {
        return Ok(text.to_owned());
    }
    let Ok(name) = context.name(text, args.tenant.tenant.as_ref()) else { return Ok(text.to_owned()) };
    match name.find(&context.client).await {
        Ok(appliance) => Ok(appliance.id),
        Err(failure) if failure.exit == Exit::NotFound => match context.client.worker(text).await {
            Ok(worker) => Ok(worker.id),
            // An appliance that is gone is found by the name it had.
            Err(_) => Ok(name.tenant_and_name().unwrap_or_else(|| text.to_owned())),
        },
        Err(failure) => Err(failure),
    }
}

async fn follow(context: &CommandContext, filter: v1::AuditFilter) -> Result<(), Failure> {
    // A stream that breaks is opened again for what came after the last event; what has its time is known by its number.
    let last = Cell::new((0, filter.since));
    let open = async || {
        let (number, since) = last.get();
        let stream = context.client.watch_audit(v1::AuditFilter { since, ..filter.clone() }).await?;
        // What happens before the first event is seen is not to be missed either.
        last.set((number, since.or_else(|| Some(SystemTime::now().into()))));
        Ok(stream)
    };
    watch::each(context, open, |event| {
        let (number, since) = last.get();
        if event.number > number {
            last.set((event.number, event.time.or(since)));
            print(context, &event)?;
        }
        Ok(ControlFlow::Continue(()))
    })
    .await
}

fn print(context: &CommandContext, event: &v1::AuditEvent) -> Result<(), Failure> {
    if context.ui.format.is_structured() {
        return context.ui.print_event(&AuditEvent::from(event));
    }
    let v1::AuditEvent { actor, action, subject, detail, .. } = event;
    let [actor, action, subject, detail] = [actor, action, subject, detail].map(|text| one_line(text));
    context.ui.print(format!("{}  {actor}  {action} {subject}  {detail}", moment(event.time)).trim_end())
}

fn table(events: &[v1::AuditEvent]) -> TextTable {
    let mut table = TextTable::new(&["TIME", "ACTOR", "ACTION", "SUBJECT", "DETAIL"]).with_prose(&["DETAIL"]);
    for e in events {
        let cells = [moment(e.time), e.actor.clone(), e.action.clone(), e.subject.clone(), e.detail.clone()];
        table.row(cells.map(|cell| (cell, Tone::Plain)));
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_moments_or_how_long_ago() {
        let at = parse_time("1970-01-01T00:01:00Z").expect("a time");
        assert_eq!(at, SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        assert_eq!(parse_time("1970-01-01 00:01:00").expect("a time"), at);
        let then = parse_time("2h").expect("a duration");
        let ago = SystemTime::now().duration_since(then).expect("past");
        assert!(ago >= Duration::from_secs(7_200) && ago < Duration::from_secs(7_300));
        assert!(parse_time("yesterday").is_err() && parse_time("").is_err());
    }
}
