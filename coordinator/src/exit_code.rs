//! Exit codes of `rug-coordinator` beside those of every program ([`runtime::program`]). Its help and docs/operations.md
//! document them.

/// The state directory or the store cannot be used, and waiting would not mend it.
pub const STATE: u8 = 3;

/// The address cannot be listened at.
pub const LISTEN: u8 = 4;

/// The store was lost to another term, or an outcome could not be found out. Starting again is safe.
pub const STORE_LOST: u8 = 5;

/// A live coordinator has its name.
pub const NAME_TAKEN: u8 = 6;
