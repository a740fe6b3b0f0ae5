//! Where the client finds the API server, and how it is put together.

use std::env;

use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, ServiceBuilder};

use crate::config::ClientConfig;
use crate::error::innermost;
use crate::policy::Policy;

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
    #[error("client: {}", innermost(.0))]
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
    /// This process runs in a pod, and acts as its service account.
    pub in_pod: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { client: _, namespace, server, in_pod } = self;
        let mut shown = f.debug_struct("Connection");
        shown.field("namespace", namespace).field("server", server).field("in_pod", in_pod).finish()
    }
}

/// Sets up a client. Reads files only: no call is made yet. To be called within the runtime that uses it.
///
/// # Errors
/// [`SetupError`].
pub async fn connect(config: &ClientConfig) -> Result<Connection, SetupError> {
    let (found, in_pod) = find(config).await?;
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
    Ok(Connection { client, namespace, server, in_pod })
}

/// What says where the API server is, and whether that is a service account.
async fn find(config: &ClientConfig) -> Result<(kube::Config, bool), SetupError> {
    let context = (!config.context.is_empty()).then(|| config.context.clone());
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    if !config.kubeconfig.as_os_str().is_empty() {
        let file = Kubeconfig::read_from(&config.kubeconfig)?;
        return Ok((kube::Config::from_custom_kubeconfig(file, &options).await?, false));
    }
    let in_pod = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if in_pod && env::var_os("KUBECONFIG").is_none_or(|path| path.is_empty()) {
        return Ok((kube::Config::incluster()?, true));
    }
    Ok((kube::Config::from_kubeconfig(&options).await?, false))
}
