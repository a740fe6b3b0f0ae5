//! Runs one command beside an instance, within a time, and says how it ended. Nothing that the command starts outlives it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, WaitOptions, getpid, set_child_subreaper, wait};

use shim::order::{MAX_ANSWER, Verdict};
use shim::processes::{self, ProcessId, descendants};
use shim::state::{EndCause, MAX_OUTPUT};

use crate::signals::default_dispositions;
use crate::supervise::{close_inherited, launch, output_pipe};

/// How long processes that were killed may take to end: those that hang in a system call are not waited for.
const END_WAIT: Duration = Duration::from_secs(2);

pub(crate) fn run() -> ExitCode {
    let (verdict, output) = Probe::start().map_or_else(|why| (Verdict::NotRun, why.into_bytes()), Probe::run);
    let mut answer = verdict.encode().into_bytes();
    answer.extend_from_slice(&output);
    // Whoever asked may be gone.
    let _ = io::stdout().write_all(&answer);
    ExitCode::SUCCESS
}

struct Probe {
    main: ProcessId,
    deadline: Instant,
    signals: SignalFd,
    /// Where the launcher says what went wrong.
    report: File,
    /// Output of the command; none once every process has closed it.
    output: Option<File>,
    /// The newest output.
    newest: Vec<u8>,
}

impl Probe {
    fn start() -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        default_dispositions();
        close_inherited();
        set_child_subreaper(Some(getpid())).map_err(|error| failed("become a subreaper", &error))?;
        let mut ends = SigSet::empty();
        ends.add(nix::sys::signal::Signal::SIGCHLD);
        ends.thread_block().map_err(|error| failed("block signals", &error))?;
        let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|error| failed("take signals", &error))?;
        let order = crate::read_order()?;
        let deadline = Instant::now() + order.stop.timeout;
        let (output, writer) = output_pipe().map_err(|error| failed("make a pipe", &error))?;
        let (main, report) = launch(&order, writer, None)?;
        Ok(Self { main, deadline, signals, report, output: Some(output.into()), newest: Vec::new() })
    }

    fn run(mut self) -> (Verdict, Vec<u8>) {
        let cause = self.follow();
        end_descendants();
        self.take_output();
        let mut problem = Vec::new();
        // Ended by now, so that this does not wait.
        let _ = (&mut self.report).take(MAX_ANSWER as u64).read_to_end(&mut problem);
        if !problem.is_empty() {
            return (Verdict::NotRun, problem);
        }
        let skipped = self.newest.len().saturating_sub(MAX_OUTPUT);
        (cause.map_or(Verdict::TimedOut, Verdict::Ended), self.newest.split_off(skipped))
    }

    /// Waits for the end of the command; `None` when it takes too long, or when nothing waits for the answer any more.
    fn follow(&mut self) -> Option<EndCause> {
        loop {
            self.take_output();
            while let Ok(Some(_)) = self.signals.read_signal() {}
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                if u32::try_from(pid.as_raw_nonzero().get()) == Ok(self.main.pid) {
                    return match (status.exit_status(), status.terminating_signal()) {
                        (Some(status), _) => Some(EndCause::Exit(status)),
                        (None, Some(number)) => Some(EndCause::Signal(number)),
                        (None, None) => None,
                    };
                }
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let (signals, asked) = (self.signals.as_fd(), rustix::stdio::stdout());
            let mut fds = vec![PollFd::new(&asked, PollFlags::empty()), PollFd::new(&signals, PollFlags::IN)];
            fds.extend(self.output.iter().map(|output| PollFd::new(output, PollFlags::IN)));
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
            // The worker that asked is gone, or its instance is.
            if fds[0].revents().contains(PollFlags::ERR) {
                return None;
            }
        }
    }

    fn take_output(&mut self) {
        let Some(output) = &mut self.output else { return };
        let mut chunk = [0; 4096];
        // What writes faster than this is not waited for.
        for _ in 0..64 {
            match output.read(&mut chunk) {
                Ok(0) => {
                    self.output = None;
                    return;
                }
                Ok(length) => {
                    self.newest.extend_from_slice(&chunk[..length]);
                    let over = self.newest.len().saturating_sub(2 * MAX_OUTPUT);
                    self.newest.drain(..over);
                }
                Err(_) => return,
            }
        }
    }
}

/// Ends a command and all that it has started: every descendant of this process.
pub(crate) fn end_descendants() {
    let give_up = Instant::now() + END_WAIT;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        let left = descendants(std::process::id());
        if left.is_empty() || Instant::now() >= give_up {
            return;
        }
        for id in left {
            let _ = processes::signal(id, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
