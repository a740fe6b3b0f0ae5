//! Addresses and connections of the coordinators, and which of them is asked first.
//!
//! Any coordinator answers any call, directly or by forwarding it: calls stay with the coordinator that answered last
//! and fail over to the next when it does not answer.

use std::os::unix::fs::{FileTypeExt, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::cluster::ClusterRef;
use runtime::channel::{AddressError, Target};
use runtime::socket::{self, TrustedServer};
use runtime::tls::{self, ClientTls};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::DEFAULT_SOCKET;
use super::endpoint::{judge_folder, judge_owner, read_endpoint};
use crate::error::{Exit, Failure};
use crate::processes;

/// Timeout of a connection attempt.
const CONNECT: Duration = Duration::from_secs(2);
/// Keep-alive: interval of pings and how long one may stay unanswered before the server counts as gone, early enough to
/// ask another one within the default timeout of a call.
const ALIVE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(3));

/// The servers at these addresses, separated by commas. An address without a scheme gets the one that matches `secure`. `place`
/// is what named them, for messages.
///
/// # Errors
/// What was named is empty, or has a user or a password.
pub(crate) fn named_servers(named: &str, secure: bool, place: &str) -> Result<ServerAddresses, Failure> {
    if named.trim().is_empty() {
        return Err(Failure::usage(format!(
            "{place} is empty: give it an address, or take it away to use the cluster of this folder"
        )));
    }
    let names: Vec<_> = named.split(',').map(str::trim).collect();
    if let Some(at) = names.iter().position(|name| name.is_empty()) {
        return Err(Failure::usage(format!(
            "{place}: address {} of {} is empty: two commas, or one at an end",
            at + 1,
            names.len()
        )));
    }
    // Not quoted: what stands before the `@` may be a password.
    if names.iter().any(|name| !name.starts_with(socket::SCHEME) && name.contains('@')) {
        return Err(Failure::usage(format!(
            "{place}: the address of a server has no user name and no password, so no `@`"
        )));
    }
    let scheme = if secure { "https" } else { "http" };
    let has_scheme = |name: &str| name.contains("://") || name.starts_with(socket::SCHEME);
    let full = |name: &str| if has_scheme(name) { name.to_owned() } else { format!("{scheme}://{name}") };
    Ok(ServerAddresses { addresses: names.into_iter().map(full).collect(), local: false, cluster: None })
}

/// The servers of a cluster on this machine, in this folder or a parent: what `rugctl up` wrote to `.rug/endpoint`, or the socket
/// of a coordinator that was started there without any set-up. There is no other default, which might be somebody else's
/// cluster. Clusters on this machine use no TLS.
///
/// # Errors
/// The nearest one belongs to another user, who is not to be given what was meant for an own one; or one that is nearer runs
/// without its folder, and is not to be mistaken for it.
pub(crate) fn local_servers(start: &Path) -> Result<Option<ServerAddresses>, Failure> {
    let Some((folder, found)) = nearest_servers(start)? else { return Ok(None) };
    let nearer: Vec<_> = start.ancestors().take_while(|nearer| *nearer != folder).collect();
    match lost_here(&nearer) {
        Some(lost) => Err(lost),
        None => Ok(Some(found)),
    }
}

/// The failure of a command in one of these folders when its cluster runs without its state folder.
fn lost_here(folders: &[&Path]) -> Option<Failure> {
    let states = |folder: &&Path| {
        let alone = folder.join(DEFAULT_SOCKET).parent().map(Path::to_owned);
        [Some(folder.join(".rug")), alone].into_iter().flatten().filter_map(|path| processes::real_path(&path))
    };
    let states: Vec<_> = folders.iter().flat_map(states).collect();
    if states.is_empty() {
        return None;
    }
    processes::lost_cluster(&states).map(|lost| lost.failure(Exit::Failed))
}

fn nearest_servers(start: &Path) -> Result<Option<(&Path, ServerAddresses)>, Failure> {
    for folder in start.ancestors() {
        let local =
            |address, cluster| Ok(Some((folder, ServerAddresses { addresses: vec![address], local: true, cluster })));
        if let Some(endpoint) = read_endpoint(&folder.join(".rug"))? {
            return local(endpoint.address, endpoint.cluster);
        }
        let socket = folder.join(DEFAULT_SOCKET);
        judge_folder(&socket)?;
        // Where a link leads is judged by who serves there, as it is connected to.
        let is_socket = |kind: std::fs::FileType| kind.is_socket() || kind.is_symlink();
        if let Some(meta) = socket.symlink_metadata().ok().filter(|meta| is_socket(meta.file_type())) {
            judge_owner(&socket, meta.uid())?;
            return local(format!("{}{}", socket::SCHEME, socket.display()), None);
        }
    }
    Ok(None)
}

/// The failure when no cluster is found from this folder on, and none was named.
pub(crate) fn no_local_server(start: &Path) -> Failure {
    if let Some(lost) = lost_here(&start.ancestors().collect::<Vec<_>>()) {
        return lost;
    }
    Failure::usage(format!(
        "no cluster runs in {} or a folder above it: start one with `rugctl up`, go to the folder of one, or name one with \
         --server, --context or `rugctl context use`",
        start.display()
    ))
}

/// Addresses of servers and how they were found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServerAddresses {
    /// Their addresses, with schemes; at least one.
    pub(crate) addresses: Vec<String>,
    /// Found on this machine rather than configured.
    pub(crate) local: bool,
    /// The cluster that is to be found there, where that is known.
    pub(crate) cluster: Option<ClusterRef>,
}

impl ServerAddresses {
    /// Whose servers may be at these addresses. What lies in a folder was not named by this user, whoever made it.
    pub(crate) fn trusted(&self) -> TrustedServer {
        if self.local { TrustedServer::OwnOrRoot } else { TrustedServer::Named }
    }
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
    pub(super) fn new<A: AsRef<str>>(
        addresses: &[A],
        tls: Option<&ClientTls>,
        trusted: TrustedServer,
    ) -> Result<Self, Failure> {
        let open = |address: &A| ServerChannel::new(address.as_ref(), tls, trusted);
        let all = addresses.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        if all.is_empty() {
            return Err(Failure::usage("no address of a server is given"));
        }
        Ok(Self { all, turn: AtomicUsize::new(0) })
    }

    /// One value for each server, sharing its connection.
    pub(super) fn each(&self) -> impl Iterator<Item = Self> + '_ {
        self.all.iter().map(|one| Self { all: vec![one.clone()], turn: AtomicUsize::new(0) })
    }

    /// A server that is reached without TLS.
    pub(super) fn unprotected(&self) -> Option<&str> {
        self.all.iter().map(|server| server.address.as_str()).find(|address| !address.starts_with("https://"))
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
        let hint = hint(&reasons);
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
    fn new(address: &str, tls: Option<&ClientTls>, trusted: TrustedServer) -> Result<Self, Failure> {
        let target = Target::new(address, tls).map_err(|error| match error {
            AddressError::Credentials => Failure::usage(error.to_string()),
            AddressError::Malformed => Failure::usage(format!(
                "`{address}` is not the address of a server, such as https://host:7470 or unix:/path/to/coordinator.sock"
            )),
            AddressError::NoTls(_) => Failure::usage(format!(
                "{address}: https:// needs certificates: --tls-ca, --tls-cert and --tls-key, or RUG_TLS_CA, RUG_TLS_CERT and RUG_TLS_KEY"
            )),
            AddressError::Plain(_) => Failure::usage(format!(
                "{address}: certificates are given (--tls-ca or RUG_TLS_CA), and http:// would not use them; write https://"
            )),
        })?;
        let target = if trusted == TrustedServer::Named { target.named() } else { target };
        let set = |endpoint: Endpoint| {
            endpoint
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(ALIVE.0)
                .keep_alive_timeout(ALIVE.1)
                .keep_alive_while_idle(true)
        };
        Ok(Self { address: address.to_owned(), channel: target.with(set).connect_lazy() })
    }
}

/// What may help when no server is there.
fn hint(reasons: &[(&str, String)]) -> &'static str {
    let absent = |reason: &str| {
        ["Connection refused", "there is no socket", "no server listens"].iter().any(|words| reason.contains(words))
    };
    if !reasons.iter().all(|(_, reason)| absent(reason)) {
        return "";
    }
    if reasons.iter().any(|(address, _)| LOOPBACK.iter().any(|at| address.starts_with(at))) {
        return "\nclusters on one machine are reached at a Unix socket unless they were started with --insecure and --listen: \
                take --server or RUG_SERVER away to use the one that runs in this folder";
    }
    "\nstart a cluster with `rugctl up`, or name its address with --server or RUG_SERVER"
}

/// Where clusters on one machine were reached in earlier versions.
const LOOPBACK: [&str; 3] = ["http://127.", "http://localhost", "http://[::1]"];

fn reason(status: &Status) -> String {
    // The transport's message hides the operating system's at the end of the chain.
    let cause = || std::error::Error::source(status).map_or_else(|| status.message().to_owned(), tls::chain);
    tls::refusal(status).unwrap_or_else(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(folder: &Path) {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(folder, mode).expect("ours");
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_quoted() {
        for named in ["https://rug:hush@h:1", "rug:hush@h:1", "h:1,http://hush@h:2", "rug:hu sh@h"] {
            let failure = named_servers(named, false, "--server").expect_err("refused");
            assert!(failure.exit == Exit::Usage && !failure.to_string().contains("hu"), "{failure}");
        }
    }

    #[test]
    fn only_servers_that_were_named_are_trusted_as_such() {
        let found = |local| ServerAddresses { addresses: vec!["unix:s".to_owned()], local, cluster: None };
        assert_eq!(found(true).trusted(), TrustedServer::OwnOrRoot);
        assert_eq!(found(false).trusted(), TrustedServer::Named);
    }

    #[test]
    fn servers_come_from_flags_or_from_a_parent_folder() {
        let top = tempfile::tempdir().expect("a folder");
        let deep = top.path().join("a/b");
        std::fs::create_dir_all(&deep).expect("folders");
        std::fs::create_dir(top.path().join(".rug")).expect("folder");
        close(&top.path().join(".rug"));
        std::fs::write(top.path().join(".rug/endpoint"), "unix:/x/s\n").expect("file");
        let found = |addresses: &[&str], local| ServerAddresses {
            addresses: addresses.iter().map(ToString::to_string).collect(),
            local,
            cluster: None,
        };
        let find = || local_servers(&deep).expect("own files").expect("one");
        let named = |named| named_servers(named, true, "--server");
        assert_eq!(find(), found(&["unix:/x/s"], true));
        std::fs::write(top.path().join(".rug/endpoint"), "unix:/x/s\ncluster prod\n").expect("file");
        assert_eq!(find().cluster, "prod".parse().ok());
        for empty in ["", " ", " ,", "a:1,,b:2", "a:1,"] {
            let failure = named(empty).expect_err("names nothing");
            assert!(failure.exit == Exit::Usage && failure.to_string().contains("is empty"), "{failure}");
        }
        let plain = named_servers("10.0.0.1:1", false, "--server").expect("an address");
        assert_eq!(plain, found(&["http://10.0.0.1:1"], false));
        let several = found(&["https://a:1", "https://b:2", "http://c:3", "unix:d"], false);
        assert_eq!(named("a:1, b:2,http://c:3,unix:d").expect("addresses"), several);
        std::fs::write(top.path().join(".rug/endpoint"), "").expect("file");
        assert_eq!(local_servers(&deep).expect("nothing of others"), None);
        let failure = no_local_server(&deep);
        assert!(failure.exit == Exit::Usage && failure.to_string().contains("rugctl up"), "{failure}");
        let socket = top.path().join("a").join(DEFAULT_SOCKET);
        std::fs::create_dir_all(socket.parent().expect("a folder")).expect("folder");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a short path");
        assert_eq!(find(), found(&[&format!("unix:{}", socket.display())], true));
    }

    #[test]
    fn a_cluster_of_another_user_is_not_used_unasked() {
        let top = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(top.path().join(".rug")).expect("folder");
        close(&top.path().join(".rug"));
        let endpoint = top.path().join(".rug/endpoint");
        std::fs::write(&endpoint, "unix:/x/s\n").expect("file");
        if std::os::unix::fs::chown(&endpoint, Some(65_534), None).is_err() {
            return;
        }
        let failure = local_servers(top.path()).expect_err("refused");
        assert!(failure.exit == Exit::Usage && failure.to_string().contains("--server"), "{failure}");
    }

    #[test]
    fn an_address_of_an_earlier_version_gets_a_hint() {
        let refused = |address| hint(&[(address, "Connection refused (os error 111)".to_owned())]);
        assert!(refused("http://127.0.0.1:7470").contains("take --server or RUG_SERVER away"));
        assert!(refused("http://rug-1:7470").contains("start a cluster"));
        assert_eq!(hint(&[("http://127.0.0.1:1", "timed out".to_owned())]), "");
    }

    #[test]
    fn a_host_that_is_not_found_is_said_in_our_own_words() {
        let lookup = |words: &str| {
            let error = std::io::Error::other(format!("failed to lookup address information: {words}"));
            reason(&Status::from_error(Box::new(error)))
        };
        assert_eq!(lookup("Name or service not known"), "there is no host of this name");
        assert!(lookup("Temporary failure in name resolution").contains("the name server does not answer"));
    }

    #[tokio::test]
    async fn concurrent_failures_switch_servers_once() {
        let own = TrustedServer::OwnOrRoot;
        let servers = Servers::new(&["http://a:1", "http://b:2"], None, own).expect("addresses");
        let turn = servers.turn();
        servers.pass(turn);
        servers.pass(turn);
        assert_eq!(servers.address(servers.turn()), "http://b:2");
        servers.pass(servers.turn());
        assert_eq!(servers.address(servers.turn()), "http://a:1");
        assert_eq!(Servers::new::<&str>(&[], None, own).expect_err("none").exit, Exit::Usage);
        assert_eq!(Servers::new(&["http://a:1", "no address"], None, own).expect_err("odd").exit, Exit::Usage);
    }
}
