//! Programs that are run to their end: the servers' own command line clients, installers, scripts.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Runs it with `input`; the answer is what it prints.
///
/// # Errors
/// When it cannot be started, fails (with what it wrote to standard error), or takes longer than `within`; it is killed
/// then.
pub(crate) async fn run(mut command: Command, input: &str, within: Duration) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("start {name}"))?;
    let mut stdin = child.stdin.take().context("the input is piped")?;
    let talk = async {
        let write = async move {
            // One that does not read its input says why by its exit.
            let _ = stdin.write_all(input.as_bytes()).await;
        };
        // Both at once: one that answers while it reads would fill its pipe and wait for us.
        tokio::join!(write, child.wait_with_output()).1
    };
    let output = tokio::time::timeout(within, talk).await.with_context(|| format!("{name} took over {within:?}"))??;
    if !output.status.success() {
        bail!(
            "{name}: {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end(),
            String::from_utf8_lossy(&output.stdout).trim_end()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} does not print UTF-8"))
}

/// A program of the search path, or else of the first of `folders` that has it.
pub(crate) fn find(program: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(folders.iter().cloned())
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| Path::is_file(path))
}
