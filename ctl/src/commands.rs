//! Commands that call the server, one file for each noun, and what they share.

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
    /// How long to wait for the effect.
    pub(crate) fn wait(&self) -> Duration {
        self.timeout.unwrap_or(WAIT_TIMEOUT)
    }
}

/// The tenant in which names are looked up.
#[derive(Args, Clone, Debug)]
pub(crate) struct Tenant {
    /// Tenant of the names
    #[arg(short, long, default_value = "default")]
    pub(crate) tenant: String,
}

/// Whether to wait for the effect.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Wait {
    /// Return as soon as the server has accepted the change
    #[arg(long)]
    pub(crate) no_wait: bool,
}
