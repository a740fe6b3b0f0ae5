//! The control group of an instance, where one may be made: nothing that is started in it gets out, it is killed as a whole,
//! and it says whether memory ran out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use shim::order;

/// A control group of version 2 that holds the instance and nothing else.
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group.
    pub(crate) fn make(wanted: &order::Cgroup) -> io::Result<Self> {
        fs::create_dir(&wanted.path)?;
        let group = Self { path: wanted.path.clone() };
        if let Some(memory) = wanted.memory
            && let Err(error) = fs::write(group.path.join("memory.max"), memory.to_string())
        {
            group.remove();
            return Err(error);
        }
        Ok(group)
    }

    /// Moves a process in, which all that it starts then follows.
    pub(crate) fn take(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// Kills everything in it. Kernels before 5.14 cannot, and then processes are found one by one.
    pub(crate) fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// Whether the kernel killed processes of it because they had no more memory.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        kills.is_some_and(|kills| kills > 0)
    }

    /// Removes it, with those that the instance made in it. Nothing is in it any more, or it stays.
    pub(crate) fn remove(&self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}
