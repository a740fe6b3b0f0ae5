//! What the behaviour of the streams depends on.

use common::canon::{Canon, Canonical};

use super::super::{Held, Hello, Said};
use super::{Session, Sessions, Stage};

impl Canonical for Sessions {
    fn canon(&self, to: &mut Canon) {
        // `by_life` lists the same streams once more.
        let Self { by_conn, by_life, newest } = self;
        to.put(&by_conn.len());
        for (conn, Session { life, stream, stage, outbox }) in by_conn {
            to.conn(*conn);
            to.put(&(by_life.get(life) == Some(conn)));
            to.put(life);
            to.stream(Some(life.1), *stream);
            match stage {
                Stage::Storing(hello) => to.put(&(0_u32, hello)),
                Stage::Welcomed(hello) => to.put(&(1_u32, hello)),
                Stage::Settled => to.plain(2),
            }
            to.put(outbox);
        }
        to.put(&newest.len());
        for (life, stream) in newest {
            to.put(life);
            to.stream(Some(life.1), *stream);
        }
    }
}

impl Canonical for Hello {
    fn canon(&self, to: &mut Canon) {
        let Self { worker, incarnation, stream, profile, held, released, gone, highest_term } = self;
        to.put(&(worker, incarnation));
        to.stream(*incarnation, *stream);
        to.put(profile);
        to.list(held.iter().map(|Held { appliance, token, edition }| (appliance, token, edition)));
        to.put(released);
        to.put(gone);
        to.put(highest_term);
    }
}

impl Canonical for Said {
    fn canon(&self, to: &mut Canon) {
        to.put(&(self.appliance, self.token, &self.handed));
    }
}
