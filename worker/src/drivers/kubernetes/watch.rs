//! The one watch of a namespace, or of all: a list, and then what changes.
//!
//! Written here and not taken from kube's `watcher`, which keeps bookmarks to itself: without them a watch that is silent looks like one
//! that is dead.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use kubernetes::Error;
use kubernetes::k8s_openapi::api::core::v1::Pod;
use kubernetes::kube::Client;
use kubernetes::kube::core::{ObjectList, WatchEvent};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::api;
use super::cache::PodCache;
use super::view::PodView;

/// Pods in one answer.
const PAGE: u32 = 500;
/// How long one watch lasts; the API server ends it then. Spread, so that the workers of a cluster do not begin theirs together.
const LASTS: Duration = Duration::from_secs(240);
/// Longest wait between two tries.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Why a watch ended.
enum Ended {
    /// The API server has ended it as was asked, or the connection broke: it goes on where it was.
    GoesOn,
    /// It has to begin with a new list.
    Expired,
}

/// Keeps the cache as the API server has it, until `stop`.
pub(super) async fn run(
    client: Client,
    namespace: Option<String>,
    cache: Arc<PodCache>,
    stale_after: Duration,
    stop: CancellationToken,
) {
    let watch = PodWatch { name: name(namespace.as_deref()), client, namespace, cache, stale_after };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watch.keep() => {}
    }
}

/// How a watch is called in messages, and in the cache.
pub(super) fn name(namespace: Option<&str>) -> String {
    namespace.map_or_else(|| "all namespaces".to_owned(), |namespace| format!("namespace {namespace}"))
}

struct PodWatch {
    name: String,
    client: Client,
    namespace: Option<String>,
    cache: Arc<PodCache>,
    stale_after: Duration,
}

impl PodWatch {
    async fn keep(&self) {
        let mut failures = 0;
        loop {
            let mut version = match self.list().await {
                Ok(version) => version,
                Err(error) => {
                    self.wait(&mut failures, &error).await;
                    continue;
                }
            };
            failures = 0;
            loop {
                match self.watch(&mut version, &mut failures).await {
                    Ok(Ended::GoesOn) => {}
                    Ok(Ended::Expired) => {
                        tracing::info!(watch = self.name, "watch of pods expired: listing them again");
                        // Every worker's watch expires at once when the API server is restarted.
                        sleep(Duration::from_secs(2).mul_f64(rand::random())).await;
                        break;
                    }
                    Err(error) => self.wait(&mut failures, &error).await,
                }
            }
        }
    }

    async fn wait(&self, failures: &mut u32, error: &Error) {
        *failures += 1;
        if *failures == 1 {
            tracing::warn!(watch = self.name, %error, "watch of pods broke off");
        }
        self.cache.broken(&self.name, error.to_string());
        let bound = (Duration::from_millis(500) * 2_u32.pow((*failures - 1).min(10))).min(MAX_WAIT);
        sleep(bound.mul_f64(0.5 + 0.5 * rand::random::<f64>())).await;
    }

    /// Lists all pods, page by page. Answers the version that the list is of.
    async fn list(&self) -> Result<String, Error> {
        let (mut views, mut token) = (Vec::new(), None);
        loop {
            let page: ObjectList<Pod> =
                api::list_pods(&self.client, self.namespace.as_deref(), PAGE, token.as_deref()).await?;
            views.extend(page.items.iter().filter_map(PodView::of));
            token = page.metadata.continue_.filter(|token| !token.is_empty());
            if token.is_none() {
                let covers = |namespace: &str| self.namespace.as_deref().is_none_or(|own| own == namespace);
                self.cache.replace(&self.name, covers, views);
                return Ok(page.metadata.resource_version.unwrap_or_default());
            }
        }
    }

    /// Watches from a version on, and keeps it at what was heard last.
    async fn watch(&self, version: &mut String, failures: &mut u32) -> Result<Ended, Error> {
        let lasts = LASTS.mul_f64(1.0 + 0.2 * rand::random::<f64>());
        let events = match api::watch_pods(&self.client, self.namespace.as_deref(), version, lasts).await {
            Err(Error::Expired(_)) => return Ok(Ended::Expired),
            events => events?,
        };
        self.cache.heard(&self.name);
        *failures = 0;
        pin_mut!(events);
        loop {
            // A connection that is dead says nothing, and one that is alive has a bookmark about every minute.
            let event = match timeout(self.stale_after, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => {
                    let error = Error::from(error);
                    return if matches!(error, Error::Expired(_)) { Ok(Ended::Expired) } else { Err(error) };
                }
                Ok(None) => return Ok(Ended::GoesOn),
                Err(_) => return Err(Error::NoAnswer(format!("it said nothing for {:?}", self.stale_after))),
            };
            let seen = match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    if let Some(view) = PodView::of(&pod) {
                        self.cache.put(view);
                    }
                    pod.metadata.resource_version
                }
                WatchEvent::Deleted(pod) => {
                    if let Some(view) = PodView::of(&pod) {
                        self.cache.bury(view.key, &view.uid, Some(&view));
                    }
                    pod.metadata.resource_version
                }
                WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
                WatchEvent::Error(status) => {
                    let error = Error::of_status(&status);
                    return if matches!(error, Error::Expired(_)) { Ok(Ended::Expired) } else { Err(error) };
                }
            };
            if let Some(seen) = seen {
                *version = seen;
            }
            self.cache.heard(&self.name);
        }
    }
}
