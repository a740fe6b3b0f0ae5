//! Records what a version leaves behind: run by `scripts/record-previous` with the binaries of that version.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use proto::admin::v1;
use serde_json::Value;
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, Sandbox, api, specs};

use super::stage::{
    self, APPLIANCE, HOME, Recorded, StageProcess, StageProcessKind, StageRequest, UpgradeStage, data, requested,
};

/// Below the ports that the kernel picks by itself, so that they are free when the processes are started again.
const PORT: u16 = 17_811;
/// The only variable that a specification here sets.
const OWN_VARIABLE: &str = "WORD";

/// A Python web server, found by its name so that its path is not recorded.
fn python(name: &str, port: u16, probe: v1::probe::Probe) -> v1::Appliance {
    let mut appliance = specs::simulated(name);
    appliance.driver = "process".into();
    let custom = specs::custom(&mut appliance);
    custom.command = "python3".into();
    custom.args = ["-m", "http.server", "{port}", "--bind", "127.0.0.1"].map(Into::into).to_vec();
    custom.port = Some(port.into());
    custom.probe = Some(v1::Probe { probe: Some(probe) });
    specs::spec(&mut appliance).probe_interval = Some(specs::duration(std::time::Duration::from_secs(1)));
    appliance
}

fn http() -> v1::probe::Probe {
    v1::probe::Probe::Http(v1::HttpProbe { path: "/".into() })
}

fn appliances() -> Vec<v1::Appliance> {
    let mut replicas = python("replicas", PORT + 1, http());
    specs::spec(&mut replicas).replicas = Some(2);
    replicas.labels = [("tier".into(), "gold".into()), ("owner".into(), "übung".into())].into();
    replicas.placement_key = "together".into();
    let mut tcp = python("tcp", PORT + 3, v1::probe::Probe::Tcp(v1::TcpProbe {}));
    tcp.tenant = "other".into();
    let mut failing = python("failing", PORT + 4, http());
    "false".clone_into(&mut specs::custom(&mut failing).command);
    vec![
        specs::balancer("balancer", PORT, &[PORT + 3]),
        replicas,
        tcp,
        failing,
        python("updated", PORT + 5, http()),
        python("rebuilt", PORT + 6, http()),
        python("moved-1", PORT + 7, http()),
        python("moved-2", PORT + 8, http()),
    ]
}

async fn healthy(stage: &mut UpgradeStage, name: &str) -> Result<()> {
    until(PATIENCE, "the worker is healthy", async || {
        stage.check()?;
        let workers = stage.api.workers().await?;
        ensure!(workers.iter().any(|w| w.id == name && w.health() == v1::Health::Healthy), "{workers:?}");
        Ok(())
    })
    .await
}

/// Waits until every appliance of this driver is owned and has come to rest, and nothing moves.
async fn at_rest(stage: &mut UpgradeStage, driver: &str) -> Result<()> {
    until(PATIENCE, "everything is at rest", async || {
        stage.check()?;
        for appliance in stage.api.list().await?.into_iter().filter(|a| a.driver == driver) {
            let owned = appliance.assignment.as_ref().is_some_and(|a| a.state == "owned");
            let failed = appliance.status.as_ref().is_some_and(|s| s.phase() == v1::Phase::Error);
            ensure!(owned && (failed || api::is_configured(&appliance)), "{}", api::describe(&appliance));
        }
        let status = stage.api.status().await?;
        ensure!(status.moves_in_flight == 0, "{} moves", status.moves_in_flight);
        let rebalances = stage.api.rebalances().await?;
        ensure!(rebalances.iter().all(|r| r.end_time.is_some()), "{rebalances:?}");
        Ok(())
    })
    .await
}

/// Runs a small history: appliances of every sort, moves, losses.
async fn play(stage: &mut UpgradeStage) -> Result<StageRequest> {
    stage.coordinator.start()?;
    stage.start_workers(&["w1", "w3"])?;
    for name in ["w1", "w3"] {
        healthy(stage, name).await?;
    }
    for appliance in appliances() {
        stage.api.create(appliance).await?;
    }
    for name in ["simulated", "doomed", "gone"] {
        stage.api.create(specs::simulated(name)).await?;
    }
    let id = uuid::Uuid::new_v4().to_string();
    let created = stage.api.appliances().create(requested(&id)).await?.into_inner();
    at_rest(stage, "process").await?;
    at_rest(stage, "simulated").await?;
    stage.api.delete("gone").await?;
    stage.start_workers(&["w2"])?;
    healthy(stage, "w2").await?;
    until(PATIENCE, "the newcomer has its share", async || {
        let owned = stage.api.list().await?.iter().filter(|a| api::owner(a) == "w2").count();
        ensure!(owned >= 2, "{owned}");
        Ok(())
    })
    .await?;
    at_rest(stage, "process").await?;
    for word in ["one", "two"] {
        let mut changed = python("updated", PORT + 5, http());
        specs::custom(&mut changed).env = [(OWN_VARIABLE.into(), word.into())].into();
        stage.api.apply(changed).await?;
    }
    let rebuilt = Some(api::reference("rebuilt"));
    stage.api.appliances().rebuild(v1::RebuildApplianceRequest { appliance: rebuilt, ..Default::default() }).await?;
    at_rest(stage, "process").await?;
    // An owner that stops hands over what it counted.
    let owner = api::owner(&stage.api.get("failing").await?).to_owned();
    stage.worker(&owner)?.stop(PATIENCE).await?;
    at_rest(stage, "process").await?;
    stage.worker(&owner)?.start()?;
    healthy(stage, &owner).await?;
    at_rest(stage, "process").await?;
    // One that dies hands over nothing, and its appliances have nobody.
    stage.worker("w3")?.kill()?;
    until(PATIENCE, "what it owned has no owner", async || {
        let simulated = stage.api.list().await?.into_iter().filter(|a| a.driver == "simulated");
        for appliance in simulated {
            let state = appliance.assignment.as_ref().map(|a| a.state.clone()).unwrap_or_default();
            ensure!(state == "orphaned", "{}", api::describe(&appliance));
        }
        Ok(())
    })
    .await?;
    stage.api.delete("doomed").await?;
    stage.api.create(specs::simulated("unplaced")).await?;
    Ok(StageRequest { id, appliance: created.id })
}

/// What is shown once it is the same several looks after each other: reports come some time after what they tell.
async fn shown(stage: &UpgradeStage, request: StageRequest) -> Result<Recorded> {
    let (mut appliances, mut same) = (Vec::new(), 0);
    until(PATIENCE, "nothing changes any more", async || {
        let now = stage.appliances().await?;
        same = if now == appliances { same + 1 } else { 0 };
        appliances = now;
        ensure!(same >= 40, "something has just changed");
        Ok(())
    })
    .await?;
    let workers = stage.rugctl_list(&["worker", "list"]).await?;
    let rebalances = stage.rebalances().await?;
    let term = stage.api.status().await?.term;
    Ok(Recorded { term, appliances, workers, rebalances, request })
}

/// A process of an instance as the kernel shows it.
fn process(instance: &str, pid: u32) -> Result<StageProcess> {
    let words = |file: &str| -> Result<Vec<String>> {
        let text = String::from_utf8(fs::read(format!("/proc/{pid}/{file}"))?)?;
        Ok(text.split_terminator('\0').map(str::to_owned).collect())
    };
    let mut arguments = words("cmdline")?;
    if arguments.first().is_some_and(|program| program.ends_with("/rug-appliance")) {
        arguments[0] = APPLIANCE.to_owned();
    } else if let Some(program) = arguments.first_mut() {
        // By name, as it was written in the specification.
        *program = Path::new(program).file_name().context("a program")?.to_string_lossy().into_owned();
    }
    let variables = words("environ")?;
    let variables = variables.iter().filter_map(|variable| variable.split_once('='));
    let own = variables.filter(|(name, _)| name.starts_with("RUG_") || *name == OWN_VARIABLE);
    let variables: BTreeMap<String, String> = own.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let directory = fs::read_link(format!("/proc/{pid}/cwd"))?;
    Ok(StageProcess { instance: instance.to_owned(), arguments, variables, directory })
}

/// Keeps the state directory of the workers: records, with placeholders for who the processes are, and token files.
fn keep_instances(stage: &UpgradeStage) -> Result<()> {
    let (from, to) = (stage.workers_dir(), data("workers", ""));
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    let mut processes = Vec::new();
    for (instance, identity) in stage.instances() {
        let process = process(&instance, identity.pid)?;
        let record = process.record(&from)?;
        let mut content: Value = serde_json::from_str(&fs::read_to_string(&record)?)?;
        let running = content.pointer_mut("/state/running").context("it runs")?;
        *running = serde_json::json!({"pid": "{pid}", "start_ticks": "{start_ticks}", "boot": "{boot}"});
        let kept = process.record(&to)?;
        fs::create_dir_all(kept.parent().context("below a folder")?)?;
        fs::write(kept, serde_json::to_string_pretty(&content)? + "\n")?;
        processes.push(process);
    }
    fs::create_dir_all(to.join("fences"))?;
    for entry in fs::read_dir(from.join("fences"))? {
        let file = entry?.path();
        if file.extension().is_none() {
            fs::copy(&file, to.join("fences").join(file.file_name().context("a name")?))?;
        }
    }
    fs::write(data("processes", "json"), serde_json::to_string_pretty(&processes)? + "\n")?;
    Ok(())
}

async fn record(kind: StageProcessKind) -> Result<()> {
    let mut stage = UpgradeStage::prepare(kind, Sandbox::at(Path::new(HOME)).await?).await?;
    for worker in &mut stage.workers {
        worker.environment(&[("RUG_WORKER_RUNNER__LIFECYCLE__ERROR_COOLDOWN", "1h".to_owned())]);
    }
    // Backends that know no tokens leave a time that the next owner has to wait.
    let hold = [("RUG_WORKER_SIMULATED__FENCING", "hold".to_owned()), ("RUG_WORKER_SIMULATED__HOLD", "3s".to_owned())];
    stage.worker("w3")?.environment(&hold);
    let request = play(&mut stage).await?;
    let recorded = shown(&stage, request).await?;
    stage.coordinator.stop(PATIENCE).await?;
    fs::create_dir_all(data(kind.name(), "sql").parent().context("below a folder")?)?;
    fs::write(data(kind.name(), "sql"), stage.database.dump().await?)?;
    fs::write(data(kind.name(), "json"), serde_json::to_string_pretty(&recorded)? + "\n")?;
    if kind == StageProcessKind::Sqlite {
        keep_instances(&stage)?;
    }
    for name in ["w1", "w2"] {
        stage.worker(name)?.kill()?;
    }
    stage::dismantle(stage)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes tests/data/previous; run by scripts/record-previous"]
async fn record_all() -> Result<()> {
    for kind in [StageProcessKind::MariaDb, StageProcessKind::Postgres, StageProcessKind::Sqlite] {
        record(kind).await.with_context(|| format!("record {}", kind.name()))?;
    }
    Ok(())
}
