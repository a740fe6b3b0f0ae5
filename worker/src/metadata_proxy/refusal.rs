//! Why a request is not answered by Nova, as its sender and the metrics are told.

use std::net::IpAddr;

use http::StatusCode;

use crate::http_passing::PassError;
use crate::metrics::MetadataOutcome;

/// Why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no instance that this worker holds has the address {0}")]
    Stranger(IpAddr),
    #[error("two appliances claim the address {0}")]
    Claimed(IpAddr),
    #[error("network {0} is none that the appliance serves")]
    ForeignNetwork(String),
    #[error("router {0} is not the appliance that asks")]
    ForeignRouter(String),
    #[error("{0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Passing(#[from] PassError),
    #[error("{0}")]
    NoServer(String),
    #[error("this worker has no lease at the moment")]
    NoLease,
    #[error("too many requests are under way")]
    Busy,
    #[error("Neutron does not say which server has the address")]
    NoDirectory,
    #[error("no answer in time")]
    Late,
}

impl Refusal {
    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Stranger(_) | Self::Claimed(_) | Self::ForeignNetwork(_) | Self::ForeignRouter(_) => {
                StatusCode::FORBIDDEN
            }
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Passing(error) => error.status(),
            Self::NoServer(_) => StatusCode::NOT_FOUND,
            Self::NoLease | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoDirectory => StatusCode::BAD_GATEWAY,
            Self::Late => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    pub(super) const fn outcome(&self) -> MetadataOutcome {
        match self {
            Self::Stranger(_) | Self::Claimed(_) | Self::ForeignNetwork(_) | Self::ForeignRouter(_) => {
                MetadataOutcome::Refused
            }
            Self::Malformed(_) | Self::Passing(PassError::Method | PassError::Target | PassError::BrokenRequest) => {
                MetadataOutcome::Malformed
            }
            Self::Passing(PassError::LongRequest(_) | PassError::LongAnswer(_)) => MetadataOutcome::TooLong,
            Self::Passing(PassError::NoAnswer(_)) => MetadataOutcome::NoNova,
            Self::NoServer(_) => MetadataOutcome::NoServer,
            Self::NoLease => MetadataOutcome::NoLease,
            Self::Busy => MetadataOutcome::Busy,
            Self::NoDirectory => MetadataOutcome::NoNeutron,
            Self::Late => MetadataOutcome::Late,
        }
    }

    /// In how many seconds it may be tried again, where that is told.
    pub(super) const fn retry_after(&self) -> Option<u16> {
        match self {
            Self::Busy => Some(1),
            Self::NoLease => Some(5),
            _ => None,
        }
    }
}
