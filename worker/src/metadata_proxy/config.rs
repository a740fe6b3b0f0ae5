//! Settings of the metadata proxy.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use common::appliance::FieldViolation;
use serde::{Deserialize, Serialize};

/// Settings of the metadata proxy. The client of Neutron is that of the driver `openstack`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where it listens, on the management network, over plain HTTP; nowhere when absent.
    pub listen: Option<SocketAddr>,
    /// Where appliances reach it, which their configuration tells them; `listen` when absent.
    pub advertise: Option<SocketAddr>,
    /// Nova's metadata service, over plain HTTP.
    pub nova: String,
    /// File with the secret that Nova has as `metadata_proxy_shared_secret`. Looked at every 5 s. Needed with `listen`.
    pub secret_file: PathBuf,
    /// Requests that may be under way at a time. One takes up to `max_request_bytes` and `max_response_bytes` of memory.
    pub in_flight: NonZeroU32,
    /// The same, of one appliance: what of the others one that asks in a loop can take.
    pub in_flight_per_appliance: NonZeroU32,
    /// Longest body of a request.
    pub max_request_bytes: NonZeroU32,
    /// Longest body of an answer of Nova.
    pub max_response_bytes: NonZeroU32,
    /// How long a request may take, with the question to Neutron and the answer of Nova.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub timeout: Duration,
    /// How long the server that has an address is remembered. For as long, one that gets the address of another one may be given the metadata of
    /// that.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub known_time: Duration,
    /// How long it is remembered that none has.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub unknown_time: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        Self {
            listen: None,
            advertise: None,
            nova: "http://127.0.0.1:8775".to_owned(),
            secret_file: PathBuf::new(),
            in_flight: number(64),
            in_flight_per_appliance: number(8),
            max_request_bytes: number(64 << 10),
            max_response_bytes: number(1 << 20),
            timeout: Duration::from_secs(20),
            known_time: Duration::from_secs(5),
            unknown_time: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if let Err(problem) = base(&self.nova) {
            found.push(FieldViolation::new("nova", problem));
        }
        if self.listen.is_some() && self.secret_file.as_os_str().is_empty() {
            found.push(FieldViolation::new("secret_file", "must be named where `listen` is"));
        }
        if self.listen.is_some() && self.advertised().is_none() {
            found.push(FieldViolation::new("advertise", "must be an address that appliances reach, with its port"));
        }
        if self.advertise.is_some() && self.listen.is_none() {
            found.push(FieldViolation::new("advertise", "needs `listen`"));
        }
        if self.in_flight.get() > 4_096 {
            found.push(FieldViolation::new("in_flight", "must be 4096 or less"));
        }
        if self.in_flight_per_appliance > self.in_flight {
            found.push(FieldViolation::new("in_flight_per_appliance", "must be `in_flight` or less"));
        }
        for (field, value) in
            [("max_request_bytes", self.max_request_bytes), ("max_response_bytes", self.max_response_bytes)]
        {
            if value.get() > 64 << 20 {
                found.push(FieldViolation::new(field, "must be 67108864 (64 MiB) or less"));
            }
        }
        for (field, value, least, most) in [
            ("timeout", self.timeout, Duration::from_millis(100), 120),
            ("known_time", self.known_time, Duration::ZERO, 60),
            ("unknown_time", self.unknown_time, Duration::ZERO, 60),
        ] {
            if value < least || value > Duration::from_secs(most) {
                let least = humantime::format_duration(least);
                found.push(FieldViolation::new(field, format!("must be {least} to {most}s")));
            }
        }
        found
    }

    /// Where appliances reach it; `None` where it does not listen, or that cannot be reached.
    #[must_use]
    pub fn advertised(&self) -> Option<SocketAddr> {
        let listen = self.listen?;
        Some(self.advertise.unwrap_or(listen)).filter(|address| !address.ip().is_unspecified() && address.port() != 0)
    }
}

/// The address of a service without what follows its host and port.
pub(super) fn base(text: &str) -> Result<String, &'static str> {
    let uri: http::Uri = text.parse().map_err(|_| "is no URL")?;
    let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err("must be an http:// URL: no TLS is spoken");
    };
    // Credentials there would be logged.
    if authority.as_str().contains('@') || authority.host().is_empty() {
        return Err("must name a host, and no user");
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("must have neither a path nor a query: those of the request are used");
    }
    Ok(format!("http://{authority}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(config: &Config) -> Vec<String> {
        config.validate().into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        let (off, one) = (Config::default(), NonZeroU32::MIN);
        assert_eq!((off.validate(), off.advertised()), (vec![], None));
        let listen = Some(([0, 0, 0, 0], 8_775).into());
        let bad = Config { listen, nova: "nova".into(), in_flight: one, timeout: Duration::ZERO, ..off.clone() };
        assert_eq!(fields(&bad), ["nova", "secret_file", "advertise", "in_flight_per_appliance", "timeout"]);
        let (secret_file, advertise) = ("secret".into(), Some(([192, 0, 2, 1], 8_775).into()));
        let on = Config { listen, secret_file, advertise, ..off.clone() };
        assert_eq!((on.validate(), on.advertised()), (vec![], advertise));
        assert_eq!(fields(&Config { advertise, ..off }), ["advertise"]);
    }

    #[test]
    fn nova_is_a_host_with_a_port_and_nothing_else() {
        assert_eq!(base("http://nova.example:8775/").as_deref(), Ok("http://nova.example:8775"));
        assert_eq!(base("http://[::1]:8775").as_deref(), Ok("http://[::1]:8775"));
        for text in ["", "nova:8775", "https://nova", "http://u:p@nova", "http://nova/x", "http://nova/?a", "/nova"] {
            assert!(base(text).is_err(), "{text}");
        }
    }
}
