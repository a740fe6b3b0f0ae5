//! Settings of the driver.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use common::appliance::FieldViolation;
use common::kind::KindName;
use openstack::ClientConfig;
use serde::{Deserialize, Serialize};

/// Whether the instances of one appliance are kept on different hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AntiAffinity {
    /// Nova places them as it likes.
    Off,
    /// On different hosts, if there are any.
    #[default]
    Soft,
    /// On different hosts, or not at all.
    Hard,
}

/// What instances of one tenant are made of, instead of what those of others are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TenantConfig {
    /// Image, by name or id.
    pub image: String,
    /// Flavor, by name or id.
    pub flavor: String,
    /// Availability zone.
    pub zone: String,
}

/// Settings of the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which cloud, and how it is spoken to.
    pub client: ClientConfig,
    /// Name of this installation of Rug in the cloud. Servers and ports of another one are left alone, also in the same project. The same for all
    /// workers, and never changed while there are instances.
    pub cluster: String,
    /// Network by which workers reach instances, by name or id. Needed when the driver is offered.
    pub management_network: String,
    /// Security groups of the port for management, by id; the project's default group when there is none.
    pub management_security_groups: Vec<String>,
    /// Port of the REST contract.
    pub management_port: u16,
    /// Port of appliances that name none and are probed at one.
    pub default_port: u16,
    /// Image of kinds that have none of their own, by name or id.
    pub image: String,
    /// Images by kind.
    pub images: BTreeMap<String, String>,
    /// Flavor of kinds that have none of their own, by name or id.
    pub flavor: String,
    /// Flavors by kind.
    pub flavors: BTreeMap<String, String>,
    /// Availability zone; any when empty.
    pub zone: String,
    /// What instances of a tenant are made of. An image in the specification goes before it.
    pub tenants: BTreeMap<String, TenantConfig>,
    /// Tenants whose appliances are spares: their instances wait, booted and without ports of networks, until an instance of the same kind, image,
    /// flavor and zone is to be made, which takes one. No spares are made or used when there is none. The same for all workers.
    pub spare_tenants: BTreeSet<String>,
    /// Whether the instances of one appliance are kept on different hosts, by a server group.
    pub anti_affinity: AntiAffinity,
    /// Key pair of Nova that instances get.
    pub key_name: String,
    /// Public keys that may log in, as in `authorized_keys`, by the user data.
    pub ssh_keys: Vec<String>,
    /// Whether the user data are on a drive as well. Without it there has to be a metadata service on the management network.
    pub config_drive: bool,
    /// Kinds whose ports of networks are checked by Neutron (security groups and addresses). The others forward what is not theirs: their ports have
    /// no port security.
    pub secured_kinds: BTreeSet<String>,
    /// Security groups of ports of networks of those kinds, by id; the project's default group when there is none.
    pub service_security_groups: Vec<String>,
    /// How long Nova and Neutron may go on with a call whose caller is gone: the longest of their own limits between their parts
    /// (`rpc_response_timeout`, time-outs of proxies before them). The fence delay is this and `client.request_timeout`.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub backend_time: Duration,
    /// Boots at a time. The others wait, and cost no attempt: a cloud that is asked for everything at once answers nothing in time.
    pub boots: NonZeroU32,
    /// How often all servers are listed, to notice those that have ended, while there are instances.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub poll_interval: Duration,
    /// How long the end of a server is waited for before that counts as a failure.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(test, schemars(with = "common::schema::DurationText"))]
    pub delete_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            client: ClientConfig::default(),
            cluster: "rug".to_owned(),
            management_network: String::new(),
            management_security_groups: Vec::new(),
            management_port: 5_000,
            default_port: 8_080,
            image: String::new(),
            images: BTreeMap::new(),
            flavor: String::new(),
            flavors: BTreeMap::new(),
            zone: String::new(),
            tenants: BTreeMap::new(),
            spare_tenants: BTreeSet::new(),
            anti_affinity: AntiAffinity::default(),
            key_name: String::new(),
            ssh_keys: Vec::new(),
            config_drive: true,
            secured_kinds: BTreeSet::from([
                KindName::Loadbalancer.as_str().to_owned(),
                KindName::Custom.as_str().to_owned(),
            ]),
            service_security_groups: Vec::new(),
            backend_time: Duration::from_secs(60),
            boots: NonZeroU32::new(8).expect("not 0"),
            poll_interval: Duration::from_secs(20),
            delete_wait: Duration::from_secs(40),
        }
    }
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found: Vec<_> = self.client.validate().into_iter().map(|v| v.within("client")).collect();
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if !(1..=63).contains(&self.cluster.len()) || !self.cluster.bytes().all(plain) {
            found.push(FieldViolation::new("cluster", "must be 1 to 63 of a-z 0-9 -"));
        }
        for (field, port) in [("management_port", self.management_port), ("default_port", self.default_port)] {
            if port == 0 {
                found.push(FieldViolation::new(field, "must be 1 to 65535"));
            }
        }
        let kinds = [("images", self.images.keys().collect::<Vec<_>>()), ("flavors", self.flavors.keys().collect())];
        for (field, kind) in
            kinds.into_iter().flat_map(|(field, kinds)| kinds.into_iter().map(move |kind| (field, kind)))
        {
            if KindName::find(kind).is_none() {
                found.push(FieldViolation::new(format!("{field}[{kind}]"), "is no kind"));
            }
        }
        if let Some(kind) = self.secured_kinds.iter().find(|kind| KindName::find(kind).is_none()) {
            found.push(FieldViolation::new("secured_kinds", format!("`{kind}` is no kind")));
        }
        if self.boots.get() > 1_000 {
            found.push(FieldViolation::new("boots", "must be 1000 or less"));
        }
        for (i, key) in self.ssh_keys.iter().enumerate() {
            if key.len() > 8_192 || key.contains(char::is_control) || key.trim().is_empty() {
                found.push(FieldViolation::new(format!("ssh_keys[{i}]"), "must be one line of at most 8192 bytes"));
            }
        }
        for (field, value, least, most) in [
            ("backend_time", self.backend_time, 0, 3_600),
            ("poll_interval", self.poll_interval, 1, 600),
            ("delete_wait", self.delete_wait, 1, 600),
        ] {
            if value < Duration::from_secs(least) || value > Duration::from_secs(most) {
                found.push(FieldViolation::new(field, format!("must be {least}s to {most}s")));
            }
        }
        found
    }

    /// How long after it was begun a call may take effect: nobody there checks tokens.
    #[must_use]
    pub const fn fence_delay(&self) -> Duration {
        self.client.request_timeout.saturating_add(self.backend_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(Config::default().validate(), []);
        let bad = Config {
            cluster: "Rug".into(),
            images: BTreeMap::from([("bridge".into(), "x".into())]),
            ssh_keys: vec!["a\nb".into()],
            poll_interval: Duration::ZERO,
            ..Config::default()
        };
        let fields: Vec<_> = bad.validate().into_iter().map(|violation| violation.field).collect();
        assert_eq!(fields, ["cluster", "images[bridge]", "ssh_keys[0]", "poll_interval"]);
    }

    #[test]
    fn the_fence_delay_covers_the_longest_call_and_what_follows_it() {
        assert_eq!(Config::default().fence_delay(), Duration::from_secs(90));
    }
}
