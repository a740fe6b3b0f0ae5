//! What an appliance shall be, as the leader says in a grant or an update.

use std::fmt::Write as _;
use std::net::SocketAddr;

use common::Generation;
use common::appliance::{Custom, Driver, Kind, Name, Spec};
use md5::{Digest, Md5};

/// The wanted state of one appliance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Its name, for `{name}` and for logs.
    pub name: Name,
    /// Its tenant.
    pub tenant: Name,
    /// Where its instances run.
    pub driver: Driver,
    /// Generation of `spec`; also raised by `deleting` and `revision`.
    pub generation: Generation,
    /// Raised by each rebuild; instances of a lower revision are replaced.
    pub revision: u64,
    /// It shall be removed to the last trace.
    pub deleting: bool,
    /// What it does.
    pub spec: Spec,
}

impl Desired {
    /// Where instance `ordinal` serves once it has this configuration, for kinds whose configuration says so: the first
    /// listener of a load balancer. `None` for the others, whose address is settled when they are started.
    #[must_use]
    pub fn address(&self, ordinal: u16) -> Option<SocketAddr> {
        match &self.spec.kind {
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
    pub fn boot_digest(&self) -> String {
        let mut hash = Md5::new();
        let mut field = |name: &str, value: &str| {
            hash.update((name.len() as u64).to_be_bytes());
            hash.update(name);
            hash.update((value.len() as u64).to_be_bytes());
            hash.update(value);
        };
        field("revision", &self.revision.to_string());
        field("image", self.spec.image.as_deref().unwrap_or(""));
        field("kind", self.spec.kind.name());
        if let Kind::Custom(Custom { command, args, env, port, probe: _ }) = &self.spec.kind {
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
}
