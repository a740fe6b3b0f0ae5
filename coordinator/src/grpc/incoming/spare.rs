//! What happens when there is no descriptor for the next connection.

use std::fs::File;
use std::io;
use std::time::Duration;

use futures::FutureExt;
use runtime::log_limited;
use rustix::io::Errno;

/// Pause after accepting failed and nothing could be done about it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A descriptor that is given up to take the next connection from the queue of the system, and close it: its client would
/// wait there in vain otherwise, and so would all that come after it.
#[derive(Debug)]
pub(super) struct Spare(Option<File>);

impl Spare {
    pub(super) fn new() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Logs why there is no next connection. If it is for lack of descriptors, closes the one that waits, which `accept`
    /// takes; otherwise waits before the next try.
    pub(super) async fn accepting_failed(&mut self, error: &io::Error, accept: impl Future<Output = io::Result<()>>) {
        let is_lack = [Errno::MFILE, Errno::NFILE].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()));
        let mut closed = false;
        if is_lack {
            if let Some(spare) = self.0.take() {
                drop(spare);
                closed = matches!(accept.now_or_never(), Some(Ok(())));
            }
            log_limited!(warn, "no descriptor is left for a connection, new ones are closed: {error}");
        } else {
            log_limited!(warn, "accept a connection: {error}");
        }
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
        if !closed {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_closed_when_no_descriptor_is_left_and_other_errors_are_waited_out() {
        let mut spare = Spare::new();
        let began = Instant::now();
        let mut closed = 0;
        for errno in [Errno::MFILE, Errno::NFILE] {
            let accept = async {
                closed += 1;
                Ok(())
            };
            spare.accepting_failed(&errno.into(), accept).await;
        }
        assert_eq!((closed, began.elapsed()), (2, Duration::ZERO));
        spare.accepting_failed(&Errno::CONNABORTED.into(), async { panic!("not asked for") }).await;
        assert_eq!(began.elapsed(), ACCEPT_PAUSE);
        spare.accepting_failed(&Errno::MFILE.into(), std::future::pending()).await;
        assert_eq!(began.elapsed(), 2 * ACCEPT_PAUSE, "nobody waits any more");
    }
}
