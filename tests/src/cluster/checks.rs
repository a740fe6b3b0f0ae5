//! What must hold at the end of every test, whatever happened in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use proto::admin::v1;
use serde_json::Value;

use super::api::{self, Api};
use super::wait::until;
use super::{PATIENCE, processes};

/// Every appliance comes to rest with a living owner, no process runs that nobody asked for, and the journals show one
/// owner at a time.
///
/// # Errors
/// What does not hold.
pub async fn final_state(api: &Api, root: &Path, state_dir: &Path) -> Result<()> {
    until(PATIENCE, "every appliance has a living owner", async || {
        let workers = api.workers().await?;
        for appliance in api.list().await? {
            let assignment = appliance.assignment.clone().unwrap_or_default();
            let alive = workers.iter().any(|w| w.id == assignment.worker && w.health() == v1::Health::Healthy);
            ensure!(alive && assignment.state == "owned", "{}", api::describe(&appliance));
        }
        Ok(())
    })
    .await?;
    until(PATIENCE, "no process runs that nobody asked for", async || no_stray_process(api, root).await).await?;
    let status = api.status().await?;
    ensure!(status.violations == 0, "{} messages contradicted the table", status.violations);
    journals(state_dir)
}

/// An ordinal has one process at most, and belongs to an appliance that exists.
async fn no_stray_process(api: &Api, root: &Path) -> Result<()> {
    let known: BTreeMap<String, v1::Appliance> = api.list().await?.into_iter().map(|a| (a.id.clone(), a)).collect();
    let mut seen = BTreeMap::new();
    for (name, process) in processes::instances(root) {
        // <appliance>-<ordinal>-<attempt>, and ids have hyphens of their own.
        let (slot, _) = name.rsplit_once('-').with_context(|| format!("odd instance name {name}"))?;
        let (id, _) = slot.rsplit_once('-').with_context(|| format!("odd instance name {name}"))?;
        ensure!(known.contains_key(id), "{name} runs as {process:?}, and its appliance is gone");
        if let Some(other) = seen.insert(slot.to_owned(), process) {
            bail!("{slot} runs twice: {other:?} and {process:?}");
        }
    }
    Ok(())
}

/// Nobody acts with an older token after somebody acted with a newer one.
fn journals(state_dir: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(state_dir.join("fences")) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        let mut newest = (0, 0);
        // The last line of a worker that was killed may be cut short.
        for entry in fs::read_to_string(&path)?.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let number = |field: &str| entry.get(field).and_then(Value::as_u64).unwrap_or_default();
            let token = (number("term"), number("sequence"));
            let begins = entry.get("outcome").and_then(Value::as_str) == Some("begun");
            ensure!(!begins || token >= newest, "{}: {entry} comes after token {newest:?}", path.display());
            newest = newest.max(token);
        }
    }
    Ok(())
}
