//! Starting a cluster, with shell scripts in place of the real binaries.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

fn script(dir: &Path, name: &str, body: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    path
}

fn args(dir: &Path, coordinator: &str) -> UpArgs {
    UpArgs {
        workers: 2,
        state_dir: dir.join("state"),
        drivers: vec![],
        listen: None,
        insecure: false,
        allow_root: false,
        down: false,
        yes: false,
        coordinator_binary: Some(script(dir, "rug-coordinator", coordinator)),
        worker_binary: Some(script(dir, "rug-worker", "exit 0")),
    }
}

fn ui() -> Ui {
    Ui::plain(crate::output::OutputFormat::Table)
}

#[tokio::test]
async fn a_coordinator_that_dies_at_the_start_is_shown_with_its_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = args(dir.path(), "echo \"args: $@\" >&2; echo 'error: disk is full' >&2; exit 7");
    let failure = run(&ui(), &args, None).await.expect_err("dies");
    assert_eq!(failure.exit, Exit::Failed);
    let text = failure.to_string();
    assert!(text.starts_with("coordinator-1 exited with code 7; the end of "), "{text}");
    assert!(text.ends_with("  | error: disk is full"), "{text}");
    let expected = format!(
        "args: run --state-dir {0}/state/coordinator --listen unix:{0}/state/coordinator.sock --name coordinator-1\n",
        dir.path().canonicalize().expect("exists").display(),
    );
    assert!(text.contains(&expected), "{text}");
    assert!(!args.state_dir.join("endpoint").exists());
}

#[tokio::test]
async fn a_port_that_is_in_use_is_reported_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("its address");
    let args = UpArgs { listen: Some(listen), insecure: true, ..args(dir.path(), "echo started >&2") };
    let failure = run(&ui(), &args, None).await.expect_err("taken");
    let text = failure.to_string();
    assert!(text.starts_with(&format!("cannot listen on {listen}: ")) && text.ends_with("--listen"), "{text}");
    assert!(!args.state_dir.join("logs/coordinator-1.log").exists());
}

#[tokio::test]
async fn a_missing_binary_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = UpArgs { worker_binary: Some("/nonexistent/rug-worker".into()), ..args(dir.path(), "") };
    let failure = run(&ui(), &args, None).await.expect_err("missing");
    assert_eq!(failure.to_string(), "/nonexistent/rug-worker: no such program; `make up` builds it");
}

#[tokio::test]
async fn a_second_up_on_the_same_folder_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = args(dir.path(), "");
    let folder = StateFolder::open(&args.state_dir).expect("writable");
    let _lock = folder.lock().expect("free");
    let failure = run(&ui(), &args, None).await.expect_err("held");
    assert_eq!(failure.exit, Exit::Conflict);
    assert!(failure.to_string().contains(&format!("pid {}", std::process::id())), "{failure}");
}

#[tokio::test]
async fn nothing_to_remove_is_no_failure() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = UpArgs { down: true, ..args(dir.path(), "exit 1") };
    run(&ui(), &args, None).await.expect("nothing to do");
    assert!(!args.state_dir.exists(), "nothing is created either");
}

#[tokio::test]
async fn addresses_beyond_loopback_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = UpArgs { listen: "0.0.0.0:7470".parse().ok(), insecure: true, ..args(dir.path(), "") };
    assert_eq!(run(&ui(), &args, None).await.expect_err("refused").exit, Exit::Usage);
}

#[test]
fn unhealthy_workers_are_listed() {
    let names = ["worker-1", "worker-2", "worker-3"].map(str::to_owned);
    let worker = |id: &str, health: v1::Health| v1::Worker {
        id: id.into(),
        health: health.into(),
        reason: "lease runs low".into(),
        ..v1::Worker::default()
    };
    let workers = [worker("worker-1", v1::Health::Healthy), worker("worker-2", v1::Health::Suspect)];
    assert_eq!(
        not_healthy(&names, &workers),
        [
            ("worker-2".to_owned(), "is suspect: lease runs low".to_owned()),
            ("worker-3".to_owned(), "has not joined yet".to_owned()),
        ]
    );
}

#[test]
fn worker_command_lines_contain_all_arguments() {
    let dir = tempfile::tempdir().expect("a folder");
    let args = args(dir.path(), "");
    let folder = StateFolder::open(&args.state_dir).expect("writable");
    let listen = "127.0.0.1:7470".parse().ok();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let cluster = LocalCluster::new(folder.clone(), &args, listen, &[DriverName::process(), DriverName::simulated()])
        .expect("valid");
    let words = cluster.workers[1].args.join(" ");
    let coordinator = cluster.coordinator.args.join(" ");
    assert!(coordinator.ends_with(" --listen 127.0.0.1:7470 --insecure"), "{coordinator}");
    let start = format!(
        "run --name worker-2 --coordinator unix:{0}/coordinator.sock --state-dir {0}/workers --host ",
        folder.root().display()
    );
    assert!(words.starts_with(&start) && words.ends_with(" --driver process --driver simulated"), "{words}");
    assert!(words.contains(" --on-stop leave "), "{words}");
    assert_eq!((rights(false, false), rights(true, false)), (&[][..], &["--allow-root"][..]));
    assert_eq!((rights(false, true), rights(true, true)), (&["--default-user", "nobody"][..], &["--allow-root"][..]));
}

#[tokio::test]
async fn down_waits_for_a_cluster_that_is_stopping() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = StateFolder::open(dir.path()).expect("writable");
    let held = folder.lock().expect("free");
    let mut waiting = std::pin::pin!(lock_or_endpoint(&folder));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    drop(held);
    assert!(waiting.await.expect("free in the end").is_ok());
    let _held = folder.lock().expect("free");
    let endpoint = Endpoint { address: "unix:/x/s".to_owned(), cluster: None };
    folder.publish(&endpoint).expect("writable");
    let (holder, found) = lock_or_endpoint(&folder).await.expect("runs").expect_err("held");
    assert_eq!((holder, found), (Some(std::process::id()), endpoint));
}
