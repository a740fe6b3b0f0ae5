//! From settings to the implementation that they name: the one place that knows them all.

use std::path::Path;
use std::sync::Arc;

use common::appliance::FieldViolation;
use common::{CoordinatorId, WorkerId};

use crate::embedded::{EmbeddedCandidate, EmbeddedGroup};
use crate::url::Config;
use crate::{Candidate, Error, Group, zookeeper};

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        if self.is_embedded() {
            return Vec::new();
        }
        let refused = zookeeper::Config::parse(self).err();
        refused.map(|error| FieldViolation::new("url", error.to_string())).into_iter().collect()
    }

    /// The group of workers, for the worker `name`. `coordinators` are the addresses to try when coordination is embedded.
    ///
    /// # Errors
    /// [`Error::Refused`] when the URL cannot be used. Needs a Tokio runtime.
    pub fn worker_group(&self, name: &WorkerId, coordinators: Vec<String>) -> Result<Arc<dyn Group>, Error> {
        if self.is_embedded() {
            return Ok(Arc::new(EmbeddedGroup::new(coordinators, self.join_timeout)));
        }
        Ok(zookeeper::worker_group(zookeeper::Config::parse(self)?, name))
    }

    /// A coordinator's candidacy; `address` is where others reach its APIs, `state_dir` where it keeps what it must not
    /// forget when coordination is embedded.
    ///
    /// # Errors
    /// As [`Config::worker_group`].
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
