//! Settings of the lifecycle: how patient it is, and how often it looks.

use std::time::Duration;

use common::appliance::FieldViolation;
use common::backoff::Backoff;
use serde::{Deserialize, Serialize};

use super::LifecycleStep;

/// How appliances are booted, probed and given up on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Boots that fail in a row before phase `Error`. Higher is more patient with a host that recovers by itself.
    pub boot_attempts: u32,
    /// How long phase `Error` lasts when nobody commands anything.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub error_cooldown: Duration,
    /// How long an instance may take from its start to its first answered probe, over all workers that own its appliance
    /// meanwhile. One that has answered has only `restart_probe_failures` probes to answer again.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub boot_timeout: Duration,
    /// How long the driver's call that starts an instance may take.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub start_timeout: Duration,
    /// How long the driver's calls that end an instance or clear its traces may take.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub destroy_timeout: Duration,
    /// How long looking for instances may take.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub observe_timeout: Duration,
    /// Time between two probes of an instance, unless the spec says otherwise. Shorter finds the dead sooner and costs
    /// calls.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub probe_interval: Duration,
    /// How long one probe may take.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub probe_timeout: Duration,
    /// Time from a probe that failed to the next one, when that is shorter than the interval.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub probe_retry: Duration,
    /// Probes that fail in a row before an instance that still exists is replaced, also one that was just adopted. One that the driver does not find any
    /// more is replaced at once.
    pub restart_probe_failures: u32,
    /// How long configuring one instance may take.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub configure_timeout: Duration,
    /// How long plugging the ports of one instance may take, all of its ports together.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub replug_timeout: Duration,
    /// Times that plugging the ports of one instance fails in a row before it is replaced. Higher keeps an instance that lacks
    /// a port running for longer, lower gives it up for a passing fault. Refusals do not count.
    pub replug_attempts: u32,
    /// How long an instance has to serve before its end counts as bad luck and not as another round of a crash loop. The
    /// first end is always repaired at once; those that follow within this time of being configured wait as failed boots
    /// do. Longer catches slower loops.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub stable_after: Duration,
    /// Commands that gather behind one running step before a warning is given.
    pub queue_warning: u32,
    /// Mean time between two tries while the gate is shut.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub fence_retry: Duration,
    /// Wait between failed boots, and before the next boot of what ends soon after each.
    pub boot_backoff: Backoff,
    /// Wait between other steps that failed.
    pub step_backoff: Backoff,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            boot_attempts: 5,
            error_cooldown: Duration::from_secs(30),
            boot_timeout: Duration::from_secs(600),
            start_timeout: Duration::from_secs(60),
            destroy_timeout: Duration::from_secs(60),
            observe_timeout: Duration::from_secs(10),
            probe_interval: Duration::from_secs(60),
            probe_timeout: Duration::from_secs(3),
            probe_retry: Duration::from_secs(1),
            restart_probe_failures: 3,
            stable_after: Duration::from_secs(60),
            configure_timeout: Duration::from_secs(90),
            replug_timeout: Duration::from_secs(10),
            replug_attempts: 3,
            queue_warning: 100,
            fence_retry: Duration::from_secs(1),
            boot_backoff: Backoff::default(),
            step_backoff: Backoff::default(),
        }
    }
}

impl Config {
    /// How long one step may take before its outcome counts as unknown.
    #[must_use]
    pub const fn limit(&self, step: LifecycleStep) -> Duration {
        match step {
            LifecycleStep::Observe => self.observe_timeout,
            LifecycleStep::Boot { .. } => self.start_timeout,
            LifecycleStep::Replug { .. } => self.replug_timeout,
            LifecycleStep::Configure { .. } => self.configure_timeout,
            LifecycleStep::Probe { .. } => self.probe_timeout,
            LifecycleStep::Destroy { .. } | LifecycleStep::Forget => self.destroy_timeout,
        }
    }

    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        for (field, value) in [
            ("boot_attempts", self.boot_attempts),
            ("restart_probe_failures", self.restart_probe_failures),
            ("replug_attempts", self.replug_attempts),
            ("queue_warning", self.queue_warning),
        ] {
            if value == 0 {
                found.push(FieldViolation::new(field, "must be 1 or more"));
            }
        }
        for (field, value) in [
            ("error_cooldown", self.error_cooldown),
            ("boot_timeout", self.boot_timeout),
            ("start_timeout", self.start_timeout),
            ("destroy_timeout", self.destroy_timeout),
            ("observe_timeout", self.observe_timeout),
            ("probe_interval", self.probe_interval),
            ("probe_timeout", self.probe_timeout),
            ("probe_retry", self.probe_retry),
            ("stable_after", self.stable_after),
            ("configure_timeout", self.configure_timeout),
            ("replug_timeout", self.replug_timeout),
            ("fence_retry", self.fence_retry),
        ] {
            if !(Duration::from_millis(1)..=Duration::from_secs(24 * 3600)).contains(&value) {
                found.push(FieldViolation::new(field, "must be 1ms to 24h"));
            }
        }
        found.extend(FieldViolation::of_sections([
            ("boot_backoff", self.boot_backoff.validate()),
            ("step_backoff", self.step_backoff.validate()),
        ]));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), vec![]);
    }

    #[test]
    fn every_violation_names_its_field() {
        let config = Config {
            boot_attempts: 0,
            probe_interval: Duration::ZERO,
            step_backoff: Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(1) },
            ..Config::default()
        };
        let fields: Vec<_> = config.validate().into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["boot_attempts", "probe_interval", "step_backoff.cap"]);
    }
}
