//! Commands that call the server, one file for each noun, and what they share.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use crate::client::AdminClient;
use crate::error::Failure;
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

/// Asks whether to go on; without a terminal `--yes` has to be given.
pub(crate) async fn confirm(question: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{question} answer with --yes")));
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
