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
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::api;
use super::cache::{PodCache, number, watch_name};
use super::view::PodView;

/// Pods in one answer.
const PAGE: u32 = 500;
/// How long one watch lasts; the API server ends it then. Spread, so that the workers of a cluster do not begin theirs together.
const LASTS: Duration = Duration::from_secs(240);
/// Longest wait between two tries.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// A watch that ends sooner is not begun anew before so long has passed.
const SHORTEST: Duration = Duration::from_secs(1);

/// Why a watch ended.
enum Ended {
    /// The API server has ended it as was asked: it goes on where it was.
    GoesOn,
    /// It has to begin with a new list, because it is too old, said nothing, or said what cannot be.
    Expired(Error),
}

/// Keeps the cache as the API server has it, until `stop`.
pub(super) async fn run(
    client: Client,
    namespace: Option<String>,
    cache: Arc<PodCache>,
    stale_after: Duration,
    stop: CancellationToken,
) {
    let watch = PodWatch { name: watch_name(namespace.as_deref()), client, namespace, cache, stale_after };
    tokio::select! {
        () = stop.cancelled() => {}
        () = watch.keep() => {}
    }
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
            loop {
                let began = Instant::now();
                match self.watch(&mut version, &mut failures).await {
                    Ok(Ended::GoesOn) => sleep(SHORTEST.saturating_sub(began.elapsed())).await,
                    Ok(Ended::Expired(why)) => {
                        tracing::info!(watch = self.name, %why, "watch of pods expired: listing them again");
                        // Every worker's watch expires at once when the API server is restarted.
                        sleep(SHORTEST + SHORTEST.mul_f64(rand::random())).await;
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
        self.cache.broken(self.namespace.as_deref(), error.to_string());
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
                // Every page is of the version of the first one.
                let version = page.metadata.resource_version.unwrap_or_default();
                self.cache.replace(self.namespace.as_deref(), &version, views);
                return Ok(version);
            }
        }
    }

    /// Watches from a version on, and keeps it at what was heard last.
    async fn watch(&self, version: &mut String, failures: &mut u32) -> Result<Ended, Error> {
        let lasts = LASTS.mul_f64(1.0 + 0.2 * rand::random::<f64>());
        let events = match api::watch_pods(&self.client, self.namespace.as_deref(), version, lasts).await {
            Err(error @ Error::Expired(_)) => return Ok(Ended::Expired(error)),
            events => events?,
        };
        pin_mut!(events);
        // That it could be begun says nothing: one of a version that is yet to come is silent. What is heard counts.
        loop {
            // A connection that is dead says nothing, and one that is alive has a bookmark about every minute.
            let event = match timeout(self.stale_after, events.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error))) => return or_expired(error.into()),
                Ok(None) => return Ok(Ended::GoesOn),
                Err(_) => {
                    let silent = Error::NoAnswer(format!("it said nothing for {:?}", self.stale_after));
                    return Ok(Ended::Expired(silent));
                }
            };
            let seen = match &event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) => {
                    pod.metadata.resource_version.clone()
                }
                WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version.clone()),
                WatchEvent::Error(status) => return or_expired(Error::of_status(status)),
            };
            if let Some(seen) = seen {
                if matches!((number(&seen), number(version)), (Some(seen), Some(last)) if seen < last) {
                    // The data of the API server were put back to an older copy.
                    let text = format!("its version went back from {version} to {seen}");
                    return Ok(Ended::Expired(Error::Unreadable(text)));
                }
                *version = seen;
            }
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    PodView::of(&pod).into_iter().for_each(|view| self.cache.put(view));
                }
                WatchEvent::Deleted(pod) => {
                    if let Some(view) = PodView::of(&pod) {
                        self.gone(&view);
                    }
                }
                WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
            }
            *failures = 0;
            self.cache.heard(self.namespace.as_deref(), version);
        }
    }

    /// An object that the watch does not select any more is told as deleted, too. One that was asked to go is gone; of others nothing
    /// is known.
    fn gone(&self, view: &PodView) {
        if view.deleting.is_some() {
            self.cache.bury(view.key, &view.namespace, &view.uid, Some(view));
        } else {
            self.cache.leave(view);
        }
    }
}

/// What a watch that said that it cannot go on comes to: what it says cannot be read the next time either.
fn or_expired(error: Error) -> Result<Ended, Error> {
    match error {
        Error::Expired(_) | Error::Unreadable(_) => Ok(Ended::Expired(error)),
        error => Err(error),
    }
}
