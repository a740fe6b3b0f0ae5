//! What the behaviour of the gate depends on, in canonical form (see [`common::canon`]). Left out: the margin, a setting.

use common::canon::{Canon, Canonical};
use common::mutant::{self, Mutant};

use super::{Gate, Grant, MODE_OF_MUTANT};

impl Canonical for Gate {
    fn canon(&self, to: &mut Canon) {
        let Self { deadline, ended, margin: _, grants } = self;
        to.until(*deadline);
        to.put(ended);
        to.put(&grants.len());
        for (appliance, Grant { token, fence_delay_until, hands_off }) in grants {
            to.put(&(appliance, token));
            to.until(*fence_delay_until);
            to.put(&hands_off.is_some());
            if let Some(since) = hands_off.filter(|_| mutant::is(Mutant::ModeEndedByWorker)) {
                to.until(since + MODE_OF_MUTANT);
            }
        }
    }
}
