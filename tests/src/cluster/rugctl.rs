//! `rugctl`, as a user runs it without a terminal.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::processes::ROOT_VARIABLE;
use super::{Cluster, binaries};

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(90);

/// How a command ended.
#[derive(Clone, Debug)]
pub struct CommandOutput {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl CommandOutput {
    /// Fails unless the command succeeded.
    ///
    /// # Errors
    /// Exit code and messages.
    pub fn success(self) -> Result<Self> {
        ensure!(self.code == 0, "exit code {}\n{}{}", self.code, self.stdout, self.stderr);
        Ok(self)
    }

    /// Fails unless the command was refused with this exit code and every one of these texts in its message, and did
    /// not panic.
    ///
    /// # Errors
    /// What differs.
    pub fn refused(self, code: i32, texts: &[&str]) -> Result<Self> {
        ensure!(self.code == code, "exit code {}, not {code}\n{}{}", self.code, self.stdout, self.stderr);
        for text in texts {
            ensure!(self.stderr.contains(text), "{text:?} is not in its message:\n{}", self.stderr);
        }
        ensure!(!self.stderr.contains("panicked"), "it panicked:\n{}", self.stderr);
        Ok(self)
    }

    /// Its output as JSON.
    ///
    /// # Errors
    /// When it failed or is none.
    pub fn json(self) -> Result<Value> {
        let outcome = self.success()?;
        serde_json::from_str(&outcome.stdout).with_context(|| format!("not JSON: {}", outcome.stdout))
    }
}

/// Runs `rugctl` with `input` as its standard input.
///
/// # Errors
/// When it cannot be run or does not end.
pub async fn run<S: AsRef<OsStr>>(root: &Path, args: &[S], input: &str) -> Result<CommandOutput> {
    run_with(root, args, input, &[]).await
}

/// The same with more in its environment. Contexts are those in `root`, not those of whoever runs the tests.
///
/// # Errors
/// When it cannot be run or does not end.
pub async fn run_with<S: AsRef<OsStr>>(
    root: &Path,
    args: &[S],
    input: &str,
    environment: &[(&str, &str)],
) -> Result<CommandOutput> {
    let mut child = Command::new(binaries::path("rugctl")?)
        .args(args)
        .env(ROOT_VARIABLE, root)
        .env("XDG_CONFIG_HOME", root.join("config"))
        .env("XDG_CACHE_HOME", root.join("cache"))
        .env_remove("RUG_SERVER")
        .env_remove("RUG_CONTEXT")
        .env_remove("RUG_CLUSTER")
        .envs(environment.iter().copied())
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start rugctl")?;
    let mut stdin = child.stdin.take().context("rugctl has no standard input")?;
    let feed = async {
        // It may refuse the input before it has read all of it.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(LIMIT, both).await.context("rugctl does not end")??;
    Ok(CommandOutput {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

impl Cluster {
    /// Runs a `rugctl` command against this cluster; `input` is its standard input.
    ///
    /// # Errors
    /// When it cannot be run or does not end.
    pub async fn rugctl(&self, args: &[&str], input: &str) -> Result<CommandOutput> {
        // First, because the words of a command for an instance end a line.
        let args: Vec<&str> = ["--server", self.api.address()].iter().chain(args).copied().collect();
        run(self.root(), &args, input).await
    }
}
