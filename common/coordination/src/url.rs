//! Settings of coordination: a URL and its options, as python-tooz has them. What a URL stands for is in `connect`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::form_urlencoded;

/// Settings of coordination, the same for coordinators and workers of a cluster.
///
/// The URL may hold a password: `Debug` and [`Config::shown`] leave it out, serialization does not.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `embedded`, or `zookeeper://[user:password@]host:port[,host:port...][/chroot][?timeout=6&namespace=tooz...]`.
    /// Options, as python-tooz names them: `timeout` (session timeout in seconds, 0.5 to 100; a shorter one finds the
    /// dead sooner and fences the slow more often), `namespace`, `hosts`, and for TLS `use_ssl`, `ca`, `certfile`,
    /// `keyfile`.
    pub url: String,
    /// Name of the cluster: its groups are `<group>.workers` and `<group>.coordinators`.
    pub group: String,
    /// How long a member waits for nodes that an earlier life under its name left behind, beyond the session timeout,
    /// before it says that the name is taken.
    #[serde(with = "humantime_serde")]
    #[cfg_attr(feature = "schema", schemars(with = "common::schema::DurationText"))]
    pub join_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { url: "embedded".to_owned(), group: "rug".to_owned(), join_timeout: Duration::from_secs(10) }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &self.shown())
            .field("group", &self.group)
            .field("join_timeout", &self.join_timeout)
            .finish()
    }
}

impl Config {
    /// Whether the coordinator itself is the authority.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.url == "embedded"
    }

    /// The URL without credentials, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        without_credentials(&self.url)
    }
}

/// The URL with `***` in place of user and password.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (before_query, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
    let (authority, path) = before_query.split_at(before_query.find('/').unwrap_or(before_query.len()));
    let hosts = match authority.rsplit_once('@') {
        Some((_, hosts)) => format!("***@{hosts}"),
        // A password with `/` or `?` in it would be cut there; what an `@` follows is not shown.
        None if rest.contains('@') => return format!("{scheme}://***"),
        None => authority.to_owned(),
    };
    let mut shown = format!("{scheme}://{hosts}{path}");
    for (at, (key, value)) in form_urlencoded::parse(query.trim_start_matches('?').as_bytes()).enumerate() {
        let value = if key == "keyfile_password" { "***".into() } else { value };
        shown.push(if at == 0 { '?' } else { '&' });
        shown.push_str(&format!("{key}={value}"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_has_the_password() {
        let url = "zookeeper://rug:hidden@h1:2181/a?timeout=3&keyfile_password=hidden";
        assert_eq!(without_credentials(url), "zookeeper://***@h1:2181/a?timeout=3&keyfile_password=***");
        assert_eq!(without_credentials("zookeeper://rug:hid/den@h1"), "zookeeper://***");
        assert_eq!(without_credentials("embedded"), "embedded");
    }
}
