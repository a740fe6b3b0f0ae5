//! The shim itself: starts the instance, reaps it and everything that descends from it, copies its output, and ends what is left
//! when the main process has ended.
//!
//! One loop over three descriptors (signals, output of the instance, the launcher's report) and one deadline. Signals that stop
//! something (SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGWINCH) are passed on to every process of the instance. The shim ends when
//! it has no child left: it adopts every orphan, so that nothing of the instance is left then.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitOptions, WaitStatus, getpid, set_child_subreaper, setsid, wait};

use shim::STATE_FILE;
use shim::order::{Answer, MAX_ANSWER, Order};
use shim::processes::{self, ProcessId, boot_id, descendants};
use shim::state::{End, EndCause, ShimState, last_lines};

use crate::cgroup::Cgroup;
use crate::log::Log;
use crate::signals::default_dispositions;

/// Output taken from the pipe at once, and most that is taken between two looks at the other descriptors.
const CHUNK: usize = 16 * 1024;
const MOST_CHUNKS: usize = 64;
/// How often what does not end is killed again.
const KILL_AGAIN: Duration = Duration::from_millis(100);
/// How often output that is dropped is noted.
const TELL_DROPPED: Duration = Duration::from_secs(10);
/// Rounds of killing at once: they outrun whatever does not fork for ever.
const KILL_ROUNDS: usize = 8;

/// Runs the shim until nothing of its instance is left.
pub(crate) fn run() -> ExitCode {
    match Supervisor::start() {
        Ok(supervisor) => {
            supervisor.run();
            ExitCode::SUCCESS
        }
        Err(problem) => {
            answer(&Answer::Failed(problem));
            ExitCode::FAILURE
        }
    }
}

/// Tells the worker. One that is gone finds out from the state file.
fn answer(answer: &Answer) {
    let mut line = answer.encode();
    if line.len() > MAX_ANSWER {
        line.truncate(line.floor_char_boundary(MAX_ANSWER - 1));
        line.push('\n');
    }
    let _ = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
    let _ = File::open("/dev/null").map(rustix::stdio::dup2_stdout);
}

struct Supervisor {
    order: Order,
    state: ShimState,
    signals: SignalFd,
    /// Where the launcher says what went wrong; none once it has become the command.
    report: Option<File>,
    reported: Vec<u8>,
    /// Output of the instance; none once every process has closed it.
    output: Option<File>,
    log: Log,
    cgroup: Option<Cgroup>,
    /// The command could not be run.
    failed: bool,
    /// When the state file was written last.
    kept_at: Instant,
    /// The stop signal was passed on already.
    stopping: bool,
    /// When what is left is killed; set once the main process has ended.
    kill_at: Option<Instant>,
}

impl Supervisor {
    /// Starts the command.
    fn start() -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        default_dispositions();
        close_inherited();
        // Fails only for the leader of a process group, which has detached itself already.
        let _ = setsid();
        set_child_subreaper(Some(getpid())).map_err(|error| failed("become a subreaper", &error))?;
        // All of them: none is left to end the shim before its instance.
        SigSet::all().thread_block().map_err(|error| failed("block signals", &error))?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&SigSet::all(), flags).map_err(|error| failed("take signals", &error))?;
        let order = crate::read_order()?;
        let log = Log::take(order.log.clone()).map_err(|error| failed("open the log", &error))?;
        let cgroup = order.cgroup.as_ref().map(Cgroup::make).transpose();
        let cgroup = cgroup.map_err(|error| failed("make a control group", &error))?;
        let (output, writer) = output_pipe().map_err(|error| failed("make a pipe", &error))?;
        let launched = launch(&order, writer, cgroup.as_ref());
        let (main, report) = match launched {
            Ok(launched) => launched,
            Err(problem) => {
                cgroup.iter().for_each(Cgroup::remove);
                return Err(problem);
            }
        };
        let _ = File::open("/dev/null").map(rustix::stdio::dup2_stdin);
        let me = ProcessId::of(std::process::id()).ok_or("the shim cannot see itself")?;
        let state = ShimState {
            instance: order.instance.clone(),
            boot: boot_id(),
            shim: me,
            main,
            cgroup: order.cgroup.as_ref().map(|cgroup| cgroup.path.clone()),
            dropped: 0,
            end: None,
        };
        Ok(Self {
            order,
            state,
            signals,
            report: Some(report),
            reported: Vec::new(),
            output: Some(output.into()),
            log,
            cgroup,
            failed: false,
            kept_at: Instant::now(),
            stopping: false,
            kill_at: None,
        })
    }

    fn run(mut self) {
        loop {
            self.wait();
            self.take_report();
            self.take_signals();
            self.copy_output();
            self.count_dropped();
            if !self.reap() {
                break;
            }
            self.kill_when_due();
        }
        // Whatever was written last.
        self.copy_output();
        self.cgroup.iter().for_each(Cgroup::remove);
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let signals = self.signals.as_fd();
        let mut fds = vec![PollFd::new(&signals, PollFlags::IN)];
        fds.extend(self.report.iter().map(|report| PollFd::new(report, PollFlags::IN)));
        fds.extend(self.output.iter().map(|output| PollFd::new(output, PollFlags::IN)));
        let tell_at = (self.log.dropped() != self.state.dropped).then(|| self.kept_at + TELL_DROPPED);
        let timeout = self.kill_at.into_iter().chain(tell_at).min();
        let timeout = timeout.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        let _ = poll(&mut fds, timeout.as_ref());
    }

    /// The launcher's report ends when it has become the command.
    fn take_report(&mut self) {
        let Some(report) = &mut self.report else { return };
        let mut bytes = [0; MAX_ANSWER];
        match report.read(&mut bytes) {
            Ok(0) => {}
            Ok(length) => {
                self.reported.extend_from_slice(&bytes[..length]);
                return;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(error) => self.reported.extend_from_slice(error.to_string().as_bytes()),
        }
        self.report = None;
        if self.reported.is_empty() {
            // Before the answer: whoever has heard of the process can look it up.
            self.keep_state(false);
            answer(&Answer::Started { main: self.state.main, shim: self.state.shim });
        } else {
            self.failed = true;
            answer(&Answer::Failed(String::from_utf8_lossy(&self.reported).into_owned()));
        }
    }

    /// Notes what had to be dropped, now and then.
    fn count_dropped(&mut self) {
        if self.log.dropped() != self.state.dropped && self.kept_at.elapsed() >= TELL_DROPPED {
            self.keep_state(false);
        }
    }

    fn take_signals(&mut self) {
        const PASSED_ON: [Signal; 7] =
            [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP, Signal::USR1, Signal::USR2, Signal::WINCH];
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            if let Some(signal) = PASSED_ON.into_iter().find(|signal| signal.as_raw() == number) {
                self.stopping |= signal == self.order.stop.signal;
                self.send_to_all(signal);
            }
        }
    }

    /// Sends a signal to every process of the instance. What may not be signalled is seen by the worker, which names it.
    fn send_to_all(&self, signal: Signal) {
        for id in descendants(self.state.shim.pid) {
            let _ = processes::signal(id, signal);
        }
    }

    /// Takes what is in the pipe, but not for ever.
    fn copy_output(&mut self) {
        let Some(output) = &mut self.output else { return };
        let mut chunk = [0; CHUNK];
        for _ in 0..MOST_CHUNKS {
            match output.read(&mut chunk) {
                Ok(0) => {
                    self.output = None;
                    return;
                }
                Ok(length) => self.log.write(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Reaps what has ended. Answers whether a child is left.
    fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if u32::try_from(pid.as_raw_nonzero().get()) == Ok(self.state.main.pid) && self.state.end.is_none()
                    {
                        self.main_ended(status);
                    }
                }
                Ok(None) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn main_ended(&mut self, status: WaitStatus) {
        // A report that has come meanwhile is taken first: a command that never ran has no end. One read takes the text, another
        // one finds its end.
        self.take_report();
        self.take_report();
        if self.failed {
            return;
        }
        self.copy_output();
        let cause = match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => EndCause::Exit(status),
            (None, Some(signal)) => EndCause::Signal(signal),
            (None, None) => return,
        };
        let out_of_memory = self.cgroup.as_ref().is_some_and(Cgroup::ran_out_of_memory);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_unix_ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
        self.state.end = Some(End { cause, at_unix_ms, out_of_memory, last_lines: last_lines(self.log.newest()) });
        self.keep_state(true);
        self.kill_at = Some(Instant::now() + self.order.stop.timeout);
        if !self.stopping {
            self.stopping = true;
            self.send_to_all(self.order.stop.signal);
        }
    }

    fn kill_when_due(&mut self) {
        if self.kill_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.cgroup.iter().for_each(Cgroup::kill);
        for _ in 0..KILL_ROUNDS {
            let left = descendants(self.state.shim.pid);
            if left.is_empty() {
                break;
            }
            for id in left {
                let _ = processes::signal(id, Signal::KILL);
            }
        }
        self.kill_at = Some(Instant::now() + KILL_AGAIN);
    }

    /// Replaces the state file. Without it the worker goes by what it has recorded itself.
    fn keep_state(&mut self, durably: bool) {
        self.kept_at = Instant::now();
        self.state.dropped = self.log.dropped();
        let beside = format!(".{STATE_FILE}.{}", self.state.shim.pid);
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(self.state.encode().as_bytes())?;
            if durably {
                file.sync_all()?;
            }
            fs::rename(&beside, STATE_FILE)?;
            if durably {
                File::open(".")?.sync_all()?;
            }
            io::Result::Ok(())
        })();
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
    }
}

/// A pipe for output: whoever writes waits; only the shim does not.
pub(crate) fn output_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (output, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::empty())?;
    Ok((output, writer))
}

/// Starts the launcher, puts it into the control group, and only then gives it the order.
pub(crate) fn launch(order: &Order, writer: OwnedFd, cgroup: Option<&Cgroup>) -> Result<(ProcessId, File), String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let mut child = Command::new("/proc/self/exe")
        .arg("launch")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(writer)
        .spawn()
        .map_err(|error| failed("start the launcher", &error))?;
    let handed_over = (|| {
        if let Some(cgroup) = cgroup {
            cgroup.take(child.id()).map_err(|error| failed("enter its control group", &error))?;
        }
        let mut orders = child.stdin.take().ok_or("the launcher has no input")?;
        orders.write_all(&order.encode()).map_err(|error| failed("instruct the launcher", &error))?;
        // It has not been waited for, so it is still there, if only as a zombie.
        let main = ProcessId::of(child.id()).ok_or("the launcher cannot be seen")?;
        let report = child.stdout.take().ok_or("the launcher has no output")?;
        rustix::fs::fcntl_setfl(&report, rustix::fs::OFlags::NONBLOCK)
            .map_err(|error| failed("listen to the launcher", &error))?;
        Ok((main, File::from(OwnedFd::from(report))))
    })();
    if handed_over.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    handed_over
}

/// Closes every descriptor but the standard ones: a worker may have inherited some that it does not know of, such as locks.
pub(crate) fn close_inherited() {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    // That of the listing is closed already, and closing it again harms nothing.
    for fd in open {
        let _ = nix::unistd::close(fd);
    }
}
