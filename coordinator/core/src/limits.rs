//! Limits on what workers may say of themselves, by their names.
//!
//! Weight, host, drivers and fence delays are a worker's own word, and decide which appliances, with which secrets, it is
//! given, and for how long others wait for it. What exceeds a limit is cut or left out, never refused: a worker that is not
//! let in keeps its lease and what it owns, and nobody can ask it for that. See docs/decisions/0039-limits-of-workers.md.

use std::collections::BTreeSet;
use std::time::Duration;

use common::appliance::FieldViolation;
use common::driver::{DriverCapabilities, DriverName, DriverOffers, MAX_FENCE_DELAY, previous_is_host_bound};
use common::{Profile, WorkerId};
use serde::{Deserialize, Serialize};

/// Most entries of a configuration.
const MAX_ENTRIES: usize = 1_000;

/// Longest fence delay of a worker for which no limit is set.
const FENCE_DELAY: Duration = Duration::from_secs(600);

/// What the workers whose names match may say of themselves. The first entry that matches counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct WorkerLimit {
    /// Names: a name, or a text with one `*`, which stands for any characters or none.
    pub name: String,
    /// Largest weight; a larger one counts as this. 0: no limit.
    pub max_weight: u32,
    /// Hosts they may be on; on any other one, host-bound drivers are left out. Empty: any.
    pub hosts: BTreeSet<String>,
    /// Drivers they may offer; others are left out. Empty: any.
    pub drivers: BTreeSet<DriverName>,
    /// Longest fence delay; a driver with a longer one is left out. A shorter limit bounds how long an appliance can be left
    /// alone after the loss of such a worker.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub max_fence_delay: Duration,
}

impl Default for WorkerLimit {
    fn default() -> Self {
        Self {
            name: "*".to_owned(),
            max_weight: 0,
            hosts: BTreeSet::new(),
            drivers: BTreeSet::new(),
            max_fence_delay: FENCE_DELAY,
        }
    }
}

/// All limits, in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct WorkerLimits(pub Vec<WorkerLimit>);

impl WorkerLimits {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if self.0.len() > MAX_ENTRIES {
            let problem = format!("must be {MAX_ENTRIES} at most, are {}", self.0.len());
            found.push(FieldViolation::new("workers", problem));
        }
        for (n, limit) in self.0.iter().enumerate() {
            if limit.name.is_empty() || limit.name.matches('*').count() > 1 {
                let problem = "must be a name, or a text with one `*`";
                found.push(FieldViolation::new(format!("workers[{n}].name"), problem));
            }
            if limit.max_fence_delay > MAX_FENCE_DELAY {
                let problem = format!("must be {}s at most", MAX_FENCE_DELAY.as_secs());
                found.push(FieldViolation::new(format!("workers[{n}].max_fence_delay"), problem));
            }
        }
        found
    }

    /// What counts of a profile, and what does not, one sentence each.
    #[must_use]
    pub fn apply(&self, worker: &WorkerId, mut profile: Profile) -> (Profile, Vec<String>) {
        let default = WorkerLimit::default();
        let limit = self.0.iter().find(|limit| limit.is_for(worker)).unwrap_or(&default);
        let mut notes = Vec::new();
        if limit.max_weight > 0 && profile.weight > limit.max_weight {
            notes.push(format!("weight {} counts as {}, the most it may have", profile.weight, limit.max_weight));
            profile.weight = limit.max_weight;
        }
        let refused: Vec<(DriverName, String)> = profile
            .drivers
            .iter()
            .filter_map(|(name, _)| Some((name.clone(), limit.refuses(&profile, name)?)))
            .collect();
        if !refused.is_empty() {
            let kept = profile.drivers.iter().filter(|(name, _)| !refused.iter().any(|(no, _)| no == *name));
            profile.drivers = kept.map(|(name, offered)| (name.clone(), offered.clone())).collect::<DriverOffers>();
            notes.extend(refused.into_iter().map(|(name, why)| format!("driver `{name}` is left out: {why}")));
        }
        if !limit.hosts.is_empty() {
            let kept = profile.drivers.iter();
            let kept = kept.map(|(name, it)| (name.clone(), DriverCapabilities { keeps_host: true, ..it.clone() }));
            profile.drivers = kept.collect();
        }
        (profile, notes)
    }
}

impl WorkerLimit {
    fn is_for(&self, worker: &WorkerId) -> bool {
        let name = worker.as_str();
        match self.name.split_once('*') {
            None => name == self.name,
            Some((before, after)) => {
                name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
            }
        }
    }

    /// Why a driver of this worker is left out.
    fn refuses(&self, profile: &Profile, driver: &DriverName) -> Option<String> {
        let offered = profile.drivers.get(driver)?;
        if !self.drivers.is_empty() && !self.drivers.contains(driver) {
            Some("it may not offer it".to_owned())
        } else if offered.is_host_bound() && previous_is_host_bound(driver) == Some(false) {
            // Believed, this worker could bind whatever it is given to a place that only it names.
            Some("no such driver keeps instances on a host".to_owned())
        } else if offered.is_host_bound() && !self.hosts.is_empty() && !self.hosts.contains(&profile.host) {
            Some(format!("it says that it is on host {}, where it may not be", profile.host))
        } else if profile.fence_delay(driver) > self.max_fence_delay {
            let (says, most) = (profile.fence_delay(driver).as_secs_f64(), self.max_fence_delay.as_secs_f64());
            Some(format!("its fence delay of {says:.0} s is longer than the {most:.0} s it may have"))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).expect("valid")
    }

    fn profile() -> Profile {
        let delayed = |seconds| DriverCapabilities {
            fence_delay: Some(Duration::from_secs(seconds)),
            ..DriverCapabilities::of_all_kinds(None)
        };
        let cloud = |name: &str| DriverName::new(name).expect("valid");
        Profile {
            weight: 1_024,
            host: "h1".into(),
            drivers: [
                (DriverName::process(), DriverCapabilities::of_all_kinds(Some(""))),
                (cloud("cloud"), delayed(600)),
                (cloud("slow"), delayed(601)),
            ]
            .into(),
            ..Profile::default()
        }
    }

    fn left(limits: &WorkerLimits, name: &str) -> (u32, Vec<String>, usize) {
        let (profile, notes) = limits.apply(&worker(name), profile());
        (profile.weight, profile.drivers.names().map(ToString::to_string).collect(), notes.len())
    }

    #[test]
    fn by_default_only_fence_delays_are_limited() {
        assert_eq!(left(&WorkerLimits::default(), "w1"), (1_024, vec!["cloud".into(), "process".into()], 1));
    }

    #[test]
    fn the_first_entry_that_matches_limits_each_field() {
        let limit = |name: &str| WorkerLimit { name: name.into(), ..WorkerLimit::default() };
        let limits = WorkerLimits(vec![
            WorkerLimit { max_weight: 10, hosts: ["h2".into()].into(), ..limit("rack-*-a") },
            WorkerLimit { drivers: [DriverName::process()].into(), ..limit("w1") },
            WorkerLimit { max_fence_delay: MAX_FENCE_DELAY, ..limit("*") },
        ]);
        assert_eq!(limits.validate(), []);
        assert_eq!(left(&limits, "rack-7-a"), (10, vec!["cloud".into()], 3));
        assert_eq!(left(&limits, "w1"), (1_024, vec!["process".into()], 2));
        assert_eq!(left(&limits, "rack-a").1.len(), 3, "`*` stands for what is between the two");
        let notes = limits.apply(&worker("rack-7-a"), profile()).1;
        assert_eq!(notes[0], "weight 1024 counts as 10, the most it may have");
        assert!(notes[1].contains("on host h1") && notes[2].contains("601 s"), "{notes:?}");
    }

    #[test]
    fn a_driver_that_is_bound_to_no_host_is_left_out_where_a_worker_names_a_place() {
        let offers = |dir| [(DriverName::simulated(), DriverCapabilities::of_all_kinds(dir))].into();
        let apply = |dir| WorkerLimits::default().apply(&worker("w1"), Profile { drivers: offers(dir), ..profile() });
        let (kept, notes) = apply(Some("/evil"));
        assert!(kept.drivers.get(&DriverName::simulated()).is_none() && notes.len() == 1, "{notes:?}");
        assert!(apply(None).1.is_empty());
    }

    #[test]
    fn who_may_be_on_some_hosts_only_brings_no_instances_from_others() {
        let limits = WorkerLimits(vec![WorkerLimit {
            name: "w1".into(),
            hosts: ["h1".into()].into(),
            ..WorkerLimit::default()
        }]);
        let keeps = |name: &str| {
            let (profile, _) = limits.apply(&worker(name), profile());
            profile.drivers.get(&DriverName::process()).map(|offered| offered.keeps_host)
        };
        assert_eq!((keeps("w1"), keeps("w2")), (Some(true), Some(false)));
    }

    #[test]
    fn entries_are_checked() {
        let limits = WorkerLimits(vec![WorkerLimit {
            name: "a*b*c".into(),
            max_fence_delay: MAX_FENCE_DELAY * 2,
            ..WorkerLimit::default()
        }]);
        let fields: Vec<_> = limits.validate().into_iter().map(|violation| violation.field).collect();
        assert_eq!(fields, ["workers[0].name", "workers[0].max_fence_delay"]);
    }
}
