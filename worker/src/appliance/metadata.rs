//! Requests of servers for their metadata: taken at [`METADATA_ADDRESS`] on every internal interface, and passed on to the worker with the address
//! they come from and the network that the interface is on.
//!
//! One socket for each interface, bound to it: whatever a server says, the network is that which its packets came from.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use common::kind::router::contract;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use router::{METADATA_ADDRESS, metadata_doors};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::api::metadata_header::{FORWARDED_FOR, NETWORK};
use crate::http_passing::{self, PassError, RequestHandler};

/// Port of the metadata service.
const PORT: u16 = 80;
/// How long a request may take; the worker gives up before, as set by default.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long opening a connection to the worker may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest bodies.
const MOST: u32 = 1 << 20;
/// Connections that may wait.
const BACKLOG: u32 = 128;

/// Where servers ask, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DoorConfig {
    /// Network of the interface.
    network: String,
    /// The worker.
    to: SocketAddr,
}

/// The doors that are open, by interface.
#[derive(Debug, Default)]
pub(super) struct MetadataDoors(BTreeMap<String, (DoorConfig, DropGuard)>);

impl MetadataDoors {
    /// Opens and closes doors as a configuration says, which is in force.
    ///
    /// # Errors
    /// A door cannot be opened; the others are as they shall be. Repeating it tries again.
    pub(super) fn apply(&mut self, config: &contract::Config) -> Result<(), String> {
        let orchestrator = config.orchestrator.address.zip(config.orchestrator.metadata_port);
        let to = orchestrator.map(SocketAddr::from);
        let door = |(interface, network)| Some((interface, DoorConfig { network, to: to? }));
        let wanted: BTreeMap<_, _> = metadata_doors(config).into_iter().filter_map(door).collect();
        self.0.retain(|interface, (open, _)| wanted.get(interface) == Some(open));
        let mut problem = None;
        for (interface, door) in wanted {
            if self.0.contains_key(&interface) {
                continue;
            }
            match listen(&interface).map_err(|error| error.to_string()).and_then(|socket| serve(socket, door.clone())) {
                Ok(open) => drop(self.0.insert(interface, (door, open))),
                Err(error) => {
                    problem = Some(format!("serve {METADATA_ADDRESS}:{PORT} on {interface}: {error}"));
                }
            }
        }
        problem.map_or(Ok(()), Err)
    }
}

fn listen(interface: &str) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind_device(Some(interface.as_bytes()))?;
    // Connections of the door that was here before may still be ending.
    socket.set_reuseaddr(true)?;
    socket.bind((METADATA_ADDRESS, PORT).into())?;
    socket.listen(BACKLOG)
}

/// Passes requests on until the guard is dropped.
fn serve(socket: TcpListener, door: DoorConfig) -> Result<DropGuard, String> {
    let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let http = http.connect_timeout(CONNECT).tcp_nodelay(true).build().map_err(|error| error.to_string())?;
    let stop = CancellationToken::new();
    tokio::spawn(http_passing::serve(socket, Arc::new(Door { http, door }), stop.clone()));
    Ok(stop.drop_guard())
}

#[derive(Debug)]
struct Door {
    http: reqwest::Client,
    door: DoorConfig,
}

impl Door {
    async fn pass_on(&self, sender: IpAddr, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, PassError> {
        let (parts, body) = request.into_parts();
        let target = http_passing::target(&parts.method, &parts.uri)?;
        let body = http_passing::read(body, MOST).await?;
        let own = [(FORWARDED_FOR, sender.to_string()), (NETWORK, self.door.network.clone())];
        let headers = http_passing::headers(&parts.headers, own);
        let is_head = parts.method == Method::HEAD;
        let asked = self.http.request(parts.method, format!("http://{}{target}", self.door.to)).headers(headers);
        http_passing::pass_back(asked.body(body).send().await?, MOST, is_head).await
    }
}

impl RequestHandler for Door {
    async fn handle(&self, sender: IpAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match tokio::time::timeout(TIMEOUT, self.pass_on(sender, request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                if let PassError::NoAnswer(why) = &error {
                    runtime::log_limited!(warn, error = why, "requests for metadata cannot be passed on");
                }
                http_passing::plain(error.status(), &error.to_string())
            }
            Err(_) => http_passing::plain(StatusCode::GATEWAY_TIMEOUT, "no answer in time"),
        }
    }

    fn timeout(&self) -> Duration {
        TIMEOUT
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::get;

    use super::*;

    #[tokio::test]
    async fn the_worker_is_told_who_asks_and_from_where_and_nothing_that_the_server_says_about_that() {
        runtime::tls::install_provider();
        let worker = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let to = worker.local_addr().expect("bound");
        let told = |headers: HeaderMap| async move {
            let of = |name: &str| {
                headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect::<Vec<_>>().join("|")
            };
            ["x-forwarded-for", "x-neutron-network-id", "x-instance-id", "x-tenant-id", "accept"].map(of).join(";")
        };
        tokio::spawn(async move { axum::serve(worker, Router::new().route("/openstack", get(told))).await });
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let at = socket.local_addr().expect("bound");
        let _open = serve(socket, DoorConfig { network: "n1".to_owned(), to }).expect("serves");
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let ask = |path: &str| {
            let asked = client.get(format!("http://{at}{path}")).header("X-Forwarded-For", "10.0.0.9");
            let asked = asked.header("X-Neutron-Network-ID", "n2").header("X-Instance-ID", "i").header("Accept", "a/b");
            asked.header("X-Tenant-ID", "t").send()
        };
        let answer = ask("/openstack").await.expect("it answers");
        assert_eq!(answer.text().await.expect("a text"), "127.0.0.1;n1;;;a/b");
        assert_eq!(ask("/other").await.expect("it answers").status(), StatusCode::NOT_FOUND);
    }
}
