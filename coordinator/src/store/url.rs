//! URLs of stores.
//!
//! `sqlite:<path>`, `postgres://user:password@host:port/database?sslmode=verify-full&sslrootcert=/ca.pem` (also
//! `postgresql://`), `mysql://...` (also `mariadb://`). Parameters are those of sqlx; unknown ones are refused, so that
//! a misspelt `sslmode` does not go unnoticed. URLs in logs, errors and messages go through [`shown_url`].

use std::path::PathBuf;

use sea_orm::sqlx::mysql::MySqlConnectOptions;
use sea_orm::sqlx::postgres::PgConnectOptions;
use url::{ParseError, Url};

use super::error::Error;

/// Parameters of `postgres://`, besides `options[...]`.
const POSTGRES: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];
/// Parameters of `mysql://`. Character set, collation and time zone are set by the store.
const MYSQL: [&str; 10] = [
    "sslmode",
    "ssl-mode",
    "sslca",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "socket",
    "statement-cache-capacity",
];

/// A parsed URL.
#[derive(Clone)]
pub(super) enum Address {
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
    /// MariaDB as well.
    MySql(Box<MySqlConnectOptions>),
}

/// Parses a URL.
///
/// # Errors
/// [`Error::Url`], without the password.
pub(super) fn parse(url: &str) -> Result<Address, Error> {
    let refuse = |reason: String| Error::Url { url: shown_url(url), reason };
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        "sqlite" => {
            let rest = &url["sqlite:".len()..];
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() || path == ":memory:" || path.contains('\0') {
                return Err(refuse("a path must follow `sqlite:`".to_owned()));
            }
            Ok(Address::Sqlite(PathBuf::from(path)))
        }
        "postgres" | "postgresql" => {
            let parsed = server(url, |key| POSTGRES.contains(&key) || is_server_option(key)).map_err(refuse)?;
            let named_in_query = parsed.query_pairs().any(|(key, value)| key == "dbname" && !value.is_empty());
            if !named_in_query && parsed.path().trim_matches('/').is_empty() {
                return Err(refuse("it must name a database".to_owned()));
            }
            let options: PgConnectOptions = url.parse().map_err(|_| refuse(unusable(&parsed)))?;
            Ok(Address::Postgres(Box::new(options)))
        }
        "mysql" | "mariadb" => {
            let parsed = server(url, |key| MYSQL.contains(&key)).map_err(refuse)?;
            if parsed.path().trim_matches('/').is_empty() {
                return Err(refuse("it must name a database".to_owned()));
            }
            let options: MySqlConnectOptions = url.parse().map_err(|_| refuse(unusable(&parsed)))?;
            Ok(Address::MySql(Box::new(options)))
        }
        _ => Err(refuse("it must begin with `sqlite:`, `postgres://`, `mysql://` or `mariadb://`".to_owned())),
    }
}

fn server(url: &str, known: impl Fn(&str) -> bool) -> Result<Url, String> {
    if url.contains('#') {
        return Err("`#` ends a URL: within a password it must be written `%23`".to_owned());
    }
    let parsed = Url::parse(url).map_err(|problem| unreadable(problem).to_owned())?;
    if parsed.cannot_be_a_base() {
        return Err("`//` must follow its scheme".to_owned());
    }
    match parsed.query_pairs().find(|(key, _)| !known(key)) {
        // With an `@` after it, it is a part of a password.
        Some(_) if parsed.query().is_some_and(|query| query.contains('@')) => {
            Err("a password must have `%3F` in place of `?`, `%2F` in place of `/`, `%40` in place of `@`".to_owned())
        }
        // What has no form of a name may be anything, such as a password with a `?` or `&`.
        Some((key, _)) if is_name(&key) => Err(format!("parameter `{key}` is unknown")),
        Some(_) => Err("it has a parameter that is unknown".to_owned()),
        None => Ok(parsed),
    }
}

/// What is wrong with a text that is no URL. No part of it is quoted, which may be one of a password.
fn unreadable(problem: ParseError) -> &'static str {
    match problem {
        ParseError::EmptyHost => "it names no host",
        ParseError::InvalidPort => {
            "what follows the `:` after the host is not a port, 1 to 65535; a password must have `%2F` in place of `/`, \
             `%3F` in place of `?`"
        }
        ParseError::InvalidIpv4Address | ParseError::InvalidIpv6Address => {
            "its host is not an address; one of IPv6 belongs in brackets, such as `[::1]`"
        }
        ParseError::IdnaError | ParseError::InvalidDomainCharacter => "its host has a character that no name has",
        _ => "it is not a URL such as `postgres://user:password@host:5432/database`",
    }
}

fn is_name(key: &str) -> bool {
    (1..=40).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'-' | b'_'))
}

/// Whether a parameter is a setting of the PostgreSQL server: `options[statement_timeout]`, `options[TimeZone]`.
fn is_server_option(key: &str) -> bool {
    let setting = key.strip_prefix("options[").and_then(|rest| rest.strip_suffix(']'));
    setting.is_some_and(|setting| {
        setting.len() <= 63 && setting.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
    })
}

/// Why a URL is refused whose parameters are all known. sqlx's own words quote the value.
fn unusable(url: &Url) -> String {
    let shown = |key: &str| if key.starts_with("options[") { "options[...]".to_owned() } else { key.to_owned() };
    let names: Vec<_> = url.query_pairs().map(|(key, _)| shown(&key)).collect();
    match &names[..] {
        [] => "it is invalid".to_owned(),
        names => format!("the value of one of its parameters cannot be used: {}", names.join(", ")),
    }
}

/// Reads a URL, and answers how it is shown.
///
/// # Errors
/// What is wrong with it, as it is shown.
pub fn check(url: &str) -> Result<String, String> {
    parse(url).map(|_| shown_url(url)).map_err(|error| error.to_string())
}

/// A store's URL without credentials: without user, password and parameters (one of them may be a password). Of an
/// invalid URL only the scheme is kept.
#[must_use]
pub fn shown_url(url: &str) -> String {
    if url.starts_with("sqlite:") {
        // Somebody may have changed the scheme alone.
        return match url.split_once("//").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
            Some((scheme, rest)) => format!("{scheme}//...@{rest}"),
            None => url.to_owned(),
        };
    }
    let Some((scheme, _)) = url.split_once(':') else { return "(no url)".to_owned() };
    match Url::parse(url) {
        // An `@` after the host is the rest of a password that contains `/`, `?` or `#`; what stands before it another part.
        Ok(parsed) if !parsed.cannot_be_a_base() && !after_host(&parsed).contains('@') => {
            let port = parsed.port().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}://{}{port}{}", parsed.scheme(), parsed.host_str().unwrap_or(""), parsed.path())
        }
        // The text before the first colon may be anything, such as a user's name.
        _ if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => format!("{scheme}:..."),
        _ => "...".to_owned(),
    }
}

/// The part of a URL that follows host and port.
fn after_host(url: &Url) -> &str {
    &url[url::Position::AfterPort..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        match parse(url) {
            Ok(_) => panic!("{url} was understood"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_scheme_is_parsed() {
        assert!(matches!(parse("sqlite:///var/rug.db"), Ok(Address::Sqlite(path)) if path.ends_with("rug.db")));
        for url in [
            "postgres://rug:s@db:5433/rug?sslmode=verify-full&sslrootcert=/ca.pem",
            "postgresql:///rug?host=/run/postgresql",
            "postgres://db?dbname=rug&options[search_path]=rug",
        ] {
            assert!(matches!(parse(url), Ok(Address::Postgres(_))), "{url}");
        }
        for url in ["mysql://rug@db/rug?ssl-mode=required", "mariadb://rug:s@[::1]:3307/rug?socket=/run/m.sock"] {
            assert!(matches!(parse(url), Ok(Address::MySql(_))), "{url}");
        }
    }

    #[test]
    fn errors_do_not_contain_the_password() {
        for (url, reason) in [
            ("postgres://rug:hush@db", "must name a database"),
            ("postgres://rug:hush@db/rug?sslmod=require", "parameter `sslmod` is unknown"),
            ("postgres://rug:hush@db/rug?sslmode=hush", "sslmode"),
            ("postgres://rug:x?hush=hush@db/rug", "is not a port"),
            ("postgres://rug:1?hush=hush@db/rug", "must"),
            ("postgres://rug:hush@db:port/rug", "is not a port"),
            ("postgres://rug:hush@[::1/rug", "not an address"),
            ("postgres://rug:hush@:5432/rug", "names no host"),
            ("mysql://rug:hush@a b/rug", "has a character"),
            ("postgres:rug:hush@db/rug", "`//` must follow"),
            ("postgres://db/rug?sslmode=x&options[a://rug:hush@db/rug?sslmode", "a password must have"),
            ("postgres://db/rug?sslmode=x&options[hush]=1", "cannot be used: sslmode, options[...]"),
            ("mysql://rug:hush@db", "must name a database"),
            ("mysql://rug:hush@db/rug?charset=latin1", "parameter `charset` is unknown"),
            ("rug:hush@db", "must begin with"),
            ("oracle://rug:hush@db/rug", "must begin with"),
            ("postgres://rug:hush#1@db/rug", "`%23`"),
            ("postgres://rug@db/rug?sslmode=no&options[hush]=1", "options[...]"),
            ("mysql://rug:77#hush@db/rug", "`%23`"),
            ("hush", "must begin with"),
            ("sqlite:", "a path must follow"),
        ] {
            let error = refused(url);
            assert!(!error.contains("hush"), "{error}");
            assert!(error.replace('_', "").contains(reason), "{url}: {error}");
        }
    }

    #[test]
    fn a_shown_url_has_no_credentials() {
        for (url, shown) in [
            ("sqlite:/var/rug.db", "sqlite:/var/rug.db"),
            ("sqlite://rug:hush@db/rug", "sqlite://...@db/rug"),
            ("postgres://rug:hush@db:5433/rug?password=hush", "postgres://db:5433/rug"),
            ("mariadb://rug:h%40sh@[::1]/rug", "mariadb://[::1]/rug"),
            ("postgresql:///rug?host=/run/postgresql", "postgresql:///rug"),
            ("postgres://rug:hu#sh@db/rug", "postgres:..."),
            ("postgres://rug:77#sh@db/rug", "postgres:..."),
            ("postgres://rug:77?x=sh@db/rug", "postgres:..."),
        ] {
            assert_eq!(shown_url(url), shown);
        }
        assert!(!shown_url("postgres://rug:hush@db:port/rug").contains("hush"));
        assert!(!shown_url("postgres://rug:12/sh@db/rug").contains("sh@"));
    }
}
