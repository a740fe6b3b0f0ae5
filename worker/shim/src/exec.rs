//! Runs one command in an instance for an operator: its input comes, and its output goes, through the socket that is standard output, as
//! [`shim::channel`] says. Nothing that the command starts outlives it, nor the lease, nor the worker's end of the socket.
//!
//! The command is in the control group of its instance, where that has one, and a descendant of this process otherwise, which adopts what it leaves
//! behind.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitOptions, getpid, set_child_subreaper, wait};
use rustix::time::{ClockId, clock_gettime};

use shim::channel::{Frames, FromShim, MAX_FRAME, ToShim, WINDOW};
use shim::order::{MAX_ANSWER, Order, Verdict};
use shim::processes::ProcessId;
use shim::state::EndCause;

use crate::cgroup::Cgroup;
use crate::probe::end_descendants;
use crate::signals::default_dispositions;
use crate::supervise::{close_inherited, output_pipe};

/// How long the worker may take to say until when the command may run.
const LEASE_WAIT: Duration = Duration::from_secs(5);
/// Bytes for the worker that wait; with more of them output is left in its pipe.
const MAX_WAITING: usize = 2 * MAX_FRAME;
/// How long after the time of the command its output may be taken.
const TAKE_WAIT: Duration = Duration::from_secs(10);

pub(crate) fn run() -> ExitCode {
    let Ok(socket) = socket() else { return ExitCode::FAILURE };
    let mut channel = Channel { socket, frames: Frames::default(), waiting: VecDeque::new() };
    match Execution::start(&mut channel) {
        Ok(mut execution) => execution.run(&mut channel),
        Err(problem) => channel.send(&FromShim::Ended(Verdict::NotRun, problem)),
    }
    let _ = channel.socket.set_nonblocking(false);
    let _ = channel.socket.set_write_timeout(Some(TAKE_WAIT));
    let rest: Vec<u8> = channel.waiting.drain(..).collect();
    // Whoever asked may be gone.
    let _ = channel.socket.write_all(&rest);
    ExitCode::SUCCESS
}

/// The socket, which no child inherits.
fn socket() -> io::Result<UnixStream> {
    default_dispositions();
    close_inherited();
    let socket = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?);
    rustix::stdio::dup2_stdout(File::open("/dev/null")?)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The worker's end.
struct Channel {
    socket: UnixStream,
    frames: Frames,
    waiting: VecDeque<u8>,
}

impl Channel {
    fn send(&mut self, said: &FromShim) {
        self.waiting.extend(said.encode());
    }

    /// Sends what waits, as far as there is room. `false` when the worker is gone.
    fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            match self.socket.write(first) {
                Ok(0) => return false,
                Ok(length) => drop(self.waiting.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Takes in what has come. `false` when the worker is gone.
    fn receive(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => return false,
                Ok(length) => self.frames.add(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

/// Why the command does not run any more.
enum Over {
    /// It has ended.
    Ended(EndCause),
    TimedOut,
    NoLease,
    /// The worker is gone.
    Gone,
}

struct Execution {
    main: ProcessId,
    deadline: Instant,
    /// In nanoseconds of CLOCK_BOOTTIME.
    lease: u64,
    signals: SignalFd,
    /// Where the launcher says what went wrong.
    report: File,
    /// Its input; none once there is no more, or it takes no more.
    input: Option<File>,
    given: VecDeque<u8>,
    input_ends: bool,
    /// Its outputs; none once every process has closed them.
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Execution {
    fn start(channel: &mut Channel) -> Result<Self, String> {
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        set_child_subreaper(Some(getpid())).map_err(|error| failed("become a subreaper", &error))?;
        // All of them: none is left to end this process before its command.
        SigSet::all().thread_block().map_err(|error| failed("block signals", &error))?;
        let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|error| failed("take signals", &error))?;
        let order = crate::read_order()?;
        let lease = first_lease(channel)?;
        if boot_time() >= lease {
            return Err("its lease is over".to_owned());
        }
        let deadline = Instant::now() + order.stop.timeout;
        let started = launch(&order).map_err(|error| failed("start it", &error))?;
        let Started { main, report, input, stdout, stderr } = started;
        let (input, stdout, stderr) = (Some(input), Some(stdout), Some(stderr));
        Ok(Self {
            main,
            deadline,
            lease,
            signals,
            report,
            input,
            given: VecDeque::new(),
            input_ends: false,
            stdout,
            stderr,
        })
    }

    fn run(&mut self, channel: &mut Channel) {
        let over = self.follow(channel);
        self.input = None;
        end_descendants();
        if !matches!(over, Over::Gone) {
            self.take_rest(channel);
        }
        let mut problem = Vec::new();
        // Ended by now, so that this does not wait.
        let _ = (&mut self.report).take(MAX_ANSWER as u64).read_to_end(&mut problem);
        let problem = String::from_utf8_lossy(&problem).into_owned();
        channel.send(&match over {
            _ if !problem.is_empty() => FromShim::Ended(Verdict::NotRun, problem),
            Over::Ended(cause) => FromShim::Ended(Verdict::Ended(cause), problem),
            Over::TimedOut => FromShim::Ended(Verdict::TimedOut, problem),
            Over::NoLease | Over::Gone => FromShim::LeaseOver,
        });
    }

    fn follow(&mut self, channel: &mut Channel) -> Over {
        loop {
            if !channel.receive() || !self.take_frames(channel) {
                return Over::Gone;
            }
            self.give_input(channel);
            self.take_output(channel);
            if !channel.flush() {
                return Over::Gone;
            }
            while let Ok(Some(_)) = self.signals.read_signal() {}
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                if u32::try_from(pid.as_raw_nonzero().get()) == Ok(self.main.pid) {
                    match (status.exit_status(), status.terminating_signal()) {
                        (Some(status), _) => return Over::Ended(EndCause::Exit(status)),
                        (None, Some(number)) => return Over::Ended(EndCause::Signal(number)),
                        (None, None) => {}
                    }
                }
            }
            let leased = Duration::from_nanos(self.lease.saturating_sub(boot_time()));
            let left = self.deadline.saturating_duration_since(Instant::now());
            if leased.is_zero() {
                return Over::NoLease;
            }
            if left.is_zero() {
                return Over::TimedOut;
            }
            self.wait(channel, left.min(leased));
        }
    }

    /// Waits until there is something to do, for so long at most.
    fn wait(&self, channel: &Channel, most: Duration) {
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, !channel.waiting.is_empty());
        let signals = self.signals.as_fd();
        let mut fds = vec![PollFd::new(&channel.socket, interest), PollFd::new(&signals, PollFlags::IN)];
        if channel.waiting.len() < MAX_WAITING {
            let outputs = self.stdout.iter().chain(&self.stderr);
            fds.extend(outputs.map(|output| PollFd::new(output, PollFlags::IN)));
        }
        if !self.given.is_empty() {
            fds.extend(self.input.iter().map(|input| PollFd::new(input, PollFlags::OUT)));
        }
        let _ = poll(&mut fds, Timespec::try_from(most).ok().as_ref());
    }

    /// Takes in what the worker says. `false` when it is nothing that a worker says.
    fn take_frames(&mut self, channel: &mut Channel) -> bool {
        loop {
            match channel.frames.next_to_shim() {
                Ok(Some(ToShim::Lease(until))) => self.lease = self.lease.max(until),
                Ok(Some(ToShim::Input(data))) => {
                    if self.input_ends || self.given.len() + data.len() > WINDOW {
                        return false;
                    }
                    self.given.extend(data);
                }
                Ok(Some(ToShim::InputEnds)) => self.input_ends = true,
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Gives the command as much input as it takes. What it will never take counts as taken.
    fn give_input(&mut self, channel: &mut Channel) {
        let mut taken = 0;
        while let Some(input) = &mut self.input
            && !self.given.is_empty()
        {
            let (first, _) = self.given.as_slices();
            match input.write(first) {
                Ok(length) => {
                    taken += length;
                    self.given.drain(..length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.input = None,
            }
        }
        if self.input.is_none() {
            taken += self.given.len();
            self.given.clear();
        }
        if self.input_ends && self.given.is_empty() {
            self.input = None;
        }
        if let Some(bytes) = u32::try_from(taken).ok().filter(|bytes| *bytes > 0) {
            channel.send(&FromShim::Taken(bytes));
        }
    }

    fn take_output(&mut self, channel: &mut Channel) {
        for (output, said) in
            [(&mut self.stdout, FromShim::Stdout as fn(Vec<u8>) -> FromShim), (&mut self.stderr, FromShim::Stderr)]
        {
            take_piece(output, channel, said);
        }
    }

    /// What is left in the pipes: nobody writes to them any more.
    fn take_rest(&mut self, channel: &mut Channel) {
        let give_up = self.deadline.max(Instant::now()) + TAKE_WAIT;
        loop {
            self.take_output(channel);
            if !channel.receive() || !channel.flush() {
                return;
            }
            // What the worker still says has no meaning any more.
            while let Ok(Some(_)) = channel.frames.next_to_shim() {}
            let is_over = self.stdout.is_none() && self.stderr.is_none();
            let left = give_up.saturating_duration_since(Instant::now());
            if is_over || left.is_zero() {
                return;
            }
            self.wait(channel, left.min(Duration::from_secs(1)));
        }
    }
}

/// Takes a piece of output, if there is one and room for it.
fn take_piece(output: &mut Option<File>, channel: &mut Channel, said: fn(Vec<u8>) -> FromShim) {
    let mut chunk = [0; MAX_FRAME];
    if let Some(file) = output
        && channel.waiting.len() < MAX_WAITING
    {
        match file.read(&mut chunk) {
            Ok(0) => *output = None,
            Ok(length) => channel.send(&said(chunk[..length].to_vec())),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => *output = None,
        }
    }
}

fn boot_time() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Until when the command may run, which the worker says first.
fn first_lease(channel: &mut Channel) -> Result<u64, String> {
    let deadline = Instant::now() + LEASE_WAIT;
    loop {
        let is_there = channel.receive();
        match channel.frames.next_to_shim() {
            Ok(Some(ToShim::Lease(until))) => return Ok(until),
            Ok(None) if is_there => {}
            _ => return Err("its worker gives it no lease".to_owned()),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("its worker gives it no lease in time".to_owned());
        }
        let mut fds = [PollFd::new(&channel.socket, PollFlags::IN)];
        let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
    }
}

struct Started {
    main: ProcessId,
    report: File,
    input: File,
    stdout: File,
    stderr: File,
}

/// Starts the launcher with pipes of its own, puts it into the control group, and only then gives it the order.
fn launch(order: &Order) -> io::Result<Started> {
    let cgroup = order.cgroup.as_ref().map(Cgroup::enter).transpose()?;
    // The launcher finds its ends by these numbers. Nothing else is started here that would inherit them.
    let (its_input, input) = pipe_with(PipeFlags::empty())?;
    let (stdout, its_stdout) = pipe_with(PipeFlags::empty())?;
    for own in [&input, &stdout] {
        rustix::io::fcntl_setfd(own, rustix::io::FdFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(own, rustix::fs::OFlags::NONBLOCK)?;
    }
    let (stderr, its_stderr) = output_pipe()?;
    let mut child = Command::new("/proc/self/exe")
        .args(["launch", &its_input.as_raw_fd().to_string(), &its_stdout.as_raw_fd().to_string()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(its_stderr)
        .spawn()?;
    drop((its_input, its_stdout));
    let handed_over = (|| {
        if let Some(cgroup) = &cgroup {
            cgroup.take(child.id())?;
        }
        let mut orders = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        orders.write_all(&order.encode())?;
        // It has not been waited for, so it is still there, if only as a zombie.
        let main = ProcessId::of(child.id()).ok_or(io::ErrorKind::NotFound)?;
        let report = OwnedFd::from(child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?);
        rustix::fs::fcntl_setfl(&report, rustix::fs::OFlags::NONBLOCK)?;
        Ok(Started { main, report: report.into(), input: input.into(), stdout: stdout.into(), stderr: stderr.into() })
    })();
    if handed_over.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    handed_over
}
