//! What the brake's behaviour depends on. Left out: since when it is frozen, which is for people.

use common::canon::{Canon, Canonical};

use super::{Brake, Config, Freeze, Missing};

impl Canonical for Brake {
    fn canon(&self, to: &mut Canon) {
        // Settings do not change within a run.
        let Self { config: Config { fraction: _, window, grace: _, settle }, live, missing, frozen, in_grace } = self;
        to.put(live);
        to.list(missing.keys());
        for Missing { since, lost, grace_ends } in missing.values() {
            // It counts up to the end of the window, and at it.
            to.after(*since, *window + std::time::Duration::from_nanos(1));
            to.put(lost);
            to.until(*grace_ends);
        }
        to.put(&frozen.is_some());
        if let Some(Freeze { since: _, last_join }) = frozen {
            to.after(*last_join, *settle);
        }
        to.put(in_grace);
    }
}
