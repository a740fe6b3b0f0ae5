//! Callers that are answered later: when the owner of an appliance has probed it, or when the lease of a life has ended.

use std::collections::HashMap;

use common::{ApplianceId, Life, Site};
use coordinator_core::machine::UnbindNumber;

use crate::commands::{CommandError, Operator, Reply};

/// The callers that wait.
#[derive(Debug, Default)]
pub(super) struct WaitingCallers {
    /// By appliance, with the number of the check.
    checks: HashMap<ApplianceId, Vec<(u64, Reply<()>)>>,
    last_check: u64,
    evictions: Vec<(Life, Reply<()>)>,
    unbinds: HashMap<UnbindNumber, UnbindCaller>,
    last_unbind: UnbindNumber,
    /// The newest change of a pause that was asked for, and the newest that is in force.
    last_pause: u64,
    pause_in_force: u64,
    /// Orders about placement are being stored.
    storing_orders: bool,
}

/// Waits until an appliance is freed from its site.
#[derive(Debug)]
pub(super) struct UnbindCaller {
    pub(super) appliance: ApplianceId,
    pub(super) request: Operator,
    pub(super) reply: Reply<Option<Site>>,
}

impl WaitingCallers {
    /// Lets a caller wait for a check; answers with its number.
    pub(super) fn add_check(&mut self, appliance: ApplianceId, reply: Reply<()>) -> u64 {
        self.last_check += 1;
        let waiting = self.checks.entry(appliance).or_default();
        waiting.retain(|(_, reply)| !reply.is_closed());
        waiting.push((self.last_check, reply));
        self.last_check
    }

    /// The callers that wait for a check of `appliance` up to number `checked`. They are to be answered.
    pub(super) fn take_checks(&mut self, appliance: ApplianceId, checked: u64) -> Vec<Reply<()>> {
        let Some(waiting) = self.checks.remove(&appliance) else { return Vec::new() };
        let (done, mut waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(number, _)| *number <= checked);
        waiting.retain(|(_, reply)| !reply.is_closed());
        if !waiting.is_empty() {
            self.checks.insert(appliance, waiting);
        }
        done.into_iter().map(|(_, reply)| reply).collect()
    }

    /// Lets a caller wait for the end of a life's lease.
    pub(super) fn add_eviction(&mut self, life: Life, reply: Reply<()>) {
        self.evictions.retain(|(_, reply)| !reply.is_closed());
        self.evictions.push((life, reply));
    }

    /// Answers the callers whose eviction is certain: the life is not alive any more.
    pub(super) fn answer_evictions(&mut self, is_alive: impl Fn(&Life) -> bool) {
        for (_, reply) in self.evictions.extract_if(.., |(life, _)| !is_alive(life)) {
            let _ = reply.send(Ok(()));
        }
    }

    /// Lets a caller wait until an appliance is freed from its site; answers with the number of the request.
    pub(super) fn add_unbind(&mut self, caller: UnbindCaller) -> UnbindNumber {
        self.last_unbind += 1;
        self.unbinds.insert(self.last_unbind, caller);
        self.last_unbind
    }

    /// The number of another change of a pause.
    pub(super) const fn next_pause(&mut self) -> u64 {
        self.last_pause += 1;
        self.last_pause
    }

    /// Whether no later change of a pause is in force, so that this one is from now on.
    pub(super) const fn is_newest_pause(&mut self, number: u64) -> bool {
        let newest = number > self.pause_in_force;
        if newest {
            self.pause_in_force = number;
        }
        newest
    }

    /// Whether orders about placement are being stored: others wait for that.
    pub(super) const fn is_storing_orders(&self) -> bool {
        self.storing_orders
    }

    /// Notes that orders about placement are being stored, or are not any more.
    pub(super) const fn set_storing_orders(&mut self, storing: bool) {
        self.storing_orders = storing;
    }

    /// The caller that waits until this appliance is freed from its site. There is one at most: others are refused.
    pub(super) fn unbind_of(&self, appliance: ApplianceId) -> Option<&UnbindCaller> {
        self.unbinds.values().find(|caller| caller.appliance == appliance)
    }

    /// The caller of a request to unbind. It is to be answered.
    pub(super) fn take_unbind(&mut self, number: UnbindNumber) -> Option<UnbindCaller> {
        self.unbinds.remove(&number)
    }

    /// Answers every caller with `error`.
    pub(super) fn fail_all(&mut self, error: &CommandError) {
        let checks = self.checks.drain().flat_map(|(_, waiting)| waiting.into_iter().map(|(_, reply)| reply));
        for reply in checks.chain(self.evictions.drain(..).map(|(_, reply)| reply)) {
            let _ = reply.send(Err(error.clone()));
        }
        for (_, caller) in self.unbinds.drain() {
            let _ = caller.reply.send(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{Incarnation, WorkerId};
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn a_check_answers_those_who_asked_before_it_was_made() {
        let mut waiting = WaitingCallers::default();
        let appliance = ApplianceId::from_u128(1);
        let (first, mut first_answer) = oneshot::channel();
        let (second, mut second_answer) = oneshot::channel();
        let number = waiting.add_check(appliance, first);
        waiting.add_check(appliance, second);
        for reply in waiting.take_checks(appliance, number) {
            let _ = reply.send(Ok(()));
        }
        assert_eq!(first_answer.try_recv(), Ok(Ok(())));
        assert!(second_answer.try_recv().is_err(), "its check was not made yet");
        waiting.fail_all(&CommandError::Stopping);
        assert_eq!(second_answer.try_recv(), Ok(Err(CommandError::Stopping)));
    }

    #[test]
    fn an_eviction_is_answered_once_the_life_is_over() {
        let mut waiting = WaitingCallers::default();
        let life = Life::new(WorkerId::new("w1").expect("a valid name"), Incarnation::new(1));
        let (reply, mut answer) = oneshot::channel();
        waiting.add_eviction(life, reply);
        waiting.answer_evictions(|_| true);
        assert!(answer.try_recv().is_err());
        waiting.answer_evictions(|_| false);
        assert_eq!(answer.try_recv(), Ok(Ok(())));
    }
}
