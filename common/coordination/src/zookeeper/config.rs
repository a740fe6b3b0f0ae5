//! The URL of ZooKeeper with its options, in the form python-tooz reads, so that one URL serves both.
//!
//! As in tooz, user and password are taken as they stand (no `%` escapes), the last `@` ends them, and more hosts can be
//! given by the option `hosts`, whose value may end in a chroot. Three things differ: a path in the URL is a chroot (tooz
//! drops it); an option nobody knows, or one that cannot be honoured, is an error instead of being ignored; and so is a URL
//! without a host, which for tooz is whatever listens on this machine.
//!
//! The password appears in nothing that is shown, logged or formatted.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::form_urlencoded;

use super::layout::Layout;
use crate::{Error, url as settings};

/// Every option, for messages.
const KNOWN: &str = "timeout, namespace, hosts, use_ssl, verify_certs, ca, certfile, keyfile, keyfile_password, \
                     randomize_hosts, handler";

/// Session timeout that is asked for when the URL names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(6);

/// Bounds of the session timeout: below, a scheduling hiccup ends a session; above, a failover takes minutes and the
/// lease would outgrow [`super::MAX_LEASE`].
const TIMEOUT_SECS: std::ops::RangeInclusive<f64> = 0.5..=100.0;

/// Where ZooKeeper is and how to speak to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// `host:port` of each server.
    pub(super) hosts: Vec<String>,
    /// The names of all nodes.
    pub(super) layout: Layout,
    /// User and password of the `digest` scheme, with the ACL that goes with them.
    pub(super) credentials: Option<Credentials>,
    /// Files for TLS; plain text when absent.
    pub(super) tls: Option<Tls>,
    /// Session timeout to ask for; the server may grant another.
    pub(super) timeout: Duration,
    /// How long to wait, beyond the session timeout, for nodes an earlier life left behind.
    pub(super) join_timeout: Duration,
}

/// What proves who we are.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    /// As the `digest` scheme takes it: `user:password`.
    pub(super) digest: String,
}

/// PEM files. They are read anew for each session, and every minute while one lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tls {
    /// Authorities that may sign the servers' certificates.
    pub(super) ca: PathBuf,
    /// Our certificate and its key, for servers that ask for one.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("hosts", &self.hosts)
            .field("layout", &self.layout)
            .field("credentials", &self.credentials.is_some())
            .field("tls", &self.tls)
            .field("timeout", &self.timeout)
            .field("join_timeout", &self.join_timeout)
            .finish()
    }
}

impl Config {
    /// Reads the URL.
    ///
    /// # Errors
    /// [`Error::Refused`] with what is wrong; it names options, never credentials.
    pub fn parse(settings: &settings::Config) -> Result<Self, Error> {
        parse(settings).map_err(|problem| Error::Refused(without_credentials(&settings.url, problem)))
    }
}

/// The problem, unless it may quote a part of a password: one that has a `/` or `?` ends the authority too early.
fn without_credentials(url: &str, problem: String) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    match rest.find(['/', '?']) {
        Some(end) if rest[end..].contains('@') => {
            "it cannot be read; user and password must not have a `/` or `?`".to_owned()
        }
        _ => problem,
    }
}

/// The parts of a URL, none of them decoded.
struct UrlParts<'a> {
    userinfo: Option<&'a str>,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> UrlParts<'a> {
    fn of(url: &'a str) -> Result<Self, String> {
        // `kazoo` is tooz's other name for the same driver.
        let rest = url
            .strip_prefix("zookeeper://")
            .or_else(|| url.strip_prefix("kazoo://"))
            .ok_or("it has to be `embedded` or to begin with `zookeeper://`")?;
        if rest.contains('#') {
            return Err("it has a fragment (`#`), which means nothing here".to_owned());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (userinfo, hosts) = match authority.rsplit_once('@') {
            Some((userinfo, hosts)) => (Some(userinfo), hosts),
            None => (None, authority),
        };
        Ok(Self { userinfo, hosts, path, query })
    }
}

/// Options as they are read, before they are put together.
#[derive(Default)]
struct Options {
    timeout: Option<Duration>,
    namespace: Option<String>,
    hosts: Vec<String>,
    chroot: Option<String>,
    use_ssl: bool,
    ca: Option<PathBuf>,
    certfile: Option<PathBuf>,
    keyfile: Option<PathBuf>,
}

impl Options {
    fn read(query: &str) -> Result<Self, String> {
        let mut options = Self::default();
        let mut seen = Vec::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            // As in tooz, an option without a value is as if it were not there.
            if value.is_empty() {
                continue;
            }
            if key != "hosts" && seen.contains(&key) {
                return Err(format!("the option `{key}` is given twice"));
            }
            options.set(&key, &value)?;
            seen.push(key);
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "timeout" => self.timeout = Some(seconds(value)?),
            "namespace" => self.namespace = Some(value.to_owned()),
            "hosts" => {
                let (hosts, chroot) = value.find('/').map_or((value, ""), |at| value.split_at(at));
                self.hosts.extend(split_hosts(hosts)?);
                if !chroot.trim_end_matches('/').is_empty() {
                    self.chroot = Some(chroot.to_owned());
                }
            }
            "use_ssl" => self.use_ssl = truth(key, value)?,
            "ca" => self.ca = Some(value.into()),
            "certfile" => self.certfile = Some(value.into()),
            "keyfile" => self.keyfile = Some(value.into()),
            "verify_certs" if truth(key, value)? => {}
            "verify_certs" => return Err("`verify_certs` cannot be off: certificates are always verified".to_owned()),
            "keyfile_password" => {
                return Err("`keyfile_password` is not supported: give a key file that is not encrypted".to_owned());
            }
            // Hosts are always tried in random order, and the handler is a matter of Python.
            "randomize_hosts" => _ = truth(key, value)?,
            "handler" => {}
            _ => return Err(format!("the option `{key}` is unknown; known are {KNOWN}")),
        }
        Ok(())
    }

    fn tls(&self) -> Result<Option<Tls>, String> {
        if !self.use_ssl {
            return match [("ca", &self.ca), ("certfile", &self.certfile), ("keyfile", &self.keyfile)]
                .iter()
                .find(|(_, file)| file.is_some())
            {
                Some((name, _)) => Err(format!("`{name}` is given without `use_ssl=true`")),
                None => Ok(None),
            };
        }
        let ca = self.ca.clone().ok_or("`use_ssl` needs `ca`, a PEM file of the authorities to trust")?;
        let identity = match (&self.certfile, &self.keyfile) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            // kazoo, too, takes the key from the certificate's file when none is named.
            (Some(cert), None) => Some((cert.clone(), cert.clone())),
            (None, Some(_)) => return Err("`keyfile` is given without `certfile`".to_owned()),
            (None, None) => None,
        };
        Ok(Some(Tls { ca, identity }))
    }
}

fn parse(settings: &settings::Config) -> Result<Config, String> {
    let parts = UrlParts::of(&settings.url)?;
    let options = Options::read(parts.query)?;
    let mut hosts = split_hosts(parts.hosts)?;
    hosts.extend(options.hosts.iter().cloned());
    if hosts.is_empty() {
        return Err("it names no host; write `zookeeper://host:2181`".to_owned());
    }
    let path = Some(parts.path.trim_end_matches('/')).filter(|p| !p.is_empty());
    let chroot = match (path, options.chroot.as_deref().map(|p| p.trim_end_matches('/'))) {
        (Some(a), Some(b)) if a != b => return Err(format!("it has two chroots, `{a}` and `{b}`")),
        (a, b) => a.or(b).unwrap_or("").to_owned(),
    };
    let layout = Layout::new(&chroot, options.namespace.as_deref(), &settings.group)?;
    Ok(Config {
        hosts,
        layout,
        credentials: credentials(parts.userinfo)?,
        tls: options.tls()?,
        timeout: options.timeout.unwrap_or(DEFAULT_TIMEOUT),
        join_timeout: settings.join_timeout,
    })
}

fn credentials(userinfo: Option<&str>) -> Result<Option<Credentials>, String> {
    let Some(userinfo) = userinfo else { return Ok(None) };
    match userinfo.split_once(':') {
        // tooz would go on without credentials, and everything would be open to anyone.
        None | Some(("", _) | (_, "")) => Err("before `@` it needs both a user and a password".to_owned()),
        Some(_) => Ok(Some(Credentials { digest: userinfo.to_owned() })),
    }
}

fn split_hosts(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',')
        .enumerate()
        .map(|(i, host)| host_and_port(host.trim()).map_err(|why| format!("host {}: {why}", i + 1)))
        .collect()
}

fn host_and_port(text: &str) -> Result<String, String> {
    // Not quoted: without an `@` it may be user and password.
    let wrong = |why: &str| Err(format!("is not a host with a port: {why}"));
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (format!("[{host}]"), "2181"),
        Some((host, rest)) => match rest.strip_prefix(':') {
            Some(port) => (format!("[{host}]"), port),
            None => return wrong("what follows `]` is not a port"),
        },
        None => match text.split_once(':') {
            Some((_, port)) if port.contains(':') => return wrong("an IPv6 address belongs in brackets"),
            Some((host, port)) => (host.to_owned(), port),
            None => (text.to_owned(), "2181"),
        },
    };
    if host.is_empty() || host == "[]" {
        return wrong("the host is empty");
    }
    if !host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:[]%".contains(c)) {
        return wrong("the host has a character that no name has");
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(format!("{host}:{port}")),
        _ => wrong("the port is not between 1 and 65535"),
    }
}

fn seconds(value: &str) -> Result<Duration, String> {
    match value.parse::<f64>() {
        Ok(secs) if TIMEOUT_SECS.contains(&secs) => Ok(Duration::from_secs_f64(secs)),
        _ => Err(format!(
            "`timeout` has to be a number of seconds from {} to {}",
            TIMEOUT_SECS.start(),
            TIMEOUT_SECS.end()
        )),
    }
}

/// Truth as oslo.utils reads it; what it would silently take for false is an error.
fn truth(key: &str, value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Ok(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Ok(false),
        _ => Err(format!("`{key}` has to be true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> settings::Config {
        settings::Config { url: url.to_owned(), ..settings::Config::default() }
    }

    fn read(url: &str) -> Result<Config, String> {
        Config::parse(&settings(url)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_as_tooz_has_it_is_read() {
        let config = read("zookeeper://rug:s3c:r%40t@h1:2181,h2:2182,[::1]/a/b?timeout=2.5&namespace=other&handler=x")
            .expect("valid");
        assert_eq!(config.hosts, ["h1:2181", "h2:2182", "[::1]:2181"]);
        assert_eq!(config.credentials.as_ref().expect("given").digest, "rug:s3c:r%40t");
        assert_eq!(config.timeout, Duration::from_millis(2500));
        assert_eq!(config.layout.workers(), "/a/b/other/rug.workers");
        assert_eq!(config.layout.term(), "/a/b/rug/rug/term");
    }

    #[test]
    fn what_is_not_given_is_as_in_tooz_but_for_the_timeout() {
        for url in ["zookeeper://localhost", "zookeeper://localhost/", "kazoo://localhost"] {
            let config = read(url).expect("valid");
            assert_eq!(config.hosts, ["localhost:2181"], "{url}");
            assert_eq!(config.timeout, Duration::from_secs(6));
            assert_eq!(config.layout.workers(), "/tooz/rug.workers");
            assert!(config.credentials.is_none() && config.tls.is_none());
        }
    }

    #[test]
    fn the_option_hosts_adds_hosts_and_may_end_in_a_chroot() {
        let config = read("zookeeper://h1/?hosts=h2:1,h3/up&hosts=h4").expect("valid");
        assert_eq!(config.hosts, ["h1:2181", "h2:1", "h3:2181", "h4:2181"]);
        assert_eq!(config.layout.coordinators(), "/up/tooz/rug.coordinators");
        assert!(read("zookeeper://h1/down?hosts=h2/up").expect_err("two chroots").contains("two chroots"));
    }

    #[test]
    fn tls_takes_the_files_that_kazoo_takes() {
        let config = read("zookeeper://h1?use_ssl=True&ca=/c.pem&certfile=/p.pem&verify_certs=1").expect("valid");
        let identity = Some(("/p.pem".into(), "/p.pem".into()));
        assert_eq!(config.tls, Some(Tls { ca: "/c.pem".into(), identity }));
        for (url, told) in [
            ("zookeeper://h1?use_ssl=true", "`ca`"),
            ("zookeeper://h1?ca=/c.pem", "use_ssl=true"),
            ("zookeeper://h1?use_ssl=1&ca=/c&keyfile=/k", "certfile"),
            ("zookeeper://h1?use_ssl=1&ca=/c&verify_certs=false", "always verified"),
            ("zookeeper://h1?use_ssl=1&ca=/c&keyfile_password=x", "not encrypted"),
            ("zookeeper://h1?use_ssl=maybe", "true or false"),
        ] {
            assert!(read(url).expect_err(url).contains(told), "{url}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_name() {
        for (url, told) in [
            ("redis://h1", "begin with `zookeeper://`"),
            ("zookeeper://h1?timeuot=3", "`timeuot` is unknown; known are timeout, namespace"),
            ("zookeeper://h1?timeout=soon", "`timeout`"),
            ("zookeeper://h1?timeout=nan", "`timeout`"),
            ("zookeeper://h1?timeout=0", "`timeout`"),
            ("zookeeper://h1?timeout=3&timeout=4", "twice"),
            ("zookeeper://h1:0", "port"),
            ("zookeeper://h1:99999", "port"),
            ("zookeeper://::1", "brackets"),
            ("zookeeper://:2181", "empty"),
            ("zookeeper://h1,,h2", "host 2: is not a host with a port: the host is empty"),
            ("zookeeper://h1,", "empty"),
            ("zookeeper://h1?hosts=h2,,h3", "empty"),
            ("zookeeper://", "names no host"),
            ("zookeeper:///rug", "names no host"),
            ("kazoo://?timeout=3", "names no host"),
            ("zookeeper://user@h1", "both a user and a password"),
            ("zookeeper://user:@h1", "both a user and a password"),
            ("zookeeper://h1//a", "chroot"),
            ("zookeeper://h1/a/../b", "chroot"),
            ("zookeeper://h1?namespace=a/b", "namespace"),
            ("zookeeper://h1#x", "fragment"),
        ] {
            let error = read(url).expect_err(url);
            assert!(error.contains(told), "{url}: {error}");
        }
    }

    #[test]
    fn a_group_that_tooz_cannot_carry_is_refused() {
        for group in ["", "a/b", "lead er", "ä", "locks"] {
            let settings = settings::Config { group: group.to_owned(), ..settings("zookeeper://h1") };
            assert!(parse(&settings).expect_err(group).contains("group"), "{group}");
        }
    }

    #[test]
    fn a_problem_quotes_no_part_of_a_password() {
        for url in [
            "zookeeper://rug:hush",
            "zookeeper://rug:hush:hush@h1:port",
            "zookeeper://rug:hush/hush@h1",
            "zookeeper://rug:x?hush=hush@h1",
            "zookeeper://h1?timeout=hush",
            "zookeeper://h1?use_ssl=hush",
        ] {
            let error = read(url).expect_err(url);
            assert!(!error.contains("hush"), "{url}: {error}");
        }
    }

    #[test]
    fn nothing_that_is_shown_has_the_password() {
        let config = read("zookeeper://rug:hidden@h1").expect("valid");
        assert!(!format!("{config:?}").contains("hidden"));
        let debug = format!("{:?}", settings("zookeeper://rug:hidden@h1"));
        assert!(!debug.contains("hidden"), "{debug}");
    }
}
