//! What an earlier version stored and started is read and taken over by this one.
//!
//! `tests/data/previous` holds what the version before this one left behind: the database of each kind as SQL, what its own
//! `rugctl` showed of it, and the state directory of its workers. [`record`] makes it anew; see the README there.

mod record;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::cluster::processes::{self, ProcessIdentity, ROOT_VARIABLE};
use tests::cluster::wait::until;
use tests::cluster::{PATIENCE, Sandbox, api, binaries, specs};

use self::stage::{HOME, Recorded, StageProcess, StageProcessKind, UpgradeStage, data, requested};

/// Fields of an appliance that belong to the memory of one leader.
const MEMORY: [&str; 1] = ["/status/assignment/reason"];

/// Starts a coordinator of this version on a database that the previous one wrote.
async fn restored(kind: StageProcessKind, sandbox: Sandbox) -> Result<(UpgradeStage, Recorded)> {
    let recorded: Recorded = serde_json::from_str(&fs::read_to_string(data(kind.name(), "json"))?)?;
    let mut stage = UpgradeStage::prepare(kind, sandbox).await?;
    stage.database.load(&fs::read_to_string(data(kind.name(), "sql"))?).await?;
    // Beside the embedded coordinator's lock; part of its state as much as the database.
    fs::write(stage.coordinator_dir().join("term"), format!("{}", recorded.term))?;
    // What its names held waits for them, so that nothing has to move while workers are restarted.
    stage.coordinator.environment(&[("RUG_COORDINATOR_MACHINE__DEPARTURE_GRACE_MS", "120000".to_owned())]);
    stage.coordinator.start()?;
    let status = until(PATIENCE, "it leads", async || {
        stage.coordinator.check()?;
        let status = stage.api.status().await?;
        ensure!(status.leading, "it does not lead");
        Ok(status)
    })
    .await?;
    ensure!(status.term == recorded.term + 1, "term {} follows {}", status.term, recorded.term);
    // Some of what was recorded waits for the fence delay of a former owner, which is said and is nothing wrong.
    let wrong = |note: &&String| !note.contains("calls of former owners may still take effect");
    ensure!(!status.notes.iter().any(|note| wrong(&note)) && status.violations == 0, "{status:?}");
    Ok((stage, recorded))
}

/// Fails unless everything that stands in `recorded` stands in `shown` as well; there may be more.
fn contained(recorded: &Value, shown: &Value, at: &str) -> Result<()> {
    // A probe without settings of its own is a word now, as it may be in documents.
    let word = |recorded: &Value| recorded["tcp"].as_object().is_some_and(serde_json::Map::is_empty) && shown == "tcp";
    if MEMORY.contains(&at) || (at == "/spec/probe" && word(recorded)) {
        return Ok(());
    }
    match (recorded, shown) {
        (Value::Object(recorded), Value::Object(shown)) => recorded.iter().try_for_each(|(name, value)| {
            let at = format!("{at}/{name}");
            contained(value, shown.get(name).with_context(|| format!("{at} is missing"))?, &at)
        }),
        (Value::Array(recorded), Value::Array(shown)) => {
            ensure!(recorded.len() == shown.len(), "{at} has {} entries, it had {}", shown.len(), recorded.len());
            recorded.iter().zip(shown).try_for_each(|(recorded, shown)| contained(recorded, shown, at))
        }
        _ => {
            ensure!(recorded == shown, "{at} is {shown}, it was {recorded}");
            Ok(())
        }
    }
}

fn by_id(list: &[Value]) -> BTreeMap<&str, &Value> {
    list.iter().filter_map(|one| Some((one.get("id")?.as_str()?, one))).collect()
}

/// Everything `rugctl` showed is shown as it was.
async fn all_is_shown(stage: &UpgradeStage, recorded: &Recorded) -> Result<()> {
    let shown = stage.appliances().await?;
    let (before, now) = (by_id(&recorded.appliances), by_id(&shown));
    ensure!(before.keys().eq(now.keys()), "other appliances: {:?}, it were {:?}", now.keys(), before.keys());
    for (id, appliance) in before {
        contained(appliance, now[id], "").with_context(|| format!("appliance {}", appliance["name"]))?;
    }
    let rebalances = stage.rebalances().await?;
    contained(&recorded.rebalances.clone().into(), &rebalances.into(), "rebalances")?;
    let workers = stage.rugctl_list(&["worker", "list"]).await?;
    let workers = by_id(&workers);
    for worker in recorded.workers.iter().filter(|worker| worker["health"] == "healthy") {
        let id = worker["id"].as_str().unwrap_or_default();
        let shown = workers.get(id).with_context(|| format!("worker {id} is not shown"))?;
        for field in ["incarnation", "host", "zone", "weight", "drivers", "version", "pid", "appliances"] {
            ensure!(shown[field] == worker[field], "{id}: {field} is {}, it was {}", shown[field], worker[field]);
        }
    }
    Ok(())
}

/// A database of the previous version: all of it is there, and the same request is the same request.
async fn is_read(kind: StageProcessKind) -> Result<()> {
    let (stage, recorded) = restored(kind, Sandbox::new()?).await?;
    all_is_shown(&stage, &recorded).await?;
    let created = stage.api.appliances().create(requested(&recorded.request.id)).await?.into_inner();
    ensure!(created.id == recorded.request.appliance, "a repeated request made another appliance: {}", created.id);
    let mut other = requested(&recorded.request.id);
    other.appliance.get_or_insert_default().name = "other".into();
    let refused = stage.api.appliances().create(other).await;
    ensure!(refused.is_err(), "a request id was taken for another request: {refused:?}");
    // What is written now follows what was written then.
    let mut changed = requested("").appliance.context("it has one")?;
    specs::custom(&mut changed).env = [("UPGRADED".into(), "yes".into())].into();
    let changed = stage.api.apply(changed).await?.appliance.context("it is there")?;
    ensure!(changed.id == created.id && changed.generation == created.generation + 1, "{changed:?}");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_of_the_previous_version_is_read() -> Result<()> {
    is_read(StageProcessKind::Sqlite).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_database_of_the_previous_version_is_read() -> Result<()> {
    is_read(StageProcessKind::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_database_of_the_previous_version_is_read() -> Result<()> {
    is_read(StageProcessKind::MariaDb).await
}

/// Starts a process the way the previous version's driver did. Answers who it is.
fn start(process: &StageProcess, sandbox: &Sandbox) -> Result<ProcessIdentity> {
    fs::create_dir_all(&process.directory)?;
    let appliance = binaries::path("rug-appliance")?;
    let mut command = Command::new(&appliance);
    command.args(["exec", "--"]).args(process.arguments.iter().flat_map(|argument| match argument.as_str() {
        // That version served whoever asked.
        stage::APPLIANCE => vec![appliance.to_string_lossy().into_owned(), "--insecure".to_owned()],
        other => vec![other.to_owned()],
    }));
    let child = command
        .envs(&process.variables)
        .env(ROOT_VARIABLE, sandbox.root())
        .current_dir(&process.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    processes::identify(child.id()).context("it has ended at once")
}

/// Puts the state directory in place, starts every process that is recorded in it, and fills in who they are.
async fn revive(sandbox: &Sandbox) -> Result<BTreeMap<String, ProcessIdentity>> {
    let workers = sandbox.path("workers");
    stage::copy(&data("workers", ""), &workers)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let recorded: Vec<StageProcess> = serde_json::from_str(&fs::read_to_string(data("processes", "json"))?)?;
    for process in &recorded {
        let identity = start(process, sandbox)?;
        let record = process.record(&workers)?;
        let text = fs::read_to_string(&record)?;
        let filled = text
            .replace("\"{pid}\"", &identity.pid.to_string())
            .replace("\"{start_ticks}\"", &identity.start_ticks.to_string())
            .replace("{boot}", boot.trim());
        ensure!(filled != text, "{} has no placeholder", record.display());
        fs::write(&record, filled)?;
    }
    let expected: BTreeSet<&str> = recorded.iter().map(|process| process.instance.as_str()).collect();
    until(PATIENCE, "all of them run and serve", async || {
        let running = processes::instances(sandbox.root());
        ensure!(running.keys().map(String::as_str).eq(expected.iter().copied()), "{running:?}");
        recorded.iter().try_for_each(|process| process.serves(&workers))?;
        Ok(running)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_the_previous_version_are_adopted_as_they_run() -> Result<()> {
    let sandbox = Sandbox::at(Path::new(HOME)).await?;
    let before = revive(&sandbox).await?;
    let (mut stage, recorded) = restored(StageProcessKind::Sqlite, sandbox).await?;
    stage.start_workers(&["w1", "w2"])?;
    // One of them is recorded as failing: it is tried again and again, and each try runs for a moment.
    let failing = recorded.appliances.iter().find(|appliance| appliance["name"] == "failing");
    let failing = failing.and_then(|appliance| appliance["id"].as_str()).context("none fails")?;
    let as_before = |stage: &UpgradeStage| {
        let mut now = stage.instances();
        now.retain(|instance, _| !instance.starts_with(failing));
        ensure!(now == before, "{now:?} run, it were {before:?}");
        Ok(())
    };
    let owner = |appliance: &Value| appliance["status"]["assignment"]["worker"].as_str().map(str::to_owned);
    let bound = |appliance: &&Value| appliance["driver"] == "process";
    until(PATIENCE, "every worker has back what it owned", async || {
        stage.check()?;
        for appliance in recorded.appliances.iter().filter(bound) {
            let now = stage.api.get(appliance["id"].as_str().unwrap_or_default()).await?;
            let owned = now.assignment.as_ref().is_some_and(|a| a.state == "owned");
            ensure!(owned && Some(api::owner(&now)) == owner(appliance).as_deref(), "{}", api::describe(&now));
            let configured = appliance["status"]["phase"] == "configured";
            ensure!(!configured || api::is_configured(&now), "{}", api::describe(&now));
        }
        Ok(())
    })
    .await?;
    as_before(&stage)?;
    // What was bound to a host and a path is bound to the id that the directory has got.
    until(PATIENCE, "everything is bound to the id of the directory", async || {
        let site = fs::read_to_string(stage.workers_dir().join("site"))?;
        for appliance in recorded.appliances.iter().filter(bound) {
            let now = stage.api.get(appliance["id"].as_str().unwrap_or_default()).await?;
            let id = now.assignment.as_ref().map_or("", |assignment| assignment.site.as_str());
            ensure!(!id.is_empty() && site.contains(id), "{}", api::describe(&now));
        }
        Ok(())
    })
    .await?;
    as_before(&stage)?;
    // What waited for a worker of its driver goes on as well: placed, taken over, or deleted to the end.
    stage.start_workers(&["w3"])?;
    until(PATIENCE, "everything has an owner, and what was deleted is gone", async || {
        stage.check()?;
        for appliance in stage.api.list().await? {
            let owned = appliance.assignment.as_ref().is_some_and(|a| a.state == "owned");
            ensure!(owned && !appliance.deleting, "{}", api::describe(&appliance));
        }
        Ok(())
    })
    .await?;
    let now: BTreeSet<String> = stage.api.list().await?.into_iter().map(|appliance| appliance.name).collect();
    let kept = recorded.appliances.iter().filter(|a| a["status"]["deleting"] == false);
    let kept: BTreeSet<String> = kept.filter_map(|a| Some(a["name"].as_str()?.to_owned())).collect();
    ensure!(now == kept, "{now:?} are left, it were {kept:?}");
    as_before(&stage)?;
    stage.finish().await
}
