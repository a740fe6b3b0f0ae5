//! How the parts of the coordinator name an appliance to each other.

/// Index of an appliance in the table and the planner; reused after removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);
