//! What is kept of a server: as much of it as decisions and people need.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::status::Details;
use common::text::{clip, escaped};
use common::{Timestamp, Token};
use openstack::{ResourceId, Server, ServerStatus};
use runtime::clock;
use worker_core::instance::{Addresses, BootState, Handle, Instance, ManagementSecret};
use worker_core::ports::PluggedPorts;

use super::names::{InstanceKey, OwnPort, Role, metadata};

/// Longest reason that is kept, in bytes.
const MAX_REASON: usize = 512;

/// A server of Rug's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerView {
    pub(super) key: InstanceKey,
    /// It waits to be taken by another appliance.
    pub(super) is_spare: bool,
    pub(super) id: ResourceId,
    pub(super) status: ServerStatus,
    task: Option<String>,
    fault: Option<String>,
    pub(super) created: SystemTime,
    boot_digest: String,
    pub(super) answered: bool,
    pub(super) management: Option<IpAddr>,
    pub(super) management_port: Option<u16>,
    port: Option<u16>,
    pub(super) group: Option<ResourceId>,
    pub(super) secret: Option<ManagementSecret>,
    /// Name of its kind.
    pub(super) kind: Option<String>,
    host: Option<String>,
    /// By which it is known whether two are on one host.
    pub(super) host_key: Option<String>,
    pub(super) zone: Option<String>,
    /// Image and flavor, by id, of a spare.
    pub(super) made_of: Option<(String, String)>,
}

impl ServerView {
    /// What is kept of a server; `None` for one that is not an instance of this installation.
    pub(super) fn of(cluster: &str, server: Server) -> Option<Self> {
        let (key, is_spare) = InstanceKey::of_server(&server.name)?;
        let noted = |name: &str| server.metadata.get(name).map(String::as_str);
        if noted(metadata::CLUSTER) != Some(cluster)
            || noted(metadata::APPLIANCE) != Some(key.appliance.to_string().as_str())
        {
            return None;
        }
        Some(Self {
            key,
            is_spare,
            boot_digest: noted(metadata::BOOT_DIGEST).unwrap_or_default().to_owned(),
            answered: noted(metadata::ANSWERED).is_some(),
            management: noted(metadata::MANAGEMENT).and_then(|text| text.parse().ok()),
            management_port: noted(metadata::MANAGEMENT_PORT).and_then(|text| text.parse().ok()),
            port: noted(metadata::PORT).and_then(|text| text.parse().ok()),
            group: noted(metadata::GROUP).and_then(|text| text.parse().ok()),
            secret: noted(metadata::SECRET).and_then(|text| ManagementSecret::new(text).ok()),
            kind: noted(metadata::KIND).map(str::to_owned),
            id: server.id,
            status: server.status,
            task: server.task,
            fault: server.fault.map(|fault| bounded(&fault.message)),
            created: server.created,
            made_of: noted(metadata::IMAGE).zip(noted(metadata::FLAVOR)).map(|(i, f)| (i.to_owned(), f.to_owned())),
            host: server.host,
            host_key: server.host_key,
            zone: server.zone,
        })
    }

    /// Whether it counts as an instance that runs, or will. One of which Nova only says that its host is not heard of runs.
    pub(super) fn runs(&self) -> bool {
        !self.is_leaving() && !matches!(self.status, ServerStatus::Error | ServerStatus::Shutoff)
    }

    /// Whether it is gone, or about to be.
    pub(super) fn is_leaving(&self) -> bool {
        self.status == ServerStatus::Deleted || self.task.as_deref().is_some_and(|task| task.contains("delet"))
    }

    /// Whether it is being made.
    pub(super) fn is_rising(&self) -> bool {
        self.status == ServerStatus::Build && !self.is_leaving()
    }

    /// Whether it is broken and Nova has not said why.
    pub(super) fn awaits_fault(&self) -> bool {
        self.status == ServerStatus::Error && self.fault.is_none() && !self.is_leaving()
    }

    /// Why it cannot be reached, or does not run, in Nova's words.
    pub(super) fn problem(&self) -> Option<String> {
        if self.is_leaving() {
            return Some("its server is being deleted".to_owned());
        }
        match (&self.status, &self.fault, &self.task) {
            (ServerStatus::Active, _, None) => None,
            (status, Some(fault), _) if *status == ServerStatus::Error => {
                Some(format!("its server is in ERROR: {fault}"))
            }
            (ServerStatus::Active, _, Some(task)) => Some(format!("its server is ACTIVE ({})", bounded(task))),
            (status, _, Some(task)) => Some(format!("its server is in {status} ({})", bounded(task))),
            (status, _, None) => Some(format!("its server is in {status}")),
        }
    }

    pub(super) fn addresses(&self) -> Addresses {
        let at = |port: Option<u16>| Some(SocketAddr::new(self.management?, port?));
        Addresses { management: at(self.management_port), service: at(self.port) }
    }

    /// The instance that it is, with those of the ports that are plugged into it. Of one that is being made those count as well that are free
    /// and made for it: Nova plugs them while it builds.
    pub(super) fn instance(&self, ports: &[OwnPort]) -> Instance {
        let is_rising = self.is_rising();
        let here = || ports.iter().filter(|port| port.is_plugged_into(&self.id) || is_rising && port.is_free());
        let plugged: PluggedPorts = here().filter_map(|port| self.plugged(port)).collect();
        let mac = |port: &OwnPort| Some((self.plugged(port)?.name, port.port.mac_address.parse().ok()?));
        let macs = here().filter_map(mac).collect();
        Instance { macs, ..self.instance_with(plugged) }
    }

    /// The port of a network that a port is, if it is one of this instance.
    fn plugged(&self, port: &OwnPort) -> Option<worker_core::ports::PluggedPort> {
        match &port.role {
            Role::Network(key, plugged) if *key == self.key => Some(plugged.clone()),
            _ => None,
        }
    }

    pub(super) fn instance_with(&self, ports: PluggedPorts) -> Instance {
        let details =
            [("server", Some(self.id.as_str())), ("host", self.host.as_deref()), ("zone", self.zone.as_deref())];
        let details: Details = details.into_iter().filter_map(|(name, text)| Some((name, text?))).collect();
        Instance {
            ordinal: self.key.ordinal,
            attempt: self.key.attempt,
            boot_digest: self.boot_digest.clone(),
            handle: Handle::new(self.id.as_str()).unwrap_or_default(),
            started_at_unix_ms: unix_ms(self.created),
            boot: if self.answered { BootState::Over } else { BootState::UnderWay { since: since(self.created) } },
            addresses: self.addresses(),
            secret: self.secret.clone(),
            hands_over: false,
            has_own_address: true,
            is_spare: self.is_spare,
            ports,
            // Of ports that were just made the next look says it.
            macs: BTreeMap::new(),
            details,
        }
    }
}

/// The server of an instance.
pub(super) fn server_of(instance: &Instance) -> Option<ResourceId> {
    instance.handle.as_str().parse().ok()
}

fn bounded(text: &str) -> String {
    clip(&escaped(clip(text, MAX_REASON)), MAX_REASON).to_owned()
}

fn unix_ms(time: SystemTime) -> u64 {
    let age = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(age.as_millis()).unwrap_or_default()
}

/// When something of that age began, on the clock of this host. A wrong wall clock makes a boot look too old or just begun: it is
/// probed several times in either case before it counts as failed.
fn since(created: SystemTime) -> Timestamp {
    let age = SystemTime::now().duration_since(created).unwrap_or(Duration::ZERO);
    let nanos = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
    Timestamp::from_nanos(clock::now().as_nanos().saturating_sub(nanos))
}

/// A token as metadata.
pub(super) fn write_token(token: Token) -> String {
    format!("{}/{}", token.term.get(), token.sequence)
}

#[cfg(test)]
mod tests {
    use common::{ApplianceId, Term};
    use serde_json::{Value, json};

    use super::*;

    fn server(change: impl FnOnce(&mut Value)) -> Option<ServerView> {
        let key = InstanceKey { appliance: ApplianceId::from_u128(7), ordinal: 0, attempt: 1 };
        let mut server = json!({"id": "s-1", "name": key.server(), "status": "ACTIVE", "created": "2026-11-22T11:28:31Z",
            "metadata": {"rug_cluster": "rug", "rug_appliance": key.appliance.to_string(), "rug_management": "10.0.0.9",
                "rug_management_port": "5000", "rug_boot_digest": "d", "rug_secret": "0123456789abcdef0123456789abcdef"}});
        change(&mut server);
        ServerView::of("rug", serde_json::from_value(server).expect("a server"))
    }

    #[test]
    fn only_servers_of_this_installation_are_instances() {
        assert!(server(|_| {}).is_some());
        assert!(server(|s| s["metadata"]["rug_cluster"] = "other".into()).is_none());
        assert!(server(|s| s["metadata"]["rug_appliance"] = "x".into()).is_none());
        assert!(server(|s| s["metadata"] = json!({})).is_none());
        assert!(server(|s| s["name"] = "web".into()).is_none());
    }

    #[test]
    fn a_server_runs_until_nova_says_that_it_does_not() {
        let with = |status: &str, task: Value, fault: &str| {
            let view = server(|s| {
                s["status"] = status.into();
                s["OS-EXT-STS:task_state"] = task;
                if !fault.is_empty() {
                    s["fault"] = json!({"code": 500, "message": fault});
                }
            });
            let view = view.expect("ours");
            (view.runs(), view.problem())
        };
        assert_eq!(with("ACTIVE", Value::Null, ""), (true, None));
        assert_eq!(with("BUILD", "spawning".into(), ""), (true, Some("its server is in BUILD (spawning)".into())));
        assert_eq!(with("UNKNOWN", Value::Null, ""), (true, Some("its server is in UNKNOWN".into())));
        assert_eq!(with("ACTIVE", "deleting".into(), ""), (false, Some("its server is being deleted".into())));
        let fault = "No valid host was found. ";
        assert_eq!(with("ERROR", Value::Null, fault), (false, Some(format!("its server is in ERROR: {fault}"))));
        assert_eq!(with("SHUTOFF", Value::Null, ""), (false, Some("its server is in SHUTOFF".into())));
    }

    #[test]
    fn an_instance_is_adopted_with_all_that_its_owner_knew() {
        let instance = server(|_| {}).expect("ours").instance(&[]);
        assert_eq!(instance.addresses.management, Some(([10, 0, 0, 9], 5_000).into()));
        assert!(instance.secret.is_some() && matches!(instance.boot, BootState::UnderWay { .. }));
        assert_eq!(server_of(&instance).map(|id| id.to_string()).as_deref(), Some("s-1"));
        let answered = server(|s| s["metadata"]["rug_answered"] = "true".into()).expect("ours").instance(&[]);
        assert_eq!(answered.boot, BootState::Over);
        assert_eq!(write_token(Token::new(Term::new(7), 9)), "7/9");
    }
}
