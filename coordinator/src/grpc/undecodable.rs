//! What clients send that is no message: answered with the code that says whose mistake it is.
//!
//! | what | tonic answers | here |
//! |---|---|---|
//! | bytes that are no such message, no message, a compression flag without or with an unknown value | `INTERNAL` | `INVALID_ARGUMENT` |
//! | a message larger than the limit | `OUT_OF_RANGE` | `RESOURCE_EXHAUSTED` |
//! | `grpc-timeout` that cannot be read | ignores it | `INVALID_ARGUMENT` |
//! | an encoding that is not supported, an unknown method | `UNIMPLEMENTED` | the same |
//!
//! Every status of this program carries an `ErrorInfo`, and none is `INTERNAL`; so an `INTERNAL` without one comes from
//! reading the request. A layer around all services: it sees what reading a unary request came to, and the first message
//! of a stream. What a stream brings later is for the service to answer.

use std::sync::Arc;

use common::appliance::FieldViolation;
use common::text;
use futures::FutureExt;
use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};

use super::deadline::parse_timeout;
use super::layer::{Answer, Around, Calls, Next, at_once};
use super::status;

const DETAILS: &str = "grpc-status-details-bin";
const TIMEOUT: &str = "grpc-timeout";

/// Longest text of another library that is passed on.
const MAX_REASON: usize = 200;

/// See the module. Ends calls at their deadline, too, if nothing inside has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Undecodable;

impl Around for Undecodable {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        let Some(given) = request.headers().get(TIMEOUT) else { return next.call(request).map(judged).boxed() };
        let Some(timeout) = given.to_str().ok().and_then(parse_timeout) else {
            let violation =
                FieldViolation::new(TIMEOUT, "is not a timeout: up to 8 digits and one of H, M, S, m, u, n");
            return at_once(&status::invalid(&[violation]));
        };
        let answer = tokio::time::timeout(timeout, next.call(request));
        answer.map(|answer| answer.map_or_else(|_| status::deadline().into_http(), judged)).boxed()
    }
}

fn judged(answer: Response<Body>) -> Response<Body> {
    let found = unexplained(answer.headers());
    match found {
        Some(status) => status.into_http(),
        None => answer,
    }
}

/// The status that says better what these headers do, if there is one.
fn unexplained(headers: &HeaderMap) -> Option<Status> {
    if headers.contains_key(DETAILS) {
        return None;
    }
    let found = Status::from_header_map(headers)?;
    let reason = text::escaped(text::clip(found.message(), MAX_REASON)).into_owned();
    match found.code() {
        Code::Internal => Some(status::undecodable(&reason)),
        Code::OutOfRange => Some(status::too_large(&reason)),
        _ => None,
    }
}
