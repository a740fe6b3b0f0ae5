//! What is known of pods, from one watch of each namespace and from the answers of the driver's own calls.
//!
//! Of two versions of a pod the newer one is kept. That a pod is gone counts only when the watch or an answer said so: what is not
//! here was perhaps not heard of yet, and is asked for. What is here counts only while the watch that covers its namespace can be
//! trusted: a watch that says nothing for too long makes nothing known of its namespace, and of no other one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::ApplianceId;
use common::status::InstanceEnd;
use tokio::sync::watch;
use tokio::time::Instant;

use super::names::PodKey;
use super::view::PodView;
use crate::drivers::{EndSender, EndedInstance};

/// Pods that are gone and remembered, so that an answer that comes late does not bring them back.
const MAX_GONE: usize = 8_192;

/// What is known of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It was like this.
    There(Box<PodView>),
    /// It is gone, and this is what was last known of it.
    Gone(Box<LastWords>),
    /// Nothing is known.
    Unknown,
}

/// What is kept of a pod that is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LastWords {
    pub(super) problem: Option<String>,
    pub(super) end: Option<InstanceEnd>,
}

/// Everything that is known.
#[derive(Debug)]
pub(super) struct PodCache {
    content: Mutex<Content>,
    stale_after: Duration,
    /// Counts changes, for those who wait for one.
    changed: watch::Sender<u64>,
}

/// Where a pod stands: of one name there is one in each namespace at a time.
type Place = (PodKey, String);

#[derive(Debug, Default)]
struct Content {
    /// In order, so that the pods of one appliance are together.
    pods: BTreeMap<Place, PodView>,
    /// By uid.
    gone: Remembered<LastWords>,
    /// Pods that no watch sees any more and that may be there all the same, with the version that was the last one seen; by uid.
    left: Remembered<u64>,
    /// Who wants to know of an end, by uid.
    waiting: HashMap<String, (EndedInstance, EndSender)>,
    /// How each watch is, by the namespace that it covers; `None` covers all.
    watches: BTreeMap<Option<String>, WatchState>,
}

#[derive(Debug)]
struct WatchState {
    listed: bool,
    heard: Instant,
    /// The newest version that was heard of.
    version: Option<u64>,
    problem: Option<String>,
}

/// A map that forgets what it was given first.
#[derive(Debug)]
struct Remembered<T> {
    values: HashMap<String, T>,
    order: VecDeque<String>,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self { values: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Remembered<T> {
    fn get(&self, uid: &str) -> Option<&T> {
        self.values.get(uid)
    }

    fn insert(&mut self, uid: &str, value: T) {
        if self.values.insert(uid.to_owned(), value).is_none() {
            self.order.push_back(uid.to_owned());
        }
        if self.order.len() > MAX_GONE
            && let Some(oldest) = self.order.pop_front()
        {
            self.values.remove(&oldest);
        }
    }

    fn remove(&mut self, uid: &str) {
        if self.values.remove(uid).is_some() {
            self.order.retain(|known| known != uid);
        }
    }
}

/// How a watch is called in messages.
pub(super) fn watch_name(namespace: Option<&str>) -> String {
    namespace.map_or_else(|| "all namespaces".to_owned(), |namespace| format!("namespace {namespace}"))
}

/// A version as a number. What it is else cannot be compared.
pub(super) fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

impl PodCache {
    /// An empty one for watches of these namespaces (`None`: of all), which counts from the first list of each on.
    pub(super) fn new(stale_after: Duration, watches: impl IntoIterator<Item = Option<String>>) -> Self {
        let state = || WatchState { listed: false, heard: Instant::now(), version: None, problem: None };
        let watches = watches.into_iter().map(|namespace| (namespace, state())).collect();
        let content = Mutex::new(Content { watches, ..Content::default() });
        Self { content, stale_after, changed: watch::Sender::new(0) }
    }

    /// What is known of the pod with this uid.
    pub(super) fn get(&self, key: PodKey, namespace: &str, uid: &str) -> Known {
        let content = self.lock();
        if let Some(gone) = content.gone.get(uid) {
            return Known::Gone(Box::new(gone.clone()));
        }
        if content.doubt(namespace, self.stale_after).is_some() {
            return Known::Unknown;
        }
        match content.pods.get(&(key, namespace.to_owned())) {
            // Without its label the watch does not speak of it any more.
            Some(view) if view.uid == uid && view.labelled => Known::There(Box::new(view.clone())),
            _ => Known::Unknown,
        }
    }

    /// What was last heard of the pod with this uid, however long ago that was.
    pub(super) fn last_known(&self, key: PodKey, namespace: &str, uid: &str) -> Option<PodView> {
        self.lock().pods.get(&(key, namespace.to_owned())).filter(|view| view.uid == uid).cloned()
    }

    /// Why what is here of this namespace does not count; `None` when it does.
    pub(super) fn doubt(&self, namespace: &str) -> Option<String> {
        self.lock().doubt(namespace, self.stale_after)
    }

    /// Why something of what is here does not count; `None` when all of it does.
    pub(super) fn trouble(&self) -> Option<String> {
        let content = self.lock();
        content.watches.iter().find_map(|(namespace, state)| state.trouble(namespace.as_deref(), self.stale_after))
    }

    /// Every pod of which is known how it is.
    pub(super) fn all(&self) -> Vec<PodView> {
        let content = self.lock();
        let counts = |namespace: &str| content.doubt(namespace, self.stale_after).is_none();
        content.pods.values().filter(|view| view.labelled && counts(&view.namespace)).cloned().collect()
    }

    /// What was last heard of the pods of one appliance, however long ago that was.
    pub(super) fn of_appliance(&self, appliance: ApplianceId) -> Vec<PodView> {
        let first = (PodKey { appliance, ordinal: 0, attempt: 0 }, String::new());
        let content = self.lock();
        let own = content.pods.range(first..).take_while(|((key, _), _)| key.appliance == appliance);
        own.map(|(_, view)| view.clone()).collect()
    }

    /// Takes in a pod as an answer or an event has it.
    pub(super) fn put(&self, view: PodView) {
        if self.lock().put(view) {
            self.tell();
        }
    }

    /// Takes in that a pod is gone.
    pub(super) fn bury(&self, key: PodKey, namespace: &str, uid: &str, last: Option<&PodView>) {
        self.lock().bury(&(key, namespace.to_owned()), uid, last);
        self.tell();
    }

    /// Takes in that a watch does not see a pod any more, at this version, which does not say that it is gone: somebody may have taken
    /// its label away.
    pub(super) fn leave(&self, view: &PodView) {
        let mut content = self.lock();
        let place = (view.key, view.namespace.clone());
        if content.pods.get(&place).is_some_and(|known| known.uid == view.uid) {
            content.pods.remove(&place);
        }
        if let Some(version) = number(&view.version) {
            content.left.insert(&view.uid, version);
        }
        drop(content);
        self.tell();
    }

    /// Takes in all pods that one watch covers, as they were at a version. What was known of its namespaces and is not among them is
    /// unknown from now on. What is known by a newer version than that of the list stays: an answer was faster.
    pub(super) fn replace(&self, watched: Option<&str>, version: &str, views: Vec<PodView>) {
        let mut content = self.lock();
        let listed = number(version);
        let heard = content.watches.get(&watched.map(str::to_owned)).and_then(|state| state.version);
        // An API server whose data was put back counts anew: what was known of newer versions is of no worth, and what was gone is there.
        let put_back = matches!((listed, heard), (Some(listed), Some(heard)) if listed < heard);
        let covered = |view: &PodView| watched.is_none_or(|own| own == view.namespace);
        let is_newer =
            |view: &PodView| matches!((number(&view.version), listed), (Some(known), Some(listed)) if known > listed);
        content.pods.retain(|_, view| !covered(view) || !put_back && is_newer(view));
        for view in views {
            if put_back {
                content.gone.remove(&view.uid);
                content.left.remove(&view.uid);
            }
            content.put(view);
        }
        content.heard(watched, listed, true);
        drop(content);
        self.tell();
    }

    /// Something was heard from a watch, of this version.
    pub(super) fn heard(&self, watched: Option<&str>, version: &str) {
        self.lock().heard(watched, number(version), false);
    }

    /// A watch is broken.
    pub(super) fn broken(&self, watched: Option<&str>, problem: String) {
        if let Some(state) = self.lock().watches.get_mut(&watched.map(str::to_owned)) {
            state.problem = Some(problem);
        }
        self.tell();
    }

    /// Reports once to `ends` that a pod has ended; at once if it has.
    pub(super) fn report(&self, key: PodKey, namespace: &str, uid: &str, ended: EndedInstance, ends: &EndSender) {
        let mut content = self.lock();
        let known = content.pods.get(&(key, namespace.to_owned()));
        if content.gone.get(uid).is_some() || known.is_some_and(|view| view.uid == uid && view.ended) {
            // When its receiver is full the next probe finds it.
            _ = ends.try_send(ended);
        } else {
            content.waiting.insert(uid.to_owned(), (ended, ends.clone()));
        }
    }

    /// Changes, to be waited for. What is done between this call and the wait is not missed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // Each change leaves every map whole.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WatchState {
    fn trouble(&self, namespace: Option<&str>, stale_after: Duration) -> Option<String> {
        let age = self.heard.elapsed();
        match &self.problem {
            Some(problem) => Some(format!("the watch of {} is broken: {problem}", watch_name(namespace))),
            None if !self.listed => Some(format!("the pods of {} were not listed yet", watch_name(namespace))),
            None if age > stale_after => {
                Some(format!("the watch of {} said nothing for {} s", watch_name(namespace), age.as_secs()))
            }
            None => None,
        }
    }
}

impl Content {
    /// Why what is here of a namespace does not count.
    fn doubt(&self, namespace: &str, stale_after: Duration) -> Option<String> {
        // One that covers all is alone, so that this is one look in a small map.
        let own = self.watches.iter().find(|(of, _)| of.as_deref().is_none_or(|of| of == namespace));
        match own {
            Some((of, state)) => state.trouble(of.as_deref(), stale_after),
            None => Some(format!("no pods of namespace {namespace} are watched")),
        }
    }

    fn heard(&mut self, watched: Option<&str>, version: Option<u64>, listed: bool) {
        if let Some(state) = self.watches.get_mut(&watched.map(str::to_owned)) {
            state.heard = Instant::now();
            state.problem = None;
            state.listed |= listed;
            state.version = version.or(state.version);
        }
    }

    /// Answers whether that says anything new.
    fn put(&mut self, view: PodView) -> bool {
        if self.gone.get(&view.uid).is_some() {
            return false;
        }
        let version = number(&view.version);
        if let Some(left) = self.left.get(&view.uid) {
            if version.is_some_and(|version| version <= *left) {
                return false;
            }
            self.left.remove(&view.uid);
        }
        let place = (view.key, view.namespace.clone());
        if let Some(known) = self.pods.get(&place) {
            if matches!((number(&known.version), version), (Some(known), Some(new)) if new < known) {
                return false;
            }
            if known.uid != view.uid {
                let known = known.clone();
                self.bury(&place, &known.uid, Some(&known));
            } else if known.version == view.version {
                return false;
            }
        }
        if view.ended {
            self.report_end(&view.uid);
        }
        self.pods.insert(place, view);
        true
    }

    fn bury(&mut self, place: &Place, uid: &str, last: Option<&PodView>) {
        let known = self.pods.get(place).filter(|view| view.uid == uid).cloned();
        if known.is_some() {
            self.pods.remove(place);
        }
        self.left.remove(uid);
        let last = last.or(known.as_ref());
        let words = last.map(|view| LastWords { problem: view.problem.clone(), end: view.end.clone() });
        self.gone.insert(uid, words.unwrap_or_default());
        self.report_end(uid);
    }

    fn report_end(&mut self, uid: &str) {
        if let Some((ended, ends)) = self.waiting.remove(uid) {
            // When its receiver is full the next probe finds it.
            _ = ends.try_send(ended);
        }
    }
}

#[cfg(test)]
mod tests;
