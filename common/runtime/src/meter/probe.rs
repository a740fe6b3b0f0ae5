//! What a supervisor asks, at the port of the metrics: whether the process lives, and whether it does its work.
//!
//! | path | 200 while |
//! |---|---|
//! | `/livez` | the process answers at all: nothing that depends on others |
//! | `/readyz` | it does its work, which each program says of itself; else 503 |
//!
//! Kubernetes knows gRPC probes without TLS only, so coordinators answer here what their health service says, too. The body of both names
//! program, version and the revision that whoever starts it has given it ([`REVISION`]), by which an upgrade sees how far it is.

use std::fmt;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

/// Path of readiness.
pub const PATH: &str = "/readyz";

/// Variable with the revision of the installation that the process belongs to.
pub const REVISION: &str = "RUG_REVISION";

/// How a process answers probes.
#[derive(Clone)]
pub struct Probe {
    program: &'static str,
    revision: Arc<str>,
    ready: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, revision, ready: _ } = self;
        f.debug_struct("Probe").field("program", program).field("revision", revision).finish_non_exhaustive()
    }
}

#[derive(Debug, Serialize)]
struct ProbeAnswer<'a> {
    ready: bool,
    program: &'a str,
    version: &'a str,
    revision: &'a str,
}

impl Probe {
    /// Of a program that does its work while `ready` says so.
    pub fn new(program: &'static str, ready: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let revision = std::env::var(REVISION).unwrap_or_default();
        Self { program, revision: revision.into(), ready: Arc::new(ready) }
    }

    pub(super) fn routes(self) -> Router {
        Router::new().route("/livez", get(lives)).route(PATH, get(is_ready)).with_state(self)
    }

    fn answer(&self, ready: bool) -> Json<ProbeAnswer<'_>> {
        let version = env!("CARGO_PKG_VERSION");
        Json(ProbeAnswer { ready, program: self.program, version, revision: &self.revision })
    }
}

async fn lives(State(probe): State<Probe>) -> Response {
    probe.answer((probe.ready)()).into_response()
}

async fn is_ready(State(probe): State<Probe>) -> Response {
    let ready = (probe.ready)();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, probe.answer(ready)).into_response()
}
