//! What coordinators and workers share of OpenStack: one thin, typed client, set up and bounded in one way.
//!
//! [`Client::new`] reads `clouds.yaml` or the variables `OS_*`; [`Client::compute`], [`Client::network`] and [`Client::image`] speak to the
//! services. Every call has a deadline, a turn, a token that is renewed before its end, waits as long as a service asks it to, and is traced and
//! measured ([`client`]). What went wrong is one [`Error`]: it tells apart what callers do different things about, above all whether it is
//! certain that nothing was done ([`Error::is_without_effect`]).
//!
//! Why not a library is written in `docs/decisions/0067-a-thin-client-of-openstack.md`.

mod call;
mod client;
mod clouds;
mod compute;
mod config;
mod connections;
mod error;
mod id;
mod identity;
mod image;
mod metrics;
mod network;
mod secret;

#[cfg(test)]
mod tests;

pub use self::client::{Client, Guard};
pub use self::clouds::{ApplicationCredential, Cloud, Credentials, Domain, Named, SetupError};
pub use self::compute::{Compute, Fault, Flavor, Interface, NewServer, Policy, Server, ServerGroup, ServerStatus};
pub use self::config::{ClientConfig, Service};
pub use self::error::{Error, ErrorKind, MAX_MESSAGE};
pub use self::id::{InvalidId, ResourceId};
pub use self::identity::Identity;
pub use self::image::{Image, Images};
pub use self::metrics::reference;
pub use self::network::{
    AddressPair, AllocationPool, ExternalGateway, FixedAddress, FloatingAddress, NetworkRecord, Networking, NewPort,
    Port, PortChange, Resource, Route, Router, Subnet,
};
pub use self::secret::Secret;
