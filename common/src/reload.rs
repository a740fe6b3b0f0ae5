//! What reading a configuration again came to.

use std::fmt;

/// Most settings that are named of one process.
pub const MAX_SETTINGS: usize = 1_000;

/// Longest name of a setting, in bytes.
pub const MAX_SETTING: usize = 200;

/// What changed when a process read its configuration again, by the names of settings. Values are not part of it, since some are secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Settings that have changed, and are in force.
    pub applied: Vec<String>,
    /// Settings that have changed, and are in force after a restart.
    pub needs_restart: Vec<String>,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.applied.as_slice(), self.needs_restart.as_slice()) {
            ([], []) => f.write_str("nothing has changed"),
            (applied, []) => write!(f, "in force: {}", applied.join(", ")),
            ([], restart) => write!(f, "needs a restart: {}", restart.join(", ")),
            (applied, restart) => {
                write!(f, "in force: {}; needs a restart: {}", applied.join(", "), restart.join(", "))
            }
        }
    }
}
