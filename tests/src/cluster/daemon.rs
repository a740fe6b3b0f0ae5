//! One process of a cluster: started, killed, stopped, started again.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::processes::{self, ROOT_VARIABLE};
use super::wait::until;
use super::{Sandbox, binaries};

/// A program with its arguments; runs or not.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Does not run yet. Its log is `<name>.log` in the sandbox and grows over restarts.
    #[must_use]
    pub fn new(name: &str, program: PathBuf, args: Vec<OsString>, sandbox: &Sandbox) -> Self {
        let log = sandbox.path("logs").join(format!("{name}.log"));
        let mut env: Vec<(OsString, OsString)> = vec![
            (ROOT_VARIABLE.into(), sandbox.root().as_os_str().to_owned()),
            ("NO_COLOR".into(), "1".into()),
            // A panic in a daemon has to show where it came from.
            ("RUST_BACKTRACE".into(), "1".into()),
        ];
        // Where tests run as root, so do instances. A worker of a version that records its state for tests may not know this.
        if binaries::knows_allow_root() {
            env.push(("RUG_WORKER_PROCESS__ALLOW_ROOT".into(), "true".into()));
        }
        Self { name: name.to_owned(), program, args, env, log, child: None }
    }

    /// Adds variables to its environment, from the next start on.
    pub fn environment(&mut self, variables: &[(&str, String)]) {
        self.env.extend(variables.iter().map(|(name, value)| ((*name).into(), value.into())));
    }

    /// Gives a flag this value, from the next start on.
    pub fn flag(&mut self, name: &str, value: &str) {
        let value_at = self.args.iter().position(|arg| arg == name).map(|at| at + 1);
        if let Some(known) = value_at.and_then(|at| self.args.get_mut(at)) {
            *known = value.into();
        } else {
            self.args.extend([name.into(), value.into()]);
        }
    }

    /// Bounds the descriptors it may have, from the next start on.
    pub fn limit_files(&mut self, most: u64) {
        let program = std::mem::replace(&mut self.program, "/bin/sh".into());
        let script = format!("ulimit -n {most} && exec \"$0\" \"$@\"");
        self.args.splice(0..0, ["-c".into(), script.into(), program.into_os_string()]);
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it has written so far.
    #[must_use]
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it was started and not stopped.
    #[must_use]
    pub const fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it unless it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if self.runs() {
            return Ok(());
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C in the terminal is for the test; the guard ends what it leaves.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Fails when it has ended by itself.
    ///
    /// # Errors
    /// How it ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            bail!("{} ended by itself: {status}", self.name);
        }
        Ok(())
    }

    /// How it ended, if it did so by itself since it was started; it can be started again then.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn ended_by_itself(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        processes::signal(self.pid().with_context(|| format!("{} does not run", self.name))?, signal);
        Ok(())
    }

    /// Sends SIGTERM and waits for its end.
    ///
    /// # Errors
    /// When it does not run, or still does after `limit`.
    pub async fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended(limit).await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not run, or still does after `limit`.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
        let status =
            until(limit, &format!("{} has ended", self.name), async || child.try_wait()?.context("it still runs"))
                .await?;
        self.child = None;
        Ok(status)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.is_some().then(|| self.kill());
    }
}
