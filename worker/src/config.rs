//! Configuration of `rug-worker`: one struct made of each part's own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use common::WorkerId;
use common::appliance::Driver;
use common::profile::{HOST_RULE, is_host};
use runtime::{telemetry, tls};
use serde::{Deserialize, Serialize};

use crate::drivers::{DriverFencing, process, simulated};
use crate::{runner, session};

/// Everything that can be set, in `rug-worker.toml`, by `RUG_WORKER_<SECTION>__<FIELD>`, or by flags.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this worker, stable over restarts and unique in the cluster.
    pub name: String,
    /// Host it runs on; the system's host name when empty. Instances of the process driver stay on their host and in
    /// their `state_dir`: one name must not stand for two machines, or containers that do not see each other's processes.
    pub host: String,
    /// Failure zone.
    pub zone: String,
    /// Share of the appliances relative to other workers; at least 1.
    pub weight: u32,
    /// Drivers it offers.
    pub drivers: BTreeSet<Driver>,
    /// Directory of what the drivers keep. Only workers that share it adopt each other's instances: those of one host
    /// should. What was started from another directory waits for a worker that uses that one.
    pub state_dir: PathBuf,
    /// How this worker takes part: by the coordinator itself, or by ZooKeeper.
    pub coordination: coordination::url::Config,
    /// The session with the coordinator.
    pub session: session::Config,
    /// How appliances are kept alive.
    pub runner: runner::Config,
    /// The process driver; its `state_dir` defaults to the one above.
    pub process: process::Config,
    /// The simulated driver.
    pub simulated: simulated::Config,
    /// Mutual TLS with coordinators. Without it their addresses are `http://`, with it `https://`.
    pub tls: tls::Config,
    /// Logs.
    pub log: telemetry::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "worker-1".to_owned(),
            host: String::new(),
            zone: String::new(),
            weight: 1,
            drivers: BTreeSet::from([Driver::Process]),
            state_dir: PathBuf::from("rug-worker-state"),
            coordination: coordination::url::Config::default(),
            session: session::Config::default(),
            runner: runner::Config::default(),
            process: process::Config { state_dir: PathBuf::new(), ..process::Config::default() },
            simulated: simulated::Config::default(),
            tls: tls::Config::default(),
            log: telemetry::Config::default(),
        }
    }
}

impl Config {
    /// Fills in what follows from other fields and checks what types cannot.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn complete(mut self) -> Result<Self, String> {
        if self.host.is_empty() {
            self.host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        }
        if self.process.state_dir.as_os_str().is_empty() {
            self.process.state_dir.clone_from(&self.state_dir);
        }
        if !is_host(&self.host) {
            return Err(format!("host {HOST_RULE}"));
        }
        WorkerId::new(&self.name).map_err(|e| format!("name: {e}"))?;
        if !(1..=1_000).contains(&self.weight) {
            return Err(format!("weight must be 1 to 1000, is {}", self.weight));
        }
        if self.drivers.is_empty() {
            return Err("drivers must name at least one".to_owned());
        }
        self.coordination.validate()?;
        self.session.validate()?;
        self.tls.validate().map_err(|e| format!("tls.{e}"))?;
        let unfenced = self.drivers.contains(&Driver::Simulated) && self.simulated.fencing() != DriverFencing::Token;
        // With ZooKeeper the length of the lease is known only once it has agreed to a session timeout.
        if unfenced
            && self.coordination.is_embedded()
            && let Some(problem) = self.session.margin_problem(self.session.lease)
        {
            return Err(problem);
        }
        let runner = self.runner.validate().into_iter().map(|v| format!("runner.{v}"));
        let process = self.process.validate().into_iter().map(|v| format!("process.{v}"));
        let simulated = self.simulated.validate().into_iter().map(|v| format!("simulated.{v}"));
        match runner.chain(process).chain(simulated).next() {
            Some(problem) => Err(problem),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_complete() {
        let config = Config::default().complete().expect("the defaults are valid");
        assert!(!config.host.is_empty());
        assert_eq!(config.process.state_dir, config.state_dir);
    }

    #[test]
    fn coordination_and_stopping_are_settings() {
        let text = r#"{
            "coordination": {"url": "zookeeper://a:2181,b:2181/rug", "group": "g"},
            "session": {"on_stop": "hand_back", "drain_timeout": "5s"}
        }"#;
        let config: Config = serde_json::from_str(text).expect("readable");
        let config = config.complete().expect("valid");
        assert!(!config.coordination.is_embedded());
        assert_eq!(config.session.on_stop, session::OnStop::HandBack);
        assert_eq!(config.session.drain_timeout, std::time::Duration::from_secs(5));
        let broken = Config {
            coordination: coordination::url::Config {
                url: "etcd://a".to_owned(),
                ..coordination::url::Config::default()
            },
            ..Config::default()
        };
        assert!(broken.complete().expect_err("refused").contains("coordination"));
    }

    #[test]
    fn a_lease_that_leaves_no_time_for_calls_without_token_is_refused() {
        let config = |margin, fencing| {
            let text = format!(
                r#"{{"drivers": ["simulated"], "session": {{"lease": "1s", "act_margin": "{margin}"}},
                    "simulated": {{"fencing": "{fencing}", "hold": "2s"}}}}"#
            );
            serde_json::from_str::<Config>(&text).expect("readable").complete()
        };
        assert!(config("501ms", "hold").expect_err("refused").contains("session.act_margin"));
        config("500ms", "hold").expect("half of it is enough");
        config("501ms", "token").expect("tokens need no margin");
    }

    #[test]
    fn a_bad_value_is_named() {
        let config = Config { weight: 0, ..Config::default() };
        assert!(config.complete().expect_err("refused").contains("weight"));
    }
}
