//! What the process of a command is given: user, limits, signals. Checks of single fields.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::{Execution, StopRecipe};
use crate::limits::{FieldViolation, check_text};
use crate::signal;

/// Longest `stop_timeout`.
const MAX_STOP_TIMEOUT: Duration = Duration::from_secs(3600);

/// Most files of variables.
const MAX_FILES: usize = 16;
/// Longest name of a user or group, in bytes.
const MAX_USER: usize = 64;
/// Least limit of memory, in bytes: below it hardly anything starts.
const LEAST_MEMORY: u64 = 1024 * 1024;
/// Most CPU time, in percent of one CPU.
const MOST_CPU: u32 = 100_000;

/// Signals that a process may be asked to end with: those that a shim passes on.
const STOP_SIGNALS: [&str; 7] = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGWINCH"];

/// What the process of a command is given besides its command line and variables, and how it is stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessOptions {
    /// Files with further variables on the worker's host, which are read at each start and neither stored nor shown; `env` wins.
    pub env_from: Vec<String>,
    /// User it runs as, by name or number; the worker's when absent.
    pub user: Option<String>,
    /// Group it runs as; that of the user when absent.
    pub group: Option<String>,
    /// Where it starts; a folder of its own when absent.
    pub working_dir: Option<String>,
    /// What it may use.
    pub limits: ProcessLimits,
    /// Its nice value; 0 when absent.
    pub nice: Option<i8>,
    /// Whether no program that it runs may gain rights.
    pub no_new_privileges: bool,
    /// What it is asked to end with; SIGTERM when absent.
    pub stop_signal: Option<StopSignal>,
    /// How long it may then take before it is killed; the worker's `stop_grace` when absent.
    pub stop_timeout: Option<Duration>,
}

impl ProcessOptions {
    /// Nothing is asked for.
    pub const NONE: Self = Self {
        env_from: Vec::new(),
        user: None,
        group: None,
        working_dir: None,
        limits: ProcessLimits::NONE,
        nice: None,
        no_new_privileges: false,
        stop_signal: None,
        stop_timeout: None,
    };

    /// The options as a [`Custom`](super::Custom) has them: absent when nothing is asked for.
    #[must_use]
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::NONE).then(|| Box::new(self))
    }

    pub(super) fn execution(&self) -> Execution {
        Execution {
            env_from: self.env_from.clone(),
            user: self.user.clone(),
            group: self.group.clone(),
            working_dir: self.working_dir.clone(),
            limits: self.limits,
            nice: self.nice,
            no_new_privileges: self.no_new_privileges,
        }
    }

    pub(super) fn stop(&self) -> StopRecipe {
        StopRecipe { signal: self.stop_signal.map(StopSignal::number), timeout: self.stop_timeout }
    }

    pub(super) fn validate(&self, found: &mut Vec<FieldViolation>) {
        check_env_from(found, &self.env_from);
        check_user(found, "spec.custom.user", self.user.as_ref());
        check_user(found, "spec.custom.group", self.group.as_ref());
        if let Some(path) = &self.working_dir {
            check_path(found, "spec.custom.working_dir", path);
        }
        self.limits.validate(found);
        if self.nice.is_some_and(|nice| !(-20..=19).contains(&nice)) {
            found.push(FieldViolation::new("spec.custom.nice", "must be -20 to 19"));
        }
        if self.stop_timeout.is_some_and(|timeout| timeout > MAX_STOP_TIMEOUT) {
            found.push(FieldViolation::new("spec.custom.stop_timeout", "must be 1h or less"));
        }
    }

    /// What is not asked for is no input, so that instances of versions that did not know it are known by the same digest.
    pub(super) fn restart_inputs(&self, input: &mut dyn FnMut(&str, &str)) {
        self.env_from.iter().for_each(|file| input("env_from", file));
        for (name, value) in [("user", &self.user), ("group", &self.group), ("working_dir", &self.working_dir)] {
            value.iter().for_each(|value| input(name, value));
        }
        self.limits.each().for_each(|(name, value)| input(name, &value.to_string()));
        self.nice.iter().for_each(|nice| input("nice", &nice.to_string()));
        if self.no_new_privileges {
            input("no_new_privileges", "yes");
        }
    }
}

/// What a process may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProcessLimits {
    /// Open descriptors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nofile: Option<u64>,
    /// Processes of its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nproc: Option<u64>,
    /// Bytes of a core dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<u64>,
    /// Bytes of memory of all its processes; needs a control group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// CPU time of all its processes in percent of one CPU; needs a control group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
}

impl ProcessLimits {
    /// Nothing is limited.
    pub const NONE: Self = Self { nofile: None, nproc: None, core: None, memory: None, cpu_percent: None };

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::NONE
    }

    /// Name and value of each limit.
    fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self { nofile, nproc, core, memory, cpu_percent } = *self;
        let all = [
            ("nofile", nofile),
            ("nproc", nproc),
            ("core", core),
            ("memory", memory),
            ("cpu_percent", cpu_percent.map(u64::from)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    fn validate(&self, found: &mut Vec<FieldViolation>) {
        let mut within = |field: &str, value: Option<u64>, least: u64, most: u64, rule: &str| {
            if value.is_some_and(|value| !(least..=most).contains(&value)) {
                found.push(FieldViolation::new(format!("spec.custom.limits.{field}"), rule));
            }
        };
        within("nofile", self.nofile, 3, u64::from(u32::MAX), "must be 3 to 4294967295");
        within("nproc", self.nproc, 1, u64::from(u32::MAX), "must be 1 to 4294967295");
        within("core", self.core, 0, i64::MAX.cast_unsigned(), "must be at most 9223372036854775807");
        within("memory", self.memory, LEAST_MEMORY, i64::MAX.cast_unsigned(), "must be at least 1MiB");
        within("cpu_percent", self.cpu_percent.map(u64::from), 1, u64::from(MOST_CPU), "must be 1 to 100000");
    }
}

/// A signal that a process is asked to end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StopSignal(
    /// Its place among [`STOP_SIGNALS`].
    usize,
);

/// The text is not the name of a [`StopSignal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of {}", STOP_SIGNALS.join(", "))]
pub struct InvalidStopSignal;

impl StopSignal {
    /// Its number on Linux.
    #[must_use]
    pub fn number(self) -> i32 {
        signal::number(self.name()).expect("every stop signal is a signal")
    }

    const fn name(self) -> &'static str {
        STOP_SIGNALS[self.0]
    }
}

impl FromStr for StopSignal {
    type Err = InvalidStopSignal;

    /// With or without `SIG`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let same = |name: &&str| *name == text || name.strip_prefix("SIG") == Some(text);
        STOP_SIGNALS.iter().position(same).map(Self).ok_or(InvalidStopSignal)
    }
}

impl TryFrom<String> for StopSignal {
    type Error = InvalidStopSignal;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<StopSignal> for String {
    fn from(signal: StopSignal) -> Self {
        signal.name().to_owned()
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Checks the name or number of a user or group.
fn check_user(found: &mut Vec<FieldViolation>, field: &str, name: Option<&String>) {
    let Some(name) = name else { return };
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let rest = |c: char| first(c) || matches!(c, '-' | '.' | '$' | '@');
    let valid = name.len() <= MAX_USER && name.starts_with(first) && name.chars().all(rest);
    if !valid {
        found.push(FieldViolation::new(field, "must be a name or a number, of at most 64 letters, digits, _ - . @ $"));
    }
}

/// Checks a path on the worker's host.
fn check_path(found: &mut Vec<FieldViolation>, field: &str, path: &str) {
    check_text(found, field, path, 1);
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        found.push(FieldViolation::new(field, "must be an absolute path without `..`"));
    }
}

/// Checks the files with variables.
fn check_env_from(found: &mut Vec<FieldViolation>, files: &[String]) {
    if files.len() > MAX_FILES {
        let text = format!("has {} entries, at most {MAX_FILES} are allowed", files.len());
        found.push(FieldViolation::new("spec.custom.env_from", text));
    }
    for (i, file) in files.iter().enumerate() {
        check_path(found, &format!("spec.custom.env_from[{i}]"), file);
    }
}
