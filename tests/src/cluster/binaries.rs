//! Finds the binaries under test, and builds them once.
//!
//! `cargo test` builds the binaries of the tested package only, so the first test of a process has the others built: in
//! the profile and target folder of the test itself, which costs a second when nothing changed. `RUG_TEST_BIN_DIR` names
//! a folder of binaries that are used as they are, such as installed ones; `make test` has built them with the tests and
//! sets it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};

/// Path of a binary of this workspace.
///
/// # Errors
/// When the build fails, or the binary is missing.
pub fn path(name: &str) -> Result<PathBuf> {
    let folder = folder().as_ref().map_err(|problem| anyhow!("{problem}"))?;
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

/// Whether the worker under test has the flag `--allow-root`.
#[must_use]
pub fn knows_allow_root() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let help =
            path("rug-worker").ok().and_then(|worker| Command::new(worker).args(["run", "--help"]).output().ok());
        help.is_some_and(|help| String::from_utf8_lossy(&help.stdout).contains("--allow-root"))
    })
}

fn folder() -> &'static Result<PathBuf, String> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOLDER.get_or_init(|| find().map_err(|problem| format!("{problem:#}")))
}

fn find() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("RUG_TEST_BIN_DIR") {
        return Ok(folder.into());
    }
    let own = std::env::current_exe().context("find the test's own executable")?;
    let folder = own.parent().context("the test's executable has no folder")?;
    if folder.file_name().is_none_or(|name| name != "deps") {
        // A binary of this workspace, such as the helper, asks for its siblings.
        return Ok(folder.to_owned());
    }
    let folder = folder.parent().context("`deps` has no parent")?;
    build(folder)?;
    Ok(folder.to_owned())
}

/// Builds into `folder`, which is `<target>/<profile>`.
fn build(folder: &Path) -> Result<()> {
    let profile = match folder.file_name().and_then(|name| name.to_str()).context("odd target folder")? {
        "debug" => "dev",
        other => other,
    };
    let target = folder.parent().context("odd target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--bins", "-p", "coordinator", "-p", "worker", "-p", "shim", "-p", "ctl"])
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .context("run cargo build")?;
    if !output.status.success() {
        bail!("cargo build failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
