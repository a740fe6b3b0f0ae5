//! Which of our routers an event concerns: remembered of every router that was read, and forgotten with it.
//!
//! A router that is not known yet is told of by events of its own, so that nothing has to be asked for an event of a network that
//! none of our routers is in: those are most.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use openstack::ResourceId;

use crate::notification::Subject;
use crate::state::RouterState;

/// What is remembered. Bounded by what our routers have.
#[derive(Debug, Default)]
pub struct RouterIndex {
    routers: HashMap<ResourceId, Remembered>,
    networks: HashMap<ResourceId, BTreeSet<ResourceId>>,
    subnets: HashMap<ResourceId, ResourceId>,
    floating: HashMap<ResourceId, ResourceId>,
}

#[derive(Debug, Default)]
struct Remembered {
    networks: BTreeSet<ResourceId>,
    subnets: BTreeSet<ResourceId>,
    floating: BTreeSet<ResourceId>,
}

impl RouterIndex {
    /// Remembers a router of ours as it is now.
    pub fn remember(&mut self, state: &RouterState<'_>) {
        let id = state.router.id.clone();
        self.forget(&id);
        let remembered = Remembered {
            networks: state.networks().map(|network| network.id.clone()).collect(),
            subnets: state.subnets().map(|subnet| subnet.id.clone()).collect(),
            floating: state.floating.iter().map(|floating| floating.id.clone()).collect(),
        };
        for network in &remembered.networks {
            self.networks.entry(network.clone()).or_default().insert(id.clone());
        }
        for subnet in state.subnets() {
            self.subnets.insert(subnet.id.clone(), subnet.network_id.clone());
        }
        for floating in &remembered.floating {
            self.floating.insert(floating.clone(), id.clone());
        }
        self.routers.insert(id, remembered);
    }

    /// Forgets a router that is gone, or is not ours any more.
    pub fn forget(&mut self, id: &ResourceId) {
        let Some(former) = self.routers.remove(id) else { return };
        for network in former.networks {
            if let Some(routers) = self.networks.get_mut(&network) {
                routers.remove(id);
                if routers.is_empty() {
                    self.networks.remove(&network);
                }
            }
        }
        for subnet in former.subnets {
            if self.subnets.get(&subnet).is_some_and(|network| !self.networks.contains_key(network)) {
                self.subnets.remove(&subnet);
            }
        }
        for floating in former.floating {
            if self.floating.get(&floating) == Some(id) {
                self.floating.remove(&floating);
            }
        }
    }

    /// Every router that is remembered.
    pub fn routers(&self) -> impl Iterator<Item = &ResourceId> {
        self.routers.keys()
    }

    /// How many routers are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routers.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routers.is_empty()
    }

    /// The routers to be looked at for an event. Those that it names itself are among them, known or not.
    #[must_use]
    pub fn concerned(&self, subjects: &BTreeSet<Subject>) -> BTreeMap<ResourceId, Concern> {
        let mut found = BTreeMap::new();
        let mut add = |id: &ResourceId| {
            found.entry(id.clone()).or_insert(Concern::Changed);
        };
        for subject in subjects {
            match subject {
                Subject::Router(id) | Subject::RouterGone(id) => add(id),
                Subject::Network(id) => self.networks.get(id).into_iter().flatten().for_each(&mut add),
                Subject::Subnet(id) => {
                    let network = self.subnets.get(id).and_then(|network| self.networks.get(network));
                    network.into_iter().flatten().for_each(&mut add);
                }
                // Of a port that is gone nothing else is told; it may have been in any of the networks.
                Subject::Port(_) => self.routers.keys().for_each(&mut add),
                Subject::FloatingIp(id) => self.floating.get(id).into_iter().for_each(&mut add),
            }
        }
        for subject in subjects {
            if let Subject::RouterGone(id) = subject {
                found.insert(id.clone(), Concern::Gone);
            }
        }
        found
    }
}

/// What an event means to a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// It, or something that it has, changed.
    Changed,
    /// It is said to be gone.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{id, snapshot};

    #[test]
    fn an_event_of_a_network_concerns_the_routers_that_are_in_it() {
        let snapshot = snapshot();
        let mut index = RouterIndex::default();
        for router in snapshot.routers() {
            index.remember(&snapshot.of(router));
        }
        let concerned = |index: &RouterIndex, subject: Subject| -> Vec<String> {
            index.concerned(&[subject].into()).into_keys().map(String::from).collect()
        };
        assert_eq!(concerned(&index, Subject::Network(id("n-int"))), ["r1"]);
        assert_eq!(concerned(&index, Subject::Network(id("n-ext"))), ["r1", "r2"], "also by its gateway");
        assert_eq!(concerned(&index, Subject::Network(id("other"))), Vec::<String>::new());
        assert_eq!(concerned(&index, Subject::Subnet(id("s-v6"))), ["r1"]);
        assert_eq!(concerned(&index, Subject::FloatingIp(id("f1"))), ["r1"]);
        assert_eq!(concerned(&index, Subject::Router(id("r9"))), ["r9"], "one that nobody knows yet");
        assert_eq!(concerned(&index, Subject::Port(id("p9"))), ["r1", "r2"]);
        let gone: BTreeSet<_> = [Subject::RouterGone(id("r1")), Subject::Network(id("n-int"))].into();
        assert_eq!(index.concerned(&gone), [(id("r1"), Concern::Gone)].into());
        index.forget(&id("r1"));
        assert_eq!(concerned(&index, Subject::Network(id("n-ext"))), ["r2"]);
        assert_eq!(concerned(&index, Subject::FloatingIp(id("f1"))), Vec::<String>::new());
        index.forget(&id("r2"));
        assert!(index.is_empty() && index.networks.is_empty() && index.floating.is_empty(), "{index:?}");
        assert!(index.subnets.is_empty(), "{index:?}");
    }
}
