//! The pods that workers run in: of a container that the kubelet says has terminated it is certain that the worker in it can do nothing
//! any more (docs/protocol.md, Witnessed deaths).
//!
//! A worker writes who it is into the file that the kubelet shows as the message of a container that has terminated
//! (`termination_log`), so that it is the terminated container itself that names the process. Nothing is concluded from a pod that is
//! not there: one that was deleted by force, or whose node is lost, may run on.

use std::collections::BTreeSet;
use std::time::Duration;

use common::appliance::FieldViolation;
use common::backoff::Backoff;
use common::{ProcessIdentity, WorkerId};
use futures::StreamExt as _;
use kubernetes::ClientConfig;
use kubernetes::k8s_openapi::api::core::v1::{ContainerState, Pod};
use kubernetes::kube::runtime::watcher::{self, Event, watcher};
use kubernetes::kube::{Api, Client};
use runtime::log_limited;
use runtime::retry::Retries;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::commands::Commands;

/// Name of the container that is the worker.
const CONTAINER: &str = "worker";

/// Delays after failures in a row.
const RETRY: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(30) };

/// Which pods workers run in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the StatefulSet, in the namespace of this coordinator's service account; none is watched when empty. Other pods
    /// are not believed, whatever their labels.
    pub stateful_set: String,
    /// Label selector of its pods.
    pub selector: String,
}

impl Config {
    /// Every rule the settings break, with the field that breaks it.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let incomplete = self.stateful_set.is_empty() != self.selector.is_empty();
        let found = incomplete.then(|| FieldViolation::new("selector", "goes with stateful_set: set both, or none"));
        found.into_iter().collect()
    }
}

/// The watch of one term.
#[derive(Clone, Debug)]
pub struct WorkerPods {
    config: Config,
    client: ClientConfig,
    commands: Commands,
}

impl WorkerPods {
    /// The watch, if there are such pods.
    #[must_use]
    pub fn new(config: &Config, client: &ClientConfig, commands: Commands) -> Option<Self> {
        let wanted = !config.stateful_set.is_empty();
        wanted.then(|| Self { config: config.clone(), client: client.clone(), commands })
    }

    /// Watches until `over`.
    pub async fn run(self, over: CancellationToken) {
        over.run_until_cancelled(self.watch()).await;
    }

    async fn watch(&self) {
        let mut retries = Retries::new(RETRY);
        let (client, namespace) = loop {
            match kubernetes::connect(&self.client).await {
                Ok(connection) => break (connection.client, connection.namespace),
                Err(error) => log_limited!(warn, "pods of workers are not watched: {error}"),
            }
            tokio::time::sleep(retries.next_delay()).await;
        };
        info!(stateful_set = self.config.stateful_set, namespace, "watching the pods of workers for their ends");
        retries.reset();
        loop {
            let mut stream = std::pin::pin!(self.pods(client.clone(), &namespace));
            // What was said already; of a new list everything is said again, which changes nothing.
            let mut told = BTreeSet::new();
            while let Some(event) = stream.next().await {
                let pod = match event {
                    Ok(Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod)) => pod,
                    Ok(Event::Init) => {
                        told.clear();
                        continue;
                    }
                    Ok(Event::InitDone) => {
                        retries.reset();
                        continue;
                    }
                    Err(error) => {
                        log_limited!(info, "watch of the pods of workers: {error}");
                        tokio::time::sleep(retries.next_delay()).await;
                        continue;
                    }
                };
                // A worker is called as its pod is: whatever it wrote, it speaks of itself.
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let Ok(worker) = WorkerId::new(name) else { continue };
                for process in terminated(&pod, &self.config.stateful_set) {
                    let by = format!("the kubelet of pod {name}");
                    if told.insert(process) && self.commands.witness(worker.clone(), process, by).await.is_err() {
                        // It is said again with the next change of the pod.
                        told.remove(&process);
                    }
                }
            }
        }
    }

    fn pods(
        &self,
        client: Client,
        namespace: &str,
    ) -> impl futures::Stream<Item = Result<Event<Pod>, watcher::Error>> + use<> {
        let config = watcher::Config::default().labels(&self.config.selector);
        watcher(Api::namespaced(client, namespace), config)
    }
}

/// The workers that ran in containers of this pod which have terminated.
fn terminated(pod: &Pod, stateful_set: &str) -> Vec<ProcessIdentity> {
    // A filter against labels that say too much, and no proof: the API server lets whoever may make pods here name any owner.
    let owners = pod.metadata.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    let is_ours = controllers.any(|owner| (owner.kind.as_str(), owner.name.as_str()) == ("StatefulSet", stateful_set));
    if !is_ours {
        return Vec::new();
    }
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let worker = containers.filter(|container| container.name == CONTAINER);
    let states = worker.flat_map(|container| [&container.state, &container.last_state]);
    states.filter_map(|state| process_of(state.as_ref()?)).collect()
}

/// Which process ran in a container that is in this state, if it has terminated.
fn process_of(state: &ContainerState) -> Option<ProcessIdentity> {
    state.terminated.as_ref()?.message.as_deref()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const PROCESS: &str = "5f0c2a52-5b0a-4f2e-9d6c-0a1b2c3d4e5f/4026531836/1/123456";

    fn of(owner: &Value, status: &Value) -> Vec<String> {
        let pod = json!({
            "metadata": {"name": "rug-worker-0", "ownerReferences": [owner]},
            "status": {"containerStatuses": [status]},
        });
        let pod = serde_json::from_value(pod).expect("a pod");
        terminated(&pod, "rug-worker").iter().map(ToString::to_string).collect()
    }

    fn ended(message: &str) -> Value {
        json!({"terminated": {"exitCode": 137, "message": message}})
    }

    #[test]
    fn only_a_terminated_container_of_the_stateful_set_names_who_ran_in_it() {
        let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "rug-worker", "uid": "u", "controller": true});
        let status = |state: Value, last: Value| json!({"name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 1, "state": state, "lastState": last});
        let running = || json!({"running": {}});
        assert_eq!(of(&owner, &status(running(), ended(PROCESS))), [PROCESS]);
        assert_eq!(of(&owner, &status(ended(&format!("{PROCESS}\n")), json!({}))), [PROCESS]);
        for state in [running(), json!({"waiting": {"message": PROCESS}}), ended("out of memory"), json!({})] {
            assert_eq!(of(&owner, &status(state.clone(), json!({}))), Vec::<String>::new(), "{state}");
        }
        let mut other = status(running(), ended(PROCESS));
        other["name"] = json!("sidecar");
        assert_eq!(of(&owner, &other), Vec::<String>::new());
        for (field, value) in [("name", json!("mine")), ("kind", json!("ReplicaSet")), ("controller", json!(false))] {
            let mut owner = owner.clone();
            owner[field] = value;
            assert_eq!(of(&owner, &status(running(), ended(PROCESS))), Vec::<String>::new(), "{owner}");
        }
    }

    #[test]
    fn a_stateful_set_and_its_selector_go_together() {
        let of = |set: &str, selector: &str| Config { stateful_set: set.into(), selector: selector.into() }.validate();
        assert_eq!((of("", ""), of("rug-worker", "a=b")), (vec![], vec![]));
        assert_eq!(of("rug-worker", "")[0].field, "selector");
    }
}
