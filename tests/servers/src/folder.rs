//! A temporary folder, and the promise that it and every process that works in it go away.
//!
//! A process belongs to a folder when its working directory lies inside. That holds for all that servers fork as well,
//! also where a child starts a session of its own, as PostgreSQL's do. The guard is a shell that waits for the end of
//! its standard input, which comes however this process ends, and then ends them and removes the folder.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getpid, kill_process};
use tempfile::TempDir;

/// How long killed processes may take to vanish, and stopped ones to stop.
const SIGNAL_LIMIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(2);

/// Ends the processes of the folder `$1`, then removes it.
const GUARD: &str = r#"
read -r _ || :
for attempt in 1 2 3 4 5 6 7 8 9 10; do
  left=
  for cwd in /proc/[0-9]*/cwd; do
    case "$(readlink "$cwd" 2>/dev/null)/" in
      "$1"/*) pid=${cwd#/proc/}; left="$left ${pid%/cwd}" ;;
    esac
  done
  [ -n "$left" ] || break
  kill -KILL $left 2>/dev/null
  sleep 0.1
done
rm -rf -- "$1"
"#;

#[derive(Debug)]
pub(crate) struct ServerFolder {
    path: PathBuf,
    guard: CleanupGuard,
    _dir: TempDir,
}

impl ServerFolder {
    /// An empty one, `rug-<kind>-...`.
    pub(crate) fn new(kind: &str) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix(&format!("rug-{kind}-")).tempdir().context("make a temporary folder")?;
        // As the kernel will show it as a working directory.
        let path = dir.path().canonicalize()?;
        let guard = CleanupGuard::start(GUARD, &[&path])?;
        Ok(Self { path, guard, _dir: dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ServerFolder {
    fn drop(&mut self) {
        // First the guard: what follows would make it act.
        self.guard.dismiss();
        if let Err(problem) = kill_all(&self.path) {
            eprintln!("{problem:#}");
        }
    }
}

/// A shell that runs a script once this process is gone, unless it was dismissed. The script reads its standard input
/// to the end first.
#[derive(Debug)]
pub(crate) struct CleanupGuard(Child);

impl CleanupGuard {
    pub(crate) fn start(script: &str, arguments: &[&Path]) -> Result<Self> {
        Command::new("sh")
            .args(["-c", script, "guard"])
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // It has to outlive a Ctrl-C that ends the test.
            .process_group(0)
            .spawn()
            .map(Self)
            .context("start a guard process")
    }

    /// Ends it without running its script.
    pub(crate) fn dismiss(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for CleanupGuard {
    fn drop(&mut self) {
        self.dismiss();
    }
}

/// Kills every process below `folder` and waits until none is left. Zombies have ended.
pub(crate) fn kill_all(folder: &Path) -> Result<()> {
    send_until(folder, Signal::KILL, |_| false)
}

/// Stops every process below `folder` and waits until all have, the ones they forked meanwhile included.
pub(crate) fn stop_all(folder: &Path) -> Result<()> {
    send_until(folder, Signal::STOP, is_stopped)
}

/// Lets every stopped process below `folder` go on.
pub(crate) fn continue_all(folder: &Path) -> Result<()> {
    send_until(folder, Signal::CONT, |pid| !is_stopped(pid))
}

fn send_until(folder: &Path, signal: Signal, done: impl Fn(Pid) -> bool) -> Result<()> {
    let deadline = Instant::now() + SIGNAL_LIMIT;
    loop {
        let left: Vec<Pid> = inside(folder).into_iter().filter(|pid| !done(*pid)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("processes {left:?} of {} do not react to {signal:?}", folder.display());
        }
        for pid in left {
            // One that has ended meanwhile is fine.
            let _ = kill_process(pid, signal);
        }
        std::thread::sleep(LOOK);
    }
}

/// Live processes whose working directory is `folder` or lies below it.
fn inside(folder: &Path) -> Vec<Pid> {
    let own = getpid();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            (pid != own && cwd.starts_with(folder)).then_some(pid)
        })
        .collect()
}

/// Whether all threads of a process are stopped by a signal. One that is gone counts, there is nothing to stop.
fn is_stopped(pid: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    tasks.into_iter().flatten().flatten().all(|task| {
        let text = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The name, in parentheses, may hold anything.
        text.rsplit_once(')')
            .is_none_or(|(_, fields)| matches!(fields.trim_start().chars().next(), Some('T' | 't' | 'Z' | 'X')))
    })
}
