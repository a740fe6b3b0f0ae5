//! The REST contract, served. Every refusal is a [`Problem`] in JSON.
//!
//! Callers show the secret of the instance with every call. `GET` of the status without one says that the instance is alive and
//! nothing more, so that probes of others need no secret.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, Request, State as Extract};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use common::kind::router::contract;
use common::{Generation, Token};
use runtime::folder::Folder;
use tokio::sync::Mutex;
use worker_core::instance::ManagementSecret;

use super::api::{
    Config, INSTANCE_HEADER, Interfaces, Labels, Problem, SATURATED, Status, TOKEN_HEADER, path, token_from_header,
    token_to_header,
};
use super::balancer::{Balancer, Inherited};
use super::handover::{self, TakeError};
use super::routing::{Routing, RoutingError};
use super::server::{Caller, in_time};
use super::{MAX_FILE, TOKEN_FILE, interfaces};

/// Largest body that is read.
const MOST: usize = 1024 * 1024;

/// What the handlers share.
#[derive(Debug)]
pub(super) struct RestState {
    /// Which instance this is, if it was told.
    name: Option<String>,
    /// Only callers with the secret are told more than that it is alive.
    closed: bool,
    served: Served,
    /// Where the newest token is kept.
    folder: Folder,
    /// Locked over a whole change, so that changes take effect in the order in which their tokens were accepted.
    owner: Mutex<Owner>,
}

/// What is configured.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) balancer: Arc<Balancer>,
    /// In its place, where this is a router.
    pub(super) routing: Option<Routing>,
}

/// A configuration of either.
pub(super) enum WantedConfig {
    Balancer(Config),
    Router(Box<contract::Config>),
}

impl From<Config> for WantedConfig {
    fn from(config: Config) -> Self {
        Self::Balancer(config)
    }
}

impl WantedConfig {
    const fn generation(&self) -> Generation {
        match self {
            Self::Balancer(config) => config.generation,
            Self::Router(config) => config.generation,
        }
    }
}

/// Who configured last.
#[derive(Debug, Default)]
struct Owner {
    token: Token,
    /// Generation configured under `token`.
    generation: Generation,
    /// Folder of the instance that this one takes over from with its first configuration.
    predecessor: Option<PathBuf>,
}

impl RestState {
    /// Reads the newest token seen in a former life of this instance, if any.
    pub(super) fn open(
        folder: Folder,
        name: Option<String>,
        closed: bool,
        served: Served,
        predecessor: Option<PathBuf>,
    ) -> anyhow::Result<Arc<Self>> {
        let token = match folder.read(TOKEN_FILE, MAX_FILE) {
            Ok(bytes) => std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| token_from_header(text.trim()))
                .with_context(|| format!("{} does not hold a token", folder.path().join(TOKEN_FILE).display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Token::default(),
            Err(error) => return Err(error).context("cannot read the newest token"),
        };
        let owner = Mutex::new(Owner { token, generation: Generation::default(), predecessor });
        Ok(Arc::new(Self { name, closed, served, folder, owner }))
    }

    /// Puts a configuration in force for an owner.
    pub(super) async fn change(&self, token: Token, config: impl Into<WantedConfig>) -> Result<(), ErrorResponse> {
        let config = config.into();
        let mut owner = self.owner.lock().await;
        self.accept(&mut owner, token)?;
        let generation = config.generation();
        if generation < owner.generation {
            // A call that was given up and arrives late, after its successor by the same owner.
            let error = format!("generation {} is in force, {generation} is older", owner.generation);
            return Err(ErrorResponse::new(StatusCode::PRECONDITION_FAILED, error));
        }
        match (config, owner.predecessor.clone()) {
            (WantedConfig::Router(config), _) => self.route(*config).await?,
            (WantedConfig::Balancer(config), Some(folder)) => self.take_over(&mut owner, &folder, config).await?,
            (WantedConfig::Balancer(config), None) => self.apply(config, Inherited::new()).await?,
        }
        owner.generation = generation;
        Ok(())
    }

    /// Reads a configuration of what this is.
    fn read(&self, body: &[u8]) -> Result<WantedConfig, ErrorResponse> {
        let odd = |error: serde_json::Error| {
            ErrorResponse::new(StatusCode::BAD_REQUEST, format!("not a configuration: {error}"))
        };
        if self.served.routing.is_some() {
            return serde_json::from_slice(body).map(Box::new).map(WantedConfig::Router).map_err(odd);
        }
        match serde_json::from_slice(body) {
            Ok(config) => Ok(WantedConfig::Balancer(config)),
            Err(_) if serde_json::from_slice::<contract::Config>(body).is_ok() => {
                let error = "this is the configuration of a router, and this appliance was not started with --router";
                Err(ErrorResponse::new(StatusCode::UNPROCESSABLE_ENTITY, error))
            }
            Err(error) => Err(odd(error)),
        }
    }

    async fn route(&self, config: contract::Config) -> Result<(), ErrorResponse> {
        let Some(routing) = &self.served.routing else {
            return Err(ErrorResponse::new(StatusCode::UNPROCESSABLE_ENTITY, "this is no router"));
        };
        routing.apply(config).await.map_err(|error| match error {
            RoutingError::Refused { field, problem } => ErrorResponse {
                status: StatusCode::UNPROCESSABLE_ENTITY,
                problem: Problem { error: problem, field, token: None },
            },
            RoutingError::Failed(error) => ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, error),
        })
    }

    async fn apply(&self, config: Config, inherited: Inherited) -> Result<(), ErrorResponse> {
        self.served.balancer.apply_with(config, inherited).await.map_err(|invalid| ErrorResponse {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            problem: Problem { error: invalid.description, field: Some(invalid.field), token: None },
        })
    }

    /// Puts the first configuration in force with the sockets of the instance before, which then hands over its connections.
    async fn take_over(&self, owner: &mut Owner, folder: &Path, config: Config) -> Result<(), ErrorResponse> {
        let (taking, inherited) = match handover::take(folder, owner.token).await {
            Ok((taking, inherited)) => (Ok(taking), inherited),
            Err(TakeError::Superseded(token)) => {
                let error = TakeError::Superseded(token).to_string();
                let problem = Problem { error, field: None, token: Some(token) };
                return Err(ErrorResponse { status: StatusCode::CONFLICT, problem });
            }
            // It may have ended, and then its ports are free.
            Err(error @ TakeError::Failed(_)) => (Err(error), Inherited::new()),
        };
        match (self.apply(config, inherited).await, taking) {
            (Ok(()), Ok(taking)) => taking.serving(Arc::clone(&self.served.balancer)).await,
            (Ok(()), Err(error)) => tracing::warn!("{error}"),
            (Err(refusal), Ok(_)) => return Err(refusal),
            (Err(refusal), Err(error)) => {
                // Another try may go well once that instance has been ended, so that this is no refusal.
                let error = format!("{error}; {}", refusal.problem.error);
                return Err(ErrorResponse::new(StatusCode::SERVICE_UNAVAILABLE, error));
            }
        }
        owner.predecessor = None;
        Ok(())
    }

    /// Whether an instance with this token may take the service over: otherwise the newer token that is known. From then on owners with
    /// older ones are refused here as well.
    pub(super) async fn admit_successor(&self, token: Token) -> io::Result<Result<(), Token>> {
        let mut owner = self.owner.lock().await;
        match self.accept(&mut owner, token) {
            Ok(()) => Ok(Ok(())),
            Err(ErrorResponse { problem: Problem { token: Some(newer), .. }, .. }) => Ok(Err(newer)),
            Err(ErrorResponse { problem, .. }) => Err(io::Error::other(problem.error)),
        }
    }

    /// Refuses what is meant for another instance, and says so with the status that HTTP has for it.
    fn addressed(&self, headers: &HeaderMap) -> Result<(), ErrorResponse> {
        let (Some(meant), Some(name)) = (headers.get(INSTANCE_HEADER), &self.name) else { return Ok(()) };
        if meant.as_bytes() == name.as_bytes() {
            return Ok(());
        }
        let meant = String::from_utf8_lossy(meant.as_bytes());
        Err(ErrorResponse::new(StatusCode::MISDIRECTED_REQUEST, format!("this is {name}, and not {meant}")))
    }

    /// Refuses an older token and keeps a newer one, on disk first.
    fn accept(&self, owner: &mut Owner, token: Token) -> Result<(), ErrorResponse> {
        if token < owner.token {
            let error = format!("token {token} is older than {}", owner.token);
            let problem = Problem { error, field: None, token: Some(owner.token) };
            return Err(ErrorResponse { status: StatusCode::CONFLICT, problem });
        }
        if token > owner.token {
            let line = format!("{}\n", token_to_header(token));
            self.folder.write_atomic(TOKEN_FILE, line.as_bytes()).map_err(|error| {
                ErrorResponse::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot keep the token: {error}"))
            })?;
            // The new owner may have seen an older spec than the former (a restored store): generations start anew.
            (owner.token, owner.generation) = (token, Generation::default());
        }
        Ok(())
    }
}

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct ErrorResponse {
    pub(super) status: StatusCode,
    problem: Problem,
}

impl ErrorResponse {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, problem: Problem { error: error.into(), field: None, token: None } }
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.problem)).into_response();
        let (headers, set) = (response.headers_mut(), HeaderValue::from_static);
        match self.status {
            // The rest of the body is not read, so that the connection cannot be used again; the client should know.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                _ = headers.insert(header::CONNECTION, set("close"))
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::CONNECTION, set("close"));
                headers.insert(header::WWW_AUTHENTICATE, set("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// The routes of the contract, for callers that have the secret, if there is one.
pub(super) fn router(state: Arc<RestState>, secret: Option<ManagementSecret>) -> Router {
    let secret = secret.map(Arc::new);
    Router::new()
        .route(path::STATUS, get(read_status))
        .route(path::INTERFACES, get(read_interfaces))
        .route(path::CONFIG, put(put_config).get(read_config))
        .route(path::LABELS, post(read_labels))
        .layer(DefaultBodyLimit::max(MOST))
        .layer(from_fn(move |caller: Extension<Caller>, request: Request, next: Next| {
            let secret = secret.clone();
            async move { admit(secret.as_deref(), &caller, request, next).await }
        }))
        .with_state(state)
}

/// Lets a request through, within its time, if its caller may ask that. Nothing of its body is read before.
async fn admit(secret: Option<&ManagementSecret>, caller: &Caller, request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION);
    let public = request.uri().path() == path::STATUS && sent.is_none();
    let admitted = match secret {
        None => true,
        Some(secret) => sent
            .and_then(|sent| sent.as_bytes().strip_prefix(b"Bearer "))
            .is_some_and(|sent| caller.shows(sent, secret)),
    };
    if !admitted && !public {
        return ErrorResponse::new(StatusCode::UNAUTHORIZED, "the secret of this instance is needed").into_response();
    }
    let late = || ErrorResponse::new(StatusCode::REQUEST_TIMEOUT, "the request took too long").into_response();
    in_time(next.run(request)).await.unwrap_or_else(late)
}

/// Answers that it is alive, and to callers with the secret what they should know besides.
async fn read_status(Extract(state): Extract<Arc<RestState>>, caller: Extension<Caller>) -> Json<Status> {
    let mut answer = Status { status: "ok".to_owned(), ..Status::default() };
    if caller.is_known() || !state.closed {
        answer.conditions =
            state.served.balancer.saturation().await.map(|text| (SATURATED.to_owned(), text)).into_iter().collect();
    }
    Json(answer)
}

async fn read_interfaces() -> Result<Json<Interfaces>, ErrorResponse> {
    interfaces::read().map(Json).map_err(|error| {
        ErrorResponse::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read interfaces: {error}"))
    })
}

async fn read_config(Extract(state): Extract<Arc<RestState>>) -> Response {
    match &state.served.routing {
        Some(routing) => Json(routing.config().await).into_response(),
        None => Json(state.served.balancer.config().await).into_response(),
    }
}

/// Reads counters. It changes nothing and so takes any token, or none.
async fn read_labels(Extract(state): Extract<Arc<RestState>>) -> Json<Labels> {
    match &state.served.routing {
        Some(routing) => Json(routing.labels().await),
        None => Json(state.served.balancer.labels().await),
    }
}

async fn put_config(
    Extract(state): Extract<Arc<RestState>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, ErrorResponse> {
    state.addressed(&headers)?;
    let token = headers
        .get(TOKEN_HEADER)
        .ok_or_else(|| ErrorResponse::new(StatusCode::PRECONDITION_REQUIRED, "the header Rug-Token is missing"))?;
    let token =
        token.to_str().ok().and_then(token_from_header).ok_or_else(|| {
            ErrorResponse::new(StatusCode::BAD_REQUEST, "the header Rug-Token must be <term>/<sequence>")
        })?;
    let body = body.map_err(|rejection| ErrorResponse::new(rejection.status(), rejection.body_text()))?;
    let config = state.read(&body)?;
    // A task of its own: when the caller hangs up, the change goes on to its end all the same.
    match tokio::spawn(async move { state.change(token, config).await }).await {
        Ok(result) => result.map(|()| StatusCode::NO_CONTENT),
        Err(error) => Err(ErrorResponse::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
