//! Which instances this worker holds, by the addresses that they are managed at: for parts that serve instances and have to know who asks.
//!
//! The runner writes it, and nothing else. It is about the present life: while the lease does not stand it answers nobody, since another worker
//! may hold the instances by then and an address may be that of another one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use common::ApplianceId;
use common::kind::KindSpec;
use common::kind::router::NetworkRole;
use worker_core::desired::Desired;

use crate::drivers::openstack;
use crate::gate::SharedGate;

/// An appliance that has an instance at an address.
#[derive(Clone, Debug)]
pub struct HeldAppliance {
    /// Which.
    pub appliance: ApplianceId,
    /// What it shall be.
    pub desired: Arc<Desired>,
}

impl HeldAppliance {
    /// The networks that its instances serve: those of its ports, without the external one of a router, where others have their addresses.
    #[must_use]
    pub fn inner_networks(&self) -> BTreeSet<&str> {
        let spec = &self.desired.spec;
        let external: BTreeSet<_> = match &spec.kind {
            KindSpec::Router(router) => {
                let external = router.networks.iter().filter(|network| network.role == NetworkRole::External);
                external.map(|network| &network.port).collect()
            }
            _ => BTreeSet::new(),
        };
        let external: BTreeSet<_> =
            spec.ports.iter().filter(|port| external.contains(&port.name)).map(|port| port.network.as_str()).collect();
        let all = spec.ports.iter().map(|port| port.network.as_str());
        all.filter(|network| !external.contains(network)).collect()
    }
}

/// Why it is not said which appliance is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotHeld {
    /// The lease does not stand.
    NoLease,
    /// No instance that is held here has the address.
    Nobody,
    /// Two appliances claim it.
    Two,
}

/// The table. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct HeldInstances(Arc<RwLock<Table>>);

#[derive(Debug, Default)]
struct Table {
    gate: Option<Arc<SharedGate>>,
    appliances: HashMap<ApplianceId, Addressed>,
    by_address: BTreeMap<IpAddr, BTreeSet<ApplianceId>>,
}

#[derive(Debug)]
struct Addressed {
    desired: Arc<Desired>,
    addresses: Vec<IpAddr>,
}

impl HeldInstances {
    /// The appliance that has an instance at an address.
    ///
    /// # Errors
    /// [`NotHeld`].
    pub fn at(&self, address: IpAddr) -> Result<HeldAppliance, NotHeld> {
        let table = self.read();
        if !table.gate.as_ref().is_some_and(|gate| gate.lease_stands()) {
            return Err(NotHeld::NoLease);
        }
        let mut claimants = table.by_address.get(&address.to_canonical()).into_iter().flatten();
        let appliance = *claimants.next().ok_or(NotHeld::Nobody)?;
        if claimants.next().is_some() {
            return Err(NotHeld::Two);
        }
        let held = table.appliances.get(&appliance).ok_or(NotHeld::Nobody)?;
        Ok(HeldAppliance { appliance, desired: Arc::clone(&held.desired) })
    }

    /// A life begins, in which nothing is held yet.
    pub(crate) fn begin(&self, gate: Arc<SharedGate>) {
        *self.write() = Table { gate: Some(gate), ..Table::default() };
    }

    /// Notes where the instances of an appliance are. Cheap where nothing has changed, as after most probes.
    pub(crate) fn note<'a>(
        &self,
        appliance: ApplianceId,
        desired: &Arc<Desired>,
        addresses: impl Iterator<Item = IpAddr> + Clone + 'a,
    ) {
        if desired.driver.as_str() != openstack::NAME {
            return;
        }
        let addresses = addresses.map(|address| address.to_canonical());
        if let Some(known) = self.read().appliances.get(&appliance)
            && Arc::ptr_eq(&known.desired, desired)
            && known.addresses.iter().copied().eq(addresses.clone())
        {
            return;
        }
        let mut table = self.write();
        table.remove(appliance);
        let addresses: Vec<_> = addresses.collect();
        for address in &addresses {
            table.by_address.entry(*address).or_default().insert(appliance);
        }
        table.appliances.insert(appliance, Addressed { desired: Arc::clone(desired), addresses });
    }

    /// The appliance is not held any more.
    pub(crate) fn forget(&self, appliance: ApplianceId) {
        if self.read().appliances.contains_key(&appliance) {
            self.write().remove(appliance);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn remove(&mut self, appliance: ApplianceId) {
        let Some(known) = self.appliances.remove(&appliance) else { return };
        for address in known.addresses {
            if let Some(claimants) = self.by_address.get_mut(&address) {
                claimants.remove(&appliance);
                if claimants.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use common::Edition;
    use common::appliance::{Name, Spec, Timing};
    use common::kind::{Router, RouterNetwork};
    use common::network_port::NetworkPort;
    use runtime::clock;

    use super::*;

    /// A router between the networks `id-ext` and `id-int`.
    pub(crate) fn router(driver: &str) -> Arc<Desired> {
        let name = |text: &str| Name::new(text).expect("a name");
        let port =
            |text: &str| NetworkPort { name: name(text), network: format!("id-{text}"), addresses: vec![], mac: None };
        let network = |text: &str, role| RouterNetwork {
            port: name(text),
            role,
            addresses: vec![],
            mtu: None,
            subnets: vec![],
            allocations: vec![],
        };
        let networks = vec![network("ext", NetworkRole::External), network("int", NetworkRole::Internal)];
        let kind = KindSpec::Router(Router { networks, ..Router::default() });
        let ports = vec![port("ext"), port("int")];
        let spec =
            Spec { replicas: 1, probe_interval: None, timing: Timing::default(), image: None, pod: None, ports, kind };
        Arc::new(Desired {
            name: name("r1"),
            tenant: name("t1"),
            driver: driver.parse().expect("a driver"),
            edition: Edition::default(),
            revision: 0,
            deleting: false,
            spec,
        })
    }

    /// A table of a life whose lease stands.
    pub(crate) fn standing() -> (HeldInstances, Arc<SharedGate>) {
        let (held, gate) = (HeldInstances::default(), SharedGate::new());
        gate.extend(clock::now() + Duration::from_secs(3_600));
        held.begin(Arc::clone(&gate));
        (held, gate)
    }

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn an_address_is_that_of_an_appliance_while_it_is_held_and_the_lease_stands() {
        let (held, gate) = standing();
        let (a, b) = (ApplianceId::from_u128(1), ApplianceId::from_u128(2));
        let note = |id, addresses: &[IpAddr]| held.note(id, &router("openstack"), addresses.iter().copied());
        let at = |last| held.at(address(last)).map(|found| found.appliance);
        note(a, &[address(1), address(2)]);
        assert_eq!((at(1), at(2), at(3)), (Ok(a), Ok(a), Err(NotHeld::Nobody)));
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("an address");
        assert_eq!(held.at(mapped).map(|found| found.appliance), Ok(a), "as a socket for both versions says it");
        note(a, &[address(2)]);
        assert_eq!((at(1), at(2)), (Err(NotHeld::Nobody), Ok(a)));
        note(b, &[address(2)]);
        assert_eq!(at(2), Err(NotHeld::Two), "an address that was given again is of neither");
        held.forget(a);
        assert_eq!(at(2), Ok(b));
        gate.shut();
        assert_eq!(at(2), Err(NotHeld::NoLease));
        let (_, next) = standing();
        held.begin(next);
        assert_eq!(at(2), Err(NotHeld::Nobody), "nothing of the former life is left");
    }

    #[test]
    fn instances_of_other_drivers_are_not_listed() {
        let (held, _gate) = standing();
        held.note(ApplianceId::from_u128(1), &router("simulated"), [address(1)].into_iter());
        assert_eq!(held.at(address(1)).err(), Some(NotHeld::Nobody));
    }

    #[test]
    fn the_external_network_of_a_router_is_none_that_it_serves() {
        let held = HeldAppliance { appliance: ApplianceId::from_u128(1), desired: router("openstack") };
        assert_eq!(held.inner_networks(), ["id-int"].into());
    }
}
