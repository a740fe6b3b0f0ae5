//! What the behaviour of the watch over members depends on.

use common::canon::Canon;

use super::{EVICT_AGAIN, EXPELLED, Machine, Watch};

impl Machine {
    /// Writes down what is watched of the lives besides their leases.
    pub(in crate::machine) fn canon_members(&self, to: &mut Canon) {
        let Watch {
            read,
            silent,
            expelled,
            stuck,
            evicting,
            leaving,
            handing_back,
            homecoming,
            // For people.
            departed: _,
            limited: _,
        } = &self.members;
        to.put(read);
        let unreachable = self.config.unreachable_after;
        for (limit, lives) in [(unreachable, silent), (EXPELLED, expelled), (EVICT_AGAIN, evicting)] {
            to.list(lives.keys());
            lives.values().for_each(|since| to.after(*since, limit));
        }
        to.put(stuck);
        to.put(leaving);
        to.put(handing_back);
        to.list(homecoming.keys());
        homecoming.values().for_each(|until| to.until(*until));
    }
}
