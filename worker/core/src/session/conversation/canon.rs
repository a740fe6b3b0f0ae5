//! What the behaviour of a conversation depends on, in canonical form (see [`common::canon`]).

use common::canon::{Canon, Canonical};

use super::{Conversation, StreamPhase};
use crate::session::pending::{GrantAnswer, PendingMessages};

impl Canonical for Conversation {
    fn canon(&self, to: &mut Canon) {
        // The same for every worker, and asked for by nothing that the model runs.
        let Self { settings: _, assignments, phase, pending, raised: _ } = self;
        to.put(assignments);
        match phase {
            StreamPhase::Closed => to.plain(0),
            StreamPhase::Greeting { keep } => {
                to.plain(1);
                to.put(keep);
            }
            StreamPhase::Open { drained } => {
                to.plain(2);
                to.put(drained);
            }
        }
        to.put(pending);
    }
}

impl Canonical for PendingMessages {
    fn canon(&self, to: &mut Canon) {
        let Self {
            drain,
            answers,
            begins,
            done,
            quiet,
            // That of the assignments, or 0.
            version: _,
            applied,
            // The model runs no reports.
            digest: _,
            audit_at: _,
            reports: _,
        } = self;
        to.put(drain);
        to.put(answers);
        to.put(&(begins, done, applied));
        to.put(quiet);
    }
}

impl Canonical for GrantAnswer {
    fn canon(&self, to: &mut Canon) {
        match self {
            Self::Granted(grant) => to.put(&(0_u32, grant)),
            Self::Declined(declined) => to.put(&(1_u32, declined)),
            Self::Released(release) => to.put(&(2_u32, release)),
            Self::Removed(grant) => to.put(&(3_u32, grant)),
        }
    }
}
