//! What the behaviour of the gate depends on, in canonical form (see [`common::canon`]). Left out: the margin, a setting.

use common::canon::{Canon, Canonical};

use super::{Gate, Grant};

impl Canonical for Gate {
    fn canon(&self, to: &mut Canon) {
        let Self { deadline, ended, margin: _, grants } = self;
        to.until(*deadline);
        to.put(ended);
        to.put(&grants.len());
        for (appliance, Grant { token, fence_delay_until }) in grants {
            to.put(&(appliance, token));
            to.until(*fence_delay_until);
        }
    }
}
