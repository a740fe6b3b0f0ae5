//! Reads what a drill left behind: journals, logs, the API, the kernel's processes, the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use runtime::clock;
use serde_json::Value;
use tokio::process::Command;

use super::checker::{Evidence, FinalState, ProcessExit, Resting, RunningInstance, Stored, Tenure};
use super::ledger::{CallLedger, Content, Shown};
use crate::cluster::api::{self, Api};
use crate::cluster::{binaries, processes};
use crate::fleet::{Fleet, FleetDatabase};
use crate::journal::{self, BEGUN, JournalLine, Journals};
use crate::{lives, tenures};

/// Variable in the environment of every appliance of a drill: which specification it is.
pub const VALUE: &str = "RUG_DRILL_VALUE";
/// How long a dump of the store may take.
const DUMP_LIMIT: Duration = Duration::from_secs(60);

/// Everything that was done so far.
///
/// # Errors
/// When a file cannot be read, or a log contradicts itself.
pub fn gather(fleet: &Fleet, world: &Path, exits: &[ProcessExit]) -> Result<Evidence> {
    // First what is written last: an action whose tenure is not in the log yet would look like nobody's.
    let journals = journal::read(&fleet.state_dir())?;
    let simulated = simulated(world)?.0;
    let offset = boot_offset();
    let boot_ns = |at: SystemTime| {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(offset);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    };
    let mut found = BTreeMap::new();
    for (appliance, tenures) in tenures::tenures(fleet)? {
        let tenures = tenures.into_iter().map(|tenure| Tenure {
            worker: tenure.worker,
            incarnation: tenure.incarnation,
            token: tenure.token,
            taken_ns: boot_ns(tenure.taken),
            released_ns: tenure.released.map(boot_ns),
        });
        found.insert(appliance, tenures.collect());
    }
    Ok(Evidence { journals, simulated, lives: lives::lives(fleet), tenures: found, exits: exits.to_vec() })
}

/// How far the wall clock, which logs have, is ahead of CLOCK_BOOTTIME.
fn boot_offset() -> Duration {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    unix.saturating_sub(Duration::from_nanos(clock::now().as_nanos()))
}

/// What the simulated driver did, as journals in the order of time, and the ordinals that exist by appliance.
fn simulated(world: &Path) -> Result<(Journals, BTreeMap<String, BTreeSet<u64>>)> {
    let mut journals = Journals::new();
    let mut newest: BTreeMap<(String, u64), (u64, bool)> = BTreeMap::new();
    let Ok(folder) = fs::read_dir(world) else { return Ok((journals, BTreeMap::new())) };
    for path in folder.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pid = name.split('-').next().and_then(|pid| pid.parse().ok());
        let pid: u32 = pid.with_context(|| format!("{name} is no file of a world"))?;
        for line in fs::read_to_string(&path)?.lines() {
            // The last one may be half written.
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let number = |value: &Value| value.as_u64().unwrap_or_default();
            let appliance = line["appliance"].as_str().context("a line without appliance")?.to_owned();
            let (at_ns, ordinal, runs) =
                (number(&line["at_boot_ns"]), number(&line["ordinal"]), !line["boot_digest"].is_null());
            let slot = newest.entry((appliance.clone(), ordinal)).or_default();
            if slot.0 <= at_ns {
                *slot = (at_ns, runs);
            }
            // That it has answered a probe is no step.
            if line["answered"] == true {
                continue;
            }
            journals.entry(appliance.clone()).or_default().push(JournalLine {
                appliance,
                at_ns,
                pid,
                token: (number(&line["token"]["term"]), number(&line["token"]["sequence"])),
                action: if runs { "boot" } else { "end" }.to_owned(),
                instance: (ordinal, number(&line["attempt"])),
                outcome: BEGUN.to_owned(),
                ..JournalLine::default()
            });
        }
    }
    journals.values_mut().for_each(|entries| entries.sort_by_key(|entry| entry.at_ns));
    let mut running: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for ((appliance, ordinal), _) in newest.into_iter().filter(|(_, (_, runs))| *runs) {
        running.entry(appliance).or_default().insert(ordinal);
    }
    Ok((journals, running))
}

/// What clients are told of every appliance.
///
/// # Errors
/// When nobody answers.
pub async fn shown(api: &Api) -> Result<BTreeMap<String, Shown>> {
    Ok(api.list().await?.into_iter().map(|appliance| (appliance.id.clone(), show(&appliance))).collect())
}

/// What clients are told of one appliance.
#[must_use]
pub fn show(appliance: &v1::Appliance) -> Shown {
    let spec = appliance.spec.clone().unwrap_or_default();
    let value = match &spec.kind {
        Some(v1::spec::Kind::Custom(custom)) => custom.env.get(VALUE).and_then(|value| value.parse().ok()),
        _ => None,
    };
    let replicas = spec.replicas.and_then(|replicas| u32::try_from(replicas).ok()).unwrap_or(1);
    let content = value.map(|value| Content { value, replicas });
    Shown { generation: appliance.generation, deleting: appliance.deleting, content }
}

/// Everything that is there, if it is at rest: configured, with an owner that is healthy, and nothing on its way out.
///
/// # Errors
/// What is not at rest.
pub async fn at_rest(api: &Api, root: &Path, world: &Path, ledger: &CallLedger) -> Result<FinalState> {
    let status = api.status().await?;
    ensure!(status.frozen.is_none() && status.waiting.is_empty(), "frozen {:?}, {}", status.frozen, status.waiting);
    let workers = api.workers().await?;
    let appliances = api.list().await?;
    let mut end = FinalState { ledger: ledger.clone(), ..FinalState::default() };
    end.running = running(root, world)?;
    for appliance in appliances {
        let assignment = appliance.assignment.clone().unwrap_or_default();
        let healthy = workers.iter().any(|w| w.id == assignment.worker && w.health() == v1::Health::Healthy);
        ensure!(healthy && assignment.state == "owned", "{}", api::describe(&appliance));
        ensure!(!appliance.deleting && api::is_configured(&appliance), "{}", api::describe(&appliance));
        let shown = show(&appliance);
        end.resting.insert(
            appliance.id.clone(),
            Resting {
                name: appliance.name.clone(),
                replicas: shown.content.map_or(1, |content| content.replicas),
                pids: api::pids(&appliance).into_iter().collect(),
                worker: assignment.worker,
                token: assignment.token,
                generation: appliance.generation,
            },
        );
        end.shown.insert(appliance.id, shown);
    }
    // What the API shows of instances follows what happens to them, some time later.
    if let Some(first) = super::checker::ends_where_the_api_says(&end.resting, &end.running).first() {
        bail!("{}", first.text);
    }
    Ok(end)
}

/// Every instance that exists.
fn running(root: &Path, world: &Path) -> Result<Vec<RunningInstance>> {
    let mut found = Vec::new();
    for (name, process) in processes::instances(root) {
        let (appliance, ordinal) = slot(&name).with_context(|| format!("odd instance name {name}"))?;
        found.push(RunningInstance { appliance: appliance.to_owned(), ordinal, pid: Some(process.pid) });
    }
    for (appliance, ordinals) in simulated(world)?.1 {
        found.extend(ordinals.iter().map(|ordinal| RunningInstance {
            appliance: appliance.clone(),
            ordinal: *ordinal,
            pid: None,
        }));
    }
    Ok(found)
}

/// Appliance and ordinal in `<appliance>-<ordinal>-<attempt>`.
#[must_use]
pub fn slot(name: &str) -> Option<(&str, u64)> {
    let (slot, _) = name.rsplit_once('-')?;
    let (appliance, ordinal) = slot.rsplit_once('-')?;
    Some((appliance, ordinal.parse().ok()?))
}

/// What the store has, read beside the coordinators that run: appliances by SQL, grants from a dump.
///
/// # Errors
/// When it cannot be read.
pub async fn stored(fleet: &Fleet) -> Result<BTreeMap<String, Stored>> {
    let FleetDatabase::Postgres(server) = &fleet.database else { bail!("drills run on PostgreSQL") };
    let rows = server.sql("rug", "SELECT id, generation FROM appliances").await?;
    let mut found = BTreeMap::new();
    for row in rows.lines() {
        let (id, generation) = row.split_once('|').with_context(|| format!("odd row {row}"))?;
        found.insert(id.to_owned(), Stored { generation: generation.parse()?, granted: None });
    }
    let mut dump = Command::new(binaries::path("rug-coordinator")?);
    dump.args(["store", "dump"]).env("RUG_COORDINATOR_STORE__URL", &fleet.store).kill_on_drop(true);
    let output = tokio::time::timeout(DUMP_LIMIT, dump.output()).await.context("the dump does not end")??;
    ensure!(output.status.success(), "store dump: {}", String::from_utf8_lossy(&output.stderr));
    for (id, granted) in grants(&String::from_utf8_lossy(&output.stdout)) {
        if let Some(stored) = found.get_mut(&id) {
            stored.granted = granted;
        }
    }
    Ok(found)
}

/// Who holds what, as a dump's log of grants comes to: worker and token by appliance.
fn grants(dump: &str) -> BTreeMap<String, Option<(String, String)>> {
    let mut found = BTreeMap::new();
    for line in dump.lines().filter_map(|line| line.strip_prefix("  ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [id, "granted", "to", worker, _incarnation, "with", token, ..] => {
                found.insert((*id).to_owned(), Some(((*worker).to_owned(), (*token).to_owned())));
            }
            [id, "free" | "removed", ..] => _ = found.insert((*id).to_owned(), None),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_line_of_a_dump_says_who_holds_an_appliance() {
        let dump = "term 3 batch 9 coordinator c1\ngrants              3\n\nterm 2 batch 1 part 0: 60 bytes, log, 3 entries\n  \
            a granted to w1 i1f with t2/1 on test-host\n  b granted to w2 i2f with t2/2\n  c free\n\
            term 3 batch 4 part 0: 60 bytes, log, 2 entries\n  a free on test-host\n  b granted to w1 i1f with t3/1\n";
        let held = |worker: &str, token: &str| Some((worker.to_owned(), token.to_owned()));
        let expected = [("a", None), ("b", held("w1", "t3/1")), ("c", None)];
        assert_eq!(grants(dump), expected.map(|(id, granted)| (id.to_owned(), granted)).into());
    }

    #[test]
    fn a_world_is_read_in_the_order_of_time() -> Result<()> {
        let world = tempfile::tempdir()?;
        let line = |at: u64, sequence: u64, digest: &str| {
            format!(
                r#"{{"appliance":"a","token":{{"term":1,"sequence":{sequence}}},"ordinal":0,"attempt":1,"at_boot_ns":{at},"boot_digest":{digest}}}"#
            )
        };
        fs::write(
            world.path().join("7-1.world"),
            format!("{}\n{}\n{{\"half", line(1, 1, "\"x\""), line(3, 3, "\"y\"")),
        )?;
        fs::write(world.path().join("8-2.world"), format!("{}\n", line(2, 2, "null")))?;
        let (journals, running) = simulated(world.path())?;
        let told: Vec<_> = journals["a"].iter().map(|e| (e.at_ns, e.pid, e.token.1, e.action.as_str())).collect();
        assert_eq!(told, [(1, 7, 1, "boot"), (2, 8, 2, "end"), (3, 7, 3, "boot")]);
        assert_eq!(running, BTreeMap::from([("a".to_owned(), BTreeSet::from([0]))]));
        Ok(())
    }
}
