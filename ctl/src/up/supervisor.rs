//! Supervises child processes: starts them, restarts them when they exit, stops them together.
//!
//! ```text
//! running --exit--> waiting (back-off) --time--> running
//! running --exit, too often in a row--> given up
//! running --stop--> SIGTERM --exit--> stopped
//!                          --grace over, or asked to hurry--> SIGKILL to the group
//! ```
//!
//! Each child leads its own process group, so that Ctrl-C in the terminal reaches `rugctl` alone, which decides the
//! order of stop_requested. One task owns one child; the tasks report through one bounded channel.

use std::fs;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use common::backoff::Backoff;
use runtime::folder::{Access, Folder};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Events that wait to be read. A child reports a few times a minute at most; when the channel is full, the newest are
/// lost.
const EVENTS: usize = 256;
/// Bytes of a pid file that are read.
const MAX_PID_FILE: u64 = 64;
/// Timeout after SIGKILL; it is only reached while the kernel is blocked in a device.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// A program to run.
#[derive(Clone, Debug)]
pub(crate) struct ChildProgram {
    /// Stable name, such as `worker-1`.
    pub(crate) name: String,
    /// The binary.
    pub(crate) binary: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// Where `<name>.log` receives stdout and stderr, appended.
    pub(crate) logs: Folder,
    /// Where `<name>.pid` contains pid and start time while it runs.
    pub(crate) run: Folder,
}

impl ChildProgram {
    fn pid_file(&self) -> String {
        format!("{}.pid", self.name)
    }

    fn remove_pid_file(&self) {
        // One that stays is found to be stale by the next `up`.
        let _ = self.run.remove(self.pid_file());
    }
}

/// When and how often a child is restarted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Pause after an exit, by how many there were in a row. Without jitter: one machine has few children.
    pub(crate) pause: Backoff,
    /// The count of exits starts over after a child ran this long.
    pub(crate) steady_after: Duration,
    /// Exits in a row after which the child is given up.
    pub(crate) limit: u32,
    /// How long it may take to stop after SIGTERM.
    pub(crate) stop_grace: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            // Long enough not to spin, short enough that a worker is back before its absence matters.
            pause: Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(30) },
            steady_after: Duration::from_secs(20),
            limit: 8,
            stop_grace: Duration::from_secs(10),
        }
    }
}

/// A change in the state of a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChildEvent {
    /// It runs.
    Started {
        /// Its name.
        name: String,
        /// Its pid.
        pid: u32,
    },
    /// It exited and is restarted after a pause.
    Died {
        /// Its name.
        name: String,
        /// How it exited.
        how: String,
        /// The pause.
        pause: Duration,
    },
    /// It exited too often, or cannot be started.
    GivenUp {
        /// Its name.
        name: String,
        /// How it exited the last time.
        how: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChildStop {
    No,
    Gracefully,
    Now,
}

/// All children of one `rugctl up`. They keep running when it is dropped without [`Supervisor::stop`].
#[derive(Debug)]
pub(crate) struct Supervisor {
    policy: Policy,
    events: mpsc::Receiver<ChildEvent>,
    report: mpsc::Sender<ChildEvent>,
    stop: watch::Sender<ChildStop>,
    children: Vec<JoinHandle<()>>,
}

impl Supervisor {
    /// A supervisor without children.
    pub(crate) fn new(policy: Policy) -> Self {
        let (report, events) = mpsc::channel(EVENTS);
        Self { policy, events, report, stop: watch::Sender::new(ChildStop::No), children: Vec::new() }
    }

    /// Starts a child and supervises it from now on.
    pub(crate) fn start(&mut self, program: ChildProgram) {
        let keeper = Keeper {
            program,
            policy: self.policy,
            report: self.report.clone(),
            stop: self.stop.subscribe(),
            deaths: 0,
        };
        self.children.push(tokio::spawn(keeper.run()));
    }

    /// The next event. Pending for ever when there is none. Cancel safe.
    pub(crate) async fn event(&mut self) -> ChildEvent {
        match self.events.recv().await {
            Some(event) => event,
            // Not reached while `self.report` exists.
            None => std::future::pending().await,
        }
    }

    /// Stops all children together and waits for the last; those that need longer than the grace period are killed, all
    /// of them when `hurry` completes.
    pub(crate) async fn stop(self, hurry: impl Future<Output = ()>) {
        self.stop.send_replace(ChildStop::Gracefully);
        let mut children = futures::future::join_all(self.children);
        let mut hurry = std::pin::pin!(hurry);
        tokio::select! {
            _ = &mut children => return,
            () = &mut hurry => {}
        }
        self.stop.send_replace(ChildStop::Now);
        children.await;
    }
}

/// Supervises one child.
struct Keeper {
    program: ChildProgram,
    policy: Policy,
    report: mpsc::Sender<ChildEvent>,
    stop: watch::Receiver<ChildStop>,
    /// Exits in a row, each before the child ran for `steady_after`.
    deaths: u32,
}

impl Keeper {
    async fn run(mut self) {
        while *self.stop.borrow() == ChildStop::No {
            let started = Instant::now();
            let how = match self.spawn() {
                Ok(mut child) => {
                    let pid = child.id().unwrap_or_default();
                    self.report(ChildEvent::Started { name: self.program.name.clone(), pid });
                    tokio::select! {
                        status = child.wait() => status.map_or_else(|e| e.to_string(), describe),
                        () = stop_requested(&mut self.stop) => {
                            self.end(&mut child, pid).await;
                            self.program.remove_pid_file();
                            return;
                        }
                    }
                }
                Err(error) => format!("cannot be started: {}: {error}", self.program.binary.display()),
            };
            self.program.remove_pid_file();
            self.deaths = if started.elapsed() >= self.policy.steady_after { 1 } else { self.deaths + 1 };
            let name = self.program.name.clone();
            if self.deaths >= self.policy.limit {
                self.report(ChildEvent::GivenUp { name, how });
                return;
            }
            let pause = self.policy.pause.delay(self.deaths, 1.0);
            self.report(ChildEvent::Died { name, how, pause });
            tokio::select! {
                () = sleep(pause) => {}
                () = stop_requested(&mut self.stop) => return,
            }
        }
    }

    fn report(&self, event: ChildEvent) {
        // A full channel is not being read; the log of the child has the details.
        let _ = self.report.try_send(event);
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let log = self.program.logs.open(format!("{}.log", self.program.name), Access::Append)?;
        let child = Command::new(&self.program.binary)
            .args(&self.program.args)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        if let Some(pid) = child.id() {
            // Only needed to find the child again after a crash of `rugctl` itself.
            let line = ProcessIdentity::of(pid).map(|p| p.to_line()).unwrap_or_default();
            let _ = self.program.run.write_atomic(self.program.pid_file(), line.as_bytes());
        }
        Ok(child)
    }

    /// SIGTERM, then SIGKILL to the whole group after the grace period.
    async fn end(&mut self, child: &mut Child, pid: u32) {
        signal(pid, Signal::TERM);
        tokio::select! {
            _ = child.wait() => return,
            () = sleep(self.policy.stop_grace) => {}
            () = hurry_requested(&mut self.stop) => {}
        }
        kill_group(pid);
        let _ = tokio::time::timeout(KILL_WAIT, child.wait()).await;
    }
}

async fn stop_requested(stop: &mut watch::Receiver<ChildStop>) {
    // The sender is only dropped after everything was stopped, or with the whole process.
    let _ = stop.wait_for(|stop| *stop != ChildStop::No).await;
}

async fn hurry_requested(stop: &mut watch::Receiver<ChildStop>) {
    if stop.wait_for(|stop| *stop == ChildStop::Now).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Fails when the process has just ended.
        let _ = kill_process(pid, signal);
    }
}

fn kill_group(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;

    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Identifies a process: pids are reused, a pid with a start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessIdentity {
    pid: u32,
    /// Clock ticks since boot.
    start: u64,
}

impl ProcessIdentity {
    /// The process that has this pid now.
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in brackets, may contain anything; the fields after it cannot. State is the third field of all, the
        // start time the twenty-second.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let start = fields.nth(18)?.parse().ok()?;
        (state != "Z").then_some(Self { pid, start })
    }

    /// Parses the content of a pid file.
    fn parse(line: &str) -> Option<Self> {
        let (pid, start) = line.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }

    fn to_line(self) -> String {
        format!("{} {}\n", self.pid, self.start)
    }

    fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// Processes of an earlier `rugctl up` that was killed before it could stop them, by name.
pub(crate) fn leftovers(run: &Folder) -> Vec<(String, ProcessIdentity)> {
    let Ok(entries) = fs::read_dir(run.path()) else { return Vec::new() };
    let mut found = Vec::new();
    for file in entries.flatten().map(|entry| PathBuf::from(entry.file_name())) {
        let name = file.file_stem().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let line = run.read(&file, MAX_PID_FILE).ok().and_then(|line| String::from_utf8(line).ok());
        match line.and_then(|line| ProcessIdentity::parse(&line)).filter(|p| p.is_alive()) {
            Some(process) => found.push((name, process)),
            // Not running any more, or incomplete.
            None => drop(run.remove(&file)),
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Stops leftovers as [`Supervisor::stop`] does; they are not our children, so their end is found by polling.
pub(crate) async fn stop_leftovers(processes: &[ProcessIdentity], grace: Duration) {
    const LOOK: Duration = Duration::from_millis(20);

    processes.iter().for_each(|p| signal(p.pid, Signal::TERM));
    for limit in [grace, KILL_WAIT] {
        let deadline = Instant::now() + limit;
        while processes.iter().any(|p| p.is_alive()) && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        processes.iter().filter(|p| p.is_alive()).for_each(|p| kill_group(p.pid));
    }
}

#[cfg(test)]
mod tests;
