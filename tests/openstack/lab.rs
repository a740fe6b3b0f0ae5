//! The cloud that the tests run against, which `tests/openstack/run` has started and said of in the environment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use common::appliance::{Name, Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, KindSpec, Probe, StopRecipe};
use common::network_port::NetworkPort;
use common::{ApplianceId, Edition, Generation, Term, Token};
use openstack::{Client, ClientConfig, Port, Server, Service};
use runtime::clock;
use servers::wait::until;
use tokio_util::sync::{CancellationToken, DropGuard};
use worker::drivers::openstack::{Config, OpenStackDriver};
use worker::drivers::{Driver as _, Error, Wanted};
use worker::gate::{Permit, SharedGate};
use worker_core::desired::Desired;
use worker_core::instance::Instance;

use crate::proxy::HttpProxy;

/// How long something may take in the laboratory on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Whether there is a cloud; says so where there is none.
pub(crate) fn is_there() -> bool {
    let there = std::env::var_os("RUG_TEST_OPENSTACK").is_some();
    if !there {
        eprintln!("skipped: there is no cloud; make test-openstack starts one");
    }
    there
}

/// One appliance in a cloud, alone in a cluster of its own, and proxies before Nova and Neutron.
pub(crate) struct World {
    pub(crate) appliance: ApplianceId,
    pub(crate) cluster: String,
    pub(crate) nova: HttpProxy,
    pub(crate) neutron: HttpProxy,
    /// Goes to the cloud itself.
    pub(crate) client: Client,
    networks: BTreeMap<String, String>,
    stop: CancellationToken,
    _ended_with_this: DropGuard,
}

static NEXT: AtomicU32 = AtomicU32::new(1);

impl World {
    pub(crate) async fn new() -> Result<Self> {
        runtime::tls::install_provider();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let client = Client::new(&ClientConfig::default()).context("no cloud")?;
        let port = async |service| -> Result<u16> {
            let address = client.address(service).await?;
            let authority = address.split('/').nth(2).context("no authority")?;
            Ok(authority.rsplit_once(':').context("no port")?.1.parse()?)
        };
        let nova = HttpProxy::before(port(Service::Compute).await?).await?;
        let neutron = HttpProxy::before(port(Service::Network).await?).await?;
        let networks = client.network().networks(&[]).await?;
        let networks = networks.into_iter().map(|network| (network.name, network.id.to_string())).collect();
        let stop = CancellationToken::new();
        Ok(Self {
            appliance: ApplianceId::from_u128(rand::random()),
            cluster: format!("test-{}-{number}", std::process::id()),
            nova,
            neutron,
            client,
            networks,
            _ended_with_this: stop.clone().drop_guard(),
            stop,
        })
    }

    pub(crate) fn config(&self) -> Config {
        let mut client = ClientConfig { request_timeout: Duration::from_secs(30), ..ClientConfig::default() };
        client.endpoints.insert(Service::Compute, format!("http://127.0.0.1:{}/v2.1", self.nova.port));
        client.endpoints.insert(Service::Network, format!("http://127.0.0.1:{}", self.neutron.port));
        Config {
            client,
            cluster: self.cluster.clone(),
            management_network: "rug-management".to_owned(),
            image: "fake".to_owned(),
            flavor: "lab.tiny".to_owned(),
            poll_interval: Duration::from_secs(2),
            backend_time: Duration::from_secs(5),
            ..Config::default()
        }
    }

    pub(crate) fn driver(&self, change: impl FnOnce(&mut Config)) -> Result<OpenStackDriver> {
        let mut config = self.config();
        change(&mut config);
        Ok(OpenStackDriver::new(config, &self.stop)?)
    }

    pub(crate) fn permit(&self, sequence: u64) -> (Permit, Arc<SharedGate>) {
        let (gate, token) = (SharedGate::new(), Token::new(Term::new(1), sequence));
        gate.extend(clock::now() + Duration::from_secs(3_600));
        gate.admit(self.appliance, token, Duration::ZERO);
        (gate.pass(self.appliance, token).expect("the gate is open"), gate)
    }

    /// A server that runs what its image starts, with ports in these networks.
    pub(crate) fn desired(&self, networks: &[&str]) -> Result<Desired> {
        let name = Name::new("vm")?;
        let kind = KindSpec::Custom(Custom { probe: Probe::Process, ..Custom::default() });
        let ports = networks.iter().map(|network| self.port(network)).collect::<Result<_>>()?;
        let spec =
            Spec { replicas: 1, probe_interval: None, timing: Timing::default(), image: None, ports, pod: None, kind };
        Ok(Desired {
            name: name.clone(),
            tenant: name,
            driver: DriverName::new("openstack")?,
            edition: Edition::new(Generation::new(1), Term::new(1)),
            revision: 0,
            deleting: false,
            spec,
        })
    }

    pub(crate) fn port(&self, network: &str) -> Result<NetworkPort> {
        let id = self.networks.get(network).with_context(|| format!("no network {network}"))?;
        Ok(NetworkPort { name: Name::new(network)?, network: id.clone(), addresses: vec![], mac: None })
    }

    /// What there is of the appliance, as the cloud says.
    pub(crate) async fn servers(&self) -> Result<Vec<Server>> {
        let pattern = format!("^rug-{}-", self.appliance);
        Ok(self.client.compute().servers(&[("name", &pattern)]).await?)
    }

    pub(crate) async fn ports(&self) -> Result<Vec<Port>> {
        let description = format!("rug:{}:{}", self.cluster, self.appliance);
        Ok(self.client.network().ports(&[("description", &description)]).await?)
    }

    pub(crate) async fn is_active(&self, instance: &Instance) -> Result<()> {
        let id = instance.handle.as_str().parse()?;
        until(PATIENCE, "the server is ACTIVE", async || {
            let server = self.client.compute().server(&id).await?.context("it is gone")?;
            ensure!(server.status.to_string() == "ACTIVE", "{server:?}");
            Ok(())
        })
        .await
    }

    /// Removes everything by the driver, and sees that nothing is left.
    pub(crate) async fn clean_up(&self, driver: &OpenStackDriver, permit: &Permit) -> Result<()> {
        until(PATIENCE, "everything is removed", async || {
            for instance in driver.observe(self.appliance).await?.running {
                driver.destroy(permit, &instance, StopRecipe::default()).await?;
            }
            Ok(driver.forget(permit).await?)
        })
        .await?;
        let (servers, ports) = (self.servers().await?, self.ports().await?);
        ensure!(servers.is_empty() && ports.is_empty(), "left: {servers:?} {ports:?}");
        let name = format!("rug-{}", self.appliance);
        let groups = self.client.compute().server_groups().await?;
        ensure!(groups.iter().all(|group| group.name != name), "its group is left");
        Ok(())
    }
}

pub(crate) fn wanted(desired: &Desired, ordinal: u16, attempt: u32) -> Wanted<'_> {
    Wanted { ordinal, attempt, desired, boot_digest: "digest", beside: None }
}

/// Repeats a call while it says that it was kept out, as the lifecycle does.
pub(crate) async fn patiently<T>(mut call: impl AsyncFnMut() -> Result<T, Error>) -> Result<T> {
    until(PATIENCE, "it is done", async || Ok(call().await?)).await
}
