//! What is known of pods, from one watch and from the answers of the driver's own calls.
//!
//! Of two versions of a pod the newer one is kept. That a pod is gone counts only when the watch or an answer said so: what is not
//! here was perhaps not heard of yet, and is asked for. Once nothing was heard for too long, nothing that is here counts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

#[derive(Debug, Default)]
struct Content {
    pods: HashMap<PodKey, PodView>,
    /// By uid.
    gone: HashMap<String, LastWords>,
    gone_order: VecDeque<String>,
    /// Who wants to know of an end, by uid.
    waiting: HashMap<String, (EndedInstance, EndSender)>,
    /// How each watch is.
    watches: HashMap<String, WatchState>,
}

#[derive(Debug)]
struct WatchState {
    listed: bool,
    heard: Instant,
    problem: Option<String>,
}

impl PodCache {
    /// An empty one for these watches, which counts from the first list of each on.
    pub(super) fn new(stale_after: Duration, watches: impl IntoIterator<Item = String>) -> Self {
        let state = || WatchState { listed: false, heard: Instant::now(), problem: None };
        let watches = watches.into_iter().map(|name| (name, state())).collect();
        let content = Mutex::new(Content { watches, ..Content::default() });
        Self { content, stale_after, changed: watch::Sender::new(0) }
    }

    /// What is known of the pod with this uid.
    pub(super) fn get(&self, key: PodKey, uid: &str) -> Known {
        let content = self.lock();
        if let Some(gone) = content.gone.get(uid) {
            return Known::Gone(Box::new(gone.clone()));
        }
        if content.trouble(self.stale_after).is_some() {
            return Known::Unknown;
        }
        match content.pods.get(&key) {
            Some(view) if view.uid == uid => Known::There(Box::new(view.clone())),
            _ => Known::Unknown,
        }
    }

    /// What was last heard of the pod with this uid, however long ago that was.
    pub(super) fn last_known(&self, key: PodKey, uid: &str) -> Option<PodView> {
        self.lock().pods.get(&key).filter(|view| view.uid == uid).cloned()
    }

    /// Why what is here does not count; `None` when it does.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble(self.stale_after)
    }

    /// Every pod that is known, if that counts.
    pub(super) fn all(&self) -> Option<Vec<PodView>> {
        let content = self.lock();
        content.trouble(self.stale_after).is_none().then(|| content.pods.values().cloned().collect())
    }

    /// Takes in a pod as an answer or an event has it.
    pub(super) fn put(&self, view: PodView) {
        let mut content = self.lock();
        content.put(view);
        drop(content);
        self.tell();
    }

    /// Takes in that a pod is gone.
    pub(super) fn bury(&self, key: PodKey, uid: &str, last: Option<&PodView>) {
        let mut content = self.lock();
        content.bury(key, uid, last);
        drop(content);
        self.tell();
    }

    /// Takes in all pods that one watch covers. What was known in its namespaces and is not among them is unknown from now on: it
    /// may be newer than the list.
    pub(super) fn replace(&self, name: &str, covers: impl Fn(&str) -> bool, views: Vec<PodView>) {
        let mut content = self.lock();
        let listed: HashSet<PodKey> = views.iter().map(|view| view.key).collect();
        content.pods.retain(|key, view| !covers(&view.namespace) || listed.contains(key));
        for view in views {
            // Also where its version looks older: an API server whose data was put back counts anew.
            if content.pods.get(&view.key).is_some_and(|known| known.uid == view.uid) {
                content.pods.remove(&view.key);
            }
            content.put(view);
        }
        content.heard(name, true);
        drop(content);
        self.tell();
    }

    /// Something was heard from a watch.
    pub(super) fn heard(&self, name: &str) {
        self.lock().heard(name, false);
    }

    /// A watch is broken.
    pub(super) fn broken(&self, name: &str, problem: String) {
        if let Some(state) = self.lock().watches.get_mut(name) {
            state.problem = Some(problem);
        }
        self.tell();
    }

    /// Reports once to `ends` that a pod has ended; at once if it has.
    pub(super) fn report(&self, key: PodKey, uid: &str, ended: EndedInstance, ends: &EndSender) {
        let mut content = self.lock();
        let over =
            content.gone.contains_key(uid) || content.pods.get(&key).is_some_and(|view| view.uid == uid && view.ended);
        if over {
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

impl Content {
    fn trouble(&self, stale_after: Duration) -> Option<String> {
        self.watches.iter().find_map(|(name, state)| {
            let age = state.heard.elapsed();
            match &state.problem {
                Some(problem) => Some(format!("the watch of {name} is broken: {problem}")),
                None if !state.listed => Some(format!("the pods of {name} were not listed yet")),
                None if age > stale_after => Some(format!("the watch of {name} said nothing for {} s", age.as_secs())),
                None => None,
            }
        })
    }

    fn heard(&mut self, name: &str, listed: bool) {
        if let Some(state) = self.watches.get_mut(name) {
            state.heard = Instant::now();
            state.problem = None;
            state.listed |= listed;
        }
    }

    fn put(&mut self, view: PodView) {
        if self.gone.contains_key(&view.uid) {
            return;
        }
        if let Some(known) = self.pods.get(&view.key) {
            let (known_version, version) = (known.version.parse::<u64>(), view.version.parse::<u64>());
            let is_older = matches!((known_version, version), (Ok(known), Ok(new)) if new < known);
            if is_older {
                return;
            }
            if known.uid != view.uid {
                let known = known.clone();
                self.bury(known.key, &known.uid, Some(&known));
            }
        }
        if view.ended {
            self.report_end(&view.uid);
        }
        self.pods.insert(view.key, view);
    }

    fn bury(&mut self, key: PodKey, uid: &str, last: Option<&PodView>) {
        let known = self.pods.get(&key).filter(|view| view.uid == uid).cloned();
        if known.is_some() {
            self.pods.remove(&key);
        }
        let last = last.or(known.as_ref());
        let words = last.map(|view| LastWords { problem: view.problem.clone(), end: view.end.clone() });
        if self.gone.insert(uid.to_owned(), words.unwrap_or_default()).is_none() {
            self.gone_order.push_back(uid.to_owned());
        }
        if self.gone_order.len() > MAX_GONE
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
        self.report_end(uid);
    }

    fn report_end(&mut self, uid: &str) {
        if let Some((ended, ends)) = self.waiting.remove(uid) {
            // When its receiver is full the next probe finds it.
            _ = ends.try_send(ended);
        }
    }
}
