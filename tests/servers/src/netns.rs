//! Hosts on one network that loses packets on command: network namespaces on a bridge. Needs root and iproute2.
//!
//! A directed cut points the neighbour entry of the receiver at a hardware address nobody has, so packets vanish on
//! the way as they do on a broken link: nothing is refused, nothing is reset. The test itself is on the network as
//! well ([`Network::here`]), which is where programs outside of any namespace, such as the test's own clients, live.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::folder::CleanupGuard;
use crate::ports::PortClaim;

/// Networks are 10.213.N.0/24.
const NETWORKS: (u8, u8) = (10, 213);
/// Nobody has this hardware address.
const NOBODY: &str = "02:de:ad:de:ad:01";

/// Removes the bridge `$1` and the namespaces after it.
const GUARD: &str = r#"
read -r _ || :
bridge=$1
ip link delete "$bridge"
shift
i=0
for namespace in "$@"; do
    ip link delete "$bridge-$i"
    ip netns delete "$namespace"
    i=$((i + 1))
done
"#;

/// Hosts on a bridge. Dropping it removes them; end what runs there before.
#[derive(Debug)]
pub struct Network {
    bridge: String,
    here: Host,
    hosts: Vec<Host>,
    guard: CleanupGuard,
    _claim: PortClaim,
}

/// One host of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    name: String,
    /// None: where the test itself runs.
    namespace: Option<String>,
    device: String,
    address: Ipv4Addr,
    hardware: String,
}

impl Network {
    /// Whether networks can be made here, or why not. Tried once per process.
    ///
    /// # Errors
    /// What is missing.
    pub fn available() -> Result<(), String> {
        static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
        TRIED.get_or_init(|| Self::new(&["trial"]).map(drop).map_err(|problem| format!("{problem:#}"))).clone()
    }

    /// A network of hosts with these names.
    ///
    /// # Errors
    /// When this is not root, iproute2 is missing, or the kernel refuses.
    pub fn new(names: &[&str]) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root");
        ensure!(names.len() <= 200, "a network has up to 200 hosts");
        let (number, claim) = (0..=u8::MAX)
            .find_map(|number| Some((number, PortClaim::take(&format!("network-{number}"))?)))
            .context("all networks are taken")?;
        let host = |last: u8, name: &str, namespace: Option<String>, device: String| Host {
            name: name.to_owned(),
            namespace,
            device,
            address: Ipv4Addr::new(NETWORKS.0, NETWORKS.1, number, last),
            hardware: format!("02:52:55:47:{number:02x}:{last:02x}"),
        };
        let bridge = format!("rug{number}");
        let mut hosts = Vec::new();
        for (name, last) in names.iter().zip(10..) {
            hosts.push(host(last, name, Some(format!("rug{number}-{last}")), "eth0".to_owned()));
        }
        let namespaces: Vec<&Path> = hosts.iter().filter_map(|host| host.namespace.as_deref().map(Path::new)).collect();
        let mut everything = vec![Path::new(&bridge)];
        everything.extend(namespaces);
        let guard = CleanupGuard::start(GUARD, &everything)?;
        let network = Self { here: host(1, "here", None, bridge.clone()), bridge, hosts, guard, _claim: claim };
        network.remove();
        network.build()?;
        Ok(network)
    }

    fn build(&self) -> Result<()> {
        let (bridge, here) = (&self.bridge, &self.here);
        let mut lines = vec![
            format!("link add {bridge} address {} type bridge", here.hardware),
            format!("address add {}/24 dev {bridge}", here.address),
            format!("link set {bridge} up"),
        ];
        for (i, host) in self.hosts.iter().enumerate() {
            let namespace = host.namespace.as_deref().unwrap_or_default();
            ip(&["netns", "add", namespace], "")?;
            lines.extend([
                format!("link add {bridge}-{i} type veth peer name eth0 address {} netns {namespace}", host.hardware),
                format!("link set {bridge}-{i} master {bridge} up"),
            ]);
        }
        ip(&["-batch", "-"], &lines.join("\n"))?;
        for host in &self.hosts {
            let lines = format!("link set lo up\naddress add {}/24 dev eth0\nlink set eth0 up\n", host.address);
            host.ip(&["-batch", "-"], &lines)?;
        }
        Ok(())
    }

    /// Name of the bridge, an interface of where the test itself runs.
    #[must_use]
    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// All hosts, in the order of their names at the start.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name == name).with_context(|| format!("there is no host {name}"))
    }

    /// Where the test itself runs.
    #[must_use]
    pub const fn here(&self) -> &Host {
        &self.here
    }

    /// Cuts both directions between two groups of hosts.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn part(&self, some: &[&Host], others: &[&Host]) -> Result<()> {
        Self::between(some, others, Host::cut)
    }

    /// Undoes [`Network::part`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self, some: &[&Host], others: &[&Host]) -> Result<()> {
        Self::between(some, others, Host::heal)
    }

    fn between(some: &[&Host], others: &[&Host], act: fn(&Host, &Host) -> Result<()>) -> Result<()> {
        for one in some {
            for other in others {
                act(one, other)?;
                act(other, one)?;
            }
        }
        Ok(())
    }

    /// Also takes away what a former owner of the names left, when its guard was killed too.
    fn remove(&self) {
        // The links as well: they go with their namespaces, but some time after, and the next owner of the names may be
        // quicker.
        let links = (0..self.hosts.len()).map(|i| format!("link delete {}-{i}\n", self.bridge));
        let lines: String = std::iter::once(format!("link delete {}\n", self.bridge)).chain(links).collect();
        let _ = ip(&["-force", "-batch", "-"], &lines);
        for host in &self.hosts {
            let _ = ip(&["netns", "delete", host.namespace.as_deref().unwrap_or_default()], "");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.guard.dismiss();
        self.remove();
    }
}

impl Host {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        IpAddr::V4(self.address)
    }

    /// Program and first arguments that make what follows them run on this host, in the same process; empty for
    /// [`Network::here`].
    #[must_use]
    pub fn prefix(&self) -> Vec<OsString> {
        let Some(namespace) = &self.namespace else { return Vec::new() };
        vec!["nsenter".into(), format!("--net=/run/netns/{namespace}").into(), "--".into()]
    }

    /// A command that runs a program on this host. Its process is the program itself.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words = self.prefix();
        words.push(program.as_ref().to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
    }

    /// Moves the calling thread to this host: sockets it makes from now on are this host's. For threads of their own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn enter(&self) -> Result<()> {
        let Some(namespace) = &self.namespace else { return Ok(()) };
        let path = format!("/run/netns/{namespace}");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter {path}"))
    }

    /// From now on, packets from here to `to` vanish.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self, to: &Self) -> Result<()> {
        self.point(to, NOBODY)
    }

    /// Packets from here to `to` arrive again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn heal(&self, to: &Self) -> Result<()> {
        // Its true address rather than no entry, so that a search for it cannot fail because of another cut.
        self.point(to, &to.hardware)
    }

    fn point(&self, to: &Self, hardware: &str) -> Result<()> {
        let address = to.address.to_string();
        self.ip(&["neighbour", "replace", &address, "lladdr", hardware, "dev", &self.device, "nud", "permanent"], "")
            .with_context(|| format!("from {} to {}", self.name, to.name))
    }

    fn ip(&self, arguments: &[&str], input: &str) -> Result<()> {
        match &self.namespace {
            Some(namespace) => ip(&[&["-netns", namespace], arguments].concat(), input),
            None => ip(arguments, input),
        }
    }
}

fn ip(arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip (Debian package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}
