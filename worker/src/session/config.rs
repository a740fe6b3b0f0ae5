//! Settings of the session, and what they may be.

use std::time::Duration;

use common::appliance::FieldViolation;
use runtime::channel::Target;
use serde::{Deserialize, Serialize};

use crate::gate::ACT_MARGIN;

/// What a worker does about what it holds when it is asked to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum OnStop {
    /// Others take it over, one appliance after the other, while this worker still keeps the rest.
    #[default]
    Drain,
    /// It is given back with its progress and kept for this name for `departure_grace`: for a restart.
    HandBack,
    /// Nothing; others take it over once this worker has left. For a cluster that stops as a whole.
    Leave,
}

/// Settings of the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Addresses of coordinators, `https://host:port`, `http://host:port` or `unix:PATH`, tried in turn; not used with
    /// ZooKeeper, where the coordinators publish them.
    pub coordinators: Vec<String>,
    /// How long this worker may act after a heartbeat that was answered; with ZooKeeper, that follows from the session
    /// timeout instead. Longer rides out longer outages of the coordinator, and makes a takeover after a crash wait
    /// longer.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub lease: Duration,
    /// How long before the end of its lease this worker stops to start calls that no token fences: longer than a thread may
    /// sleep between its last look at the lease and its send. Longer bears a busier host, and leaves less of a lease to
    /// act in; more than half of one leaves hardly anything.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub act_margin: Duration,
    /// How long one try to connect, and the answer to `Hello`, may take.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub connect_timeout: Duration,
    /// Longest pause between two tries to connect.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub retry_cap: Duration,
    /// What to do about what is held on SIGTERM.
    pub on_stop: OnStop,
    /// How long draining or handing back may take; what is left then goes to others as if `on_stop` were `leave`. Longer
    /// lets more appliances move in good order, and holds the end of the process up.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub drain_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            coordinators: vec!["unix:rug-coordinator-state/coordinator.sock".to_owned()],
            lease: Duration::from_secs(2),
            act_margin: ACT_MARGIN,
            connect_timeout: Duration::from_secs(5),
            retry_cap: Duration::from_secs(2),
            on_stop: OnStop::default(),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if self.coordinators.is_empty() {
            found.push(FieldViolation::new("coordinators", "must name at least one address"));
        }
        let of = self.coordinators.len();
        for (at, address) in self.coordinators.iter().enumerate() {
            if let Err(problem) = Target::check(address) {
                found.push(FieldViolation::new("coordinators", format!("address {} of {of}: {problem}", at + 1)));
            }
        }
        if !(Duration::from_millis(200)..=Duration::from_secs(120)).contains(&self.lease) {
            found.push(FieldViolation::new("lease", "must be 200ms to 2m"));
        }
        if self.drain_timeout > Duration::from_secs(24 * 3600) {
            found.push(FieldViolation::new("drain_timeout", "must be 24h or less"));
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&self.act_margin) {
            found.push(FieldViolation::new("act_margin", "must be 10ms to 1m"));
        }
        found
    }

    /// Why calls without token would hardly ever start: a lease of this length, of which a quarter passes between two
    /// heartbeats, is too short for the margin.
    #[must_use]
    pub fn margin_violation(&self, lease: Duration) -> Option<FieldViolation> {
        let margin = self.act_margin;
        (margin > lease / 2).then(|| {
            let description = format!(
                "{margin:?} is more than half of the lease of {lease:?}: drivers without tokens would hardly get to act"
            );
            FieldViolation::new("act_margin", description)
        })
    }
}
