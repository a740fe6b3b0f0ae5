//! Commands that call the server, one file for each noun, and what they share.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use common::appliance::Name;
use common::cluster::{ClusterIdentity, ClusterRef};
use proto::admin::v1;

use crate::client::AdminClient;
use crate::error::{Exit, Failure};
use crate::names::ApplianceName;
use crate::output::Ui;
use crate::suggest;

pub(crate) mod appliance;
pub(crate) mod apply;
pub(crate) mod audit;
pub(crate) mod budget;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod debug;
pub(crate) mod delete;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod edit;
pub(crate) mod exec;
pub(crate) mod filter;
pub(crate) mod logs;
pub(crate) mod offline;
pub(crate) mod openstack;
pub(crate) mod orders;
pub(crate) mod placement;
pub(crate) mod plan;
pub(crate) mod rebalance;
pub(crate) mod replay;
pub(crate) mod ring;
pub(crate) mod rollout;
pub(crate) mod runs;
pub(crate) mod ssh;
pub(crate) mod telemetry;
#[cfg(test)]
mod tests;
pub(crate) mod wait;
pub(crate) mod watch;
pub(crate) mod why;
pub(crate) mod worker;

/// Default time that commands wait for their effect (`--timeout`).
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// What every command needs.
#[derive(Clone, Debug)]
pub(crate) struct CommandContext {
    /// The server.
    pub(crate) client: AdminClient,
    /// The terminal.
    pub(crate) ui: Ui,
    /// `--timeout`, when given.
    pub(crate) timeout: Option<Duration>,
}

impl CommandContext {
    /// An appliance as it is named, with the tenant of the flag.
    ///
    /// # Errors
    /// It is no name, or names another tenant than the flag.
    pub(crate) fn name(&self, text: &str, flag: Option<&Name>) -> Result<ApplianceName, Failure> {
        Ok(ApplianceName::parse(text, flag)?.within(self.ui.tenant.as_ref()))
    }

    /// The appliance of this name.
    ///
    /// # Errors
    /// As [`CommandContext::name`] and [`ApplianceName::find`].
    pub(crate) async fn find(&self, text: &str, flag: Option<&Name>) -> Result<v1::Appliance, Failure> {
        self.name(text, flag)?.find(&self.client).await
    }

    /// The worker of this name.
    ///
    /// # Errors
    /// There is none; the message names the one that may have been meant.
    pub(crate) async fn worker(&self, name: &str) -> Result<v1::Worker, Failure> {
        match self.client.worker(name).await {
            Err(mut failure) if failure.exit == Exit::NotFound => {
                let workers = self.client.workers().await.unwrap_or_default();
                if let Some(meant) = suggest::nearest(name, workers.into_iter().map(|worker| worker.id)) {
                    failure.message = format!("{}; did you mean `{meant}`?", failure.message);
                }
                Err(failure)
            }
            answer => answer,
        }
    }

    /// How long to wait for the effect.
    pub(crate) fn wait(&self) -> Duration {
        self.timeout.unwrap_or(WAIT_TIMEOUT)
    }

    /// The cluster of the server, and the same context for calls to no other: what a question names is then what the answer
    /// is about, whichever coordinator answers next.
    pub(crate) async fn identified(&self) -> Result<(TargetCluster, Self), Failure> {
        let Some(identity) = self.client.identify().await? else {
            return Ok((TargetCluster::Unnamed(self.client.address().to_owned()), self.clone()));
        };
        let id = identity.id.parse().map_err(|e| Failure::failed(format!("the id of the cluster {e}")))?;
        let name = (!identity.name.is_empty()).then(|| Name::new(&identity.name).ok()).flatten();
        let ClusterRef::Id(uuid) = &id else { return Err(Failure::failed("the id of the cluster is no UUID")) };
        let known = ClusterIdentity { id: *uuid, name };
        Ok((TargetCluster::Known(known), Self { client: self.client.meant_for(Some(id)), ..self.clone() }))
    }
}

/// The cluster that a command is about to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TargetCluster {
    /// It says which one it is.
    Known(ClusterIdentity),
    /// One of an earlier version, at this address.
    Unnamed(String),
}

impl TargetCluster {
    /// Whether it is the one that is meant, as far as it says which one it is.
    pub(crate) fn is(&self, meant: &ClusterRef) -> bool {
        matches!(self, Self::Known(identity) if identity.is(meant))
    }
}

impl std::fmt::Display for TargetCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Known(identity) => write!(f, "cluster {identity}"),
            Self::Unnamed(address) => write!(f, "the cluster at {address}"),
        }
    }
}

/// What a question is about, which decides what follows when there is nobody to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What the command line names, one by one: no further answer is needed.
    Named,
    /// What was found to match: the answer has to be given by `--yes`.
    Found,
}

/// Whether to wait for the effect.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// Return as soon as the server has accepted the change
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// What is printed of the ids of debug modes and rollouts: enough to name one of a thousand.
const SHORT_ID: usize = 8;

/// How an id begins, which names the debug mode or rollout as long as no other one's begins so.
pub(crate) fn short_id(id: &str) -> &str {
    id.get(..SHORT_ID).unwrap_or(id)
}

/// A duration on the command line.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "must be a duration with its unit, such as 10m".to_owned())
}

/// An id that the caller makes up.
pub(crate) fn parse_id(text: &str) -> Result<String, String> {
    uuid::Uuid::parse_str(text).map(|id| id.to_string()).map_err(|problem| format!("is not a UUID: {problem}"))
}

/// Asks whether to go on, unless `yes` was given.
pub(crate) async fn confirm(question: &str, extent: Extent, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return match extent {
            Extent::Named => Ok(()),
            Extent::Found => Err(Failure::usage(format!("{question} answer with --yes"))),
        };
    }
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    // On a blocking thread, so that Ctrl-C works meanwhile.
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let answer = answer.await.map_err(|e| Failure::failed(format!("read the answer: {e}")))?;
    match answer?.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was changed")),
    }
}
