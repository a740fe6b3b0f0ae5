//! Parts and steps that were met before. Millions of states are made of far fewer machines, workers and stores, and the
//! same thing happens to the same machine again and again: states share what is equal, and a step that was taken is not
//! taken again.
//!
//! Parts are compared by their words (see [`common::canon`]) as they are, without putting them in relation to
//! anything: parts whose words are equal behave alike.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use common::Timestamp;
use common::canon::{Canon, Canonical};
use coordinator_core::checks;
use coordinator_core::machine::{Action, Event, Machine};

use crate::state::Part;
use crate::store::ModelStore;
use crate::stream::put_message;
use crate::worker::ModelWorker;

/// Parts of the tables, so that the threads of the checker seldom wait for each other.
const SHARDS: usize = 64;

/// Steps that are kept in each. Bounds memory: each keeps a machine, of some 10 kB.
const STEPS: usize = 1_024;

/// What a step led to.
#[derive(Clone)]
pub(crate) struct CachedStep {
    pub(crate) machine: Arc<Part<Machine>>,
    pub(crate) actions: Arc<Vec<Action>>,
    /// What the checks of the machine found.
    pub(crate) wrong: Option<Arc<str>>,
}

struct CacheTable<V>(Vec<Mutex<HashMap<u64, V>>>);

impl<V> Default for CacheTable<V> {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl<V> CacheTable<V> {
    fn with<R>(&self, key: u64, use_it: impl FnOnce(&mut HashMap<u64, V>) -> R) -> R {
        let shard = &self.0[key as usize % SHARDS];
        // Whole after any panic: it only ever changes by one insertion or removal.
        use_it(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T: Canonical> CacheTable<Weak<Part<T>>> {
    /// Puts an equal part in the place of one that was changed, if there is one.
    fn unify(&self, part: &mut Arc<Part<T>>) {
        if part.is_written() {
            return;
        }
        let key = hash(part.words());
        self.with(key, |known| {
            match known.get(&key).and_then(Weak::upgrade) {
                // Another part may have the same hash.
                Some(equal) if equal.words() == part.words() => *part = equal,
                Some(_) => {}
                None => _ = known.insert(key, Arc::downgrade(part)),
            }
            if known.len().is_power_of_two() {
                known.retain(|_, part| part.strong_count() > 0);
            }
        });
    }
}

/// What the states of one check share.
#[derive(Default)]
pub(crate) struct SharedParts {
    machines: CacheTable<Weak<Part<Machine>>>,
    workers: CacheTable<Weak<Part<ModelWorker>>>,
    stores: CacheTable<Weak<Part<ModelStore>>>,
    steps: CacheTable<CachedStep>,
}

impl fmt::Debug for SharedParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

impl SharedParts {
    pub(crate) fn worker(&self, part: &mut Arc<Part<ModelWorker>>) {
        self.workers.unify(part);
    }

    pub(crate) fn store(&self, part: &mut Arc<Part<ModelStore>>) {
        self.stores.unify(part);
    }

    pub(crate) fn machine(&self, part: &mut Arc<Part<Machine>>) {
        self.machines.unify(part);
    }

    /// A machine takes in one thing and looks at the time.
    pub(crate) fn step(&self, machine: &Arc<Part<Machine>>, now: Timestamp, event: Event) -> CachedStep {
        let mut happens = Canon::default();
        put_event(&event, &mut happens);
        let key = hash(&(machine.words(), now, happens.into_words()));
        if let Some(step) = self.steps.with(key, |steps| steps.get(&key).cloned()) {
            return step;
        }
        let mut next = Arc::clone(machine);
        let changed = Part::edit(&mut next);
        let mut actions = changed.step(now, event).actions;
        actions.extend(changed.step(now, Event::Tick).actions);
        let wrong = checks::machine(changed).into_iter().next().map(Arc::from);
        self.machine(&mut next);
        let step = CachedStep { machine: next, actions: Arc::new(actions), wrong };
        self.steps.with(key, |steps| {
            if steps.len() >= STEPS {
                steps.clear();
            }
            steps.insert(key, step.clone());
        });
        step
    }
}

pub(crate) fn hash<T: Hash + ?Sized>(what: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

fn put_event(event: &Event, to: &mut Canon) {
    match event {
        Event::Received(conn, from, message) => {
            to.plain(0);
            to.conn(*conn);
            to.put(from);
            put_message(message, to);
        }
        Event::Closed(conn) => {
            to.plain(2);
            to.conn(*conn);
        }
        Event::Read { members, leases } => {
            to.plain(3);
            to.put(members);
            to.put(leases);
        }
        Event::Members(members) => to.put(&(4_u32, members)),
        Event::Observed(life, node) => to.put(&(5_u32, life, node)),
        Event::Over(life) => to.put(&(6_u32, life)),
        Event::Durable(batch) => {
            to.plain(7);
            to.batch(*batch);
        }
        Event::Undone(batch) => {
            to.plain(8);
            to.batch(*batch);
        }
        Event::Tick => to.plain(9),
        Event::Witnessed(life, _) => to.put(&(12_u32, life)),
        Event::SetMode(mode, _) => to.put(&(10_u32, mode.rule.id.get() as u64)),
        Event::ClearMode(id, _) => to.put(&(11_u32, id.get() as u64)),
        other => unreachable!("{other:?} does not happen here"),
    }
}
