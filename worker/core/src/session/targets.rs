//! Which coordinator to connect to: the leader first, then the others in turn.

/// The coordinators that are known, and the one in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Targets {
    /// Addresses, the leader's first.
    known: Vec<String>,
    /// The leader's address when a target was last chosen or the leader last changed.
    leader: Option<String>,
    /// The coordinator that is connected to, or tried.
    current: Option<String>,
    /// Position of the next target.
    next: usize,
}

impl Targets {
    /// Takes in new addresses. `true` when another coordinator leads than before and than the one in use.
    pub(super) fn update(&mut self, addresses: Vec<String>) -> bool {
        self.known = addresses;
        self.known.retain(|address| !address.is_empty());
        let first = self.known.first();
        // Without a leader the present coordinator is as good as any.
        if first.is_none() || first == self.leader.as_ref() {
            return false;
        }
        self.leader = first.cloned();
        self.leader != self.current
    }

    /// Chooses the next target; `None` when no coordinator is known.
    pub(super) fn choose(&mut self) -> Option<String> {
        self.leader = self.known.first().cloned();
        self.current = (!self.known.is_empty()).then(|| self.known[self.next % self.known.len()].clone());
        self.current.clone()
    }

    /// The coordinator in use.
    pub(super) fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// No coordinator is in use: any change of the leader counts.
    pub(super) fn release(&mut self) {
        self.current = None;
    }

    /// The target did not welcome this worker: the one after it is next.
    pub(super) const fn skip(&mut self) {
        self.next = self.next.wrapping_add(1);
    }

    /// The leader is next.
    pub(super) const fn restart(&mut self) {
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn targets_are_taken_in_turn_from_the_leader_on() {
        let mut targets = Targets::default();
        assert_eq!(targets.choose(), None);
        assert!(targets.update(addresses(&["", "a", "b"])));
        let chosen: Vec<_> = (0..3)
            .map(|_| {
                let chosen = targets.choose();
                targets.skip();
                chosen
            })
            .collect();
        assert_eq!(chosen, [Some("a".into()), Some("b".into()), Some("a".into())]);
        targets.restart();
        assert_eq!(targets.choose().as_deref(), Some("a"));
    }

    #[test]
    fn only_another_leader_than_the_coordinator_in_use_is_a_change() {
        let mut targets = Targets::default();
        targets.update(addresses(&["a"]));
        targets.choose();
        assert!(!targets.update(addresses(&["a", "b"])), "the leader is the same");
        assert!(!targets.update(vec![]), "no leader is known");
        assert!(!targets.update(addresses(&["a"])));
        assert!(targets.update(addresses(&["b", "a"])));
        targets.skip();
        assert_eq!(targets.choose().as_deref(), Some("a"));
        assert!(!targets.update(addresses(&["b", "a"])), "known when the target was chosen");
        targets.release();
        assert!(targets.update(addresses(&["a"])), "no coordinator is in use");
    }
}
