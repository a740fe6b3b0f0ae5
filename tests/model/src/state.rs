//! The whole at one moment, and its canonical form, by which the checker tells states apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use common::Life;
use common::canon::{self, Canon, Canonical, Sort};
use common::{ApplianceId, Timestamp, Token};
use coordinator_core::machine::StreamId;

use crate::leader::ModelLeader;
use crate::promises::Wrong;
use crate::service::LifeNodes;
use crate::setup::{START, Setup};
use crate::shared::{SharedParts, hash};
use crate::store::ModelStore;
use crate::stream::ModelStream;
use crate::worker::{ModelWorker, put_over};

/// A part that many states share, with its words.
pub(crate) struct Part<T> {
    pub(crate) value: T,
    words: OnceLock<Vec<u64>>,
}

impl<T: Clone> Clone for Part<T> {
    fn clone(&self) -> Self {
        // It is cloned to be changed.
        Self { value: self.value.clone(), words: OnceLock::new() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Part<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T: Canonical> Canonical for Part<T> {
    fn canon(&self, to: &mut Canon) {
        to.words(self.words());
    }
}

impl<T: Canonical> Part<T> {
    /// Its words, as they are.
    pub(crate) fn words(&self) -> &[u64] {
        self.words.get_or_init(|| Canon::of(&self.value).into_words())
    }

    /// Whether its words are known: nobody asked for them since it was changed.
    pub(crate) fn is_written(&self) -> bool {
        self.words.get().is_some()
    }
}

impl<T: Clone> Part<T> {
    pub(crate) fn new(value: T) -> Arc<Self> {
        Arc::new(Self { value, words: OnceLock::new() })
    }

    /// The part, to be changed in this state only.
    pub(crate) fn edit(this: &mut Arc<Self>) -> &mut T {
        let part = Arc::make_mut(this);
        part.words.take();
        &mut part.value
    }
}

/// A call that nobody waits for and that may take effect before `over`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PendingCall {
    pub(crate) appliance: ApplianceId,
    pub(crate) token: Token,
    pub(crate) over: Timestamp,
}

/// Everything there is.
#[derive(Clone, Debug)]
pub struct ModelState {
    pub(crate) now: Timestamp,
    /// Faults that may strike yet.
    pub(crate) budget: u8,
    /// Steps of time that may pass before what is on its way has to arrive.
    pub(crate) delay: u8,
    /// Coordinators that believe they lead, the newest last.
    pub(crate) leaders: Vec<ModelLeader>,
    pub(crate) workers: Vec<Arc<Part<ModelWorker>>>,
    pub(crate) streams: Vec<ModelStream>,
    pub(crate) nodes: BTreeMap<Life, LifeNodes>,
    /// Lives whose process has ended, of which a witness may tell.
    pub(crate) ended: BTreeSet<Life>,
    pub(crate) store: Arc<Part<ModelStore>>,
    /// What the appliances run on: the highest token that came, or with holds that of the newest owner who started a call.
    pub(crate) things: BTreeMap<ApplianceId, Token>,
    pub(crate) calls: Vec<PendingCall>,
    /// Times that an operator may yet set or clear the rule.
    pub(crate) orders: u8,
    /// Appliances for which setting the rule in force was answered.
    pub(crate) answered: BTreeSet<(u32, ApplianceId)>,
    pub(crate) shared: Arc<SharedParts>,
    pub(crate) next_conn: StreamId,
    pub(crate) next_life: u128,
    pub(crate) wrong: Option<Wrong>,
}

impl ModelState {
    /// One leader, workers without a life, appliances without an owner.
    pub(crate) fn new(setup: &Setup) -> Self {
        let mut this = Self {
            now: START,
            budget: setup.budget,
            delay: setup.delay,
            leaders: Vec::new(),
            workers: (0..setup.workers).map(|n| Part::new(ModelWorker::new(n))).collect(),
            streams: Vec::new(),
            nodes: BTreeMap::new(),
            ended: BTreeSet::new(),
            store: Part::new(ModelStore::default()),
            things: BTreeMap::new(),
            calls: Vec::new(),
            orders: setup.orders,
            answered: BTreeSet::new(),
            shared: Arc::default(),
            next_conn: 0,
            next_life: 0,
            wrong: None,
        };
        this.campaign(setup);
        this
    }

    /// Notes the first promise that was broken.
    pub(crate) fn note(&mut self, result: Result<(), Wrong>) {
        if let Err(wrong) = result {
            self.wrong.get_or_insert(wrong);
        }
    }

    /// Drops what nothing can come of, and shares what is equal with other states.
    pub(crate) fn tidy(&mut self) {
        self.streams.retain(|stream| !stream.is_over());
        self.calls.sort_unstable();
        let rule = self.store.value.rule.map(u32::from);
        self.answered.retain(|(of, _)| Some(*of) == rule);
        let store = &self.store.value;
        if store.floating.iter().any(|f| !store.takes(f.term, f.number)) {
            let store = Part::edit(&mut self.store);
            let (term, batch) = (store.term, store.batch);
            let mut kept = std::mem::take(&mut store.floating);
            // The chain only goes on.
            kept.retain(|f| store.takes(f.term, f.number) || (f.term, f.number) > (term, batch + 1));
            store.floating = kept;
        }
        self.workers.iter_mut().for_each(|worker| self.shared.worker(worker));
        self.shared.store(&mut self.store);
    }

    /// Whether anything is on its way.
    pub(crate) fn is_busy(&self) -> bool {
        self.streams.iter().any(|s| !s.up.is_empty() || !s.down.is_empty())
            || self.leaders.iter().any(|leader| {
                let ModelLeader { feed, writes, answers, .. } = leader;
                feed.unread || !feed.news.is_empty() || !writes.is_empty() || !answers.is_empty()
            })
    }

    /// The leader of the newest term, if it still leads.
    pub(crate) fn leader(&self) -> Option<&ModelLeader> {
        self.leaders.last().filter(|leader| leader.term == self.store.value.term)
    }

    /// Whether this is one of the states that are left to themselves, of which there is one in `sample`.
    pub(crate) fn is_sampled(&self, sample: u64) -> bool {
        hash(self).is_multiple_of(sample.max(1))
    }

    /// The words of everything, moments in relation to now and numbers to each other.
    fn words(&self) -> Vec<u64> {
        let Self {
            now,
            budget,
            delay,
            leaders,
            workers,
            streams,
            nodes,
            ended,
            store,
            things,
            calls,
            orders,
            answered,
            // Nothing depends on it.
            shared: _,
            // Only have to be new.
            next_conn: _,
            next_life: _,
            wrong,
        } = self;
        let mut canon = Canon::default();
        canon.put(&(u32::from(*budget), u32::from(*delay), u32::from(*orders)));
        canon.put(answered);
        canon.put(leaders);
        canon.list(workers.iter().map(|worker| &**worker));
        canon.put(streams);
        canon.put(nodes);
        canon.list(ended.iter());
        canon.put(&**store);
        canon.put(things);
        canon.put(&calls.len());
        for PendingCall { appliance, token, over } in calls {
            canon.put(&(appliance, token));
            put_over(Some(*over), &mut canon);
        }
        canon.put(&wrong.as_ref().map(|wrong| wrong.promise as u32));
        relate(canon.into_words(), *now)
    }
}

/// Puts moments in relation to now, and numbers in relation to each other.
fn relate(mut words: Vec<u64>, now: Timestamp) -> Vec<u64> {
    let mut known: [Vec<u64>; Sort::ALL.len()] = Default::default();
    for word in &words {
        match Sort::of(*word) {
            Sort::Plain | Sort::Until => {}
            sort => known[sort as usize].push(*word),
        }
    }
    for list in &mut known {
        list.sort_unstable();
        list.dedup();
    }
    let now = now.as_nanos() / 1_000;
    for word in &mut words {
        let sort = Sort::of(*word);
        *word = match sort {
            Sort::Plain => *word,
            Sort::Until => canon::value(*word).saturating_sub(now) | (sort as u64) << 60,
            Sort::Token
            | Sort::Rebalance
            | Sort::Mode
            | Sort::Life
            | Sort::Conn
            | Sort::Stream
            | Sort::Batch
            | Sort::Place => {
                let rank = known[sort as usize].binary_search(word).unwrap_or_default() as u64;
                let term =
                    if matches!(sort, Sort::Token | Sort::Rebalance | Sort::Mode) { canon::term(*word) } else { 0 };
                rank | term << 32 | (sort as u64) << 60
            }
        };
    }
    words
}

impl Hash for ModelState {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words().iter().for_each(|word| state.write_u64(*word));
    }
}

impl PartialEq for ModelState {
    fn eq(&self, other: &Self) -> bool {
        self.words() == other.words()
    }
}
