//! What an instance is made of: worked out from the specification and the settings before anything is asked for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use common::kind::{KindName, LaunchRecipe, Listen, Program};
use common::{ApplianceId, Token};
use serde_json::json;
use worker_core::instance::ManagementSecret;
use worker_core::ports::PluggedPort;

use super::config::{Config, TenantConfig};
use super::names::{InstanceKey, metadata};
use super::view::write_token;
use crate::drivers::{Error, Wanted};

/// Bytes of chance in a secret.
const SECRET_BYTES: usize = 32;
/// Longest value of metadata that Nova takes.
const MAX_VALUE: usize = 255;

/// An instance to be made.
#[derive(Clone, Debug)]
pub(super) struct InstancePlan {
    pub(super) key: InstanceKey,
    /// Image, by name or id.
    pub(super) image: String,
    /// Flavor, by name or id.
    pub(super) flavor: String,
    pub(super) zone: Option<String>,
    pub(super) kind: KindName,
    /// It is made to be taken by another appliance.
    pub(super) is_spare: bool,
    /// Whether the ports of networks are checked by Neutron.
    pub(super) is_secured: bool,
    /// Whether the appliance has several instances.
    pub(super) is_pair: bool,
    metadata: BTreeMap<String, String>,
    name: String,
    token: Token,
    pub(super) management_port: Option<u16>,
    secret: Option<ManagementSecret>,
}

/// Where an instance will be managed.
#[derive(Clone, Debug)]
pub(super) struct ManagementAddress {
    pub(super) address: IpAddr,
    /// Length of its network's prefix.
    pub(super) prefix: Option<u8>,
    pub(super) mac: String,
}

/// A port of a network, as the instance is told of it.
#[derive(Clone, Debug)]
pub(super) struct NetworkInterface {
    pub(super) name: String,
    pub(super) network: String,
    pub(super) mac: String,
}

impl InstancePlan {
    /// What an instance of this specification is made of.
    ///
    /// # Errors
    /// [`Error::Refused`] for what the driver cannot make.
    pub(super) fn new(
        config: &Config,
        appliance: ApplianceId,
        token: Token,
        wanted: &Wanted<'_>,
    ) -> Result<Self, Error> {
        let refused = |text: String| Err(Error::Refused(text));
        let desired = wanted.desired;
        let recipe = desired.spec.kind.launch(0).map_err(|overflow| Error::Refused(overflow.to_string()))?;
        if desired.spec.pod.is_some() {
            return refused("servers of Nova take no template of a pod".to_owned());
        }
        if let Program::Command(command) = &recipe.program
            && !(command.is_empty() && recipe.args.is_empty())
        {
            return refused("a server runs what its image starts: leave command and args empty".to_owned());
        }
        let kind = desired.spec.kind.kind_name();
        let own = config.tenants.get(desired.tenant.as_str());
        let image = choose(desired.spec.image.as_deref(), own, |own| &own.image, &config.images, kind, &config.image);
        let flavor = choose(None, own, |own| &own.flavor, &config.flavors, kind, &config.flavor);
        let Some(image) = image else {
            return refused(format!(
                "no image: neither the specification nor openstack.images of the worker names one for kind {kind}"
            ));
        };
        let Some(flavor) = flavor else {
            return refused(format!("no flavor: openstack.flavors of the worker names none for kind {kind}"));
        };
        let has_management = recipe.program.has_management();
        let is_spare = config.spare_tenants.contains(desired.tenant.as_str());
        if is_spare && !desired.spec.ports.is_empty() {
            return refused("a spare has no ports of networks: whoever takes it plugs its own".to_owned());
        }
        // Who takes it has another token, which may be older.
        let token = if is_spare { Token::default() } else { token };
        let key = InstanceKey { appliance, ordinal: wanted.ordinal, attempt: wanted.attempt };
        let management_port = has_management.then_some(config.management_port);
        let secret = if has_management { Some(new_secret()?) } else { None };
        let zone = [own.map(|own| &own.zone), Some(&config.zone)].into_iter().flatten().find(|zone| !zone.is_empty());
        let mut noted = BTreeMap::new();
        let mut note = |name: &str, text: String| drop(noted.insert(name.to_owned(), text));
        note(metadata::CLUSTER, config.cluster.clone());
        note(metadata::APPLIANCE, appliance.to_string());
        note(metadata::TOKEN, write_token(token));
        note(metadata::GENERATION, desired.edition.generation.to_string());
        note(metadata::NAME, desired.name.to_string());
        note(metadata::TENANT, desired.tenant.to_string());
        note(metadata::KIND, kind.to_string());
        note(metadata::BOOT_DIGEST, wanted.boot_digest.to_owned());
        if let Some(port) = management_port {
            note(metadata::MANAGEMENT_PORT, port.to_string());
        }
        // What has a REST contract serves elsewhere, as its configuration says.
        if let (false, Some(port)) = (has_management, service_port(&recipe, config)) {
            note(metadata::PORT, port.to_string());
        }
        if let Some(secret) = &secret {
            note(metadata::SECRET, secret.reveal().to_owned());
        }
        if let Some((name, _)) = noted.iter().find(|(_, text)| text.len() > MAX_VALUE) {
            return refused(format!("{name} is too long for metadata of Nova"));
        }
        Ok(Self {
            key,
            image,
            flavor,
            zone: zone.cloned(),
            kind,
            is_spare,
            is_secured: config.secured_kinds.contains(kind.as_str()),
            // Those that are taken would stay in its group, which may have ten members by Nova's own quota.
            is_pair: desired.spec.replicas > 1 && !is_spare,
            metadata: noted,
            name: desired.name.to_string(),
            token,
            management_port,
            secret,
        })
    }

    /// The name of the server.
    pub(super) fn server_name(&self) -> String {
        if self.is_spare { self.key.spare() } else { self.key.server() }
    }

    /// What is written beside the server. `made_of`: image and flavor, by id.
    pub(super) fn metadata(
        &self,
        management: &ManagementAddress,
        group: Option<&openstack::ResourceId>,
        made_of: (&str, &str),
    ) -> BTreeMap<String, String> {
        let mut all = self.metadata.clone();
        let mut note = |name: &str, text: String| drop(all.insert(name.to_owned(), text));
        note(metadata::MANAGEMENT, management.address.to_string());
        if let Some(group) = group {
            note(metadata::GROUP, group.to_string());
        }
        if self.is_spare {
            note(metadata::IMAGE, made_of.0.to_owned());
            note(metadata::FLAVOR, made_of.1.to_owned());
        }
        all
    }

    /// What is written beside a server that was a spare: it keeps the secret that it was started with.
    pub(super) fn metadata_of_taken(
        &self,
        management: IpAddr,
        before: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let mut all = self.metadata.clone();
        all.insert(metadata::MANAGEMENT.to_owned(), management.to_string());
        match before.get(metadata::SECRET) {
            Some(secret) => drop(all.insert(metadata::SECRET.to_owned(), secret.clone())),
            None => drop(all.remove(metadata::SECRET)),
        }
        all
    }

    /// What the instance reads at its start: a configuration of cloud-init, which writes `/etc/rug/instance.json`. Its body is JSON, which YAML
    /// takes.
    pub(super) fn user_data(
        &self,
        config: &Config,
        management: &ManagementAddress,
        interfaces: &[NetworkInterface],
    ) -> Vec<u8> {
        let ports: Vec<_> = interfaces
            .iter()
            .map(|port| json!({"name": port.name, "network": port.network, "mac": port.mac}))
            .collect();
        let instance = json!({
            "appliance": self.key.appliance,
            "name": self.name,
            "instance": self.key.instance(),
            "ordinal": self.key.ordinal,
            "token": write_token(self.token),
            "management": {
                "address": management.address,
                "prefix": management.prefix,
                "mac": management.mac,
                "port": self.management_port,
            },
            "secret": self.secret.as_ref().map(ManagementSecret::reveal),
            "ports": ports,
        });
        let mut cloud = json!({
            "hostname": self.server_name(),
            "write_files": [
                {"path": "/etc/rug/instance.json", "permissions": "0600", "content": instance.to_string()},
            ],
        });
        if let Some(secret) = &self.secret {
            let file = json!({"path": "/etc/rug/secret", "permissions": "0600", "content": secret.reveal()});
            cloud["write_files"].as_array_mut().expect("a list").push(file);
        }
        if !config.ssh_keys.is_empty() {
            cloud["ssh_authorized_keys"] = json!(config.ssh_keys);
        }
        format!("#cloud-config\n{cloud}\n").into_bytes()
    }

    /// The ports of networks that it shall have, by what they are plugged as.
    pub(super) fn network_ports<'a>(wanted: &Wanted<'a>) -> Vec<(PluggedPort, &'a common::network_port::NetworkPort)> {
        wanted.desired.spec.ports.iter().map(|port| (PluggedPort::from(port), port)).collect()
    }
}

/// The first that is named: by the specification, for the tenant, for the kind, for all.
fn choose(
    specified: Option<&str>,
    tenant: Option<&TenantConfig>,
    of_tenant: impl Fn(&TenantConfig) -> &String,
    by_kind: &BTreeMap<String, String>,
    kind: KindName,
    otherwise: &str,
) -> Option<String> {
    let all = [
        specified,
        tenant.map(|own| of_tenant(own).as_str()),
        by_kind.get(kind.as_str()).map(String::as_str),
        Some(otherwise),
    ];
    all.into_iter().flatten().find(|text| !text.is_empty()).map(str::to_owned)
}

fn service_port(recipe: &LaunchRecipe, config: &Config) -> Option<u16> {
    match &recipe.listen {
        Listen::Nowhere => None,
        Listen::AnyPort => Some(config.default_port),
        Listen::At(addresses) => addresses.first().map(std::net::SocketAddr::port),
    }
}

fn new_secret() -> Result<ManagementSecret, Error> {
    let text: String = rand::random::<[u8; SECRET_BYTES]>().iter().map(|byte| format!("{byte:02x}")).collect();
    ManagementSecret::new(text).map_err(|error| Error::Failed(error.to_string()))
}
