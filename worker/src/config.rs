//! Configuration of `rug-worker`: one struct made of each part's own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use common::WorkerId;
use common::appliance::FieldViolation;
use common::driver::DriverName;
use common::site::{HOST_RULE, is_host};
use runtime::config::Settings;
use runtime::{meter, telemetry, tls};
use serde::{Deserialize, Serialize};

use crate::drivers::{self, DriverFencing, kubernetes, openstack, process, simulated};
use crate::{metadata_proxy, runner, session};

/// Everything that can be set, in `rug-worker.toml`, by `RUG_WORKER_<SECTION>__<FIELD>`, or by flags.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Drivers it offers; each must be one that this program has.
    pub drivers: BTreeSet<DriverName>,
    /// Directory of what the drivers keep. Only workers that share it adopt each other's instances: those of one host
    /// should. What was started from another directory waits for a worker that uses that one.
    pub state_dir: PathBuf,
    /// File into which the worker writes which process it is, for the kubelet to show when its container has terminated: in a
    /// pod, the container's `terminationMessagePath`. Nothing is written when empty.
    pub termination_log: PathBuf,
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
    /// The driver for pods.
    pub kubernetes: kubernetes::Config,
    /// The driver for servers of OpenStack.
    pub openstack: openstack::Config,
    /// Requests for metadata of tenants' servers, which appliances of the driver `openstack` pass on.
    pub metadata_proxy: metadata_proxy::Config,
    /// Where Prometheus reads metrics.
    pub metrics: meter::Config,
    /// Mutual TLS with coordinators. Without it their addresses are `http://`, with it `https://`.
    pub tls: tls::Config,
    /// Logs.
    pub log: telemetry::Config,
    /// What is exported by OTLP, and where to.
    pub telemetry: telemetry::ExportConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "worker-1".to_owned(),
            host: String::new(),
            zone: String::new(),
            weight: 1,
            drivers: BTreeSet::from([DriverName::process()]),
            state_dir: PathBuf::from("rug-worker-state"),
            termination_log: PathBuf::new(),
            coordination: coordination::url::Config::default(),
            session: session::Config::default(),
            runner: runner::Config::default(),
            process: process::Config { state_dir: PathBuf::new(), ..process::Config::default() },
            simulated: simulated::Config::default(),
            kubernetes: kubernetes::Config::default(),
            openstack: openstack::Config::default(),
            metadata_proxy: metadata_proxy::Config::default(),
            metrics: meter::Config::default(),
            tls: tls::Config::default(),
            log: telemetry::Config::default(),
            telemetry: telemetry::ExportConfig::default(),
        }
    }
}

impl Settings for Config {
    const ENV_PREFIX: &'static str = "RUG_WORKER_";

    fn complete(&mut self) {
        if self.host.is_empty() {
            self.host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        }
        if self.process.state_dir.as_os_str().is_empty() {
            self.process.state_dir.clone_from(&self.state_dir);
        }
    }

    fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if !is_host(&self.host) {
            found.push(FieldViolation::new("host", HOST_RULE));
        }
        if let Err(problem) = WorkerId::new(&self.name) {
            found.push(FieldViolation::new("name", problem.to_string()));
        }
        if !(1..=1_000).contains(&self.weight) {
            found.push(FieldViolation::new("weight", format!("must be 1 to 1000, is {}", self.weight)));
        }
        if self.drivers.is_empty() {
            found.push(FieldViolation::new("drivers", "must name at least one"));
        }
        for unknown in self.drivers.iter().filter(|name| !drivers::NAMES.contains(&name.as_str())) {
            let known = drivers::NAMES.join(", ");
            found.push(FieldViolation::new("drivers", format!("this program has no `{unknown}`; it has {known}")));
        }
        let sections = [
            ("telemetry", self.telemetry.validate()),
            ("metrics", self.metrics.validate()),
            ("coordination", self.coordination.validate()),
            ("session", self.session.validate()),
            ("session", self.margin_violation().into_iter().collect()),
            ("tls", self.tls.validate()),
            ("runner", self.runner.validate()),
            ("process", self.process.validate()),
            ("simulated", self.simulated.validate()),
            ("kubernetes", self.kubernetes.validate()),
            ("openstack", self.openstack.validate()),
            ("metadata_proxy", self.metadata_proxy.validate()),
            ("metadata_proxy", self.proxy_violation().into_iter().collect()),
        ];
        found.extend(FieldViolation::of_sections(sections));
        found
    }

    fn instance(&self) -> &str {
        &self.name
    }

    fn log(&self) -> &telemetry::Config {
        &self.log
    }

    fn telemetry(&self) -> &telemetry::ExportConfig {
        &self.telemetry
    }
}

impl Config {
    /// Only servers of OpenStack ask for metadata.
    fn proxy_violation(&self) -> Option<FieldViolation> {
        let alone = self.metadata_proxy.listen.is_some() && !self.drivers.contains(openstack::NAME);
        alone.then(|| FieldViolation::new("listen", "needs the driver `openstack`"))
    }

    /// With ZooKeeper the length of the lease is known only once it has agreed to a session timeout.
    fn margin_violation(&self) -> Option<FieldViolation> {
        let simulated = self.drivers.contains(simulated::NAME) && self.simulated.fencing() != DriverFencing::Token;
        let unfenced = simulated || self.drivers.contains(openstack::NAME);
        if !unfenced || !self.coordination.is_embedded() {
            return None;
        }
        self.session.margin_violation(self.session.lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(mut config: Config) -> Vec<String> {
        config.complete();
        config.validate().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_setting_is_on_the_page_about_settings() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let missing = runtime::config::documented::missing::<Config>(&page, "## rug-worker");
        assert!(missing.is_empty(), "not on the page: {missing:?}");
    }

    #[test]
    fn the_schema_of_the_chart_is_that_of_the_settings() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/rug/values.schema.json");
        runtime::reference::schema::check_definition::<Config>(std::path::Path::new(path), "worker")
            .unwrap_or_else(|problem| panic!("{problem}"));
    }

    #[test]
    fn the_defaults_are_complete() {
        let mut config = Config::default();
        config.complete();
        assert_eq!(config.validate(), []);
        assert!(!config.host.is_empty());
        assert_eq!(config.process.state_dir, config.state_dir);
    }

    #[test]
    fn coordination_and_stopping_are_settings() {
        let text = r#"{
            "coordination": {"url": "zookeeper://a:2181,b:2181/rug", "group": "g"},
            "session": {"on_stop": "hand_back", "drain_timeout": "5s"}
        }"#;
        let mut config: Config = serde_json::from_str(text).expect("readable");
        config.complete();
        assert_eq!(config.validate(), []);
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
        assert!(violations(broken)[0].starts_with("coordination.url: "));
    }

    #[test]
    fn a_lease_that_leaves_no_time_for_calls_without_token_is_refused() {
        let config = |margin, fencing| {
            let text = format!(
                r#"{{"drivers": ["simulated"], "session": {{"lease": "1s", "act_margin": "{margin}"}},
                    "simulated": {{"fencing": "{fencing}", "fence_delay": "2s"}}}}"#
            );
            violations(serde_json::from_str::<Config>(&text).expect("readable"))
        };
        assert!(config("501ms", "delay")[0].starts_with("session.act_margin: "));
        assert!(config("500ms", "delay").is_empty(), "half of it is enough");
        assert!(config("501ms", "token").is_empty(), "tokens need no margin");
    }

    #[test]
    fn the_names_of_the_version_before_are_read() {
        let text = r#"{"drivers": ["simulated"], "simulated": {"fencing": "hold", "hold": "2s"}}"#;
        let config: Config = serde_json::from_str(text).expect("readable");
        assert_eq!(config.simulated.fencing(), DriverFencing::Delay(std::time::Duration::from_secs(2)));
    }

    #[test]
    fn a_driver_that_this_program_does_not_have_is_refused() {
        let config = |drivers| serde_json::from_str::<Config>(&format!(r#"{{"drivers": {drivers}}}"#));
        let unknown = violations(config(r#"["process", "hovercraft"]"#).expect("a name"));
        assert_eq!(
            unknown,
            ["drivers: this program has no `hovercraft`; it has process, simulated, kubernetes, openstack"]
        );
        assert!(config(r#"["No Name"]"#).expect_err("no name").to_string().contains("is not the name of a driver"));
    }

    #[test]
    fn a_bad_value_is_named() {
        let config = Config { weight: 0, ..Config::default() };
        assert_eq!(violations(config), ["weight: must be 1 to 1000, is 0"]);
    }
}
