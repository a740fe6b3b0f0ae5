//! `rugctl cluster`: how the cluster is doing as a whole; and `rugctl version`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use proto::admin::v1;
use serde::Serialize;

use crate::commands::{Context, worker::phases};
use crate::error::Failure;
use crate::output::{Tone, age, one_line, view as shown};

/// How long `version` waits for a server that may well not run.
const VERSION_TIMEOUT: Duration = Duration::from_secs(1);

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Leader, workers, appliances by phase, and what is under way
    Status,
}

/// Runs the command.
pub(crate) async fn run(context: &Context, command: &ClusterCommand) -> Result<(), Failure> {
    let ClusterCommand::Status = command;
    let status = context.client.status().await?;
    if context.ui.format.is_structured() {
        return context.ui.print_value(&shown::Cluster::from(&status));
    }
    context.ui.print(&describe(context, &status, SystemTime::now()))
}

fn describe(context: &Context, status: &v1::ClusterStatus, now: SystemTime) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<16}{value}");
        }
    };
    let role = if status.leading { "leads" } else { "stands by" };
    line("Server", context.client.address());
    line("Coordinator", &format!("{} ({role}, term {})", status.coordinator, status.term));
    line("Version", &status.version);
    line("Up for", &age(status.start_time.as_ref(), now));
    line("Coordination", &status.coordination);
    line("Store", &status.store);
    line("Workers", &numbers(&status.workers));
    line("Appliances", &status.appliances.to_string());
    line("Phases", &phases(&status.phases));
    line("Assignments", &numbers(&status.assignments));
    line("Moves", &format!("{} under way", status.moves_in_flight));
    line("Waiting", &context.ui.paint(Tone::Busy, &one_line(&status.waiting)));
    let tone = if status.violations == 0 { Tone::Plain } else { Tone::Bad };
    line("Violations", &context.ui.paint(tone, &status.violations.to_string()));
    text
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

/// Runs `version`. A server that does not answer is no failure.
pub(crate) async fn version(context: &Context, client_only: bool) -> Result<(), Failure> {
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
