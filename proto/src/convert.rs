//! The one place where wire messages become domain types and back.
//!
//! The wire is untrusted. Two kinds of sender meet here, and each gets the errors it can use:
//!
//! - users ([`admin`], [`patch`]): everything that is wrong is collected as [`Violations`] with the API's own field paths
//!   (`appliance.spec.replicas`), so that one answer names every mistake of a document;
//! - workers and coordinators ([`up`], [`down`]): the first thing that is wrong is a [`WireError`] that names message and
//!   field; the stream it came from ends. Entries that only one appliance depends on are set aside instead.
//!
//! Sizes are checked before anything is built from them. Defaults that the `.proto` files promise ("default" when empty)
//! are filled in here and nowhere else. Nothing past this module handles raw requests.
//!
//! [`Violations`]: common::appliance::Violations

pub mod admin;
pub mod down;
mod driver;
mod execution;
pub mod inquiry;
pub mod patch;
mod pod;
mod router;
pub mod run;
pub mod scalar;
mod spec;
pub mod telemetry;
pub mod up;
mod worker;

#[cfg(test)]
mod tests;

pub use driver::offers_to_wire;
pub use pod::{json_from_struct, struct_from_json};
pub use router::{ipv6_mode_from_wire, ipv6_mode_to_wire, role_to_wire};
pub use spec::{
    UnknownNumber, algorithm_from_wire, algorithm_to_wire, proxy_protocol_from_wire, proxy_protocol_to_wire,
    spec_from_wire, spec_to_wire, take_maps,
};
pub use worker::WireError;
