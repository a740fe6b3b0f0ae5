//! What the behaviour of greetings depends on.

use common::canon::{Canon, Canonical};

use super::{Greetings, Parked};

impl Canonical for Greetings {
    fn canon(&self, to: &mut Canon) {
        // Terms may always end at once here, so that no claim waits; and the service gives lives, not the leader.
        let Self { parked, newest, claims: _, newcomers: _ } = self;
        to.put(&parked.len());
        for (conn, Parked { life, envelope, hello, until }) in parked {
            to.put(life);
            to.conn(*conn);
            to.put(envelope);
            to.put(hello);
            to.until(*until);
        }
        to.put(&newest.len());
        for (life, stream) in newest {
            to.put(life);
            to.stream(Some(life.incarnation), *stream);
        }
    }
}
