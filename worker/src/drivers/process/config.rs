//! Settings of the process driver.

use std::path::PathBuf;
use std::time::Duration;

use common::appliance::FieldViolation;
use serde::{Deserialize, Serialize};

use super::cgroups;

/// Most logs of an instance that can be kept: each is renamed when another one is put aside.
const MAX_LOG_FILES: u32 = 100;

/// Settings of the driver.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where instances, their logs and the token files live. Workers on one host share it to adopt from each other.
    pub state_dir: PathBuf,
    /// The reference appliance; by default beside the worker's own executable.
    pub appliance_binary: PathBuf,
    /// The shim that runs beside each instance; by default beside the worker's own executable.
    pub shim_binary: PathBuf,
    /// Whether commands may run as root: the worker's own user where that is root, or one that a specification names. Whoever may change
    /// appliances is root on this host then.
    pub allow_root: bool,
    /// User that commands run as which name none, where the worker runs as root. Without one they run as root, and are refused unless that is
    /// allowed. What runs already goes on as the user that it has.
    pub default_user: Option<String>,
    /// Folders with files that `env_from` of an appliance may name when its instances run as another user than the worker. More folders let
    /// whoever may change appliances read what is in them.
    pub env_folders: Vec<PathBuf>,
    /// Where instances get control groups: `auto` (in the group that was delegated to the worker, if one was), `off`, or the path of
    /// a delegated group without processes.
    pub cgroup: cgroups::Setting,
    /// How long an instance may take to end after its stop signal before it is killed, and what it started after it has ended itself. More lets long
    /// transfers finish; deletion takes that much longer.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub stop_grace: Duration,
    /// How long a killed process may take to be gone.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub kill_wait: Duration,
    /// How long a new process is watched for an early end, which is then reported with its log. Lower makes boots
    /// quicker to report, higher catches slower failures.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub settle: Duration,
    /// Instances of the reference appliance that are started from now on serve `/metrics` on a port of 127.0.0.1 each, which the file `metrics`
    /// in the folder of the instance says.
    pub appliance_metrics: bool,
    /// How long the reference appliance may take to open its management address.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub management_wait: Duration,
    /// How long a call waits for another one on the same appliance.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub lock_wait: Duration,
    /// Size in bytes at which the log of an instance is put aside (`log.1`) and a new one begun. More keeps longer stories together.
    pub log_limit: u64,
    /// How many logs of an instance that were put aside are kept.
    pub log_files: u32,
    /// Most bytes of all logs in the state directory together. When they have reached it, those that were put aside go first, oldest
    /// first; when none is left, output is dropped and counted.
    pub log_quota: u64,
}

impl Default for Config {
    fn default() -> Self {
        let own = std::env::current_exe().ok();
        let beside =
            |name: &str| own.as_deref().and_then(|own| Some(own.parent()?.join(name))).unwrap_or_else(|| name.into());
        Self {
            state_dir: PathBuf::from(".rug"),
            appliance_binary: beside("rug-appliance"),
            shim_binary: beside("rug-shim"),
            allow_root: false,
            default_user: None,
            env_folders: vec![PathBuf::from("/etc/rug/env")],
            cgroup: cgroups::Setting::Auto,
            stop_grace: Duration::from_secs(10),
            kill_wait: Duration::from_secs(5),
            settle: Duration::from_millis(100),
            appliance_metrics: false,
            management_wait: Duration::from_secs(10),
            lock_wait: Duration::from_secs(5),
            log_limit: 10 * 1024 * 1024,
            log_files: 3,
            log_quota: 2 * 1024 * 1024 * 1024,
        }
    }
}

impl Config {
    /// Every setting that cannot work, by name.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        let mut check = |field: &str, value: Duration, most: Duration| {
            if value > most {
                found.push(FieldViolation::new(field, format!("must be at most {}s", most.as_secs())));
            }
        };
        let hour = Duration::from_secs(3600);
        check("stop_grace", self.stop_grace, hour);
        check("kill_wait", self.kill_wait, hour);
        check("management_wait", self.management_wait, hour);
        check("lock_wait", self.lock_wait, hour);
        check("settle", self.settle, Duration::from_secs(60));
        if self.state_dir.as_os_str().is_empty() {
            found.push(FieldViolation::new("state_dir", "must not be empty"));
        }
        if self.env_folders.iter().any(|folder| !folder.is_absolute()) {
            found.push(FieldViolation::new("env_folders", "must be absolute paths"));
        }
        if self.default_user.as_ref().is_some_and(String::is_empty) {
            found.push(FieldViolation::new("default_user", "must not be empty"));
        }
        if self.log_limit == 0 {
            found.push(FieldViolation::new("log_limit", "must be at least 1"));
        }
        if self.log_files > MAX_LOG_FILES {
            found.push(FieldViolation::new("log_files", format!("must be at most {MAX_LOG_FILES}")));
        }
        if self.log_quota < self.log_limit {
            found.push(FieldViolation::new("log_quota", "must be at least log_limit"));
        }
        found
    }
}
