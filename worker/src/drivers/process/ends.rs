//! Reports at once when an instance ends: the kernel says so by a pidfd of its main process, whoever started that, be it a worker of
//! an earlier version.
//!
//! All pidfds are in one epoll set that one thread waits for (tokio has no safe way to wait for a descriptor of another kind), so that
//! an instance costs a descriptor and no task. At most half of the descriptors of the worker are used for that. An instance that is
//! not watched, because of this limit or because the kernel has no pidfds (before 5.3), is found by its next probe, as is an end whose
//! report was lost.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, getrlimit, pidfd_open};
use shim::processes::ProcessId;

use crate::drivers::{EndSender, EndedInstance};

/// Ends that are taken from the kernel at once.
const BATCH: usize = 64;
/// Stack of the thread, in bytes; it needs little.
const STACK: usize = 128 * 1024;
/// What the epoll set answers for the descriptor that stops the thread. No pid is 0.
const STOP: u64 = 0;

/// Watches main processes. Ends with its last owner.
#[derive(Debug)]
pub(super) struct EndWatch {
    shared: Arc<Shared>,
    stop: OwnedFd,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    /// By pid, of which only one process runs at a time.
    watched: Mutex<HashMap<u32, Watched>>,
    most: usize,
}

#[derive(Debug)]
struct Watched {
    process: ProcessId,
    instance: EndedInstance,
    ends: EndSender,
    /// Closing it takes it out of the epoll set.
    _pidfd: OwnedFd,
}

impl EndWatch {
    /// Starts to watch.
    pub(super) fn start() -> io::Result<Self> {
        let (epoll, stop) = (epoll::create(epoll::CreateFlags::CLOEXEC)?, eventfd(0, EventfdFlags::CLOEXEC)?);
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = usize::try_from(limit / 2).unwrap_or(usize::MAX);
        let shared = Arc::new(Shared { epoll, watched: Mutex::default(), most });
        let thread = Arc::clone(&shared);
        thread::Builder::new().name("ends".to_owned()).stack_size(STACK).spawn(move || thread.run())?;
        Ok(Self { shared, stop })
    }

    /// Watches the main process of an instance, unless it is watched already. One that does not run is reported at once.
    pub(super) fn watch(&self, process: ProcessId, instance: EndedInstance, ends: &EndSender) {
        self.shared.watch(process, instance, ends);
    }
}

impl Drop for EndWatch {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, HashMap<u32, Watched>> {
        // Every change is one insertion or removal, so a panic elsewhere leaves the map whole.
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, process: ProcessId, instance: EndedInstance, ends: &EndSender) {
        let mut watched = self.watched();
        let known = watched.get(&process.pid);
        if known.is_some_and(|known| known.process == process) || watched.len() >= self.most {
            return;
        }
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        let pidfd = match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(pidfd)) => pidfd,
            Some(Err(Errno::SRCH)) => return report(ends, instance),
            // No descriptor left, or a kernel without pidfds.
            Some(Err(_)) | None => return,
        };
        // Looked at after it was opened: the pid may belong to another process by now.
        if !process.is_alive() {
            return report(ends, instance);
        }
        let data = epoll::EventData::new_u64(process.pid.into());
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        if epoll::add(&self.epoll, &pidfd, data, flags).is_ok() {
            let new = Watched { process, instance, ends: ends.clone(), _pidfd: pidfd };
            if let Some(former) = watched.insert(process.pid, new) {
                // It has ended, or its pid would not be free.
                report(&former.ends, former.instance);
            }
        }
    }

    fn run(&self) {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(STOP) };
        let mut events = [none; BATCH];
        loop {
            let count = match epoll::wait(&self.epoll, &mut events[..], None) {
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::warn!(%error, "ends of instances are noticed by probes only");
                    return;
                }
            };
            for event in events.iter().take(count) {
                let key = event.data.u64();
                if key == STOP {
                    return;
                }
                let ended = u32::try_from(key).ok().and_then(|pid| self.watched().remove(&pid));
                if let Some(Watched { instance, ends, .. }) = ended {
                    // Waits while the runner is behind. Nobody listens once that has ended.
                    let _ = ends.blocking_send(instance);
                }
            }
        }
    }
}

/// Reports from where nothing may wait. A full queue loses the report, not the end: a probe finds it.
fn report(ends: &EndSender, instance: EndedInstance) {
    let _ = ends.try_send(instance);
}
