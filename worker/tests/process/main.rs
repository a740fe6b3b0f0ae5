//! The process driver with real processes, and the reference appliance as it is started by it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::appliance::Name;
use common::kind::{HealthCheck, KindSpec, Limits, Listener, LoadBalancer, Member, StopRecipe};
use common::network_port::NetworkPort;
use common::{Edition, Generation, Term, WorkerId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use worker::drivers::process::{CgroupSetting, Config, ProcessDriver};
use worker::drivers::{Driver, EndedInstance, Error, Wanted};
use worker::kinds::{Protocol, Standard};
use worker_core::desired::Desired;
use worker_core::instance::{BootState, Handle, Instance};

use self::world::*;

mod execution;
mod logs;
mod trees;
mod world;

#[tokio::test]
async fn another_worker_adopts_a_process_and_ends_it_with_all_it_started() {
    let world = DriverWorld::new();
    let (one, two) = (world.driver("w1"), world.driver("w2"));
    let spec = shell("sleep 1000 & setsid sleep 1000 & exec sleep 1000");
    let made = one.ensure(&permit(1), first(&spec)).await.expect("starts");
    until("all processes run", || world.processes().len() == 3).await;
    drop(one);
    assert_eq!(two.observe(A).await.expect("readable").running, std::slice::from_ref(&made));
    let adopted = two.ensure(&permit(2), first(&spec)).await.expect("finds it");
    assert_eq!((adopted, spawned(&two)), (made.clone(), 1));
    assert_eq!(two.list().await.expect("readable"), [(A, made.clone())]);
    assert!(matches!(two.forget(&permit(2)).await, Err(Error::Failed(_))), "it still runs");
    two.destroy(&permit(2), &made, StopRecipe::default()).await.expect("ends");
    assert_eq!(world.processes(), [] as [u32; 0]);
    assert_eq!(two.observe(A).await.expect("readable").running, []);
    two.destroy(&permit(2), &made, StopRecipe::default()).await.expect("ending it again is fine");
    two.forget(&permit(2)).await.expect("nothing runs");
    assert!(!world.instance_folder().exists());
    let late = two.ensure(&permit(1), first(&spec)).await;
    assert!(matches!(late, Err(Error::Superseded(_))), "the fence outlives the appliance: {late:?}");
}

#[tokio::test]
async fn an_instance_has_a_session_environment_and_folder_of_its_own() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let spec = shell("echo \"$GREETING port $RUG_PORT $RUG_INSTANCE\"; env | wc -l; pwd; exec sleep 1000");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let pid = made.details.pid().expect("a process");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    assert_eq!(stat.split(' ').nth(5), Some(pid.to_string().as_str()), "leader of its session");
    let log = world.instance_folder().join("log");
    until("the log has three lines", || std::fs::read_to_string(&log).is_ok_and(|t| t.lines().count() == 3)).await;
    let text = std::fs::read_to_string(&log).expect("readable");
    let port = made.addresses.service.expect("a port was picked").port();
    assert!(text.starts_with(&format!("web 0 {A} port {port} {A}-0-1\n")), "{text}");
    assert!(text.trim_end().ends_with("/0/work"), "{text}");
    kill(pid);
    until("it is gone", || !runs(pid)).await;
    let again = driver.ensure(&permit(1), Wanted { attempt: 2, ..first(&spec) }).await.expect("starts again");
    assert_eq!(again.addresses.service, made.addresses.service, "an ordinal keeps its port");
}

#[tokio::test]
async fn a_killed_process_is_gone_and_leaves_no_zombie_and_no_child_on_its_port() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let spec = shell("sleep 1000 & wait");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    until("both processes run", || world.processes().len() == 2).await;
    let pid = made.details.pid().expect("a process");
    assert_eq!(driver.is_alive(A, &made).await, Some(true));
    let other = world.driver("w2");
    let seen = other.observe(A).await.expect("readable").running;
    assert_eq!(other.is_alive(A, &seen[0]).await, Some(true));
    let with = |handle: &str| Instance { handle: Handle::new(handle).expect("short"), ..made.clone() };
    assert_eq!(driver.is_alive(A, &with("")).await, None, "nothing tells which process it is");
    let successor = with(&format!("{pid}:1"));
    assert_eq!(driver.is_alive(A, &successor).await, Some(false), "a process that was started at another time");
    kill(pid);
    until("it is reaped", || !Path::new(&format!("/proc/{pid}")).exists()).await;
    assert_eq!((driver.is_alive(A, &made).await, other.is_alive(A, &made).await), (Some(false), Some(false)));
    assert_eq!(driver.observe(A).await.expect("readable").running, []);
    let end = other.ended(A, &made).await.expect("its shim has noted it");
    assert_eq!(end.to_string(), "signal 9 (SIGKILL); no output");
    until("its child has been ended", || world.processes().is_empty()).await;
    let next = driver.ensure(&permit(1), Wanted { attempt: 2, ..first(&spec) }).await.expect("starts again");
    assert_ne!(next.details.pid(), made.details.pid());
    until("only the new ones run", || world.processes().len() == 2).await;
    let other = driver.ensure(&permit(1), Wanted { attempt: 3, ..first(&spec) }).await;
    assert!(matches!(other, Err(Error::Failed(_))), "attempt 2 must be ended first: {other:?}");
}

#[tokio::test]
async fn the_next_owner_knows_since_when_a_boot_goes_on_and_when_it_is_over() {
    let world = DriverWorld::new();
    let (one, two) = (world.driver("w1"), world.driver("w2"));
    let spec = shell("exec sleep 1000");
    let before = runtime::clock::now();
    let made = one.ensure(&permit(1), Wanted { attempt: 4, ..first(&spec) }).await.expect("starts");
    let BootState::UnderWay { since } = made.boot else { panic!("it has not answered: {made:?}") };
    let tick = Duration::from_millis(20);
    assert!(since + tick >= before && since <= runtime::clock::now(), "{since:?} after {before:?}");
    let found = two.observe(A).await.expect("readable");
    assert_eq!((found.running[0].boot, found.attempts), (made.boot, vec![(0, 4)]));
    one.note_answer(A, &made).await.expect("its folder is there");
    assert_eq!(two.observe(A).await.expect("readable").running[0].boot, BootState::Over);
    // What cannot be read counts as not answered, which is the more patient.
    let note = world.instance_folder().join("answered");
    std::fs::write(&note, b"\xff").expect("writable");
    assert_eq!(two.observe(A).await.expect("readable").running[0].boot, made.boot);
    std::fs::write(&note, "4").expect("writable");
    two.destroy(&permit(2), &made, StopRecipe::default()).await.expect("ends");
    let found = two.observe(A).await.expect("readable");
    assert_eq!((found.running.len(), found.attempts), (0, vec![(0, 4)]));
    let next = two.ensure(&permit(2), Wanted { attempt: 5, ..first(&spec) }).await.expect("starts");
    assert!(matches!(next.boot, BootState::UnderWay { .. }), "the answer was another one's: {next:?}");
}

#[tokio::test]
async fn whether_an_instance_of_the_version_before_has_answered_is_not_known() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    driver.ensure(&permit(1), first(&shell("exec sleep 1000"))).await.expect("starts");
    let record = world.instance_folder().join("instance.json");
    let mut value: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record).expect("readable")).expect("JSON");
    value.as_object_mut().expect("an object").remove("notes_answers").expect("it is new");
    std::fs::write(&record, value.to_string()).expect("writable");
    assert_eq!(driver.observe(A).await.expect("readable").running[0].boot, BootState::Unknown);
}

#[tokio::test]
async fn a_process_that_its_worker_did_not_live_to_record_is_found() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let spec = shell("exec sleep 1000");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let record = world.instance_folder().join("instance.json");
    let mut value: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record).expect("readable")).expect("JSON");
    value["state"] = "starting".into();
    std::fs::write(&record, value.to_string()).expect("writable");
    let other = world.driver("w2");
    assert_eq!(other.observe(A).await.expect("readable").running, std::slice::from_ref(&made));
    assert_eq!(other.ensure(&permit(2), first(&spec)).await.expect("adopts"), made);
    assert_eq!(spawned(&other), 1);
    std::fs::write(&record, b"{ damaged").expect("writable");
    assert_eq!(other.observe(A).await.expect("readable").running[0].details.pid(), made.details.pid());
    std::fs::remove_file(&record).expect("removable");
    std::os::unix::fs::symlink("/nowhere", &record).expect("made");
    assert!(other.observe(A).await.is_err(), "a link is no record");
    let listed = other.list().await.expect("it hides nothing");
    assert_eq!((listed.len(), listed[0].1.details.pid()), (1, made.details.pid()));
    std::fs::remove_dir_all(world.instance_folder()).expect("removable");
    let listed = other.list().await.expect("readable");
    assert_eq!(
        (listed.len(), listed[0].0, listed[0].1.details.pid()),
        (1, A, made.details.pid()),
        "an orphan without a record"
    );
    other.destroy(&permit(2), &listed[0].1, StopRecipe::default()).await.expect("ends");
    assert_eq!(world.processes(), [] as [u32; 0]);
}

#[tokio::test]
async fn an_older_token_and_a_shut_gate_change_nothing() {
    let world = DriverWorld::new();
    let (one, two) = (world.driver("w1"), world.driver("w2"));
    let spec = shell("exec sleep 1000");
    let made = one.ensure(&permit(1), first(&spec)).await.expect("starts");
    two.claim(&permit(2)).await.expect("the newer token");
    let late = one.destroy(&permit(1), &made, StopRecipe::default()).await;
    assert!(matches!(late, Err(Error::Superseded(token)) if token.sequence == 2), "{late:?}");
    let (permit, gate) = permit_with_gate(2);
    gate.shut();
    assert!(matches!(two.destroy(&permit, &made, StopRecipe::default()).await, Err(Error::Shut(_))));
    assert_eq!(two.observe(A).await.expect("readable").running, [made]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn owners_that_race_start_one_process_and_never_act_at_the_same_time() {
    let world = DriverWorld::new();
    let spec = Arc::new(shell("exec sleep 1000"));
    let race: Vec<_> = (1_u64..=8)
        .map(|n| {
            let (driver, spec) = (world.driver(&format!("w{n}")), Arc::clone(&spec));
            tokio::spawn(async move { driver.ensure(&permit(n.div_ceil(2)), first(&spec)).await })
        })
        .collect();
    let mut found: Vec<Instance> = Vec::new();
    for task in race {
        match task.await.expect("no panic") {
            Ok(instance) => found.push(instance),
            Err(error) => assert!(matches!(error, Error::Superseded(_)), "{error}"),
        }
    }
    assert!(!found.is_empty() && found.iter().all(|i| i.details.pid() == found[0].details.pid()), "{found:?}");
    let driver = world.driver("w9");
    assert_eq!((world.processes().len(), spawned(&driver)), (1, 1));
    let entries = journal(&driver);
    assert!(entries.windows(2).all(|p| (p[0].at_boot_ns, p[0].sequence) <= (p[1].at_boot_ns, p[1].sequence)));
    for pair in entries.chunks(2) {
        assert_eq!((pair[0].outcome.as_str(), &pair[0].worker), ("begun", &pair[1].worker), "{entries:?}");
    }
}

#[tokio::test]
async fn mistakes_are_named_and_nothing_is_left_of_them() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let ensure = async |spec: &Desired| driver.ensure(&permit(1), first(spec)).await;
    assert_eq!(refusal(ensure(&custom("no-such-thing", &[], None)).await), "command `no-such-thing` not found");
    assert_eq!(refusal(ensure(&custom("/etc/passwd", &[], None)).await), "command `/etc/passwd` is not executable");
    let mut plugged = shell("sleep 1000");
    let name = Name::new("external").expect("a name");
    plugged.spec.ports = vec![NetworkPort { name, network: "net-1".into(), addresses: vec![], mac: None }];
    assert!(refusal(ensure(&plugged).await).starts_with("the process driver has no networks"));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let text = refusal(ensure(&custom("sleep", &["1000"], Some(port))).await);
    assert!(text.starts_with(&format!("port {port} is in use by pid {} (", std::process::id())), "{text}");
    assert!(!world.instance_folder().exists());
    let failed = ensure(&shell("echo first; echo it went wrong >&2; exit 3")).await.expect_err("it ends");
    let text = failed.to_string();
    assert_eq!(text, "ended at once: exit status 3; last output: first | it went wrong");
    let config = Config { state_dir: "/proc/no/such".into(), ..Config::default() };
    let text = refusal(ProcessDriver::new(config, WorkerId::new("w1").expect("a name")));
    assert!(text.starts_with("state directory /proc/no/such cannot be used: "), "{text}");
}

#[tokio::test]
async fn what_is_published_is_the_path_that_processes_are_found_by() {
    let world = DriverWorld::new();
    let kept = world.folder.path().canonicalize().expect("it is there");
    let beside = tempfile::tempdir().expect("a folder");
    let link = beside.path().join("link");
    std::os::unix::fs::symlink(&kept, &link).expect("writable");
    let open = |state_dir: PathBuf| {
        ProcessDriver::new(
            Config { state_dir, appliance_binary: APPLIANCE.into(), shim_binary: shim_binary(), ..Config::default() },
            WorkerId::new("w1").expect("a name"),
        )
    };
    assert_eq!(open(link).expect("writable").state_dir(), kept.to_str());
    for (name, shown) in [("a\nb", r"a\nb"), (&"d/".repeat(600), "d/d")] {
        let text = refusal(open(kept.join(name)));
        assert!(
            text.contains(shown) && text.contains("at most 1024 bytes without control characters, in UTF-8"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed() {
    let world = DriverWorld::new();
    let driver = open("w1", Config { stop_grace: Duration::from_millis(50), ..world.config() });
    let spec = shell("trap '' TERM; echo ready; while :; do sleep 1000; done");
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let log = world.instance_folder().join("log");
    until("it ignores the signal", || std::fs::read_to_string(&log).is_ok_and(|t| t.contains("ready"))).await;
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
    assert_eq!(world.processes(), [] as [u32; 0]);
    assert!(journal(&driver).iter().any(|e| e.action == "kill" && e.outcome == "done"));
}

fn balanced(port: u16, members: &[SocketAddr]) -> Desired {
    let listener = Listener {
        name: "http".into(),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port,
        members: members.iter().map(|m| Member { address: m.ip(), port: m.port() }).collect(),
        health_check: HealthCheck::default(),
        limits: Limits::default(),
        algorithm: Default::default(),
        proxy_protocol: None,
        trust_proxy_from: vec![],
    };
    desired(KindSpec::Loadbalancer(LoadBalancer { listeners: vec![listener] }))
}

#[tokio::test]
async fn a_load_balancer_is_started_configured_probed_and_drained() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let member = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = member.local_addr().expect("bound");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let spec = balanced(port, &[address]);
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    assert!(
        made.addresses.management.is_some() && made.addresses.service.is_some_and(|a| a.port() == port),
        "{made:?}"
    );
    let kind = Standard::new().expect("a client");
    kind.probe(&made, &spec).await.expect("it answers");
    kind.configure(&permit(2), &made, &spec, &[]).await.expect("it takes the configuration");
    kind.configure(&permit(2), &made, &spec, &[]).await.expect("again");
    let late = kind.configure(&permit(1), &made, &spec, &[]).await;
    assert!(matches!(late, Err(Error::Superseded(token)) if token == permit(2).token()), "{late:?}");
    let taken = balanced(address.port(), &[]);
    let taken = Desired { edition: Edition::new(Generation::new(2), Term::new(1)), ..taken };
    let text = refusal(kind.configure(&permit(2), &made, &taken, &[]).await);
    assert_eq!(text, format!("listeners[0].port: port {} is in use", address.port()));
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    client.write_all(b"hello").await.expect("open");
    let mut server = loop {
        // Health checks are connections without a word.
        let (mut stream, _) = timeout(DEADLINE, member.accept()).await.expect("no hang").expect("a connection");
        let mut hello = [0; 5];
        if timeout(DEADLINE, stream.read_exact(&mut hello)).await.expect("no hang").is_ok() {
            break stream;
        }
    };
    let ending = {
        let (driver, made) = (driver.clone(), made.clone());
        tokio::spawn(async move { driver.destroy(&permit(2), &made, StopRecipe::default()).await })
    };
    let end = Instant::now() + DEADLINE;
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        assert!(Instant::now() < end, "it still listens");
    }
    server.write_all(b"to the end").await.expect("the connection goes on");
    drop((server, member));
    let mut text = String::new();
    timeout(DEADLINE, client.read_to_string(&mut text)).await.expect("no hang").expect("a clean end");
    assert_eq!(text, "to the end");
    drop(client);
    timeout(DEADLINE, ending).await.expect("no hang").expect("no panic").expect("ends");
    assert!(!journal(&driver).iter().any(|e| e.action == "kill"), "it ended by itself");
}

#[tokio::test]
async fn a_load_balancer_hands_over_to_one_that_is_started_beside_it() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let member = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = member.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = member.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let (spec, kind) = (balanced(port, &[address]), Standard::new().expect("a client"));
    let old = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    assert!(old.hands_over);
    kind.configure(&permit(1), &old, &spec, &[]).await.expect("it takes the configuration");
    let mut client = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let next = Wanted { attempt: 2, ..first(&spec) };
    driver.ensure(&permit(1), next.clone()).await.expect_err("the other one was not to stay");
    let new = driver.ensure(&permit(1), Wanted { beside: Some(1), ..next.clone() }).await.expect("starts beside it");
    // Whoever comes next finds both.
    let other = world.driver("w2");
    let attempts = async || {
        let found = other.observe(A).await.expect("readable");
        let mut attempts: Vec<_> =
            found.running.into_iter().map(|i| (i.attempt, i.hands_over, i.secret.is_some())).collect();
        attempts.sort_unstable();
        attempts
    };
    assert_eq!(attempts().await, [(1, true, true), (2, true, true)]);
    let again = other.ensure(&permit(1), Wanted { beside: Some(1), ..next }).await.expect("finds it");
    assert_eq!(again.handle, new.handle);
    let late = kind.configure(&permit(0), &new, &spec, &[]).await;
    assert!(matches!(late, Err(Error::Superseded(token)) if token == permit(1).token()), "{late:?}");
    kind.configure(&permit(1), &new, &spec, &[]).await.expect("it takes over");
    // By itself, once everything was handed over.
    until("the predecessor has ended", || !runs(old.details.pid().expect("it had one"))).await;
    client.write_all(b"hello").await.expect("the connection goes on");
    let mut hello = [0; 5];
    timeout(DEADLINE, client.read_exact(&mut hello)).await.expect("no hang").expect("the connection goes on");
    other.destroy(&permit(1), &old, StopRecipe::default()).await.expect("nothing is left");
    assert_eq!(attempts().await, [(2, true, true)]);
    assert!(!world.instance_folder().with_file_name("0.1").exists());
    let before = std::fs::read_to_string(world.instance_folder().join("log.1")).expect("its log stays");
    assert!(before.contains(&format!("{A}-0-1")), "{before}");
    other.destroy(&permit(1), &new, StopRecipe::default()).await.expect("ends");
    other.forget(&permit(1)).await.expect("nothing is left");
}

/// Everything below a folder that another user may read or write, by path and mode; not what instances themselves make.
fn open_to_others(folder: &Path) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("readable").flatten() {
        let meta = entry.metadata().expect("it is there");
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            found.push(format!("{} {mode:o}", entry.path().display()));
        }
        if meta.is_dir() && entry.file_name() != "work" {
            found.extend(open_to_others(&entry.path()));
        }
    }
    found
}

#[tokio::test]
async fn what_is_kept_is_for_this_user_alone_and_links_are_not_followed() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let world = DriverWorld::new();
    let path = world.folder.path();
    // As the version before left it, under a umask of 022.
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("ours");
    std::fs::create_dir_all(path.join("instances")).expect("writable");
    set(path, 0o755);
    set(&path.join("instances"), 0o755);
    let driver = world.driver("w1");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let spec = balanced(port, &[]);
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    Standard::new().expect("a client").configure(&permit(1), &made, &spec, &[]).await.expect("it answers");
    assert_eq!(open_to_others(path), [] as [String; 0]);
    assert_eq!(std::fs::metadata(path).expect("there").permissions().mode() & 0o777, 0o700);
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
    // A link in place of a file of the driver is no way to another one.
    let elsewhere = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(elsewhere.path(), "untouched").expect("writable");
    let next = Wanted { attempt: 2, ..first(&spec) };
    for file in ["log", "instance.json"] {
        let file = world.instance_folder().join(file);
        std::fs::remove_file(&file).expect("it is there");
        symlink(elsewhere.path(), &file).expect("writable");
        let error = driver.ensure(&permit(1), next.clone()).await.expect_err("a link").to_string();
        assert!(error.contains("is a symbolic link, which is not followed"), "{error}");
        std::fs::remove_file(&file).expect("it is still there");
    }
    assert_eq!(std::fs::read_to_string(elsewhere.path()).expect("readable"), "untouched");
    set(path, 0o777);
    let text = refusal(ProcessDriver::new(world.config(), WorkerId::new("w2").expect("a name")));
    assert!(text.contains("every user can write to"), "{text}");
}

/// A client that sends the secret of an instance.
fn client_of(instance: &Instance) -> reqwest::Client {
    let secret = format!("Bearer {}", instance.secret.as_ref().expect("it has one").reveal());
    let headers = [(reqwest::header::AUTHORIZATION, secret.parse().expect("printable"))].into_iter().collect();
    reqwest::Client::builder().no_proxy().default_headers(headers).build().expect("a client")
}

/// Sends bytes to an address and reads until the other side is done.
async fn raw(address: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(bytes.as_bytes()).await.expect("open");
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("no hang");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn only_those_who_have_its_secret_can_configure_an_instance() {
    use std::os::unix::fs::PermissionsExt;
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let spec = balanced(port, &[]);
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let secret = made.secret.clone().expect("it has one");
    let file = world.instance_folder().join("secret");
    let mode = std::fs::metadata(&file).expect("readable").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Another worker finds it, and it is in no place that others can read.
    assert_eq!(world.driver("w2").observe(A).await.expect("readable").running[0].secret, Some(secret.clone()));
    for name in ["cmdline", "environ"] {
        let text = std::fs::read(format!("/proc/{}/{name}", made.details.pid().expect("a process"))).expect("it runs");
        assert!(!String::from_utf8_lossy(&text).contains(secret.reveal()), "{name}");
    }
    let address = made.addresses.management.expect("served");
    let most = u64::MAX;
    let body = r#"{"generation":1,"listeners":[]}"#;
    for header in ["", "Authorization: Bearer x\r\n", "Authorization: Basic eDp5\r\n"] {
        let request = format!(
            "PUT /v1/system/config HTTP/1.1\r\nHost: x\r\nRug-Token: {most}/{most}\r\n{header}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = raw(address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("secret"), "{header}: {answer}");
        for path in ["GET /v1/system/config", "GET /v1/system/interfaces", "POST /v1/firewall/labels", "GET /else"] {
            let answer =
                raw(address, &format!("{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 401"), "{path}: {answer}");
        }
    }
    let alive = raw(address, "GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(alive.starts_with("HTTP/1.1 200") && alive.ends_with(r#"{"status":"ok"}"#), "{alive}");
    // None of that has taken it from its owner.
    let kind = Standard::new().expect("a client");
    kind.configure(&permit(1), &made, &spec, &[]).await.expect("its owner is still its owner");
    // The next attempt has another one.
    driver.destroy(&permit(1), &made, StopRecipe::default()).await.expect("ends");
    let next = driver.ensure(&permit(1), Wanted { attempt: 2, ..first(&spec) }).await.expect("starts");
    assert!(next.secret.is_some() && next.secret != Some(secret));
}

#[tokio::test]
async fn strangers_cannot_keep_the_owner_from_the_management_port() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let spec = balanced(port, &[]);
    let made = driver.ensure(&permit(1), first(&spec)).await.expect("starts");
    let address = made.addresses.management.expect("served");
    let kind = Standard::new().expect("a client");
    kind.probe(&made, &spec).await.expect("it answers");
    let mut silent = Vec::new();
    for n in 0..300 {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        if n % 2 == 0 {
            stream.write_all(b"PUT /v1/system/config HTTP/1.1\r\nRug-To").await.expect("open");
        }
        silent.push(stream);
        if n % 50 == 0 {
            kind.probe(&made, &spec).await.expect("it answers all the same");
        }
    }
    kind.configure(&permit(1), &made, &spec, &[]).await.expect("it takes the configuration all the same");
    let mut bytes = [0; 1];
    // The oldest have made room for the others.
    let end = timeout(DEADLINE, silent[0].read(&mut bytes)).await.expect("closed");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    let large = raw(address, &format!("GET /v1/status HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20))).await;
    assert!(large.is_empty() || large.starts_with("HTTP/1.1 431"), "{}", &large[..large.len().min(200)]);
}

#[tokio::test]
async fn the_contract_refuses_what_it_does_not_understand() {
    let world = DriverWorld::new();
    let driver = world.driver("w1");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let made = driver.ensure(&permit(1), first(&balanced(port, &[]))).await.expect("starts");
    let base = format!("http://{}", made.addresses.management.expect("served"));
    let client = client_of(&made);
    let put = async |token: Option<&str>, body: String| {
        let request = client.put(format!("{base}/v1/system/config")).body(body);
        let request = token.into_iter().fold(request, |r, token| r.header("Rug-Token", token));
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a body"))
    };
    assert_eq!(put(None, "{}".into()).await.0, 428);
    assert_eq!(put(Some("t1/2"), "{}".into()).await.0, 400);
    let unknown = put(Some("1/1"), r#"{"generation":1,"listeners":[],"extra":1}"#.into()).await;
    assert!(unknown.0 == 400 && unknown.1.contains("unknown field `extra`"), "{unknown:?}");
    let large = client.put(format!("{base}/v1/system/config")).header("Rug-Token", "1/1").body(" ".repeat(2 << 20));
    // It answers without reading all of it, and the client may notice that first.
    assert!(large.send().await.map_or(true, |answer| answer.status().as_u16() == 413));
    assert_eq!(put(Some("1/3"), r#"{"generation":5,"listeners":[]}"#.into()).await.0, 204);
    assert_eq!(put(Some("1/2"), r#"{"generation":6,"listeners":[]}"#.into()).await.0, 409);
    assert_eq!(put(Some("1/3"), r#"{"generation":4,"listeners":[]}"#.into()).await.0, 412);
    let name = Instance::name(A, 0, made.attempt);
    for (meant, status) in [(name.as_str(), 204), ("somebody-else-0-1", 421)] {
        let request = client.put(format!("{base}/v1/system/config")).header("Rug-Token", "1/3");
        let request = request.header("Rug-Instance", meant).body(r#"{"generation":5,"listeners":[]}"#);
        assert_eq!(request.send().await.expect("an answer").status().as_u16(), status, "{meant}");
    }
    let get = async |path: &str| client.get(format!("{base}{path}")).send().await.expect("an answer");
    assert_eq!(get("/v1/status").await.status().as_u16(), 200);
    let text = get("/v1/system/interfaces").await.text().await.expect("a body");
    assert!(text.contains(r#""ifname":"lo""#), "{text}");
    let labels = client.post(format!("{base}/v1/firewall/labels")).send().await.expect("an answer");
    assert_eq!(labels.text().await.expect("a body"), r#"{"labels":[]}"#);
}
