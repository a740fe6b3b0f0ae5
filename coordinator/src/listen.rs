//! Where the APIs are served: Unix sockets, TCP ports, or both.
//!
//! A Unix socket is closed to other users without any set-up. TCP has no users: whoever reaches a port, also one of the
//! loopback interface, is let in unless TLS asks for a certificate, so that it takes `insecure = true` without.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use runtime::program::Failure;
use runtime::socket::{self, LocalListener};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::net::TcpListener;

use crate::exit_code;
use crate::grpc::Listener;

/// Name of the socket in the state directory that is listened at by default.
pub const SOCKET: &str = "coordinator.sock";

/// One address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP port.
    Tcp(SocketAddr),
    /// A Unix socket; relative to the state directory in a configuration.
    Unix(PathBuf),
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither ADDRESS:PORT, such as 127.0.0.1:7470, nor unix:PATH")]
pub struct ParseError(String);

impl FromStr for ListenAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match socket::path_of(text) {
            Some(path) => Ok(Self::Unix(path.to_owned())),
            None => text.parse().map(Self::Tcp).map_err(|_| ParseError(text.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{}{}", socket::SCHEME, path.display()),
        }
    }
}

impl Serialize for ListenAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// All addresses; at least one. In a configuration one text, with commas between them, or a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Listen(Vec<ListenAddress>);

impl Default for Listen {
    fn default() -> Self {
        Self(vec![ListenAddress::Unix(SOCKET.into())])
    }
}

impl From<Vec<ListenAddress>> for Listen {
    fn from(addresses: Vec<ListenAddress>) -> Self {
        Self(addresses)
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            One(String),
            Several(Vec<String>),
        }
        let texts = match Written::deserialize(deserializer)? {
            Written::One(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
            Written::Several(texts) => texts,
        };
        let parsed: Result<Vec<ListenAddress>, _> = texts.iter().map(|text| text.parse()).collect();
        match parsed.map_err(serde::de::Error::custom)? {
            none if none.is_empty() => Err(serde::de::Error::custom("must name at least one address")),
            addresses => Ok(Self(addresses)),
        }
    }
}

impl Listen {
    /// Sockets are relative to `state_dir` from now on.
    pub fn complete(&mut self, state_dir: &Path) {
        for address in &mut self.0 {
            if let ListenAddress::Unix(path) = address {
                *path = state_dir.join(&path);
            }
        }
    }

    /// The TCP ports among them.
    pub fn tcp(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.0.iter().filter_map(|address| match address {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix(_) => None,
        })
    }

    /// Whether a Unix socket is among them.
    #[must_use]
    pub fn has_socket(&self) -> bool {
        self.0.iter().any(|address| matches!(address, ListenAddress::Unix(_)))
    }

    /// Listens everywhere. Needs a Tokio runtime.
    ///
    /// # Errors
    /// With exit code [`exit_code::LISTEN`], which address cannot be listened at and why.
    pub async fn open(&self) -> Result<Listening, Failure> {
        let failed = |address: &ListenAddress, e: &dyn fmt::Display| {
            Failure::new(exit_code::LISTEN, format!("listen at {address}: {e}"))
        };
        let mut listening = Listening { listeners: Vec::new(), addresses: Vec::new() };
        for address in &self.0 {
            let (listener, bound) = match address {
                ListenAddress::Tcp(at) => {
                    let listener = TcpListener::bind(at).await.map_err(|e| failed(address, &e))?;
                    let bound = listener.local_addr().map_err(|e| failed(address, &e))?;
                    (Listener::Tcp(listener), ListenAddress::Tcp(bound))
                }
                ListenAddress::Unix(path) => {
                    let listener = LocalListener::bind(path).map_err(|e| failed(address, &e))?;
                    let bound = ListenAddress::Unix(listener.path());
                    (Listener::Unix(listener), bound)
                }
            };
            listening.listeners.push(listener);
            listening.addresses.push(bound);
        }
        Ok(listening)
    }
}

/// What is listened at.
#[derive(Debug)]
pub struct Listening {
    /// To be served.
    pub listeners: Vec<Listener>,
    /// Their addresses as others reach them, in the same order.
    pub addresses: Vec<ListenAddress>,
}

impl Listening {
    /// Where others reach the APIs: at the first TCP port, because that is reached from other hosts, else at the socket.
    #[must_use]
    pub fn advertised(&self, scheme: &str) -> String {
        let tcp = self.addresses.iter().find_map(|address| match address {
            ListenAddress::Tcp(address) => Some(*address),
            ListenAddress::Unix(_) => None,
        });
        match tcp {
            Some(address) if address.ip().is_unspecified() => {
                let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
                format!("{scheme}://{host}:{}", address.port())
            }
            Some(address) => format!("{scheme}://{address}"),
            None => self.addresses.first().map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// All of them, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Listen {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Listen".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        ]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Listen, String> {
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    #[test]
    fn addresses_are_one_text_or_a_list() {
        let both = Listen(vec![
            ListenAddress::Tcp(SocketAddr::from(([127, 0, 0, 1], 7470))),
            ListenAddress::Unix("/run/rug/s".into()),
        ]);
        assert_eq!(read(r#""127.0.0.1:7470, unix:/run/rug/s""#).as_ref(), Ok(&both));
        assert_eq!(read(r#"["127.0.0.1:7470", "unix:///run/rug/s"]"#).as_ref(), Ok(&both));
        assert_eq!(read(&serde_json::to_string(&both).expect("written")).as_ref(), Ok(&both));
        for broken in [r#""""#, "[]", r#""localhost:1""#, r#""unix:""#, r#""http://127.0.0.1:1""#] {
            assert!(read(broken).is_err(), "{broken}");
        }
        assert!(read(r#""localhost:1""#).expect_err("refused").contains("nor unix:PATH"));
    }

    #[test]
    fn sockets_are_in_the_state_directory_unless_they_say_otherwise() {
        let mut listen = Listen(vec![ListenAddress::Unix("s".into()), ListenAddress::Unix("/run/s".into())]);
        listen.complete(Path::new("state"));
        assert_eq!(listen.0, [ListenAddress::Unix("state/s".into()), ListenAddress::Unix("/run/s".into())]);
    }

    #[test]
    fn a_tcp_port_is_advertised_rather_than_a_socket() {
        let at = |addresses: Vec<ListenAddress>| Listening { listeners: Vec::new(), addresses };
        let socket = ListenAddress::Unix("/run/s".into());
        assert_eq!(at(vec![socket.clone()]).advertised("https"), "unix:/run/s");
        let tcp = ListenAddress::Tcp(SocketAddr::from(([10, 0, 0, 1], 1)));
        assert_eq!(at(vec![socket.clone(), tcp]).advertised("https"), "https://10.0.0.1:1");
        let any = ListenAddress::Tcp(SocketAddr::from(([0, 0, 0, 0], 7)));
        let advertised = at(vec![any]).advertised("http");
        assert!(advertised.ends_with(":7") && !advertised.contains("0.0.0.0"), "{advertised}");
    }
}
