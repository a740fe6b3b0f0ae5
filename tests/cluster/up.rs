//! `rugctl up` without a terminal: the whole life of an embedded cluster.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::cluster::daemon::Daemon;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, Sandbox, binaries, ports, processes, rugctl};

/// Runs a command in the sandbox, where it finds the server by itself.
async fn run(sandbox: &Sandbox, args: &[&str], input: &str) -> Result<rugctl::CommandOutput> {
    rugctl::run(sandbox.root(), args, input).await
}

/// Runs `rug-worker` in the sandbox.
async fn instances(sandbox: &Sandbox, args: &[&str]) -> Result<rugctl::CommandOutput> {
    let output = tokio::process::Command::new(binaries::path("rug-worker")?)
        .args(args)
        .current_dir(sandbox.root())
        .output()
        .await
        .context("start rug-worker")?;
    Ok(rugctl::CommandOutput {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Waits until `up` has said this `times` times.
async fn said(up: &mut Daemon, text: &str, times: usize) -> Result<()> {
    until(PATIENCE, &format!("`rugctl up` has said {text:?}"), async || {
        up.check()?;
        let log = up.log_text();
        ensure!(log.matches(text).count() >= times, "it said:\n{log}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn up_leaves_appliances_running_takes_them_over_again_and_removes_them_when_asked() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let state = sandbox.path(".rug");
    let words = ["up", "--workers", "2", "--state-dir"];
    let mut args: Vec<_> = words.map(Into::into).to_vec();
    args.push(state.clone().into_os_string());
    let mut up = Daemon::new("up", binaries::path("rugctl")?, args, &sandbox);
    up.start()?;
    said(&mut up, "ready; Ctrl-C stops Rug", 1).await?;

    let helper = binaries::path("rug-test-helper")?;
    let (port, front) = (ports::free(), ports::free());
    let fleet = format!(
        "name: web\nkind: custom\nprobe_interval: 1s\nspec:\n  command: {}\n  args: [serve, '{{port}}', '{{name}}']\n  \
         port: {port}\n  probe: http\n---\nname: front\nkind: loadbalancer\nspec:\n  listeners:\n  - port: {front}\n    \
         members: [{{port: {port}}}]\n",
        helper.display()
    );
    let applied = run(&sandbox, &["apply", "-f", "-"], &fleet).await?.success()?;
    ensure!(applied.stdout.contains("custom/web created"), "{}", applied.stdout);
    ensure!(applied.stdout.contains("loadbalancer/front created"), "{}", applied.stdout);
    let again = run(&sandbox, &["apply", "-f", "-"], &fleet).await?.success()?;
    ensure!(again.stdout.matches("unchanged").count() == 2, "{}", again.stdout);
    ensure!(tests::cluster::http::get(front).await? == "web");
    let running = processes::instances(sandbox.root());
    ensure!(running.len() == 2, "{running:?}");
    let found = instances(&sandbox, &["instances"]).await?.success()?;
    ensure!(found.stdout.lines().count() == 2, "{found:?}");
    // A second one in the same folder is refused and touches nothing.
    let folder = state.to_string_lossy().into_owned();
    let second = run(&sandbox, &["up", "--state-dir", &folder], "").await?;
    second.refused(5, &["in use", &format!("pid {}", up.pid().context("it runs")?)])?;

    for (round, signal) in [(2, Signal::INT), (3, Signal::TERM)] {
        up.signal(signal)?;
        let status = up.ended(Duration::from_secs(20)).await?;
        ensure!(status.success(), "it ended with {status}");
        said(&mut up, "2 appliances keep running", round - 1).await?;
        ensure!(processes::instances(sandbox.root()) == running, "appliances ended with Rug");
        ensure!(tests::cluster::http::get(front).await? == "web");
        up.start()?;
        said(&mut up, "ready; Ctrl-C stops Rug", round).await?;
        until(PATIENCE, "both are adopted", async || {
            let listed = run(&sandbox, &["list", "-o", "json"], "").await?.json()?;
            let configured =
                |a: &Value| a["status"]["phase"].as_str().is_some_and(|p| p.eq_ignore_ascii_case("configured"));
            let both = listed.as_array().filter(|l| l.len() == 2).is_some_and(|l| l.iter().all(configured));
            ensure!(both, "{listed}");
            Ok(())
        })
        .await?;
        ensure!(processes::instances(sandbox.root()) == running, "appliances were restarted");
    }

    // Killed without a chance to stop anything: the next one takes over what it left.
    up.kill()?;
    up.start()?;
    said(&mut up, "ready; Ctrl-C stops Rug", 4).await?;
    ensure!(processes::instances(sandbox.root()) == running, "appliances were restarted");
    up.signal(Signal::INT)?;
    up.ended(Duration::from_secs(20)).await?;

    let down = run(&sandbox, &["up", "--down", "--state-dir", &folder], "").await?.success()?;
    ensure!(down.stderr.contains("removed 2 appliances"), "{}", down.stderr);
    ensure!(processes::instances(sandbox.root()).is_empty(), "{:?}", processes::instances(sandbox.root()));
    let left: Vec<_> = std::fs::read_dir(state.join("workers").join("instances"))?.flatten().collect();
    ensure!(left.is_empty(), "{left:?}");
    sandbox.finish(&[])
}

#[tokio::test]
async fn settings_of_another_cluster_are_refused_before_anything_is_touched() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let state = sandbox.path(".rug");
    // Without it `--down` has nothing to do.
    std::fs::create_dir_all(state.join("coordinator"))?;
    let store = sandbox.path("shared.db");
    for words in [&["up", "--state-dir"][..], &["up", "--down", "--state-dir"]] {
        let args = words.iter().map(Into::into).chain([state.clone().into_os_string()]).collect();
        let mut up = Daemon::new("up", binaries::path("rugctl")?, args, &sandbox);
        up.environment(&[("RUG_COORDINATOR_STORE__URL", format!("sqlite:{}", store.display()))]);
        up.start()?;
        let status = up.ended(PATIENCE).await?;
        let log = up.log_text();
        ensure!(status.code() == Some(2) && log.contains("unset RUG_COORDINATOR_STORE__URL"), "{status}:\n{log}");
        ensure!(!store.exists() && !state.join("lock").exists(), "something was started");
    }
    sandbox.finish(&[])
}

#[tokio::test]
async fn up_opens_a_port_to_everybody_only_when_it_is_told_to() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let (state, listen) = (sandbox.path(".rug"), format!("127.0.0.1:{}", ports::free()));
    let words = ["up", "--workers", "1", "--listen", &listen, "--state-dir"];
    let folder = state.to_string_lossy().into_owned();
    // A port without the word is refused, and nothing is started.
    let refused = run(&sandbox, &[&words[..], &[&folder]].concat(), "").await?;
    ensure!(refused.code == 2 && refused.stderr.contains("insecure"), "{refused:?}");
    let args = words.iter().map(Into::into).chain([folder.into(), "--insecure".into()]).collect();
    let mut up = Daemon::new("up", binaries::path("rugctl")?, args, &sandbox);
    up.start()?;
    said(&mut up, "ready; Ctrl-C stops Rug", 1).await?;
    for server in [None, Some(format!("http://{listen}"))] {
        let named: Vec<_> = server.iter().flat_map(|server| ["--server", server]).collect();
        run(&sandbox, &[&["cluster", "status"], &named[..]].concat(), "").await?.success()?;
    }
    let log = std::fs::read_to_string(state.join("logs/coordinator-1.log"))?;
    ensure!(log.contains("insecure = true"), "the log does not warn:\n{log}");
    up.signal(Signal::INT)?;
    up.ended(Duration::from_secs(20)).await?;
    sandbox.finish(&[])
}

#[tokio::test]
async fn a_cluster_whose_folder_was_deleted_says_so_and_keeps_others_out() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let state = sandbox.path(".rug");
    let folder = state.to_string_lossy().into_owned();
    let args = ["up", "--workers", "1", "--state-dir", &folder].map(Into::into).to_vec();
    let mut up = Daemon::new("up", binaries::path("rugctl")?, args, &sandbox);
    up.start()?;
    said(&mut up, "ready; Ctrl-C stops Rug", 1).await?;
    let spec = "name: web\nkind: custom\nspec: {command: sleep, args: ['77777'], probe: none}\n";
    run(&sandbox, &["apply", "-f", "-"], spec).await?.success()?;

    // The endpoint file is made again; nothing else of it can be.
    std::fs::remove_file(state.join("endpoint"))?;
    until(PATIENCE, "there is an endpoint file again", async || {
        ensure!(state.join("endpoint").exists());
        Ok(())
    })
    .await?;
    run(&sandbox, &["list"], "").await?.success()?;

    std::fs::remove_dir_all(&state)?;
    said(&mut up, "was deleted under the running cluster", 1).await?;
    let pid = up.pid().context("it runs")?.to_string();
    let below = sandbox.path("below");
    std::fs::create_dir(&below)?;
    for root in [sandbox.root(), &below] {
        for words in [&["doctor"][..], &["list"], &["apply", "-f", "-"], &["delete", "web"]] {
            let refused = rugctl::run(root, words, spec).await?;
            refused.refused(1, &[&format!("`rugctl up` (pid {pid})"), &format!("`kill {pid}`"), &folder])?;
        }
    }
    for words in [&["up", "--state-dir", &folder][..], &["up", "--down", "--state-dir", &folder]] {
        run(&sandbox, words, "").await?.refused(5, &[&format!("`kill {pid}`"), "only then"])?;
        ensure!(!state.exists(), "a second cluster was begun");
    }

    up.signal(Signal::INT)?;
    up.ended(Duration::from_secs(20)).await?;
    said(&mut up, "stopped; 1 appliance keeps running, and no cluster knows of that any more", 1).await?;
    // As it has said, what runs can be found without the folder, also by itself.
    let workers = state.join("workers").to_string_lossy().into_owned();
    for words in [&["instances", "--state-dir", &workers][..], &["instances"]] {
        let found = instances(&sandbox, words).await?.success()?;
        ensure!(found.stdout.lines().count() == 1 && !state.exists(), "{found:?}");
    }
    // Nothing keeps a new cluster out any more.
    run(&sandbox, &["doctor"], "").await?.refused(2, &["no cluster runs in"])?;
    up.start()?;
    said(&mut up, "ready; Ctrl-C stops Rug", 2).await?;
    up.signal(Signal::INT)?;
    up.ended(Duration::from_secs(20)).await?;
    sandbox.finish(&[])
}

#[tokio::test]
async fn parts_of_the_folder_that_are_deleted_are_named() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let state = sandbox.path(".rug");
    let args = ["up", "--workers", "1", "--state-dir"].map(Into::into).into_iter();
    let args = args.chain([state.clone().into_os_string()]).collect();
    let mut up = Daemon::new("up", binaries::path("rugctl")?, args, &sandbox);
    up.start()?;
    said(&mut up, "ready; Ctrl-C stops Rug", 1).await?;
    let spec =
        |name: &str| format!("name: {name}\nkind: custom\nspec: {{command: sleep, args: ['77777'], probe: none}}\n");
    run(&sandbox, &["apply", "-f", "-"], &spec("web")).await?.success()?;

    std::fs::remove_dir_all(state.join("workers"))?;
    said(&mut up, "under the running cluster: workers; instances are neither started nor ended", 1).await?;
    let reason = "the state directory was deleted, moved or replaced under the worker";
    run(&sandbox, &["apply", "-f", "-", "--timeout", "10s"], &spec("late")).await?.refused(1, &[reason])?;

    std::fs::remove_file(state.join("coordinator/rug.db"))?;
    said(&mut up, "coordinator/rug.db, workers; changes are refused", 1).await?;
    let doctor = run(&sandbox, &["doctor"], "").await?;
    ensure!(doctor.code == 1 && doctor.stdout.contains("was deleted or replaced"), "{doctor:?}");
    run(&sandbox, &["apply", "-f", "-"], &spec("later")).await?.refused(3, &["was deleted or replaced"])?;

    // Without its lock, too, a second one is refused.
    std::fs::remove_file(state.join("lock"))?;
    let folder = state.to_string_lossy().into_owned();
    let pid = up.pid().context("it runs")?;
    run(&sandbox, &["up", "--state-dir", &folder], "").await?.refused(5, &[&format!("`kill {pid}`")])?;
    up.signal(Signal::INT)?;
    up.ended(Duration::from_secs(20)).await?;
    said(&mut up, "no cluster knows of that any more", 1).await?;
    sandbox.finish(&["the store accepts no changes".to_owned()])
}
