//! Roles, and the rules that give roles to the names in a certificate.
//!
//! A [`Role`] says what its holder may do; which calls that are is decided by the coordinator. A [`NameRule`] gives roles
//! to certificates by one of their names, in which one `*` may stand for a part that the roles take up: the name
//! `rug://worker/w1` with the rule `rug://worker/*` -> `worker:*` has the role `worker:w1`. What no rule matches has no
//! role, and a role is the only thing that lets anybody do something.
//!
//! The rules that apply without any configuration ([`built_in_rules`]) are here, too, because clients check the
//! certificates of coordinators by the same names.

mod name_rule;
mod role;

pub use name_rule::{NamePattern, NameRule, PatternError, SubjectName, built_in_rules};
pub use role::{InvalidRole, Role, RoleTemplate};
