//! Coordination in ZooKeeper, in the layout of python-tooz.

use std::sync::Arc;

use super::{Candidate, Error, Seat, url};
use crate::{CoordinatorId, WorkerId};

/// A parsed URL.
#[derive(Clone, Debug)]
pub struct Config {}

impl Config {
    /// Parses.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn parse(_: &url::Config) -> Result<Self, Error> {
        Err(Error::Refused("not built yet".to_owned()))
    }
}

/// A worker's seat.
///
/// # Errors
/// [`Error::Refused`].
pub fn seat(_: Config, _: &WorkerId) -> Result<Arc<dyn Seat>, Error> {
    Err(Error::Refused("not built yet".to_owned()))
}

/// A coordinator's candidacy.
///
/// # Errors
/// [`Error::Refused`].
pub fn candidate(_: Config, _: &CoordinatorId, _: String) -> Result<Arc<dyn Candidate>, Error> {
    Err(Error::Refused("not built yet".to_owned()))
}
