//! How long calls take, and what they come to.

use std::sync::Arc;

use futures::FutureExt;
use http::{Request, Response};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};

use super::layer::{Answer, Around, Calls, Next};
use crate::metrics;

/// Measures every call until its answer begins, refusals of the layers inside among them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measure;

impl Around for Measure {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        let (method, began) = (metrics::method(request.uri().path()), Instant::now());
        let measured = move |answer: Response<Body>| {
            // Whatever fails at once says so in the headers.
            let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
            metrics::answered(method, code, began.elapsed());
            answer
        };
        next.call(request).map(measured).boxed()
    }
}
