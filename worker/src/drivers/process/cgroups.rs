//! Control groups for instances, where this worker may make some: what is started in one stays in it, is killed as a whole, and
//! the kernel limits memory and CPU time of all its processes. That is no boundary for instances of the worker's own user, who may
//! write to these groups as the worker does.
//!
//! They need a hierarchy of version 2 and a group that was *delegated* to this worker, which systemd marks by an extended attribute
//! (`Delegate=yes`). Instances get groups in `rug-instances` below it. Controllers can be enabled only where the delegated group holds no
//! process itself, so that a worker that is in it (no `DelegateSubgroup=`) makes groups without limits: enabling them would
//! keep systemd from starting the worker again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use common::kind::ProcessLimits;
use serde::{Deserialize, Serialize};
use shim::order;
use shim::processes::ProcessId;

use crate::drivers::Error;

/// The group that those of instances are in.
const INSTANCES: &str = "rug-instances";
/// Deepest group of an instance that is looked into, counted from its own.
const DEPTH: usize = 16;

/// Where control groups are made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Setting {
    /// In the group that was delegated to the worker, if one was.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// In this group, which has to be delegated to the worker's user and to hold no process.
    In(PathBuf),
}

impl TryFrom<String> for Setting {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            path if path.starts_with('/') => Ok(Self::In(path.into())),
            _ => Err("must be auto, off, or an absolute path"),
        }
    }
}

impl From<Setting> for String {
    fn from(setting: Setting) -> Self {
        match setting {
            Setting::Auto => "auto".to_owned(),
            Setting::Off => "off".to_owned(),
            Setting::In(path) => path.to_string_lossy().into_owned(),
        }
    }
}

/// The group that those of instances are made in.
#[derive(Debug)]
pub(super) struct Cgroups {
    instances: PathBuf,
    /// Controllers that limit what is in them.
    controllers: Vec<String>,
}

impl Cgroups {
    /// Finds or makes it; `None` where there is none to be had.
    ///
    /// # Errors
    /// When the group that was named cannot be used.
    pub(super) fn open(setting: &Setting) -> io::Result<Option<Self>> {
        match setting {
            Setting::Off => Ok(None),
            Setting::In(path) => Self::within(path, true).map(Some),
            Setting::Auto => {
                let found = own_group().and_then(|own| {
                    // The worker is in it, or in a group of its own below it.
                    let around = own.parent().filter(|parent| is_delegated(parent));
                    around
                        .map(|around| (around.to_owned(), true))
                        .or_else(|| is_delegated(&own).then_some((own, false)))
                });
                let Some((group, limits)) = found else { return Ok(None) };
                let opened = Self::within(&group, limits).inspect_err(|error| {
                    tracing::warn!(group = %group.display(), %error, "no control groups for instances");
                });
                Ok(opened.ok())
            }
        }
    }

    fn within(group: &Path, limits: bool) -> io::Result<Self> {
        let instances = group.join(INSTANCES);
        match fs::create_dir(&instances) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let controllers = if limits { enable(&[group, &instances]) } else { Vec::new() };
        Ok(Self { instances, controllers })
    }

    /// What the shim of an instance is told. What is left of an earlier start of that name is removed.
    ///
    /// # Errors
    /// [`Error::Refused`] for a limit that cannot be kept here.
    pub(super) fn order(&self, instance: &str, limits: &ProcessLimits) -> Result<order::Cgroup, Error> {
        let wanted = [("memory", limits.memory.is_some()), ("cpu", limits.cpu_percent.is_some())];
        let lacking = |(name, wanted): &(&str, bool)| *wanted && !self.controllers.iter().any(|known| known == name);
        if let Some((name, _)) = wanted.iter().find(|limit| lacking(limit)) {
            let text = format!(
                "limits.{name}: the control groups of this worker do not limit it (controller `{name}` is not delegated)"
            );
            return Err(Error::Refused(text));
        }
        let path = self.instances.join(instance);
        kill(&path);
        remove(&path);
        Ok(order::Cgroup { path, memory: limits.memory, cpu_percent: limits.cpu_percent })
    }
}

/// What is told of a worker without control groups.
///
/// # Errors
/// [`Error::Refused`] for a limit that needs one.
pub(super) fn without(limits: &ProcessLimits) -> Result<(), Error> {
    match (limits.memory, limits.cpu_percent) {
        (None, None) => Ok(()),
        (memory, _) => {
            let name = if memory.is_some() { "memory" } else { "cpu" };
            Err(Error::Refused(format!("limits.{name}: needs a control group, and none was delegated to this worker")))
        }
    }
}

/// Every live process in a group and in those below it.
pub(super) fn processes(group: &Path) -> Vec<ProcessId> {
    let mut found = Vec::new();
    each(group, 0, &mut |group| {
        let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let pids = listed.lines().filter_map(|pid| pid.parse().ok());
        found.extend(pids.filter_map(ProcessId::of).filter(|id| id.is_alive()));
    });
    found
}

/// Kills everything in a group. Kernels before 5.14 cannot, and then processes are found one by one.
pub(super) fn kill(group: &Path) {
    let file = group.join("cgroup.kill");
    if file.exists() {
        let _ = fs::write(file, "1");
    }
}

/// Removes a group with those below it. One that holds a process stays.
pub(super) fn remove(group: &Path) {
    let mut groups = Vec::new();
    each(group, 0, &mut |group| groups.push(group.to_owned()));
    // Those below come after the one they are in.
    groups.iter().rev().for_each(|group| drop(fs::remove_dir(group)));
}

fn each(group: &Path, depth: usize, visit: &mut impl FnMut(&Path)) {
    if depth > DEPTH || !group.is_dir() {
        return;
    }
    visit(group);
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            each(&entry.path(), depth + 1, visit);
        }
    }
}

/// Enables the controllers that limit memory and CPU time in each of these groups, for what is below it. Answers those that are.
fn enable(groups: &[&Path]) -> Vec<String> {
    let mut enabled = Vec::new();
    for name in ["memory", "cpu"] {
        let all = groups.iter().all(|group| {
            let file = group.join("cgroup.subtree_control");
            let listed = || fs::read_to_string(&file).unwrap_or_default();
            let has = |list: &str| list.split_ascii_whitespace().any(|known| known == name);
            has(&listed()) || (fs::write(&file, format!("+{name}")).is_ok() && has(&listed()))
        });
        if all {
            enabled.push(name.to_owned());
        }
    }
    enabled
}

/// The folder of this process's own group in the hierarchy of version 2.
fn own_group() -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    Some(mount_point(&mounts)?.join(own_path(&groups)?))
}

/// The path of the group of version 2, relative to the mount; none for the root group, which nobody delegates.
fn own_path(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::/")).filter(|path| !path.is_empty() && !path.contains(".."))
}

/// Where the hierarchy of version 2 is mounted as a whole.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (system.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
}

/// Whether systemd marked a group as delegated.
fn is_delegated(group: &Path) -> bool {
    let mut value = [0; 8];
    ["user.delegate", "trusted.delegate"]
        .iter()
        .any(|name| rustix::fs::getxattr(group, *name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1"))
}

#[cfg(test)]
impl schemars::JsonSchema for Setting {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cgroup".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^(auto|off|/.*)$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_what_the_kernel_tells() {
        assert_eq!(own_path("9:name=systemd:/x\n0::/system.slice/w.service\n"), Some("system.slice/w.service"));
        for none in ["0::/\n", "4:memory:/a\n", "0::/../a\n", ""] {
            assert_eq!(own_path(none), None);
        }
        let mounts = "24 1 0:22 / /proc rw - proc proc rw\n30 1 0:26 /sub /mnt rw - cgroup2 none rw\n\
                      31 1 0:26 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn a_limit_that_no_controller_keeps_is_refused_with_its_name() {
        let limits = |memory, cpu_percent| ProcessLimits { memory, cpu_percent, ..ProcessLimits::default() };
        let refused = |result: Result<(), Error>| result.expect_err("not kept").to_string();
        assert!(refused(without(&limits(Some(1), None))).starts_with("limits.memory: needs a control group"));
        assert!(refused(without(&limits(None, Some(1)))).starts_with("limits.cpu: needs"));
        without(&limits(None, None)).expect("nothing is limited");
        let folder = tempfile::tempdir().expect("a folder");
        let group = Cgroups { instances: folder.path().to_owned(), controllers: vec!["memory".into()] };
        let order = group.order("a-0-1", &limits(Some(1 << 20), None)).expect("kept");
        assert_eq!((order.path, order.memory), (folder.path().join("a-0-1"), Some(1 << 20)));
        assert!(refused(group.order("a-0-1", &limits(None, Some(5))).map(drop)).contains("controller `cpu`"));
    }

    #[test]
    fn a_setting_is_a_word_or_a_path() {
        for text in ["auto", "off", "/sys/fs/cgroup/rug"] {
            assert_eq!(Setting::try_from(text.to_owned()).map(String::from), Ok(text.to_owned()));
        }
        assert!(Setting::try_from("rug".to_owned()).is_err());
    }
}
