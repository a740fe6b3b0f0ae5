//! Starts the shim of an instance and hears from it whether the instance was started.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::status::EndCause;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use shim::SHIM_VARIABLE;
use shim::order::{Answer, MAX_ANSWER, Order, Verdict};
use shim::processes::{self, ProcessId, descendants};
use shim::state::{self, last_lines};
use tokio::process::Child;

use super::poll_until;
use super::record::Folder;
use super::system::{ProcessStamp, STATE_VARIABLE};
use crate::drivers::Error;

/// How long a shim may take to start its instance: it only looks at a few files.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long one that gave no answer may take to be gone once it was killed.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// A shim that has started its instance.
pub(super) struct StartedShim {
    /// The shim, to be waited for.
    pub(super) child: Child,
    /// The main process of the instance.
    pub(super) main: ProcessStamp,
}

/// Why an instance was not started.
pub(super) enum StartFailure {
    /// Nothing runs. Why is kept as what it is: a newer token is no failure of the instance.
    NotStarted(Error),
    /// Something may run: what was started does not go.
    Unknown(String),
}

impl StartFailure {
    /// What went wrong.
    pub(super) fn text(&self) -> String {
        match self {
            Self::NotStarted(error) => error.to_string(),
            Self::Unknown(text) => text.clone(),
        }
    }
}

/// Starts an instance by way of a shim. Blocks for as long as that takes, which is bounded. Has to be called within a runtime.
pub(super) fn start(
    binary: &Path,
    folder: &Folder,
    state_dir: &Path,
    order: &Order,
) -> Result<StartedShim, StartFailure> {
    let not_started = |text: String| StartFailure::NotStarted(Error::Failed(text));
    let failed = |error: io::Error| not_started(format!("cannot start {}: {error}", binary.display()));
    let (answers, child) = spawn(binary, folder, state_dir, order).map_err(failed)?;
    let pid = child.id();
    match answer(answers) {
        Ok(Some(Answer::Started { main, .. })) => Ok(StartedShim { child, main: ProcessStamp::of(main) }),
        Ok(Some(Answer::Failed(text))) => Err(not_started(text)),
        Ok(None) => Err(give_up(pid, "its shim gave no answer")),
        Err(error) => Err(give_up(pid, &format!("its shim gave no answer: {error}"))),
    }
}

/// The order goes through memory, the answer comes through a pipe.
fn spawn(binary: &Path, folder: &Folder, state_dir: &Path, order: &Order) -> io::Result<(OwnedFd, Child)> {
    let (answers, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut command = Command::new(binary);
    command.arg("run").arg(&order.instance).current_dir(folder.path());
    command.env_clear().env(SHIM_VARIABLE, &order.instance).env(STATE_VARIABLE, state_dir);
    command.stdin(orders(order)?).stdout(writer).stderr(folder.open_log()?);
    // Whatever became of it, the own end for answers is closed with the command.
    let child = tokio::process::Command::from(command).spawn()?;
    Ok((answers, child))
}

/// Runs a command beside an instance by way of a shim, which ends it when it takes longer than `limit`.
pub(super) async fn run_beside(binary: &Path, folder: &Folder, order: &Order, limit: Duration) -> Result<(), Error> {
    let failed = |error: io::Error| Error::Failed(format!("cannot start {}: {error}", binary.display()));
    let mut command = Command::new(binary);
    command.arg("probe").arg(&order.instance).current_dir(folder.path()).env_clear();
    command.stdin(orders(order).map_err(failed)?).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = tokio::process::Command::from(command).spawn().map_err(failed)?;
    let pid = child.id();
    let answer = match tokio::time::timeout(limit + ANSWER_WAIT, child.wait_with_output()).await {
        Ok(output) => output.map_err(failed)?.stdout,
        Err(_) => {
            let ended = tokio::task::spawn_blocking(move || give_up(pid, "its shim does not end")).await;
            return Err(Error::Failed(ended.map_or_else(|_| "its shim does not end".to_owned(), |why| why.text())));
        }
    };
    let (verdict, output) = Verdict::decode(&answer).ok_or_else(|| Error::Failed("its shim gave no answer".into()))?;
    let said = last_lines(output).join(" | ");
    let said = if said.is_empty() { "no output".to_owned() } else { format!("last output: {said}") };
    let command = &order.command;
    // Which of several of that name it was, the launcher alone knows.
    let program = if command.fallbacks.is_empty() {
        command.program.as_os_str()
    } else {
        command.program.file_name().unwrap_or_default()
    };
    let program = program.to_string_lossy();
    match verdict {
        Verdict::Ended(state::EndCause::Exit(0)) => Ok(()),
        Verdict::Ended(cause) => Err(Error::Failed(format!("{program} ended with {}; {said}", end_cause(cause)))),
        Verdict::TimedOut => Err(Error::Failed(format!("{program} did not end within {limit:?}; {said}"))),
        Verdict::NotRun => Err(Error::Failed(format!("{program} cannot be run: {}", String::from_utf8_lossy(output)))),
    }
}

/// What the kernel said, in the terms of everybody.
pub(super) const fn end_cause(cause: state::EndCause) -> EndCause {
    match cause {
        state::EndCause::Exit(status) => EndCause::Exit(status),
        state::EndCause::Signal(number) => EndCause::Signal(number),
    }
}

/// An order in memory that no other process can reach by a name.
pub(super) fn orders(order: &Order) -> io::Result<File> {
    let mut orders = File::from(memfd_create(c"rug-order", MemfdFlags::CLOEXEC)?);
    orders.write_all(&order.encode())?;
    orders.rewind()?;
    Ok(orders)
}

/// The answer; `None` when it is none.
fn answer(answers: OwnedFd) -> io::Result<Option<Answer>> {
    let deadline = Instant::now() + ANSWER_WAIT;
    let mut answers = File::from(answers);
    let mut line = Vec::new();
    while line.len() <= MAX_ANSWER && !line.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let ready = poll(&mut [PollFd::new(&answers, PollFlags::IN)], Some(&timeout));
        match ready {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut bytes = [0; 512];
        match answers.read(&mut bytes)? {
            0 => break,
            length => line.extend_from_slice(&bytes[..length]),
        }
    }
    Ok(std::str::from_utf8(&line).ok().and_then(Answer::decode))
}

/// Ends a shim that did not do what it is for, with whatever it started.
pub(super) fn give_up(pid: Option<u32>, text: &str) -> StartFailure {
    let not_started = || StartFailure::NotStarted(Error::Failed(text.to_owned()));
    let Some(shim) = pid.and_then(ProcessId::of) else { return not_started() };
    let gone = poll_until(KILL_WAIT, || {
        let left = descendants(shim.pid);
        // The shim goes last: without it nobody knows what it started.
        let targets = if left.is_empty() { vec![shim] } else { left };
        for id in &targets {
            let _ = processes::signal(*id, Signal::KILL);
        }
        !shim.is_alive()
    });
    if gone { not_started() } else { StartFailure::Unknown(text.to_owned()) }
}
