//! The objects of one namespace, or of all, as they are and as they change: a list, then changes, and a new list whenever
//! changes may have been missed.

use std::time::Duration;

use common::backoff::Backoff;
use futures::StreamExt;
use kubernetes::kube::core::DynamicObject;
use kubernetes::kube::runtime::watcher::{self, Event};
use kubernetes::kube::{self, Api};
use runtime::log_limited;
use runtime::retry::Retries;
use tokio::sync::mpsc;

use super::resource::{GROUP, PLURAL, Resource, ResourceKey};
use crate::metrics;

/// Delays after failures in a row.
const RETRY: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(30) };

/// What a watch tells, in the order it happened.
#[derive(Debug)]
pub(super) enum Told {
    /// A list begins: every object follows.
    Listing,
    /// An object, as it is now.
    There(Box<Resource>),
    /// An object is gone.
    Gone(ResourceKey),
    /// The list was complete. What was not in it is gone.
    Listed,
    /// What keeps it from telling more, for people; it goes on by itself.
    Trouble(String),
}

/// Watches until nobody listens. `scope` tells several watches of one listener apart.
pub(super) async fn watch(api: Api<DynamicObject>, scope: usize, told: mpsc::Sender<(usize, Told)>) {
    let mut retries = Retries::new(RETRY);
    loop {
        let mut stream = std::pin::pin!(watcher::watcher(api.clone(), watcher::Config::default()));
        while let Some(event) = stream.next().await {
            let (event, failed) = match event {
                Ok(event) => (read(event), None),
                // A list follows, as is meant.
                Err(error) if code(&error) == 410 => (None, Some(error)),
                Err(error) => (Some(Told::Trouble(describe(&error))), Some(error)),
            };
            if let Some(event) = event
                && told.send((scope, event)).await.is_err()
            {
                return;
            }
            match failed {
                None => retries.reset(),
                Some(error) => {
                    let reason = reason(&error);
                    metrics::watch_restarted(reason);
                    log_limited!(warn, reason, "watch of custom resources: {}", describe(&error));
                    tokio::time::sleep(retries.next_delay()).await;
                    if must_list(&error) {
                        break;
                    }
                }
            }
        }
    }
}

fn read(event: Event<DynamicObject>) -> Option<Told> {
    Some(match event {
        Event::Init => Told::Listing,
        Event::InitApply(object) | Event::Apply(object) => Told::There(Box::new(Resource::read(object)?)),
        Event::Delete(object) => Told::Gone(Resource::read(object)?.key),
        Event::InitDone => Told::Listed,
    })
}

/// Whether the version that the watch would go on from is of no use any more. kube sees that itself where the API server says so
/// within a watch, but not where it says so instead of one.
fn must_list(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 404 | 410))
}

fn code(error: &watcher::Error) -> u16 {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code,
        _ => 0,
    }
}

/// The label of metrics.
fn reason(error: &watcher::Error) -> &'static str {
    match code(error) {
        404 => "no_definition",
        410 => "expired",
        401 | 403 => "forbidden",
        _ => "failed",
    }
}

fn describe(error: &watcher::Error) -> String {
    let said = || match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => kubernetes::Error::from(error).to_string(),
        watcher::Error::WatchError(status) => kubernetes::Error::of_status(status).to_string(),
        watcher::Error::NoResourceVersion => error.to_string(),
    };
    match code(error) {
        404 => format!(
            "the API server does not know {PLURAL}.{GROUP}: apply the custom resource definition of this version \
             (helm/rug/crds/appliances.rug.dev.yaml)"
        ),
        401 | 403 => format!("the API server does not allow to list and watch {PLURAL}.{GROUP}: {}", said()),
        _ => said(),
    }
}
