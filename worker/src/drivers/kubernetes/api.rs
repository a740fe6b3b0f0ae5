//! The calls that the driver makes. Paths are built here, because what is sent is JSON that may have fields which this version of the
//! API's types does not know.

use std::time::Duration;

use common::ApplianceId;
use futures::Stream;
use http::{Request, header};
use kubernetes::Error;
use kubernetes::k8s_openapi::api::core::v1::Pod;
use kubernetes::kube::Client;
use kubernetes::kube::core::{ObjectList, WatchEvent};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::names::{FIELD_MANAGER, SELECTOR_QUERY};

/// Resources of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Pods,
    Leases,
    Secrets,
    Services,
}

impl Resource {
    fn path(self, namespace: &str) -> String {
        match self {
            Self::Pods => format!("/api/v1/namespaces/{namespace}/pods"),
            Self::Secrets => format!("/api/v1/namespaces/{namespace}/secrets"),
            Self::Services => format!("/api/v1/namespaces/{namespace}/services"),
            Self::Leases => format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
        }
    }
}

/// A call's precondition: exactly this object, as it was when it had this version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exactly<'a> {
    pub(super) uid: &'a str,
    /// Any version of it when absent.
    pub(super) version: Option<&'a str>,
}

/// Answers an object; `None` when there is none of that name.
pub(super) async fn get<T: DeserializeOwned>(
    client: &Client,
    resource: Resource,
    namespace: &str,
    name: &str,
) -> Result<Option<T>, Error> {
    let request = Request::get(format!("{}/{name}", resource.path(namespace)));
    match call(client, request, Vec::new()).await {
        Ok(object) => Ok(Some(object)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Answers a node; `None` when there is none of that name.
pub(super) async fn get_node<T: DeserializeOwned>(client: &Client, name: &str) -> Result<Option<T>, Error> {
    match call(client, Request::get(format!("/api/v1/nodes/{name}")), Vec::new()).await {
        Ok(object) => Ok(Some(object)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes an object. Fields that the API server does not know are refused. `dry`: it is only judged.
pub(super) async fn create<T: DeserializeOwned>(
    client: &Client,
    resource: Resource,
    namespace: &str,
    object: &Value,
    dry: bool,
) -> Result<T, Error> {
    let dry = if dry { "&dryRun=All" } else { "" };
    let path = resource.path(namespace);
    let request = Request::post(format!("{path}?fieldManager={FIELD_MANAGER}&fieldValidation=Strict{dry}"));
    call(client, request, body(object)?).await
}

/// Replaces an object, which names uid and version.
pub(super) async fn replace<T: DeserializeOwned>(
    client: &Client,
    resource: Resource,
    namespace: &str,
    name: &str,
    object: &Value,
) -> Result<T, Error> {
    let path = resource.path(namespace);
    let request = Request::put(format!("{path}/{name}?fieldManager={FIELD_MANAGER}"));
    call(client, request, body(object)?).await
}

/// Merges a change into exactly this object.
pub(super) async fn patch<T: DeserializeOwned>(
    client: &Client,
    resource: Resource,
    namespace: &str,
    name: &str,
    exactly: Exactly<'_>,
    mut change: Value,
) -> Result<T, Error> {
    change["metadata"]["uid"] = exactly.uid.into();
    if let Some(version) = exactly.version {
        change["metadata"]["resourceVersion"] = version.into();
    }
    let path = resource.path(namespace);
    let request = Request::patch(format!("{path}/{name}?fieldManager={FIELD_MANAGER}"))
        .header(header::CONTENT_TYPE, "application/merge-patch+json");
    call(client, request, body(&change)?).await
}

/// Sets a condition of exactly this pod. The others, which are its kubelet's, stay as they are.
pub(super) async fn set_condition<T: DeserializeOwned>(
    client: &Client,
    namespace: &str,
    name: &str,
    exactly: Exactly<'_>,
    kind: &str,
) -> Result<T, Error> {
    let mut change =
        json!({"metadata": {"uid": exactly.uid}, "status": {"conditions": [{"type": kind, "status": "True"}]}});
    if let Some(version) = exactly.version {
        change["metadata"]["resourceVersion"] = version.into();
    }
    let path = Resource::Pods.path(namespace);
    let request = Request::patch(format!("{path}/{name}/status?fieldManager={FIELD_MANAGER}"))
        .header(header::CONTENT_TYPE, "application/strategic-merge-patch+json");
    call(client, request, body(&change)?).await
}

/// Deletes exactly this object. Answers the object as it is then, or a status.
pub(super) async fn delete(
    client: &Client,
    resource: Resource,
    namespace: &str,
    name: &str,
    exactly: Exactly<'_>,
    grace: Option<i64>,
) -> Result<Value, Error> {
    let mut preconditions = json!({"uid": exactly.uid});
    if let Some(version) = exactly.version {
        preconditions["resourceVersion"] = version.into();
    }
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions});
    if let Some(grace) = grace {
        options["gracePeriodSeconds"] = grace.into();
    }
    let request = Request::delete(format!("{}/{name}", resource.path(namespace)));
    call(client, request, body(&options)?).await
}

/// One page of Rug's pods, of a namespace or of all.
pub(super) async fn list_pods(
    client: &Client,
    namespace: Option<&str>,
    limit: u32,
    token: Option<&str>,
) -> Result<ObjectList<Pod>, Error> {
    let token = token.map(|token| format!("&continue={token}")).unwrap_or_default();
    let request = Request::get(format!("{}?labelSelector={SELECTOR_QUERY}&limit={limit}{token}", pods_of(namespace)));
    call(client, request, Vec::new()).await
}

/// Lines of the log of a pod.
pub(super) async fn read_log(client: &Client, namespace: &str, name: &str, options: &str) -> Result<String, Error> {
    let request = Request::get(format!("{}/{name}/log?{options}", Resource::Pods.path(namespace)));
    Ok(client.request_text(request.body(Vec::new()).map_err(unbuilt)?).await?)
}

/// The pods of one appliance, of a namespace or of all, as they are now.
pub(super) async fn list_pods_of(
    client: &Client,
    namespace: Option<&str>,
    appliance: ApplianceId,
) -> Result<ObjectList<Pod>, Error> {
    // Without a version, so that it is answered from where writes go, and not from a copy.
    let request = Request::get(format!("{}?labelSelector={SELECTOR_QUERY}%3D{appliance}", pods_of(namespace)));
    call(client, request, Vec::new()).await
}

/// Changes of Rug's pods from a version on.
pub(super) async fn watch_pods(
    client: &Client,
    namespace: Option<&str>,
    version: &str,
    lasts: Duration,
) -> Result<impl Stream<Item = Result<WatchEvent<Pod>, kubernetes::kube::Error>> + use<>, Error> {
    let path = pods_of(namespace);
    let seconds = lasts.as_secs();
    let uri = format!(
        "{path}?labelSelector={SELECTOR_QUERY}&watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={version}"
    );
    let request = Request::get(uri).body(Vec::new()).map_err(unbuilt)?;
    Ok(client.request_events::<Pod>(request).await?)
}

fn pods_of(namespace: Option<&str>) -> String {
    namespace.map_or_else(|| "/api/v1/pods".to_owned(), |namespace| Resource::Pods.path(namespace))
}

fn body(object: &Value) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(object).map_err(|error| Error::Unreadable(error.to_string()))
}

fn unbuilt(error: http::Error) -> Error {
    Error::Unreadable(error.to_string())
}

async fn call<T: DeserializeOwned>(
    client: &Client,
    request: http::request::Builder,
    body: Vec<u8>,
) -> Result<T, Error> {
    let request =
        if body.is_empty() || request.headers_ref().is_some_and(|headers| headers.contains_key(header::CONTENT_TYPE)) {
            request
        } else {
            request.header(header::CONTENT_TYPE, "application/json")
        };
    Ok(client.request(request.body(body).map_err(unbuilt)?).await?)
}
