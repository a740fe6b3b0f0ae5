//! The metadata proxy: requests of tenants' servers for their metadata, which appliances pass on to their worker, go on to Nova with the proof of
//! who asks.
//!
//! A server asks `http://169.254.169.254/`, its appliance forwards that over the management network and says which address in which network
//! asked. Neutron says which server that is ([`guests`]); its id goes on to Nova with a signature by the secret that Nova shares, as the
//! metadata agent of Neutron does it.
//!
//! An appliance is believed no more than it can know: it has to be one whose instance this worker holds at the address that the request
//! comes from ([`held`](crate::held)), and it can ask for servers of the networks behind it only. Everything is bounded: connections,
//! requests of one and of all, bodies, time, what is remembered.

mod config;
mod guests;
mod refusal;
mod request;
mod secret;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::ApplianceId;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use openstack::Client;
use runtime::{log_limited, telemetry};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, field, info_span};

use self::guests::{Guests, PortDirectory};
use self::refusal::Refusal;
use self::request::Asker;
use self::secret::SharedSecret;
use crate::held::{HeldInstances, NotHeld};
use crate::http_passing::{self, PassError, RequestHandler};
use crate::metrics::{self, MetadataOutcome};

pub use self::config::Config;
pub(crate) use self::request::rewrite_asker;

/// How long opening a connection to Nova may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest path that spans tell.
const SHOWN_PATH: usize = 256;

/// The proxy, which listens and does not serve yet.
#[derive(Debug)]
pub struct MetadataProxy {
    listener: TcpListener,
    proxy: Arc<Proxy>,
}

impl MetadataProxy {
    /// Binds the proxy at an address, and follows its secret until `stop`. Neutron is asked by a client of its own: what asks for metadata in a
    /// loop must not take the turns of the driver.
    ///
    /// # Errors
    /// What is wrong with the settings, or with the address.
    pub async fn bind(
        address: SocketAddr,
        config: &Config,
        client: &openstack::ClientConfig,
        held: HeldInstances,
        stop: &CancellationToken,
    ) -> Result<Self, String> {
        let neutron = Client::new(client).map_err(|error| error.to_string())?;
        let secret = SharedSecret::follow(config.secret_file.clone(), stop.clone())?;
        let proxy = Proxy::new(config, Box::new(neutron), held, secret)?;
        let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
        Ok(Self { listener, proxy: Arc::new(proxy) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        http_passing::serve(self.listener, self.proxy, stop).await;
    }
}

/// What serves requests.
struct Proxy {
    config: Config,
    /// Scheme, host and port of Nova's metadata service.
    nova: String,
    http: reqwest::Client,
    held: HeldInstances,
    guests: Guests,
    secret: SharedSecret,
    /// Requests that may be under way, and those that are, by appliance.
    free: Semaphore,
    under_way: Mutex<HashMap<ApplianceId, u32>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("nova", &self.nova).finish_non_exhaustive()
    }
}

/// The turn of a request of an appliance.
struct Turn<'a> {
    proxy: &'a Proxy,
    appliance: ApplianceId,
    _permit: tokio::sync::SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut under_way = self.proxy.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = under_way.get_mut(&self.appliance) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.appliance);
            }
        }
    }
}

impl Proxy {
    fn new(
        config: &Config,
        directory: Box<dyn PortDirectory>,
        held: HeldInstances,
        secret: SharedSecret,
    ) -> Result<Self, String> {
        let nova = config::base(&config.nova).map_err(|problem| format!("nova: {problem}"))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT.min(config.timeout))
            .pool_max_idle_per_host(config.in_flight_per_appliance.get() as usize)
            .tcp_nodelay(true)
            .build()
            .map_err(|error| format!("no HTTP client: {error}"))?;
        let guests = Guests::new(directory, config.known_time, config.unknown_time);
        let free = Semaphore::new(config.in_flight.get() as usize);
        let (config, under_way) = (config.clone(), Mutex::default());
        Ok(Self { config, nova, http, held, guests, secret, free, under_way })
    }

    async fn answer(&self, sender: IpAddr, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
        let held = self.held.at(sender).map_err(|why| match why {
            NotHeld::NoLease => Refusal::NoLease,
            NotHeld::Nobody => Refusal::Stranger(sender),
            NotHeld::Two => Refusal::Claimed(sender),
        })?;
        Span::current().record("appliance", field::display(held.appliance));
        let _turn = self.turn(held.appliance)?;
        let (parts, body) = request.into_parts();
        let target = http_passing::target(&parts.method, &parts.uri)?;
        let asker = Asker::read(&parts.headers)?;
        let networks = asker.networks(&held)?;
        let body = http_passing::read(body, self.config.max_request_bytes.get()).await?;
        let guest = self.guests.find(asker.address, networks.into_iter().collect()).await?;
        Span::current().record("server", guest.server.as_str());
        let headers = request::headers(&parts.headers, asker.address, &guest, &self.secret.key());
        let is_head = parts.method == Method::HEAD;
        let asked = self.http.request(parts.method, format!("{}{target}", self.nova)).headers(headers).body(body);
        let answer = asked.send().await.map_err(PassError::from)?;
        if answer.status() == StatusCode::FORBIDDEN {
            log_limited!(
                warn,
                "metadata proxy: Nova answers 403; mostly its metadata_proxy_shared_secret is another one"
            );
        }
        Ok(http_passing::pass_back(answer, self.config.max_response_bytes.get(), is_head).await?)
    }

    /// The turn of a request, if there is one.
    fn turn(&self, appliance: ApplianceId) -> Result<Turn<'_>, Refusal> {
        let permit = self.free.try_acquire().map_err(|_| Refusal::Busy)?;
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let count = under_way.entry(appliance).or_default();
        if *count >= self.config.in_flight_per_appliance.get() {
            return Err(Refusal::Busy);
        }
        *count += 1;
        Ok(Turn { proxy: self, appliance, _permit: permit })
    }
}

impl RequestHandler for Proxy {
    async fn handle(&self, sender: IpAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let began = Instant::now();
        let span = span_of(&request);
        let answer = tokio::time::timeout(self.config.timeout, self.answer(sender, request));
        let answer = answer.instrument(span.clone()).await.unwrap_or(Err(Refusal::Late));
        let (outcome, response) = match answer {
            Ok(response) => (nova_outcome(response.status()), response),
            Err(refusal) => {
                if let Refusal::Passing(PassError::NoAnswer(error)) = &refusal {
                    log_limited!(warn, error, "metadata proxy: Nova does not answer");
                }
                span.in_scope(|| log_limited!(info, %sender, "metadata proxy: {refusal}"));
                (refusal.outcome(), refused(&refusal))
            }
        };
        let status = response.status();
        span.record("http.response.status_code", status.as_u16());
        span.record("outcome", outcome.name());
        if status.is_server_error() {
            telemetry::fail(&span, outcome.name());
        }
        metrics::metadata_request(outcome, began.elapsed());
        response
    }

    fn timeout(&self) -> Duration {
        self.config.timeout
    }
}

fn span_of(request: &Request<Incoming>) -> Span {
    let method = match *request.method() {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        _ => "_OTHER",
    };
    info_span!(
        "metadata",
        otel.kind = "server",
        http.request.method = method,
        url.path = common::text::clip(request.uri().path(), SHOWN_PATH),
        http.response.status_code = field::Empty,
        appliance = field::Empty,
        server = field::Empty,
        outcome = field::Empty,
    )
}

fn nova_outcome(status: StatusCode) -> MetadataOutcome {
    match status {
        StatusCode::FORBIDDEN => MetadataOutcome::RefusedByNova,
        status if status.is_server_error() => MetadataOutcome::FailedAtNova,
        _ => MetadataOutcome::Answered,
    }
}

fn refused(refusal: &Refusal) -> Response<Full<Bytes>> {
    let mut response = http_passing::plain(refusal.status(), &refusal.to_string());
    if let Some(seconds) = refusal.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
