//! Settings of the machine.

use std::time::Duration;

use common::appliance::FieldViolation;
use serde::{Deserialize, Serialize};

use crate::limits::WorkerLimits;
use crate::membership::LeaseAuthority;
use crate::{brake, planner};

/// Settings of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How members share the appliances.
    pub planner: planner::Config,
    /// How long joins are gathered before anything moves to them. Longer makes fewer, larger rebalances.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub debounce: Duration,
    /// How long a new leader waits for the members of its predecessor to say what they hold.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub reconnect_grace: Duration,
    /// Most appliances on the move from one owner to another at once. Orphans are exempt.
    pub max_moves_in_flight: usize,
    /// Most of them that leave, or come to, one worker.
    pub max_moves_per_worker: usize,
    /// For how long an appliance may be unattended on its way from one worker to another, in 99 of 100 cases. As many move at
    /// once as that allows, by what is measured: more at once are faster in all, and leave each unattended for longer. With 0 as many as
    /// the limits above allow. One whose owner has to end a step first is attended meanwhile, and does not keep others from moving.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub gap_target: Duration,
    /// How long a worker that declined an appliance is not asked again.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub decline_backoff: Duration,
    /// Workers that may die during an announced step of one appliance before no worker is granted it any more. Fewer spare
    /// workers, more are fairer to an appliance that was struck by chance.
    pub quarantine_strikes: u32,
    /// How long one worker has to hold an appliance whose former owner died for it to count as innocent.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub suspect_probation: Duration,
    /// Part of the live workers that may vanish within `freeze_window` before nothing moves any more: more likely the
    /// leader lost sight of them. Above 0, at most 1; 1 never freezes.
    pub freeze_fraction: f64,
    /// Losses further apart than this are not one event.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub freeze_window: Duration,
    /// How long what a vanished worker held waits for its name to come back. Longer saves moves when
    /// workers restart, and leaves appliances unattended for as long when they do not.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub departure_grace: Duration,
    /// How long a worker may hold a lease without a session while a move waits on it, before it is evicted.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub unreachable_after: Duration,
    /// After how long a move counts as stalled: it is shown, and no longer counts against the limits.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub release_deadline: Duration,
    /// Who ends leases. Follows from the coordination; not a setting.
    #[serde(skip)]
    pub authority: LeaseAuthority,
    /// What workers may say of themselves. A section of its own in the configuration.
    #[serde(skip)]
    pub limits: WorkerLimits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            planner: planner::Config::default(),
            debounce: Duration::from_millis(500),
            reconnect_grace: Duration::from_secs(5),
            max_moves_in_flight: 512,
            max_moves_per_worker: 128,
            gap_target: Duration::from_millis(10),
            decline_backoff: Duration::from_secs(5),
            quarantine_strikes: 3,
            suspect_probation: Duration::from_secs(60),
            freeze_fraction: 0.5,
            freeze_window: Duration::from_secs(10),
            departure_grace: Duration::ZERO,
            unreachable_after: Duration::from_secs(60),
            release_deadline: Duration::from_secs(30),
            authority: LeaseAuthority::Embedded,
            limits: WorkerLimits::default(),
        }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if !self.planner.band.is_finite() || self.planner.band < 1.0 {
            let description = format!("must be at least 1, is {}", self.planner.band);
            found.push(FieldViolation::new("planner.band", description));
        }
        for (field, value) in
            [("max_moves_in_flight", self.max_moves_in_flight), ("max_moves_per_worker", self.max_moves_per_worker)]
        {
            if value == 0 {
                found.push(FieldViolation::new(field, "must be at least 1"));
            }
        }
        if self.quarantine_strikes == 0 {
            found.push(FieldViolation::new("quarantine_strikes", "must be at least 1"));
        }
        if !(self.freeze_fraction > 0.0 && self.freeze_fraction <= 1.0) {
            let description = format!("must be above 0 and at most 1, is {}", self.freeze_fraction);
            found.push(FieldViolation::new("freeze_fraction", description));
        }
        for (field, value) in
            [("unreachable_after", self.unreachable_after), ("release_deadline", self.release_deadline)]
        {
            if value < Duration::from_secs(1) {
                found.push(FieldViolation::new(field, "must be at least 1s"));
            }
        }
        found
    }

    pub(super) fn brake(&self) -> brake::Config {
        brake::Config {
            fraction: self.freeze_fraction,
            window: self.freeze_window,
            grace: self.departure_grace,
            settle: self.debounce * 4,
        }
    }
}
