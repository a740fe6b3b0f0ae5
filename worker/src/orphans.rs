//! Reaps orphans where this process is the one that gets them: as the first process of a container, or as a subreaper.
//!
//! Instances have shims, which adopt what they leave behind. What comes here are processes of instances without a shim: of the version
//! before, or of a shim that was killed.

use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};
use shim::processes::{ProcessId, children, stat};
use tokio_util::sync::CancellationToken;

/// How often it is looked for orphans that have ended. A child that this process has started itself is reaped within
/// milliseconds by whoever waits for it, so that one which is seen twice is nobody's.
const LOOK: Duration = Duration::from_secs(5);

/// Reaps orphans until `stop`, if this process gets any.
pub(crate) async fn reap(stop: CancellationToken) {
    let is_subreaper = rustix::process::child_subreaper().is_ok_and(|subreaper| subreaper.is_some());
    if std::process::id() != 1 && !is_subreaper {
        return;
    }
    let mut timer = tokio::time::interval(LOOK);
    let mut seen: Vec<ProcessId> = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        let zombies = zombies();
        for id in zombies.iter().filter(|id| seen.contains(id)) {
            let pid = i32::try_from(id.pid).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid
                && matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_)))
            {
                tracing::debug!(pid = id.pid, "reaped an orphan");
            }
        }
        seen = zombies;
    }
}

/// Children of this process that have ended and were not waited for.
fn zombies() -> Vec<ProcessId> {
    let ended =
        |pid| stat(pid).filter(|stat| !stat.is_alive()).map(|stat| ProcessId { pid, start_ticks: stat.start_ticks });
    children(std::process::id()).into_iter().filter_map(ended).collect()
}
