//! Who owns an appliance, as the API server has it: claims, and changes of the anchor.
//!
//! One lock per appliance, held for a whole call: of one owner, calls take effect one after the other. What is kept here of an anchor
//! was written under this worker's own token, and only whoever raised the token can have changed it since.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use common::{ApplianceId, Token};
use futures::future::join_all;
use kubernetes::Error as ApiError;
use kubernetes::k8s_openapi::api::coordination::v1::Lease;
use kubernetes::k8s_openapi::api::core::v1::Pod;
use kubernetes::kube::core::ObjectList;
use serde_json::json;
use tokio::sync::{Mutex as Lock, OwnedMutexGuard};

use super::anchor::{Anchor, Journal, JournalInstance};
use super::api::{self, Exactly, Resource};
use super::cache::Known;
use super::names::{anchor, annotation, write_token};
use super::view::PodView;
use super::{Inner, failed};
use crate::drivers::Error;
use crate::gate::Permit;

/// How often a write is tried whose object changed meanwhile: a kubelet changes a pod some times a second while it starts.
pub(super) const TRIES: u32 = 8;
/// Appliances whose anchors are kept. Of others they are read again.
const MAX_HOLDINGS: usize = 50_000;

/// What one worker knows of an appliance it has claimed.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// Under whose token what follows was written; nothing counts under another one.
    pub(super) claimed: Option<Claimed>,
}

/// What was written under a token.
#[derive(Clone, Debug)]
pub(super) struct Claimed {
    pub(super) anchor: Anchor,
    /// Ports that the Service of each namespace was given under this token.
    pub(super) exposed: BTreeMap<String, Vec<u16>>,
}

/// The appliances of this worker.
#[derive(Debug, Default)]
pub(super) struct Holdings(Mutex<HashMap<ApplianceId, Arc<Lock<Holding>>>>);

/// The right to go on with one appliance, for one call.
pub(super) type Held = OwnedMutexGuard<Holding>;

impl Holdings {
    fn of(&self, appliance: ApplianceId) -> Arc<Lock<Holding>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_HOLDINGS && !all.contains_key(&appliance) {
            all.retain(|_, holding| Arc::strong_count(holding) > 1);
        }
        Arc::clone(all.entry(appliance).or_default())
    }

    /// Whether an anchor that this worker wrote names the pod. `false` where a call is under way.
    pub(super) fn names(&self, appliance: ApplianceId, uid: &str) -> bool {
        let holding = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&appliance).cloned();
        let held = holding.as_ref().and_then(|holding| holding.try_lock().ok());
        let claimed = held.as_ref().and_then(|held| held.claimed.as_ref());
        claimed.is_some_and(|claimed| claimed.anchor.journal.instances.iter().any(|known| known.uid == uid))
    }

    pub(super) fn forget(&self, appliance: ApplianceId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&appliance);
    }
}

/// Refuses to go on under a token older than one that was seen.
pub(super) fn check_token(seen: Option<Token>, permit: &Permit) -> Result<(), Error> {
    match seen {
        Some(newer) if newer > permit.token() => Err(Error::Superseded(newer)),
        _ => Ok(()),
    }
}

impl Inner {
    /// Takes the lock of an appliance, and claims it unless that was done under this token.
    pub(super) async fn hold(&self, permit: &Permit) -> Result<(Held, Claimed), Error> {
        let mut held = self.holdings.of(permit.appliance()).lock_owned().await;
        permit.check()?;
        if let Some(claimed) = &held.claimed {
            check_token(Some(claimed.anchor.token), permit)?;
            if claimed.anchor.token == permit.token() {
                let claimed = claimed.clone();
                self.end_what_outlived(permit, &claimed.anchor.journal).await;
                return Ok((held, claimed));
            }
        }
        held.claimed = None;
        let turn = self.claims.acquire().await;
        let _turn = turn.map_err(|_| Error::Failed("the driver stops".into()))?;
        let anchor = self.claim_anchor(permit).await?;
        for instance in &anchor.journal.instances {
            self.raise(permit, instance).await?;
        }
        let claimed = Claimed { anchor, exposed: BTreeMap::new() };
        // Only now: a claim that broke off is begun anew.
        held.claimed = Some(claimed.clone());
        self.end_what_outlived(permit, &claimed.anchor.journal).await;
        Ok((held, claimed))
    }

    /// Ends what runs on of pods whose appliance has ended by itself: sidecars do not notice. Whether that was begun is seen the next time.
    async fn end_what_outlived(&self, permit: &Permit, journal: &Journal) {
        for entry in &journal.instances {
            let known = self.cache.get(entry.key(permit.appliance()), &entry.namespace, &entry.uid);
            if let Known::There(view) = known
                && view.has_outlived()
                && let Err(error) = self.begin_removal(permit, &view).await
            {
                tracing::info!(pod = view.key.name(), %error, "what outlived its appliance was not ended");
            }
        }
    }

    /// What may run of an appliance: as this worker wrote it, or read for this once, and whether this worker wrote it. `None` when there
    /// is nothing.
    pub(super) async fn journal(&self, appliance: ApplianceId) -> Result<Option<(Journal, bool)>, Error> {
        let held = self.holdings.of(appliance).lock_owned().await;
        if let Some(claimed) = &held.claimed {
            return Ok(Some((claimed.anchor.journal.clone(), true)));
        }
        Ok(self.read_anchor(appliance).await?.map(|anchor| (anchor.journal, false)))
    }

    pub(super) async fn read_anchor(&self, appliance: ApplianceId) -> Result<Option<Anchor>, Error> {
        let lease: Option<Lease> = api::get(&self.client, Resource::Leases, &self.namespace, &anchor(appliance))
            .await
            .map_err(|error| failed("read the anchor", error))?;
        lease.as_ref().map(Anchor::read).transpose().map_err(|error| Error::Refused(error.to_string()))
    }

    /// Raises the token of the anchor, which is made where there is none.
    async fn claim_anchor(&self, permit: &Permit) -> Result<Anchor, Error> {
        for _ in 0..TRIES {
            let found = self.read_anchor(permit.appliance()).await?;
            check_token(found.as_ref().map(|anchor| anchor.token), permit)?;
            if let Some(own) = found.as_ref().filter(|anchor| anchor.token == permit.token()) {
                return Ok(own.clone());
            }
            let journal = match &found {
                Some(anchor) => anchor.journal.clone(),
                None => self.journal_of_pods(permit).await?,
            };
            match self.write_anchor(permit, &journal, found.as_ref()).await? {
                Some(written) => return Ok(written),
                None => continue,
            }
        }
        Err(Error::Failed("claim: the anchor changed each time that it was read".into()))
    }

    /// The journal of an appliance without an anchor: of a new one it is empty. If somebody has deleted an anchor, what runs is looked for,
    /// so that it is not started a second time. What was released in the moment before, and no watch has shown yet, is not found.
    ///
    /// A pod with its gate was perhaps named by the anchor that was deleted, and a former owner's removal of its gate may be on its way:
    /// it is deleted before there is an anchor. No other pod of a former owner can come to run: it would have to be written into the anchor
    /// first, and that one is no more.
    async fn journal_of_pods(&self, permit: &Permit) -> Result<Journal, Error> {
        let appliance = permit.appliance();
        let own = self.pods_of(appliance).await?;
        let mut journal = Journal::default();
        for view in own {
            let Some(token) = view.token else {
                // Nobody but a worker makes pods with a token: it is no instance, or somebody has spoilt it.
                tracing::warn!(%appliance, namespace = view.namespace, pod = view.key.name(), "a pod without a token is not taken for an instance");
                continue;
            };
            check_token(Some(token), permit)?;
            journal.note_attempt(view.key.ordinal, view.key.attempt);
            let view = if view.gated { self.delete_gated(permit, view).await? } else { Some(view) };
            let Some(view) = view else { continue };
            if view.management_port.is_some() {
                journal.services.insert(view.namespace.clone());
            }
            let (ordinal, attempt) = (view.key.ordinal, view.key.attempt);
            journal.instances.push(JournalInstance { ordinal, attempt, uid: view.uid, namespace: view.namespace });
        }
        if !journal.instances.is_empty() {
            let pods = journal.instances.len();
            tracing::warn!(%appliance, pods, "the anchor was deleted: it is made anew from the pods there are");
        }
        Ok(journal)
    }

    /// Pods of an appliance, whatever an anchor says: from the watches, or listed where these are out of date. Every new appliance comes by here, so
    /// that a list for each would be a storm of them.
    async fn pods_of(&self, appliance: ApplianceId) -> Result<Vec<PodView>, Error> {
        if self.cache.trouble().is_none() {
            return Ok(self.cache.of_appliance(appliance));
        }
        let lists =
            self.watched.iter().map(|namespace| api::list_pods_of(&self.client, namespace.as_deref(), appliance));
        let mut own = Vec::new();
        for list in join_all(lists).await {
            let list: ObjectList<Pod> = list.map_err(|error| failed("list pods", error))?;
            own.extend(list.items.iter().filter_map(PodView::of).filter(|view| view.key.appliance == appliance));
        }
        Ok(own)
    }

    /// Deletes a pod that has its gate. Answers it if it was released meanwhile.
    async fn delete_gated(&self, permit: &Permit, mut seen: PodView) -> Result<Option<PodView>, Error> {
        let (key, namespace, uid) = (seen.key, seen.namespace.clone(), seen.uid.clone());
        for _ in 0..TRIES {
            check_token(seen.token, permit)?;
            permit.check()?;
            let exactly = Exactly { uid: &uid, version: Some(&seen.version) };
            match api::delete(&self.client, Resource::Pods, &namespace, &key.name(), exactly, Some(0)).await {
                Ok(_) | Err(ApiError::NotFound(_)) => {
                    self.cache.bury(key, &namespace, &uid, Some(&seen));
                    return Ok(None);
                }
                Err(ApiError::Conflict(_)) => match self.read(key, &namespace, &uid).await? {
                    Some(view) if view.gated => seen = view,
                    other => return Ok(other),
                },
                Err(error) => return Err(failed("delete pod", error)),
            }
        }
        Err(Error::Failed(format!("delete pod {}: it changed each time that it was read", key.name())))
    }

    /// Writes the anchor as it shall be in the place of what was read. `None` when it is another one by now.
    async fn write_anchor(
        &self,
        permit: &Permit,
        journal: &Journal,
        read: Option<&Anchor>,
    ) -> Result<Option<Anchor>, Error> {
        let (appliance, namespace) = (permit.appliance(), self.namespace.as_str());
        let lease = Anchor::write(appliance, namespace, self.worker.as_str(), permit.token(), journal, read);
        permit.check()?;
        let written: Result<Lease, ApiError> = match read {
            Some(_) => api::replace(&self.client, Resource::Leases, namespace, &anchor(appliance), &lease).await,
            None => api::create(&self.client, Resource::Leases, namespace, &lease, false).await,
        };
        match written {
            Ok(lease) => Anchor::read(&lease).map(Some).map_err(|error| Error::Refused(error.to_string())),
            Err(ApiError::Conflict(_) | ApiError::AlreadyExists(_)) => Ok(None),
            // Of one that is to be made it is the namespace that is not there.
            Err(ApiError::NotFound(_)) if read.is_some() => Ok(None),
            Err(error) => Err(failed("write the anchor", error)),
        }
    }

    /// Changes the journal under this worker's token. An anchor that is another one than this worker wrote last is read: if somebody has
    /// raised its token the change is refused, if only its metadata were touched it is made once more.
    pub(super) async fn change_journal(
        &self,
        permit: &Permit,
        held: &mut Held,
        change: impl Fn(&Journal) -> Journal,
    ) -> Result<(), Error> {
        let Some(claimed) = held.claimed.take() else {
            return Err(Error::Failed("the appliance is not claimed".into()));
        };
        let Claimed { mut anchor, exposed } = claimed;
        for _ in 0..TRIES {
            // Where there is no answer nothing is kept, and the next call reads what is there.
            if let Some(written) = self.write_anchor(permit, &change(&anchor.journal), Some(&anchor)).await? {
                held.claimed = Some(Claimed { anchor: written, exposed });
                return Ok(());
            }
            let found = self.read_anchor(permit.appliance()).await?;
            let found =
                found.ok_or_else(|| Error::Failed("the anchor is gone: somebody else has deleted it".into()))?;
            check_token(Some(found.token), permit)?;
            if found.token != permit.token() {
                return Err(Error::Failed("the anchor has an older token than was written to it".into()));
            }
            anchor = found;
        }
        Err(Error::Failed("the anchor changed each time that it was read".into()))
    }

    /// Raises the token of a pod that may run, so that nothing its former owner still has under way can change it.
    async fn raise(&self, permit: &Permit, instance: &JournalInstance) -> Result<(), Error> {
        let key = instance.key(permit.appliance());
        let mut view = self.current(key, &instance.namespace, &instance.uid).await?;
        for _ in 0..TRIES {
            let Some(seen) = view.filter(|view| !view.over) else { return Ok(()) };
            check_token(seen.token, permit)?;
            if seen.token == Some(permit.token()) {
                return Ok(());
            }
            let change = json!({"metadata": {"annotations": {annotation::TOKEN: write_token(permit.token())}}});
            match self.change_pod(permit, &seen, change).await? {
                Some(raised) => {
                    self.cache.put(raised);
                    return Ok(());
                }
                None => view = self.read(key, &instance.namespace, &instance.uid).await?,
            }
        }
        Err(Error::Failed(format!("claim: pod {} changed each time that it was read", key.name())))
    }

    /// Changes exactly the pod that was seen. `None` when it is another one, or gone, by now.
    pub(super) async fn change_pod(
        &self,
        permit: &Permit,
        seen: &PodView,
        change: serde_json::Value,
    ) -> Result<Option<PodView>, Error> {
        permit.check()?;
        let exactly = Exactly { uid: &seen.uid, version: Some(&seen.version) };
        let name = seen.key.name();
        let changed = api::patch::<Pod>(&self.client, Resource::Pods, &seen.namespace, &name, exactly, change).await;
        match changed {
            Ok(pod) => Ok(PodView::of(&pod)),
            Err(ApiError::Conflict(_) | ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(failed("change pod", error)),
        }
    }
}
