//! Settings of the client.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use common::appliance::FieldViolation;
use serde::{Deserialize, Serialize};

/// A service of the cloud that the client speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Keystone.
    Identity,
    /// Nova.
    Compute,
    /// Neutron.
    Network,
    /// Glance.
    Image,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Identity, Self::Compute, Self::Network, Self::Image];

    /// The name in settings, the catalog and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Compute => "compute",
            Self::Network => "network",
            Self::Image => "image",
        }
    }
}

/// Settings of the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// Which cloud of `clouds.yaml`. Without it what `OS_CLOUD` names; without that what `OS_AUTH_URL` and the other variables say; without
    /// those the only cloud of the file.
    pub cloud: String,
    /// The file. Without it what `OS_CLIENT_CONFIG_FILE` names, else the first of `./clouds.yaml`, `~/.config/openstack/clouds.yaml` and
    /// `/etc/openstack/clouds.yaml`. `secure.yaml` beside it has what must be for one user.
    pub clouds_file: PathBuf,
    /// Region; that of the file when empty, and any when that has none.
    pub region: String,
    /// Which endpoints of the catalog: `public`, `internal` or `admin`; that of the file when empty, else `public`.
    pub interface: String,
    /// Addresses of services instead of those in the catalog.
    pub endpoints: BTreeMap<Service, String>,
    /// How long one call may take, with every repetition of it, and with the renewal of the token. The fence delay of the driver grows with
    /// it.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub request_timeout: Duration,
    /// How long opening a connection may take.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub connect_timeout: Duration,
    /// Calls that may be under way at a time. More changes a fleet faster, and loads the cloud more.
    pub in_flight: NonZeroU32,
    /// Longest wait that is done as a service asks for (`Retry-After`); what is to wait longer fails.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub max_retry_after: Duration,
    /// Most objects of one page of a listing.
    pub page_size: NonZeroU32,
}

impl Default for ClientConfig {
    fn default() -> Self {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        Self {
            cloud: String::new(),
            clouds_file: PathBuf::new(),
            region: String::new(),
            interface: String::new(),
            endpoints: BTreeMap::new(),
            request_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            in_flight: number(32),
            max_retry_after: Duration::from_secs(10),
            page_size: number(500),
        }
    }
}

impl ClientConfig {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        let range = Duration::from_millis(100)..=Duration::from_secs(600);
        if !range.contains(&self.request_timeout) {
            found.push(FieldViolation::new("request_timeout", "must be 100ms to 10m"));
        }
        if self.connect_timeout.is_zero() || self.connect_timeout > self.request_timeout {
            found.push(FieldViolation::new("connect_timeout", "must be more than 0s, and at most request_timeout"));
        }
        if self.max_retry_after > Duration::from_secs(600) {
            found.push(FieldViolation::new("max_retry_after", "must be 10m or less"));
        }
        if self.in_flight.get() > 1_000 {
            found.push(FieldViolation::new("in_flight", "must be 1000 or less"));
        }
        if self.page_size.get() > 10_000 {
            found.push(FieldViolation::new("page_size", "must be 10000 or less"));
        }
        if !matches!(self.interface.as_str(), "" | "public" | "internal" | "admin") {
            found.push(FieldViolation::new("interface", "must be public, internal or admin"));
        }
        for (service, url) in &self.endpoints {
            if let Err(problem) = check_url(url) {
                found.push(FieldViolation::new(format!("endpoints.{}", service.as_str()), problem));
            }
        }
        found
    }
}

/// Whether this is the address of a service.
pub(crate) fn check_url(text: &str) -> Result<(), &'static str> {
    let uri: http::Uri = text.parse().map_err(|_| "is no URL")?;
    match (uri.scheme_str(), uri.host(), uri.query()) {
        (Some("http" | "https"), Some(host), None) if !host.is_empty() => {
            // Credentials there would be logged.
            if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
                return Err("must not hold a user");
            }
            Ok(())
        }
        _ => Err("must be an http:// or https:// URL without a query"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(ClientConfig::default().validate(), []);
        let bad = ClientConfig {
            request_timeout: Duration::ZERO,
            interface: "outer".to_owned(),
            endpoints: BTreeMap::from([(Service::Compute, "nova".to_owned())]),
            ..ClientConfig::default()
        };
        let fields: Vec<_> = bad.validate().into_iter().map(|violation| violation.field).collect();
        assert_eq!(fields, ["request_timeout", "connect_timeout", "interface", "endpoints.compute"]);
    }
}
