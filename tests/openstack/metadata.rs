//! A server behind an appliance asks for its metadata, and gets it from Nova: by the reference appliance in a network namespace that has the
//! management address of the appliance's server, and the worker that holds it. Needs root, and says so and passes without.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use openstack::{NewPort, NewServer, Port, ResourceId};
use proto::admin::v1;
use serde_json::Value;
use servers::wait::until;
use tests::cluster::{api, binaries, ports};

use crate::cluster::{everything, remove_all, start};
use crate::lab::{PATIENCE, World, is_there};

/// Where servers ask.
const METADATA: &str = "http://169.254.169.254";

fn run(program: &str, args: &[&str]) -> Result<Output> {
    Command::new(program).args(args).output().with_context(|| format!("run {program}"))
}

fn ip(args: &str) -> Result<()> {
    let done = run("ip", &args.split_whitespace().collect::<Vec<_>>())?;
    ensure!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Three places: this host, where the worker is; that of the appliance; that of the server behind it. Namespaces end with it, and with them
/// the links between them.
struct Places {
    appliance: String,
    guest: String,
}

/// Address of this host on the management network: others may run the same test.
fn host() -> String {
    format!("198.18.{}.1", std::process::id() % 250)
}

impl Places {
    fn new(management: &str, inner_mac: &str, guest: &Port, gateway: &str) -> Result<Self> {
        let pid = std::process::id();
        let (host, link) = (host(), format!("rmd{pid}"));
        let places = Self { appliance: format!("rmd-{pid}-a"), guest: format!("rmd-{pid}-g") };
        let Self { appliance, guest: inner } = &places;
        for name in [appliance, inner] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        ip(&format!("link add {link} type veth peer name ge0 netns {appliance}"))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!("addr add {host}/32 dev {link}"))?;
        ip(&format!("route add {management}/32 dev {link}"))?;
        ip(&format!("-n {appliance} link set ge0 up"))?;
        ip(&format!("-n {appliance} addr add {management}/32 dev ge0"))?;
        ip(&format!("-n {appliance} route add {host}/32 dev ge0 src {management}"))?;
        ip(&format!("link add ge1 netns {appliance} type veth peer name eth0 netns {inner}"))?;
        // By these addresses the worker finds which interface is on which network.
        ip(&format!("-n {appliance} link set ge1 address {inner_mac}"))?;
        let address = guest.fixed_ips.first().context("it has an address")?.ip_address;
        ip(&format!("-n {inner} link set eth0 up"))?;
        ip(&format!("-n {inner} addr add {address}/16 dev eth0"))?;
        ip(&format!("-n {inner} route add default via {gateway}"))?;
        Ok(places)
    }

    /// Status and body of a question from one of the places.
    fn ask(&self, place: &str, url: &str, headers: &[(&str, &str)]) -> Result<(u16, String)> {
        let mut args =
            vec!["netns", "exec", place, "curl", "-sS", "--max-time", "40", "--noproxy", "*", "-w", "\n%{http_code}"];
        let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        headers.iter().for_each(|header| args.extend(["-H", header]));
        args.push(url);
        let done = run("ip", &args)?;
        ensure!(done.status.success(), "curl {url}: {}", String::from_utf8_lossy(&done.stderr));
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').context("a status")?;
        Ok((status.parse()?, body.to_owned()))
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for name in [&self.appliance, &self.guest] {
            let _ = run("ip", &["netns", "del", name]);
        }
    }
}

/// The reference appliance as a router.
struct Router(Child);

impl Router {
    /// Starts it where its worker looks for it. The worker shows a secret, of which it needs to know nothing.
    fn start(places: &Places, management: &str, state: &std::path::Path) -> Result<Self> {
        let program = binaries::path("rug-appliance")?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &places.appliance]).arg(program);
        command
            .args(["--router", "--insecure", "--management", &format!("{management}:5000"), "--state-dir"])
            .arg(state);
        Ok(Self(command.stdout(Stdio::null()).spawn()?))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A router with this address in `rug-a`.
fn router(world: &World, gateway: &str) -> Result<v1::Appliance> {
    let port = world.port("rug-a")?;
    let address = format!("{gateway}/16");
    let port = v1::NetworkPort {
        name: port.name.to_string(),
        network: port.network,
        addresses: vec![address.clone()],
        ..v1::NetworkPort::default()
    };
    let network = v1::RouterNetwork {
        port: port.name.clone(),
        role: v1::router_network::Role::Internal.into(),
        addresses: vec![address],
        ..v1::RouterNetwork::default()
    };
    let router = v1::Router { networks: vec![network], ..v1::Router::default() };
    let spec = v1::Spec {
        image: "fake".to_owned(),
        probe_interval: Some(tests::cluster::specs::duration(Duration::from_secs(1))),
        ports: vec![port],
        kind: Some(v1::spec::Kind::Router(router)),
        ..v1::Spec::default()
    };
    Ok(v1::Appliance { name: "r1".into(), driver: "openstack".into(), spec: Some(spec), ..v1::Appliance::default() })
}

/// A server of a tenant in the network of a port.
async fn guest(world: &World, network: &str) -> Result<(ResourceId, Port)> {
    let (compute, neutron) = (world.client.compute(), world.client.network());
    let network = world.port(network)?.network;
    let port = neutron.create_port(&NewPort { network, name: "guest".into(), ..NewPort::default() }).await?;
    let image = world.client.image().find("fake").await?.id.to_string();
    let flavor = compute.flavors().await?.into_iter().find(|flavor| flavor.name == "lab.tiny").context("a flavor")?;
    let wanted = NewServer {
        name: format!("guest-{}", world.cluster),
        image,
        flavor: flavor.id.to_string(),
        ports: vec![port.id.clone()],
        zone: None,
        metadata: [("of".to_owned(), world.cluster.clone())].into(),
        user_data: b"#cloud-config".to_vec(),
        config_drive: false,
        key_name: None,
        group: None,
    };
    let id = compute.create_server(&wanted).await?;
    until(PATIENCE, "the guest is ACTIVE", async || {
        let server = world.client.compute().server(&id).await?.context("it is gone")?;
        ensure!(server.status.to_string() == "ACTIVE", "{server:?}");
        Ok(())
    })
    .await?;
    Ok((id, port))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behind_an_appliance_gets_its_metadata_from_nova_and_no_others() -> Result<()> {
    if !is_there() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: making network namespaces needs root");
        return Ok(());
    }
    let (nova, shared) = (std::env::var("OSL_METADATA_URL")?, std::env::var("OSL_METADATA_SECRET")?);
    let world = World::new().await?;
    let folder = tempfile::tempdir()?;
    let secret = folder.path().join("secret");
    std::fs::write(&secret, format!("{shared}\n"))?;
    let port = ports::free();
    let proxy = format!("{}:{port}", host());
    let settings = [
        ("RUG_WORKER_METADATA_PROXY__LISTEN", format!("0.0.0.0:{port}")),
        ("RUG_WORKER_METADATA_PROXY__ADVERTISE", proxy.clone()),
        ("RUG_WORKER_METADATA_PROXY__NOVA", nova),
        ("RUG_WORKER_METADATA_PROXY__SECRET_FILE", secret.display().to_string()),
        ("RUG_WORKER_METADATA_PROXY__UNKNOWN_TIME", "0s".to_owned()),
    ];
    let mut cluster = start(&world, 1, &settings).await?;
    let pid = std::process::id();
    let gateway = format!("10.92.{}.{}", 200 + pid % 50, 1 + pid / 50 % 250);
    let id = cluster.api.create(router(&world, &gateway)?).await?.id;
    let (server, guest_port) = guest(&world, "rug-a").await?;
    let (management, inner) = until(PATIENCE, "the server of the router is ACTIVE and has its ports", async || {
        let (servers, ports) = everything(&world).await?;
        let own = servers.get(&id).and_then(|servers| servers.first()).context("no server")?;
        ensure!(own.status.to_string() == "ACTIVE", "{own:?}");
        let inner = ports.into_iter().find(|p| p.network_id == guest_port.network_id && p.device_id == own.id.as_str());
        let management = own.metadata.get("rug_management").context("it says where it is managed")?;
        Ok((management.clone(), inner.context("no port")?))
    })
    .await?;
    let places = Places::new(&management, &inner.mac_address, &guest_port, &gateway)?;
    let process = Router::start(&places, &management, &folder.path().join("appliance"))?;
    until(PATIENCE, "the router is configured", async || {
        let appliance = cluster.api.get(&id).await?;
        ensure!(api::is_configured(&appliance), "{}", api::describe(&appliance));
        Ok(())
    })
    .await?;
    let network = guest_port.network_id.to_string();
    let guest_address = guest_port.fixed_ips[0].ip_address.to_string();

    // The appliance itself, which says who asks.
    let document = format!("http://{proxy}/openstack/latest/meta_data.json");
    let by = |address: &str, network: &str| {
        let headers = [("X-Forwarded-For", address), ("X-Neutron-Network-ID", network), ("X-Instance-ID", "other")];
        places.ask(&places.appliance, &document, &headers)
    };
    until(PATIENCE, "the guest's metadata are there", async || {
        let (status, body) = by(&guest_address, &network)?;
        ensure!(status == 200, "{status} {body}");
        let document: Value = serde_json::from_str(&body)?;
        ensure!(document["uuid"] == server.as_str() && document["meta"]["of"] == world.cluster, "{body}");
        Ok(())
    })
    .await?;
    let (status, body) = by(&gateway, &network)?;
    ensure!(status == 404, "what is Rug's own is not for servers: {status} {body}");
    let other = world.port("rug-b")?.network;
    let (status, body) = by(&guest_address, &other)?;
    ensure!(status == 403, "{status} {body}");
    // Somebody else on the management network: this host.
    let stranger = run("curl", &["-s", "--noproxy", "*", "-H", "X-Forwarded-For: 10.0.0.1", &document])?;
    let text = String::from_utf8_lossy(&stranger.stdout);
    ensure!(text.starts_with("no instance that this worker holds"), "{text}");

    // The server, by the reference appliance.
    let ask = |path: &str, headers: &[(&str, &str)]| places.ask(&places.guest, &format!("{METADATA}{path}"), headers);
    let (status, body) = ask("/openstack/latest/meta_data.json", &[("X-Forwarded-For", "10.92.0.1")])?;
    ensure!(status == 200 && body.contains(server.as_str()), "{status} {body}");
    let (status, body) = ask("/latest/meta-data/instance-id", &[("X-Instance-ID", "other")])?;
    ensure!(status == 200 && body.starts_with("i-"), "{status} {body}");
    let (status, body) = ask("/openstack/latest/user_data", &[])?;
    ensure!((status, body.as_str()) == (200, "#cloud-config"), "{status} {body}");
    let (status, body) = ask("/openstack/latest/none", &[])?;
    ensure!(status == 404, "{status} {body}");

    // Another secret than Nova's, and the right one again, without a restart.
    std::fs::write(&secret, "another")?;
    let answers = async |wanted: u16| {
        until(PATIENCE, "the secret is read", async || {
            let (status, body) = ask("/latest/meta-data/instance-id", &[])?;
            ensure!(status == wanted, "{status} {body}");
            Ok(())
        })
        .await
    };
    answers(403).await?;
    std::fs::write(&secret, &shared)?;
    answers(200).await?;

    // Not while another worker may hold it: this one, started anew, has a lease and then the appliance again.
    cluster.worker("worker-1")?.kill()?;
    let (status, body) = ask("/latest/meta-data/instance-id", &[])?;
    ensure!(status == 502, "{status} {body}");
    cluster.start_all().await?;
    answers(200).await?;

    drop((process, places));
    world.client.compute().delete_server(&server).await?;
    remove_all(&cluster, &world, &[id]).await?;
    until(PATIENCE, "the guest is gone", async || {
        ensure!(world.client.compute().server(&server).await?.is_none(), "not yet");
        Ok(())
    })
    .await?;
    world.client.network().delete_port(&guest_port.id).await?;
    cluster.tolerate("metadata proxy");
    cluster.finish().await
}
