//! Kind `custom` as users write it: what its process is given, what is shown of it, and a probe that is a command.

use anyhow::{Context, Result, ensure};
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, api, ports};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test]
async fn what_get_prints_can_be_applied_and_secrets_are_shown_nowhere_else() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let file = cluster.root().join("variables");
    std::fs::write(&file, "FROM_FILE=mumble\n")?;
    let (user, env_from) = if is_root() {
        ("user: nobody\n  group: '65534'", String::new())
    } else {
        ("nice: 2", format!("\n  env_from: ['{}']", file.display()))
    };
    let text = format!(
        "name: full\nkind: custom\nprobe_interval: 1s\nprobe_timeout: 2s\nboot_timeout: 1m\nsettle_time: 100ms\nspec:\n  \
         command: sleep\n  args: ['86400']\n  env: {{PASSWORD: hush}}\n  probe: process\n  {user}{env_from}\n  working_dir: /\n  \
         limits: {{nofile: 512, nproc: 4000, core: 0}}\n  no_new_privileges: true\n  stop_signal: INT\n  stop_timeout: 3s\n"
    );
    let apply = async |text: &str| cluster.rugctl(&["apply", "-f", "-"], text).await?.success();
    apply(&text).await?;
    let pids = async || anyhow::Ok(api::pids(&cluster.api.get("full").await?));
    let first = pids().await?;
    let printed = cluster.rugctl(&["get", "full", "-o", "yaml"], "").await?.success()?.stdout;
    ensure!(printed.contains("PASSWORD: hush") && printed.contains("stop_signal: SIGINT"), "{printed}");
    let again = apply(&printed).await?;
    ensure!(again.stdout.contains("unchanged"), "{}\n{printed}", again.stdout);
    // How it is stopped is no reason to start it anew; what it is started with is.
    let stopped = apply(&printed.replace("stop_timeout: 3s", "stop_timeout: 4s")).await?;
    ensure!(!stopped.stdout.contains("unchanged") && pids().await? == first, "{}", stopped.stdout);
    apply(&printed.replace("nofile: 512", "nofile: 513")).await?;
    ensure!(pids().await? != first, "the former instance still runs");
    for words in [
        &["describe", "full"][..],
        &["describe", "full", "-o", "json"],
        &["list", "-o", "json"],
        &["list", "-o", "yaml"],
        &["explain", "full", "-o", "json"],
        &["check", "full", "-o", "json"],
        &["audit", "-o", "json"],
    ] {
        let shown = cluster.rugctl(words, "").await?.success()?;
        ensure!(!shown.stdout.contains("hush") && !shown.stdout.contains("mumble"), "{words:?}: {}", shown.stdout);
    }
    let hidden = cluster.rugctl(&["list", "-o", "yaml"], "").await?.success()?.stdout;
    cluster.rugctl(&["apply", "-f", "-"], &hidden).await?.refused(2, &["spec.env", "hidden"])?;
    cluster.rugctl(&["list", "--show-secrets"], "").await?.refused(2, &["-o yaml"])?;
    let shown = cluster.rugctl(&["list", "-o", "yaml", "--show-secrets"], "").await?.success()?;
    ensure!(shown.stdout.contains("hush"), "{}", shown.stdout);
    for daemon in cluster.workers.iter().chain([&cluster.coordinator]) {
        ensure!(!daemon.log_text().contains("hush"), "the log of {} has it", daemon.name());
    }
    cluster.finish().await
}

#[tokio::test]
async fn a_command_as_root_waits_for_a_yes_and_says_so() -> Result<()> {
    if !is_root() {
        eprintln!("skipped: only root could start it");
        return Ok(());
    }
    let worker_env = vec![("RUG_WORKER_PROCESS__ALLOW_ROOT", "false".to_owned())];
    let cluster = Cluster::start(Options { workers: 1, worker_env, ..Options::default() }).await?;
    let document =
        |user: &str| format!("name: a\nkind: custom\nspec: {{command: sleep, args: ['9999'], probe: none{user}}}\n");
    let refused = "it would run as root";
    cluster.rugctl(&["apply", "-f", "-", "--no-wait"], &document("")).await?.success()?;
    until(PATIENCE, "the reason is shown", async || {
        for words in [["describe", "a"], ["explain", "a"]] {
            let shown = cluster.rugctl(&words, "").await?.success()?;
            ensure!(shown.stdout.contains(refused), "{}", shown.stdout);
        }
        Ok(())
    })
    .await?;
    cluster.rugctl(&["apply", "-f", "-"], &document(", user: nobody")).await?.success()?;
    cluster.finish().await
}

/// The documents that the README begins with, on ports that are free.
fn fleet_of_the_readme() -> (String, u16) {
    let mut text = include_str!("../../docs/examples/fleet.yaml").to_owned();
    let ports = ["8080", "8081", "8082"].map(|known| {
        let port = ports::free();
        text = text.replace(known, &port.to_string());
        port
    });
    (text, ports[0])
}

#[tokio::test]
async fn the_fleet_of_the_readme_needs_no_rights_of_root() -> Result<()> {
    if !is_root() {
        eprintln!("skipped: other tests show that it runs as any user");
        return Ok(());
    }
    let settings = [("RUG_WORKER_PROCESS__ALLOW_ROOT", "false"), ("RUG_WORKER_PROCESS__DEFAULT_USER", "nobody")];
    let worker_env = settings.map(|(name, value)| (name, value.to_owned())).to_vec();
    let mut cluster = Cluster::start(Options { workers: 2, worker_env, ..Options::default() }).await?;
    let (text, port) = fleet_of_the_readme();
    cluster.rugctl(&["apply", "-f", "-"], &text).await?.success()?;
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.0 200") && answer.contains("Directory listing"), "{answer}");
    let mut before = Vec::new();
    for name in ["web-1", "web-2"] {
        let pid = *api::pids(&cluster.api.get(name).await?).first().context("it runs")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        ensure!(status.lines().any(|line| line.starts_with("Uid:") && !line.contains("\t0")), "{status}");
        before.push(pid);
    }
    // The workers die and come back: what runs goes on.
    for worker in &mut cluster.workers {
        worker.kill()?;
    }
    cluster.start_all().await?;
    for (name, pid) in ["web-1", "web-2"].into_iter().zip(before) {
        ensure!(api::pids(&cluster.api.get(name).await?) == [pid], "{name} was replaced");
    }
    cluster.rugctl(&["delete", "--all", "--yes"], "").await?.success()?;
    cluster.finish().await
}

#[tokio::test]
async fn a_command_decides_whether_an_instance_is_well() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    let ready = cluster.root().join("ready");
    let text = format!(
        "name: asked\nkind: custom\nprobe_interval: 500ms\nspec:\n  command: sleep\n  args: ['86400']\n  \
         probe: {{exec: {{command: [ls, '{}']}}}}\n",
        ready.display()
    );
    cluster.rugctl(&["apply", "-f", "-", "--no-wait"], &text).await?.success()?;
    let pid = until(PATIENCE, "it is told why it is not up", async || {
        let now = cluster.api.get("asked").await?;
        let error = now.status.as_ref().map(|status| status.last_error.clone()).unwrap_or_default();
        ensure!(error.contains("ended with exit status 2; last output: "), "{}", api::describe(&now));
        api::pids(&now).first().copied().context("it runs")
    })
    .await?;
    std::fs::write(&ready, "")?;
    until(PATIENCE, "it is up", async || {
        let now = cluster.api.get("asked").await?;
        ensure!(api::is_configured(&now) && api::pids(&now) == [pid], "{}", api::describe(&now));
        Ok(())
    })
    .await?;
    std::fs::remove_file(&ready)?;
    until(PATIENCE, "it is replaced", async || {
        let now = cluster.api.get("asked").await?;
        ensure!(api::pids(&now).first().is_some_and(|new| *new != pid), "{}", api::describe(&now));
        Ok(())
    })
    .await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_deletion_that_waits_can_be_hurried() -> Result<()> {
    let cluster = Cluster::start(Options { workers: 1, ..Options::default() }).await?;
    // It hears the signal and stays.
    let script = "trap : TERM; while :; do sleep 0.1; done";
    let text = format!(
        "name: stubborn\nkind: custom\nreplicas: 2\nspec: {{command: sh, args: [-c, '{script}'], probe: none, stop_timeout: 30m}}\n"
    );
    cluster.rugctl(&["apply", "-f", "-"], &text).await?.success()?;
    cluster.rugctl(&["delete", "stubborn", "--no-wait"], "").await?.success()?;
    until(PATIENCE, "it is being ended", async || {
        let log = cluster.workers.first().context("there is one")?.log_text();
        ensure!(log.contains("to=Deleting"), "{log}");
        Ok(())
    })
    .await?;
    cluster.rugctl(&["delete", "stubborn", "--timeout", "1s"], "").await?.refused(1, &["Deleting"])?;
    ensure!(cluster.instances().len() == 2, "it was not waited for");
    cluster.rugctl(&["delete", "stubborn", "--now", "--timeout", "20s"], "").await?.success()?;
    ensure!(cluster.instances().is_empty(), "{:?}", cluster.instances());
    cluster.finish().await
}
