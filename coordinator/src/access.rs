//! Who may do what: callers, their roles, and the calls that each role may make.
//!
//! Pure, apart from [`tokens`], which fetches keys. A [`Principal`] is whoever makes a call, with its [`Grants`]; a
//! [`Policy`] says which those are for a certificate or a token; [`permission`] has one row for each call of every
//! service. What has no row cannot be called, and what no rule gives a role to can do nothing. Which appliances a call may
//! be about is its [`Scope`]: all, or those of the tenants that the caller edits.
//!
//! The layer around all services ([`crate::grpc`]) asks this module before anything else happens with a call.

mod config;
mod grants;
pub mod permission;
mod policy;
pub mod tokens;

#[cfg(test)]
mod tests;

pub use config::Config;
pub use grants::{Grants, Principal, Scope};
pub use permission::Permission;
pub use policy::Policy;
