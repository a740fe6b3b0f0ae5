//! Nova: servers and what belongs to them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::call::{Call, wrapped};
use crate::client::{Answer, Client};
use crate::config::Service;
use crate::error::{Error, ErrorKind};
use crate::id::ResourceId;

/// The version that is asked for: that of Train (2019). Newer ones change nothing that is used here.
const WANTED: (u32, u32) = (2, 79);
/// The oldest that will do: policies of server groups as they are written here (Rocky, 2018).
const OLDEST: (u32, u32) = (2, 64);
/// Largest user data, in bytes before they are encoded: Nova takes 64 KiB of what is encoded.
const MAX_USER_DATA: usize = 48 * 1024;

/// Nova, by a [`Client`].
#[derive(Clone, Copy, Debug)]
pub struct Compute<'a>(&'a Client);

impl Client {
    /// The compute service.
    #[must_use]
    pub const fn compute(&self) -> Compute<'_> {
        Compute(self)
    }
}

/// How a server is, as Nova has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    /// It is being made.
    Build,
    /// It runs.
    Active,
    /// It is broken; the fault says why.
    Error,
    /// It was shut off.
    Shutoff,
    /// It is gone.
    Deleted,
    /// Another one, in Nova's words: `REBOOT`, `PAUSED`, `SUSPENDED`, `RESIZE`, ...
    Other(String),
}

impl From<String> for ServerStatus {
    fn from(text: String) -> Self {
        match text.as_str() {
            "BUILD" => Self::Build,
            "ACTIVE" => Self::Active,
            "ERROR" => Self::Error,
            "SHUTOFF" => Self::Shutoff,
            "DELETED" | "SOFT_DELETED" => Self::Deleted,
            _ => Self::Other(text.chars().filter(|c| c.is_ascii_graphic()).take(32).collect()),
        }
    }
}

impl fmt::Display for ServerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Build => "BUILD",
            Self::Active => "ACTIVE",
            Self::Error => "ERROR",
            Self::Shutoff => "SHUTOFF",
            Self::Deleted => "DELETED",
            Self::Other(text) => text,
        })
    }
}

/// Why a server is broken.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Fault {
    /// Nova's number.
    #[serde(default)]
    pub code: i64,
    /// Nova's words.
    #[serde(default)]
    pub message: String,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "ServerBody")]
pub struct Server {
    /// Its id.
    pub id: ResourceId,
    /// Its name. Names need not be unique.
    pub name: String,
    /// How it is.
    pub status: ServerStatus,
    /// What is done with it at the moment: `deleting`, `spawning`, ...
    pub task: Option<String>,
    /// Why it is broken.
    pub fault: Option<Fault>,
    /// What was written beside it.
    pub metadata: BTreeMap<String, String>,
    /// When it was made.
    pub created: SystemTime,
    /// Host it is on, where the user may see that.
    pub host: Option<String>,
    /// A name of its host that says nothing of it, and that every user sees: two servers of one project with the same one are on the same host.
    pub host_key: Option<String>,
    /// Its availability zone.
    pub zone: Option<String>,
    /// Project it belongs to.
    pub project_id: Option<String>,
}

#[derive(Deserialize)]
struct ServerBody {
    id: ResourceId,
    #[serde(default)]
    name: String,
    status: String,
    #[serde(default, rename = "OS-EXT-STS:task_state")]
    task: Option<String>,
    #[serde(default)]
    fault: Option<Fault>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    created: String,
    #[serde(default, rename = "OS-EXT-SRV-ATTR:host")]
    host: Option<String>,
    #[serde(default, rename = "hostId")]
    host_key: Option<String>,
    #[serde(default, rename = "OS-EXT-AZ:availability_zone")]
    zone: Option<String>,
    #[serde(default)]
    tenant_id: Option<String>,
}

impl From<ServerBody> for Server {
    fn from(body: ServerBody) -> Self {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            id: body.id,
            name: body.name,
            status: body.status.into(),
            task: some(body.task),
            fault: body.fault,
            metadata: body.metadata,
            created: humantime::parse_rfc3339_weak(&body.created).unwrap_or(UNIX_EPOCH),
            host: some(body.host),
            host_key: some(body.host_key),
            zone: some(body.zone),
            project_id: some(body.tenant_id),
        }
    }
}

/// A flavor.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Flavor {
    /// Its id.
    pub id: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// How the servers of a group are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Each on a host of its own, or not at all.
    AntiAffinity,
    /// Each on a host of its own, if there is one.
    SoftAntiAffinity,
    /// All on one host.
    Affinity,
    /// All on one host, if it can be.
    SoftAffinity,
}

/// A group of servers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServerGroup {
    /// Its id.
    pub id: ResourceId,
    /// Its name. Names need not be unique.
    #[serde(default)]
    pub name: String,
    /// How its servers are placed, in Nova's words.
    #[serde(default)]
    pub policy: String,
    /// Its servers.
    #[serde(default)]
    pub members: Vec<String>,
}

/// One interface of a server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// Its port.
    pub port_id: ResourceId,
    /// Its network.
    #[serde(default)]
    pub net_id: String,
    /// Its hardware address.
    #[serde(default)]
    pub mac_addr: String,
}

/// A server to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewServer {
    /// Its name.
    pub name: String,
    /// Id of its image.
    pub image: String,
    /// Id of its flavor.
    pub flavor: String,
    /// Its ports, in the order of its interfaces.
    pub ports: Vec<ResourceId>,
    /// Where it is to be.
    pub zone: Option<String>,
    /// What is written beside it.
    pub metadata: BTreeMap<String, String>,
    /// What cloud-init, or the appliance, reads.
    pub user_data: Vec<u8>,
    /// Whether the configuration is on a drive, too.
    pub config_drive: bool,
    /// Name of a key pair.
    pub key_name: Option<String>,
    /// Group whose policy places it.
    pub group: Option<ResourceId>,
}

impl NewServer {
    fn body(&self) -> Result<Value, Error> {
        if self.user_data.len() > MAX_USER_DATA {
            return Err(Error::new(ErrorKind::Invalid, format!("the user data have more than {MAX_USER_DATA} bytes")));
        }
        let mut server = json!({
            "name": self.name,
            "imageRef": self.image,
            "flavorRef": self.flavor,
            "min_count": 1,
            "max_count": 1,
            "metadata": self.metadata,
            "config_drive": self.config_drive,
            // Without ports Nova would choose a network by itself.
            "networks": match self.ports.as_slice() {
                [] => json!("none"),
                ports => ports.iter().map(|port| json!({"port": port})).collect(),
            },
        });
        if !self.user_data.is_empty() {
            server["user_data"] = json!(STANDARD.encode(&self.user_data));
        }
        if let Some(zone) = &self.zone {
            server["availability_zone"] = json!(zone);
        }
        if let Some(key) = &self.key_name {
            server["key_name"] = json!(key);
        }
        let mut body = wrapped("server", &server);
        if let Some(group) = &self.group {
            body["os:scheduler_hints"] = json!({"group": group});
        }
        Ok(body)
    }
}

impl Compute<'_> {
    /// Makes a call with the version that both sides know.
    async fn call(&self, mut call: Call) -> Result<Answer, Error> {
        call.version = Some(self.version().await?);
        let answer = self.0.send(&call).await;
        if answer.as_ref().is_err_and(|error| {
            error.kind == ErrorKind::Invalid && error.message.contains("is not supported by the API")
        }) {
            // Nova is another one than before.
            self.0.set_compute_version(None);
        }
        answer
    }

    async fn list<T: serde::de::DeserializeOwned>(&self, mut call: Call, name: &str) -> Result<Vec<T>, Error> {
        call.version = Some(self.version().await?);
        self.0.list(call, name).await
    }

    /// The version of Nova's interface that is spoken.
    ///
    /// # Errors
    /// [`ErrorKind::NoService`] when Nova is too old.
    pub async fn version(&self) -> Result<String, Error> {
        if let Some(version) = self.0.compute_version() {
            return Ok(version);
        }
        let mut call = Call::get(Service::Compute, "/", &[]);
        call.at_root = true;
        let answer = self.0.send(&call).await?;
        let whole = answer.value("versions of compute")?;
        // The root of one version has that, the root of all a list.
        let one = whole
            .get("version")
            .or_else(|| whole.get("versions")?.as_array()?.iter().find(|version| version["id"] == "v2.1"));
        let newest = one.and_then(|version| number(version.get("version")?.as_str()?));
        let oldest = one.and_then(|version| number(version.get("min_version")?.as_str()?));
        let (Some(newest), Some(oldest)) = (newest, oldest) else {
            return Err(Error::unreadable("versions of compute", "it names no versions"));
        };
        let version = newest.min(WANTED);
        if version < OLDEST || oldest > WANTED {
            let text = format!(
                "Nova speaks {}.{} to {}.{}, and Rug {}.{} to {}.{}",
                oldest.0, oldest.1, newest.0, newest.1, OLDEST.0, OLDEST.1, WANTED.0, WANTED.1
            );
            return Err(Error::new(ErrorKind::NoService, text));
        }
        let version = format!("{}.{}", version.0, version.1);
        self.0.set_compute_version(Some(version.clone()));
        Ok(version)
    }

    /// Servers with all about them. `filters` are Nova's: `name` is a regular expression of MySQL.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn servers(&self, filters: &[(&str, &str)]) -> Result<Vec<Server>, Error> {
        self.list(Call::get(Service::Compute, "/servers/detail", &[]).filtered(filters.iter().copied()), "servers")
            .await
    }

    /// Servers of exactly this name, the oldest first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn servers_named(&self, name: &str) -> Result<Vec<Server>, Error> {
        let pattern = format!("^{}$", escaped(name));
        let mut found = self.servers(&[("name", &pattern)]).await?;
        found.retain(|server| server.name == name);
        found.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
        Ok(found)
    }

    /// One server; `None` when there is none of this id.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn server(&self, id: &ResourceId) -> Result<Option<Server>, Error> {
        optional(self.call(Call::get(Service::Compute, "/servers/{}", &[id])).await)?
            .map(|answer| answer.object("server"))
            .transpose()
    }

    /// Makes a server. Nova answers before it is there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn create_server(&self, server: &NewServer) -> Result<ResourceId, Error> {
        #[derive(Deserialize)]
        struct Made {
            id: ResourceId,
        }
        let call = Call::new(Service::Compute, Method::POST, "/servers", &[]).with(&server.body()?);
        Ok(self.call(call).await?.object::<Made>("server")?.id)
    }

    /// Deletes a server. One that is not there is deleted already.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete_server(&self, id: &ResourceId) -> Result<(), Error> {
        optional(self.call(Call::delete(Service::Compute, "/servers/{}", &[id])).await).map(drop)
    }

    /// Writes these beside a server; what else is written there stays.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_metadata(&self, id: &ResourceId, metadata: &BTreeMap<String, String>) -> Result<(), Error> {
        let call = Call::new(Service::Compute, Method::POST, "/servers/{}/metadata", &[id]);
        self.call(call.with(&wrapped("metadata", metadata))).await.map(drop)
    }

    /// Gives a server another name.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn rename(&self, id: &ResourceId, name: &str) -> Result<(), Error> {
        let call = Call::new(Service::Compute, Method::PUT, "/servers/{}", &[id]);
        self.call(call.with(&wrapped("server", &json!({"name": name})))).await.map(drop)
    }

    /// Interfaces of a server.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn interfaces(&self, server: &ResourceId) -> Result<Vec<Interface>, Error> {
        self.call(Call::get(Service::Compute, "/servers/{}/os-interface", &[server]))
            .await?
            .object("interfaceAttachments")
    }

    /// Plugs a port into a server. Nova answers when it is done.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn attach(&self, server: &ResourceId, port: &ResourceId) -> Result<(), Error> {
        let call = Call::new(Service::Compute, Method::POST, "/servers/{}/os-interface", &[server]);
        self.call(call.with(&json!({"interfaceAttachment": {"port_id": port}}))).await.map(drop)
    }

    /// Begins to unplug a port from a server. One that is not plugged is unplugged already.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn detach(&self, server: &ResourceId, port: &ResourceId) -> Result<(), Error> {
        optional(self.call(Call::delete(Service::Compute, "/servers/{}/os-interface/{}", &[server, port])).await)
            .map(drop)
    }

    /// The last lines of a server's console.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn console(&self, server: &ResourceId, lines: u32) -> Result<String, Error> {
        let call = Call::new(Service::Compute, Method::POST, "/servers/{}/action", &[server]);
        self.call(call.with(&json!({"os-getConsoleOutput": {"length": lines}}))).await?.object("output")
    }

    /// Every flavor that the user sees.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn flavors(&self) -> Result<Vec<Flavor>, Error> {
        self.list(Call::get(Service::Compute, "/flavors", &[]), "flavors").await
    }

    /// Every group of servers of the project.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn server_groups(&self) -> Result<Vec<ServerGroup>, Error> {
        // This listing has an offset in place of a marker, and no links.
        let mut found: Vec<ServerGroup> = Vec::new();
        loop {
            let page = [("limit", "500".to_owned()), ("offset", found.len().to_string())];
            let call = Call::get(Service::Compute, "/os-server-groups", &[]).filtered(page);
            let more: Vec<ServerGroup> = self.call(call).await?.object("server_groups")?;
            let is_last = more.len() < 500 || found.len() > 100_000;
            found.extend(more);
            if is_last {
                return Ok(found);
            }
        }
    }

    /// Makes a group of servers.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn create_server_group(&self, name: &str, policy: Policy) -> Result<ServerGroup, Error> {
        let call = Call::new(Service::Compute, Method::POST, "/os-server-groups", &[]);
        self.call(call.with(&wrapped("server_group", &json!({"name": name, "policy": policy}))))
            .await?
            .object("server_group")
    }

    /// Deletes a group of servers. One that is not there is deleted already.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete_server_group(&self, id: &ResourceId) -> Result<(), Error> {
        optional(self.call(Call::delete(Service::Compute, "/os-server-groups/{}", &[id])).await).map(drop)
    }
}

/// `None` for what is not there.
pub(crate) fn optional<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn number(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A text within a regular expression.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() && !matches!(c, '-' | '_') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// How long ago a server was made, by the clocks of both sides.
impl Server {
    /// Its age.
    #[must_use]
    pub fn age(&self) -> Duration {
        SystemTime::now().duration_since(self.created).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_read_with_what_it_lacks_and_what_is_new() {
        let body = json!({"id": "s-1", "name": "x", "status": "VERIFY_RESIZE", "created": "2026-11-22T11:28:31Z",
            "metadata": {"rug_appliance": "a"}, "OS-EXT-STS:task_state": null, "new_in_2099": [1]});
        let server: Server = serde_json::from_value(body).expect("readable");
        assert_eq!(server.status, ServerStatus::Other("VERIFY_RESIZE".into()));
        assert_eq!(server.created, UNIX_EPOCH + Duration::from_secs(1_795_346_911));
        assert!(serde_json::from_value::<Server>(json!({"id": "../x", "status": "ACTIVE"})).is_err());
        assert!(serde_json::from_value::<Server>(json!({"id": "x", "status": 7})).is_err());
    }

    #[test]
    fn a_new_server_says_what_it_needs_and_no_more() {
        let plain = NewServer { name: "n".into(), ..NewServer::default() }.body().expect("small");
        assert_eq!(plain["server"]["networks"], "none");
        assert!(plain.get("os:scheduler_hints").is_none() && plain["server"].get("user_data").is_none());
        let port: ResourceId = "p".parse().expect("an id");
        let full = NewServer {
            ports: vec![port.clone()],
            group: Some(port),
            user_data: b"x".to_vec(),
            ..NewServer::default()
        };
        let body = full.body().expect("small");
        assert_eq!(body["server"]["networks"], json!([{"port": "p"}]));
        assert_eq!(
            (&body["server"]["user_data"], &body["os:scheduler_hints"]),
            (&json!("eA=="), &json!({"group": "p"}))
        );
        let large = NewServer { user_data: vec![0; MAX_USER_DATA + 1], ..NewServer::default() };
        assert_eq!(large.body().expect_err("too large").kind, ErrorKind::Invalid);
    }

    #[test]
    fn names_are_searched_for_as_they_are() {
        assert_eq!(escaped("rug-a.b+c"), r"rug-a\.b\+c");
    }
}
