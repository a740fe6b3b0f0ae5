//! Debug modes, how far they have taken hold, and what owners would have done.

use std::time::{Duration, SystemTime};

use common::ApplianceId;
use common::mode::ModeRule;

/// A debug mode, and how far it has taken hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeView {
    /// The rule.
    pub rule: ModeRule,
    /// Appliances that it covers; `None` where nobody counted.
    pub covered: Option<u64>,
    /// Some of those of which it cannot be said yet that nothing is changed about them, and why.
    pub waiting: Vec<(ApplianceId, String)>,
    /// How many there are in all.
    pub waiting_count: u64,
    /// Some of those for which a call that started before may still take effect, and for how long at most.
    pub late: Vec<(ApplianceId, Duration)>,
    /// How many there are in all.
    pub late_count: u64,
}

/// A part of the debug modes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModeList {
    /// In the order of their ids.
    pub modes: Vec<ModeView>,
    /// Others follow.
    pub more: bool,
    /// How many there are in all.
    pub total: u64,
}

/// A step that an owner did not make because hands are off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithheldStep {
    /// The step, for people.
    pub step: String,
    /// Why it would have been made.
    pub reason: String,
    /// When that was decided last.
    pub last: SystemTime,
    /// How often in a row.
    pub times: u32,
}
