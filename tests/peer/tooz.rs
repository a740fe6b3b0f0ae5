//! Python with tooz in a virtual environment of its own, for comparisons with the real thing.
//!
//! The environment is made once, in the folder that `RUG_VENV` names or among the build's temporary files, and used
//! again after that. Every command has a deadline.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The release whose owners the committed vectors hold.
const TOOZ: &str = "tooz==9.1.0";
/// Installing fetches some ten packages; longer than this the network is the problem.
const INSTALL_WITHIN: Duration = Duration::from_secs(300);

/// A Python that can import tooz.
pub(crate) struct Python(PathBuf);

impl Python {
    /// Finds or makes the environment.
    ///
    /// # Errors
    /// When there is no Python 3, or tooz cannot be installed.
    pub(crate) async fn with_tooz() -> Result<Self> {
        let folder = match std::env::var_os("RUG_VENV") {
            Some(folder) => PathBuf::from(folder),
            None => Path::new(env!("CARGO_TARGET_TMPDIR")).join("tooz-venv"),
        };
        let python = Self(folder.join("bin/python"));
        if python.run(&["-c", "import tooz.hashring"], "", Duration::from_secs(60)).await.is_ok() {
            return Ok(python);
        }
        let mut make = Command::new("python3");
        make.args(["-m", "venv", "--clear"]).arg(&folder);
        run(make, "", INSTALL_WITHIN)
            .await
            .context("make a virtual environment (needs python3 with its venv module: python3-venv on Debian)")?;
        python
            .run(&["-m", "pip", "install", "--quiet", "--disable-pip-version-check", TOOZ], "", INSTALL_WITHIN)
            .await
            .context("install tooz")?;
        Ok(python)
    }

    /// Runs it with arguments and input; the answer is what it prints.
    ///
    /// # Errors
    /// When it cannot be started, fails, or takes too long.
    pub(crate) async fn run(&self, arguments: &[&str], input: &str, within: Duration) -> Result<String> {
        let mut command = Command::new(&self.0);
        command.args(arguments);
        run(command, input, within).await
    }
}

async fn run(mut command: Command, input: &str, within: Duration) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let name = format!("{:?}", command.as_std().get_program());
    let mut child = command.spawn().with_context(|| format!("start {name}"))?;
    let mut stdin = child.stdin.take().context("the input is piped")?;
    let talk = async {
        // One that does not read its input says why by its exit.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(within, talk).await.with_context(|| format!("{name} took over {within:?}"))??;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8(output.stdout)?)
}
