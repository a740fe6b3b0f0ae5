//! Sets up what a worker runs with: the drivers that its configuration names, each with the protocol of its instances.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::driver::DriverName as Name;
use common::{Term, WorkerId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::Config;
use crate::drivers::kubernetes::{self, KubernetesDriver};
use crate::drivers::measured::Measured;
use crate::drivers::openstack::{self, OpenStackDriver};
use crate::drivers::process::{self, ProcessDriver};
use crate::drivers::simulated::{self, Simulated};
use crate::error::Error;
use crate::kinds::Standard;
use crate::offer::{Drivers, Offer};

/// How often tombstones of deleted appliances are looked through.
const SWEEP: Duration = Duration::from_secs(3600);

/// Sets up the drivers that the configuration names. `stop` ends what goes on beside them.
///
/// # Errors
/// The driver that cannot be used, and why.
pub(crate) async fn drivers(
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
                let driver = Measured::new(process::NAME, Arc::new(process));
                Offer { driver: Arc::new(driver), protocol: Arc::new(protocol) }
            }
            simulated::NAME => {
                let simulated = Arc::new(Simulated::new(config.simulated.clone()).map_err(failed)?);
                let driver = Measured::new(simulated::NAME, Arc::clone(&simulated) as _);
                Offer { driver: Arc::new(driver), protocol: simulated }
            }
            kubernetes::NAME => {
                let settings = config.kubernetes.clone();
                let pods = KubernetesDriver::new(settings, worker.clone(), stop).await.map_err(failed)?;
                tokio::spawn(pods.clone().sweep(stop.clone()));
                let protocol = Standard::new().map_err(failed)?;
                let driver = Measured::new(kubernetes::NAME, Arc::new(pods));
                Offer { driver: Arc::new(driver), protocol: Arc::new(protocol) }
            }
            openstack::NAME => {
                let servers = OpenStackDriver::new(config.openstack.clone(), stop).map_err(failed)?;
                let protocol = Standard::new().map_err(failed)?.with_metadata(config.metadata_proxy.advertised());
                let driver = Measured::new(openstack::NAME, Arc::new(servers));
                Offer { driver: Arc::new(driver), protocol: Arc::new(protocol) }
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
