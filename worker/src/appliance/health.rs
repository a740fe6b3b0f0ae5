//! Health checks: one task per member and listener opens a connection every interval and closes it again. A member that resets
//! it at once has failed: so do proxies whose server is gone.
//!
//! A member counts as healthy until checks say otherwise, so that a listener serves from its first moment; a connection
//! to a member that turns out to be dead goes to the next one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::api::{Check, ProxyProtocol};
use super::members::Backend;
use super::metrics;
use super::proxy;
use super::socket::broken_off;

/// Checks under way at a time, of all listeners: each takes a socket. The others wait, which makes them late.
pub(super) const MOST_CHECKS: usize = 128;
/// How long a check waits for a reset after it could connect.
const RESET_WAIT: Duration = Duration::from_millis(20);

static CHECKS: Semaphore = Semaphore::const_new(MOST_CHECKS);

/// A running check; ends when dropped.
#[derive(Debug)]
pub(super) struct Checker(AbortHandle);

impl Checker {
    /// Starts to check a member, with the header that it expects of every connection.
    pub(super) fn start(backend: Arc<Backend>, check: Check, proxy_protocol: Option<ProxyProtocol>) -> Self {
        Self(tokio::spawn(watch(backend, check, proxy_protocol)).abort_handle())
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn watch(backend: Arc<Backend>, check: Check, proxy_protocol: Option<ProxyProtocol>) {
    let mut ticks = interval(check.interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut streak = Streak { healthy: backend.is_healthy(), against: 0 };
    loop {
        ticks.tick().await;
        let passed = passes(backend.address, check.timeout(), proxy_protocol).await;
        metrics::checked(passed);
        if streak.note(passed, check) {
            backend.judge(streak.healthy);
            tracing::info!(member = %backend.address, healthy = streak.healthy, "health of a member changed");
        }
    }
}

async fn passes(address: SocketAddr, limit: Duration, proxy_protocol: Option<ProxyProtocol>) -> bool {
    // Never closed, so that there is always a permit in the end.
    let _permit = CHECKS.acquire().await;
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            if let Some(version) = proxy_protocol {
                // A member that gets none may note an error. One that does not take it has reset the connection.
                let _ = stream.try_write(&proxy::write(version, None));
            }
            timeout(RESET_WAIT, broken_off(&stream)).await.is_err()
        }
        Ok(Err(_)) | Err(_) => false,
    }
}

/// The judgement over a row of checks.
#[derive(Debug)]
struct Streak {
    healthy: bool,
    /// Checks in a row that speak against `healthy`.
    against: u32,
}

impl Streak {
    /// Takes in one check; `true` when the judgement changes.
    fn note(&mut self, passed: bool, check: Check) -> bool {
        if passed == self.healthy {
            self.against = 0;
            return false;
        }
        self.against = self.against.saturating_add(1);
        let needed = if self.healthy { check.fall } else { check.rise };
        let changes = self.against >= needed;
        if changes {
            *self = Self { healthy: passed, against: 0 };
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_results_in_a_row_change_the_judgement() {
        let check = Check { fall: 2, rise: 3, ..Check::default() };
        let mut streak = Streak { healthy: true, against: 0 };
        let seen = [false, true, false, false, true, true, false, true, true, true].map(|passed| {
            streak.note(passed, check);
            streak.healthy
        });
        assert_eq!(seen, [true, true, true, false, false, false, false, false, false, true]);
    }
}
