//! What a plan is asked about: differences from the members, orders and policy as they are.

use std::collections::BTreeSet;

use common::WorkerId;
use common::driver::DriverName;
use coordinator_core::orders::OrderOp;
use coordinator_core::planner::{Spread, Strategy};

/// A worker that would join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joiner {
    /// Its name. One of a member stands in its place.
    pub id: WorkerId,
    /// Its weight.
    pub weight: u32,
    /// Failure zone.
    pub zone: String,
    /// Host; one of its own when empty.
    pub host: String,
    /// Drivers, each with what the workers say that offer it; all there are when empty.
    pub drivers: Vec<DriverName>,
}

/// What a plan takes for given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlanAssumptions {
    /// Workers that are gone.
    pub leave: BTreeSet<WorkerId>,
    /// Failure zones that are gone.
    pub lost_zones: BTreeSet<String>,
    /// Workers that joined.
    pub join: Vec<Joiner>,
    /// Orders that were given or taken back.
    pub orders: Vec<OrderOp>,
    /// Another strategy.
    pub strategy: Option<Strategy>,
    /// Another width of the band.
    pub band: Option<f64>,
    /// Something else that is spread over zones.
    pub spread: Option<Spread>,
}

/// Which moves of a plan are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanPart {
    /// Number of the first one.
    pub first: usize,
    /// How many at most.
    pub size: usize,
    /// The plan that the ones before were of; any when absent.
    pub of: Option<String>,
}

/// A plan that is to be applied, as it was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownPlan {
    /// Its id.
    pub id: String,
    /// The version of the table that it was made from.
    pub version: String,
}
