//! The coordination URL and its options, as python-tooz has them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::embedded::{EmbeddedCandidate, EmbeddedSeat};
use super::{Candidate, Error, Seat, zookeeper};
use common::appliance::FieldViolation;
use common::{CoordinatorId, WorkerId};

/// Settings of coordination, the same for coordinators and workers of a cluster.
///
/// The URL may hold a password: `Debug` and [`Config::shown`] leave it out, serialization does not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `embedded`, or `zookeeper://[user:password@]host:port[,host:port...][/chroot][?timeout=6&namespace=tooz...]`.
    /// Options, as python-tooz names them: `timeout` (session timeout in seconds, 0.5 to 100; a shorter one finds the
    /// dead sooner and fences the slow more often), `namespace`, `hosts`, and for TLS `use_ssl`, `ca`, `certfile`,
    /// `keyfile`.
    pub url: String,
    /// Name of the cluster: its groups are `<group>.workers` and `<group>.coordinators`.
    pub group: String,
    /// How long a member waits for nodes that an earlier life under its name left behind, beyond the session timeout,
    /// before it says that the name is taken.
    #[serde(with = "humantime_serde")]
    pub join_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { url: "embedded".to_owned(), group: "rug".to_owned(), join_timeout: Duration::from_secs(10) }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &self.shown())
            .field("group", &self.group)
            .field("join_timeout", &self.join_timeout)
            .finish()
    }
}

impl Config {
    /// Whether the coordinator itself is the authority.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.url == "embedded"
    }

    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        if self.is_embedded() {
            return Vec::new();
        }
        let refused = zookeeper::Config::parse(self).err();
        refused.map(|error| FieldViolation::new("url", error.to_string())).into_iter().collect()
    }

    /// The URL without credentials, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        zookeeper::without_credentials(&self.url)
    }

    /// A worker's seat. `coordinators` are the addresses to try when coordination is embedded.
    ///
    /// # Errors
    /// [`Error::Refused`] when the URL cannot be used. Needs a Tokio runtime.
    pub fn seat(&self, name: &WorkerId, coordinators: Vec<String>) -> Result<Arc<dyn Seat>, Error> {
        if self.is_embedded() {
            return Ok(Arc::new(EmbeddedSeat::new(coordinators)));
        }
        Ok(zookeeper::seat(zookeeper::Config::parse(self)?, name))
    }

    /// A coordinator's candidacy; `address` is where others reach its APIs, `state_dir` where it keeps what it must not
    /// forget when coordination is embedded.
    ///
    /// # Errors
    /// As [`Config::seat`].
    pub fn candidate(
        &self,
        id: &CoordinatorId,
        address: String,
        state_dir: &Path,
    ) -> Result<Arc<dyn Candidate>, Error> {
        if self.is_embedded() {
            return Ok(Arc::new(EmbeddedCandidate::new(id.clone(), address, state_dir)));
        }
        Ok(zookeeper::candidate(zookeeper::Config::parse(self)?, id, address))
    }
}
