//! The journals that the process driver keeps of its side effects: who did what to which appliance with which token.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Outcome of a line that says that an action begins.
pub const BEGUN: &str = "begun";

/// One line of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalLine {
    /// Which appliance.
    pub appliance: String,
    /// When it was written, in nanoseconds of CLOCK_BOOTTIME.
    pub at_ns: u64,
    /// Who did it.
    pub worker: String,
    /// Process that did it.
    pub pid: u32,
    /// Term and sequence of the token it was done with.
    pub token: (u64, u64),
    /// What was done, such as `spawn`.
    pub action: String,
    /// Ordinal and attempt of the instance it was done to.
    pub instance: (u64, u64),
    /// Process it was done to, once known.
    pub target: Option<u32>,
    /// [`BEGUN`], `done`, or what went wrong.
    pub outcome: String,
}

impl JournalLine {
    /// Whether it says that an action begins.
    #[must_use]
    pub fn begins(&self) -> bool {
        self.outcome == BEGUN
    }
}

/// Journals by appliance, each in the order in which it was written.
pub type Journals = BTreeMap<String, Vec<JournalLine>>;

/// Reads all journals below a state directory.
///
/// # Errors
/// When one cannot be read.
pub fn read(state_dir: &Path) -> Result<Journals> {
    let mut found = Journals::new();
    let Ok(folder) = fs::read_dir(state_dir.join("fences")) else { return Ok(found) };
    for path in folder.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        let appliance = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        // The last line may be half written by now, or cut short by the end of its writer.
        let text = fs::read_to_string(&path)?;
        let entries = text.lines().filter_map(|line| entry(&appliance, line)).collect();
        found.insert(appliance, entries);
    }
    Ok(found)
}

/// All side effects that began, in the order of time.
///
/// # Errors
/// As [`read`].
pub fn effects(state_dir: &Path) -> Result<Vec<JournalLine>> {
    let mut found: Vec<JournalLine> = read(state_dir)?.into_values().flatten().filter(JournalLine::begins).collect();
    found.sort_by_key(|effect| effect.at_ns);
    Ok(found)
}

fn entry(appliance: &str, line: &str) -> Option<JournalLine> {
    let entry = serde_json::from_str::<Value>(line).ok()?;
    let number = |name: &str| entry.get(name).and_then(Value::as_u64).unwrap_or_default();
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some(JournalLine {
        appliance: appliance.to_owned(),
        at_ns: number("at_boot_ns"),
        worker: text("worker"),
        pid: u32::try_from(number("actor_pid")).ok()?,
        token: (number("term"), number("sequence")),
        action: text("action"),
        instance: (number("ordinal"), number("attempt")),
        target: entry.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok()),
        outcome: text("outcome"),
    })
}
