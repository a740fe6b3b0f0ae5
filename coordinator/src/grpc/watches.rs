//! How many watches are open: of one caller, and in all.
//!
//! A watch keeps what its client has not read yet, a list of all appliances at first, for as long as the client likes. So
//! each caller has a bound of its own, and all together have one; a call beyond it is refused with `RESOURCE_EXHAUSTED`.
//! Calls that a coordinator forwards count as those of their callers.

use std::sync::Arc;

use common::appliance::FieldViolation;
use futures::FutureExt;
use http::Request;
use runtime::log_limited;
use serde::{Deserialize, Serialize};
use tonic::body::Body;

use super::authorize::access_of;
use super::incoming::PeerInfo;
use super::layer::{Answer, Around, Calls, KeepingBody, Next, at_once};
use super::status;
use crate::budget::{Budget, Exhausted};

/// Settings of watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

impl BoundWatches {
    /// Within these bounds.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { open: Budget::new(config.max, config.max_per_caller), config }
    }
}

impl Around for BoundWatches {
    fn around<S: Calls>(self: &Arc<Self>, request: Request<Body>, next: Next<S>) -> Answer {
        // Also the one of the health service.
        if !request.uri().path().ends_with("/Watch") {
            return next.call(request);
        }
        let caller = match access_of(request.extensions()) {
            Ok(access) => access.caller_key(),
            Err(status) => return at_once(&status),
        };
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
