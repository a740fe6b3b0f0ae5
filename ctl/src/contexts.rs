//! Named contexts: one word for a cluster, with everything that is needed to reach it and no other.
//!
//! They are in `contexts.toml` in the user's configuration folder; the name of the one that is in use, where there is one, is in
//! the file `context` beside it. Both are read only where no other user can have written them, as endpoint files are: whoever
//! writes them decides where commands go.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap_complete::{ArgValueCompleter, CompletionCandidate};
use common::appliance::Name;
use common::cluster::ClusterRef;
use common::text;
use runtime::folder::{Error, Folder};
use runtime::socket;
use toml_edit::{ImDocument, Item, TableLike};

use crate::error::{Exit, Failure};

/// What stands for the cluster of the folder a command is called in, and so is the name of no context.
pub(crate) const LOCAL: &str = "local";
/// The file with all contexts.
const FILE: &str = "contexts.toml";
/// The file that names the one in use.
const IN_USE: &str = "context";
/// Most bytes of a file.
const MAX_FILE: u64 = 256 << 10;
/// Every setting of a context, for messages.
const KNOWN: &str =
    "server, cluster, tenant, tls_ca, tls_cert, tls_key, tls_crl, tls_server_name, tls_servers, token_file";

/// One context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamedContext {
    /// Addresses of the coordinators, comma separated.
    pub(crate) server: String,
    /// The cluster that is to be found there, and no other.
    pub(crate) cluster: Option<ClusterRef>,
    /// The tenant that is meant where none is given.
    pub(crate) tenant: Option<Name>,
    /// CAs, certificate, key, revocation lists: absolute paths.
    pub(crate) tls: TlsFiles,
    /// File with a bearer token.
    pub(crate) token_file: Option<PathBuf>,
}

/// Files and names of TLS, as the flags of the same names have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) crl: Option<PathBuf>,
    pub(crate) server_name: Option<String>,
    pub(crate) servers: Vec<String>,
}

impl NamedContext {
    /// What is set, as the file has it.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let Self { server, cluster, tenant, tls, token_file } = self;
        let TlsFiles { ca, cert, key, crl, server_name, servers } = tls;
        let file = |file: &Option<PathBuf>| file.as_ref().map(|path| path.display().to_string());
        let settings = [
            ("server", Some(server.clone())),
            ("cluster", cluster.as_ref().map(ToString::to_string)),
            ("tenant", tenant.as_ref().map(ToString::to_string)),
            ("tls_ca", file(ca)),
            ("tls_cert", file(cert)),
            ("tls_key", file(key)),
            ("tls_crl", file(crl)),
            ("tls_server_name", server_name.clone()),
            ("tls_servers", (!servers.is_empty()).then(|| servers.join(","))),
            ("token_file", file(token_file)),
        ];
        settings.into_iter().filter_map(|(setting, value)| Some((setting, value?))).collect()
    }
}

/// The contexts of this user.
#[derive(Clone, Debug)]
pub(crate) struct Contexts {
    folder: PathBuf,
}

impl Contexts {
    /// Those in the configuration folder of this user; `None` where the environment does not say which one that is.
    pub(crate) fn of_user() -> Option<Self> {
        Self::of(std::env::var_os("XDG_CONFIG_HOME").as_deref(), std::env::var_os("HOME").as_deref())
    }

    fn of(config: Option<&OsStr>, home: Option<&OsStr>) -> Option<Self> {
        // Relative paths are to be ignored there, says the XDG base directory specification.
        let absolute = |path: &OsStr| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
        let base = config.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".config")))?;
        Some(Self { folder: base.join("rug") })
    }

    /// Completes their names for a shell. No server is asked.
    pub(crate) fn completer() -> ArgValueCompleter {
        ArgValueCompleter::new(|current: &OsStr| {
            let known = Self::of_user().and_then(|contexts| contexts.all().ok()).unwrap_or_default();
            let names = known.into_keys().map(|name| name.to_string()).chain([LOCAL.to_owned()]);
            let current = current.to_string_lossy();
            names.filter(|name| name.starts_with(&*current)).map(CompletionCandidate::new).collect()
        })
    }

    /// The contexts in this folder.
    #[cfg(test)]
    pub(crate) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Where `rugctl ssh` keeps the keys of hosts.
    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }

    /// Where they are.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// Every problem of the file, with its line; or others can have written it.
    pub(crate) fn all(&self) -> Result<BTreeMap<Name, NamedContext>, Failure> {
        let path = self.file();
        let Some(text) = read(&path)? else { return Ok(BTreeMap::new()) };
        parse(&path, &text).map_err(|problems| Failure::usage(problems.join("\n")))
    }

    /// The one with this name.
    ///
    /// # Errors
    /// There is none (exit code 4), or as [`Contexts::all`].
    pub(crate) fn get(&self, name: &Name) -> Result<NamedContext, Failure> {
        let mut all = self.all()?;
        all.remove(name).ok_or_else(|| {
            let known: Vec<_> = all.keys().map(Name::as_str).chain([LOCAL]).collect();
            let text =
                format!("there is no context `{name}` in {}; known are {}", self.file().display(), known.join(", "));
            Failure::new(Exit::NotFound, text)
        })
    }

    /// The name of the one in use, unless that is the cluster of the working directory.
    ///
    /// # Errors
    /// Others can have written what says so, or it is no name.
    pub(crate) fn in_use(&self) -> Result<Option<Name>, Failure> {
        let path = self.folder.join(IN_USE);
        let Some(text) = read(&path)? else { return Ok(None) };
        let name = Name::new(text.trim()).map_err(|_| {
            Failure::usage(format!(
                "{}: holds no name of a context; `rugctl context use NAME` writes it",
                path.display()
            ))
        })?;
        Ok((name.as_str() != LOCAL).then_some(name))
    }

    /// Has this one in use from now on.
    ///
    /// # Errors
    /// There is none of this name, or the file cannot be written.
    pub(crate) fn set_in_use(&self, name: &Name) -> Result<(), Failure> {
        if name.as_str() != LOCAL {
            self.get(name)?;
        }
        self.write(IN_USE, &format!("{name}\n"))
    }

    /// Adds a context. The file keeps what is in it.
    ///
    /// # Errors
    /// There is one of this name (exit code 5), a text cannot be written, or the file cannot.
    pub(crate) fn add(&self, name: &Name, context: &NamedContext) -> Result<(), Failure> {
        if name.as_str() == LOCAL {
            return Err(Failure::usage(format!("`{LOCAL}` stands for the cluster of the working directory")));
        }
        let path = self.file();
        if self.all()?.contains_key(name) {
            let text = format!("there is a context `{name}` already: change it in {}", path.display());
            return Err(Failure::new(Exit::Conflict, text));
        }
        let mut text = read(&path)?.unwrap_or_default();
        if !text.is_empty() {
            text.push_str(if text.ends_with('\n') { "\n" } else { "\n\n" });
        }
        text.push_str(&written(name, context)?);
        // What is written has to be read again as what was meant.
        let again = parse(&path, &text).map_err(|problems| Failure::failed(problems.join("\n")))?;
        if again.get(name) != Some(context) {
            return Err(Failure::failed(format!("{}: the context cannot be written there", path.display())));
        }
        self.write(FILE, &text)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let written = Folder::private(&self.folder, &[FILE, IN_USE])
            .and_then(|folder| folder.write_atomic(name, text.as_bytes()));
        written.map_err(|e| Failure::failed(e.to_string()))
    }
}

/// What a file of this user says; `None` when there is none.
fn read(path: &Path) -> Result<Option<String>, Failure> {
    let bytes = match Folder::read_existing(path, MAX_FILE) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => bytes,
        Err(error @ Error::Io { .. }) => return Err(Failure::failed(error.to_string())),
        Err(error) => return Err(Failure::usage(format!("{error}; with --server no context is read"))),
    };
    String::from_utf8(bytes).map(Some).map_err(|_| Failure::usage(format!("{}: is not UTF-8 text", path.display())))
}

/// One context as it stands in the file.
fn written(name: &Name, context: &NamedContext) -> Result<String, Failure> {
    let quote = if name.as_str().contains('.') { "\"" } else { "" };
    let mut text = format!("[{quote}{name}{quote}]\n");
    for (setting, value) in context.settings() {
        text::check(&value, MAX_TEXT).map_err(|problem| Failure::usage(format!("{setting}: {problem}")))?;
        let value = value.replace('\\', "\\\\").replace('"', "\\\"");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{setting} = \"{value}\"");
    }
    Ok(text)
}

/// Longest value, in bytes.
const MAX_TEXT: usize = 4096;

/// Every context of a file, or every problem in it as `file:line: field: message`.
fn parse(path: &Path, text: &str) -> Result<BTreeMap<Name, NamedContext>, Vec<String>> {
    let shown = path.display();
    let line = |at: Option<std::ops::Range<usize>>| {
        let end = at.map_or(text.len(), |at| at.start).min(text.len());
        text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count() + 1
    };
    let document =
        ImDocument::parse(text).map_err(|error| vec![format!("{shown}:{}: is not valid TOML", line(error.span()))])?;
    let mut all = BTreeMap::new();
    let mut problems = Vec::new();
    for (key, item) in document.as_table().iter() {
        let at = line(document.as_table().key(key).and_then(toml_edit::Key::span).or_else(|| item.span()));
        let mut problem = |field: &str, line: usize, what: &str| {
            let field =
                if field.is_empty() { String::new() } else { format!("{}: ", text::escaped(text::clip(field, 80))) };
            problems.push(format!("{shown}:{line}: {field}{what}"));
        };
        let Some(table) = item.as_table_like() else {
            problem(key, at, "must be the section of a context, such as [prod]");
            continue;
        };
        let name = match Name::new(key) {
            Ok(name) if name.as_str() == LOCAL => {
                problem(key, at, "stands for the cluster of the working directory, and cannot be a context");
                continue;
            }
            Ok(name) => name,
            Err(error) => {
                problem(key, at, &error.to_string());
                continue;
            }
        };
        let mut found = |field: &str, span: Option<std::ops::Range<usize>>, what: &str| {
            let at = if span.is_some() { line(span) } else { at };
            problem(&format!("{name}.{field}"), at, what);
        };
        all.insert(name.clone(), context_of(table, &mut found));
    }
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

/// Where a problem is reported: the setting, its place in the text, and what is wrong with it.
type Report<'a> = dyn FnMut(&str, Option<std::ops::Range<usize>>, &str) + 'a;

fn context_of(table: &dyn TableLike, report: &mut Report<'_>) -> NamedContext {
    let mut context = NamedContext::default();
    for (key, item) in table.iter() {
        let place = table.get_key_value(key).and_then(|(key, _)| key.span()).or_else(|| item.span());
        if !KNOWN.split(", ").any(|known| known == key) {
            report(key, place, &format!("unknown setting; known are {KNOWN}"));
            continue;
        }
        if let Err(what) = set(&mut context, key, item) {
            report(key, place, &what);
        }
    }
    if context.server.is_empty() && !table.contains_key("server") {
        report("server", None, "is required: the address of a coordinator, several with commas between them");
    }
    context
}

/// Whether an address is that of a socket, by a path that depends on the working directory.
fn is_relative_socket(address: &str) -> bool {
    socket::path_of(address.trim()).is_some_and(Path::is_relative)
}

/// Sets one of the settings that are known.
fn set(context: &mut NamedContext, key: &str, item: &Item) -> Result<(), String> {
    let text = item.as_str().map(str::to_owned).ok_or("must be a text in quotes")?;
    if text.is_empty() {
        return Err("is empty: take it away, or give it a value".to_owned());
    }
    let file = || {
        let path = PathBuf::from(&text);
        let hint = "must be an absolute path: it means the same file wherever a command is called";
        if path.is_absolute() { Ok(Some(path)) } else { Err(hint.to_owned()) }
    };
    match key {
        "server" if text.split(',').any(is_relative_socket) => {
            return Err(
                "must have absolute paths after `unix:`: they mean the same sockets wherever a command is called"
                    .to_owned(),
            );
        }
        "server" => context.server = text,
        "cluster" => {
            context.cluster = Some(text.parse().map_err(|e: common::cluster::InvalidClusterRef| e.to_string())?)
        }
        "tenant" => context.tenant = Some(Name::new(&text).map_err(|e| e.to_string())?),
        "tls_ca" => context.tls.ca = file()?,
        "tls_cert" => context.tls.cert = file()?,
        "tls_key" => context.tls.key = file()?,
        "tls_crl" => context.tls.crl = file()?,
        "tls_server_name" => context.tls.server_name = Some(text),
        "tls_servers" => context.tls.servers = text.split(',').map(|name| name.trim().to_owned()).collect(),
        "token_file" => context.token_file = file()?,
        _ => return Err("is not known".to_owned()),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
