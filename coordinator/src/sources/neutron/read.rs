//! Reads what Neutron has: of one router, in a handful of calls; of all, in five listings.

use std::collections::BTreeSet;

use ::neutron::state::{GATEWAY_OWNER, INTERFACE_OWNERS, Snapshot};
use openstack::{Client, Error, Port, ResourceId};

/// Ids that one listing is asked for: more would make an address too long.
const AT_ONCE: usize = 100;

/// One router with everything that belongs to it; `None` if there is no such router. `allocations`: also the ports of others in its
/// networks.
pub(super) async fn read_router(
    client: &Client,
    id: &ResourceId,
    allocations: bool,
) -> Result<Option<Snapshot>, Error> {
    let network = client.network();
    let Some(router) = network.router(id).await? else { return Ok(None) };
    let mut ports = network.ports(&[("device_id", id.as_str())]).await?;
    let floating = network.floating_addresses(&[("router_id", id.as_str())]).await?;
    let gateway = router.external_gateway_info.as_ref().map(|gateway| &gateway.network_id);
    let ids: BTreeSet<_> = ports.iter().map(|port| &port.network_id).chain(gateway).cloned().collect();
    let (mut networks, mut subnets, mut neighbours) = (Vec::new(), Vec::new(), Vec::new());
    let ids: Vec<_> = ids.into_iter().collect();
    for some in ids.chunks(AT_ONCE) {
        let of = |name: &'static str| some.iter().map(|id| (name, id.as_str())).collect::<Vec<_>>();
        networks.extend(network.networks(&of("id")).await?);
        subnets.extend(network.subnets(&of("network_id")).await?);
        let inner: Vec<_> =
            of("network_id").into_iter().filter(|(_, id)| gateway.is_none_or(|g| g.as_str() != *id)).collect();
        if allocations && !inner.is_empty() {
            neighbours.extend(network.ports(&inner).await?);
        }
    }
    ports.extend(neighbours);
    Ok(Some(Snapshot::new(vec![router], networks, subnets, ports, floating)))
}

/// All routers, with everything that belongs to them.
pub(super) async fn read_all(client: &Client, allocations: bool) -> Result<Snapshot, Error> {
    let network = client.network();
    // The routers last: what one of them names was there before, so that what belongs to it was not listed too early.
    let networks = network.networks(&[]).await?;
    let subnets = network.subnets(&[]).await?;
    let ports = if allocations { network.ports(&[]).await? } else { ports_of_routers(client).await? };
    let floating = network.floating_addresses(&[]).await?;
    let routers = network.routers(&[]).await?;
    Ok(Snapshot::new(routers, networks, subnets, ports, floating))
}

async fn ports_of_routers(client: &Client) -> Result<Vec<Port>, Error> {
    let owners = INTERFACE_OWNERS.iter().chain([&GATEWAY_OWNER]);
    client.network().ports(&owners.map(|owner| ("device_owner", *owner)).collect::<Vec<_>>()).await
}
