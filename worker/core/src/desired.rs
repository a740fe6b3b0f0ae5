//! What follows from the wanted state of an appliance for its instances.

use std::fmt::Write as _;
use std::net::SocketAddr;

use common::appliance::{Custom, Kind};
pub use common::session::Desired;
use md5::{Digest, Md5};

/// Where instance `ordinal` serves once it has this configuration, for kinds whose configuration says so: the first
/// listener of a load balancer. `None` for the others, whose address is settled when they are started.
#[must_use]
pub fn address(desired: &Desired, ordinal: u16) -> Option<SocketAddr> {
    match &desired.spec.kind {
        Kind::Loadbalancer(lb) => {
            let first = lb.listeners.first()?;
            Some(SocketAddr::new(first.address, first.port.checked_add(ordinal)?))
        }
        Kind::Custom(_) => None,
    }
}

/// Digest of everything an instance can only take on by being started anew. An instance with another digest is
/// replaced; everything else is configured in place.
///
/// Derived from the content, not from the generation, so that a change of labels, members or replicas restarts
/// nothing.
#[must_use]
pub fn boot_digest(desired: &Desired) -> String {
    let mut hash = Md5::new();
    let mut field = |name: &str, value: &str| {
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name);
        hash.update((value.len() as u64).to_be_bytes());
        hash.update(value);
    };
    field("revision", &desired.revision.to_string());
    field("image", desired.spec.image.as_deref().unwrap_or(""));
    field("kind", desired.spec.kind.name());
    if let Kind::Custom(Custom { command, args, env, port, probe: _ }) = &desired.spec.kind {
        field("command", command);
        args.iter().for_each(|arg| field("arg", arg));
        env.iter().for_each(|(name, value)| {
            field("variable", name);
            field("value", value);
        });
        field("port", &port.map(|p| p.to_string()).unwrap_or_default());
    }
    hash.finalize().iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
