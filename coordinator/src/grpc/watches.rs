//! How many watches are open, and how many lists wait to be read: of one caller, and in all.
//!
//! A watch keeps what its client has not read yet, a list of all appliances at first, for as long as the client likes; and
//! a page of a list is kept until its client reads it, which has to be soon. So each caller has a bound of its own, and all
//! together have one; a call beyond it is refused with `RESOURCE_EXHAUSTED`, a list only after it has waited. Calls that a
//! coordinator forwards count as those of their callers.

use std::sync::Arc;
use std::time::Duration;

use common::appliance::FieldViolation;
use futures::FutureExt;
use http::{Request, Response};
use runtime::log_limited;
use serde::{Deserialize, Serialize};
use tonic::body::Body;

use super::arriving::EXEC;
use super::authorize::access_of;
use super::incoming::PeerInfo;
use super::layer::{Answer, Around, Calls, ExpiringBody, KeepingBody, Next, at_once};
use super::status;
use crate::budget::{Budget, Exhausted, HeldShare};

/// Lists of all callers, and of each, that are made or wait to be read at once: 64 MiB for all at most.
const LISTS: (usize, usize) = (64, 16);
/// How long a list waits for others to be read. Pages are read in milliseconds.
const TURN: Duration = Duration::from_secs(5);
/// How long a client may take to read a page.
const READ: Duration = Duration::from_secs(60);

/// Settings of watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Watches of one caller at once: of the name in a certificate or token, or of an address. A watch whose client does not
    /// read holds some 10 bytes for each appliance.
    pub max_per_caller: usize,
    /// Watches of all callers at once.
    pub max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_per_caller: 64, max: 4_096 }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let settings = [("max_per_caller", self.max_per_caller), ("max", self.max)];
        let broken = settings.into_iter().filter(|(_, value)| !(1..=100_000).contains(value));
        broken.map(|(field, _)| FieldViolation::new(field, "must be 1 to 100000")).collect()
    }
}

/// See the module. Goes inside of [`Authorize`](super::Authorize).
#[derive(Debug)]
pub struct BoundWatches {
    config: Config,
    open: Arc<Budget>,
    lists: Arc<Budget>,
}

impl BoundWatches {
    /// Within these bounds.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { open: Budget::new(config.max, config.max_per_caller), lists: Budget::new(LISTS.0, LISTS.1), config }
    }

    /// Answers a list when it is its turn.
    async fn list<S: Calls>(mut turn: HeldShare, request: Request<Body>, next: Next<S>) -> Response<Body> {
        if let Err(exhausted) = turn.grow_within(1, TURN).await {
            log_limited!(warn, "list refused: {exhausted}");
            return status::too_many_lists(&exhausted).into_http();
        }
        let answer = next.call(request).await;
        ExpiringBody::of(answer, turn, READ)
    }
}

impl Around for BoundWatches {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        let path = request.uri().path();
        // Also the watch of the health service; and whoever follows logs, or a command, watches.
        let (watches, lists) =
            (path.ends_with("/Watch") || path.ends_with("/Logs") || path == EXEC, path.ends_with("/List"));
        if !watches && !lists {
            return next.call(request);
        }
        let caller = match access_of(request.extensions()) {
            Ok(access) => access.caller_key(),
            Err(status) => return at_once(&status),
        };
        if lists {
            return Self::list(self.lists.hold(caller), request, next).boxed();
        }
        let mut held = self.open.hold(caller);
        match held.grow(1) {
            Ok(()) => next.call(request).map(move |answer| KeepingBody::of(answer, held)).boxed(),
            Err(exhausted) => {
                let peer = request.extensions().get::<PeerInfo>().map(ToString::to_string).unwrap_or_default();
                log_limited!(warn, peer, "watch refused: {exhausted}");
                let Config { max_per_caller, max } = self.config;
                at_once(&match exhausted {
                    Exhausted::ByPeer => status::too_many_watches("this caller has", max_per_caller),
                    Exhausted::ByAll => status::too_many_watches("there are", max),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_nothing_or_beyond_reason_are_refused() {
        assert_eq!(Config::default().validate(), []);
        let broken = Config { max_per_caller: 0, max: 100_001 }.validate();
        let fields: Vec<_> = broken.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["max_per_caller", "max"]);
    }
}
