//! Configuration that is read again while the process runs, on SIGHUP and when an operator asks for it.
//!
//! It is read as at the start: defaults, the file, the environment and the flags that the process was started with. A configuration that
//! cannot be used changes nothing. Otherwise it is compared with the one that is in force, setting by setting. Those that can change at run time do,
//! and the others are named: they need a restart. No value is logged, since some are secret.
//!
//! Certificates, keys and revocation lists need none of this: their files are looked at by themselves.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use common::reload::Reloaded;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::config::{self, Loaded, Settings};
use crate::telemetry;

/// Settings that are put into force; all others need a restart.
pub const RELOADABLE: [&str; 3] = ["log.filter", "telemetry.sample_ratio", "telemetry.sample_slow"];

/// How the configuration is read, and what of it is in force.
struct Source {
    read: Box<dyn Fn() -> Result<Read, String> + Send + Sync>,
    running: Mutex<BTreeMap<String, Value>>,
}

/// A configuration that was read.
struct Read {
    settings: BTreeMap<String, Value>,
    log: telemetry::Config,
    export: telemetry::ExportConfig,
}

static SOURCE: OnceLock<Source> = OnceLock::new();

/// Notes how the configuration that is in force was read: from this file, with these flags.
pub(crate) fn install<C: Settings + 'static>(file: Option<PathBuf>, flags: Value, running: &C) {
    let read = move || {
        let loaded = config::load::<C>(file.as_deref(), &flags).map_err(|error| error.to_string())?;
        let Loaded { config, .. } = loaded;
        let (log, export) = (config.log().clone(), config.telemetry().clone());
        Ok(Read { settings: settings(&config)?, log, export })
    };
    match settings(running) {
        Ok(running) => drop(SOURCE.set(Source { read: Box::new(read), running: Mutex::new(running) })),
        Err(problem) => warn!("the configuration cannot be read again: {problem}"),
    }
}

/// Reads the configuration again, and puts into force what can be.
///
/// # Errors
/// What is wrong with it. Nothing has changed then.
fn reload() -> Result<Reloaded, String> {
    let source = SOURCE.get().ok_or("this process was not started with a configuration")?;
    // Held to the end, so that two reloads never mix.
    let mut running = source.running.lock().unwrap_or_else(PoisonError::into_inner);
    let Read { settings, log, export } = (source.read)()?;
    let reloaded = compared(&running, &settings);
    if !reloaded.applied.is_empty() {
        telemetry::configure(&log, &export)?;
    }
    for name in &reloaded.applied {
        match settings.get(name) {
            Some(value) => drop(running.insert(name.clone(), value.clone())),
            None => drop(running.remove(name)),
        }
    }
    Ok(reloaded)
}

/// Reads the configuration again, puts into force what can be, and logs what that came to. `cause` says for what, for people. Call it within a
/// Tokio runtime.
///
/// # Errors
/// What is wrong with the configuration. Nothing has changed then.
pub async fn reload_for(cause: &str) -> Result<Reloaded, String> {
    let done = match tokio::task::spawn_blocking(reload).await {
        Ok(done) => done,
        Err(failure) => Err(format!("the configuration was not read: {failure}")),
    };
    match &done {
        Ok(reloaded) if reloaded.needs_restart.is_empty() => info!("{cause}: configuration read again; {reloaded}"),
        Ok(reloaded) => warn!("{cause}: configuration read again; {reloaded}"),
        Err(problem) => error!("{cause}: nothing has changed: {problem}"),
    }
    done
}

/// Reads the configuration again with each SIGHUP, for as long as the runtime lives. Call it within a Tokio runtime.
///
/// # Errors
/// When the system refuses the handler.
pub fn follow_signals() -> io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            // Its outcome is in the log.
            let _ = reload_for("SIGHUP").await;
        }
    });
    Ok(())
}

fn compared(running: &BTreeMap<String, Value>, read: &BTreeMap<String, Value>) -> Reloaded {
    let names = running.keys().chain(read.keys().filter(|name| !running.contains_key(*name)));
    let changed = names.filter(|name| running.get(*name) != read.get(*name)).cloned();
    let (applied, needs_restart) = changed.partition(|name| RELOADABLE.contains(&name.as_str()));
    Reloaded { applied, needs_restart }
}

/// Every setting by its name; a list is one.
fn settings(config: &impl serde::Serialize) -> Result<BTreeMap<String, Value>, String> {
    let mut found = BTreeMap::new();
    flatten(String::new(), serde_json::to_value(config).map_err(|error| error.to_string())?, &mut found);
    Ok(found)
}

fn flatten(name: String, value: Value, found: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let name = if name.is_empty() { field } else { format!("{name}.{field}") };
                flatten(name, value, found);
            }
        }
        value => drop(found.insert(name, value)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_that_can_change_do_and_the_others_are_named() {
        let read = |value: Value| settings(&value).expect("plain data");
        let running = read(json!({"listen": ["a"], "log": {"filter": "info"}, "machine": {"debounce": "1s"}}));
        assert_eq!(compared(&running, &running).to_string(), "nothing has changed");
        let other = read(json!({"listen": ["a", "b"], "log": {"filter": "debug"}, "machine": {"grace": "1s"}}));
        let found = compared(&running, &other);
        assert_eq!(found.applied, ["log.filter"]);
        assert_eq!(found.needs_restart, ["listen", "machine.debounce", "machine.grace"]);
        assert_eq!(found.to_string(), "in force: log.filter; needs a restart: listen, machine.debounce, machine.grace");
    }
}
