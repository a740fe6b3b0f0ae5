//! The commands that are calls to the server, one file for each noun, and what they share.

use std::time::Duration;

use clap::Args;

use crate::client::AdminClient;
use crate::output::Ui;

pub(crate) mod appliance;
pub(crate) mod apply;
pub(crate) mod cluster;
pub(crate) mod delete;
pub(crate) mod doctor;
pub(crate) mod placement;
pub(crate) mod rebalance;
pub(crate) mod ring;
#[cfg(test)]
mod tests;
pub(crate) mod watch;
pub(crate) mod worker;

/// How long commands wait for their effect unless `--timeout` says otherwise.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// What every command is given.
#[derive(Clone, Debug)]
pub(crate) struct CommandContext {
    /// The server.
    pub(crate) client: AdminClient,
    /// The terminal.
    pub(crate) ui: Ui,
    /// `--timeout`, where given.
    pub(crate) timeout: Option<Duration>,
}

impl CommandContext {
    /// How long to wait for an effect.
    pub(crate) fn wait(&self) -> Duration {
        self.timeout.unwrap_or(WAIT_TIMEOUT)
    }
}

/// The tenant names are looked up in.
#[derive(Args, Clone, Debug)]
pub(crate) struct Tenant {
    /// Tenant the names belong to
    #[arg(short, long, default_value = "default")]
    pub(crate) tenant: String,
}

/// Whether to wait for the effect.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// Return as soon as the server has accepted it
    #[arg(long)]
    pub(crate) no_wait: bool,
}
