//! What the behaviour of the assignments depends on, in canonical form (see [`common::canon`]).

use std::collections::BTreeMap;

use common::canon::{Canon, Canonical};

use super::{Assignment, Assignments};

impl Canonical for Assignments {
    fn canon(&self, to: &mut Canon) {
        let Self {
            incarnation,
            term,
            stream,
            welcomed,
            version,
            highest_term,
            claimed_term,
            held,
            disowned,
            // Made of the held ones that are not disowned.
            digest: _,
            released,
            removed,
            seen,
        } = self;
        to.put(&(incarnation, term));
        to.stream(*incarnation, *stream);
        to.put(&(welcomed, version, highest_term));
        to.put(claimed_term);
        to.put(held);
        to.put(disowned);
        to.put(released);
        to.put(removed);
        to.put(&seen.iter().map(|(id, token)| (*id, *token)).collect::<BTreeMap<_, _>>());
    }
}

impl Canonical for Assignment {
    fn canon(&self, to: &mut Canon) {
        let Self { token, edition, releasing, mode, refused } = self;
        to.put(&(token, edition, releasing));
        to.put(mode);
        to.put(&u32::from(*refused));
    }
}
