//! Who claims which port. Appliances of host-bound drivers share the ports of their host.
//!
//! Which drivers are host-bound is what workers publish ([`HostBoundDrivers`]). When that changes, other appliances claim
//! ports than before: [`Ports::learn`] says so, and all claims are made again.

use std::collections::HashMap;

use common::ApplianceId;
use common::driver::{DriverName, DriverOffers, HostBoundDrivers};

use crate::record::Record;

/// Claims by port. More than one appliance only where they run on different hosts, or were created while their driver was
/// not known to be host-bound.
#[derive(Debug, Default)]
pub(super) struct Ports {
    claims: HashMap<u16, Vec<ApplianceId>>,
    host_bound: HostBoundDrivers,
}

impl Ports {
    /// Takes in what all workers offer that are there now. Returns whether the claims have to be made again.
    pub(super) fn learn<'a>(&mut self, workers: impl IntoIterator<Item = &'a DriverOffers>) -> bool {
        !self.host_bound.learn(workers).is_empty()
    }

    /// Ports that an appliance claims, with the fields that name them; none for drivers that give each instance an address
    /// of its own.
    pub(super) fn wanted(&self, record: &Record) -> Vec<(u16, String)> {
        if self.host_bound.shares_ports(&record.driver) { record.spec.claimed_ports() } else { Vec::new() }
    }

    /// Whether any worker has said if this driver is host-bound.
    pub(super) fn is_known(&self, driver: &DriverName) -> bool {
        self.host_bound.get(driver).is_some()
    }

    /// Forgets every claim.
    pub(super) fn clear(&mut self) {
        self.claims.clear();
    }

    /// Claims what a stored appliance wants that claims nothing yet: looking for its claims first would take too long when
    /// many appliances have one port, as they may with drivers that no worker has spoken of yet.
    pub(super) fn claim_stored(&mut self, record: &Record) {
        for (port, _) in self.wanted(record) {
            self.claims.entry(port).or_default().push(record.id);
        }
    }

    pub(super) fn claim(&mut self, port: u16, by: ApplianceId) {
        let claims = self.claims.entry(port).or_default();
        if !claims.contains(&by) {
            claims.push(by);
        }
    }

    /// Frees whatever an appliance claims, also if its driver was taken for another sort then.
    pub(super) fn release_all(&mut self, record: &Record) {
        for (port, _) in record.spec.claimed_ports() {
            self.release(port, record.id);
        }
    }

    pub(super) fn release(&mut self, port: u16, by: ApplianceId) {
        if let Some(claims) = self.claims.get_mut(&port) {
            claims.retain(|id| *id != by);
            if claims.is_empty() {
                self.claims.remove(&port);
            }
        }
    }

    pub(super) fn claims(&self, port: u16) -> &[ApplianceId] {
        self.claims.get(&port).map_or(&[], Vec::as_slice)
    }
}
