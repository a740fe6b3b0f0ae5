//! Who claims which port. Appliances of host-bound drivers share the ports of their host.

use std::collections::HashMap;

use common::ApplianceId;
use common::driver::HostBoundDrivers;

use crate::record::Record;

/// Ports of a record with the fields that name them; none for drivers that give each instance an address of its own.
pub(super) fn claimed(record: &Record) -> Vec<(u16, String)> {
    if HostBoundDrivers::default().shares_ports(&record.driver) { record.spec.claimed_ports() } else { Vec::new() }
}

/// Claims by port. More than one appliance only where they run on different hosts.
#[derive(Debug, Default)]
pub(super) struct Ports(HashMap<u16, Vec<ApplianceId>>);

impl Ports {
    pub(super) fn claim(&mut self, port: u16, by: ApplianceId) {
        let claims = self.0.entry(port).or_default();
        if !claims.contains(&by) {
            claims.push(by);
        }
    }

    pub(super) fn release(&mut self, port: u16, by: ApplianceId) {
        if let Some(claims) = self.0.get_mut(&port) {
            claims.retain(|id| *id != by);
            if claims.is_empty() {
                self.0.remove(&port);
            }
        }
    }

    pub(super) fn claims(&self, port: u16) -> &[ApplianceId] {
        self.0.get(&port).map_or(&[], Vec::as_slice)
    }
}
