//! `rugctl cluster`: state of the cluster as a whole; and `rugctl version`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use proto::admin::v1;
use serde::Serialize;

use crate::commands::orders;
use crate::commands::placement::{why_frozen, why_paused};
use crate::commands::{CommandContext, parse_duration, watch, worker::phases};
use crate::dump::Dump;
use crate::error::Failure;
use crate::output::{TextTable, Tone, Ui, age, count, view as shown};
use crate::text::one_line;

/// Timeout of `version`: the server may well not be running.
const VERSION_TIMEOUT: Duration = Duration::from_secs(1);

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show leader, workers, appliances by phase, moves in flight and warnings
    Status,
    /// Print a one-line summary whenever it changes
    Watch,
    /// Print what placement goes by, and what past rebalances moved, as JSON for `plan --from` and `plan replay`
    Dump {
        /// Only rebalances that ended within this time
        #[arg(long, value_parser = parse_duration)]
        since: Option<Duration>,
    },
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, command: &ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::Status => {}
        ClusterCommand::Watch => return watch::cluster(context).await,
        ClusterCommand::Dump { since } => {
            let since = since.map(|since| SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH));
            let dump = Dump::take(&context.client, since).await?;
            let text = serde_json::to_string(&dump).map_err(|e| Failure::failed(e.to_string()))?;
            return context.ui.print(&text);
        }
    }
    let status = context.client.status().await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::ClusterStatus::from(&status));
    }
    context.ui.print(&describe(context, &status, SystemTime::now()))
}

fn describe(context: &CommandContext, status: &v1::ClusterStatus, now: SystemTime) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<16}{value}");
        }
    };
    if let Some(identity) = &status.identity {
        line("Cluster", &identity.name);
        line("Cluster id", &identity.id);
    }
    let role = if status.leading { "leads" } else { "stands by" };
    line("Server", context.client.address());
    line("Coordinator", &format!("{} ({role}, term {})", status.coordinator, status.term));
    line("Version", &status.version);
    line("Up for", &age(status.start_time.as_ref(), now));
    let doubt = if status.coordination_state() == v1::CoordinationState::InDoubt { ", in doubt" } else { "" };
    line("Coordination", &format!("{}{doubt}", one_line(&status.coordination)));
    line("Store", &status.store);
    line("Workers", &numbers(&status.workers));
    line("Appliances", &status.appliances.to_string());
    line("Phases", &phases(&status.phases));
    line("Assignments", &numbers(&status.assignments));
    if let Some(unowned) = status.unowned.as_ref().filter(|unowned| unowned.appliances > 0) {
        let oldest = unowned.oldest.first().map(|oldest| age(oldest.since.as_ref(), now)).unwrap_or_default();
        let text = format!("{}, the oldest for {oldest}", count(unowned.appliances, "appliance"));
        line("Unowned", &context.ui.paint(Tone::Busy, &text));
    }
    if status.quarantined > 0 {
        let text = format!("{}, granted to no worker", count(status.quarantined, "appliance"));
        line("Quarantined", &context.ui.paint(Tone::Bad, &text));
    }
    line("Moves", &format!("{} under way", status.moves_in_flight));
    line("Waiting", &context.ui.paint(Tone::Busy, &one_line(&status.waiting)));
    if status.stalled_moves > 0 {
        let stalled = format!("{} past the deadline, still going on", count(status.stalled_moves, "move"));
        line("Stalled", &context.ui.paint(Tone::Busy, &stalled));
    }
    if let Some(frozen) = &status.frozen {
        line("Frozen", &context.ui.paint(Tone::Bad, &why_frozen(frozen, now)));
        line("", "no appliance is moved until they are back. If they will not come back: `rugctl placement resume`");
    }
    if let Some(paused) = &status.paused {
        line("Paused", &context.ui.paint(Tone::Busy, &why_paused(paused, now)));
        line("", "nothing is placed or moved until `rugctl placement resume`");
    }
    for (n, order) in status.orders.iter().flat_map(|orders| orders::summary(orders, now)).enumerate() {
        line(if n == 0 { "Orders" } else { "" }, &order);
    }
    let tone = if status.violations == 0 { Tone::Plain } else { Tone::Bad };
    let last = status.last_violation_time.as_ref().map(|at| format!(", the last {} ago", age(Some(at), now)));
    let violations = format!("{}{}", status.violations, last.unwrap_or_default());
    line("Violations", &context.ui.paint(tone, &violations));
    for (n, note) in status.notes.iter().enumerate() {
        line(if n == 0 { "Notes" } else { "" }, &context.ui.paint(Tone::Busy, &one_line(note)));
    }
    if status.coordinators.len() > 1 {
        let _ = write!(text, "\n{}", context.ui.table_text(&coordinators(&status.coordinators), 0));
    }
    text
}

fn coordinators(all: &[v1::Coordinator]) -> TextTable {
    let mut table = TextTable::new(&["COORDINATOR", "ROLE", "ADDRESS"]);
    for c in all {
        let role = if c.leading { ("leads", Tone::Good) } else { ("stands by", Tone::Plain) };
        table.row([(c.id.as_str(), Tone::Plain), role, (c.address.as_str(), Tone::Plain)]);
    }
    table
}

fn numbers(map: &HashMap<String, u64>) -> String {
    match phases(map) {
        text if text.is_empty() => "none".to_owned(),
        text => text,
    }
}

#[derive(Debug, Serialize)]
struct Versions {
    client: &'static str,
    server: Option<String>,
}

/// Runs `version` where no server is known.
pub(crate) fn own_version(ui: &Ui) -> Result<(), Failure> {
    let client = env!("CARGO_PKG_VERSION");
    if ui.format.is_structured() {
        return ui.print_value(&Versions { client, server: None });
    }
    ui.print(&format!("rugctl {client}"))
}

/// Runs `version`. A server that does not answer is not a failure.
pub(crate) async fn version(context: &CommandContext, client_only: bool) -> Result<(), Failure> {
    let client = env!("CARGO_PKG_VERSION");
    let server = if client_only {
        None
    } else {
        context.client.with_timeout(context.timeout.unwrap_or(VERSION_TIMEOUT)).status().await.ok()
    };
    let server = server.map(|status| status.version);
    if context.ui.format.is_structured() {
        return context.ui.print_value(&Versions { client, server });
    }
    let mut text = format!("rugctl {client}");
    if !client_only {
        let server = server.unwrap_or_else(|| format!("no answer from {}", context.client.address()));
        let _ = write!(text, "\nserver {server}");
    }
    context.ui.print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::AdminClient;
    use crate::output::OutputFormat;

    #[tokio::test]
    async fn warnings_come_with_advice() {
        let client = AdminClient::new("http://127.0.0.1:1", Duration::from_secs(1)).expect("an address");
        let ui = Ui::plain(OutputFormat::Table);
        let context = CommandContext { client, ui, timeout: None };
        let coordinator =
            |id: &str, leading| v1::Coordinator { id: id.into(), address: format!("https://{id}:7470"), leading };
        let since = Some(prost_types::Timestamp { seconds: 10, nanos: 0 });
        let status = v1::ClusterStatus {
            identity: Some(v1::ClusterIdentity { id: "6f1c9a52".into(), name: "prod".into() }),
            coordinator: "c2".into(),
            term: 7,
            leading: true,
            coordination: "zookeeper://zk:2181".into(),
            coordination_state: v1::CoordinationState::InDoubt.into(),
            coordinators: vec![coordinator("c1", false), coordinator("c2", true)],
            frozen: Some(v1::Frozen {
                reason: "3 of 4 vanished".into(),
                since,
                missing: vec!["w1".into()],
                missing_count: 3,
            }),
            paused: Some(v1::Paused {
                reason: "network work".into(),
                since,
                by: "10.0.0.1:5".into(),
                ..v1::Paused::default()
            }),
            stalled_moves: 1,
            notes: vec!["first".into(), "second".into()],
            ..v1::ClusterStatus::default()
        };
        let text = describe(&context, &status, SystemTime::UNIX_EPOCH + Duration::from_secs(20));
        for line in [
            "Cluster         prod",
            "Cluster id      6f1c9a52",
            "Coordinator     c2 (leads, term 7)",
            "Coordination    zookeeper://zk:2181, in doubt",
            "Stalled         1 move past the deadline, still going on",
            "Frozen          3 of 4 vanished (10s ago); missing: w1 and 2 more",
            "Paused          network work (by 10.0.0.1:5, 10s ago)",
            "Notes           first",
            "                second",
            "c2           leads      https://c2:7470",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        assert_eq!(text.matches("rugctl placement resume").count(), 2);
        let calm = describe(&context, &v1::ClusterStatus::default(), SystemTime::UNIX_EPOCH);
        for word in ["Stalled", "Frozen", "Paused", "Notes", "COORDINATOR"] {
            assert!(!calm.contains(word), "{calm}");
        }
    }
}
