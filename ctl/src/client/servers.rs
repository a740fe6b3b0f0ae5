//! Addresses and connections of the coordinators, and which of them is asked first.
//!
//! Any coordinator answers any call, directly or by forwarding it: calls stay with the coordinator that answered last
//! and fail over to the next when it does not answer.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use runtime::tls::{self, AddressError, ClientTls};
use tonic::Status;
use tonic::transport::Channel;

use super::{DEFAULT_SERVER, read_endpoint};
use crate::error::{Exit, Failure};

/// Timeout of a connection attempt.
const CONNECT: Duration = Duration::from_secs(2);
/// Keep-alive: interval of pings and how long one may stay unanswered before the server counts as gone, early enough to
/// ask another one within the default timeout of a call.
const ALIVE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(3));

/// Finds the servers: flag or environment, else the endpoint file of a cluster that `rugctl up` runs in this folder or
/// a parent, else [`DEFAULT_SERVER`].
///
/// An address without a scheme gets the one that matches `secure`. Endpoint file and default are clusters on this
/// machine, which use no TLS.
pub(crate) fn find_servers(named: Option<&str>, secure: bool, folder: &Path) -> ServerAddresses {
    let names: Vec<_> = named.unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if !names.is_empty() {
        let scheme = if secure { "https" } else { "http" };
        let full = |name: &str| if name.contains("://") { name.to_owned() } else { format!("{scheme}://{name}") };
        return ServerAddresses { addresses: names.into_iter().map(full).collect(), local: false };
    }
    let files = folder.ancestors().map(|dir| dir.join(".rug").join("endpoint"));
    let address = files.into_iter().find_map(|file| read_endpoint(&file)).unwrap_or_else(|| DEFAULT_SERVER.to_owned());
    ServerAddresses { addresses: vec![address], local: true }
}

/// Addresses of servers and how they were found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServerAddresses {
    /// Their addresses, with schemes; at least one.
    pub(crate) addresses: Vec<String>,
    /// Found on this machine rather than configured.
    pub(crate) local: bool,
}

/// Connections to servers, opened on first use.
#[derive(Debug)]
pub(super) struct Servers {
    all: Vec<ServerChannel>,
    /// Index of the server to ask first, modulo the number of servers.
    turn: AtomicUsize,
}

#[derive(Clone, Debug)]
struct ServerChannel {
    address: String,
    channel: Channel,
}

impl Servers {
    /// # Errors The list is empty, an entry is no address, or it does not match `tls`.
    pub(super) fn new<A: AsRef<str>>(addresses: &[A], tls: Option<&ClientTls>) -> Result<Self, Failure> {
        let all =
            addresses.iter().map(|address| ServerChannel::new(address.as_ref(), tls)).collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() {
            return Err(Failure::usage("no address of a server is given"));
        }
        Ok(Self { all, turn: AtomicUsize::new(0) })
    }

    /// One value for each server, sharing its connection.
    pub(super) fn each(&self) -> impl Iterator<Item = Self> + '_ {
        self.all.iter().map(|one| Self { all: vec![one.clone()], turn: AtomicUsize::new(0) })
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// The server to ask first, with the index it was chosen by.
    pub(super) fn turn(&self) -> usize {
        self.turn.load(Ordering::Relaxed)
    }

    pub(super) fn channel(&self, turn: usize) -> Channel {
        self.at(turn).channel.clone()
    }

    pub(super) fn address(&self, turn: usize) -> &str {
        &self.at(turn).address
    }

    fn at(&self, turn: usize) -> &ServerChannel {
        &self.all[turn % self.all.len()]
    }

    /// Makes the next server the first one, unless another call has done so since `turn`.
    pub(super) fn pass(&self, turn: usize) {
        let _ = self.turn.compare_exchange(turn, turn.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The failure when no server answered, from the last error of each.
    pub(super) fn unreachable(&self, errors: &[(usize, Status)]) -> Failure {
        let reasons: Vec<_> = errors.iter().map(|(turn, status)| (self.address(*turn), reason(status))).collect();
        let hint = if reasons.iter().all(|(_, reason)| reason.contains("Connection refused")) {
            "\nstart a cluster with `rugctl up`, or name its address with --server or RUG_SERVER"
        } else {
            ""
        };
        let text = match reasons.as_slice() {
            [(address, reason)] => format!("no answer from {address}: {reason}"),
            several => several
                .iter()
                .fold("no answer".to_owned(), |text, (address, reason)| format!("{text}\n  {address}: {reason}")),
        };
        Failure::new(Exit::Unreachable, text + hint)
    }
}

impl ServerChannel {
    fn new(address: &str, tls: Option<&ClientTls>) -> Result<Self, Failure> {
        let endpoint = tls::endpoint(address, tls)
            .map_err(|error| match error {
                AddressError::Malformed(_) => {
                    Failure::usage(format!("`{address}` is not the address of a server, such as {DEFAULT_SERVER}"))
                }
                AddressError::NoTls(_) => Failure::usage(format!(
                    "{address}: https:// needs certificates: --tls-ca, --tls-cert and --tls-key, or RUG_TLS_CA, RUG_TLS_CERT and RUG_TLS_KEY"
                )),
                AddressError::Plain(_) => Failure::usage(format!(
                    "{address}: certificates are given (--tls-ca or RUG_TLS_CA), and http:// would not use them; write https://"
                )),
            })?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(ALIVE.0)
            .keep_alive_timeout(ALIVE.1)
            .keep_alive_while_idle(true);
        Ok(Self { address: address.to_owned(), channel: tls::connect_lazy(&endpoint, tls) })
    }
}

fn reason(status: &Status) -> String {
    if let Some(refusal) = tls::refusal(status) {
        return refusal;
    }
    let mut reason = status.message().to_owned();
    // The transport's message ("tcp connect error") hides the operating system's at the end of the chain.
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        reason = error.to_string();
        source = error.source();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_come_from_flags_or_from_a_parent_folder() {
        let top = tempfile::tempdir().expect("a folder");
        let deep = top.path().join("a/b");
        std::fs::create_dir_all(&deep).expect("folders");
        std::fs::create_dir(top.path().join(".rug")).expect("folder");
        std::fs::write(top.path().join(".rug/endpoint"), "http://127.0.0.1:7999\n").expect("file");
        let found = |addresses: &[&str], local| ServerAddresses {
            addresses: addresses.iter().map(ToString::to_string).collect(),
            local,
        };
        assert_eq!(find_servers(None, false, &deep), found(&["http://127.0.0.1:7999"], true));
        assert_eq!(find_servers(Some(" ,"), true, &deep), found(&["http://127.0.0.1:7999"], true));
        assert_eq!(find_servers(Some("10.0.0.1:1"), false, &deep), found(&["http://10.0.0.1:1"], false));
        let several = found(&["https://a:1", "https://b:2", "http://c:3"], false);
        assert_eq!(find_servers(Some("a:1, b:2,,http://c:3"), true, &deep), several);
        std::fs::write(top.path().join(".rug/endpoint"), "").expect("file");
        assert_eq!(find_servers(None, true, &deep), found(&[DEFAULT_SERVER], true));
    }

    #[tokio::test]
    async fn concurrent_failures_switch_servers_once() {
        let servers = Servers::new(&["http://a:1", "http://b:2"], None).expect("addresses");
        let turn = servers.turn();
        servers.pass(turn);
        servers.pass(turn);
        assert_eq!(servers.address(servers.turn()), "http://b:2");
        servers.pass(servers.turn());
        assert_eq!(servers.address(servers.turn()), "http://a:1");
        assert_eq!(Servers::new::<&str>(&[], None).expect_err("none").exit, Exit::Usage);
        assert_eq!(Servers::new(&["http://a:1", "no address"], None).expect_err("odd").exit, Exit::Usage);
    }
}
