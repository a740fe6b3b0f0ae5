//! What the quarantine's behaviour depends on. Left out: suspects of which no step was announced and that have no strike.
//! They make a difference to one thing only, whether their next owner is told to announce its steps, and the workers of a
//! model never do.

use common::canon::{Canon, Canonical};

use super::{Alone, Quarantine, Suspect};

impl Canonical for Quarantine {
    fn canon(&self, to: &mut Canon) {
        let Self { config: _, suspects, alone, probation } = self;
        let struck = |s: &&Suspect| s.strikes > 0 || s.quarantined || s.begun.is_some();
        for (appliance, suspect) in suspects.iter().filter(|(_, s)| struck(s)) {
            let Suspect { strikes, quarantined, held, begun } = suspect;
            to.put(appliance);
            to.put(&(strikes, quarantined));
            to.put(&(held, begun));
            for (at, _, token) in probation.iter().filter(|(_, of, _)| of == appliance) {
                to.until(*at);
                to.put(token);
            }
        }
        to.list(alone.iter().map(|(life, Alone { running, waiting })| (life, running, waiting)));
    }
}
