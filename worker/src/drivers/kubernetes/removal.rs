//! How pods end, and what is left of an appliance goes.

use std::time::Duration;

use common::kind::StopRecipe;
use futures::future::join_all;
use kubernetes::Error as ApiError;
use kubernetes::k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use worker_core::instance::Instance;

use super::api::{self, Exactly, Resource};
use super::cache::Known;
use super::names::anchor;
use super::ownership::{TRIES, check_token};
use super::pod;
use super::view::PodView;
use super::{Inner, failed};
use crate::drivers::Error;
use crate::gate::Permit;

/// How long the end of a pod is waited for, beside the time that its specification gives it to end, before that counts as a failure.
/// Shorter than the lifecycle waits for the call, so that the reason is told; it then asks again.
const WAIT: Duration = Duration::from_secs(45);
/// Between two questions to the API while the watch says nothing.
const ASK: Duration = Duration::from_secs(5);

impl Inner {
    /// Ends an instance, and begins to end others of its appliance.
    pub(super) async fn destroy(
        &self,
        permit: &Permit,
        instance: &Instance,
        others: &[Instance],
        stop: StopRecipe,
    ) -> Result<(), Error> {
        let (_held, _claimed) = self.hold(permit).await?;
        let grace = pod::grace(&self.config, stop.timeout);
        // What becomes of the others is told by their own calls.
        let others = join_all(others.iter().map(|other| self.begin_end(permit, other, grace)));
        let (told, _) = tokio::join!(self.begin_end(permit, instance, grace), others);
        match told? {
            // No longer than the lifecycle waits: it is to be told why, and asks again.
            Some(view) => self.wait_until_over(&view, stop.timeout.unwrap_or_default() + WAIT).await,
            None => Ok(()),
        }
    }

    /// Asks for the end of what is left of a pod, and does not wait for it.
    pub(super) async fn begin_removal(&self, permit: &Permit, view: &PodView) -> Result<(), Error> {
        self.delete(permit, view.clone(), self.own_grace(view)).await.map(drop)
    }

    /// Asks for the end of an instance. Answers its pod as it is then; `None` when it is gone.
    async fn begin_end(&self, permit: &Permit, instance: &Instance, grace: i64) -> Result<Option<PodView>, Error> {
        let Some((key, namespace, uid)) = Self::pod_of(permit.appliance(), instance) else { return Ok(None) };
        match self.current(key, namespace, uid).await? {
            Some(view) => self.delete(permit, view, grace).await,
            None => Ok(None),
        }
    }

    /// Deletes a pod, and waits until nothing of it can run.
    pub(super) async fn remove(&self, permit: &Permit, view: &PodView) -> Result<(), Error> {
        match self.delete(permit, view.clone(), self.own_grace(view)).await? {
            Some(left) => self.wait_until_over(&left, WAIT).await,
            None => Ok(()),
        }
    }

    /// The time to end that a pod was made with.
    fn own_grace(&self, view: &PodView) -> i64 {
        view.grace.unwrap_or_else(|| pod::grace(&self.config, None)).max(1)
    }

    /// Asks for the end of exactly this pod. Answers it as it is then; `None` when it is gone.
    pub(super) async fn delete(
        &self,
        permit: &Permit,
        mut seen: PodView,
        grace: i64,
    ) -> Result<Option<PodView>, Error> {
        let (key, namespace, uid) = (seen.key, seen.namespace.clone(), seen.uid.clone());
        for _ in 0..TRIES {
            check_token(seen.token, permit)?;
            if seen.deleting.is_some_and(|period| period <= grace) && !seen.over {
                return Ok(Some(seen));
            }
            permit.check()?;
            let exactly = Exactly { uid: &uid, version: Some(&seen.version) };
            // What has no process any more has nothing to be given time for.
            let grace = if seen.over || seen.gated { 0 } else { grace };
            let deleted =
                api::delete(&self.client, Resource::Pods, &namespace, &key.name(), exactly, Some(grace)).await;
            match deleted {
                Ok(answer) => return Ok(self.deleted(seen, answer)),
                Err(ApiError::NotFound(_)) => {
                    self.cache.bury(key, &namespace, &uid, Some(&seen));
                    return Ok(None);
                }
                Err(ApiError::Conflict(_)) => match self.read(key, &namespace, &uid).await? {
                    Some(view) => seen = view,
                    None => return Ok(None),
                },
                Err(error) => return Err(failed("delete pod", error)),
            }
        }
        Err(Error::Failed(format!("delete pod {}: it changed each time that it was read", key.name())))
    }

    /// What is left of a pod after it was deleted, by the answer.
    fn deleted(&self, seen: PodView, answer: serde_json::Value) -> Option<PodView> {
        // What was never on a node, and what has ended, goes at once.
        if seen.over || seen.gated {
            self.cache.bury(seen.key, &seen.namespace, &seen.uid, Some(&seen));
            return None;
        }
        match serde_json::from_value::<Pod>(answer).ok().as_ref().and_then(PodView::of) {
            Some(view) if view.uid == seen.uid => {
                self.cache.put(view.clone());
                Some(view)
            }
            _ => Some(seen),
        }
    }

    /// Waits until the API says that nothing of a pod can run.
    async fn wait_until_over(&self, view: &PodView, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        let mut changes = self.cache.changes();
        let mut last = view.clone();
        loop {
            // What changes from here on ends the wait below, and what this look itself takes in does not.
            changes.mark_unchanged();
            let mut is_known = true;
            match self.cache.get(view.key, &view.namespace, &view.uid) {
                Known::Gone(_) => return Ok(()),
                Known::There(now) if now.over => return Ok(()),
                Known::There(now) => last = *now,
                Known::Unknown => match self.read(view.key, &view.namespace, &view.uid).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(now)) if now.over => return Ok(()),
                    answer => {
                        // It is asked again, until the deadline.
                        is_known = false;
                        if let Ok(Some(now)) = answer {
                            last = now;
                        }
                    }
                },
            }
            if Instant::now() >= deadline {
                let why = self.problem(&last).unwrap_or_else(|| "it runs".to_owned());
                return Err(Error::Failed(format!("pod {} has not ended within {limit:?}: {why}", view.key.name())));
            }
            if !is_known {
                // Changes of other pods are no reason to ask again.
                sleep_until(deadline.min(Instant::now() + ASK)).await;
                continue;
            }
            // Changes of other pods wake this as well, and cost a look.
            let more = timeout(ASK, changes.changed());
            if timeout_at(deadline, more).await.is_ok_and(|waited| waited.is_err())
                && let Known::There(_) = self.cache.get(view.key, &view.namespace, &view.uid)
            {
                // Nothing was heard of any pod: a deletion may have been missed.
                _ = self.read(view.key, &view.namespace, &view.uid).await;
            }
        }
    }

    /// Removes what is left of an appliance: pods that do not run, its Service, and its anchor at last.
    pub(super) async fn forget(&self, permit: &Permit) -> Result<(), Error> {
        let (mut held, claimed) = self.hold(permit).await?;
        let appliance = permit.appliance();
        for entry in &claimed.anchor.journal.instances {
            let found = self.current(entry.key(appliance), &entry.namespace, &entry.uid).await?;
            let Some(view) = found else { continue };
            if view.runs() {
                return Err(Error::Failed(format!("instance {} still runs", entry.ordinal)));
            }
            self.remove(permit, &view).await?;
        }
        for view in self.cache.of_appliance(appliance) {
            if !view.runs() && view.token.is_some() {
                self.remove(permit, &view).await?;
            }
        }
        for namespace in &claimed.anchor.journal.services {
            self.remove_service(permit, namespace).await?;
        }
        let mut found = Some(claimed.anchor);
        held.claimed = None;
        for _ in 0..TRIES {
            let Some(seen) = found else {
                self.holdings.forget(appliance);
                return Ok(());
            };
            check_token(Some(seen.token), permit)?;
            permit.check()?;
            let exactly = Exactly { uid: &seen.uid, version: Some(&seen.version) };
            match api::delete(&self.client, Resource::Leases, &self.namespace, &anchor(appliance), exactly, None).await
            {
                Ok(_) | Err(ApiError::NotFound(_)) => found = None,
                Err(ApiError::Conflict(_)) => found = self.read_anchor(appliance).await?,
                Err(error) => return Err(failed("delete the anchor", error)),
            }
        }
        Err(Error::Failed("the anchor changed each time that it was read".into()))
    }
}
