//! What is written to Kubernetes: finalizers, status, events. Each write is conditional on the version of the object that it was
//! decided by, so that neither a former leader nor a slow answer overwrites what is newer.

use std::time::SystemTime;

use common::CoordinatorId;
use kubernetes::kube::api::{Patch, PatchParams, PostParams};
use kubernetes::kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kubernetes::kube::{self, Api, Client};
use serde_json::{Value, json};

use super::resource::{FINALIZER, GROUP, KIND, Resource, VERSION, api_resource};
use super::status::{ResourceStatus, time};

/// Our name among those who write fields.
const MANAGER: &str = "rug";

/// Longest message of an event, as the API server has it.
const MAX_EVENT: usize = 1_024;

/// Objects as they are written.
#[derive(Clone)]
pub(super) struct Resources {
    client: Client,
    resource: ApiResource,
    events: ApiResource,
    coordinator: CoordinatorId,
}

impl Resources {
    pub(super) fn new(client: Client, coordinator: CoordinatorId) -> Self {
        let events = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Event"), "events");
        Self { client, resource: api_resource(), events, coordinator }
    }

    /// The objects of one namespace, or of all.
    pub(super) fn of(&self, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            None => Api::all_with(self.client.clone(), &self.resource),
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &self.resource),
        }
    }

    /// Has an object wait for its appliance, or lets it go. Answers the object; `None` if it is gone.
    ///
    /// # Errors
    /// Of the API; a conflict if the object is another one meanwhile.
    pub(super) async fn set_held(&self, object: &Resource, held: bool) -> kube::Result<Option<Resource>> {
        let others = object.finalizers.iter().map(String::as_str).filter(|finalizer| *finalizer != FINALIZER);
        let finalizers: Vec<_> = others.chain(held.then_some(FINALIZER)).collect();
        // Not by server-side apply, which would make an object that is gone.
        let patch = json!({"metadata": {
            "uid": object.uid, "resourceVersion": object.version, "finalizers": finalizers,
        }});
        let api = self.of(Some(&object.key.namespace));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        read(api.patch(&object.key.name, &params, &Patch::Merge(patch)).await)
    }

    /// Shows a status. Answers the object; `None` if it is gone.
    ///
    /// # Errors
    /// Of the API; a conflict if the object is another one meanwhile.
    pub(super) async fn show(&self, object: &Resource, status: &ResourceStatus) -> kube::Result<Option<Resource>> {
        let patch = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": KIND,
            "metadata": {
                "name": object.key.name, "namespace": object.key.namespace,
                "uid": object.uid, "resourceVersion": object.version,
            },
            "status": status,
        });
        let api = self.of(Some(&object.key.namespace));
        let params = PatchParams::apply(MANAGER).force();
        read(api.patch_status(&object.key.name, &params, &Patch::Apply(patch)).await)
    }

    /// Tells of a refusal, for `kubectl describe`.
    ///
    /// # Errors
    /// Of the API.
    pub(super) async fn warn(
        &self,
        object: &Resource,
        reason: &str,
        message: &str,
        now: SystemTime,
    ) -> kube::Result<()> {
        let namespace = &object.key.namespace;
        let at = time(now);
        let event: Value = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": format!("{}.", object.key.name), "namespace": namespace},
            "involvedObject": {
                "apiVersion": format!("{GROUP}/{VERSION}"), "kind": KIND, "namespace": namespace,
                "name": object.key.name, "uid": object.uid, "resourceVersion": object.version,
            },
            "type": "Warning",
            "reason": reason,
            "message": &message[..message.floor_char_boundary(MAX_EVENT)],
            "firstTimestamp": at, "lastTimestamp": at, "count": 1,
            "source": {"component": MANAGER, "host": self.coordinator.as_str()},
            "reportingComponent": "rug.dev/coordinator",
            "reportingInstance": self.coordinator.as_str(),
        });
        let event: DynamicObject = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &self.events);
        api.create(&PostParams::default(), &event).await.map(drop)
    }
}

/// The object of an answer; `None` if there is none.
fn read(answer: kube::Result<DynamicObject>) -> kube::Result<Option<Resource>> {
    match answer {
        Ok(object) => Ok(Resource::read(object)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
