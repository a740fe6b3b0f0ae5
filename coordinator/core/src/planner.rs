//! Who should hold what: members, policy and the table as it is -> moves, with a reason for each.

use std::collections::BTreeSet;

use common::WorkerId;
use common::appliance::Driver;
use serde::{Deserialize, Serialize};

/// Index of an appliance in the table and the planner; reused after removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// How members share the appliances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Ring preference inside a band around the fair share.
    #[default]
    Bounded,
    /// The owner python-tooz names, always.
    Ring,
}

/// Settings of the planner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How members share the appliances.
    pub strategy: Strategy,
    /// Width of the band: every member stays within `[floor(fair / band), ceil(fair * band)]`. Nearer to 1 is more even
    /// and moves more. At least 1.
    pub band: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { strategy: Strategy::Bounded, band: 1.05 }
    }
}

/// A member of the ring, as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub id: WorkerId,
    /// Share of the appliances relative to others; at least 1.
    pub weight: u32,
    /// Failure zone; empty when not given.
    pub zone: String,
    /// Host it runs on.
    pub host: String,
    /// Drivers it offers. Empty: a member of the ring that takes no share (a Python service).
    pub drivers: BTreeSet<Driver>,
    /// Live and with a settled stream: may be given appliances. One that is not keeps what it has.
    pub connected: bool,
    /// Gets nothing new and gives up what it has.
    pub draining: bool,
}

/// What an appliance needs of the member that takes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Needs {
    /// The driver it uses.
    pub driver: Driver,
    /// Host its instances are bound to, once they are.
    pub host: Option<String>,
}

/// Why an appliance is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// It has no owner: new, released, declined or its owner is gone.
    Unowned,
    /// Back to the worker of the same name that held it before.
    Returned,
    /// Its owner drains.
    Draining,
    /// Its owner lacks what it needs.
    Ineligible,
    /// Its owner holds more than the band allows.
    OverCeiling,
    /// Another member holds less than the band allows.
    UnderFloor,
    /// Strategy `ring`: the ring names another owner.
    RingOwner,
}

/// Why no member can take an appliance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unplaced {
    /// There are no members.
    NoMembers,
    /// No member offers the driver.
    NoDriver(Driver),
    /// No member runs on the host its instances are bound to.
    HostGone(String),
    /// Members that could take it are not connected.
    NotConnected,
    /// Members that could take it drain.
    AllDraining,
    /// Members that could take it declined it recently.
    Declined,
    /// Strategy `ring`: the owner the ring names cannot take it.
    RingOwnerCannot(WorkerId),
}

/// One appliance to be taken to another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The appliance.
    pub slot: Slot,
    /// Who holds it now; `None` when nobody does.
    pub from: Option<WorkerId>,
    /// Who shall hold it.
    pub to: WorkerId,
    /// Why.
    pub reason: Reason,
}
