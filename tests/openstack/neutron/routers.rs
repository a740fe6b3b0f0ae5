//! From a router in Neutron to packets that cross it: source `neutron`, driver `openstack`, kind `router`, with servers that really run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use openstack::{Client, ClientConfig, Port, Server};
use proto::admin::v1;
use rustix::process::Signal;
use serde_json::Value;
use tests::cluster::api::Api;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, api};
use tests::fleet::{self, Fleet};
use tokio::time::Instant;

use crate::cli::Lab;
use crate::hypervisor::Hypervisor;

/// How long it may take from a call of a tenant to a router that has done it. Each server takes seconds, and this machine is busy.
const PATIENCE: Duration = Duration::from_secs(180);

/// A cloud with Rug in it, and somebody who uses it.
struct World {
    lab: Lab,
    client: Client,
    /// Name of the installation of Rug.
    name: String,
    hypervisor: Hypervisor,
    made: Vec<[String; 2]>,
}

impl World {
    /// `None` where there is no cloud.
    async fn new() -> Result<Option<Self>> {
        let Some(lab) = Lab::find() else {
            println!("skipped: there is no OpenStack (OS_AUTH_URL, OSL_AMQP_URL)");
            return Ok(None);
        };
        runtime::tls::install_provider();
        lab.clean();
        let client = Client::new(&ClientConfig::default()).context("no cloud")?;
        let name = lab.name("rug");
        let hypervisor = Hypervisor::start(client.clone(), &name, "rug-management").await?;
        Ok(Some(Self { lab, client, name, hypervisor, made: Vec::new() }))
    }

    /// Environment of coordinators and of workers, with `more` for workers.
    fn environment(&self, more: &[(&'static str, &str)]) -> [Vec<(&'static str, String)>; 2] {
        let set = |name: &'static str, value: &str| (name, value.to_owned());
        let mut coordinators = vec![
            set("RUG_COORDINATOR_SOURCES__NEUTRON__ROUTERS", "true"),
            set("RUG_COORDINATOR_SOURCES__NEUTRON__AMQP_URL", &self.lab.amqp),
            set("RUG_COORDINATOR_SOURCES__NEUTRON__QUEUE", &format!("rug.{}", self.name)),
            set("RUG_COORDINATOR_SOURCES__NEUTRON__RESYNC_INTERVAL", "60s"),
            set("RUG_COORDINATOR_SOURCES__NEUTRON__MAX_MISSING_PERCENT", "100"),
        ];
        let mut workers = vec![
            set("RUG_WORKER_OPENSTACK__CLUSTER", &self.name),
            set("RUG_WORKER_OPENSTACK__MANAGEMENT_NETWORK", "rug-management"),
            set("RUG_WORKER_OPENSTACK__IMAGE", "fake"),
            set("RUG_WORKER_OPENSTACK__FLAVOR", "lab.tiny"),
            set("RUG_WORKER_OPENSTACK__BACKEND_TIME", "5s"),
            set("RUG_WORKER_OPENSTACK__POLL_INTERVAL", "3s"),
            set("RUG_WORKER_OPENSTACK__CLIENT__REQUEST_TIMEOUT", "25s"),
            set("RUG_WORKER_RUNNER__LIFECYCLE__PROBE_INTERVAL", "2s"),
            set("RUG_WORKER_RUNNER__LIFECYCLE__PROBE_RETRY", "500ms"),
            set("RUG_WORKER_RUNNER__LIFECYCLE__REPLUG_TIMEOUT", "60s"),
            set("RUG_WORKER_RUNNER__LIFECYCLE__START_TIMEOUT", "120s"),
            set("RUG_WORKER_RUNNER__LIFECYCLE__OBSERVE_TIMEOUT", "40s"),
        ];
        workers.extend(more.iter().map(|(name, value)| set(name, value)));
        for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with("OS_")) {
            let name: &'static str = name.leak();
            coordinators.push((name, value));
        }
        [coordinators, workers]
    }

    async fn cluster(&self, workers: u16, more: &[(&'static str, &str)]) -> Result<Cluster> {
        let [coordinator_env, worker_env] = self.environment(more);
        let options =
            Options { workers, drivers: vec!["openstack"], coordinator_env, worker_env, ..Options::default() };
        let mut cluster = Cluster::start(options).await?;
        // What is seen while a server goes, or has not come.
        cluster.tolerate("Neutron");
        Ok(cluster)
    }

    /// A network with one subnet; ids of both.
    fn network(&mut self, name: &str, range: &str, more: &[&str]) -> Result<(String, String)> {
        let network = self.lab.make(&[&["network", "create", &self.lab.name(name)], more].concat())?;
        self.made.push(["network".into(), network.clone()]);
        let arguments = ["subnet", "create", "--network", &network, "--subnet-range", range, &self.lab.name(name)];
        let subnet = self.lab.make(&arguments)?;
        Ok((network, subnet))
    }

    fn external(&mut self) -> Result<String> {
        let physical = self.lab.name("phys");
        let more = ["--external", "--provider-network-type", "flat", "--provider-physical-network", &physical];
        Ok(self.network("out", "203.0.113.0/24", &more)?.0)
    }

    /// The servers of a router, the oldest first.
    async fn servers(&self, router: &str) -> Result<Vec<Server>> {
        let mut all = self.client.compute().servers(&[("name", &format!("^rug-{router}-"))]).await?;
        all.sort_by_key(|server| server.created);
        Ok(all)
    }

    /// The ports of Rug's for a router.
    async fn ports(&self, router: &str) -> Result<Vec<Port>> {
        let about = format!("rug:{}:{router}", self.name);
        Ok(self.client.network().ports(&[("description", &about)]).await?)
    }

    /// Waits until the appliance of a router runs what its specification says, and that is what is expected.
    async fn configured(
        &self,
        api: &Api,
        router: &str,
        what: &str,
        mut check: impl FnMut(&v1::Router) -> Result<()>,
    ) -> Result<v1::Appliance> {
        let done = until(PATIENCE, what, async || {
            let appliance = api.get(router).await?;
            check(&spec(&appliance)?)?;
            ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
            let status = appliance.status.as_ref().context("a status")?;
            ensure!(status.observed_generation == appliance.generation, "{}", api::describe(&appliance));
            Ok(appliance)
        })
        .await;
        done.with_context(|| format!("the hypervisor: {:?}", self.hypervisor.machines()))
    }

    /// What the interfaces of a server have is what Neutron says of the router: every address of it, and no other.
    async fn has_what_neutron_says(&self, router: &str, server: &Server) -> Result<()> {
        let mut expected = BTreeSet::new();
        for port in self.client.network().ports(&[("device_id", router)]).await? {
            for fixed in &port.fixed_ips {
                let subnet = self.client.network().subnet(&fixed.subnet_id).await?.context("a subnet")?;
                let length = subnet.cidr.split_once('/').context("a prefix")?.1.to_owned();
                expected.insert(format!("{}/{length}", fixed.ip_address));
            }
        }
        for floating in self.client.network().floating_addresses(&[("router_id", router)]).await? {
            expected.insert(format!("{}/32", floating.floating_ip_address));
        }
        expected.insert(format!("{}/16", server.metadata["rug_management"]));
        let shown: Value = serde_json::from_str(&self.hypervisor.inside(server.id.as_str(), &["ip", "-j", "addr"])?)?;
        let addresses = shown.as_array().into_iter().flatten().filter(|link| link["ifname"] != "lo");
        let addresses = addresses.flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
        let found: BTreeSet<String> = addresses
            .filter(|address| address["scope"] == "global")
            .filter_map(|address| Some(format!("{}/{}", address["local"].as_str()?, address["prefixlen"])))
            .collect();
        ensure!(found == expected, "the server has {found:?}, and Neutron says {expected:?}");
        Ok(())
    }

    /// That address answers the host, before long.
    async fn crosses(&self, from: &crate::hypervisor::Host, to: &str) -> Result<()> {
        until(Duration::from_secs(60), &format!("{to} is reached"), async || from.reaches(to)).await
    }

    /// Nothing is left of a router.
    async fn is_gone(&self, api: &Api, router: &str) -> Result<()> {
        until(PATIENCE, "the appliance is gone", async || match api.get(router).await {
            Err(status) if status.code() as i32 == 5 => Ok(()),
            Err(status) => bail!("{status}"),
            Ok(appliance) => bail!("{}", api::describe(&appliance)),
        })
        .await?;
        let (servers, ports) = (self.servers(router).await?, self.ports(router).await?);
        ensure!(servers.is_empty() && ports.is_empty(), "left: {servers:?} {ports:?}");
        let group = format!("rug-{router}");
        let groups = self.client.compute().server_groups().await?;
        ensure!(groups.iter().all(|known| known.name != group), "its group is left");
        Ok(())
    }

    /// Removes what was made, and sees that nothing is left.
    async fn finish(self, api: &Api) -> Result<()> {
        self.lab.clean();
        until(PATIENCE, "all appliances are gone", async || {
            let left = api.list().await?;
            ensure!(left.is_empty(), "{}", left.iter().map(api::describe).collect::<Vec<_>>().join("\n"));
            Ok(())
        })
        .await?;
        until(PATIENCE, "nothing runs any more", async || {
            let (machines, problem) = self.hypervisor.machines();
            ensure!(machines == 0, "{machines} {problem:?}");
            Ok(())
        })
        .await?;
        let about = format!("rug:{}:", self.name);
        let left = self.client.network().ports(&[]).await?;
        let left: Vec<_> = left.into_iter().filter(|port| port.description.starts_with(&about)).collect();
        ensure!(left.is_empty(), "ports are left: {left:?}");
        for [sort, id] in self.made.iter().rev() {
            let order: Vec<_> = sort.split(' ').chain(["delete", id]).collect();
            let _ = self.lab.run(&order);
        }
        Ok(())
    }
}

fn spec(appliance: &v1::Appliance) -> Result<v1::Router> {
    match appliance.spec.as_ref().and_then(|spec| spec.kind.clone()) {
        Some(v1::spec::Kind::Router(router)) => Ok(router),
        other => bail!("no router: {other:?}"),
    }
}

fn networks(count: usize) -> impl FnMut(&v1::Router) -> Result<()> {
    move |router| {
        ensure!(router.networks.len() == count, "{router:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_cross_a_router_that_is_changed_killed_and_removed() -> Result<()> {
    let Some(mut world) = World::new().await? else { return Ok(()) };
    let (a, subnet_a) = world.network("a", "10.77.0.0/24", &[])?;
    let (b, subnet_b) = world.network("b", "10.78.0.0/24", &[])?;
    let out = world.external()?;
    let router = world.lab.make(&["router", "create", &world.lab.name("r1")])?;
    world.lab.run(&["router", "add", "subnet", &router, &subnet_a])?;
    let cluster = world.cluster(2, &[]).await?;

    // One interface: a server with two ports.
    world.configured(&cluster.api, &router, "one network", networks(1)).await?;
    let first = world.servers(&router).await?;
    ensure!(first.len() == 1, "{first:?}");
    let first = first[0].clone();
    let ports = world.ports(&router).await?;
    ensure!(ports.len() == 2 && ports.iter().all(|port| port.device_id == first.id.as_str()), "{ports:?}");
    let own = ports.iter().find(|port| port.name.starts_with("RUG:VRRP:")).context("a port of the network")?;
    ensure!(own.port_security_enabled == Some(false) && own.security_groups.is_empty(), "{own:?}");
    let host_a = world.hypervisor.host(&a, "10.77.0.9/24", Some("10.77.0.1"))?;
    let host_b = world.hypervisor.host(&b, "10.78.0.9/24", Some("10.78.0.1"))?;
    world.crosses(&host_a, "10.77.0.1").await?;
    ensure!(host_a.reaches("10.78.0.9").is_err(), "there is no way yet");

    // A second one is plugged into the server that runs, and packets cross.
    world.lab.run(&["router", "add", "subnet", &router, &subnet_b])?;
    world.configured(&cluster.api, &router, "two networks", networks(2)).await?;
    world.crosses(&host_a, "10.78.0.9").await?;
    world.crosses(&host_b, "10.77.0.9").await?;
    world.has_what_neutron_says(&router, &first).await?;

    // A gateway, with its translation; a floating IP.
    world.lab.run(&["router", "set", "--external-gateway", &out, &router])?;
    world.configured(&cluster.api, &router, "three networks", networks(3)).await?;
    let outside = world.hypervisor.host(&out, "203.0.113.250/24", None)?;
    world.crosses(&host_a, "203.0.113.250").await?;
    let port = world.lab.make(&[
        "port",
        "create",
        "--network",
        &a,
        "--fixed-ip",
        "ip-address=10.77.0.9",
        &world.lab.name("h"),
    ])?;
    world.made.push(["port".into(), port.clone()]);
    let floating = world.lab.make(&["floating", "ip", "create", "--port", &port, &out])?;
    world.made.push(["floating ip".into(), floating.clone()]);
    let appliance = world
        .configured(&cluster.api, &router, "a floating IP", |router| {
            ensure!(router.floating_ips.len() == 1, "{router:?}");
            Ok(())
        })
        .await?;
    let address = spec(&appliance)?.floating_ips[0].floating.clone();
    world.crosses(&outside, &address).await?;
    world.has_what_neutron_says(&router, &first).await?;

    // IPv6, a route, and an interface that goes. All of it without another server.
    let v6 = ["subnet", "create", "--ip-version", "6", "--network", &b, "--subnet-range", "fd78::/64", "v6"];
    let subnet_v6 = world.lab.make(&v6)?;
    world.lab.run(&["router", "add", "subnet", &router, &subnet_v6])?;
    world.lab.run(&["router", "set", "--route", "destination=10.99.0.0/16,gateway=10.77.0.9", &router])?;
    world
        .configured(&cluster.api, &router, "IPv6 and a route", |router| {
            let v6 = router.networks.iter().flat_map(|network| &network.addresses);
            ensure!(
                v6.filter_map(|text| text.split_once('/')?.0.parse::<IpAddr>().ok()).any(|ip| ip.is_ipv6()),
                "{router:?}"
            );
            ensure!(router.routes.len() == 1, "{router:?}");
            Ok(())
        })
        .await?;
    world.has_what_neutron_says(&router, &first).await?;
    let routes = world.hypervisor.inside(first.id.as_str(), &["ip", "route"])?;
    ensure!(routes.contains("10.99.0.0/16 via 10.77.0.9"), "{routes}");
    world.lab.run(&["router", "remove", "subnet", &router, &subnet_v6])?;
    world.lab.run(&["router", "remove", "subnet", &router, &subnet_b])?;
    world.configured(&cluster.api, &router, "two networks again", networks(2)).await?;
    world.has_what_neutron_says(&router, &first).await?;
    ensure!(host_a.reaches("10.78.0.9").is_err(), "the way is still there");
    let servers = world.servers(&router).await?;
    ensure!(servers.len() == 1 && servers[0].id == first.id, "it was rebuilt: {servers:?}");
    ensure!(world.ports(&router).await?.len() == 3, "{:?}", world.ports(&router).await?);

    // Its process is killed, which Nova does not know of; that of its successor hangs.
    for harm in [Hypervisor::kill, Hypervisor::stop] {
        let before = world.servers(&router).await?[0].clone();
        harm(&world.hypervisor, before.id.as_str())?;
        until(PATIENCE, "it has another server", async || {
            let now = world.servers(&router).await?;
            ensure!(now.len() == 1 && now[0].id != before.id, "{now:?}");
            Ok(())
        })
        .await?;
        world.configured(&cluster.api, &router, "it is repaired", networks(2)).await?;
        world.crosses(&host_a, "203.0.113.250").await?;
        world.crosses(&outside, &address).await?;
    }
    let now = world.servers(&router).await?[0].clone();
    world.has_what_neutron_says(&router, &now).await?;

    world.lab.clean();
    world.is_gone(&cluster.api, &router).await?;
    world.finish(&cluster.api).await?;
    cluster.finish().await
}

/// The priorities that the instances of a pair were told, by server.
fn priorities(world: &World, servers: &[Server]) -> Result<Vec<u64>> {
    servers
        .iter()
        .map(|server| world.hypervisor.configuration(server)?["ha_config"]["priority"].as_u64().context("a priority"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_is_repaired_and_the_one_that_is_left_forwards() -> Result<()> {
    let Some(mut world) = World::new().await? else { return Ok(()) };
    let (a, subnet_a) = world.network("a", "10.77.0.0/24", &[])?;
    let (b, subnet_b) = world.network("b", "10.78.0.0/24", &[])?;
    let router = world.lab.make(&["router", "create", "--ha", &world.lab.name("pair")])?;
    world.lab.run(&["router", "add", "subnet", &router, &subnet_a])?;
    world.lab.run(&["router", "add", "subnet", &router, &subnet_b])?;
    let cluster = world.cluster(2, &[]).await?;
    world.configured(&cluster.api, &router, "a pair", networks(2)).await?;
    let pair = world.servers(&router).await?;
    ensure!(pair.len() == 2 && world.ports(&router).await?.len() == 6, "{pair:?}");
    let host = world.hypervisor.host(&a, "10.77.0.9/24", Some("10.77.0.1"))?;
    let _other = world.hypervisor.host(&b, "10.78.0.9/24", Some("10.78.0.1"))?;
    world.crosses(&host, "10.78.0.9").await?;
    let mut told = priorities(&world, &pair)?;
    told.sort_unstable();
    ensure!(told == [50, 100], "{told:?}");
    let groups = world.client.compute().server_groups().await?;
    let group = groups.iter().find(|group| group.name == format!("rug-{router}")).context("a group")?;
    ensure!(group.members.len() == 2, "{group:?}");

    // The one that forwards dies: the other does, as soon as it is told, and a third takes the second place.
    let first =
        pair.iter().zip(priorities(&world, &pair)?).find(|(_, told)| *told == 100).context("a first")?.0.clone();
    let second = pair.iter().find(|server| server.id != first.id).context("a second")?.clone();
    world.hypervisor.kill(first.id.as_str())?;
    until(PATIENCE, "it is known to be degraded", async || {
        let appliance = cluster.api.get(&router).await?;
        let phase = appliance.status.as_ref().context("a status")?.phase();
        ensure!(phase == v1::Phase::Degraded, "{}", api::describe(&appliance));
        Ok(())
    })
    .await?;
    until(PATIENCE, "there are two again", async || {
        let now = world.servers(&router).await?;
        ensure!(now.len() == 2 && now.iter().all(|server| server.id != first.id), "{now:?}");
        let told = [
            world.hypervisor.configuration(&second)?,
            world.hypervisor.configuration(now.iter().find(|s| s.id != second.id).context("a third")?)?,
        ];
        let told = told.map(|config| config["ha_config"]["priority"].as_u64());
        ensure!(told == [Some(100), Some(50)], "{told:?}");
        Ok(())
    })
    .await?;
    world.configured(&cluster.api, &router, "it is repaired", networks(2)).await?;
    world.crosses(&host, "10.78.0.9").await?;

    // Both die.
    for server in world.servers(&router).await? {
        world.hypervisor.kill(server.id.as_str())?;
    }
    until(PATIENCE, "both are other ones", async || {
        let now = world.servers(&router).await?;
        ensure!(now.len() == 2 && now.iter().all(|server| server.id != first.id && server.id != second.id), "{now:?}");
        Ok(())
    })
    .await?;
    world.configured(&cluster.api, &router, "both are rebuilt", networks(2)).await?;
    world.crosses(&host, "10.78.0.9").await?;
    world.lab.clean();
    world.is_gone(&cluster.api, &router).await?;
    world.finish(&cluster.api).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_is_removed_whatever_is_done_with_it_at_that_moment() -> Result<()> {
    let Some(mut world) = World::new().await? else { return Ok(()) };
    let (_, subnet_a) = world.network("a", "10.77.0.0/24", &[])?;
    let (_, subnet_b) = world.network("b", "10.78.0.0/24", &[])?;
    let mut cluster = world.cluster(2, &[]).await?;
    let make = |world: &World, name: &str| -> Result<String> {
        let router = world.lab.make(&["router", "create", &world.lab.name(name)])?;
        world.lab.run(&["router", "add", "subnet", &router, &subnet_a])?;
        Ok(router)
    };
    let remove = |world: &World, router: &str, subnets: &[&str]| -> Result<()> {
        for subnet in subnets {
            world.lab.run(&["router", "remove", "subnet", router, subnet])?;
        }
        world.lab.run(&["router", "delete", router])
    };

    // While it boots: Nova has it, and it answers nothing yet.
    world.hypervisor.boot_time(Duration::from_secs(600));
    let router = make(&world, "boots")?;
    until(PATIENCE, "it has a server", async || {
        ensure!(!world.servers(&router).await?.is_empty(), "not yet");
        Ok(())
    })
    .await?;
    remove(&world, &router, &[&subnet_a])?;
    world.is_gone(&cluster.api, &router).await?;

    // While it is replugged.
    world.hypervisor.boot_time(Duration::ZERO);
    let router = make(&world, "plugs")?;
    world.configured(&cluster.api, &router, "it runs", networks(1)).await?;
    world.lab.run(&["router", "add", "subnet", &router, &subnet_b])?;
    until(PATIENCE, "it is replugged", async || {
        ensure!(world.ports(&router).await?.len() == 3, "not yet");
        Ok(())
    })
    .await?;
    remove(&world, &router, &[&subnet_a, &subnet_b])?;
    world.is_gone(&cluster.api, &router).await?;

    // While its worker dies.
    let router = make(&world, "owner-dies")?;
    world.configured(&cluster.api, &router, "it runs", networks(1)).await?;
    let owner = api::owner(&cluster.api.get(&router).await?).to_owned();
    world.lab.run(&["router", "remove", "subnet", &router, &subnet_a])?;
    world.lab.run(&["router", "delete", &router])?;
    cluster.worker(&owner)?.signal(Signal::KILL)?;
    world.is_gone(&cluster.api, &router).await?;
    cluster.worker(&owner)?.kill()?;
    world.finish(&cluster.api).await?;
    cluster.start_all().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_answers_is_given_up_and_a_rebuild_leads_out() -> Result<()> {
    let Some(mut world) = World::new().await? else { return Ok(()) };
    let (_, subnet) = world.network("a", "10.77.0.0/24", &[])?;
    let more = [
        ("RUG_WORKER_RUNNER__LIFECYCLE__BOOT_TIMEOUT", "8s"),
        ("RUG_WORKER_RUNNER__LIFECYCLE__BOOT_ATTEMPTS", "2"),
        ("RUG_WORKER_RUNNER__LIFECYCLE__ERROR_COOLDOWN", "1h"),
    ];
    let cluster = world.cluster(1, &more).await?;
    world.hypervisor.boot_time(Duration::from_secs(600));
    let router = world.lab.make(&["router", "create", &world.lab.name("mute")])?;
    world.lab.run(&["router", "add", "subnet", &router, &subnet])?;
    until(PATIENCE, "it is given up", async || {
        let appliance = cluster.api.get(&router).await?;
        let status = appliance.status.as_ref().context("a status")?;
        ensure!(status.phase() == v1::Phase::Error, "{}", api::describe(&appliance));
        ensure!(status.last_error.contains("gave no answer in time"), "{}", api::describe(&appliance));
        Ok(())
    })
    .await?;
    let servers = world.servers(&router).await?;
    ensure!(servers.len() <= 1, "more than one server: {servers:?}");
    world.hypervisor.boot_time(Duration::ZERO);
    let rebuild = async || {
        let appliance = Some(api::reference(&router));
        let rebuild = v1::RebuildApplianceRequest { appliance, ..v1::RebuildApplianceRequest::default() };
        cluster.api.appliances().rebuild(rebuild).await
    };
    rebuild().await?;
    world.configured(&cluster.api, &router, "it runs", networks(1)).await?;
    let servers = world.servers(&router).await?;
    ensure!(servers.len() == 1, "{servers:?}");

    // An interface is lost, of which Nova and Neutron know nothing: what lacks it is not configured, and people are told which it is.
    let ports = world.ports(&router).await?;
    let port = ports.iter().find(|port| port.name.starts_with("RUG:VRRP:")).context("a port of the network")?;
    world.hypervisor.lose_interface(servers[0].id.as_str(), &port.id)?;
    world.lab.run(&["router", "set", "--route", "destination=10.99.0.0/16,gateway=10.77.0.9", &router])?;
    until(PATIENCE, "people are told", async || {
        let appliance = cluster.api.get(&router).await?;
        let told = appliance.status.as_ref().context("a status")?.last_error.clone();
        ensure!(told.contains(&format!("none of its interfaces has the address {}", port.mac_address)), "{told}");
        Ok(())
    })
    .await?;
    rebuild().await?;
    world.configured(&cluster.api, &router, "it runs again", networks(1)).await?;
    let now = world.servers(&router).await?;
    ensure!(now.len() == 1 && now[0].id != servers[0].id, "{now:?}");
    world.lab.clean();
    world.is_gone(&cluster.api, &router).await?;
    world.finish(&cluster.api).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn many_routers_have_one_server_each_though_a_worker_dies_in_the_middle() -> Result<()> {
    /// Of them some are pairs; the `openstack` command takes several seconds to make one here.
    const ROUTERS: usize = 20;
    let Some(mut world) = World::new().await? else { return Ok(()) };
    let (network, subnet) = world.network("a", "10.77.0.0/16", &[])?;
    let [coordinator_env, worker_env] = world.environment(&[]);
    let options = fleet::Options {
        coordinators: 2,
        workers: 3,
        drivers: vec!["openstack"],
        coordinator_env,
        worker_env,
        ..fleet::Options::default()
    };
    let mut fleet = Fleet::start(options).await?;
    fleet.tolerate("Neutron");
    // Each has its own address in one network, by a port that is made for it.
    let orders: String = (0..ROUTERS)
        .map(|n| {
            let (router, port) = (world.lab.name(&format!("r{n}")), world.lab.name(&format!("p{n}")));
            let ha = if n % 10 == 0 { "--ha " } else { "" };
            format!("router create {ha}{router}\nport create --network {network} --fixed-ip subnet={subnet} {port}\nrouter add port {router} {port}\n")
        })
        .collect();
    let pairs = ROUTERS.div_ceil(10);
    let lab = &world.lab;
    std::thread::scope(|scope| {
        let orders = scope.spawn(|| lab.batch(&orders));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                until(PATIENCE, "half of them are under way", async || {
                    ensure!(
                        world.client.compute().servers(&[("name", "^rug-")]).await?.len() >= ROUTERS / 2,
                        "not yet"
                    );
                    Ok(())
                })
                .await?;
                fleet.worker("w2")?.kill()
            })
        })?;
        orders.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    })?;
    until(3 * PATIENCE, "all are configured", async || {
        let all = fleet.api().list().await?;
        ensure!(all.len() == ROUTERS, "{} of {ROUTERS}", all.len());
        for appliance in &all {
            ensure!(api::is_configured(appliance), "{}", api::describe(appliance));
            ensure!(spec(appliance)?.networks.len() == 1, "{}", api::describe(appliance));
        }
        Ok(())
    })
    .await?;
    let mut servers: BTreeMap<String, usize> = BTreeMap::new();
    for server in world.client.compute().servers(&[("name", "^rug-")]).await? {
        if server.metadata.get("rug_cluster") == Some(&world.name) {
            *servers.entry(server.metadata["rug_appliance"].clone()).or_default() += 1;
        }
    }
    let single = servers.values().filter(|count| **count == 1).count();
    let double = servers.values().filter(|count| **count == 2).count();
    ensure!(servers.len() == ROUTERS && single == ROUTERS - pairs && double == pairs, "{servers:?}");
    let about = format!("rug:{}:", world.name);
    let ports = world.client.network().ports(&[]).await?;
    let ports: Vec<_> = ports.into_iter().filter(|port| port.description.starts_with(&about)).collect();
    ensure!(ports.len() == 2 * (ROUTERS + pairs), "{} ports", ports.len());
    let loose: Vec<_> = ports.iter().filter(|port| port.device_id.is_empty()).collect();
    ensure!(loose.is_empty(), "orphaned: {loose:?}");
    fleet.start_all().await?;
    world.finish(fleet.api()).await?;
    fleet.finish().await
}

/// An appliance whose instances are spares for routers.
fn spares(size: i32) -> v1::Appliance {
    let kind = v1::spec::Kind::Router(v1::Router { snat: Some(true), ..v1::Router::default() });
    let spec = v1::Spec { replicas: Some(size), kind: Some(kind), ..v1::Spec::default() };
    v1::Appliance {
        name: "spare-routers".to_owned(),
        tenant: "spares".to_owned(),
        driver: "openstack".to_owned(),
        spec: Some(spec),
        ..v1::Appliance::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_take_servers_of_a_pool_which_fills_up_again_though_a_taker_dies() -> Result<()> {
    const POOL: usize = 5;
    const ROUTERS: usize = 20;
    const BOOT: Duration = Duration::from_secs(20);
    let Some(mut world) = World::new().await? else { return Ok(()) };
    let (network, subnet) = world.network("a", "10.77.0.0/16", &[])?;
    world.hypervisor.boot_time(BOOT);
    let mut cluster = world.cluster(3, &[("RUG_WORKER_OPENSTACK__SPARE_TENANTS", r#"["spares"]"#)]).await?;
    let pool = cluster.api.create(spares(i32::try_from(POOL)?)).await?.id;
    let api = Api::new(cluster.api.address())?;
    let is_full = async |what: &str| {
        until(2 * PATIENCE, what, async || {
            let appliance = api.get(&pool).await?;
            ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
            ensure!(world.servers(&pool).await?.len() == POOL, "{}", api::describe(&appliance));
            Ok(())
        })
        .await
    };
    is_full("the pool is full").await?;
    let spares: BTreeSet<_> = world.servers(&pool).await?.into_iter().map(|server| server.id).collect();

    let orders: String = (0..ROUTERS)
        .map(|n| {
            let (router, port) = (world.lab.name(&format!("r{n}")), world.lab.name(&format!("p{n}")));
            format!("port create --network {network} --fixed-ip subnet={subnet} {port}\nrouter create {router}\nrouter add port {router} {port}\n")
        })
        .collect();
    let mut began: BTreeMap<String, Instant> = BTreeMap::new();
    let mut took: BTreeMap<String, Duration> = BTreeMap::new();
    let mut killed = false;
    let lab = &world.lab;
    std::thread::scope(|scope| -> Result<()> {
        let orders = scope.spawn(|| lab.batch(&orders));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                until(3 * PATIENCE, "all routers work", async || {
                    if !killed {
                        // Whoever has claimed a server dies at this moment.
                        let ports = world.client.network().ports(&[("device_owner", "rug:instance")]).await?;
                        let claim = ports.iter().find(|port| port.name.starts_with("RUG:CLAIM:"));
                        if let Some(id) = claim.and_then(|port| port.description.rsplit(':').next()) {
                            let owner = api::owner(&cluster.api.get(id).await?).to_owned();
                            cluster.worker(&owner)?.kill()?;
                            println!(
                                "{owner} was killed with the claim {}",
                                claim.map_or("", |port| port.name.as_str())
                            );
                            killed = true;
                        }
                    }
                    let all = cluster.api.list().await?;
                    for appliance in all.iter().filter(|appliance| appliance.id != pool) {
                        let began = began.entry(appliance.id.clone()).or_insert_with(Instant::now);
                        if api::is_configured(appliance) && spec(appliance)?.networks.len() == 1 {
                            took.entry(appliance.id.clone()).or_insert_with(|| began.elapsed());
                        }
                    }
                    ensure!(took.len() == ROUTERS, "{} of {}, {ROUTERS} are wanted", took.len(), all.len());
                    Ok(())
                })
                .await
            })
        })?;
        orders.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    })?;
    ensure!(killed, "nobody claimed anything");
    cluster.start_all().await?;
    is_full("the pool is full again").await?;
    let (mut from_pool, mut booted) = (Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for (router, time) in &took {
        let servers = world.servers(router).await?;
        ensure!(servers.len() == 1 && seen.insert(servers[0].id.clone()), "{router}: {servers:?}");
        if spares.contains(&servers[0].id) { from_pool.push(*time) } else { booted.push(*time) }
    }
    for list in [&mut from_pool, &mut booted] {
        list.sort_unstable();
    }
    let median = |list: &[Duration]| list.get(list.len() / 2).copied().unwrap_or_default();
    println!(
        "with a boot of {BOOT:?}: {} from the first pool, median {:?}; {} others, median {:?}",
        from_pool.len(),
        median(&from_pool),
        booted.len(),
        median(&booted)
    );
    ensure!(from_pool.len() == POOL, "{} of {POOL} spares became routers", from_pool.len());
    let about = format!("rug:{}:", world.name);
    let ports = world.client.network().ports(&[]).await?;
    let claims: Vec<_> = ports
        .iter()
        .filter(|port| port.description.starts_with(&about) && port.name.starts_with("RUG:CLAIM:"))
        .collect();
    ensure!(claims.is_empty(), "claims are left: {claims:?}");
    cluster.api.delete(&pool).await?;
    world.finish(&cluster.api).await?;
    cluster.finish().await
}
