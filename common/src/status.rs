//! What is known about an appliance: what its owner observed, and what travels with it from owner to owner.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::version::Generation;

mod end;

pub use self::end::{EndCause, InstanceEnd};

/// Most details of one instance.
pub const MAX_DETAILS: usize = 16;
/// Longest name of a detail, in bytes.
pub const MAX_DETAIL_NAME: usize = 63;
/// Longest text of a detail, in bytes.
pub const MAX_DETAIL_TEXT: usize = 256;
/// The detail that is a process id; the versions before this one told it as a field of its own.
pub const PID_DETAIL: &str = "pid";

/// Name of the detail with the address at which an instance is managed, where that is its own. Only a worker sets it.
pub const MANAGEMENT_DETAIL: &str = "management";

/// The detail that says that an instance has all the connections it may have.
pub const SATURATED_DETAIL: &str = "saturated";

/// Where an appliance is in its life, as its owner last saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No instance runs; the next boot is due or waits for its back-off.
    #[default]
    Down,
    /// At least one instance is being started.
    Booting,
    /// All instances run and answer; the configuration is not in place yet.
    Up,
    /// All instances run, answer and have the configuration of the observed generation.
    Configured,
    /// Some instances are dead; the living ones serve.
    Degraded,
    /// Ports are being plugged in or out.
    Replugging,
    /// Instances are being replaced because of a rebuild or a change that needs a restart.
    Restarting,
    /// Cooling down after too many failed boots.
    Error,
    /// Instances are being removed.
    Deleting,
    /// Nothing is left.
    Gone,
}

impl Phase {
    /// All phases, in the order of a life.
    pub const ALL: [Self; 10] = [
        Self::Down,
        Self::Booting,
        Self::Up,
        Self::Configured,
        Self::Degraded,
        Self::Replugging,
        Self::Restarting,
        Self::Error,
        Self::Deleting,
        Self::Gone,
    ];

    /// The name in tables, metrics and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Down => "Down",
            Self::Booting => "Booting",
            Self::Up => "Up",
            Self::Configured => "Configured",
            Self::Degraded => "Degraded",
            Self::Replugging => "Replugging",
            Self::Restarting => "Restarting",
            Self::Error => "Error",
            Self::Deleting => "Deleting",
            Self::Gone => "Gone",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a driver knows of an instance, for people: process id, host and the like, each a short text under a name. Nothing
/// decides by them. Bounded: of more than [`MAX_DETAILS`] the first by name are kept, and what is too long is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Details(Box<[(Box<str>, Box<str>)]>);

impl Details {
    /// The text of one detail.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, text)| text)
    }

    /// Every detail, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (name.as_ref(), text.as_ref()))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These and what `other` has under other names.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        // These come first where there is not room for all.
        let room = MAX_DETAILS.saturating_sub(self.0.len());
        let others = other.iter().filter(|(name, _)| self.get(name).is_none()).take(room);
        if other.is_empty() { self.clone() } else { others.chain(self.iter()).collect() }
    }

    /// The process id, where there is one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.get(PID_DETAIL)?.parse().ok()
    }
}

impl<N: AsRef<str>, T: AsRef<str>> FromIterator<(N, T)> for Details {
    fn from_iter<I: IntoIterator<Item = (N, T)>>(details: I) -> Self {
        let clip = |text: &str, most: usize| Box::from(&text[..text.floor_char_boundary(most)]);
        let all: BTreeMap<Box<str>, Box<str>> = details
            .into_iter()
            .map(|(name, text)| (clip(name.as_ref(), MAX_DETAIL_NAME), clip(text.as_ref(), MAX_DETAIL_TEXT)))
            .collect();
        Self(all.into_iter().take(MAX_DETAILS).collect())
    }
}

impl From<BTreeMap<String, String>> for Details {
    fn from(details: BTreeMap<String, String>) -> Self {
        details.into_iter().collect()
    }
}

impl From<Details> for BTreeMap<String, String> {
    fn from(details: Details) -> Self {
        details.iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect()
    }
}

/// One running thing behind an appliance, as last observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredInstanceStatus")]
pub struct InstanceStatus {
    /// Position among the replicas, from 0.
    pub ordinal: u16,
    /// Name given by the driver, derived from appliance, ordinal and attempt.
    pub name: String,
    /// Whether the last probe was answered; `None` before the first.
    pub alive: Option<bool>,
    /// What its driver knows of it, for people.
    #[serde(skip_serializing_if = "Details::is_empty")]
    pub details: Details,
    /// Start time as the driver tells it, in milliseconds since the Unix epoch.
    pub started_at_unix_ms: u64,
    /// Address of the service it offers.
    pub address: Option<SocketAddr>,
    /// Generation that the instance runs: the newest whose configuration it has accepted, other than those that take a new
    /// instance, which it waits to be replaced for.
    pub configured: Option<Generation>,
    /// Network ports that are plugged, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Name>,
}

/// [`InstanceStatus`] as it may be stored: earlier versions wrote the process id as a field of its own.
#[derive(Deserialize)]
struct StoredInstanceStatus {
    ordinal: u16,
    name: String,
    alive: Option<bool>,
    pid: Option<u32>,
    #[serde(default)]
    details: BTreeMap<String, String>,
    started_at_unix_ms: u64,
    address: Option<SocketAddr>,
    configured: Option<Generation>,
    #[serde(default)]
    ports: Vec<Name>,
}

impl From<StoredInstanceStatus> for InstanceStatus {
    fn from(stored: StoredInstanceStatus) -> Self {
        let StoredInstanceStatus {
            ordinal,
            name,
            alive,
            pid,
            mut details,
            started_at_unix_ms,
            address,
            configured,
            ports,
        } = stored;
        if let Some(pid) = pid {
            details.entry(PID_DETAIL.to_owned()).or_insert_with(|| pid.to_string());
        }
        Self { ordinal, name, alive, details: details.into(), started_at_unix_ms, address, configured, ports }
    }
}

impl Status {
    /// Whether one of its instances has all the connections it may have.
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.instances.iter().any(|instance| instance.details.get(SATURATED_DETAIL).is_some())
    }
}

/// What the owner of an appliance reports about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where it is in its life.
    pub phase: Phase,
    /// Newest generation the owner has acted on.
    pub observed_generation: Generation,
    /// Instances, by ordinal.
    pub instances: Vec<InstanceStatus>,
    /// What went wrong last; cleared when the appliance is `Configured` again.
    pub last_error: Option<String>,
    /// Boots in a row that failed, or whose instance ended soon after.
    pub failed_boots: u32,
    /// How the last instance that ended by itself did; not cleared when all is well again.
    pub last_end: Option<Box<InstanceEnd>>,
}

/// What a hand-off takes along, so that nothing restarts because it moved. Durations are what was *left* when it was
/// taken: clocks of two workers are not comparable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Boots that failed in a row.
    pub failed_boots: u32,
    /// Ends of instances that had answered, without a time of health since.
    #[serde(default)]
    pub ends: u32,
    /// Attempts ever made to start each ordinal; instance names derive from it.
    pub attempts: Vec<u32>,
    /// Back-off or cooldown that was left.
    pub wait: Duration,
    /// Whether `wait` is the cooldown of phase `Error`.
    pub cooling: bool,
    /// Steps begun and not known to have ended.
    pub journal: Vec<JournalEntry>,
    /// How the last instance that ended by itself did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<Box<InstanceEnd>>,
}

impl Progress {
    /// About how many bytes it takes in a message.
    #[must_use]
    pub fn size(&self) -> usize {
        let journal: usize = self.journal.iter().map(|entry| entry.step.len() + entry.request_id.len() + 8).sum();
        32 + 5 * self.attempts.len() + journal
    }
}

/// A step that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// What was begun, such as `boot 0`.
    pub step: String,
    /// Request id it was begun with, where the backend knows such ids.
    pub request_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_few_and_short() {
        let details: Details = (0..40).map(|n| (format!("{n:02}"), "é".repeat(200))).collect();
        assert_eq!(details.iter().count(), MAX_DETAILS);
        assert_eq!(details.get("00").map(str::len), Some(MAX_DETAIL_TEXT));
        let (one, two): (Details, Details) =
            ([("a", "1"), ("b", "1")].into_iter().collect(), [("b", "2"), ("c", "2")].into_iter().collect());
        assert_eq!(one.with(&two).iter().collect::<Vec<_>>(), [("a", "1"), ("b", "1"), ("c", "2")]);
        let many: Details = (0..40).map(|n| (format!("a{n:02}"), "x")).collect();
        assert_eq!(two.with(&many).get("c"), Some("2"));
        let long: Details = [("n".repeat(100), format!("x{}", "é".repeat(200)))].into_iter().collect();
        assert_eq!(long.iter().next().map(|(name, text)| (name.len(), text.len())), Some((63, 255)));
    }

    #[test]
    fn a_status_of_the_version_before_is_read() {
        let stored = r#"{"ordinal":0,"name":"a-0-1","alive":true,"pid":4711,"started_at_unix_ms":7,
            "address":"127.0.0.1:80","configured":3}"#;
        let read: InstanceStatus = serde_json::from_str(stored).expect("it is complete");
        assert_eq!((read.details.pid(), read.ports.len(), read.configured), (Some(4711), 0, Some(Generation::new(3))));
        let again = serde_json::to_string(&read).expect("plain data");
        assert_eq!(serde_json::from_str::<InstanceStatus>(&again).expect("round trip"), read);
        assert!(again.contains(r#""details":{"pid":"4711"}"#) && !again.contains("ports"), "{again}");
    }
}
