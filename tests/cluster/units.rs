//! The systemd units, as `scripts/install` installs them: judged by systemd's own tools, and tried under a systemd of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, binaries};

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

/// A systemd that runs beside that of this machine.
struct Systemd {
    unshare: Child,
    /// Its process id outside.
    init: u32,
    group: String,
}

impl Systemd {
    /// Boots one; `None`, with the reason printed, where that is not possible.
    async fn boot() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() || !Path::new("/lib/systemd/systemd").exists() {
            println!("skipped: it needs root and systemd");
            return Ok(None);
        }
        let group = format!("rug-units-{}", std::process::id());
        // Ends with this test, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(repository().join("tests/cluster/systemd.sh")).arg(&group);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut booted = Self { unshare: command.spawn()?, init: 0, group };
        let pid = booted.unshare.id();
        let ready = until(Duration::from_secs(20), "systemd runs", async || {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            booted.init =
                children.split(' ').next().and_then(|pid| pid.parse().ok()).context("it is not started yet")?;
            printed(&booted.sh("systemctl is-system-running")?)
        })
        .await;
        let Err(problem) = ready else { return Ok(Some(booted)) };
        let _ = booted.unshare.kill();
        let said = booted.unshare.stderr.take().map(std::io::read_to_string).transpose()?.unwrap_or_default();
        println!("skipped: systemd does not start in namespaces here: {problem:#}; {said}");
        Ok(None)
    }

    /// Runs a script where it runs.
    fn sh(&self, script: &str) -> Result<Output> {
        let target = self.init.to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &target, "-m", "-p", "-u", "-i", "-n", "-C", "sh", "-euc", script]);
        run(command.env_clear().env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("RUG_SERVER", SERVER))
    }

    fn ask(&self, script: &str) -> Result<String> {
        let said = self.sh(script).and_then(|output| printed(&output)).with_context(|| script.to_owned())?;
        Ok(said.trim().to_owned())
    }

    /// Waits until a script prints this.
    async fn until(&self, script: &str, expected: &str) -> Result<()> {
        until(PATIENCE, script, async || {
            let said = String::from_utf8_lossy(&self.sh(script)?.stdout).trim().to_owned();
            ensure!(said == expected, "it says {said:?} and not {expected:?}");
            Ok(())
        })
        .await
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd"] {
            let group = Path::new(root).join(&self.group);
            // Its processes are gone a moment later.
            for _ in 0..100 {
                if !group.exists() || remove_groups(&group).is_ok() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Removes a control group with those below it.
fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

const SERVER: &str = "http://127.0.0.1:7470";
const SETTINGS: &str = r#"
mkdir -p /etc/rug
printf 'name = "c1"\nlisten = "127.0.0.1:7470"\ninsecure = true\n' >/etc/rug/coordinator.toml
printf 'name = "w1"\n[session]\ncoordinators = ["http://127.0.0.1:7470"]\n' >/etc/rug/worker.toml
"#;
const APPLIANCE: &str =
    r#"{"kind": "custom", "name": "sleeper", "spec": {"command": "sleep", "args": ["86400"], "probe": "process"}}"#;
const INSTANCE: &str = "pgrep -u rug-worker -x sleep";
const ACTIVE: &str = "systemctl is-active rug-worker || :";

#[tokio::test]
async fn under_systemd_instances_outlive_their_worker_and_bad_settings_wait_for_a_person() -> Result<()> {
    let Some(systemd) = Systemd::boot().await? else { return Ok(()) };
    systemd.ask(&format!("{}/scripts/install {}", repository().canonicalize()?.display(), binaries()?.display()))?;
    systemd.ask(&format!("systemd-sysusers 2>&1; {SETTINGS} systemctl daemon-reload"))?;
    systemd.ask("systemctl start rug-coordinator rug-worker")?;
    systemd.ask(&format!("echo '{APPLIANCE}' | rugctl apply -f - --timeout 60s"))?;
    let instance = systemd.ask(INSTANCE)?;
    ensure!(instance.parse::<u32>().is_ok(), "one process runs: {instance}");
    let is_shown = "rugctl get sleeper -o json | tr -d ' \\n' | grep -o '\"pid\":[0-9]*' | tr -dc 0-9";

    systemd.ask("systemctl restart rug-worker")?;
    systemd.until(ACTIVE, "active").await?;
    systemd.until(is_shown, &instance).await?;

    systemd.ask("kill -9 $(systemctl show -p MainPID --value rug-worker)")?;
    systemd.until("systemctl show -p NRestarts --value rug-worker", "1").await?;
    systemd.until(ACTIVE, "active").await?;
    systemd
        .until(
            "rugctl get sleeper -o json | tr -d ' \\n' | grep -o '\"phase\":\"[a-z]*\"' | head -1",
            "\"phase\":\"configured\"",
        )
        .await?;
    ensure!(systemd.ask(INSTANCE)? == instance, "it was restarted with its worker");

    systemd.ask("cp /etc/rug/worker.toml /etc/rug/good; echo 'weight = 0' >/etc/rug/worker.toml; systemctl restart rug-worker || :")?;
    systemd.until(ACTIVE, "failed").await?;
    systemd
        .until("systemctl show -p NRestarts -p ExecMainStatus --value rug-worker | sort | tr '\\n' ' '", "0 2")
        .await?;
    ensure!(systemd.ask(INSTANCE)? == instance, "it was ended with its worker");

    systemd.ask("mv /etc/rug/good /etc/rug/worker.toml; systemctl start rug-worker")?;
    systemd.until(is_shown, &instance).await?;
    systemd.ask("rugctl delete sleeper --yes --timeout 60s")?;
    systemd.until(&format!("{INSTANCE} || echo none"), "none").await?;
    systemd.ask("systemctl stop rug-worker rug-coordinator")?;
    systemd.until("systemctl is-failed rug-worker rug-coordinator | tr '\\n' ' '", "inactive inactive").await
}
