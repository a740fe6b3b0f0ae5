//! What the behaviour of the streams depends on.

use common::canon::{Canon, Canonical};

use super::{SessionStage, WorkerSession, WorkerSessions};

impl Canonical for WorkerSessions {
    fn canon(&self, to: &mut Canon) {
        // `by_life` lists the same streams once more.
        let Self { by_conn, by_life, without_modes, greetings } = self;
        to.put(&by_conn.len());
        to.put(without_modes);
        for (conn, WorkerSession { life, stream, is_new, knows_modes, stage, outbox }) in by_conn {
            to.conn(*conn);
            to.put(&(by_life.get(life) == Some(conn)));
            to.put(life);
            to.stream(Some(life.incarnation), *stream);
            to.put(&(is_new, knows_modes));
            match stage {
                SessionStage::Storing(hello) => to.put(&(0_u32, hello)),
                SessionStage::Welcomed(hello) => to.put(&(1_u32, hello)),
                SessionStage::Settled => to.plain(2),
            }
            to.put(outbox);
        }
        to.put(greetings);
    }
}
