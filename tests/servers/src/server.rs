//! One server process: started, killed, paused, started again. Its log grows over restarts.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::folder;

/// What servers say when somebody else listens at their port.
const PORT_TAKEN: &str = "Address already in use";
/// How much of a log a failure shows.
const LOG_LINES: usize = 30;
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct ServerProcess {
    name: String,
    home: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    paused: bool,
}

impl ServerProcess {
    /// Does not run yet. `home` is its working directory, what runs there is part of it.
    pub(crate) fn new(name: impl Into<String>, home: PathBuf) -> Self {
        Self { name: name.into(), log: home.join("log"), home, child: None, paused: false }
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// What it has written so far.
    pub(crate) fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it was started and neither stopped nor killed.
    pub(crate) const fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Whether it runs and is not paused.
    pub(crate) const fn is_awake(&self) -> bool {
        self.child.is_some() && !self.paused
    }

    /// Its process id while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it in its home, with its output to the log.
    pub(crate) fn start(&mut self, mut command: Command) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = command
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C in the terminal is for the test; the guard ends what it leaves.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}: {:?}", self.name, command.get_program()))?;
        self.child = Some(child);
        self.paused = false;
        Ok(())
    }

    /// Waits until `look` succeeds.
    ///
    /// # Errors
    /// With the end of the log: when it ends by itself, or `limit` is over.
    pub(crate) async fn ready<T>(&mut self, limit: Duration, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        loop {
            let over = began.elapsed() >= limit;
            let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                bail!("{} ended by itself: {status}; its log ends:\n{}", self.name, self.log_end());
            }
            match look().await {
                Ok(found) => return Ok(found),
                Err(problem) if over => {
                    bail!("{} is not ready after {limit:?}: {problem:#}; its log ends:\n{}", self.name, self.log_end())
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Whether a start failed because somebody else has its port.
    pub(crate) fn port_was_taken(&self) -> bool {
        self.log_text().contains(PORT_TAKEN)
    }

    /// `kill -9` to all of it.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        self.paused = false;
        // One that is also what the others watch may not see them go first, so it does.
        child.kill()?;
        child.wait()?;
        folder::kill_all(&self.home)
    }

    /// SIGSTOP to all of it; has stopped on return.
    pub(crate) fn pause(&mut self) -> Result<()> {
        ensure!(self.runs(), "{} does not run", self.name);
        folder::stop_all(&self.home)?;
        self.paused = true;
        Ok(())
    }

    /// SIGCONT to all of it.
    pub(crate) fn resume(&mut self) -> Result<()> {
        ensure!(self.runs(), "{} does not run", self.name);
        folder::continue_all(&self.home)?;
        self.paused = false;
        Ok(())
    }

    /// Sends a signal to its first process and waits for its end.
    pub(crate) async fn stop(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "{} still runs {limit:?} after {signal:?}", self.name);
            tokio::time::sleep(LOOK).await;
        };
        self.child = None;
        folder::kill_all(&self.home)?;
        Ok(status)
    }

    fn log_end(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if self.runs()
            && let Err(problem) = self.kill()
        {
            eprintln!("{problem:#}");
        }
    }
}
