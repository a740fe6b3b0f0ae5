//! The drivers a worker offers, each with the protocol of its instances. What a worker publishes about them is read off
//! the drivers themselves. [`build`] sets up those that the configuration names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use common::driver::{DriverCapabilities, DriverName as Name, DriverOffers};
use common::{Term, WorkerId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::drivers::process::{self, ProcessDriver};
use crate::drivers::simulated::{self, Simulated};
use crate::drivers::{Driver, DriverFencing, Error};
use crate::kinds::{Protocol, Standard};

/// How often tombstones of deleted appliances are looked through.
const SWEEP: Duration = Duration::from_secs(3600);

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
            fence_delay: match driver.fencing() {
                DriverFencing::Token => None,
                DriverFencing::Delay(delay) => Some(delay),
            },
            plugs_ports: driver.plugs_ports(),
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

/// Sets up the drivers that the configuration names. `stop` ends what goes on beside them.
///
/// # Errors
/// The driver that cannot be used, and why.
pub(crate) fn build(
    config: &Config,
    worker: &WorkerId,
    term: &watch::Receiver<Term>,
    stop: &CancellationToken,
) -> Result<Drivers, (Name, Error)> {
    let mut offers = BTreeMap::new();
    for name in &config.drivers {
        let failed = |error| (name.clone(), error);
        let offer = match name.as_str() {
            process::NAME => {
                let process = ProcessDriver::new(config.process.clone(), worker.clone()).map_err(failed)?;
                tokio::spawn(sweep(process.clone(), term.clone(), stop.clone()));
                let protocol = Standard::new().map_err(failed)?;
                Offer { driver: Arc::new(process), protocol: Arc::new(protocol) }
            }
            simulated::NAME => {
                let simulated = Arc::new(Simulated::new(config.simulated.clone()).map_err(failed)?);
                Offer { driver: Arc::clone(&simulated) as _, protocol: simulated }
            }
            _ => return Err(failed(Error::Refused("this program has no such driver".to_owned()))),
        };
        offers.insert(name.clone(), offer);
    }
    Ok(offers.into())
}

/// Removes tombstones of token files that no owner can need any more.
async fn sweep(process: ProcessDriver, term: watch::Receiver<Term>, stop: CancellationToken) {
    let mut timer = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        let term = *term.borrow();
        match process.cleanup(term).await {
            Ok(0) => {}
            Ok(removed) => info!(removed, "removed tombstones of deleted appliances"),
            Err(problem) => warn!("look through tombstones: {problem}"),
        }
    }
}
