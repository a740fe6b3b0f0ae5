//! Flags of every command, and the server that they lead to.
//!
//! Where a command goes is said in one of three ways: an address (`--server`), a context (`--context`), or the place where the
//! command is called. What stands on the command line counts before what the environment says, and both before the context in
//! use and the cluster of the working directory. Two of the same rank are never weighed against each other: the command is
//! refused, and asks which one is meant.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use common::appliance::Name;
use common::cluster::ClusterRef;
use runtime::tls::{self, ClientTls};

use crate::client::{self, AdminClient, ServerAddresses, TokenFile};
use crate::contexts::{Contexts, LOCAL, NamedContext, TlsFiles};
use crate::error::Failure;
use crate::output::OutputFormat;
use crate::output::columns::FormatParser;

/// Flags of every command.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Address of a coordinator; separate several with commas
    #[arg(long, global = true, env = "RUG_SERVER", hide_env_values = true, value_name = "ADDRESS")]
    server: Option<String>,
    /// Context to use, in place of --server; `local` is the cluster of this folder
    #[arg(
        long,
        global = true,
        env = "RUG_CONTEXT",
        hide_env_values = true,
        value_name = "NAME",
        value_parser = Name::new,
        add = Contexts::completer()
    )]
    context: Option<Name>,
    #[arg(skip)]
    typed: Typed,
    /// The cluster that is meant, by name or id: any other one refuses the command
    #[arg(long, global = true, env = "RUG_CLUSTER", hide_env_values = true, value_name = "CLUSTER")]
    pub(crate) cluster: Option<ClusterRef>,
    #[command(flatten)]
    tls: TlsFlags,
    /// File with a bearer token, in place of a certificate
    #[arg(long, global = true, env = "RUG_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    token_file: Option<OsString>,
    /// Output format; also jsonpath=EXPRESSION, and of `list` and `get` custom-columns=HEADER:.path,...
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table", value_parser = FormatParser)]
    pub(crate) output: OutputFormat,
    /// Timeout of each call (default 10s) and of waiting (default 60s; 2m for `up --down`)
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_timeout)]
    pub(crate) timeout: Option<Duration>,
    /// Trace what the command does in all processes, and print the id of the trace
    ///
    /// The span of the command itself is exported where OTEL_EXPORTER_OTLP_ENDPOINT says.
    #[arg(long, global = true)]
    pub(crate) trace: bool,
    /// The command, as it was typed.
    #[arg(skip)]
    pub(crate) called: String,
    /// No colour and no progress bar, as with NO_COLOR
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
}

/// Certificates for a server at `https://`.
#[derive(Args, Debug)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct TlsFlags {
    /// PEM file with the CAs that the server's certificate must be issued by
    #[arg(long = "tls-ca", global = true, env = "RUG_TLS_CA", hide_env_values = true, value_name = "FILE")]
    ca: Option<OsString>,
    /// PEM file with the certificate to show to the server
    #[arg(long = "tls-cert", global = true, env = "RUG_TLS_CERT", hide_env_values = true, value_name = "FILE")]
    cert: Option<OsString>,
    /// PEM file with the key of the certificate
    // The id differs from the default because `ring locate` has an argument `key`.
    #[arg(
        long = "tls-key",
        id = "tls-key",
        global = true,
        env = "RUG_TLS_KEY",
        hide_env_values = true,
        value_name = "FILE"
    )]
    key: Option<OsString>,
    /// Name the server's certificate must have, instead of the host in its address
    #[arg(
        long = "tls-server-name",
        global = true,
        env = "RUG_TLS_SERVER_NAME",
        hide_env_values = true,
        value_name = "NAME"
    )]
    server_name: Option<String>,
    /// PEM file with certificates that are revoked
    #[arg(long = "tls-crl", global = true, env = "RUG_TLS_CRL", hide_env_values = true, value_name = "FILE")]
    crl: Option<OsString>,
    /// Names that make a server a coordinator, comma separated [default: rug://coordinator/*]
    #[arg(
        long = "tls-servers",
        global = true,
        env = "RUG_TLS_SERVERS",
        hide_env_values = true,
        value_name = "NAMES",
        value_delimiter = ','
    )]
    servers: Vec<String>,
}

impl TlsFlags {
    fn files(&self) -> TlsFiles {
        // A variable that is set to an empty text counts as not set.
        let path = |file: &Option<OsString>| file.clone().filter(|file| !file.is_empty()).map(PathBuf::from);
        TlsFiles {
            ca: path(&self.ca),
            cert: path(&self.cert),
            key: path(&self.key),
            crl: path(&self.crl),
            server_name: self.server_name.clone().filter(|name| !name.is_empty()),
            servers: match self.servers.as_slice() {
                [only] if only.is_empty() => Vec::new(),
                all => all.to_vec(),
            },
        }
    }
}

/// Loads certificates. `has_token`: the caller authenticates by a token, and needs none of its own. `place`: what the names of
/// settings follow in messages, such as `--tls-`.
fn load(files: &TlsFiles, has_token: bool, place: &str) -> Result<Option<ClientTls>, Failure> {
    let TlsFiles { ca, cert, key, crl, server_name, servers } = files.clone();
    let default = tls::Config::default();
    let config = tls::Config {
        ca: ca.unwrap_or_default(),
        cert: cert.unwrap_or_default(),
        key: key.unwrap_or_default(),
        server_name: server_name.unwrap_or_default(),
        crl: crl.unwrap_or_default(),
        servers: if servers.is_empty() { default.servers.clone() } else { servers },
        own_optional: has_token,
        ..default
    };
    if let Some(violation) = config.validate().first() {
        let field = if place.ends_with('-') { violation.field.replace('_', "-") } else { violation.field.clone() };
        return Err(Failure::usage(format!("{place}{field}: {}", violation.description)));
    }
    ClientTls::load(&config).map_err(|e| Failure::usage(format!("{place}{e}")))
}

/// Which of the flags were typed, and not taken from the environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Typed {
    server: bool,
    context: bool,
    /// The first one about certificates or a token.
    credentials: Option<&'static str>,
}

/// The flags that say who calls, and whom it trusts.
const CREDENTIALS: [&str; 7] = ["ca", "cert", "tls-key", "crl", "server_name", "servers", "token_file"];

impl Typed {
    fn of(matches: &ArgMatches) -> Self {
        let is_typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let credentials = CREDENTIALS.into_iter().find(|id| is_typed(id));
        Self { server: is_typed("server"), context: is_typed("context"), credentials }
    }
}

/// What the settings of a connection are called where they were set, for messages.
struct SettingWords {
    server: &'static str,
    /// What the names of files of TLS follow.
    tls: &'static str,
    token: &'static str,
}

const FLAGS: SettingWords = SettingWords { server: "--server or RUG_SERVER", tls: "--tls-", token: "--token-file" };
const SETTINGS: SettingWords = SettingWords { server: "server", tls: "tls_", token: "token_file" };

/// What a command is about: a server and how to reach it.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The server.
    pub(crate) client: AdminClient,
    /// How it is reached.
    pub(crate) reached: NamedContext,
    /// What the user should know about the files that were used.
    pub(crate) notes: Vec<String>,
}

/// The way in which the server is said.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Server(String),
    Context(Name),
    /// The working directory.
    Local,
}

impl Global {
    /// The address that was given.
    #[cfg(test)]
    pub(crate) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }

    /// Keeps which flags were typed.
    pub(crate) fn note_typed(&mut self, matches: &ArgMatches) {
        self.typed = Typed::of(matches);
    }

    /// The server, and what goes with it. Nothing is sent yet.
    ///
    /// # Errors
    /// None is found, more than one may be meant, or what is needed to reach it is not usable.
    pub(crate) fn connection(&self, folder: &Path, contexts: Option<&Contexts>) -> Result<Connection, Failure> {
        match self.choice(folder, contexts)? {
            Choice::Server(named) => {
                let token_file = self.token_file.clone().filter(|path| !path.is_empty()).map(PathBuf::from);
                let way = NamedContext { server: named, tls: self.tls.files(), token_file, ..NamedContext::default() };
                self.connected(way, &FLAGS)
            }
            Choice::Context(name) => {
                let contexts = contexts.ok_or_else(no_folder)?;
                let context = contexts.get(&name)?;
                if let Some(id) = self.typed.credentials {
                    let text = format!("--{} is given, and a context says which files are used", flag_of(id));
                    return Err(Failure::usage(text));
                }
                let during = |failure: Failure| failure.during(&format!("{}: {name}", contexts.file().display()));
                self.connected(context, &SETTINGS).map_err(during)
            }
            Choice::Local => {
                // Certificates and tokens in the environment are for another cluster: the one on this machine uses none.
                let found = client::local_servers(folder)?.ok_or_else(|| client::no_local_server(folder))?;
                let server = found.addresses.join(",");
                let reached = NamedContext { server, cluster: found.cluster.clone(), ..NamedContext::default() };
                self.client(&found, None, reached)
            }
        }
    }

    /// The server of a context, or of flags that say the same.
    fn connected(&self, way: NamedContext, words: &SettingWords) -> Result<Connection, Failure> {
        let tls = load(&way.tls, way.token_file.is_some(), words.tls)?;
        let named = client::named_servers(&way.server, tls.is_some(), words.server)?;
        let found = ServerAddresses { cluster: way.cluster.clone(), ..named };
        let reached = NamedContext { server: found.addresses.join(","), ..way };
        let token_file = reached.token_file.clone();
        let mut connection = self.client(&found, tls.as_ref(), reached)?;
        if let Some(path) = token_file {
            connection.notes.extend(runtime::file::exposure(&path));
            connection.client = connection.client.with_token(TokenFile::open(path, words.token)?)?;
        }
        Ok(connection)
    }

    fn client(
        &self,
        found: &ServerAddresses,
        tls: Option<&ClientTls>,
        reached: NamedContext,
    ) -> Result<Connection, Failure> {
        // `--timeout` as a whole applies to waiting; a single call keeps the default, so that one call cannot use up the
        // time of the others.
        let timeout = self.timeout.unwrap_or(client::CALL_TIMEOUT);
        let client = AdminClient::of(&found.addresses, timeout, tls, found.trusted())?;
        let client = client.meant_for(found.cluster.clone().or_else(|| self.cluster.clone()));
        let notes = tls.and_then(ClientTls::exposed_key).into_iter().collect();
        Ok(Connection { client, reached, notes })
    }

    fn choice(&self, folder: &Path, contexts: Option<&Contexts>) -> Result<Choice, Failure> {
        let context = |name: &Name| match name.as_str() {
            LOCAL => Choice::Local,
            _ => Choice::Context(name.clone()),
        };
        match (&self.server, &self.context) {
            (Some(server), None) => return Ok(Choice::Server(server.clone())),
            (None, Some(name)) => return Ok(context(name)),
            (Some(server), Some(name)) => match (self.typed.server, self.typed.context) {
                (true, false) => return Ok(Choice::Server(server.clone())),
                (false, true) => return Ok(context(name)),
                (true, true) => {
                    return Err(Failure::usage("--server and --context are both given: which one is meant?"));
                }
                (false, false) => {
                    return Err(Failure::usage(
                        "RUG_SERVER and RUG_CONTEXT are both set: give --server or --context, or unset one of them",
                    ));
                }
            },
            (None, None) => {}
        }
        let Some(contexts) = contexts else { return Ok(Choice::Local) };
        let Some(name) = contexts.in_use()? else { return Ok(Choice::Local) };
        let local = client::local_servers(folder)?;
        let is_same = |id: &ClusterRef| contexts.get(&name).is_ok_and(|context| context.cluster.as_ref() == Some(id));
        if local.is_some_and(|local| !local.cluster.as_ref().is_some_and(is_same)) {
            return Err(Failure::usage(format!(
                "context {name} is in use, and a cluster runs in this folder or above it: say which one is meant with \
                 --context {name} or --context {LOCAL}"
            )));
        }
        Ok(Choice::Context(name))
    }
}

/// The flag with this id.
fn flag_of(id: &str) -> String {
    let name = id.replace('_', "-");
    if name.starts_with("tls-") || name == "token-file" { name } else { format!("tls-{name}") }
}

/// The failure where the environment does not say where contexts are.
pub(crate) fn no_folder() -> Failure {
    Failure::usage("contexts are in the folder rug of XDG_CONFIG_HOME or HOME, and neither is set to an absolute path")
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(limit) if limit > Duration::ZERO => Ok(limit),
        _ => Err("must be a duration above zero with its unit, such as 30s".to_owned()),
    }
}

#[cfg(test)]
mod tests;
