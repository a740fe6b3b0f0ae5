//! Settings of this source.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use common::appliance::{FieldViolation, MAX_TEXT};
use common::driver::DriverName;
use lapin::uri::AMQPUri;
use openstack::ClientConfig;
use serde::{Deserialize, Serialize};

/// Most entries of one condition of the selection.
const MAX_SELECTED: usize = 1_000;
/// Longest name of a queue or exchange in AMQP, in bytes.
const MAX_AMQP_NAME: usize = 127;

/// Settings of what is read from Neutron.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Make appliances of the routers of Neutron.
    pub routers: bool,
    /// RabbitMQ of Neutron: `amqp://user:password@host:5672/` or `amqps://...`, with `%2F` behind it or nothing for the virtual host `/`.
    /// Without it changes are seen at the next listing only.
    pub amqp_url: String,
    /// CAs that RabbitMQ's certificate is checked by, in PEM; needed for `amqps`.
    pub amqp_ca: PathBuf,
    /// Exchange that Neutron sends its notifications to.
    pub exchange: String,
    /// Routing key of the notifications.
    pub topic: String,
    /// Name of the queue that this cluster keeps there. Clusters of Rug that read the same Neutron need different ones.
    pub queue: String,
    /// Messages that are taken and not acknowledged yet. More fold better, fewer come back when the leader changes.
    pub prefetch: u16,
    /// How long events of one router are gathered before it is read, from the first of them on. Longer reads less, and acts later.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub gather: Duration,
    /// Time between two listings of everything, which find what no notification told. Neutron sends none of several changes.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub resync_interval: Duration,
    /// Driver of the appliances.
    pub driver: String,
    /// Image of the appliances; what the driver has for routers when empty.
    pub image: String,
    /// Tell routers the addresses of the hosts in their networks, for DHCP and names. Every port that comes or goes then
    /// changes the configuration of a router.
    pub allocations: bool,
    /// Of a listing, appliances are deleted only while no more than this share of all of them (in percent) is missing from it: credentials
    /// that see less than they did must not empty a cloud.
    pub max_missing_percent: u8,
    /// Which routers; all when empty.
    pub select: Select,
    /// How Keystone and Neutron are reached.
    pub client: ClientConfig,
}

/// Which routers have appliances. A condition without an entry holds for all; all conditions have to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Select {
    /// Ids of projects.
    pub tenants: Vec<String>,
    /// Ids of flavors.
    pub flavors: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// Hints of availability zones.
    pub zones: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            routers: false,
            amqp_url: String::new(),
            amqp_ca: PathBuf::new(),
            exchange: "neutron".to_owned(),
            topic: "notifications.info".to_owned(),
            queue: "rug.notifications".to_owned(),
            prefetch: 256,
            gather: Duration::from_millis(500),
            resync_interval: Duration::from_secs(300),
            driver: "openstack".to_owned(),
            image: String::new(),
            allocations: true,
            max_missing_percent: 50,
            select: Select::default(),
            client: ClientConfig::default(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may hold a password.
        let Self { routers, amqp_url: _, amqp_ca, exchange, topic, queue, prefetch, gather, resync_interval, .. } =
            self;
        f.debug_struct("Config")
            .field("routers", routers)
            .field("amqp_url", &self.shown_url())
            .field("amqp_ca", amqp_ca)
            .field("exchange", exchange)
            .field("topic", topic)
            .field("queue", queue)
            .field("prefetch", prefetch)
            .field("gather", gather)
            .field("resync_interval", resync_interval)
            .field("driver", &self.driver)
            .field("image", &self.image)
            .field("allocations", &self.allocations)
            .field("max_missing_percent", &self.max_missing_percent)
            .field("select", &self.select)
            .field("client", &self.client)
            .finish()
    }
}

impl Config {
    /// The address of RabbitMQ without credentials.
    #[must_use]
    pub fn shown_url(&self) -> String {
        match self.uri() {
            Ok(uri) => {
                let host = if uri.vhost == "/" { "" } else { uri.vhost.as_str() };
                format!("{}://{}:{}/{host}", uri.scheme, uri.authority.host, uri.authority.port)
            }
            Err(_) => String::new(),
        }
    }

    /// The address of RabbitMQ. Its problem does not quote it.
    pub(super) fn uri(&self) -> Result<AMQPUri, &'static str> {
        let problem = "is no address of RabbitMQ, such as amqp://user:password@host:5672/";
        // An empty path is the virtual host of that name, which nobody has.
        let text = self.amqp_url.strip_suffix('/').unwrap_or(&self.amqp_url);
        text.parse().map_err(|_| problem)
    }

    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found: Vec<_> =
            self.client.validate().into_iter().map(|violation| violation.within("client")).collect();
        let mut violated = |field: &str, text: String| found.push(FieldViolation::new(field, text));
        if !self.amqp_url.is_empty() {
            match self.uri() {
                Err(problem) => violated("amqp_url", problem.to_owned()),
                Ok(uri) if uri.scheme == lapin::uri::AMQPScheme::AMQPS && self.amqp_ca.as_os_str().is_empty() => {
                    violated("amqp_ca", "is needed for amqps".to_owned());
                }
                Ok(_) => {}
            }
        }
        for (field, name) in [("exchange", &self.exchange), ("topic", &self.topic), ("queue", &self.queue)] {
            if name.is_empty() || name.len() > MAX_AMQP_NAME || name.contains(char::is_control) {
                violated(field, format!("must have 1 to {MAX_AMQP_NAME} bytes, and no control characters"));
            }
        }
        if self.queue.starts_with("amq.") {
            violated("queue", "must not begin with amq., which RabbitMQ keeps for itself".to_owned());
        }
        if self.prefetch == 0 {
            violated("prefetch", "must be 1 or more".to_owned());
        }
        if self.gather > Duration::from_secs(60) {
            violated("gather", "must be 1m or less".to_owned());
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&self.resync_interval) {
            violated("resync_interval", "must be 1s to 1d".to_owned());
        }
        if let Err(problem) = self.driver.parse::<DriverName>() {
            violated("driver", problem.to_string());
        }
        if self.image.len() > MAX_TEXT {
            violated("image", format!("must have at most {MAX_TEXT} bytes"));
        }
        if self.max_missing_percent > 100 {
            violated("max_missing_percent", "must be 0 to 100".to_owned());
        }
        let Select { tenants, flavors, tags, zones } = &self.select;
        for (field, list) in [("tenants", tenants), ("flavors", flavors), ("tags", tags), ("zones", zones)] {
            if list.len() > MAX_SELECTED {
                violated(
                    &format!("select.{field}"),
                    format!("has {} entries, at most {MAX_SELECTED} are allowed", list.len()),
                );
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(Config::default().validate(), []);
        let bad = Config {
            amqp_url: "http://hush@x".to_owned(),
            queue: "amq.rug".to_owned(),
            topic: String::new(),
            prefetch: 0,
            resync_interval: Duration::ZERO,
            driver: "?".to_owned(),
            max_missing_percent: 101,
            ..Config::default()
        };
        let found = bad.validate();
        let fields: Vec<_> = found.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(
            fields,
            ["amqp_url", "topic", "queue", "prefetch", "resync_interval", "driver", "max_missing_percent"]
        );
        assert!(!format!("{found:?}").contains("hush"));
        let tls = Config { amqp_url: "amqps://rug:hush@mq/".to_owned(), ..Config::default() };
        assert_eq!(tls.validate()[0].field, "amqp_ca");
    }

    #[test]
    fn the_password_of_rabbitmq_is_not_shown() {
        let config = Config { amqp_url: "amqp://rug:hush@mq.example:5673/".to_owned(), ..Config::default() };
        assert_eq!(config.validate(), []);
        assert_eq!(config.shown_url(), "amqp://mq.example:5673/");
        assert!(!format!("{config:?}").contains("hush"));
        let other = Config { amqp_url: "amqp://rug:hush@mq/os".to_owned(), ..Config::default() };
        assert_eq!(other.uri().map(|uri| uri.vhost), Ok("os".to_owned()));
    }
}
