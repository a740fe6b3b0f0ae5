//! The systemd units, as `scripts/install` installs them, judged by systemd's own tools.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use tests::cluster::binaries;

/// The folder with the programs that were built.
fn binaries() -> Result<PathBuf> {
    for name in ["rug-coordinator", "rug-shim", "rug-appliance", "rugctl"] {
        binaries::path(name)?;
    }
    Ok(binaries::path("rug-worker")?.parent().context("it is in a folder")?.to_owned())
}

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs a program to its end.
fn run(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))
}

/// What it printed, given that it succeeded.
fn printed(output: &Output) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

#[test]
fn the_units_are_valid_and_as_tight_as_is_said() -> Result<()> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("skipped: systemd-analyze is not installed");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let prefix = dir.path().join("usr");
    printed(&run(Command::new(repository().join("scripts/install")).arg(binaries()?).env("PREFIX", &prefix))?)?;
    for file in ["share/man/man1/rugctl.1", "share/bash-completion/completions/rugctl", "lib/sysusers.d/rug.conf"] {
        ensure!(prefix.join(file).metadata()?.len() > 0, "{file} is empty");
    }
    let unit = |name: &str| prefix.join("lib/systemd/system").join(name);
    // Exposure as `systemd-analyze security` counts it, in tenths: what instances inherit from a worker is left open.
    for (name, most) in [("rug-coordinator.service", 20), ("rug-worker.service", 60)] {
        let verified = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(unit(name)))?;
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        ensure!(verified.status.success() && !said.contains(name), "{name}: {said}");
        let threshold = format!("--threshold={most}");
        let judged = ["security", "--offline=true", "--no-pager", &threshold];
        printed(&run(Command::new("systemd-analyze").args(judged).arg(unit(name)))?)?;
    }
    Ok(())
}
