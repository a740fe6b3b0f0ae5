//! Configuration of `rug-coordinator`: one struct made of each part's own.

use std::path::PathBuf;

use common::appliance::{FieldViolation, Name};
use coordinator_core::limits::WorkerLimits;
use coordinator_core::machine;
use runtime::channel::Target;
use runtime::config::{RenamedDuration, Settings};
use runtime::{telemetry, tls};
use serde::{Deserialize, Serialize};

use crate::grpc::{connections, watches};
use crate::listen::{Listen, Listening};
use crate::sources::{self, custom_resources};
use crate::{access, catalog, metrics, store};

/// Everything that can be set, in `rug-coordinator.toml`, by `RUG_COORDINATOR_<SECTION>__<FIELD>`, or by flags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of this coordinator, stable over restarts.
    pub name: String,
    /// Name of the cluster, which all its coordinators give it; it has none when empty. People and `rugctl` tell clusters
    /// apart by it, and by the id that stands in the database.
    pub cluster: String,
    /// Addresses the APIs are served at: `ADDRESS:PORT`, or `unix:PATH` relative to `state_dir`.
    pub listen: Listen,
    /// Address under which workers and other coordinators reach the APIs, such as `https://c1.example:7470`; made of
    /// `listen` when empty.
    pub advertise: String,
    /// Serve at TCP ports without TLS, also at those of the loopback interface. Every process that can reach the port then
    /// commands the fleet, whichever user it belongs to.
    pub insecure: bool,
    /// Directory of what this coordinator keeps; one process at a time with embedded coordination.
    pub state_dir: PathBuf,
    /// The store. Its `url` defaults to `sqlite:<state_dir>/rug.db`.
    pub store: store::Config,
    /// How coordinators and workers find each other, and who leads.
    pub coordination: coordination::url::Config,
    /// Decisions.
    pub machine: machine::Config,
    /// What workers may say of themselves, by their names.
    pub workers: WorkerLimits,
    /// What is kept in memory for readers.
    pub catalog: catalog::Config,
    /// What is read from Kubernetes.
    pub kubernetes: custom_resources::Config,
    /// What is read from other systems.
    pub sources: sources::Config,
    /// How many connections are served, and for how long without calls.
    pub connections: connections::Config,
    /// How many watches are open at once.
    pub watches: watches::Config,
    /// Mutual TLS with everybody who connects.
    pub tls: tls::Config,
    /// Who may do what, once TLS is on.
    pub authorization: access::Config,
    /// Logs.
    pub log: telemetry::Config,
    /// What is exported by OTLP, and where to.
    pub telemetry: telemetry::ExportConfig,
    /// Metrics.
    pub metrics: metrics::Config,
}

/// Settings whose old names are read for this one version.
const RENAMED: [RenamedDuration; 8] = [
    RenamedDuration { section: "machine", old: "debounce_ms", new: "debounce" },
    RenamedDuration { section: "machine", old: "reconnect_grace_ms", new: "reconnect_grace" },
    RenamedDuration { section: "machine", old: "decline_backoff_ms", new: "decline_backoff" },
    RenamedDuration { section: "machine", old: "suspect_probation_ms", new: "suspect_probation" },
    RenamedDuration { section: "machine", old: "freeze_window_ms", new: "freeze_window" },
    RenamedDuration { section: "machine", old: "departure_grace_ms", new: "departure_grace" },
    RenamedDuration { section: "machine", old: "unreachable_after_ms", new: "unreachable_after" },
    RenamedDuration { section: "machine", old: "release_deadline_ms", new: "release_deadline" },
];

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "coordinator-1".to_owned(),
            cluster: String::new(),
            listen: Listen::default(),
            advertise: String::new(),
            insecure: false,
            state_dir: PathBuf::from("rug-coordinator-state"),
            store: store::Config { url: String::new(), ..store::Config::default() },
            coordination: coordination::url::Config::default(),
            machine: machine::Config::default(),
            workers: WorkerLimits::default(),
            catalog: catalog::Config::default(),
            kubernetes: custom_resources::Config::default(),
            sources: sources::Config::default(),
            connections: connections::Config::default(),
            watches: watches::Config::default(),
            tls: tls::Config::default(),
            authorization: access::Config::default(),
            log: telemetry::Config::default(),
            telemetry: telemetry::ExportConfig::default(),
            metrics: metrics::Config::default(),
        }
    }
}

impl Settings for Config {
    const ENV_PREFIX: &'static str = "RUG_COORDINATOR_";
    const RENAMED: &'static [RenamedDuration] = &RENAMED;

    fn complete(&mut self) {
        self.listen.complete(&self.state_dir);
        if self.store.url.is_empty() {
            self.store.url = format!("sqlite:{}", self.state_dir.join("rug.db").display());
        }
    }

    fn validate(&self) -> Vec<FieldViolation> {
        let mut found = self.own_violations();
        let sections = [
            ("metrics", self.metrics.validate()),
            ("kubernetes", self.kubernetes.validate()),
            ("sources", self.sources.validate()),
            ("connections", self.connections.validate()),
            ("watches", self.watches.validate()),
            ("tls", self.tls.validate()),
            ("authorization", self.authorization.validate()),
            ("telemetry", self.telemetry.validate()),
            ("coordination", self.coordination.validate()),
            ("store", self.store.validate()),
            ("machine", self.machine.validate()),
            ("catalog", self.catalog.validate()),
        ];
        found.extend(FieldViolation::of_sections(sections));
        found.extend(self.workers.validate());
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
    /// Rules that no section can check by itself.
    fn own_violations(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        let mut violated = |field, description: String| found.push(FieldViolation::new(field, description));
        if let Err(problem) = common::CoordinatorId::new(&self.name) {
            violated("name", problem.to_string());
        }
        if let Err(problem) = self.cluster_name() {
            violated("cluster", problem);
        }
        if let Some(open) = self.listen.tcp().next().filter(|_| self.tls.is_off() && !self.insecure) {
            let description = format!(
                "{open} is a TCP port, and without TLS every process that reaches it would command the fleet, on loopback \
                 also those of other users; leave `listen` away for a Unix socket in state_dir, set tls.ca, tls.cert and \
                 tls.key, or insecure = true if that is wanted"
            );
            violated("listen", description);
        }
        if self.tls.is_off() && !self.authorization.tokens.is_off() {
            let description =
                "needs tls.ca, tls.cert and tls.key: tokens are not accepted over connections that others can read";
            violated("authorization.tokens.jwks", description.to_owned());
        }
        if !self.coordination.is_embedded() && !self.store.is_shared() {
            let description = format!(
                "{} is a file, which coordinators cannot share, and coordination.url has them elect a leader among them; \
                 set store.url to postgres://... or mariadb://...",
                self.store.shown()
            );
            violated("store.url", description);
        }
        if !self.advertise.is_empty()
            && let Err(problem) = Target::check(&self.advertise)
        {
            violated("advertise", problem.to_string());
        }
        found
    }

    /// The name of the cluster, if it has one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn cluster_name(&self) -> Result<Option<Name>, String> {
        (!self.cluster.is_empty()).then(|| common::cluster::check_name(&self.cluster)).transpose()
    }

    /// Where others reach the APIs that are served there.
    #[must_use]
    pub fn advertised(&self, listening: &Listening) -> String {
        if !self.advertise.is_empty() {
            return self.advertise.clone();
        }
        listening.advertised(if self.tls.is_off() { "http" } else { "https" })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::listen::ListenAddress;

    fn tcp(address: [u8; 4]) -> Listen {
        vec![ListenAddress::Tcp(SocketAddr::from((address, 7470)))].into()
    }

    fn completed(mut config: Config) -> Config {
        config.complete();
        config
    }

    fn only_violation(config: Config) -> String {
        let found = completed(config).validate();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].to_string()
    }

    #[test]
    fn every_setting_is_on_the_page_about_settings() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let missing = runtime::config::documented::missing::<Config>(&page, "## rug-coordinator");
        assert!(missing.is_empty(), "not on the page: {missing:?}");
    }

    #[test]
    fn the_schema_of_the_chart_is_that_of_the_settings() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/rug/values.schema.json");
        runtime::reference::schema::check_definition::<Config>(std::path::Path::new(path), "coordinator")
            .unwrap_or_else(|problem| panic!("{problem}"));
    }

    #[test]
    fn the_defaults_are_complete_and_keep_the_store_in_the_state_directory() {
        let mut config = Config::default();
        config.complete();
        assert_eq!(config.validate(), []);
        assert_eq!(config.store.url, "sqlite:rug-coordinator-state/rug.db");
        let listen = vec![ListenAddress::Unix("rug-coordinator-state/coordinator.sock".into())];
        assert_eq!(config.listen, listen.into());
    }

    #[test]
    fn coordinators_that_elect_a_leader_share_a_store() {
        let mut config = Config::default();
        config.coordination.url = "zookeeper://zk1:2181".to_owned();
        let refused = only_violation(config.clone());
        assert!(refused.starts_with("store.url: ") && refused.contains("postgres://"), "{refused}");
        config.store.url = "postgres://rug:hush@db/rug".to_owned();
        assert_eq!(config.validate(), []);
    }

    #[test]
    fn a_tcp_port_needs_tls_or_a_word_also_on_loopback() {
        for address in [[0, 0, 0, 0], [127, 0, 0, 1]] {
            let open = Config { listen: tcp(address), ..Config::default() };
            let refused = only_violation(open.clone());
            assert!(refused.starts_with("listen: ") && refused.contains("insecure = true"), "{refused}");
            assert_eq!(completed(Config { insecure: true, ..open }).validate(), []);
        }
        let listen = Some(SocketAddr::from(([0, 0, 0, 0], 9464)));
        let metrics = metrics::Config { listen, insecure: false, per_worker: false };
        let open = Config { insecure: true, metrics: metrics.clone(), ..Config::default() };
        let refused = only_violation(open.clone());
        assert!(refused.starts_with("metrics.listen: ") && refused.contains("metrics.insecure = true"), "{refused}");
        let metrics = metrics::Config { insecure: true, ..metrics };
        assert_eq!(completed(Config { metrics, ..open }).validate(), []);
    }
}
