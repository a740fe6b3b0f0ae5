//! The `kubernetes` driver: an instance is a pod.
//!
//! What one appliance's instances are is written in its [anchor](anchor), a Lease: the token in force and the pods that may run. A pod
//! is made with a scheduling gate, written down in the anchor, and released to run by removing the gate. Every write names uid and version
//! of what it changes, so that the API server refuses it once a new owner has raised the token there
//! ([decision 58](../../../docs/decisions/0058-pods-are-fenced-by-preconditions.md)).
//!
//! Pods are known from one [watch](watch) per worker and namespace. The API is asked only where the watch cannot be trusted: right
//! after a claim, after an answer that was lost, and when the watch is out of date.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use common::inquiry::{LogPart, LogQuery, Verdict};
use common::kind::KindName;
use common::kind::StopRecipe;
use common::status::InstanceEnd;
use common::{ApplianceId, WorkerId};
use kubernetes::Connection;
use kubernetes::k8s_openapi::api::core::v1::Pod;
use kubernetes::kube::Client;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use worker_core::desired::Desired;
use worker_core::instance::{Instance, ManagementSecret, Observation};

use self::api::{Exactly, Resource};
use self::cache::{Known, LastWords, PodCache};
pub use self::config::Config;
use self::config::WatchScope;
use self::names::{CONFIGURED, PodKey, annotation, label};
use self::nodes::Nodes;
use self::ownership::Holdings;
pub use self::template::TemplateRight;
use self::view::PodView;
use crate::drivers::{Driver, DriverFencing, EndSender, EndedInstance, Error, Standing, Wanted};
use crate::gate::Permit;

mod anchor;
mod api;
mod boot;
mod cache;
mod config;
mod judgement;
mod logs;
mod names;
mod nodes;
pub mod orphans;
mod ownership;
mod pod;
mod removal;
mod service;
mod template;
mod view;
mod watch;

/// Name of the driver.
pub const NAME: &str = "kubernetes";

/// The driver. Clones share everything.
#[derive(Clone, Debug)]
pub struct KubernetesDriver {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    worker: WorkerId,
    client: Client,
    /// Namespace of the anchors, and of pods whose tenant has none of its own.
    namespace: String,
    cache: Arc<PodCache>,
    /// Namespaces whose pods are watched; `None` is all.
    watched: Vec<Option<String>>,
    holdings: Holdings,
    /// Claims that may be made at a time. The others wait without a call under way: those that give up have cost nothing.
    claims: Semaphore,
    /// Secrets of pods that run, by uid.
    secrets: Mutex<HashMap<String, ManagementSecret>>,
    nodes: Arc<Nodes>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubernetesDriver").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Secrets that are kept; more are read again.
const MAX_SECRETS: usize = 8_192;
/// Claims at a time.
const CLAIMS: usize = 16;

impl KubernetesDriver {
    /// Sets the driver up, and begins to watch pods until `stop`. Makes no call itself: an API server that cannot be reached now is
    /// tried again for as long as the driver lives.
    ///
    /// # Errors
    /// [`Error::Refused`] when the settings are wrong, or say of no API server.
    pub async fn new(config: Config, worker: WorkerId, stop: &CancellationToken) -> Result<Self, Error> {
        if let Some(violation) = config.validate().first() {
            return Err(Error::Refused(violation.to_string()));
        }
        let connection =
            kubernetes::connect(&config.client).await.map_err(|error| Error::Refused(error.to_string()))?;
        let Connection { client, namespace: own, server, in_pod } = connection;
        let namespace = if config.namespace.is_empty() { own.clone() } else { config.namespace.clone() };
        let watched: Vec<Option<String>> = match config.scope(&namespace) {
            WatchScope::All => vec![None],
            WatchScope::Namespaces(all) => all.into_iter().map(Some).collect(),
        };
        let cache = Arc::new(PodCache::new(config.watch_stale_after, watched.iter().cloned()));
        tracing::info!(server, namespace, "pods are made by this API server");
        if in_pod && config.makes_pods_in(&own, &namespace) {
            tracing::warn!(
                namespace = own,
                "pods may be made in the namespace of this worker itself: whoever writes specifications can have its Secrets there \
                 mounted; give pods a namespace of their own (kubernetes.tenants, kubernetes.tenant_namespace)"
            );
        }
        for namespace in watched.clone() {
            let (client, cache, stop) = (client.clone(), Arc::clone(&cache), stop.clone());
            tokio::spawn(watch::run(client, namespace, cache, config.watch_stale_after, stop));
        }
        let inner = Inner {
            config,
            worker,
            client,
            namespace,
            cache,
            watched,
            holdings: Holdings::default(),
            claims: Semaphore::new(CLAIMS),
            secrets: Mutex::default(),
            nodes: Arc::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Waits until pods were listed, at most that long. Answers why they were not.
    ///
    /// # Errors
    /// [`Error::Failed`] with the reason.
    pub async fn listed(&self, limit: Duration) -> Result<(), Error> {
        let mut changes = self.inner.cache.changes();
        let listed = async {
            while self.inner.cache.trouble().is_some() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        _ = tokio::time::timeout(limit, listed).await;
        self.inner.cache.trouble().map_or(Ok(()), |problem| Err(Error::Failed(problem)))
    }
}

/// What an error of the API means to the lifecycle.
fn failed(what: &str, error: kubernetes::Error) -> Error {
    use kubernetes::Error as E;
    match error {
        // Nothing but a change of rights, quotas, policies or the specification helps.
        E::Forbidden(_) | E::Quota(_) | E::Invalid(_) => Error::Refused(format!("{what}: {error}")),
        other => Error::Failed(format!("{what}: {other}")),
    }
}

impl Inner {
    fn plan(&self, permit: &Permit, wanted: &Wanted<'_>) -> Result<pod::PodPlan, Error> {
        pod::PodPlan::new(&self.config, &self.namespace, permit.appliance(), permit.token(), wanted)
    }

    /// The pod with this uid as it is now: from the watch where that counts, from the API otherwise. `None` when it is gone.
    async fn current(&self, key: PodKey, namespace: &str, uid: &str) -> Result<Option<PodView>, Error> {
        match self.cache.get(key, namespace, uid) {
            Known::There(view) => Ok(Some(*view)),
            Known::Gone(_) => Ok(None),
            Known::Unknown => self.read(key, namespace, uid).await,
        }
    }

    /// The same from the API.
    async fn read(&self, key: PodKey, namespace: &str, uid: &str) -> Result<Option<PodView>, Error> {
        let found: Option<Pod> = api::get(&self.client, Resource::Pods, namespace, &key.name())
            .await
            .map_err(|error| failed("read pod", error))?;
        let view = found.as_ref().and_then(PodView::of);
        if let Some(view) = &view {
            self.cache.put(view.clone());
        }
        match view.filter(|view| view.uid == uid) {
            Some(view) => Ok(Some(view)),
            None => {
                self.cache.bury(key, namespace, uid, None);
                Ok(None)
            }
        }
    }

    /// The pod of an instance.
    fn pod_of(appliance: ApplianceId, instance: &Instance) -> Option<(PodKey, &str, &str)> {
        let (namespace, uid) = instance.handle.as_str().split_once('/')?;
        Some((PodKey { appliance, ordinal: instance.ordinal, attempt: instance.attempt }, namespace, uid))
    }

    /// The instance that a pod is, with its secret.
    async fn instance(&self, view: &PodView) -> Result<Instance, Error> {
        let secret = if view.management_port.is_some() { self.secret(view).await? } else { None };
        Ok(view.instance(secret))
    }

    async fn secret(&self, view: &PodView) -> Result<Option<ManagementSecret>, Error> {
        let known = self.secrets.lock().unwrap_or_else(PoisonError::into_inner).get(&view.uid).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let secret = service::read_secret(&self.client, view).await?;
        if let Some(secret) = &secret {
            self.keep_secret(&view.uid, secret);
        }
        Ok(secret)
    }

    fn keep_secret(&self, uid: &str, secret: &ManagementSecret) {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        if secrets.len() >= MAX_SECRETS {
            secrets.clear();
        }
        secrets.insert(uid.to_owned(), secret.clone());
    }

    async fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error> {
        let Some((journal, is_owner)) = self.journal(appliance).await? else { return Ok(Observation::default()) };
        let mut running = Vec::new();
        for entry in &journal.instances {
            let view = self.current(entry.key(appliance), &entry.namespace, &entry.uid).await?;
            if let Some(view) = view.as_ref().filter(|view| is_owner && !view.labelled && view.deleting.is_none()) {
                self.put_label_back(view).await;
            }
            if let Some(view) = view.filter(PodView::runs) {
                running.push(self.instance(&view).await?);
            }
        }
        running.sort_by_key(|instance| (instance.ordinal, instance.attempt));
        Ok(Observation { running, attempts: journal.attempts })
    }

    /// Gives a pod the label again by which the watch sees it. Whoever does that, it is true. Without it the pod is asked for each time.
    async fn put_label_back(&self, view: &PodView) {
        let change = json!({"metadata": {"labels": {label::APPLIANCE: view.key.appliance.to_string()}}});
        let (exactly, name) = (Exactly { uid: &view.uid, version: Some(&view.version) }, view.key.name());
        let changed = api::patch::<Pod>(&self.client, Resource::Pods, &view.namespace, &name, exactly, change).await;
        match changed {
            Ok(pod) => {
                tracing::warn!(
                    namespace = view.namespace,
                    pod = name,
                    "somebody has changed the label rug.dev/appliance of a pod: put back"
                );
                PodView::of(&pod).into_iter().for_each(|view| self.cache.put(view));
            }
            Err(error) => {
                tracing::info!(namespace = view.namespace, pod = name, %error, "label rug.dev/appliance was not put back")
            }
        }
    }

    /// What is known of an instance without asking the API.
    fn known(&self, appliance: ApplianceId, instance: &Instance) -> Known {
        Self::pod_of(appliance, instance)
            .map_or(Known::Unknown, |(key, namespace, uid)| self.cache.get(key, namespace, uid))
    }

    fn problem(&self, view: &PodView) -> Option<String> {
        let runs = view.problem.is_none() || view.deleting.is_some();
        let node = view.node.as_ref().filter(|_| runs && !view.ready && !view.ended);
        let lost = match node {
            Some(node) => self.nodes.problem(&self.client, node),
            None => None,
        };
        match (lost, &view.problem) {
            (Some(lost), Some(problem)) => Some(format!("{lost}; {problem}")),
            (lost, problem) => lost.or_else(|| problem.clone()),
        }
    }
}

#[async_trait]
impl Driver for KubernetesDriver {
    /// All but routers: an instance has no interfaces of its own in other networks.
    fn kinds(&self) -> BTreeSet<KindName> {
        KindName::ALL.iter().copied().filter(|kind| *kind != KindName::Router).collect()
    }

    fn fencing(&self) -> DriverFencing {
        DriverFencing::Token
    }

    fn judges(&self) -> bool {
        true
    }

    async fn judge(&self, appliance: ApplianceId, desired: &Desired) -> Result<Verdict, Error> {
        self.inner.judge(appliance, desired).await
    }

    fn keeps_logs(&self) -> bool {
        true
    }

    async fn read_log(&self, query: &LogQuery) -> Result<LogPart, Error> {
        self.inner.read_log(query).await
    }

    async fn claim(&self, permit: &Permit) -> Result<(), Error> {
        self.inner.hold(permit).await.map(drop)
    }

    async fn observe(&self, appliance: ApplianceId) -> Result<Observation, Error> {
        self.inner.observe(appliance).await
    }

    async fn note_answer(&self, appliance: ApplianceId, instance: &Instance) -> Result<(), Error> {
        let Some((key, namespace, uid)) = Inner::pod_of(appliance, instance) else { return Ok(()) };
        let inner = &self.inner;
        if matches!(inner.cache.get(key, namespace, uid), Known::There(view) if view.answered) {
            return Ok(());
        }
        let change = json!({"metadata": {"annotations": {annotation::ANSWERED: "true"}}});
        let exactly = Exactly { uid, version: None };
        let noted = api::patch::<Pod>(&inner.client, Resource::Pods, namespace, &key.name(), exactly, change).await;
        let pod = noted.map_err(|error| failed("note the answer", error))?;
        PodView::of(&pod).into_iter().for_each(|view| inner.cache.put(view));
        Ok(())
    }

    async fn note_configured(&self, appliance: ApplianceId, instance: &Instance) -> Result<(), Error> {
        let Some((key, namespace, uid)) = Inner::pod_of(appliance, instance) else { return Ok(()) };
        let inner = &self.inner;
        // Of one that is gone the next probe tells.
        let Some(view) = inner.current(key, namespace, uid).await? else { return Ok(()) };
        if !view.awaits_configuration {
            return Ok(());
        }
        // Whatever else has changed about the pod, it stays true of this one.
        let exactly = Exactly { uid, version: None };
        let set = api::set_condition::<Pod>(&inner.client, namespace, &key.name(), exactly, CONFIGURED).await;
        let pod = set.map_err(|error| failed("say that the pod was configured", error))?;
        PodView::of(&pod).into_iter().for_each(|view| inner.cache.put(view));
        Ok(())
    }

    async fn is_alive(&self, appliance: ApplianceId, instance: &Instance) -> Option<bool> {
        match self.inner.known(appliance, instance) {
            Known::There(view) => Some(view.runs()),
            Known::Gone(_) => Some(false),
            Known::Unknown => None,
        }
    }

    async fn standing(&self, appliance: ApplianceId, instance: &Instance) -> Option<Standing> {
        let inner = &self.inner;
        let (key, namespace, uid) = Inner::pod_of(appliance, instance)?;
        match inner.cache.get(key, namespace, uid) {
            Known::There(view) => {
                let problem = inner.problem(&view);
                Some(Standing { addresses: view.addresses(), problem, doubt: None })
            }
            Known::Gone(last) => {
                let LastWords { problem, .. } = *last;
                Some(Standing { addresses: instance.addresses, problem, doubt: None })
            }
            // What is out of date still says where to probe. That nothing is known is nothing that is wrong with the instance.
            Known::Unknown => {
                let last = inner.cache.last_known(key, namespace, uid);
                let addresses = last.map_or(instance.addresses, |view| view.addresses());
                let doubt = inner.cache.doubt(namespace).unwrap_or_else(|| "nothing was heard of its pod".to_owned());
                Some(Standing { addresses, problem: None, doubt: Some(doubt) })
            }
        }
    }

    fn watch(&self, appliance: ApplianceId, instance: &Instance, ends: &EndSender) {
        if let Some((key, namespace, uid)) = Inner::pod_of(appliance, instance) {
            let ended = EndedInstance { appliance, ordinal: key.ordinal, attempt: key.attempt };
            self.inner.cache.report(key, namespace, uid, ended, ends);
        }
    }

    async fn ended(&self, appliance: ApplianceId, instance: &Instance) -> Option<InstanceEnd> {
        match self.inner.known(appliance, instance) {
            Known::There(view) => view.end,
            Known::Gone(last) => last.end,
            Known::Unknown => None,
        }
    }

    /// Nothing is run: the kubelet runs the command as the probe of the pod's readiness, and this answers what it found.
    async fn run_beside(
        &self,
        appliance: ApplianceId,
        instance: &Instance,
        desired: &Desired,
        command: &[String],
        _: Duration,
    ) -> Result<(), Error> {
        let found = match Inner::pod_of(appliance, instance) {
            Some((key, namespace, uid)) => self.inner.current(key, namespace, uid).await?,
            None => None,
        };
        let Some(view) = found else { return Err(Error::Failed("its pod is gone".into())) };
        let fill = pod::Fill { key: view.key, name: desired.name.as_str(), port: view.port };
        let command: Vec<_> = command.iter().map(|word| fill.text(word)).collect();
        if view.exec_probe.as_deref() != Some(&pod::exec_probe(&command)) {
            return Err(Error::Failed("its pod was made with another command to be probed by".into()));
        }
        if view.ready { Ok(()) } else { Err(Error::Failed("the pod is not ready".into())) }
    }

    async fn ensure(&self, permit: &Permit, wanted: Wanted<'_>) -> Result<Instance, Error> {
        self.inner.ensure(permit, &wanted).await
    }

    async fn expose(&self, permit: &Permit, instance: &Instance, desired: &Desired) -> Result<(), Error> {
        self.inner.expose(permit, instance, desired).await
    }

    async fn destroy(&self, permit: &Permit, instance: &Instance, stop: StopRecipe) -> Result<(), Error> {
        self.inner.destroy(permit, instance, &[], stop).await
    }

    async fn destroy_first(
        &self,
        permit: &Permit,
        instance: &Instance,
        others: &[Instance],
        stop: StopRecipe,
    ) -> Result<(), Error> {
        self.inner.destroy(permit, instance, others, stop).await
    }

    async fn list(&self) -> Result<Vec<(ApplianceId, Instance)>, Error> {
        self.listed(self.inner.config.client.request_timeout).await?;
        let views = self.inner.cache.all();
        let mut found: Vec<_> =
            views.iter().filter(|view| view.runs()).map(|view| (view.key.appliance, view.instance(None))).collect();
        found.sort_by_key(|(appliance, instance)| (*appliance, instance.ordinal, instance.attempt));
        Ok(found)
    }

    async fn forget(&self, permit: &Permit) -> Result<(), Error> {
        self.inner.forget(permit).await
    }
}
