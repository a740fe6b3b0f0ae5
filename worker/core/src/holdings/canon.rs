//! What the behaviour of the holdings depends on, in canonical form (see [`common::canon`]).

use std::collections::BTreeMap;

use common::canon::{Canon, Canonical};

use super::{Envelope, Handed, Holding, Holdings};

impl Canonical for Holdings {
    fn canon(&self, to: &mut Canon) {
        let Self {
            incarnation,
            term,
            stream,
            welcomed,
            version,
            highest_term,
            held,
            disowned,
            // Made of the held ones that are not disowned.
            digest: _,
            released,
            gone,
            seen,
        } = self;
        to.put(&(incarnation, term));
        to.stream(*incarnation, *stream);
        to.put(&(welcomed, version, highest_term));
        to.put(held);
        to.put(disowned);
        to.put(released);
        to.put(gone);
        to.put(&seen.iter().map(|(id, token)| (*id, *token)).collect::<BTreeMap<_, _>>());
    }
}

impl Canonical for Holding {
    fn canon(&self, to: &mut Canon) {
        let Self { token, edition, releasing, refused } = self;
        to.put(&(token, edition, releasing));
        to.put(&u32::from(*refused));
    }
}

impl Canonical for Handed {
    fn canon(&self, to: &mut Canon) {
        let Self { progress, hold } = self;
        to.put(&(progress, hold));
    }
}

impl Canonical for Envelope {
    fn canon(&self, to: &mut Canon) {
        let Self { term, incarnation, stream } = self;
        to.put(&(term, incarnation));
        to.stream(Some(*incarnation), *stream);
    }
}
