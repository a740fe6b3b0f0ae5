//! One session with ZooKeeper, and the few calls that everything here is made of.
//!
//! A [`Client`] is one session: dead once it expired. Every call has a deadline, and every failure is one of three: the
//! server said no (nothing changed), the session is over, or nobody knows (connection lost, answer late): then what was
//! asked may have happened, may happen still, and is looked up before anything is built on it. The client queues calls
//! while it is disconnected, so that a call whose answer was not waited for may be sent later.

use std::time::Duration;

use common::membership::CallFailure;
use zookeeper_client::{
    Acls, Client, CreateMode, Error as ZkError, SessionState, Stat, StateWatcher, TlsCa, TlsCerts, TlsDynamicCerts,
    TlsIdentity, TlsOptions,
};

use super::config::{Config, Tls};
use crate::Error;

/// Largest file that is read as PEM; far above any chain of certificates.
const MAX_PEM: u64 = 1 << 20;

/// How often TLS files are read anew for the connections that a session has yet to make.
const TLS_REFRESH: Duration = Duration::from_secs(60);

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ZkFailed {
    /// The server refused it; nothing changed.
    Said(ZkError),
    /// The session is over; its ephemeral nodes go.
    Over(String),
    /// Nobody knows whether it happened.
    Unknown(String),
}

impl From<ZkError> for ZkFailed {
    fn from(error: ZkError) -> Self {
        match error {
            ZkError::SessionExpired | ZkError::ClientClosed => Self::Over(error.to_string()),
            ZkError::NoNode
            | ZkError::NodeExists
            | ZkError::BadVersion
            | ZkError::NotEmpty
            | ZkError::NoAuth
            | ZkError::AuthFailed
            | ZkError::InvalidAcl
            | ZkError::BadArguments(_)
            | ZkError::NoChildrenForEphemerals
            | ZkError::QuotaExceeded
            | ZkError::Throttled
            | ZkError::Unimplemented
            | ZkError::RuntimeInconsistent => Self::Said(error),
            // Also `Custom`: that is how the client says that pings were not answered.
            other => Self::Unknown(other.to_string()),
        }
    }
}

impl From<&ZkFailed> for CallFailure {
    fn from(failure: &ZkFailed) -> Self {
        match failure {
            ZkFailed::Said(ZkError::NoNode | ZkError::NodeExists | ZkError::BadVersion) => Self::Raced,
            ZkFailed::Said(error @ ZkError::NoAuth) => Self::Denied(error.to_string()),
            ZkFailed::Said(error) => Self::Refused(error.to_string()),
            ZkFailed::Over(why) => Self::SessionOver(why.clone()),
            ZkFailed::Unknown(why) => Self::Unknown(why.clone()),
        }
    }
}

impl From<ZkFailed> for Error {
    fn from(failure: ZkFailed) -> Self {
        match failure {
            ZkFailed::Said(error @ (ZkError::Throttled | ZkError::RuntimeInconsistent)) => {
                Self::Unavailable(format!("zookeeper: {error}"))
            }
            ZkFailed::Said(error) => Self::Refused(format!("zookeeper: {error}")),
            ZkFailed::Over(why) => Self::Lost(why),
            ZkFailed::Unknown(why) => Self::Unavailable(format!("zookeeper: {why}")),
        }
    }
}

/// A session.
#[derive(Clone, Debug)]
pub(super) struct ZkSession {
    client: Client,
    secured: bool,
}

impl ZkSession {
    /// Opens a session, trying every host within the session timeout. Dropping the future leaves at most a session
    /// without nodes, which expires.
    pub(super) async fn open(config: &Config) -> Result<Self, Error> {
        let mut connector = Client::connector().with_session_timeout(config.timeout);
        if let Some(credentials) = &config.credentials {
            connector = connector.with_auth("digest", credentials.digest.as_bytes());
        }
        let certs = match &config.tls {
            Some(tls) => Some(TlsDynamicCerts::new(read_tls(tls).await?)),
            None => None,
        };
        if let Some(certs) = &certs {
            connector = connector.with_tls(TlsOptions::new().with_certs(certs.clone()));
        }
        let cluster = config.hosts.join(",");
        let connecting = async {
            match config.tls {
                Some(_) => connector.secure_connect(&cluster).await,
                None => connector.connect(&cluster).await,
            }
        };
        let unreachable = |why: &str| Error::Unavailable(format!("zookeeper at {cluster}: {why}"));
        // The client bounds this itself, but for resolving names.
        let client = match tokio::time::timeout(config.timeout * 2, connecting).await {
            Ok(Ok(client)) => client,
            Ok(Err(ZkError::Timeout)) => return Err(unreachable("no answer within the session timeout")),
            Ok(Err(error @ (ZkError::AuthFailed | ZkError::BadArguments(_)))) => {
                return Err(Error::Refused(format!("zookeeper at {cluster}: {error}")));
            }
            Ok(Err(error)) => return Err(unreachable(&error.to_string())),
            Err(_) => return Err(unreachable("no answer")),
        };
        if let (Some(tls), Some(certs)) = (&config.tls, certs) {
            tokio::spawn(keep_fresh(tls.clone(), certs, client.state_watcher()));
        }
        Ok(Self { client, secured: config.credentials.is_some() })
    }

    /// The client itself, to add operations to a transaction.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The session's id, as `ephemeral_owner` has it.
    pub(super) fn id(&self) -> i64 {
        self.client.session_id().0
    }

    /// The session timeout the server granted.
    pub(super) fn timeout(&self) -> Duration {
        self.client.session_timeout()
    }

    /// Follows the state of the session without keeping it open.
    pub(super) fn states(&self) -> StateWatcher {
        self.client.state_watcher()
    }

    /// Whether it is over.
    pub(super) fn is_over(&self) -> bool {
        self.client.state().is_terminated()
    }

    /// What everything is created with: whoever has our credentials, or, where there are none, anyone.
    pub(super) fn acls(&self) -> Acls<'static> {
        if self.secured { Acls::creator_all() } else { Acls::anyone_all() }
    }

    /// Waits for the answer to a call, at most as long as the session lasts.
    pub(super) async fn call<T, E: Into<ZkError>>(
        &self,
        asked: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ZkFailed> {
        match tokio::time::timeout(self.timeout(), asked).await {
            Ok(answer) => answer.map_err(|error| error.into().into()),
            Err(_) => Err(ZkFailed::Unknown("no answer within the session timeout".to_owned())),
        }
    }

    /// Data and stat of a node; `None` when there is none.
    pub(super) async fn read(&self, path: &str) -> Result<Option<(Vec<u8>, Stat)>, ZkFailed> {
        match self.call(self.client.get_data(path)).await {
            Ok(found) => Ok(Some(found)),
            Err(ZkFailed::Said(ZkError::NoNode)) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Names of a node's children; none when it does not exist.
    pub(super) async fn children(&self, path: &str) -> Result<Vec<String>, ZkFailed> {
        match self.call(self.client.list_children(path)).await {
            Ok(names) => Ok(names),
            Err(ZkFailed::Said(ZkError::NoNode)) => Ok(Vec::new()),
            Err(failure) => Err(failure),
        }
    }

    /// Makes a directory and those above it, where they are missing. Others may make them at the same time.
    pub(super) async fn ensure(&self, path: &str) -> Result<(), ZkFailed> {
        if self.call(self.client.check_stat(path)).await?.is_some() {
            return Ok(());
        }
        self.call(self.client.mkdir(path, &CreateMode::Persistent.with_acls(self.acls()))).await
    }
}

/// Waits until the session is over, and says how.
pub(super) async fn over(mut states: StateWatcher) -> String {
    let mut state = states.state();
    loop {
        match state {
            SessionState::Expired => return "it expired".to_owned(),
            SessionState::AuthFailed => return "its credentials were refused".to_owned(),
            SessionState::Closed => return "it was closed".to_owned(),
            _ => state = states.changed().await,
        }
    }
}

/// Gives the session's next connections the files as they are then, until it is over: it may outlive its certificate.
async fn keep_fresh(tls: Tls, certs: TlsDynamicCerts, states: StateWatcher) {
    let refresh = async {
        loop {
            tokio::time::sleep(TLS_REFRESH).await;
            match read_tls(&tls).await {
                Ok(read) => certs.update(read),
                Err(error) => tracing::warn!(%error, "the certificates for zookeeper stay as they are"),
            }
        }
    };
    tokio::select! {
        _ = over(states) => {}
        () = refresh => {}
    }
}

async fn read_tls(tls: &Tls) -> Result<TlsCerts, Error> {
    let refused = |error: ZkError| Error::Refused(format!("TLS files of zookeeper: {error}"));
    let ca = TlsCa::from_pem(&read_pem(&tls.ca).await?).map_err(refused)?;
    let mut certs = TlsCerts::builder().with_ca(ca);
    if let Some((cert, key)) = &tls.identity {
        let (cert, key) = (read_pem(cert).await?, read_pem(key).await?);
        certs = certs.with_identity(TlsIdentity::from_pem(&cert, &key).map_err(refused)?);
    }
    certs.build().map_err(refused)
}

async fn read_pem(path: &std::path::Path) -> Result<String, Error> {
    let refused = |why: String| Error::Refused(format!("{}: {why}", path.display()));
    let size = tokio::fs::metadata(path).await.map_err(|e| refused(e.to_string()))?.len();
    if size > MAX_PEM {
        return Err(refused("too large for a PEM file".to_owned()));
    }
    tokio::fs::read_to_string(path).await.map_err(|e| refused(e.to_string()))
}
