//! How instances are spoken to once they run: carries out what a kind describes ([`Configuration`], [`ProbeSpec`]) and
//! knows no kind by name.
//!
//! A kind that needs a way of its own adds it to the descriptions in `common::kind`, a module like [`rest`] here that
//! carries it out, and one arm in [`Standard`].

use std::net::SocketAddr;

use async_trait::async_trait;
use common::kind::{Configuration, ProbeSpec};
use common::status::Details;
use tokio::net::TcpStream;
use worker_core::desired::Desired;
use worker_core::instance::Instance;
use worker_core::peers::Peer;

use self::http::HttpClient;
use crate::error::Error;
use crate::gate::Permit;

mod http;
pub mod rest;
mod router;

/// How instances are configured and probed. Every call is bounded by the caller's time-out.
#[async_trait]
pub trait Protocol: Send + Sync + 'static {
    /// Puts the configuration in place, which tells of `peers` where the kind does. Repeating it changes nothing.
    async fn configure(
        &self,
        permit: &Permit,
        instance: &Instance,
        desired: &Desired,
        peers: &[Peer],
    ) -> Result<(), Error>;

    /// Whether the instance answers. `Err` says what is wrong with it.
    async fn probe(&self, instance: &Instance, desired: &Desired) -> Result<ProbeAnswer, Error>;
}

/// What a probe that found nothing wrong came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// The instance answered, and said this about itself.
    Answered(Details),
    /// The instance is not asked: it is well if its driver finds it.
    LeftToDriver,
    /// The instance is not asked: it is well if this command, which its driver runs beside it, succeeds.
    ByCommand(Vec<String>),
}

/// The protocol of real instances: does what their kind describes. Clones share one HTTP client.
#[derive(Clone, Debug)]
pub struct Standard {
    client: HttpClient,
    /// Where routers find who passes requests for metadata on.
    metadata: Option<SocketAddr>,
}

impl Standard {
    /// Sets it up.
    ///
    /// # Errors
    /// [`Error::Failed`] when no HTTP client can be made.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { client: HttpClient::new()?, metadata: None })
    }

    /// The same that tells routers who passes requests for metadata on.
    #[must_use]
    pub fn with_metadata(self, metadata: Option<SocketAddr>) -> Self {
        Self { metadata, ..self }
    }

    async fn probe_http(&self, instance: &Instance, path: &str) -> Result<(), Error> {
        let address = service(instance)?;
        let answer = self.client.status(address, path).await;
        match answer.map_err(|error| Error::Failed(format!("GET http://{address}{path}: {error}")))? {
            status if status.as_u16() < 400 => Ok(()),
            status => Err(Error::Failed(format!("GET http://{address}{path} answered {status}"))),
        }
    }
}

#[async_trait]
impl Protocol for Standard {
    async fn configure(
        &self,
        permit: &Permit,
        instance: &Instance,
        desired: &Desired,
        peers: &[Peer],
    ) -> Result<(), Error> {
        let ordinal = if instance.has_own_address { 0 } else { instance.ordinal };
        let configuration = desired.spec.kind.configuration(desired.edition.generation, ordinal);
        match configuration.map_err(|overflow| Error::Refused(overflow.to_string()))? {
            Configuration::None => Ok(permit.check()?),
            Configuration::Rest(body) => rest::configure(&self.client, permit, instance, &body).await,
            Configuration::Router(draft) => {
                let of = router::Target { instance, desired, peers, metadata: self.metadata };
                router::configure(&self.client, permit, of, *draft).await
            }
        }
    }

    async fn probe(&self, instance: &Instance, desired: &Desired) -> Result<ProbeAnswer, Error> {
        match desired.spec.kind.probe() {
            ProbeSpec::Tcp => probe_tcp(instance).await?,
            ProbeSpec::Http { path } => self.probe_http(instance, &path).await?,
            ProbeSpec::Rest => return Ok(ProbeAnswer::Answered(rest::probe(&self.client, instance).await?)),
            ProbeSpec::Process => return Ok(ProbeAnswer::LeftToDriver),
            ProbeSpec::Exec { command } => return Ok(ProbeAnswer::ByCommand(command)),
        }
        Ok(ProbeAnswer::Answered(Details::default()))
    }
}

async fn probe_tcp(instance: &Instance) -> Result<(), Error> {
    let address = service(instance)?;
    match TcpStream::connect(address).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Failed(format!("connect to {address}: {error}"))),
    }
}

fn service(instance: &Instance) -> Result<SocketAddr, Error> {
    instance.addresses.service.ok_or_else(|| Error::Failed("the instance has no address to probe".into()))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use common::Edition;
    use common::appliance::{Name, Spec, Timing};
    use common::driver::DriverName;
    use common::kind::{Custom, KindSpec, Probe};
    use tokio::net::TcpListener;
    use worker_core::instance::Addresses;

    use super::*;

    fn desired(probe: Probe) -> Desired {
        let name = Name::new("a").expect("a name");
        let kind = KindSpec::Custom(Custom { command: "x".into(), probe, ..Custom::default() });
        Desired {
            name: name.clone(),
            tenant: name,
            driver: DriverName::process(),
            edition: Edition::default(),
            revision: 0,
            deleting: false,
            spec: Spec {
                replicas: 1,
                probe_interval: None,
                timing: Timing::default(),
                image: None,
                pod: None,
                ports: vec![],
                kind,
            },
        }
    }

    fn instance(address: SocketAddr) -> Instance {
        let addresses = Addresses { service: Some(address), ..Addresses::default() };
        Instance { attempt: 1, addresses, ..Instance::default() }
    }

    #[tokio::test]
    async fn an_http_probe_wants_a_status_below_400_and_a_tcp_probe_a_connection() {
        let kind = Standard::new().expect("a client");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let running = instance(listener.local_addr().expect("bound"));
        let router = Router::new()
            .route("/moved", get(|| async { (StatusCode::FOUND, [("location", "http://192.0.2.1/")]) }))
            .route("/broken", get(|| async { StatusCode::SERVICE_UNAVAILABLE }));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let http = |path: &str| desired(Probe::Http { path: path.into() });
        kind.probe(&running, &http("/moved")).await.expect("302 is below 400 and is not followed");
        let broken = kind.probe(&running, &http("/broken")).await.expect_err("503").to_string();
        assert!(broken.ends_with("/broken answered 503 Service Unavailable"), "{broken}");
        kind.probe(&running, &desired(Probe::Tcp)).await.expect("it listens");
        let left = kind.probe(&running, &desired(Probe::Process)).await.expect("nothing is asked");
        assert_eq!(left, ProbeAnswer::LeftToDriver);
        let free = TcpListener::bind("127.0.0.1:0").await.and_then(|l| l.local_addr()).expect("a free port");
        let refused = kind.probe(&instance(free), &http("/")).await.expect_err("no process listens").to_string();
        assert!(refused.contains("refused"), "{refused}");
        assert!(kind.probe(&instance(free), &desired(Probe::Tcp)).await.is_err());
    }
}
