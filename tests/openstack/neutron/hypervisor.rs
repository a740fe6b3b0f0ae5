//! A stand-in for a hypervisor: Nova's fake driver says that servers run, and this runs them.
//!
//! For every server of Rug's there is a network namespace with an interface for each port that is plugged into it, with the port's hardware
//! address, on a bridge for its network; in it runs `rug-appliance` at the management address, with the secret of the server. Management
//! addresses are reached from the host. Needs root, as the laboratory does.
//!
//! A server can be made to behave badly: [`Hypervisor::stop`], [`Hypervisor::kill`], [`Hypervisor::lose_interface`],
//! [`Hypervisor::boot_time`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use openstack::{Client, Port, ResourceId, Server, ServerStatus};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tests::cluster::binaries;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Between two looks at what Nova and Neutron say.
const LOOK: Duration = Duration::from_millis(1_500);

/// Runs `ip`.
fn ip(args: &str) -> Result<()> {
    let words: Vec<_> = args.split_whitespace().collect();
    let done = Command::new("ip").args(words).output().context("run ip")?;
    ensure!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}

/// The first eight characters of an id: names of interfaces are short.
fn short(id: &str) -> &str {
    &id[..8]
}

/// Removes what tests have left that were killed: a second route to the management network would lead nowhere.
fn remove_leftovers() -> Result<()> {
    let list = |args: &[&str]| -> Result<Vec<String>> {
        let done = Command::new("ip").args(args).output().context("run ip")?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    };
    let is_left = |name: &str, before: &str| {
        let pid: String =
            name.strip_prefix(before).unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
        !pid.is_empty() && !PathBuf::from(format!("/proc/{pid}")).exists()
    };
    for namespace in list(&["netns", "list"])?.iter().filter(|name| is_left(name, "rh")) {
        for pid in list(&["netns", "pids", namespace])? {
            drop(Command::new("kill").args(["-9", &pid]).status());
        }
        ip(&format!("netns del {namespace}"))?;
    }
    for bridge in list(&["-br", "link", "show", "type", "bridge"])?.iter().filter(|name| name.starts_with("brh")) {
        ensure!(is_left(bridge, "brh"), "{bridge} is that of another test, which has the same management network");
        ip(&format!("link del {bridge}"))?;
    }
    Ok(())
}

/// One server that runs.
struct Machine {
    namespace: String,
    folder: TempDir,
    appliance: Option<Child>,
    /// When it is to be started.
    at: Instant,
    /// Interfaces, by the port that they are.
    interfaces: BTreeMap<ResourceId, String>,
    /// Ports whose interfaces were taken away.
    lost: BTreeSet<ResourceId>,
    made: usize,
}

#[derive(Default)]
struct State {
    machines: BTreeMap<ResourceId, Machine>,
    boot_time: Duration,
    /// What went wrong last, for people.
    problem: Option<String>,
}

struct Shared {
    client: Client,
    cluster: String,
    management: ResourceId,
    /// What the names of its namespaces and bridges begin with.
    prefix: String,
    state: Mutex<State>,
}

/// Runs servers until it is dropped.
pub(crate) struct Hypervisor {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// A host in a network, beside the servers there.
pub(crate) struct Host {
    namespace: String,
}

impl Hypervisor {
    /// Runs the servers of this installation of Rug.
    pub(crate) async fn start(client: Client, cluster: &str, management: &str) -> Result<Self> {
        let network =
            client.network().networks(&[("name", management)]).await?.pop().context("no management network")?;
        let subnet =
            client.network().subnets(&[("network_id", network.id.as_str())]).await?.pop().context("no subnet")?;
        let prefix = format!("rh{}", std::process::id());
        // The host's own address in the management network is one that Neutron does not give: the last one.
        let (base, length) = subnet.cidr.split_once('/').context("no prefix")?;
        let IpAddr::V4(base) = base.parse()? else { anyhow::bail!("no IPv4") };
        let host = u32::from(base) | (u32::MAX >> length.parse::<u32>()?);
        let host = std::net::Ipv4Addr::from(host - 1);
        let shared =
            Shared { client, cluster: cluster.to_owned(), management: network.id, prefix, state: Mutex::default() };
        remove_leftovers()?;
        let bridge = shared.bridge(&shared.management);
        ip(&format!("netns add {}", shared.switch()))?;
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("addr add {host}/{length} dev {bridge}"))?;
        ip(&format!("link set {bridge} up"))?;
        let shared = Arc::new(shared);
        let task = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                loop {
                    if let Err(error) = shared.look().await {
                        shared.lock().problem = Some(format!("{error:#}"));
                    }
                    sleep(LOOK).await;
                }
            }
        });
        Ok(Self { shared, task })
    }

    /// How long servers that come now take until their appliance runs.
    pub(crate) fn boot_time(&self, time: Duration) {
        self.shared.lock().boot_time = time;
    }

    /// Stops the appliance of a server where it is: it answers nothing any more.
    pub(crate) fn stop(&self, server: &str) -> Result<()> {
        self.signal(server, Signal::STOP)
    }

    /// Kills the appliance of a server. Nova goes on to say that the server is ACTIVE.
    pub(crate) fn kill(&self, server: &str) -> Result<()> {
        self.signal(server, Signal::KILL)
    }

    fn signal(&self, server: &str, signal: Signal) -> Result<()> {
        let state = self.shared.lock();
        let machine = state.machines.get(&server.parse::<ResourceId>()?).context("there is no such server")?;
        let child = machine.appliance.as_ref().context("its appliance does not run")?;
        kill_process(Pid::from_child(child), signal)?;
        Ok(())
    }

    /// Takes the interface of a port away from its server. Neutron and Nova go on to say that it is plugged.
    pub(crate) fn lose_interface(&self, server: &str, port: &ResourceId) -> Result<()> {
        let mut state = self.shared.lock();
        let machine = state.machines.get_mut(&server.parse::<ResourceId>()?).context("there is no such server")?;
        let name = machine.interfaces.remove(port).context("it is not plugged")?;
        machine.lost.insert(port.clone());
        ip(&format!("-n {} link del {name}", machine.namespace))
    }

    /// Runs a command in the namespace of a server, and answers what it printed.
    pub(crate) fn inside(&self, server: &str, command: &[&str]) -> Result<String> {
        let state = self.shared.lock();
        let machine = state.machines.get(&server.parse::<ResourceId>()?).context("there is no such server")?;
        let done = Command::new("ip").args(["netns", "exec", &machine.namespace]).args(command).output()?;
        ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// The configuration that the appliance of a server has accepted.
    pub(crate) fn configuration(&self, server: &Server) -> Result<Value> {
        let noted = |name: &str| server.metadata.get(name).with_context(|| format!("no {name}"));
        let address = format!("http://{}:{}/v1/system/config", noted("rug_management")?, noted("rug_management_port")?);
        let done = Command::new("curl")
            .args(["-sS", "-f", "-m", "5", "-H", &format!("Authorization: Bearer {}", noted("rug_secret")?), &address])
            .output()?;
        ensure!(done.status.success(), "{address}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(serde_json::from_slice(&done.stdout)?)
    }

    /// How many servers run, and what is wrong with the hypervisor if anything is.
    pub(crate) fn machines(&self) -> (usize, Option<String>) {
        let state = self.shared.lock();
        (state.machines.len(), state.problem.clone())
    }

    /// Puts a host into a network, at this address and behind this gateway.
    pub(crate) fn host(&self, network: &str, address: &str, gateway: Option<&str>) -> Result<Host> {
        let namespace = format!("{}-{}", self.shared.prefix, address.replace(['.', '/', ':'], "-"));
        let host = Host { namespace: namespace.clone() };
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        let outer = format!("o{}", short(&format!("{:08x}", rand::random::<u32>())));
        self.shared.plug(&outer, &network.parse()?, &namespace, "eth0", None)?;
        ip(&format!("-n {namespace} addr add {address} dev eth0"))?;
        if let Some(gateway) = gateway {
            ip(&format!("-n {namespace} route add default via {gateway}"))?;
        }
        Ok(host)
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        self.task.abort();
        let mut state = self.shared.lock();
        for (_, machine) in std::mem::take(&mut state.machines) {
            machine.end();
        }
        drop(state);
        for order in [
            format!("netns del {}", self.shared.switch()),
            format!("link del {}", self.shared.bridge(&self.shared.management)),
        ] {
            if let Err(error) = ip(&order) {
                eprintln!("left behind: {error:#}");
            }
        }
    }
}

impl Host {
    /// Whether an address answers a ping.
    pub(crate) fn reaches(&self, address: &str) -> Result<()> {
        let done = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "ping", "-n", "-c", "1", "-W", "2", address])
            .output()?;
        ensure!(done.status.success(), "{address}: {}", String::from_utf8_lossy(&done.stdout).trim());
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("netns del {}", self.namespace)) {
            eprintln!("left behind: {error:#}");
        }
    }
}

impl Machine {
    fn end(mut self) {
        if let Some(mut child) = self.appliance.take() {
            drop(child.kill());
            drop(child.wait());
        }
        // Its interfaces go with it.
        if let Err(error) = ip(&format!("netns del {}", self.namespace)) {
            eprintln!("left behind: {error:#}");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace of the bridges of all networks but that of management.
    fn switch(&self) -> String {
        format!("{}-switch", self.prefix)
    }

    fn bridge(&self, network: &ResourceId) -> String {
        if *network == self.management {
            return format!("b{}", self.prefix);
        }
        format!("br{}", short(network.as_str()))
    }

    /// Connects an interface of a namespace with a network.
    fn plug(&self, outer: &str, network: &ResourceId, namespace: &str, name: &str, mac: Option<&str>) -> Result<()> {
        let (bridge, switch) = (self.bridge(network), self.switch());
        let mac = mac.map(|mac| format!("address {mac}")).unwrap_or_default();
        if *network == self.management {
            ip(&format!("link add {outer} type veth peer name {name} netns {namespace} {mac}"))?;
            ip(&format!("link set {outer} master {bridge} up"))?;
        } else {
            if ip(&format!("-n {switch} link show {bridge}")).is_err() {
                ip(&format!("-n {switch} link add {bridge} type bridge"))?;
                ip(&format!("-n {switch} link set {bridge} up"))?;
            }
            ip(&format!("-n {switch} link add {outer} type veth peer name {name} netns {namespace} {mac}"))?;
            ip(&format!("-n {switch} link set {outer} master {bridge} up"))?;
        }
        ip(&format!("-n {namespace} link set {name} up"))
    }

    /// Makes what runs here what Nova and Neutron say that it is.
    async fn look(&self) -> Result<()> {
        let mut servers = self.client.compute().servers(&[("name", "^rug-")]).await?;
        servers.retain(|server| server.metadata.get("rug_cluster") == Some(&self.cluster));
        let ports = self.client.network().ports(&[]).await?;
        let mut state = self.lock();
        let runs = |server: &Server| server.status == ServerStatus::Active;
        let gone: Vec<_> =
            state.machines.keys().filter(|id| !servers.iter().any(|s| s.id == **id && runs(s))).cloned().collect();
        for id in gone {
            state.machines.remove(&id).into_iter().for_each(Machine::end);
        }
        for server in servers.iter().filter(|server| runs(server)) {
            if !state.machines.contains_key(&server.id) {
                let namespace = format!("{}-{}", self.prefix, short(server.id.as_str()));
                ip(&format!("netns add {namespace}"))?;
                ip(&format!("-n {namespace} link set lo up"))?;
                let machine = Machine {
                    namespace,
                    folder: TempDir::new()?,
                    appliance: None,
                    at: Instant::now() + state.boot_time,
                    interfaces: BTreeMap::new(),
                    lost: BTreeSet::new(),
                    made: 0,
                };
                state.machines.insert(server.id.clone(), machine);
            }
            let machine = state.machines.get_mut(&server.id).context("it was made")?;
            self.plug_all(machine, server, &ports)?;
            self.run(machine, server)?;
        }
        state.problem = None;
        Ok(())
    }

    /// Gives a machine the interfaces of the ports that are plugged into its server.
    fn plug_all(&self, machine: &mut Machine, server: &Server, ports: &[Port]) -> Result<()> {
        let plugged: BTreeMap<_, _> =
            ports.iter().filter(|port| port.device_id == server.id.as_str()).map(|port| (&port.id, port)).collect();
        let gone: Vec<_> = machine.interfaces.keys().filter(|id| !plugged.contains_key(id)).cloned().collect();
        for id in gone {
            let name = machine.interfaces.remove(&id).context("it was there")?;
            ip(&format!("-n {} link del {name}", machine.namespace))?;
        }
        for (id, port) in plugged {
            if machine.interfaces.contains_key(id) || machine.lost.contains(id) {
                continue;
            }
            let name = format!("eth{}", machine.made);
            self.plug(
                &format!("p{}", short(id.as_str())),
                &port.network_id,
                &machine.namespace,
                &name,
                Some(&port.mac_address),
            )?;
            machine.made += 1;
            if port.network_id == self.management {
                let address = server.metadata.get("rug_management").context("no management address")?;
                ip(&format!("-n {} addr add {address}/16 dev {name}", machine.namespace))?;
            }
            machine.interfaces.insert(id.clone(), name);
        }
        Ok(())
    }

    /// Starts the appliance of a machine when its time has come. One that was killed stays dead, as a process in a server does.
    fn run(&self, machine: &mut Machine, server: &Server) -> Result<()> {
        if machine.appliance.is_some() || Instant::now() < machine.at || machine.interfaces.is_empty() {
            return Ok(());
        }
        let noted = |name: &str| server.metadata.get(name).map(String::as_str).with_context(|| format!("no {name}"));
        let (address, port) = (noted("rug_management")?, noted("rug_management_port")?);
        let secret = machine.folder.path().join("secret");
        fs::write(&secret, noted("rug_secret")?)?;
        let state: PathBuf = machine.folder.path().join("state");
        fs::create_dir(&state)?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &machine.namespace]).arg(binaries::path("rug-appliance")?);
        command.args(["--management", &format!("{address}:{port}"), "--insecure", "--contained", "--drain-grace", "0"]);
        command.arg("--secret-file").arg(&secret).arg("--state-dir").arg(&state);
        if noted("rug_kind")? == "router" {
            command.arg("--router");
        }
        let log = fs::File::create(machine.folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        machine.appliance = Some(command.spawn()?);
        Ok(())
    }
}
