//! What the membership's behaviour depends on.

use common::canon::{Canon, Canonical};

use super::{Lease, Membership, ObservedLease, ObservedMember, lease_wait};

impl Canonical for Membership {
    fn canon(&self, to: &mut Canon) {
        let Self { authority, lives, current, nodes, ended, dead } = self;
        to.put(&(*authority == super::LeaseAuthority::Embedded));
        to.put(lives);
        to.put(current);
        to.put(nodes);
        to.put(ended);
        to.list(dead.iter());
    }
}

impl Canonical for Lease {
    fn canon(&self, to: &mut Canon) {
        let Self { length, seen, closed, profile, draining, stored, seal, dead } = self;
        to.put(length);
        // When it was seen matters up to the end of the wait, which is later than the end of the lease itself.
        to.after(*seen, lease_wait(*length));
        to.put(closed);
        to.put(profile);
        to.put(draining);
        to.put(stored);
        to.put(seal);
        to.put(&dead.is_some());
        dead.iter().for_each(|held| to.until(*held));
    }
}

impl Canonical for ObservedMember {
    fn canon(&self, to: &mut Canon) {
        to.put(&(&self.incarnation, &self.profile));
    }
}

impl Canonical for ObservedLease {
    fn canon(&self, to: &mut Canon) {
        to.put(&(&self.lease, &self.evicted, &self.seal));
    }
}
