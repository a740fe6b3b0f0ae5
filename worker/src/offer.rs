//! The drivers a worker offers, each with the protocol of its instances. What a worker publishes about them is read off
//! the drivers themselves.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use common::driver::{DriverCapabilities, DriverName as Name, DriverOffers};

use crate::drivers::{Driver, DriverFencing};
use crate::kinds::Protocol;

/// One driver that is offered.
#[derive(Clone)]
pub struct Offer {
    /// Runs the instances.
    pub driver: Arc<dyn Driver>,
    /// Speaks to them.
    pub protocol: Arc<dyn Protocol>,
}

/// The drivers a worker offers, by name. Clones share them.
#[derive(Clone)]
pub struct Drivers(Arc<BTreeMap<Name, Offer>>);

impl Drivers {
    /// What the worker publishes about them.
    #[must_use]
    pub fn capabilities(&self) -> DriverOffers {
        let one = |driver: &dyn Driver| DriverCapabilities {
            state_dir: driver.state_dir().map(str::to_owned),
            site: driver.site(),
            keeps_host: false,
            fence_delay: match driver.fencing() {
                DriverFencing::Token => None,
                DriverFencing::Delay(delay) => Some(delay),
            },
            plugs_ports: driver.plugs_ports(),
            judges: driver.judges(),
            logs: driver.keeps_logs(),
            kinds: driver.kinds(),
        };
        self.0.iter().map(|(name, offer)| (name.clone(), one(offer.driver.as_ref()))).collect()
    }

    pub(crate) fn offer(&self, name: &Name) -> Option<&Offer> {
        self.0.get(name)
    }
}

impl From<BTreeMap<Name, Offer>> for Drivers {
    fn from(offers: BTreeMap<Name, Offer>) -> Self {
        Self(Arc::new(offers))
    }
}

impl fmt::Debug for Drivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
