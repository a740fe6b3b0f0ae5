//! Routers of Neutron become appliances: they are made, changed and removed with the `openstack` command, and the appliances are compared
//! with what Neutron says. The driver is `simulated`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, api};

use crate::cli::Lab;

/// How long a change in Neutron may take to arrive here.
const ARRIVES: Duration = Duration::from_secs(40);
/// Time between two listings in these tests: what notifications tell has to be here before.
const RESYNC: Duration = Duration::from_secs(25);

/// What an appliance is as a router.
fn router(appliance: &v1::Appliance) -> Result<v1::Router> {
    match appliance.spec.as_ref().and_then(|spec| spec.kind.clone()) {
        Some(v1::spec::Kind::Router(router)) => Ok(router),
        other => bail!("no router: {other:?}"),
    }
}

async fn cluster(lab: &Lab, resync: Duration) -> Result<Cluster> {
    let set = |name: &'static str, value: &str| (name, value.to_owned());
    let mut coordinator_env = vec![
        set("RUG_COORDINATOR_SOURCES__NEUTRON__ROUTERS", "true"),
        set("RUG_COORDINATOR_SOURCES__NEUTRON__DRIVER", "simulated"),
        set("RUG_COORDINATOR_SOURCES__NEUTRON__AMQP_URL", &lab.amqp),
        set("RUG_COORDINATOR_SOURCES__NEUTRON__QUEUE", &format!("rug.{}", lab.prefix)),
        set("RUG_COORDINATOR_SOURCES__NEUTRON__RESYNC_INTERVAL", &format!("{}s", resync.as_secs())),
        set("RUG_COORDINATOR_SOURCES__NEUTRON__MAX_MISSING_PERCENT", "100"),
    ];
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("OS_")) {
        coordinator_env.push((name.leak(), value));
    }
    let options = Options { workers: 1, drivers: vec!["simulated"], coordinator_env, ..Options::default() };
    Cluster::start(options).await
}

/// Waits until the appliance of a router is as it shall be.
async fn appliance(
    cluster: &Cluster,
    id: &str,
    what: &str,
    mut check: impl FnMut(&v1::Router, &v1::Appliance) -> Result<()>,
) -> Result<v1::Appliance> {
    until(ARRIVES, what, async || {
        let appliance = cluster.api.get(id).await?;
        check(&router(&appliance)?, &appliance)?;
        ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
        Ok(appliance)
    })
    .await
}

async fn gone(cluster: &Cluster, id: &str) -> Result<()> {
    until(ARRIVES, "the appliance is gone", async || match cluster.api.get(id).await {
        Err(status) if status.code() as i32 == 5 => Ok(()),
        Err(status) => bail!("{status}"),
        Ok(appliance) => bail!("{}", api::describe(&appliance)),
    })
    .await
}

#[tokio::test]
async fn routers_of_neutron_are_followed() -> Result<()> {
    let Some(lab) = Lab::find() else {
        println!("skipped: there is no OpenStack (OS_AUTH_URL, OSL_AMQP_URL)");
        return Ok(());
    };
    lab.clean();
    let net = lab.make(&["network", "create", &lab.name("in")])?;
    let subnet =
        ["subnet", "create", "--network", &net, "--subnet-range", "10.77.0.0/24", "--dns-nameserver", "192.0.2.53"];
    let subnet = lab.make(&[&subnet[..], &[&lab.name("in4")]].concat())?;
    let out = lab.make(&[
        "network",
        "create",
        "--external",
        "--provider-network-type",
        "flat",
        "--provider-physical-network",
        &lab.name("phys"),
        &lab.name("out"),
    ])?;
    lab.make(&[
        "subnet",
        "create",
        "--network",
        &out,
        "--subnet-range",
        "203.0.113.0/24",
        "--no-dhcp",
        &lab.name("out4"),
    ])?;
    let first = lab.make(&["router", "create", &lab.name("r1")])?;

    // What is there is listed when the term begins.
    let mut cluster = cluster(&lab, RESYNC).await?;
    let made = appliance(&cluster, &first, "the router that was there has an appliance", |router, _| {
        ensure!(router.networks.is_empty(), "{router:?}");
        Ok(())
    })
    .await?;
    ensure!(made.id == first && made.managed_by == format!("neutron/router/{first}"), "{made:?}");
    ensure!(made.labels.get("neutron.router") == Some(&lab.name("r1")), "{:?}", made.labels);

    // Notifications: an interface, a gateway, a floating IP, a host.
    lab.run(&["router", "add", "subnet", &first, &subnet])?;
    appliance(&cluster, &first, "the interface has arrived", |router, appliance| {
        let [network] = router.networks.as_slice() else { bail!("{router:?}") };
        ensure!(network.addresses == ["10.77.0.1/24"] && network.mtu > 0, "{network:?}");
        ensure!(network.subnets[0].dns == ["192.0.2.53"] && network.subnets[0].dhcp, "{network:?}");
        let ports = &appliance.spec.as_ref().context("a specification")?.ports;
        ensure!(ports.len() == 1 && ports[0].network == net, "{ports:?}");
        Ok(())
    })
    .await?;
    lab.run(&["router", "set", "--external-gateway", &out, &first])?;
    let host =
        lab.make(&["port", "create", "--network", &net, "--fixed-ip", "ip-address=10.77.0.9", &lab.name("host")])?;
    let floating = lab.make(&["floating", "ip", "create", "--port", &host, &out])?;
    appliance(&cluster, &first, "gateway, host and floating IP have arrived", |router, _| {
        let [external, internal] = router.networks.as_slice() else { bail!("{router:?}") };
        ensure!(external.role() == v1::router_network::Role::External && external.addresses.len() == 1, "{external:?}");
        ensure!(internal.allocations.iter().any(|a| a.hostname == "10-77-0-9.local"), "{internal:?}");
        ensure!(router.floating_ips.len() == 1 && router.floating_ips[0].fixed == "10.77.0.9", "{router:?}");
        Ok(())
    })
    .await?;
    lab.run(&["floating", "ip", "unset", "--port", &floating])?;
    lab.run(&["router", "set", "--route", "destination=10.99.0.0/16,gateway=10.77.0.9", &first])?;
    appliance(&cluster, &first, "the floating IP is gone and the route has arrived", |router, _| {
        ensure!(router.floating_ips.is_empty(), "{router:?}");
        ensure!(router.routes.len() == 1 && router.routes[0].destination == "10.99.0.0/16", "{router:?}");
        Ok(())
    })
    .await?;

    // Of this Neutron tells nobody: the next listing finds it.
    lab.run(&["router", "add", "route", "--route", "destination=10.98.0.0/16,gateway=10.77.0.9", &first])?;
    appliance(&cluster, &first, "the route that was never told has arrived", |router, _| {
        ensure!(router.routes.len() == 2, "{router:?}");
        Ok(())
    })
    .await?;

    // RabbitMQ dies, and comes back without the exchange; what happens then is told again.
    if lab.kill_rabbitmq()? {
        until(ARRIVES, "people are told", async || {
            let notes = cluster.api.status().await?.notes;
            ensure!(notes.iter().any(|note| note.contains("notifications of Neutron are not read")), "{notes:?}");
            Ok(())
        })
        .await?;
        lab.up()?;
        let second = lab.make(&["router", "create", "--ha", &lab.name("r2")])?;
        let made = appliance(&cluster, &second, "the router made after that has an appliance", |_, _| Ok(())).await?;
        ensure!(made.spec.as_ref().and_then(|spec| spec.replicas) == Some(2), "{made:?}");
        until(ARRIVES, "nobody is told any more", async || {
            let notes = cluster.api.status().await?.notes;
            ensure!(!notes.iter().any(|note| note.contains("Neutron")), "{notes:?}");
            Ok(())
        })
        .await?;
        lab.run(&["router", "delete", &second])?;
        gone(&cluster, &second).await?;
    }

    // The leader dies right after the change: the message it did not acknowledge, or the listing of its successor, has it.
    lab.run(&["router", "unset", "--external-gateway", &first])?;
    cluster.coordinator.kill()?;
    let third = lab.make(&["router", "create", "--disable", &lab.name("r3")])?;
    cluster.start_all().await?;
    appliance(&cluster, &first, "the gateway is gone", |router, _| {
        ensure!(router.networks.len() == 1, "{router:?}");
        Ok(())
    })
    .await?;
    appliance(&cluster, &third, "the router made meanwhile has an appliance", |_, _| Ok(())).await?;
    let all = cluster.api.list().await?;
    ensure!(all.len() == 2, "nothing is there twice: {all:?}");

    // Deleted while nobody listens, and while somebody does.
    cluster.coordinator.kill()?;
    lab.run(&["router", "delete", &third])?;
    cluster.start_all().await?;
    gone(&cluster, &third).await?;
    lab.clean();
    gone(&cluster, &first).await?;
    for object in [
        ["floating", "ip", "delete", &floating].as_slice(),
        &["port", "delete", &host],
        &["network", "delete", &net],
        &["network", "delete", &out],
    ] {
        let _ = lab.run(object);
    }
    cluster.tolerate("Neutron");
    cluster.tolerate("looking at a router");
    cluster.finish().await
}
