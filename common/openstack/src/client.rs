//! What every call goes through: a token, a turn, a deadline, waits that a service asks for, repetition of calls that only read, a span of a
//! client and a measurement.
//!
//! A call that changes something is made again only after 429, by which a service says that it did nothing, and after 401. Whatever else was not
//! answered may have taken effect, and its caller has to find out.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use runtime::telemetry;
use runtime::tls::web_client;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{Mutex as TurnMutex, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{Instrument as _, Span, field, info_span};
use uuid::Uuid;

use crate::call::Call;
use crate::clouds::{Cloud, SetupError};
use crate::config::{ClientConfig, Service};
use crate::connections::{Connections, Target};
use crate::error::{Error, ErrorKind};
use crate::identity::{self, Identity, Token};
use crate::metrics;

/// A turn that comes with less time left than this is not used: the call would be sent and given up at once, and nobody would know whether
/// it was carried out.
const LEAST_LEFT: Duration = Duration::from_millis(20);

/// Where the CAs of the system are.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How often a call that only reads is repeated after an answer that says nothing, or none.
const REPEATS: u32 = 4;
/// Mean wait before the first repetition; doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// How long no token is asked for after credentials were refused: accounts are locked for less.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// Most objects of one listing, and most pages.
const MAX_LISTED: usize = 200_000;
const MAX_PAGES: usize = 2_000;

/// Asked before each call that changes something, when its connection is there. Its text says why the call must not be made.
pub type Guard = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A client of one cloud. Clones share connections, token and turns.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
    guard: Option<Guard>,
}

struct Inner {
    cloud: Cloud,
    config: ClientConfig,
    connections: Connections,
    turns: Semaphore,
    /// The newest token. Read by every call.
    token: RwLock<Option<Arc<Token>>>,
    /// Whoever gets a token; the others wait for it. Holds when, and why, credentials were refused last.
    renewal: TurnMutex<Option<(Instant, Error)>>,
    /// The newest version of compute that both sides know.
    compute_version: Mutex<Option<String>>,
}

/// How far a call has come.
mod phase {
    pub(super) const QUEUED: u8 = 0;
    pub(super) const TOKEN: u8 = 1;
    pub(super) const CONNECTING: u8 = 2;
    pub(super) const SENT: u8 = 3;
}

/// What a service answered, with success.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) body: Bytes,
    pub(crate) request_id: Option<String>,
}

impl Answer {
    /// The object under its name.
    pub(crate) fn object<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        let whole = self.value(name)?;
        let found = whole.get(name).cloned().unwrap_or(Value::Null);
        serde_json::from_value(found)
            .map_err(|error| Error::unreadable(name, error).of_request(self.request_id.as_deref()))
    }

    /// The whole body.
    pub(crate) fn value(&self, what: &str) -> Result<Value, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::unreadable(what, error).of_request(self.request_id.as_deref()))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("cloud", &self.inner.cloud.name).finish_non_exhaustive()
    }
}

impl Client {
    /// Sets up a client. Reads files only: no call is made yet.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(config: &ClientConfig) -> Result<Self, SetupError> {
        Self::of(Cloud::find(config)?, config)
    }

    /// The same, of a cloud that is known.
    ///
    /// # Errors
    /// [`SetupError::Tls`].
    pub fn of(cloud: Cloud, config: &ClientConfig) -> Result<Self, SetupError> {
        let own = cloud.own.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
        let ca = cloud.ca.clone().unwrap_or_else(|| SYSTEM_CAS.into());
        let tls = web_client(&ca, own);
        // Whoever named files means them; whether the system has CAs is of no interest where nothing is protected.
        if let (Err(problem), true) =
            (&tls, cloud.ca.is_some() || own.is_some() || cloud.auth_url.starts_with("https:"))
        {
            return Err(SetupError::Tls(problem.clone()));
        }
        let inner = Inner {
            connections: Connections::new(tls, config.connect_timeout),
            turns: Semaphore::new(config.in_flight.get() as usize),
            config: config.clone(),
            cloud,
            token: RwLock::default(),
            renewal: TurnMutex::default(),
            compute_version: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner), guard: None })
    }

    /// The same client, whose calls that change something ask `guard` before they are sent.
    #[must_use]
    pub fn guarded(&self, guard: Guard) -> Self {
        Self { inner: Arc::clone(&self.inner), guard: Some(guard) }
    }

    /// The cloud.
    #[must_use]
    pub fn cloud(&self) -> &Cloud {
        &self.inner.cloud
    }

    /// Longest time of one call.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        self.inner.config.request_timeout
    }

    /// Who the client is.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn identity(&self) -> Result<Identity, Error> {
        let deadline = Instant::now() + self.inner.config.request_timeout;
        let token = timeout_at(deadline, self.token()).await;
        token.unwrap_or_else(|_| Err(self.late(phase::TOKEN))).map(|token| token.identity.clone())
    }

    /// Where a service is, for people.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn address(&self, service: Service) -> Result<String, Error> {
        let target = self.token().await?.endpoint(service, &self.inner.cloud)?;
        Ok(format!("{}://{}{}", if target.https { "https" } else { "http" }, target.authority(), target.path))
    }

    /// Makes a call.
    pub(crate) async fn send(&self, call: &Call) -> Result<Answer, Error> {
        let span = info_span!(
            "http",
            otel.name = format_args!("{} {}", call.method, call.template),
            otel.kind = "client",
            http.request.method = %call.method,
            url.template = call.template,
            openstack.service = call.service.as_str(),
            openstack.request_id = field::Empty,
            server.address = field::Empty,
            server.port = field::Empty,
            http.response.status_code = field::Empty,
            http.request.resend_count = field::Empty,
            error.r#type = field::Empty,
        );
        let work = async {
            let began = Instant::now();
            let deadline = began + self.inner.config.request_timeout;
            let phase = AtomicU8::new(phase::QUEUED);
            let result = timeout_at(deadline, self.exchange(call, deadline, &phase)).await;
            let result = result.unwrap_or_else(|_| Err(self.late(phase.load(Ordering::Relaxed))));
            let outcome = result.as_ref().map_or_else(|error| error.kind.name(), |_| "ok");
            metrics::called(call.service.as_str(), call.method.as_str(), outcome, began.elapsed());
            if let Err(error) = &result {
                // That something is not there, or is in another state, is an answer.
                if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) {
                    Span::current().record("error.type", outcome);
                    telemetry::fail(&Span::current(), &error.to_string());
                }
            }
            result
        };
        work.instrument(span).await
    }

    fn late(&self, phase: u8) -> Error {
        let limit = self.inner.config.request_timeout;
        match phase {
            phase::QUEUED => Error::new(
                ErrorKind::Throttled,
                format!("no turn within {limit:?}: too many calls are under way (in_flight)"),
            ),
            phase::TOKEN => Error::new(ErrorKind::NoConnection, format!("no token within {limit:?}")),
            phase::CONNECTING => Error::new(ErrorKind::NoConnection, format!("no connection within {limit:?}")),
            _ => Error::new(ErrorKind::TimedOut, format!("no answer within {limit:?}")),
        }
    }

    /// Makes a call, and again while that may help and there is time.
    async fn exchange(&self, call: &Call, deadline: Instant, phase: &AtomicU8) -> Result<Answer, Error> {
        let inner = &self.inner;
        let (mut repeats, mut renewed) = (0, false);
        loop {
            phase.store(phase::QUEUED, Ordering::Relaxed);
            let turn = inner.turns.acquire().await.map_err(|_| self.late(phase::QUEUED))?;
            if deadline.saturating_duration_since(Instant::now()) < LEAST_LEFT {
                return Err(self.late(phase::QUEUED));
            }
            phase.store(phase::TOKEN, Ordering::Relaxed);
            let token = self.token().await?;
            let target = token.endpoint(call.service, &inner.cloud)?;
            Span::current().record("server.address", target.host.as_str()).record("server.port", target.port);
            let request = self.request(call, &target, token.value.reveal())?;
            phase.store(phase::CONNECTING, Ordering::Relaxed);
            let before = || {
                if let (false, Some(guard)) = (call.only_reads(), &self.guard) {
                    guard().map_err(|why| Error::new(ErrorKind::Withheld, why))?;
                }
                phase.store(phase::SENT, Ordering::Relaxed);
                Ok(())
            };
            let answer = inner.connections.exchange(&target, request, &before).await;
            drop(turn);
            let (result, asked_to_wait) = match answer {
                Ok(answer) => {
                    note(&answer);
                    if answer.status() == StatusCode::UNAUTHORIZED && !renewed {
                        renewed = true;
                        self.forget(&token);
                        metrics::repeated("token");
                        continue;
                    }
                    let wait = retry_after(answer.headers(), inner.config.max_retry_after);
                    (read(answer), wait)
                }
                Err(error) => (Err(error), None),
            };
            let Err(error) = &result else { return result };
            let again = self.again(call.only_reads(), error, asked_to_wait, repeats);
            let Some((reason, wait)) = again.filter(|(_, wait)| Instant::now() + *wait < deadline) else {
                return result;
            };
            repeats += 1;
            metrics::repeated(reason);
            Span::current().record("http.request.resend_count", repeats);
            // What is waited for here was refused: an end of the deadline within the wait is no unclear answer.
            phase.store(phase::QUEUED, Ordering::Relaxed);
            sleep(wait).await;
        }
    }

    /// Why a call is to be made again, and after which wait.
    fn again(
        &self,
        only_reads: bool,
        error: &Error,
        asked: Option<Duration>,
        repeats: u32,
    ) -> Option<(&'static str, Duration)> {
        let reason = match error.kind {
            ErrorKind::Throttled => "throttled",
            ErrorKind::Unavailable if only_reads => "unavailable",
            ErrorKind::NoConnection => "no_connection",
            ErrorKind::NoAnswer if only_reads => "no_connection",
            _ => return None,
        };
        if repeats >= REPEATS {
            return None;
        }
        // All that were refused at one moment would come back at another.
        let spread = rand::random::<f64>();
        match asked {
            Some(asked) if asked > self.inner.config.max_retry_after => None,
            Some(asked) => Some((reason, asked.mul_f64(1.0 + 0.2 * spread))),
            None => Some((reason, (FIRST_WAIT * 2_u32.pow(repeats)).mul_f64(0.5 + spread))),
        }
    }

    fn request(&self, call: &Call, target: &Target, token: &str) -> Result<Request<Full<Bytes>>, Error> {
        let base = if call.at_root { root(&target.path) } else { target.path.as_str() };
        let query = if call.query.is_empty() { String::new() } else { format!("?{}", call.query) };
        let mut request = Request::builder().method(call.method.clone()).uri(format!("{base}{}{query}", call.path));
        request = request.header("x-auth-token", sensitive(token)?);
        if let Some(version) = &call.version {
            request = request
                .header("openstack-api-version", format!("compute {version}"))
                .header("x-openstack-nova-api-version", version.as_str());
        }
        finish(request, target, call.body.clone())
    }

    /// The token in force; a new one when it is about to end.
    async fn token(&self) -> Result<Arc<Token>, Error> {
        let inner = &self.inner;
        let newest = || inner.token.read().unwrap_or_else(PoisonError::into_inner).clone();
        let is_fresh = |token: &Arc<Token>| Instant::now() < token.renew_at;
        if let Some(token) = newest().filter(is_fresh) {
            return Ok(token);
        }
        let mut refused = inner.renewal.lock().await;
        // Somebody may have got one meanwhile.
        let held = newest();
        if let Some(token) = held.clone().filter(is_fresh) {
            return Ok(token);
        }
        let still_good = held.filter(|token| Instant::now() < token.ends_at);
        if let Some((when, error)) = refused.as_ref().filter(|(when, _)| when.elapsed() < REFUSED_FOR) {
            tracing::trace!(since = ?when.elapsed(), "no token is asked for yet");
            return still_good.ok_or_else(|| error.clone());
        }
        match self.authenticate().await {
            Ok(token) => {
                *refused = None;
                let token = Arc::new(token);
                *inner.token.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&token));
                Ok(token)
            }
            Err(error) => {
                let error = Error { message: format!("no token: {}", error.message), ..error };
                if matches!(error.kind, ErrorKind::Unauthenticated | ErrorKind::Forbidden) {
                    *refused = Some((Instant::now(), error.clone()));
                }
                still_good.ok_or(error)
            }
        }
    }

    /// Does not use this token any more.
    fn forget(&self, token: &Arc<Token>) {
        let mut newest = self.inner.token.write().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref().is_some_and(|newest| Arc::ptr_eq(newest, token)) {
            *newest = None;
        }
    }

    /// Asks Keystone for a token. Getting one changes nothing, so that this is repeated as what only reads is.
    async fn authenticate(&self) -> Result<Token, Error> {
        let inner = &self.inner;
        let span = info_span!(
            "http",
            otel.name = "POST /auth/tokens",
            otel.kind = "client",
            http.request.method = "POST",
            url.template = "/auth/tokens",
            openstack.service = "identity",
            openstack.request_id = field::Empty,
            server.address = field::Empty,
            server.port = field::Empty,
            http.response.status_code = field::Empty,
            http.request.resend_count = field::Empty,
            error.r#type = field::Empty,
        );
        let work = async {
            let target = Target::of(&inner.cloud.auth_url)
                .ok_or_else(|| Error::new(ErrorKind::NoService, "the address of the identity service is no URL"))?;
            Span::current().record("server.address", target.host.as_str()).record("server.port", target.port);
            let body = identity::request(&inner.cloud.credentials).to_string().into_bytes();
            for repeats in 0.. {
                let asked = Instant::now();
                let uri = format!("{}/auth/tokens", target.path);
                let request = finish(Request::builder().method(Method::POST).uri(uri), &target, Some(body.clone()))?;
                let answer = inner.connections.exchange(&target, request, &|| Ok(())).await;
                let mut wait = None;
                let result = answer.and_then(|answer| {
                    note(&answer);
                    wait = retry_after(answer.headers(), inner.config.max_retry_after);
                    let value = answer
                        .headers()
                        .get("x-subject-token")
                        .and_then(|value| value.to_str().ok())
                        .map(str::to_owned);
                    Token::read(value.as_deref(), &read(answer)?.body, asked)
                });
                let outcome = result.as_ref().map_or_else(|error| error.kind.name(), |_| "ok");
                metrics::called("identity", "post", outcome, asked.elapsed());
                let Err(error) = result else { return result };
                let Some((reason, wait)) = self.again(true, &error, wait, repeats) else {
                    Span::current().record("error.type", outcome);
                    telemetry::fail(&Span::current(), &error.to_string());
                    // Whatever became of it, the call that needs the token was not made.
                    let kind = if error.is_without_effect() { error.kind } else { ErrorKind::NoConnection };
                    return Err(Error { kind, ..error });
                };
                metrics::repeated(reason);
                sleep(wait).await;
            }
            Err(Error::new(ErrorKind::NoConnection, "no token"))
        };
        work.instrument(span).await
    }

    /// The version of compute that both sides know, if one was found out already.
    pub(crate) fn compute_version(&self) -> Option<String> {
        self.inner.compute_version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_compute_version(&self, version: Option<String>) {
        *self.inner.compute_version.lock().unwrap_or_else(PoisonError::into_inner) = version;
    }

    /// Every object of a listing, page by page. Pages are asked for by what the service says follows, but always where the client found it:
    /// links name the address that the service believes to have.
    pub(crate) async fn list<T: DeserializeOwned>(&self, call: Call, name: &str) -> Result<Vec<T>, Error> {
        let mut call = call.filtered([("limit", self.inner.config.page_size.to_string())]);
        let links = format!("{name}_links");
        let mut found = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..MAX_PAGES {
            seen.insert(call.query.clone());
            let answer = self.send(&call).await?;
            let mut whole = answer.value(name)?;
            let wrong = |problem: &str| Error::unreadable(name, problem).of_request(answer.request_id.as_deref());
            let Some(Value::Array(objects)) = whole.get_mut(name).map(Value::take) else {
                return Err(wrong("it has no list"));
            };
            let is_empty = objects.is_empty();
            for object in objects {
                found.push(serde_json::from_value(object).map_err(|error| wrong(&error.to_string()))?);
            }
            if found.len() > MAX_LISTED {
                return Err(wrong("it is too long"));
            }
            let next = whole.get(&links).and_then(Value::as_array).into_iter().flatten();
            let next = next.filter(|link| link["rel"] == "next").find_map(|link| link["href"].as_str());
            // Of images.
            let next = next.or_else(|| whole.get("next").and_then(Value::as_str));
            let Some(query) = next.and_then(|href| href.split_once('?')).map(|(_, query)| query.to_owned()) else {
                return Ok(found);
            };
            if is_empty {
                return Ok(found);
            }
            if seen.contains(&query) || query.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(wrong("its pages do not end"));
            }
            call.query = query;
        }
        Err(Error::unreadable(name, "it has too many pages"))
    }
}

/// The path of a service up to its version: endpoints of compute may go on with a project.
fn root(path: &str) -> &str {
    let mut end = 0;
    for part in path.split_inclusive('/') {
        end += part.len();
        let part = part.trim_end_matches('/');
        if part.starts_with("v2") {
            return path[..end].trim_end_matches('/');
        }
    }
    path
}

fn sensitive(text: &str) -> Result<HeaderValue, Error> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| Error::new(ErrorKind::Unreadable, "the token is no header"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Adds what every request has.
fn finish(
    mut request: http::request::Builder,
    target: &Target,
    body: Option<Vec<u8>>,
) -> Result<Request<Full<Bytes>>, Error> {
    let context = telemetry::trace_context(&Span::current());
    // By this id the logs of all services can be searched: those that one calls are told it.
    let id = Uuid::from_u128(rand::random());
    request = request
        .header(HOST, target.authority())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("rug/", env!("CARGO_PKG_VERSION")))
        .header("x-openstack-request-id", format!("req-{id}"));
    for (name, part) in [("traceparent", context.traceparent), ("tracestate", context.tracestate)] {
        if let (false, Ok(part)) = (part.is_empty(), HeaderValue::from_str(&part)) {
            request = request.header(HeaderName::from_static(name), part);
        }
    }
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = Full::new(Bytes::from(body.unwrap_or_default()));
    request.body(body).map_err(|error| Error::new(ErrorKind::Invalid, format!("the call cannot be made: {error}")))
}

fn request_id<T>(answer: &Response<T>) -> Option<String> {
    let headers = answer.headers();
    let id = headers.get("x-openstack-request-id").or_else(|| headers.get("x-compute-request-id"))?;
    let id = id.to_str().ok().filter(|id| id.len() <= 64 && id.bytes().all(|b| b.is_ascii_graphic()))?;
    Some(id.to_owned())
}

/// Notes in the span what was answered.
fn note(answer: &Response<Bytes>) {
    let span = Span::current();
    span.record("http.response.status_code", answer.status().as_u16());
    if let Some(id) = request_id(answer) {
        span.record("openstack.request_id", id.as_str());
    }
}

/// What an answer is.
fn read(answer: Response<Bytes>) -> Result<Answer, Error> {
    let request_id = request_id(&answer);
    if answer.status().is_success() {
        return Ok(Answer { request_id, body: answer.into_body() });
    }
    Err(Error::of_status(answer.status().as_u16(), answer.body()).of_request(request_id.as_deref()))
}

/// How long a service asks to wait. It names seconds; a proxy before it may name a date, for which the longest wait stands.
fn retry_after(headers: &HeaderMap, longest: Duration) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    Some(text.trim().parse().map_or(longest, Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_service_is_found_in_its_endpoint() {
        assert_eq!(root("/v2.1/0123"), "/v2.1");
        assert_eq!(root("/compute/v2.1"), "/compute/v2.1");
        assert_eq!(root("/compute"), "/compute");
        assert_eq!(root(""), "");
    }
}
