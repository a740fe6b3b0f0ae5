//! Drivers of two workers at one API server, and what they are asked for.

use std::sync::Arc;
use std::time::Duration;

use common::appliance::{Name, Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, HealthCheck, KindSpec, Limits, Listener, LoadBalancer, Probe, StopRecipe};
use common::{ApplianceId, Edition, Generation, Term, Token, WorkerId};
use kubernetes::ClientConfig;
use runtime::clock;
use tempfile::TempDir;
use tokio_util::sync::{CancellationToken, DropGuard};
use worker::drivers::kubernetes::{Config, KubernetesDriver};
use worker::drivers::{Driver as _, Error, Wanted};
use worker::gate::{Permit, SharedGate};
use worker_core::desired::Desired;
use worker_core::instance::Instance;

use crate::api_server::ApiServer;

pub(crate) const A: ApplianceId = ApplianceId::from_u128(0xa);

/// The pod of an attempt at the first ordinal.
pub(crate) fn pod(attempt: u32) -> String {
    Instance::name(A, 0, attempt)
}

/// The anchor of the appliance, and its Service.
pub(crate) fn anchor() -> String {
    format!("rug-{A}")
}

pub(crate) struct World {
    pub(crate) api: ApiServer,
    folder: TempDir,
    kubelet: Option<tokio::task::JoinHandle<()>>,
    _stop: DropGuard,
    stop: CancellationToken,
}

impl World {
    /// With a kubelet that runs what is released.
    pub(crate) async fn new() -> Self {
        let mut world = Self::without_kubelet().await;
        world.kubelet = Some(world.api.kubelet());
        world
    }

    pub(crate) async fn without_kubelet() -> Self {
        runtime::tls::install_provider();
        let api = ApiServer::start().await;
        let stop = CancellationToken::new();
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { api, folder, kubelet: None, _stop: stop.clone().drop_guard(), stop }
    }

    pub(crate) fn stop_kubelet(&mut self) {
        if let Some(kubelet) = self.kubelet.take() {
            kubelet.abort();
        }
    }

    pub(crate) fn config(&self, worker: &str) -> Config {
        let kubeconfig = self.folder.path().join(worker);
        let server = format!("http://{}/{worker}", self.api.address);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"{server}\"}}}}]\n\
             users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u, namespace: rug}}}}]\n"
        );
        std::fs::write(&kubeconfig, text).expect("written");
        let client = ClientConfig { kubeconfig, request_timeout: Duration::from_secs(2), ..ClientConfig::default() };
        Config { client, image: "debian".to_owned(), appliance_image: "rug".to_owned(), ..Config::default() }
    }

    pub(crate) async fn driver(&self, worker: &str) -> KubernetesDriver {
        self.driver_with(worker, self.config(worker)).await
    }

    /// One that waits for calls that are held up.
    pub(crate) async fn patient_driver(&self, worker: &str) -> KubernetesDriver {
        let mut config = self.config(worker);
        config.client.request_timeout = Duration::from_secs(60);
        self.driver_with(worker, config).await
    }

    async fn driver_with(&self, worker: &str, config: Config) -> KubernetesDriver {
        let name = WorkerId::new(worker).expect("a name");
        let driver = KubernetesDriver::new(config, name, &self.stop).await.expect("the settings are right");
        driver.listed(Duration::from_secs(10)).await.expect("pods are listed");
        driver
    }
}

pub(crate) fn permit(sequence: u64) -> Permit {
    permit_with_gate(sequence).0
}

pub(crate) fn permit_with_gate(sequence: u64) -> (Permit, Arc<SharedGate>) {
    let (gate, token) = (SharedGate::new(), Token::new(Term::new(1), sequence));
    gate.extend(clock::now() + Duration::from_secs(600));
    gate.admit(A, token, Duration::ZERO);
    (gate.pass(A, token).expect("the gate is open"), gate)
}

pub(crate) fn desired(kind: KindSpec) -> Desired {
    let name = Name::new("web").expect("a name");
    Desired {
        name: name.clone(),
        tenant: name,
        driver: DriverName::new("kubernetes").expect("a name"),
        edition: Edition::new(Generation::new(1), Term::new(1)),
        revision: 0,
        deleting: false,
        spec: Spec {
            replicas: 1,
            probe_interval: None,
            timing: Timing::default(),
            image: None,
            ports: vec![],
            pod: None,
            kind,
        },
    }
}

pub(crate) fn custom() -> Desired {
    desired(KindSpec::Custom(Custom {
        command: "serve".into(),
        port: Some(8000),
        probe: Probe::Tcp,
        ..Custom::default()
    }))
}

pub(crate) fn balancer(ports: &[u16]) -> Desired {
    let listener = |port: &u16| Listener {
        name: format!("l{port}"),
        address: [0, 0, 0, 0].into(),
        port: *port,
        members: vec![],
        health_check: HealthCheck::default(),
        limits: Limits::default(),
        algorithm: Default::default(),
        proxy_protocol: None,
        trust_proxy_from: vec![],
    };
    desired(KindSpec::Loadbalancer(LoadBalancer { listeners: ports.iter().map(listener).collect() }))
}

pub(crate) async fn boot(
    driver: &KubernetesDriver,
    permit: &Permit,
    desired: &Desired,
    attempt: u32,
) -> Result<Instance, Error> {
    let wanted = Wanted { ordinal: 0, attempt, desired, boot_digest: "d", beside: None };
    driver.ensure(permit, wanted).await
}

pub(crate) async fn destroy(driver: &KubernetesDriver, permit: &Permit, instance: &Instance) -> Result<(), Error> {
    driver.destroy(permit, instance, StopRecipe::default()).await
}

/// Waits until a condition holds.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what} within 20 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
