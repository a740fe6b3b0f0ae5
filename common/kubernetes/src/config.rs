//! Settings of the client, where it finds the API server, and how it is put together.

use std::env;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use common::appliance::FieldViolation;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::{Deserialize, Serialize};
use tower::{BoxError, ServiceBuilder};

use crate::policy::Policy;

/// Settings of the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientConfig {
    /// File that says where the API server is and how to prove who one is. Without it, what `KUBECONFIG` names; without that, the
    /// service account of the pod this runs in; outside of pods `~/.kube/config`.
    pub kubeconfig: PathBuf,
    /// Context in that file; its current one when empty. Not for service accounts.
    pub context: String,
    /// How long one call may take, with every repetition of it. A watch has so long to begin. Longer is more patient with an API server under load, shorter tells sooner that it does not
    /// answer.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Calls a second, over time. More changes a fleet faster, and loads the API server more.
    pub qps: NonZeroU32,
    /// Calls that may be made at once after a quiet time, before `qps` holds.
    pub burst: NonZeroU32,
    /// Calls that may be under way at a time, beside watches.
    pub in_flight: NonZeroU32,
    /// Longest wait that is done as the API server asks for (`Retry-After`); what is to wait longer fails.
    #[serde(with = "humantime_serde")]
    pub max_retry_after: Duration,
}

impl Default for ClientConfig {
    fn default() -> Self {
        let number = |n| NonZeroU32::new(n).expect("not 0");
        Self {
            kubeconfig: PathBuf::new(),
            context: String::new(),
            request_timeout: Duration::from_secs(15),
            qps: number(50),
            burst: number(100),
            in_flight: number(64),
            max_retry_after: Duration::from_secs(10),
        }
    }
}

impl ClientConfig {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        let range = Duration::from_millis(100)..=Duration::from_secs(300);
        if !range.contains(&self.request_timeout) {
            found.push(FieldViolation::new("request_timeout", "must be 100ms to 5m"));
        }
        if self.max_retry_after > Duration::from_secs(300) {
            found.push(FieldViolation::new("max_retry_after", "must be 5m or less"));
        }
        for (field, value) in [("qps", self.qps), ("burst", self.burst), ("in_flight", self.in_flight)] {
            if value.get() > 10_000 {
                found.push(FieldViolation::new(field, "must be 10000 or less"));
            }
        }
        found
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file of the settings, or of `KUBECONFIG`, or `~/.kube/config`, cannot be used.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The service account of the pod cannot be used.
    #[error("service account: {0}")]
    ServiceAccount(#[from] kube::config::InClusterError),
    /// What they say cannot be used.
    #[error("client: {0}")]
    Client(#[from] kube::Error),
}

/// A client, and what its settings say beside it.
#[derive(Clone)]
pub struct Connection {
    /// For kube's [`Api`](kube::Api) and streams. Clones share throttle and connections.
    pub client: kube::Client,
    /// Namespace of the service account or of the context; `default` when neither has one.
    pub namespace: String,
    /// Address of the API server, for logs.
    pub server: String,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { client: _, namespace, server } = self;
        f.debug_struct("Connection").field("namespace", namespace).field("server", server).finish()
    }
}

/// Sets up a client. Reads files only: no call is made yet. To be called within the runtime that uses it.
///
/// # Errors
/// [`SetupError`].
pub async fn connect(config: &ClientConfig) -> Result<Connection, SetupError> {
    let found = find(config).await?;
    let policy = Policy::new(config, &found.cluster_url);
    let server = found.cluster_url.to_string();
    let namespace = found.default_namespace.clone();
    let connector = found.rustls_https_connector()?;
    // kube's own stack logs every failed call as an error; whoever makes a call decides that here.
    let service = ServiceBuilder::new()
        .layer(policy)
        .layer(found.base_uri_layer())
        .option_layer(found.auth_layer()?)
        .layer(found.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector));
    let client = kube::Client::new(service, namespace.clone());
    Ok(Connection { client, namespace, server })
}

async fn find(config: &ClientConfig) -> Result<kube::Config, SetupError> {
    let context = (!config.context.is_empty()).then(|| config.context.clone());
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    if !config.kubeconfig.as_os_str().is_empty() {
        let file = Kubeconfig::read_from(&config.kubeconfig)?;
        return Ok(kube::Config::from_custom_kubeconfig(file, &options).await?);
    }
    let in_pod = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if in_pod && env::var_os("KUBECONFIG").is_none_or(|path| path.is_empty()) {
        return Ok(kube::Config::incluster()?);
    }
    Ok(kube::Config::from_kubeconfig(&options).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(ClientConfig::default().validate(), []);
        let bad = ClientConfig { request_timeout: Duration::ZERO, ..ClientConfig::default() };
        assert_eq!(bad.validate()[0].to_string(), "request_timeout: must be 100ms to 5m");
        let text = r#"{"qps": 0}"#;
        assert!(serde_json::from_str::<ClientConfig>(text).is_err(), "a client that may call never");
    }
}
