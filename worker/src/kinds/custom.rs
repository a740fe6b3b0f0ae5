//! Kind `custom`: any command with an HTTP or TCP probe. It has no configuration of its own: whatever changes its
//! command line makes a new instance.

use async_trait::async_trait;
use common::appliance::{Kind as SpecKind, Probe};
use tokio::net::TcpStream;
use worker_core::desired::Desired;
use worker_core::instance::Instance;

use super::http::Client;
use crate::drivers::Error;
use crate::gate::Permit;
use crate::kinds::Kind;

/// The kind.
#[derive(Debug)]
pub struct Custom {
    client: Client,
}

impl Custom {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }
}

#[async_trait]
impl Kind for Custom {
    async fn configure(&self, permit: &Permit, _: &Instance, _: &Desired) -> Result<(), Error> {
        Ok(permit.check()?)
    }

    async fn probe(&self, instance: &Instance, desired: &Desired) -> Result<(), Error> {
        let SpecKind::Custom(custom) = &desired.spec.kind else {
            return Err(Error::Refused(format!("`{}` is not a custom appliance", desired.name)));
        };
        let address = instance.address.ok_or_else(|| Error::Failed("the instance has no address to probe".into()))?;
        match &custom.probe {
            Probe::Tcp => match TcpStream::connect(address).await {
                Ok(_) => Ok(()),
                Err(error) => Err(Error::Failed(format!("connect to {address}: {error}"))),
            },
            Probe::Http { path } => {
                let answer = self.client.get(address, path).await;
                match answer.map_err(|error| Error::Failed(format!("GET http://{address}{path}: {error}")))?.status {
                    status if status.as_u16() < 400 => Ok(()),
                    status => Err(Error::Failed(format!("GET http://{address}{path} answered {status}"))),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use common::appliance::{Custom as CustomSpec, Driver, Name, Spec};
    use common::{Edition, Generation, Term};
    use tokio::net::TcpListener;

    use super::*;

    fn desired(probe: Probe) -> Desired {
        let name = Name::new("a").expect("a name");
        let kind =
            SpecKind::Custom(CustomSpec { command: "x".into(), args: vec![], env: BTreeMap::new(), port: None, probe });
        Desired {
            name: name.clone(),
            tenant: name,
            driver: Driver::Process,
            edition: Edition::new(Generation::new(1), Term::new(1)),
            revision: 0,
            deleting: false,
            spec: Spec { replicas: 1, probe_interval: None, image: None, kind },
        }
    }

    fn instance(address: SocketAddr) -> Instance {
        Instance {
            ordinal: 0,
            attempt: 1,
            boot_digest: String::new(),
            pid: None,
            started_at_unix_ms: 0,
            management: None,
            address: Some(address),
        }
    }

    #[tokio::test]
    async fn an_http_probe_wants_a_status_below_400_and_a_tcp_probe_a_connection() {
        let kind = Custom::new(Client::new().expect("a client"));
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
        kind.probe(&running, &desired(Probe::Tcp)).await.expect("somebody listens");
        let free = TcpListener::bind("127.0.0.1:0").await.and_then(|l| l.local_addr()).expect("a free port");
        let refused = kind.probe(&instance(free), &http("/")).await.expect_err("nobody listens").to_string();
        assert!(refused.contains("refused"), "{refused}");
        assert!(kind.probe(&instance(free), &desired(Probe::Tcp)).await.is_err());
    }
}
