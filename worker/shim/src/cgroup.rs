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
        // Of every 100 ms.
        let cpu = wanted.cpu_percent.map(|percent| format!("{} 100000", u64::from(percent) * 1000));
        let memory = wanted.memory.map(|bytes| bytes.to_string());
        for (file, limit) in [("memory.max", memory), ("cpu.max", cpu)] {
            if let Some(limit) = limit
                && let Err(error) = fs::write(group.path.join(file), limit)
            {
                group.remove();
                return Err(error);
            }
        }
        Ok(group)
    }

    /// The group of an instance that is there already.
    pub(crate) fn enter(wanted: &order::Cgroup) -> io::Result<Self> {
        // Without it the instance has ended.
        fs::metadata(wanted.path.join("cgroup.procs"))?;
        Ok(Self { path: wanted.path.clone() })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder stands in for a group: what the kernel would take in and answer are plain files.
    #[test]
    fn limits_are_written_and_the_end_of_memory_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a-0-1");
        let wanted = order::Cgroup { path: path.clone(), memory: Some(7), cpu_percent: Some(150) };
        let group = Cgroup::make(&wanted).expect("writable");
        let content = |file: &str| fs::read_to_string(path.join(file)).expect("written");
        assert_eq!((content("memory.max").as_str(), content("cpu.max").as_str()), ("7", "150000 100000"));
        assert!(Cgroup::make(&wanted).is_err(), "it is there already");
        group.take(42).expect("writable");
        assert_eq!(content("cgroup.procs"), "42");
        assert!(!group.ran_out_of_memory(), "the kernel says nothing");
        for (events, ran_out) in
            [("oom 3\noom_kill 0\n", false), ("oom 3\noom_kill 2\n", true), ("oom_kill x\n", false)]
        {
            fs::write(path.join("memory.events"), events).expect("writable");
            assert_eq!(group.ran_out_of_memory(), ran_out);
        }
        let plain = Cgroup::make(&order::Cgroup { path: folder.path().join("b"), memory: None, cpu_percent: None });
        let plain = plain.expect("writable");
        assert_eq!(fs::read_dir(folder.path().join("b")).expect("there").count(), 0);
        fs::create_dir(folder.path().join("b/below")).expect("writable");
        plain.remove();
        assert!(!folder.path().join("b").exists());
    }
}
