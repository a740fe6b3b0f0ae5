//! Keystone: what is sent to get a token, and what it answers.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::clouds::{ApplicationCredential, Cloud, Credentials, Domain, Named};
use crate::config::{Service, check_url};
use crate::connections::Target;
use crate::error::{Error, ErrorKind};
use crate::secret::Secret;

/// How long before its end a token is renewed, at most.
const RENEW_BEFORE: Duration = Duration::from_secs(120);
/// Most entries of a catalog that are looked at.
const MAX_CATALOG: usize = 1_000;

/// Who the client is, as Keystone says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the user.
    pub user: String,
    /// Id of the user.
    pub user_id: String,
    /// Name of the project.
    pub project: String,
    /// Id of the project.
    pub project_id: String,
    /// Names of its roles there.
    pub roles: Vec<String>,
}

/// A token, and where the services are that it is for.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) value: Secret,
    pub(crate) identity: Identity,
    catalog: Vec<CatalogEntry>,
    /// From when on a new one is asked for.
    pub(crate) renew_at: Instant,
    /// When it ends.
    pub(crate) ends_at: Instant,
}

/// The body that asks for a token.
pub(crate) fn request(credentials: &Credentials) -> Value {
    let identity = match credentials {
        Credentials::Password { user, password, .. } => {
            let mut user = named(user);
            user["password"] = json!(password.reveal());
            json!({"methods": ["password"], "password": {"user": user}})
        }
        Credentials::Application { credential, secret } => {
            let mut about = match credential {
                ApplicationCredential::Id(id) => json!({"id": id}),
                ApplicationCredential::Name(name, user) => json!({"name": name, "user": named(user)}),
            };
            about["secret"] = json!(secret.reveal());
            json!({"methods": ["application_credential"], "application_credential": about})
        }
        Credentials::Token { token, .. } => json!({"methods": ["token"], "token": {"id": token.reveal()}}),
    };
    let scope = match credentials {
        Credentials::Password { project, .. } | Credentials::Token { project, .. } => {
            Some(json!({"project": named(project)}))
        }
        // It has its own.
        Credentials::Application { .. } => None,
    };
    let mut auth = json!({"identity": identity});
    if let Some(scope) = scope {
        auth["scope"] = scope;
    }
    json!({"auth": auth})
}

fn named(named: &Named) -> Value {
    match named {
        Named::Id(id) => json!({"id": id}),
        Named::Name(name, Domain::Id(id)) => json!({"name": name, "domain": {"id": id}}),
        Named::Name(name, Domain::Name(domain)) => json!({"name": name, "domain": {"name": domain}}),
    }
}

#[derive(Deserialize)]
struct Answer {
    token: TokenBody,
}

#[derive(Deserialize)]
struct TokenBody {
    expires_at: String,
    issued_at: String,
    user: Thing,
    project: Option<Thing>,
    #[serde(default)]
    roles: Vec<Thing>,
    #[serde(default)]
    catalog: Vec<CatalogEntry>,
}

#[derive(Deserialize)]
struct Thing {
    #[serde(default)]
    id: String,
    #[serde(default)]
    name: String,
}

#[derive(Debug, Deserialize)]
struct CatalogEntry {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    interface: String,
    #[serde(default)]
    region_id: Option<String>,
    #[serde(default)]
    region: Option<String>,
    url: String,
}

impl Token {
    /// Reads an answer that was asked for at `asked`.
    pub(crate) fn read(value: Option<&str>, body: &[u8], asked: Instant) -> Result<Self, Error> {
        let wrong = |problem: &str| Error::unreadable("token", problem);
        let value = value.filter(|value| !value.is_empty()).ok_or_else(|| wrong("it has no X-Subject-Token"))?;
        // Not the parser's words: they may quote the answer.
        let Answer { token } = serde_json::from_slice(body).map_err(|_| wrong("it is not what Keystone answers"))?;
        let time = |text: &str| humantime::parse_rfc3339(text).map_err(|_| wrong("its times are none"));
        let (issued, expires): (SystemTime, SystemTime) = (time(&token.issued_at)?, time(&token.expires_at)?);
        // By its own two times, whatever the clock of this host says. With a token that was got with another one the end is that one's.
        let life = expires.duration_since(issued).map_err(|_| wrong("it ended before it began"))?;
        let life = life.min(Duration::from_secs(366 * 24 * 3_600));
        let project = token.project.ok_or_else(|| Error::new(ErrorKind::Forbidden, "the token is for no project"))?;
        let mut catalog = token.catalog;
        catalog.truncate(MAX_CATALOG);
        Ok(Self {
            value: Secret::new(value),
            identity: Identity {
                user: token.user.name,
                user_id: token.user.id,
                project: project.name,
                project_id: project.id,
                roles: token.roles.into_iter().map(|role| role.name).collect(),
            },
            catalog,
            renew_at: asked + life.saturating_sub(RENEW_BEFORE.min(life / 5)),
            ends_at: asked + life,
        })
    }

    /// Where a service is.
    pub(crate) fn endpoint(&self, service: Service, cloud: &Cloud) -> Result<Target, Error> {
        let missing = |text: String| Error::new(ErrorKind::NoService, text);
        let url = match (cloud.endpoints.get(&service), service) {
            (Some(url), _) => url.clone(),
            (None, Service::Identity) => cloud.auth_url.clone(),
            (None, _) => self.in_catalog(service, cloud).map_err(missing)?.to_owned(),
        };
        check_url(&url)
            .map_err(|problem| missing(format!("the endpoint of the {} service {problem}", service.as_str())))?;
        let mut target = Target::of(&url)
            .ok_or_else(|| missing(format!("the endpoint of the {} service is no URL", service.as_str())))?;
        // Whether the catalog has the version in it is for each cloud to decide.
        let version = match service {
            Service::Identity => "/v3",
            Service::Network => "/v2.0",
            Service::Image => "/v2",
            Service::Compute => "",
        };
        if !target.path.ends_with(version) {
            target.path.push_str(version);
        }
        Ok(target)
    }

    fn in_catalog(&self, service: Service, cloud: &Cloud) -> Result<&str, String> {
        let name = service.as_str();
        let mut entries = self.catalog.iter().filter(|entry| entry.kind == name).peekable();
        if entries.peek().is_none() {
            return Err(format!("the catalog has no {name} service"));
        }
        let all: Vec<&Endpoint> = entries
            .flat_map(|entry| &entry.endpoints)
            .filter(|endpoint| endpoint.interface == cloud.interface)
            .collect();
        let in_region = |endpoint: &&&Endpoint| match &cloud.region {
            None => true,
            Some(region) => endpoint.region_id.as_ref().or(endpoint.region.as_ref()) == Some(region),
        };
        all.iter().find(in_region).map(|endpoint| endpoint.url.as_str()).ok_or_else(|| {
            let regions: Vec<&str> =
                all.iter().filter_map(|e| e.region_id.as_deref().or(e.region.as_deref())).collect();
            let region = cloud.region.as_deref().unwrap_or("any region");
            format!(
                "the catalog has no {} endpoint of the {name} service in {region}; it has {}",
                cloud.interface,
                regions.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn cloud(region: Option<&str>, interface: &str) -> Cloud {
        Cloud {
            name: "c".into(),
            auth_url: "http://k:5000/v3".into(),
            credentials: Credentials::Token { token: Secret::new("t"), project: Named::Id("p".into()) },
            region: region.map(str::to_owned),
            interface: interface.into(),
            endpoints: BTreeMap::new(),
            ca: None,
            own: None,
        }
    }

    fn token(body: &Value) -> Result<Token, Error> {
        Token::read(Some("t"), body.to_string().as_bytes(), Instant::now())
    }

    fn body() -> Value {
        json!({"token": {
            "issued_at": "2026-11-22T11:00:00.000000Z", "expires_at": "2026-11-22T12:00:00.000000Z",
            "user": {"id": "u", "name": "rug"}, "project": {"id": "p", "name": "service"}, "roles": [{"name": "member"}],
            "catalog": [
                {"type": "network", "endpoints": [
                    {"interface": "public", "region_id": "A", "url": "http://a:9696"},
                    {"interface": "public", "region_id": "B", "url": "http://b:9696/v2.0/"},
                    {"interface": "internal", "region": "A", "url": "http://in:9696"}]},
                {"type": "compute", "endpoints": [{"interface": "public", "region_id": "A", "url": "ftp://x"}]}]}})
    }

    #[test]
    fn an_endpoint_is_chosen_by_region_and_interface() {
        let token = token(&body()).expect("readable");
        let path =
            |region, interface| token.endpoint(Service::Network, &cloud(region, interface)).map(|t| t.host + &t.path);
        assert_eq!(path(Some("A"), "public").as_deref(), Ok("a/v2.0"));
        assert_eq!(path(Some("B"), "public").as_deref(), Ok("b/v2.0"));
        assert_eq!(path(Some("A"), "internal").as_deref(), Ok("in/v2.0"));
        assert_eq!(path(None, "public").as_deref(), Ok("a/v2.0"));
        let missing = path(Some("C"), "public").expect_err("no such region");
        assert_eq!(missing.message, "the catalog has no public endpoint of the network service in C; it has A, B");
        let error = token.endpoint(Service::Compute, &cloud(None, "public")).expect_err("no http");
        assert_eq!(error.kind, ErrorKind::NoService);
        assert!(token.endpoint(Service::Image, &cloud(None, "public")).is_err());
        assert_eq!(token.endpoint(Service::Identity, &cloud(None, "public")).map(|t| t.path).as_deref(), Ok("/v3"));
    }

    #[test]
    fn a_token_is_renewed_before_its_end_whatever_the_clock_says() {
        let asked = Instant::now();
        let token = Token::read(Some("t"), body().to_string().as_bytes(), asked).expect("readable");
        assert_eq!(token.ends_at - asked, Duration::from_secs(3_600));
        assert_eq!(token.renew_at - asked, Duration::from_secs(3_480));
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_quoted() {
        for (path, value) in [
            ("/token/issued_at", json!("yesterday")),
            ("/token/expires_at", json!("2026-11-22T10:00:00.000000Z")),
            ("/token/user", json!("s3cret")),
            ("/token/project", Value::Null),
            ("/token/catalog", json!({"s3cret": 1})),
        ] {
            let mut odd = body();
            *odd.pointer_mut(path).expect("there") = value;
            let error = token(&odd).expect_err(path);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        assert!(Token::read(None, body().to_string().as_bytes(), Instant::now()).is_err());
    }
}
