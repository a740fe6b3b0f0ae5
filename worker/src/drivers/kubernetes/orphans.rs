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
            // What runs takes no look at its anchor here: there is much of it, and nothing is done about it.
            for orphan in self.unnamed(age, |view| !view.runs()).await {
                self.remove_and_log(&orphan).await;
            }
        }
    }

    async fn remove_and_log(&self, orphan: &Orphan) {
        let (namespace, pod) = (&orphan.namespace, &orphan.name);
        if orphan.runs {
            return;
        }
        match self.remove_orphan(orphan).await {
            Ok(()) => tracing::info!(namespace, pod, "removed a pod that no anchor names"),
            Err(error) => tracing::info!(namespace, pod, %error, "a pod that no anchor names was not removed"),
        }
    }

    /// Pods of at least that age that no anchor names, also those that run.
    ///
    /// # Errors
    /// [`Error`] when pods are not known.
    pub async fn orphans(&self, age: Duration) -> Result<Vec<Orphan>, Error> {
        match self.inner.cache.trouble() {
            Some(problem) => Err(Error::Failed(problem)),
            None => Ok(self.unnamed(age, |_| true).await),
        }
    }

    /// Those of them that are asked for. One whose anchor cannot be read is left out: it may be named.
    async fn unnamed(&self, age: Duration, asked: impl Fn(&PodView) -> bool) -> Vec<Orphan> {
        let inner = &self.inner;
        // Of namespaces whose watch is broken nothing is said.
        let views = inner.cache.all();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age_of = |view: &PodView| now.saturating_sub(Duration::from_millis(view.created_unix_ms));
        let mut found = Vec::new();
        // A pod without a token is not Rug's, and one of another namespace of anchors is of another installation.
        let own = |view: &PodView| {
            view.token.is_some() && view.anchors.as_ref().is_none_or(|anchors| *anchors == inner.namespace)
        };
        for view in views.into_iter().filter(|view| age_of(view) >= age && own(view) && asked(view)) {
            let is_orphan = match inner.is_orphan(&view).await {
                Ok(is_orphan) => is_orphan,
                Err(error) => {
                    tracing::info!(pod = view.key.name(), %error, "it is not known whether this pod is an orphan");
                    false
                }
            };
            if is_orphan {
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
        found
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
