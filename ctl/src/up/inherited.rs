//! Settings of another cluster in the environment.
//!
//! The processes of `rugctl up` inherit its environment, and their variables win over defaults. A shell that was prepared
//! for a coordinator of another cluster would so point this one to the other's store, and `up --down` would delete every
//! appliance found there. Such variables are refused by name before anything starts; those that only tune are passed on.
//!
//! A section that is not listed is refused, so that a new one is examined before `up` passes it on.

use std::ffi::OsString;

use crate::error::Failure;

/// Which variables of one binary are passed on.
struct Rule {
    /// What its variables start with.
    prefix: &'static str,
    /// Sections, and fields without a section, that only tune.
    tuning: &'static [&'static str],
    /// Sections that tune except for the fields named here, which say where things are.
    mixed: &'static [(&'static str, &'static [&'static str])],
}

const RULES: [Rule; 2] = [
    Rule {
        prefix: "rug_coordinator_",
        tuning: &["machine", "catalog", "log", "metrics", "telemetry"],
        mixed: &[("store", &["url"])],
    },
    Rule {
        prefix: "rug_worker_",
        tuning: &["zone", "weight", "drivers", "runner", "log", "telemetry"],
        mixed: &[
            ("session", &["coordinators"]),
            ("process", &["state_dir"]),
            ("simulated", &["world"]),
            // One address cannot be that of several workers.
            ("metrics", &["listen"]),
        ],
    },
];

/// Refuses variables that point coordinator or workers to something outside of the cluster of `up`.
///
/// # Errors
/// A usage failure that names them all.
pub(super) fn refuse(names: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let mut found: Vec<String> =
        names.filter_map(|name| name.into_string().ok()).filter(|name| points_elsewhere(name)).collect();
    if found.is_empty() {
        return Ok(());
    }
    found.sort_unstable();
    Err(Failure::usage(format!(
        "the environment has settings of another cluster, and a cluster of `rugctl up` has its own: unset {}",
        found.join(", ")
    )))
}

/// The same reading of a name as [`runtime::config::load`]'s: case does not matter, `__` or a dot separates levels.
fn points_elsewhere(name: &str) -> bool {
    let name = name.to_lowercase().replace("__", ".");
    let Some((rule, key)) = RULES.iter().find_map(|rule| Some((rule, name.strip_prefix(rule.prefix)?))) else {
        return false;
    };
    let (section, field) = key.split_once('.').unwrap_or((key, ""));
    if rule.tuning.contains(&section) {
        return false;
    }
    match rule.mixed.iter().find(|(mixed, _)| *mixed == section) {
        // Without a field it sets the whole section at once.
        Some((_, pointing)) => field.is_empty() || pointing.contains(&field),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    fn check(names: &[&str]) -> Result<(), Failure> {
        refuse(names.iter().map(OsString::from))
    }

    #[test]
    fn settings_of_another_cluster_are_all_named() {
        let failure = check(&["PATH", "RUG_WORKER_COORDINATION__URL", "RUG_COORDINATOR_STORE__URL", "RUG_SERVER"])
            .expect_err("refused");
        assert_eq!(failure.exit, Exit::Usage);
        let text = failure.to_string();
        assert!(text.ends_with("unset RUG_COORDINATOR_STORE__URL, RUG_WORKER_COORDINATION__URL"), "{text}");
    }

    #[test]
    fn whatever_says_where_or_who_is_refused_in_every_spelling() {
        for name in [
            "RUG_COORDINATOR_STORE__URL",
            "rug_coordinator_store__url",
            "RUG_COORDINATOR_STORE.URL",
            "RUG_COORDINATOR_STORE",
            "RUG_COORDINATOR_COORDINATION__URL",
            "RUG_COORDINATOR_COORDINATION__GROUP",
            "RUG_COORDINATOR_COORDINATION",
            "RUG_COORDINATOR_NAME",
            "RUG_COORDINATOR_LISTEN",
            "RUG_COORDINATOR_ADVERTISE",
            "RUG_COORDINATOR_INSECURE",
            "RUG_COORDINATOR_STATE_DIR",
            "RUG_COORDINATOR_TLS__CA",
            "RUG_COORDINATOR_SOURCES__NEUTRON__URL",
            "RUG_WORKER_NAME",
            "RUG_WORKER_HOST",
            "RUG_WORKER_STATE_DIR",
            "RUG_WORKER_COORDINATION__URL",
            "RUG_WORKER_SESSION",
            "RUG_WORKER_SESSION__COORDINATORS",
            "RUG_WORKER_PROCESS__STATE_DIR",
            "RUG_WORKER_SIMULATED__WORLD",
            "RUG_WORKER_TLS__KEY",
            "RUG_WORKER_METRICS__LISTEN",
        ] {
            assert!(check(&[name]).is_err(), "{name}");
        }
    }

    #[test]
    fn what_only_tunes_is_passed_on() {
        check(&[
            "RUG_COORDINATOR_MACHINE__DEBOUNCE",
            "RUG_COORDINATOR_MACHINE",
            "RUG_COORDINATOR_STORE__STATEMENT_TIMEOUT",
            "RUG_COORDINATOR_LOG__FILTER",
            "RUG_COORDINATOR_METRICS__LISTEN",
            "RUG_COORDINATOR_TELEMETRY__ENDPOINT",
            "RUG_WORKER_TELEMETRY__SAMPLE_RATIO",
            "RUG_WORKER_METRICS__BY_WORKER",
            "RUG_WORKER_RUNNER__LIFECYCLE__BOOT_TIMEOUT",
            "RUG_WORKER_SESSION__LEASE",
            "RUG_WORKER_PROCESS__STOP_GRACE",
            "RUG_WORKER_SIMULATED__BOOT_LATENCY",
            "RUG_WORKER_WEIGHT",
            "RUG_SERVER",
            "RUG_TLS_CA",
            "RUST_LOG",
        ])
        .expect("passed on");
    }
}
