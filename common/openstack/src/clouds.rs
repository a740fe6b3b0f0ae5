//! Where the cloud is and how to prove who one is: `clouds.yaml`, `secure.yaml` and the variables `OS_*`, as the clients of OpenStack
//! read them.
//!
//! Only what is needed here is read. `profile` (a vendor's settings) and authentication by other means than a password, an application
//! credential or a token are refused with their name, not ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde_json::{Map, Value};

use crate::config::{ClientConfig, Service, check_url};
use crate::secret::Secret;

/// Largest file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// The cloud that the variables describe.
const OF_VARIABLES: &str = "the variables OS_*";

/// Why there is no cloud to speak to. Never has a value of a file in it.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Nothing says where the cloud is.
    #[error("no cloud: there is no clouds.yaml, and OS_AUTH_URL is not set")]
    NoCloud,
    /// The file has no such cloud.
    #[error("{place} has no cloud `{name}`; it has {known}")]
    UnknownCloud {
        /// The file.
        place: String,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// What is said of a cloud cannot be used.
    #[error("{place}: {field}: {problem}")]
    Field {
        /// Cloud and file, or the variables.
        place: String,
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The files for TLS cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
}

/// A user or a project, by id or by name within a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// By id.
    Id(String),
    /// By name, within a domain of this id or name.
    Name(String, Domain),
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// By id.
    Id(String),
    /// By name.
    Name(String),
}

/// How to prove who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A user with a password, who acts in a project.
    Password {
        /// The user.
        user: Named,
        /// The password.
        password: Secret,
        /// The project.
        project: Named,
    },
    /// An application credential, which has its project.
    Application {
        /// By id, or by name of a user.
        credential: ApplicationCredential,
        /// Its secret.
        secret: Secret,
    },
    /// A token that somebody has got; it cannot be renewed beyond its end.
    Token {
        /// The token.
        token: Secret,
        /// The project.
        project: Named,
    },
}

/// Which application credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplicationCredential {
    /// By id.
    Id(String),
    /// By name, of a user.
    Name(String, Named),
}

/// A cloud, and who one is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloud {
    /// Its name in the file, for logs.
    pub name: String,
    /// Where Keystone is, with its version.
    pub auth_url: String,
    /// How to prove who one is.
    pub credentials: Credentials,
    /// Region; any when absent.
    pub region: Option<String>,
    /// Which endpoints of the catalog.
    pub interface: String,
    /// Addresses instead of those of the catalog.
    pub endpoints: BTreeMap<Service, String>,
    /// CAs that servers are checked against; those of the system when absent.
    pub ca: Option<PathBuf>,
    /// Own certificate and key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// The process environment, or that of a test.
pub(crate) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Cloud {
    /// Reads what the settings and the environment say.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn find(config: &ClientConfig) -> Result<Self, SetupError> {
        Self::find_with(config, &|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    pub(crate) fn find_with(config: &ClientConfig, variables: Variables<'_>) -> Result<Self, SetupError> {
        let named = if config.cloud.is_empty() { variables("OS_CLOUD") } else { Some(config.cloud.clone()) };
        let of_variables =
            named.is_none() && config.clouds_file.as_os_str().is_empty() && variables("OS_AUTH_URL").is_some();
        let (name, place, fields) = if of_variables {
            ("envvars".to_owned(), OF_VARIABLES.to_owned(), from_variables(variables))
        } else {
            let (path, mut clouds) = read_clouds(config, variables)?.ok_or(SetupError::NoCloud)?;
            let place = path.display().to_string();
            let known = clouds.keys().cloned().collect::<Vec<_>>().join(", ");
            let only = if clouds.len() == 1 { clouds.keys().next().cloned() } else { None };
            let name = named.or(only).ok_or_else(|| SetupError::Field {
                place: place.clone(),
                field: "cloud".to_owned(),
                problem: format!("must be named, there are {known}"),
            })?;
            let fields = match clouds.remove(&name) {
                Some(Value::Object(fields)) => fields,
                Some(_) => {
                    return Err(SetupError::Field { place, field: name, problem: "must be a mapping".to_owned() });
                }
                None => return Err(SetupError::UnknownCloud { place, name, known }),
            };
            (name.clone(), format!("cloud `{name}` of {place}"), fields)
        };
        let reader = CloudReader { place, fields };
        let mut cloud = reader.read(name)?;
        if !config.region.is_empty() {
            cloud.region = Some(config.region.clone());
        }
        if !config.interface.is_empty() {
            cloud.interface.clone_from(&config.interface);
        }
        cloud.endpoints.extend(config.endpoints.clone());
        Ok(cloud)
    }
}

/// The variables, as the fields of a cloud in a file.
fn from_variables(variables: Variables<'_>) -> Map<String, Value> {
    let (mut top, mut auth) = (Map::new(), Map::new());
    for name in AUTH_FIELDS {
        if let Some(value) = variables(&format!("OS_{}", name.to_ascii_uppercase())) {
            auth.insert((*name).to_owned(), Value::String(value));
        }
    }
    for name in ["region_name", "interface", "endpoint_type", "auth_type", "cacert", "cert", "key"] {
        if let Some(value) = variables(&format!("OS_{}", name.to_ascii_uppercase())) {
            top.insert(name.to_owned(), Value::String(value));
        }
    }
    if variables("OS_INSECURE").is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes"))
    {
        top.insert("verify".to_owned(), Value::Bool(false));
    }
    top.insert("auth".to_owned(), Value::Object(auth));
    top
}

/// The fields of `auth` that are read.
const AUTH_FIELDS: &[&str] = &[
    "auth_url",
    "username",
    "user_id",
    "password",
    "token",
    "project_name",
    "project_id",
    "tenant_name",
    "tenant_id",
    "user_domain_name",
    "user_domain_id",
    "project_domain_name",
    "project_domain_id",
    "default_domain",
    "default_domain_id",
    "default_domain_name",
    "application_credential_id",
    "application_credential_name",
    "application_credential_secret",
];

/// A file, and its clouds by name.
type CloudsFile = (PathBuf, Map<String, Value>);

/// The clouds of the first file there is, with what `secure.yaml` adds. `None` without a file.
fn read_clouds(config: &ClientConfig, variables: Variables<'_>) -> Result<Option<CloudsFile>, SetupError> {
    let named = |path: &Path, variable: &str| {
        let path = (!path.as_os_str().is_empty()).then(|| path.to_owned());
        path.or_else(|| variables(variable).map(PathBuf::from))
    };
    let must = named(&config.clouds_file, "OS_CLIENT_CONFIG_FILE");
    let places = match &must {
        Some(path) => vec![path.clone()],
        None => searched("clouds", variables),
    };
    let mut found = None;
    for path in places {
        if let Some(whole) = read_yaml(&path)? {
            found = Some((path, whole));
            break;
        }
    }
    let Some((path, mut whole)) = found else {
        return match must {
            Some(path) => Err(SetupError::File { path, problem: "is not there".to_owned() }),
            None => Ok(None),
        };
    };
    let secure = match variables("OS_CLIENT_SECURE_FILE") {
        Some(path) => vec![PathBuf::from(path)],
        None => [path.with_file_name("secure.yaml")].into_iter().chain(searched("secure", variables)).collect(),
    };
    for path in secure {
        if let Some(more) = read_yaml(&path)? {
            merge(&mut whole, more);
            break;
        }
    }
    match whole.get_mut("clouds").map(Value::take) {
        Some(Value::Object(clouds)) => Ok(Some((path, clouds))),
        _ => Err(SetupError::File { path, problem: "has no mapping `clouds`".to_owned() }),
    }
}

fn searched(stem: &str, variables: Variables<'_>) -> Vec<PathBuf> {
    let home = variables("HOME").map(|home| PathBuf::from(home).join(".config/openstack"));
    let folders = [Some(PathBuf::from(".")), home, Some(PathBuf::from("/etc/openstack"))];
    let names = ["yaml", "yml", "json"].map(|ending| format!("{stem}.{ending}"));
    folders.into_iter().flatten().flat_map(|folder| names.clone().map(|name| folder.join(name))).collect()
}

/// A file of YAML, of which JSON is a part; `None` when it is not there.
fn read_yaml(path: &Path) -> Result<Option<Value>, SetupError> {
    let failed = |problem: String| SetupError::File { path: path.to_owned(), problem };
    match fs::metadata(path) {
        Ok(found) if found.len() > MAX_FILE => return Err(failed(format!("has more than {MAX_FILE} bytes"))),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    }
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    // The parser would quote lines, which may have a password.
    let value: Value = serde_saphyr::from_str(&text).map_err(|error| {
        failed(error.location().map_or_else(|| "is no YAML".to_owned(), |at| format!("line {} is no YAML", at.line())))
    })?;
    match value {
        Value::Object(_) => Ok(Some(value)),
        Value::Null => Ok(None),
        _ => Err(failed("must be a mapping".to_owned())),
    }
}

/// Puts what `more` has over what `whole` has, mapping by mapping.
fn merge(whole: &mut Value, more: Value) {
    match (whole, more) {
        (Value::Object(whole), Value::Object(more)) => {
            for (key, value) in more {
                merge(whole.entry(key).or_insert(Value::Null), value);
            }
        }
        (whole, more) => *whole = more,
    }
}

/// Reads one cloud.
struct CloudReader {
    place: String,
    fields: Map<String, Value>,
}

impl CloudReader {
    fn wrong(&self, field: &str, problem: impl Into<String>) -> SetupError {
        SetupError::Field { place: self.place.clone(), field: field.to_owned(), problem: problem.into() }
    }

    fn read(&self, name: String) -> Result<Cloud, SetupError> {
        if self.fields.contains_key("profile") {
            return Err(self.wrong("profile", "is not supported: name auth_url and the rest here"));
        }
        if self.fields.get("verify").is_some_and(|verify| verify == false) {
            return Err(self.wrong("verify", "cannot be turned off: name the CA of the cloud in `cacert`"));
        }
        let auth_url = self.auth("auth_url")?.ok_or_else(|| self.wrong("auth.auth_url", "is missing"))?;
        check_url(&auth_url).map_err(|problem| self.wrong("auth.auth_url", problem))?;
        let bare = auth_url.trim_end_matches('/');
        if bare.ends_with("/v2.0") {
            return Err(self.wrong("auth.auth_url", "names version 2.0 of the identity service, which ended in 2018"));
        }
        let auth_url = if bare.ends_with("/v3") { bare.to_owned() } else { format!("{bare}/v3") };
        let interface = self.text("interface")?.or(self.text("endpoint_type")?).unwrap_or_default();
        let interface = interface.trim_end_matches("URL");
        if !matches!(interface, "" | "public" | "internal" | "admin") {
            return Err(self.wrong("interface", "must be public, internal or admin"));
        }
        let mut endpoints = BTreeMap::new();
        for service in Service::ALL {
            let field = format!("{}_endpoint_override", service.as_str());
            if let Some(url) = self.text(&field)? {
                check_url(&url).map_err(|problem| self.wrong(&field, problem))?;
                endpoints.insert(service, url);
            }
        }
        let own = match (self.text("cert")?, self.text("key")?) {
            (Some(cert), Some(key)) => Some((PathBuf::from(cert), PathBuf::from(key))),
            (None, None) => None,
            (Some(_), None) => return Err(self.wrong("key", "is missing beside cert")),
            (None, Some(_)) => return Err(self.wrong("cert", "is missing beside key")),
        };
        Ok(Cloud {
            name,
            auth_url,
            credentials: self.credentials()?,
            region: self.text("region_name")?.or_else(|| self.only_region()),
            interface: if interface.is_empty() { "public".to_owned() } else { interface.to_owned() },
            endpoints,
            ca: self.text("cacert")?.map(PathBuf::from),
            own,
        })
    }

    fn credentials(&self) -> Result<Credentials, SetupError> {
        let by_credential = self.auth("application_credential_secret")?;
        let kind = self.text("auth_type")?.unwrap_or_else(|| {
            match (&by_credential, self.auth("token")) {
                (Some(_), _) => "v3applicationcredential",
                (None, Ok(Some(_))) => "v3token",
                _ => "password",
            }
            .to_owned()
        });
        match kind.as_str() {
            "password" | "v3password" => Ok(Credentials::Password {
                user: self.named("user", &["username"], &["user_id"])?,
                password: Secret::new(self.need("password")?),
                project: self.project()?,
            }),
            "v3applicationcredential" => {
                let credential = match self.auth("application_credential_id")? {
                    Some(id) => ApplicationCredential::Id(id),
                    None => {
                        let name = self.need("application_credential_name")?;
                        ApplicationCredential::Name(name, self.named("user", &["username"], &["user_id"])?)
                    }
                };
                Ok(Credentials::Application {
                    credential,
                    secret: Secret::new(self.need("application_credential_secret")?),
                })
            }
            "token" | "v3token" => {
                Ok(Credentials::Token { token: Secret::new(self.need("token")?), project: self.project()? })
            }
            _ => Err(self.wrong("auth_type", "must be password, v3applicationcredential or token")),
        }
    }

    fn project(&self) -> Result<Named, SetupError> {
        self.named("project", &["project_name", "tenant_name"], &["project_id", "tenant_id"])
    }

    /// A user or project, by the first field that is there.
    fn named(&self, what: &str, names: &[&str], ids: &[&str]) -> Result<Named, SetupError> {
        for id in ids {
            if let Some(id) = self.auth(id)? {
                return Ok(Named::Id(id));
            }
        }
        for name in names {
            if let Some(name) = self.auth(name)? {
                return Ok(Named::Name(name, self.domain(what)?));
            }
        }
        Err(self.wrong(&format!("auth.{}", names[0]), "is missing"))
    }

    fn domain(&self, what: &str) -> Result<Domain, SetupError> {
        let first = |names: [String; 2]| -> Result<Option<String>, SetupError> {
            for name in names {
                if let Some(value) = self.auth(&name)? {
                    return Ok(Some(value));
                }
            }
            Ok(None)
        };
        if let Some(id) = first([format!("{what}_domain_id"), "default_domain_id".to_owned()])? {
            return Ok(Domain::Id(id));
        }
        if let Some(name) = first([format!("{what}_domain_name"), "default_domain_name".to_owned()])? {
            return Ok(Domain::Name(name));
        }
        // What the clients of OpenStack take when nothing is said.
        Ok(Domain::Id(self.auth("default_domain")?.unwrap_or_else(|| "default".to_owned())))
    }

    fn need(&self, name: &str) -> Result<String, SetupError> {
        self.auth(name)?.ok_or_else(|| self.wrong(&format!("auth.{name}"), "is missing"))
    }

    /// A field of `auth`; some files have them at the top.
    fn auth(&self, name: &str) -> Result<Option<String>, SetupError> {
        let inner = self.fields.get("auth").and_then(|auth| auth.get(name));
        self.as_text(&format!("auth.{name}"), inner.or_else(|| self.fields.get(name)))
    }

    fn text(&self, name: &str) -> Result<Option<String>, SetupError> {
        self.as_text(name, self.fields.get(name))
    }

    fn as_text(&self, field: &str, value: Option<&Value>) -> Result<Option<String>, SetupError> {
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            // `password: 12345` is what people write.
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => Err(self.wrong(field, "must be a text")),
        }
    }

    fn only_region(&self) -> Option<String> {
        let regions = self.fields.get("regions")?.as_array()?;
        let name = |region: &Value| region.as_str().or_else(|| region.get("name")?.as_str()).map(str::to_owned);
        if regions.len() == 1 { name(&regions[0]) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUDS: &str = "
clouds:
  lab:
    region_name: RegionOne
    interface: internalURL
    cacert: /etc/ca.pem
    compute_endpoint_override: http://127.0.0.1:8774/v2.1
    auth:
      auth_url: http://127.0.0.1:5000/
      username: rug
      password: 12345
      project_name: service
      user_domain_name: Default
      project_domain_id: default
  app:
    auth_type: v3applicationcredential
    auth:
      auth_url: https://keystone/v3
      application_credential_id: abc
";

    fn find(folder: &Path, cloud: &str, variables: &[(&str, &str)]) -> Result<Cloud, String> {
        let config = ClientConfig { cloud: cloud.to_owned(), ..ClientConfig::default() };
        let home = folder.display().to_string();
        let file = folder.join("clouds.yaml").display().to_string();
        let all: BTreeMap<&str, &str> = [("HOME", home.as_str()), ("OS_CLIENT_CONFIG_FILE", file.as_str())]
            .into_iter()
            .chain(variables.iter().copied())
            .collect();
        Cloud::find_with(&config, &|name| {
            all.get(name).filter(|value| !value.is_empty()).map(|value| (*value).to_owned())
        })
        .map_err(|error| error.to_string())
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("clouds.yaml"), CLOUDS).expect("written");
        folder
    }

    #[test]
    fn a_cloud_of_the_file_is_read_with_what_the_secure_file_adds() {
        let folder = folder();
        let cloud = find(folder.path(), "lab", &[]).expect("readable");
        assert_eq!(cloud.auth_url, "http://127.0.0.1:5000/v3");
        assert_eq!((cloud.region.as_deref(), cloud.interface.as_str()), (Some("RegionOne"), "internal"));
        assert_eq!(cloud.endpoints[&Service::Compute], "http://127.0.0.1:8774/v2.1");
        let Credentials::Password { user, password, project } = cloud.credentials else { panic!("a password") };
        assert_eq!(user, Named::Name("rug".into(), Domain::Name("Default".into())));
        assert_eq!(
            (password.reveal(), project),
            ("12345", Named::Name("service".into(), Domain::Id("default".into())))
        );
        let missing = find(folder.path(), "app", &[]).expect_err("no secret");
        assert!(missing.ends_with("auth.application_credential_secret: is missing"), "{missing}");
        let secure = "clouds: {app: {auth: {application_credential_secret: s3}}}";
        fs::write(folder.path().join("secure.yaml"), secure).expect("written");
        let cloud = find(folder.path(), "app", &[]).expect("readable");
        assert!(!format!("{cloud:?}").contains("s3"), "secrets are not shown");
        let credential = ApplicationCredential::Id("abc".into());
        assert_eq!(cloud.credentials, Credentials::Application { credential, secret: Secret::new("s3") });
    }

    #[test]
    fn the_variables_are_a_cloud_where_none_is_named() {
        let folder = folder();
        let variables = [
            ("OS_CLIENT_CONFIG_FILE", ""),
            ("OS_AUTH_URL", "http://k:5000/v3"),
            ("OS_USERNAME", "admin"),
            ("OS_PASSWORD", "p"),
            ("OS_PROJECT_NAME", "admin"),
            ("OS_INTERFACE", "public"),
        ];
        let cloud = find(folder.path(), "", &variables).expect("readable");
        assert_eq!((cloud.name.as_str(), cloud.interface.as_str()), ("envvars", "public"));
        let named = find(folder.path(), "", &[("OS_CLOUD", "lab"), ("OS_AUTH_URL", "http://other:5000")]);
        assert_eq!(named.expect("readable").name, "lab", "a name goes before variables");
    }

    #[test]
    fn what_cannot_be_used_is_named_without_its_value() {
        let folder = folder();
        let unknown = find(folder.path(), "x", &[]).expect_err("not there");
        assert!(unknown.ends_with("has no cloud `x`; it has app, lab"), "{unknown}");
        let undecided = find(folder.path(), "", &[]).expect_err("two");
        assert!(undecided.ends_with("cloud: must be named, there are app, lab"), "{undecided}");
        for (text, problem) in [
            ("clouds: {a: {auth: {password: [s3cret]}}}", "auth.auth_url: is missing"),
            ("clouds: {a: {verify: false, auth: {auth_url: 'http://k'}}}", "verify: cannot be turned off"),
            ("clouds: {a: {profile: vexxhost}}", "profile: is not supported"),
            ("clouds: {a: {auth: {auth_url: 'http://u:s3cret@k'}}}", "auth.auth_url: must not hold a user"),
            ("clouds: {a: {auth: {auth_url: 'http://k/v2.0'}}}", "names version 2.0"),
            ("clouds: {a: {auth_type: v3oidc, auth: {auth_url: 'http://k'}}}", "auth_type: must be"),
            (
                "clouds: {a: {auth: {auth_url: 'http://k', username: u, password: {x: s3cret}}}}",
                "auth.password: must be a text",
            ),
            ("clouds: {a: {password: \"s3cret", "line 1 is no YAML"),
            ("[s3cret]", "must be a mapping"),
        ] {
            fs::write(folder.path().join("clouds.yaml"), text).expect("written");
            let error = find(folder.path(), "a", &[]).expect_err(text);
            assert!(error.contains(problem), "{text}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
