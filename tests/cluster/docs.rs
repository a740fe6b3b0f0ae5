//! What README and docs show is what happens: every call is one that the programs take, and every block of commands is typed into a
//! shell, its output compared with the page. See [`tests::docs`].

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use servers::postgres::{self, Postgres};
use servers::zookeeper::{self, Standalone};
use tests::cluster::daemon::Daemon;
use tests::cluster::wait::until;
use tests::cluster::{Cluster, Options, PATIENCE, Sandbox, api, binaries, ports, specs};
use tests::docs::blocks::{self, Block};
use tests::docs::shell::{Shell, Words};
use tokio::process::Command;

/// What pages of the documentation call these, and the set-ups that the tests below make.
const SCENARIOS: &[&str] =
    &["readme", "machines", "cluster", "changes", "rollout", "history", "gone", "unbind", "folder"];

fn words(words: &[(&str, &str)]) -> Words {
    words.iter().map(|(page, here)| ((*page).to_owned(), (*here).to_owned())).collect()
}

/// The blocks that are tried in this set-up, in the order of pages and lines.
fn blocks_in(scenario: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    for page in blocks::pages()? {
        found.extend(blocks::blocks(&page)?.into_iter().filter(|block| block.scenario.as_deref() == Some(scenario)));
    }
    ensure!(!found.is_empty(), "no block is tried in {scenario}");
    Ok(found)
}

async fn run_all(shell: &mut Shell, scenario: &str) -> Result<()> {
    for block in blocks_in(scenario)? {
        shell.block(&block).await?;
    }
    Ok(())
}

#[test]
fn every_block_of_commands_is_tried_or_says_why_not() -> Result<()> {
    let mut tried = 0;
    for page in blocks::pages()? {
        for block in blocks::blocks(&page)? {
            if let Some(scenario) = block.scenario {
                ensure!(SCENARIOS.contains(&scenario.as_str()), "{}: nobody makes {scenario}", page.display());
                tried += 1;
            }
        }
    }
    ensure!(tried >= SCENARIOS.len(), "{tried} blocks");
    Ok(())
}

#[tokio::test]
async fn every_call_on_a_page_is_one_that_the_programs_take() -> Result<()> {
    let mut calls = BTreeSet::new();
    for page in blocks::pages()? {
        calls.extend(blocks::calls(&page)?);
    }
    ensure!(calls.len() > 100, "{} calls", calls.len());
    let mut wrong = Vec::new();
    for call in calls {
        let (program, args) = call.split_first().context("a call has a program")?;
        let program = program.rsplit('/').next().unwrap_or(program);
        // Values that a page leaves open, and what it leaves out.
        // Behind `--` stands a command for others.
        let known = args.iter().take_while(|arg| *arg != "--").filter(|arg| !arg.contains("...") && !arg.contains('…'));
        let known: Vec<String> =
            known.map(|arg| if is_open_number(arg) { "1".to_owned() } else { arg.clone() }).collect();
        // Asked for help, a program reads what stands before that, complains about what it does not know, and does nothing.
        let output =
            Command::new(binaries::path(program)?).args(&known).arg("--help").kill_on_drop(true).output().await?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // A value that stands for one, such as NAME, may not be one.
        let is_open =
            said.contains("invalid value '") && known.iter().any(|arg| arg.chars().any(|c| c.is_ascii_uppercase()));
        // A flag that is named without its value takes `--help` for it.
        let is_unfinished = said.contains("a value is required for") || said.contains("'--help' for");
        if !output.status.success() && !is_open && !is_unfinished {
            wrong.push(format!("{}: {}", call.join(" "), said.lines().next().unwrap_or_default()));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A number that a page leaves open.
fn is_open_number(arg: &str) -> bool {
    ["N", "N%", "R", "B", "LINES"].contains(&arg)
}

#[tokio::test]
async fn the_first_steps_of_the_readme_go_as_it_shows() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let known = ["8080", "8081", "8082"].map(|known| (known, ports::free().to_string()));
    let mut fleet = include_str!("../../docs/examples/fleet.yaml").to_owned();
    for (page, here) in &known {
        fleet = fleet.replace(page, here);
    }
    fs::create_dir_all(sandbox.path("docs/examples"))?;
    fs::write(sandbox.path("docs/examples/fleet.yaml"), fleet)?;
    let up_args = vec!["up".into(), "--state-dir".into(), sandbox.path(".rug").into_os_string()];
    let mut up = Daemon::new("up", binaries::path("rugctl")?, up_args, &sandbox);
    up.environment(&[("RUG_COORDINATOR_TELEMETRY__SAMPLE_RATIO", "1".into())]);
    up.start()?;
    until(PATIENCE, "the cluster is up", async || {
        up.check()?;
        ensure!(up.log_text().contains("ready; Ctrl-C stops Rug"), "{}", up.log_text());
        Ok(())
    })
    .await?;
    let mut shell =
        Shell::start(sandbox.root(), &[], words(&known.each_ref().map(|(page, here)| (*page, here.as_str())))).await?;
    for block in blocks_in("readme")? {
        // The page kills the worker that has web-1; which one that is depends on chance.
        if block.steps.iter().any(|step| step.command.contains(".rug/run/worker-2.pid")) {
            let (printed, _) = shell.run("rugctl get web-1 -o jsonpath='$.status.assignment.worker'").await?;
            let owner = printed.first().context("it has an owner")?.trim_matches('"').to_owned();
            shell.word("worker-2", &owner);
        }
        shell.block(&block).await?;
    }
    let (printed, code) = shell.run("rugctl delete --all --yes").await?;
    ensure!(code == 0, "{printed:?}");
    up.stop(Duration::from_secs(20)).await?;
    // Workers and appliances were killed on purpose.
    sandbox.dismantle(false)
}

#[tokio::test]
async fn several_machines_go_as_the_readme_shows() -> Result<()> {
    let zookeeper = Standalone::start(zookeeper::Options::default()).await?;
    let database = Postgres::start(postgres::Options { fsync: false, ..postgres::Options::default() }).await?;
    let sandbox = Sandbox::new()?;
    let known = ["8080", "8081", "8082"].map(|known| (known, ports::free().to_string()));
    let mut fleet = include_str!("../../docs/examples/fleet.yaml").to_owned();
    for (page, here) in &known {
        fleet = fleet.replace(page, here);
    }
    fs::create_dir_all(sandbox.path("docs/examples"))?;
    fs::write(sandbox.path("docs/examples/fleet.yaml"), fleet)?;
    fs::create_dir_all(sandbox.path(".rug"))?;
    let root = sandbox.root().to_string_lossy().into_owned();
    let words = words(&[
        ("zookeeper://127.0.0.1:2181", &format!("zookeeper://{}", zookeeper.connect_string())),
        ("postgres://rug:rug@127.0.0.1/rug", &database.create_database("docs").await?),
        ("/home/you/rug", &root),
    ]);
    let mut shell = Shell::start(sandbox.root(), &[], words).await?;
    run_all(&mut shell, "machines").await?;
    let (printed, code) = shell.run("rugctl delete --all --yes --timeout 30s").await?;
    ensure!(code == 0, "{printed:?}");
    sandbox.dismantle(false)
}

/// A cluster of processes as the pages for operators have it, and a shell that knows it.
async fn cluster(workers: u16, driver: &'static str) -> Result<(Cluster, Shell)> {
    let coordinator_env = vec![("RUG_COORDINATOR_CLUSTER", "prod".to_owned())];
    let cluster =
        Cluster::start(Options { workers, drivers: vec![driver], coordinator_env, ..Options::default() }).await?;
    let address = cluster.api.address().to_owned();
    let root = cluster.root().to_string_lossy().into_owned();
    let words = words(&[
        ("https://rug-1:7470,https://rug-2:7470,https://rug-3:7470", &address),
        (
            "--server https://rug-1:7470,https://rug-2:7470 --tls-ca ca.pem --tls-cert me.pem --tls-key me.key",
            &format!("--server {address}"),
        ),
        ("rug-1:7470,rug-2:7470", &address),
        ("--state-dir rug-coordinator-state /backup/", &format!("--state-dir coordinator {root}/")),
    ]);
    let shell = Shell::start(cluster.root(), &[("RUG_SERVER", address)], words).await?;
    Ok((cluster, shell))
}

#[tokio::test]
async fn the_pages_for_operators_go_as_they_show() -> Result<()> {
    let (cluster, mut shell) = cluster(3, "process").await?;
    let mut web = specs::web("web-1");
    web.labels.insert("app".into(), "web".into());
    cluster.fleet(vec![web]).await?;
    run_all(&mut shell, "cluster").await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_diff_shows_what_the_page_shows() -> Result<()> {
    let (cluster, mut shell) = cluster(1, "process").await?;
    let document = |replicas: u32, args: &str| {
        format!(
            "name: web-1\nkind: custom\nreplicas: {replicas}\nspec: {{command: sleep, args: [{args}], probe: none}}\n"
        )
    };
    cluster.rugctl(&["apply", "-f", "-"], &document(1, "'86400'")).await?.success()?;
    fs::write(cluster.root().join("fleet.yaml"), document(3, "'86400', --verbose"))?;
    run_all(&mut shell, "changes").await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_rollout_goes_as_the_page_shows() -> Result<()> {
    let (cluster, mut shell) = cluster(3, "simulated").await?;
    let fleet = (0..60).map(|n| {
        let mut appliance = specs::simulated(&format!("sim-{n:02}"));
        appliance.tenant = "demo".into();
        specs::spec(&mut appliance).image = "v1".into();
        appliance
    });
    for appliance in fleet {
        cluster.api.create(appliance).await?;
    }
    until(PATIENCE, "all are configured", async || {
        let all = cluster.api.list().await?;
        ensure!(all.len() == 60 && all.iter().all(api::is_configured), "not yet");
        Ok(())
    })
    .await?;
    run_all(&mut shell, "rollout").await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_history_is_replayed_as_the_page_shows() -> Result<()> {
    let (mut cluster, mut shell) = cluster(4, "simulated").await?;
    cluster.fleet((0..80).map(|n| specs::simulated(&format!("sim-{n:02}"))).collect()).await?;
    cluster.worker("worker-4")?.kill()?;
    let owned = async |cluster: &Cluster, least: usize| {
        until(PATIENCE, "the workers have their shares", async || {
            let all = cluster.api.list().await?;
            let has = |worker: &str| all.iter().filter(|appliance| api::owner(appliance) == worker).count();
            ensure!(all.iter().all(|appliance| !api::owner(appliance).is_empty()), "some have no owner");
            ensure!(has("worker-4") >= least && (least > 0 || has("worker-4") == 0), "{}", has("worker-4"));
            Ok(())
        })
        .await
    };
    owned(&cluster, 0).await?;
    cluster.start_all().await?;
    owned(&cluster, 15).await?;
    cluster.rugctl(&["worker", "drain", "worker-1", "--wait", "--yes"], "").await?.success()?;
    cluster.rugctl(&["worker", "undrain", "worker-1"], "").await?.success()?;
    until(PATIENCE, "nothing moves any more", async || {
        let rebalances = cluster.api.rebalances().await?;
        ensure!(
            rebalances.iter().all(|r| r.end_time.is_some()) && rebalances.len() >= 3,
            "{} so far",
            rebalances.len()
        );
        Ok(())
    })
    .await?;
    run_all(&mut shell, "history").await?;
    cluster.finish().await
}

#[tokio::test]
async fn a_host_that_is_gone_is_shown_as_on_the_page() -> Result<()> {
    let (mut cluster, mut shell) = cluster(4, "process").await?;
    let elsewhere = cluster.root().join("lost").to_string_lossy().into_owned();
    let lost = cluster.worker("worker-4")?;
    lost.stop(Duration::from_secs(20)).await?;
    lost.flag("--host", "host-4");
    lost.environment(&[("RUG_WORKER_PROCESS__STATE_DIR", elsewhere.clone())]);
    lost.start()?;
    cluster.healthy().await?;
    let others = ["worker-1", "worker-2", "worker-3"];
    for other in others {
        cluster.rugctl(&["worker", "cordon", other], "").await?.success()?;
    }
    let fleet = cluster.fleet(vec![specs::web("web")]).await?;
    ensure!(fleet.iter().all(|web| api::owner(web) == "worker-4"), "{fleet:?}");
    for other in others {
        cluster.rugctl(&["worker", "uncordon", other], "").await?.success()?;
    }
    // The page for operators is about web-1.
    shell.word("web-1", "web");
    shell.word("/var/lib/rug", &elsewhere);
    cluster.worker("worker-4")?.kill()?;
    until(PATIENCE, "it waits for its host", async || {
        let web = cluster.api.get("web").await?;
        ensure!(
            web.assignment.as_ref().is_some_and(|now| now.reason.contains("which no worker uses")),
            "{}",
            api::describe(&web)
        );
        Ok(())
    })
    .await?;
    until(PATIENCE, "the doctor does not take it for a hand-off any more", async || {
        let (printed, code) = shell.run("rugctl doctor").await?;
        ensure!(code == 0 && printed.iter().any(|line| line.starts_with("warning  unowned")), "{printed:#?}");
        Ok(())
    })
    .await?;
    run_all(&mut shell, "gone").await?;
    run_all(&mut shell, "unbind").await?;
    cluster.finish().await
}

#[tokio::test]
async fn certificates_are_made_as_the_page_shows() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let script = blocks::root().join("docs/examples/make-certificates.sh").canonicalize()?;
    let words = words(&[("docs/examples/make-certificates.sh", &script.to_string_lossy())]);
    let mut shell = Shell::start(sandbox.root(), &[], words).await?;
    run_all(&mut shell, "folder").await?;
    sandbox.finish(&[])
}
