//! What the instances of one appliance know of each other, for kinds whose configuration says it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

/// Another instance of the same appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Position among the replicas.
    pub ordinal: u16,
    /// Which attempt started it.
    pub attempt: u32,
    /// When it was started, as its driver tells it.
    pub started_at_unix_ms: u64,
    /// Where it is managed, as far as that is known.
    pub management: Option<IpAddr>,
}

/// Digest of the peers that an instance was told of; compared within one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerDigest(u64);

impl PeerDigest {
    /// The digest of these, in their order.
    #[must_use]
    pub fn of(peers: &[Peer]) -> Self {
        if peers.is_empty() {
            return Self::default();
        }
        let mut hash = DefaultHasher::new();
        peers.hash(&mut hash);
        Self(hash.finish())
    }
}
