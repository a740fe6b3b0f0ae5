//! Real servers for tests: ZooKeeper, PostgreSQL, MariaDB, Python with tooz, and networks that fail on command.
//!
//! Each server keeps everything it writes in a temporary folder, listens at free ports of the loopback interface, and
//! is killed when its handle is dropped, by a guard process also when the test itself is killed. Runs side by side do
//! not disturb each other: ports and network names are claimed for as long as a handle lives ([`ports`]).
//!
//! Servers come from the system ([`scripts/install-deps test`](../../../scripts/install-deps) installs them); nothing
//! here knows any other package of Rug. A start that fails says what the server's log says.

pub mod mariadb;
pub mod netns;
pub mod ports;
pub mod postgres;
pub mod proxy;
pub mod python;
pub mod wait;
pub mod zookeeper;

mod client;
mod folder;
mod server;

use std::time::Duration;

/// How long a server may take to start or to end, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What a server shows to clients over TLS, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsFiles {
    /// Its certificate, followed by the intermediate ones.
    pub certificates: String,
    /// The key of the first of them, as PKCS #8.
    pub key: String,
    /// The authorities whose client certificates it accepts.
    pub authorities: String,
}

/// Whether a name needs no quotes in any SQL.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}
