//! Load balancers: the Secret of each pod, and the Service that leads to all of them.
//!
//! The Service is written before a configuration is put in place, so that changed listeners need no new pod. Its first write under a
//! token raises the token of it, also where nothing else changes: a former owner's late write names a version that is no more.

use common::ApplianceId;
use kubernetes::Error as ApiError;
use kubernetes::k8s_openapi::api::core::v1::{Secret, Service};
use serde_json::{Value, json};
use worker_core::desired::Desired;
use worker_core::instance::{Instance, ManagementSecret};

use super::api::{self, Exactly, Resource};
use super::names::{anchor, annotation, label, label_value, read_token, write_token};
use super::ownership::{TRIES, check_token};
use super::pod::{self, SECRET_KEY};
use super::view::PodView;
use super::{Inner, failed};
use crate::drivers::Error;
use crate::gate::Permit;

/// Bytes of chance in a secret.
const SECRET_BYTES: usize = 32;

/// Makes the Secret of a pod that was made and does not run yet. It belongs to the pod and goes with it.
pub(super) async fn make_secret(inner: &Inner, permit: &Permit, made: &PodView) -> Result<ManagementSecret, Error> {
    let (name, namespace) = (made.key.name(), made.namespace.as_str());
    for _ in 0..TRIES {
        let text: String = rand::random::<[u8; SECRET_BYTES]>().iter().map(|byte| format!("{byte:02x}")).collect();
        let secret = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "labels": {label::MANAGED_BY: "rug", label::APPLIANCE: made.key.appliance.to_string()},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": made.uid}],
            },
            "immutable": true,
            "stringData": {SECRET_KEY: text},
        });
        permit.check()?;
        match api::create::<Secret>(&inner.client, Resource::Secrets, namespace, &secret, false).await {
            Ok(_) => return ManagementSecret::new(text).map_err(|error| Error::Failed(error.to_string())),
            // One of another pod of this name, or one whose answer was lost.
            Err(ApiError::AlreadyExists(_)) => {}
            Err(error) => return Err(failed("create secret", error)),
        }
        let found = get_secret(&inner.client, namespace, &name).await?;
        let Some(found) = found else { continue };
        if let Some(secret) = secret_of(&found, &made.uid) {
            return Ok(secret);
        }
        let uid = found.metadata.uid.unwrap_or_default();
        permit.check()?;
        let exactly = Exactly { uid: &uid, version: None };
        match api::delete(&inner.client, Resource::Secrets, namespace, &name, exactly, None).await {
            Ok(_) | Err(ApiError::NotFound(_) | ApiError::Conflict(_)) => {}
            Err(error) => return Err(failed("delete secret", error)),
        }
    }
    Err(Error::Failed(format!("there is a secret {name} each time that it is made")))
}

/// The secret of a pod that was made; `None` when it has none that can be used.
pub(super) async fn read_secret(
    client: &kubernetes::kube::Client,
    view: &PodView,
) -> Result<Option<ManagementSecret>, Error> {
    let found = get_secret(client, &view.namespace, &view.key.name()).await?;
    Ok(found.and_then(|secret| secret_of(&secret, &view.uid)))
}

async fn get_secret(client: &kubernetes::kube::Client, namespace: &str, name: &str) -> Result<Option<Secret>, Error> {
    let found = api::get(client, Resource::Secrets, namespace, name).await;
    found.map_err(|error| failed("read secret", error))
}

/// What a Secret says, if it belongs to the pod with this uid.
fn secret_of(secret: &Secret, pod: &str) -> Option<ManagementSecret> {
    let belongs = secret.metadata.owner_references.as_ref()?.iter().any(|owner| owner.uid == pod);
    let bytes = &secret.data.as_ref()?.get(SECRET_KEY).filter(|_| belongs)?.0;
    ManagementSecret::new(std::str::from_utf8(bytes).ok()?).ok()
}

/// The Service as it shall be.
fn wanted(inner: &Inner, permit: &Permit, desired: &Desired, ports: &[u16]) -> Value {
    let appliance = permit.appliance();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": anchor(appliance),
            "labels": {
                label::MANAGED_BY: "rug",
                label::NAME: label_value(desired.name.as_str()),
                label::APPLIANCE: appliance.to_string(),
                label::TENANT: label_value(desired.tenant.as_str()),
            },
            "annotations": {
                annotation::TOKEN: write_token(permit.token()),
                annotation::NAME: desired.name.to_string(),
            },
        },
        "spec": {
            "type": inner.config.service_type,
            "selector": {label::APPLIANCE: appliance.to_string()},
            "ports": service_ports(ports),
        },
    })
}

fn service_ports(ports: &[u16]) -> Value {
    let one = |port: &u16| json!({"name": format!("p{port}"), "port": port, "targetPort": port, "protocol": "TCP"});
    ports.iter().map(one).collect()
}

/// Ports that a Service has.
fn ports_of(service: &Service) -> Vec<u16> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
    let mut ports: Vec<_> = ports.filter_map(|port| u16::try_from(port.port).ok()).collect();
    ports.sort_unstable();
    ports
}

fn token_of(service: &Service) -> Option<common::Token> {
    read_token(service.metadata.annotations.as_ref()?.get(annotation::TOKEN)?)
}

impl Inner {
    /// Gives the Service of a load balancer the ports of its listeners.
    pub(super) async fn expose(&self, permit: &Permit, instance: &Instance, desired: &Desired) -> Result<(), Error> {
        let recipe = desired.spec.kind.launch(0).map_err(|overflow| Error::Refused(overflow.to_string()))?;
        if !recipe.program.has_management() {
            return Ok(());
        }
        let mut ports: Vec<u16> = desired.spec.kind.ports().into_iter().map(|(port, _)| port).collect();
        ports.sort_unstable();
        ports.dedup();
        let (mut held, claimed) = self.hold(permit).await?;
        // Where the instance is, which is not where the next one is made when the tenant was given another namespace meanwhile.
        let Some((_, namespace, _)) = Self::pod_of(permit.appliance(), instance) else { return Ok(()) };
        self.note_port(permit, instance, pod::port(&recipe, &self.config)).await?;
        if claimed.exposed.get(namespace) == Some(&ports) {
            return Ok(());
        }
        for _ in 0..TRIES {
            if self.write_service(permit, desired, namespace, &ports).await? {
                if let Some(claimed) = &mut held.claimed {
                    claimed.exposed.insert(namespace.to_owned(), ports);
                }
                return Ok(());
            }
        }
        Err(Error::Failed("the service changed each time that it was read".into()))
    }

    /// Has a pod say the port of its service, which changes with the listeners.
    async fn note_port(&self, permit: &Permit, instance: &Instance, port: Option<u16>) -> Result<(), Error> {
        let (Some((key, namespace, uid)), Some(port)) = (Self::pod_of(permit.appliance(), instance), port) else {
            return Ok(());
        };
        let mut view = self.current(key, namespace, uid).await?;
        for _ in 0..TRIES {
            let Some(seen) = view.filter(|view| view.port != Some(port)) else { return Ok(()) };
            check_token(seen.token, permit)?;
            let change = json!({"metadata": {"annotations": {annotation::PORT: port.to_string()}}});
            match self.change_pod(permit, &seen, change).await? {
                Some(changed) => {
                    self.cache.put(changed);
                    return Ok(());
                }
                None => view = self.read(key, namespace, uid).await?,
            }
        }
        Err(Error::Failed(format!("pod {} changed each time that it was read", key.name())))
    }

    /// Writes the Service once. Answers whether it is as it shall be.
    async fn write_service(
        &self,
        permit: &Permit,
        desired: &Desired,
        namespace: &str,
        ports: &[u16],
    ) -> Result<bool, Error> {
        let name = anchor(permit.appliance());
        let found = self.get_service(namespace, permit.appliance()).await?;
        let object = wanted(self, permit, desired, ports);
        let Some(found) = found else {
            permit.check()?;
            return match api::create::<Service>(&self.client, Resource::Services, namespace, &object, false).await {
                Ok(_) => Ok(true),
                Err(ApiError::AlreadyExists(_)) => Ok(false),
                Err(error) => Err(failed("create service", error)),
            };
        };
        check_token(token_of(&found), permit)?;
        if token_of(&found) == Some(permit.token()) && ports_of(&found) == ports {
            return Ok(true);
        }
        let (uid, version) = identity(&found.metadata);
        let exactly = Exactly { uid: &uid, version: Some(&version) };
        let change = json!({"metadata": {"annotations": object["metadata"]["annotations"]}, "spec": {"ports": object["spec"]["ports"]}});
        permit.check()?;
        match api::patch::<Service>(&self.client, Resource::Services, namespace, &name, exactly, change).await {
            Ok(_) => Ok(true),
            Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => Ok(false),
            Err(error) => Err(failed("change service", error)),
        }
    }

    async fn get_service(&self, namespace: &str, appliance: ApplianceId) -> Result<Option<Service>, Error> {
        let found = api::get(&self.client, Resource::Services, namespace, &anchor(appliance)).await;
        found.map_err(|error| failed("read service", error))
    }

    /// Removes the Service of an appliance, if there is one.
    pub(super) async fn remove_service(&self, permit: &Permit, namespace: &str) -> Result<(), Error> {
        for _ in 0..TRIES {
            let Some(found) = self.get_service(namespace, permit.appliance()).await? else { return Ok(()) };
            check_token(token_of(&found), permit)?;
            let (uid, version) = identity(&found.metadata);
            let exactly = Exactly { uid: &uid, version: Some(&version) };
            permit.check()?;
            let name = anchor(permit.appliance());
            match api::delete(&self.client, Resource::Services, namespace, &name, exactly, None).await {
                Ok(_) | Err(ApiError::NotFound(_)) => return Ok(()),
                Err(ApiError::Conflict(_)) => {}
                Err(error) => return Err(failed("delete service", error)),
            }
        }
        Err(Error::Failed("the service changed each time that it was read".into()))
    }
}

/// Uid and version of an object; empty ones fit nothing.
fn identity(metadata: &kubernetes::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> (String, String) {
    (metadata.uid.clone().unwrap_or_default(), metadata.resource_version.clone().unwrap_or_default())
}
