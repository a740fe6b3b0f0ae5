//! Packets that cross a router: three network namespaces of one kernel, a router in the one in the middle. Needs root; says so and passes
//! otherwise.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::kind::router::contract::Config;

/// Names of namespaces of this process: others may run the same test.
fn name(part: &str) -> String {
    format!("rugr-{}-{part}", std::process::id())
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn ip(args: &str) {
    let args: Vec<_> = args.split_whitespace().collect();
    let done = run("ip", &args);
    assert!(done.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The namespaces, which end with it.
struct Namespaces(Vec<String>);

impl Namespaces {
    fn new(parts: &[&str]) -> Self {
        let made = Self(parts.iter().map(|part| name(part)).collect());
        for name in &made.0 {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        made
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            run("ip", &["netns", "del", name]);
        }
    }
}

/// This test again, in a namespace and for one task.
fn task(namespace: &str, task: &str, argument: &str) -> Command {
    let own = std::env::current_exe().expect("this test");
    let own = own.to_str().expect("a path");
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &name(namespace), own, "--exact", "in_the_namespace", "--nocapture", "--ignored"]);
    command.env("ROUTER_TASK", task).env("ROUTER_ARGUMENT", argument);
    command
}

/// Puts a configuration in force in the namespace of the router.
fn configure(config: &serde_json::Value) -> Output {
    task("router", "configure", &config.to_string()).output().expect("it runs")
}

/// From which address a server at `address` sees a connection of a namespace come; `None` where none can be made.
fn seen_from(namespace: &str, address: &str) -> Option<String> {
    let done = task(namespace, "connect", address).output().expect("it runs");
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    text.lines().find_map(|line| line.strip_prefix("seen from ").map(str::to_owned))
}

/// Tells every connection from where it comes, until it is killed.
struct Server(Child);

impl Server {
    fn start(namespace: &str) -> Self {
        let mut child = task(namespace, "serve", "[::]:7").stdout(Stdio::piped()).spawn().expect("it runs");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        assert!(output.lines().map_while(Result::ok).any(|line| line.contains("serving")), "it serves");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "run by the other test, in a namespace of its own"]
fn in_the_namespace() {
    let (Ok(task), Ok(argument)) = (std::env::var("ROUTER_TASK"), std::env::var("ROUTER_ARGUMENT")) else { return };
    match task.as_str() {
        "configure" => {
            let config: Config = serde_json::from_str(&argument).expect("a configuration");
            let mut router = router::Router::default();
            router.apply(&config).unwrap_or_else(|error| panic!("refused: {error}"));
            router.apply(&config).unwrap_or_else(|error| panic!("refused the second time: {error}"));
            assert_eq!(router.traffic().len(), 2);
        }
        "serve" => {
            let listener = TcpListener::bind(&argument).expect("a free port");
            println!("serving");
            for connection in listener.incoming() {
                let mut connection = connection.expect("a connection");
                let peer = connection.peer_addr().expect("connected").ip().to_canonical();
                let _ = connection.write_all(peer.to_string().as_bytes());
            }
        }
        _ => {
            let address = argument.parse().expect("an address");
            let limit = Duration::from_secs(2);
            let Ok(mut connection) = TcpStream::connect_timeout(&address, limit) else { return };
            connection.set_read_timeout(Some(limit)).expect("a limit");
            let mut text = String::new();
            if connection.read_to_string(&mut text).is_ok() {
                println!("seen from {text}");
            }
        }
    }
}

fn config(floating: &[(&str, &str)], internal: &str) -> serde_json::Value {
    let floating: Vec<_> =
        floating.iter().map(|(out, fixed)| serde_json::json!({"floating_ip": out, "fixed_ip": fixed})).collect();
    serde_json::json!({
        "generation": 1, "tenant_id": "t", "hostname": "r", "default_v4_gateway": "203.0.113.1",
        "networks": [
            {"interface": {"ifname": "ge1", "addresses": ["203.0.113.7/24"], "mtu": 1400}, "network_id": "e", "network_type": "external"},
            {"interface": {"ifname": "ge2", "addresses": [internal, "fd00:1::1/64"]}, "network_id": "i", "network_type": "internal"}],
        "static_routes": [["198.51.100.0/24", "10.0.0.9"]],
        "floating_ips": floating,
    })
}

#[test]
fn a_packet_crosses_a_router_and_its_addresses_are_translated() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: making network namespaces needs root");
        return;
    }
    let _namespaces = Namespaces::new(&["in", "router", "out"]);
    let (inner, router, outer) = (name("in"), name("router"), name("out"));
    ip(&format!("link add ge2 netns {router} type veth peer name eth0 netns {inner}"));
    ip(&format!("link add ge1 netns {router} type veth peer name eth0 netns {outer}"));
    for (namespace, addresses) in [(&inner, &["10.0.0.5/24", "fd00:1::5/64"][..]), (&outer, &["203.0.113.1/24"])] {
        ip(&format!("-n {namespace} link set eth0 up"));
        for address in addresses {
            ip(&format!("-n {namespace} addr add {address} dev eth0 nodad"));
        }
    }
    ip(&format!("-n {inner} route add default via 10.0.0.1"));
    // An address that the router does not know goes away, and nothing else of it is touched.
    ip(&format!("-n {router} addr add 172.16.0.1/24 dev ge2"));
    ip(&format!("-n {router} route add 192.0.2.0/24 dev lo"));
    let _servers = [Server::start("in"), Server::start("out")];
    assert_eq!(seen_from("in", "203.0.113.1:7"), None, "nothing forwards yet");

    let done = configure(&config(&[("203.0.113.20", "10.0.0.5")], "10.0.0.1/24"));
    assert!(
        done.status.success(),
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    // The host outside knows no way back but to the router's own network: without translation there is no answer.
    assert_eq!(seen_from("in", "203.0.113.1:7").as_deref(), Some("203.0.113.20"), "by the floating address");
    assert_eq!(seen_from("out", "203.0.113.20:7").as_deref(), Some("203.0.113.1"), "which stands for the host inside");
    assert_eq!(seen_from("router", "[fd00:1::5]:7").as_deref(), Some("fd00:1::1"), "IPv6 at the router");
    let shown = |args: &str| {
        String::from_utf8_lossy(&run("ip", &args.split_whitespace().collect::<Vec<_>>()).stdout).into_owned()
    };
    let addresses = shown(&format!("-n {router} -o addr show dev ge2"));
    assert!(addresses.contains("10.0.0.1/24") && !addresses.contains("172.16.0.1"), "{addresses}");
    assert!(shown(&format!("-n {router} link show ge1")).contains("mtu 1400"));
    let routes = shown(&format!("-n {router} route"));
    assert!(routes.contains("198.51.100.0/24 via 10.0.0.9") && routes.contains("192.0.2.0/24"), "{routes}");

    // Without the floating address the host goes out with that of the router.
    let done = configure(&config(&[], "10.0.0.1/24"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(seen_from("in", "203.0.113.1:7").as_deref(), Some("203.0.113.7"), "by the router's own address");
    assert_eq!(seen_from("out", "203.0.113.20:7"), None, "the floating address is gone");

    // A refused one changes nothing.
    let mut odd = config(&[], "10.0.0.1/24");
    odd["networks"][1]["interface"]["ifname"] = "ge9".into();
    let done = configure(&odd);
    assert!(!done.status.success());
    assert!(String::from_utf8_lossy(&done.stderr).contains("find ge9"), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(seen_from("in", "203.0.113.1:7").is_some());
}
