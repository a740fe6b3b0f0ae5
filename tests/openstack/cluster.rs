//! Whole clusters of real processes whose appliances are servers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use openstack::{Port, Server};
use proto::admin::v1;
use rustix::process::Signal;
use servers::wait::until;
use tests::cluster::{Cluster, Options, api};
use tokio::time::Instant;

use crate::lab::{PATIENCE, World, is_there};
use crate::proxy::Deed;

/// How long many boots may take: Nova makes about one server in a second here.
const MANY: Duration = Duration::from_secs(500);

pub(crate) async fn start(world: &World, workers: u16, more: &[(&'static str, String)]) -> Result<Cluster> {
    let set = |name: &'static str, value: &str| (name, value.to_owned());
    let mut worker_env = vec![
        set("RUG_WORKER_OPENSTACK__CLUSTER", &world.cluster),
        set("RUG_WORKER_OPENSTACK__MANAGEMENT_NETWORK", "rug-management"),
        set("RUG_WORKER_OPENSTACK__IMAGE", "fake"),
        set("RUG_WORKER_OPENSTACK__FLAVOR", "lab.tiny"),
        set("RUG_WORKER_OPENSTACK__BACKEND_TIME", "5s"),
        set("RUG_WORKER_OPENSTACK__POLL_INTERVAL", "3s"),
        set("RUG_WORKER_OPENSTACK__CLIENT__REQUEST_TIMEOUT", "25s"),
        // One process of Neutron serves all of them.
        set("RUG_WORKER_OPENSTACK__BOOTS", "3"),
        set("RUG_WORKER_OPENSTACK__CLIENT__IN_FLIGHT", "6"),
        ("RUG_WORKER_OPENSTACK__CLIENT__ENDPOINTS__COMPUTE", format!("http://127.0.0.1:{}/v2.1", world.nova.port)),
        ("RUG_WORKER_OPENSTACK__CLIENT__ENDPOINTS__NETWORK", format!("http://127.0.0.1:{}", world.neutron.port)),
        set("RUG_WORKER_RUNNER__LIFECYCLE__REPLUG_TIMEOUT", "60s"),
        set("RUG_WORKER_RUNNER__LIFECYCLE__START_TIMEOUT", "120s"),
        set("RUG_WORKER_RUNNER__LIFECYCLE__OBSERVE_TIMEOUT", "40s"),
    ];
    worker_env.extend_from_slice(more);
    Cluster::start(Options { workers, drivers: vec!["openstack"], worker_env, ..Options::default() }).await
}

/// A server that runs what its image starts, with a port in each of these networks.
fn appliance(world: &World, name: &str, networks: &[&str]) -> Result<v1::Appliance> {
    let probe = v1::Probe { probe: Some(v1::probe::Probe::Process(v1::ProcessProbe {})) };
    let custom = v1::Custom { probe: Some(probe), ..v1::Custom::default() };
    let port = |network: &&str| -> Result<v1::NetworkPort> {
        let network = world.port(network)?;
        Ok(v1::NetworkPort { name: network.name.to_string(), network: network.network, ..v1::NetworkPort::default() })
    };
    let spec = v1::Spec {
        image: "fake".to_owned(),
        probe_interval: Some(tests::cluster::specs::duration(Duration::from_secs(1))),
        ports: networks.iter().map(port).collect::<Result<_>>()?,
        kind: Some(v1::spec::Kind::Custom(custom)),
        ..v1::Spec::default()
    };
    Ok(v1::Appliance { name: name.into(), driver: "openstack".into(), spec: Some(spec), ..v1::Appliance::default() })
}

/// What the cloud has of this cluster: servers by appliance, and ports.
pub(crate) async fn everything(world: &World) -> Result<(BTreeMap<String, Vec<Server>>, Vec<Port>)> {
    let mut servers: BTreeMap<String, Vec<Server>> = BTreeMap::new();
    for server in world.client.compute().servers(&[("name", "^rug-")]).await? {
        if server.metadata.get("rug_cluster") == Some(&world.cluster) {
            servers.entry(server.metadata["rug_appliance"].clone()).or_default().push(server);
        }
    }
    let about = format!("rug:{}:", world.cluster);
    let mut ports = world.client.network().ports(&[]).await?;
    ports.retain(|port| port.description.starts_with(&about));
    Ok((servers, ports))
}

/// Every appliance is configured, and has exactly one server, with exactly its ports.
async fn each_has_one(cluster: &Cluster, world: &World, ids: &[String], ports: usize, limit: Duration) -> Result<()> {
    until(limit, "every appliance is configured", async || {
        for appliance in cluster.api.list().await? {
            ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
        }
        Ok(())
    })
    .await?;
    let (servers, all_ports) = everything(world).await?;
    for id in ids {
        let own = servers.get(id).map(Vec::as_slice).unwrap_or_default();
        ensure!(own.len() == 1 && own[0].status.to_string() == "ACTIVE", "{id}: {own:?}");
        let plugged = all_ports.iter().filter(|port| port.device_id == own[0].id.as_str()).count();
        ensure!(plugged == ports, "{id} has {plugged} ports and not {ports}");
    }
    ensure!(servers.len() == ids.len(), "servers of others: {:?}", servers.keys());
    ensure!(all_ports.len() == ids.len() * ports, "{} ports and not {}", all_ports.len(), ids.len() * ports);
    Ok(())
}

/// Deletes all, and sees that nothing is left.
pub(crate) async fn remove_all(cluster: &Cluster, world: &World, ids: &[String]) -> Result<()> {
    for id in ids {
        cluster.api.delete(id).await?;
    }
    until(MANY, "everything is removed", async || {
        let left = cluster.api.list().await?;
        ensure!(left.is_empty(), "{}", left.iter().map(api::describe).collect::<Vec<_>>().join("\n"));
        Ok(())
    })
    .await?;
    let (servers, ports) = everything(world).await?;
    ensure!(servers.is_empty() && ports.is_empty(), "left: {servers:?} {ports:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_appliances_have_one_server_each_though_nova_is_slow_and_a_worker_dies_in_the_middle() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let mut cluster = start(&world, 3, &[]).await?;
    // Every third call to Nova takes five seconds, and some answers are lost.
    world.nova.next(6, "POST", "/v2.1/servers", Deed::Hold(Duration::from_secs(5)));
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(cluster.api.create(appliance(&world, &format!("vm-{n}"), &["rug-a"])?).await?.id);
    }
    until(PATIENCE, "some are being made", async || {
        let calls = world.nova.calls("POST /v2.1/servers");
        ensure!(calls >= 8, "{calls} calls");
        Ok(())
    })
    .await?;
    world.nova.next(3, "POST", "/v2.1/servers", Deed::LoseAnswer);
    cluster.worker("worker-2")?.kill()?;
    let began = Instant::now();
    each_has_one(&cluster, &world, &ids, 2, MANY).await?;
    eprintln!("20 configured {:?} after a worker was killed", began.elapsed());
    cluster.start_all().await?;
    remove_all(&cluster, &world, &ids).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_stopped_for_longer_than_its_lease_in_creates_and_deletes_does_no_harm_when_it_wakes()
-> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let mut cluster = start(&world, 2, &[]).await?;
    world.nova.next(4, "POST", "/v2.1/servers", Deed::Hold(Duration::from_secs(3)));
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(cluster.api.create(appliance(&world, &format!("vm-{n}"), &["rug-a"])?).await?.id);
    }
    until(PATIENCE, "some are being made", async || {
        let calls = world.nova.calls("POST /v2.1/servers");
        ensure!(calls >= 2, "{calls} calls");
        Ok(())
    })
    .await?;
    cluster.worker("worker-1")?.signal(Signal::STOP)?;
    until(MANY, "the other one has all", async || {
        let appliances = cluster.api.list().await?;
        let elsewhere = appliances.iter().find(|appliance| api::owner(appliance) != "worker-2");
        ensure!(elsewhere.is_none(), "{}", elsewhere.map(api::describe).unwrap_or_default());
        Ok(())
    })
    .await?;
    cluster.worker("worker-1")?.signal(Signal::CONT)?;
    each_has_one(&cluster, &world, &ids, 2, MANY).await?;
    cluster.healthy().await?;
    // And again, while what it has is removed.
    world.nova.next(3, "DELETE", "/v2.1/servers", Deed::Hold(Duration::from_secs(3)));
    for id in &ids[..4] {
        cluster.api.delete(id).await?;
    }
    until(PATIENCE, "some are being removed", async || {
        ensure!(cluster.api.list().await?.iter().any(|appliance| appliance.deleting), "not yet");
        Ok(())
    })
    .await?;
    cluster.worker("worker-2")?.signal(Signal::STOP)?;
    until(MANY, "the other one has all that is left", async || {
        let appliances = cluster.api.list().await?;
        let elsewhere = appliances.iter().find(|appliance| api::owner(appliance) != "worker-1");
        ensure!(elsewhere.is_none() && appliances.len() <= 6, "{}", elsewhere.map(api::describe).unwrap_or_default());
        Ok(())
    })
    .await?;
    cluster.worker("worker-2")?.signal(Signal::CONT)?;
    until(MANY, "two are left", async || {
        let left = cluster.api.list().await?.len();
        ensure!(left == 2, "{left}");
        Ok(())
    })
    .await?;
    each_has_one(&cluster, &world, &ids[4..], 2, MANY).await?;
    cluster.healthy().await?;
    remove_all(&cluster, &world, &ids[4..]).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_change_are_replugged_without_a_rebuild_and_a_server_that_is_gone_is_made_again() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    let world = World::new().await?;
    let cluster = start(&world, 1, &[]).await?;
    let id = cluster.api.create(appliance(&world, "vm", &["rug-a"])?).await?.id;
    each_has_one(&cluster, &world, std::slice::from_ref(&id), 2, PATIENCE).await?;
    let server = everything(&world).await?.0[&id][0].id.clone();
    cluster.api.apply(appliance(&world, "vm", &["rug-b"])?).await?;
    until(PATIENCE, "the new port is plugged and the old one gone", async || {
        let appliance = cluster.api.get(&id).await?;
        ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
        let (_, ports) = everything(&world).await?;
        let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
        ensure!(names.iter().any(|name| name.contains(":rug-b:")) && names.len() == 2, "{names:?}");
        Ok(())
    })
    .await?;
    each_has_one(&cluster, &world, std::slice::from_ref(&id), 2, PATIENCE).await?;
    ensure!(everything(&world).await?.0[&id][0].id == server, "it was rebuilt");
    // Somebody deletes the server.
    world.client.compute().delete_server(&server).await?;
    until(PATIENCE, "there is another one", async || {
        let (servers, _) = everything(&world).await?;
        let now = servers.get(&id).and_then(|own| own.first()).context("none")?;
        ensure!(now.id != server && now.status.to_string() == "ACTIVE", "{now:?}");
        Ok(())
    })
    .await?;
    each_has_one(&cluster, &world, std::slice::from_ref(&id), 2, PATIENCE).await?;
    remove_all(&cluster, &world, &[id]).await?;
    cluster.finish().await
}
