//! `rugctl config reload`: processes read their configuration again.

use clap::{Args, Subcommand};
use proto::admin::v1;
use serde::Serialize;

use crate::commands::CommandContext;
use crate::complete;
use crate::error::Failure;
use crate::text::one_line;

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Have coordinators and workers read their configuration again, as on SIGHUP
    ///
    /// What can change while a process runs does. The rest is named and needs a restart. A configuration that cannot be used changes
    /// nothing; the exit code is 1 then.
    Reload(ReloadArgs),
}

/// Arguments of `reload`.
#[derive(Args, Debug)]
pub(crate) struct ReloadArgs {
    /// A worker, in place of the coordinator that leads; may be repeated
    #[arg(long = "worker", value_name = "NAME", add = complete::workers())]
    workers: Vec<String>,
    /// The coordinator that leads and every worker
    #[arg(long, conflicts_with = "workers")]
    all: bool,
    /// Reason, for the audit trail
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

/// What reading it came to for one process.
#[derive(Debug, Serialize)]
struct Reloaded {
    process: String,
    /// In force.
    applied: Vec<String>,
    needs_restart: Vec<String>,
    /// Why nothing has changed.
    problem: String,
    /// Why nothing is known of it.
    unanswered: String,
}

impl From<v1::ReloadedConfig> for Reloaded {
    fn from(told: v1::ReloadedConfig) -> Self {
        let v1::ReloadedConfig { process, applied, needs_restart, problem, unanswered } = told;
        Self { process, applied, needs_restart, problem, unanswered }
    }
}

impl Reloaded {
    fn failed(&self) -> bool {
        !self.problem.is_empty() || !self.unanswered.is_empty()
    }

    fn lines(&self) -> Vec<String> {
        let process = one_line(&self.process);
        let names = |names: &[String]| names.iter().map(|name| one_line(name)).collect::<Vec<_>>().join(", ");
        if !self.problem.is_empty() {
            return vec![format!("{process}: nothing has changed: {}", one_line(&self.problem))];
        }
        if !self.unanswered.is_empty() {
            return vec![format!("{process}: no answer: {}", one_line(&self.unanswered))];
        }
        let mut lines = Vec::new();
        if !self.applied.is_empty() {
            lines.push(format!("{process}: in force: {}", names(&self.applied)));
        }
        if !self.needs_restart.is_empty() {
            lines.push(format!("{process}: not applied, needs a restart: {}", names(&self.needs_restart)));
        }
        if lines.is_empty() {
            lines.push(format!("{process}: nothing has changed"));
        }
        lines
    }
}

/// Runs the command.
pub(crate) async fn run(context: &CommandContext, command: &ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Reload(ReloadArgs { workers, all, reason }) = command;
    let request = v1::ReloadConfigRequest { workers: workers.clone(), all: *all, reason: reason.clone() };
    let v1::ReloadConfigResponse { processes, not_asked } = context.client.reload_config(request).await?;
    let told: Vec<_> = processes.into_iter().map(Reloaded::from).collect();
    if context.ui.format.is_structured() {
        context.ui.print_value(&told)?;
    } else {
        for line in told.iter().flat_map(Reloaded::lines) {
            context.ui.print(&line)?;
        }
    }
    for coordinator in &not_asked {
        context.ui.note(&format!("{} stands by and was not asked: send it SIGHUP", one_line(coordinator)));
    }
    match told.iter().filter(|one| one.failed()).count() {
        0 => Ok(()),
        failed => {
            Err(Failure::failed(format!("{failed} of {} have read no configuration that can be used", told.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_force_and_what_needs_a_restart_is_told_of_each_process() {
        let told = v1::ReloadedConfig { process: "w1".into(), ..v1::ReloadedConfig::default() };
        assert_eq!(Reloaded::from(told.clone()).lines(), ["w1: nothing has changed"]);
        let both = v1::ReloadedConfig {
            applied: vec!["log.filter".into()],
            needs_restart: vec!["name".into(), "listen".into()],
            ..told.clone()
        };
        assert_eq!(
            Reloaded::from(both).lines(),
            ["w1: in force: log.filter", "w1: not applied, needs a restart: name, listen"]
        );
        let broken = Reloaded::from(v1::ReloadedConfig { problem: "a\nb".into(), ..told });
        assert!(broken.failed());
        assert_eq!(broken.lines().len(), 1);
    }
}
