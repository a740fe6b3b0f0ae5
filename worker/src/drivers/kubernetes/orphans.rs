//! Pods that no anchor names: what a boot left that a newer owner, or a dead worker, did not bring to its end.
//!
//! Most never ran, because their gate is there still; the others have ended. Only those are removed, once they are old enough, and only
//! exactly the pod that was looked at. A pod that runs and that no anchor names is shown and left alone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use super::api::{self, Exactly, Resource};
use super::view::PodView;
use super::{Inner, KubernetesDriver, failed};
use crate::drivers::Error;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(600);

/// A pod that no anchor names.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Since when it has been there.
    pub age: Duration,
    /// Whether it may run: then it is not removed.
    pub runs: bool,
    uid: String,
    version: String,
}

impl KubernetesDriver {
    /// Looks for orphans now and then, and removes those that are old enough, until `stop`.
    pub async fn sweep(self, stop: CancellationToken) {
        let age = self.inner.config.orphan_age;
        if age.is_zero() {
            return;
        }
        loop {
            // Spread, so that the workers of a cluster do not look together.
            let wait = LOOK.mul_f64(0.5 + rand::random::<f64>());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            match self.orphans(age).await {
                Ok(found) => {
                    for orphan in found {
                        self.remove_and_log(&orphan).await;
                    }
                }
                Err(error) => tracing::info!(%error, "orphans were not looked for"),
            }
        }
    }

    async fn remove_and_log(&self, orphan: &Orphan) {
        let (namespace, pod) = (&orphan.namespace, &orphan.name);
        if orphan.runs {
            tracing::warn!(namespace, pod, "a pod runs that no anchor names: nothing looks after it");
            return;
        }
        match self.remove_orphan(orphan).await {
            Ok(()) => tracing::info!(namespace, pod, "removed a pod that no anchor names"),
            Err(error) => tracing::info!(namespace, pod, %error, "a pod that no anchor names was not removed"),
        }
    }

    /// Pods of at least that age that no anchor names.
    ///
    /// # Errors
    /// [`Error`] when pods or anchors cannot be read.
    pub async fn orphans(&self, age: Duration) -> Result<Vec<Orphan>, Error> {
        let inner = &self.inner;
        // Of namespaces whose watch is broken nothing is said.
        let views = inner.cache.all();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age_of = |view: &PodView| now.saturating_sub(Duration::from_millis(view.created_unix_ms));
        let mut found = Vec::new();
        for view in views.into_iter().filter(|view| age_of(view) >= age) {
            // What runs is asked about as well, one anchor each: a command of an operator, and the slow look of a worker, can afford it.
            if inner.is_orphan(&view).await? {
                found.push(Orphan {
                    namespace: view.namespace.clone(),
                    name: view.key.name(),
                    age: age_of(&view),
                    runs: view.runs() || !view.gated && !view.over,
                    uid: view.uid,
                    version: view.version,
                });
            }
        }
        found.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        Ok(found)
    }

    /// Removes exactly this pod, which does not run.
    ///
    /// # Errors
    /// [`Error::Refused`] for one that may run, [`Error::Failed`] when it has changed since.
    pub async fn remove_orphan(&self, orphan: &Orphan) -> Result<(), Error> {
        if orphan.runs {
            return Err(Error::Refused("it may run".into()));
        }
        let exactly = Exactly { uid: &orphan.uid, version: Some(&orphan.version) };
        let (namespace, name) = (&orphan.namespace, &orphan.name);
        match api::delete(&self.inner.client, Resource::Pods, namespace, name, exactly, Some(0)).await {
            Ok(_) | Err(kubernetes::Error::NotFound(_)) => Ok(()),
            Err(error) => Err(failed("delete pod", error)),
        }
    }
}

impl Inner {
    async fn is_orphan(&self, view: &PodView) -> Result<bool, Error> {
        if self.holdings.names(view.key.appliance, &view.uid) {
            return Ok(false);
        }
        let anchor = self.read_anchor(view.key.appliance).await?;
        Ok(!anchor.is_some_and(|anchor| anchor.journal.instances.iter().any(|known| known.uid == view.uid)))
    }
}
