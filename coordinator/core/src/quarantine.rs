//! Appliances that kill the worker handling them.
//!
//! When a life ends without having said `Leave`, everything it held becomes *suspect*: any of it may have been the cause.
//! The owner of a suspect announces every step that changes the world and begins it only once that was confirmed here, so
//! that the next death tells more: an appliance whose step was begun and had not ended gets a *strike*. With
//! [`Config::strikes`] of them it is *quarantined*: no worker is granted it until a user updates or rebuilds it. Each call that
//! deletes it grants it once more, strikes kept. The first death gives no strikes, because nothing had been announced.
//!
//! Of the suspects that have a strike only one at a time may run a step on each worker, the others queue: whoever was
//! struck by standing near is cleared by the next death instead of struck again.
//!
//! A suspect is one no more when an announced step of it has ended and it has no strike, or when one life has held it for
//! [`Config::probation`] and no step of it is under way; the latter also takes its strikes. Looks and probes are not
//! announced: what a worker dies of there is not found. All of this is memory of one leader: a new one starts without
//! suspicion, strikes or quarantines, and hears of running steps anew.

#[cfg(feature = "canon")]
mod canon;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use common::session::AnnouncedStep;
use common::{ApplianceId, Life, Timestamp, Token};

/// Settings of the quarantine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Deaths during a step of it after which an appliance is granted to no worker.
    pub strikes: u32,
    /// How long one life has to hold a suspect for it to count as innocent.
    pub probation: Duration,
}

/// Whether an announced step is over once `other` is: the same one, or an older one of the same grant.
fn ends_with(step: &AnnouncedStep, other: &AnnouncedStep) -> bool {
    (step.appliance, step.token) == (other.appliance, other.token) && step.number <= other.number
}

#[derive(Clone, Debug, Default)]
struct Suspect {
    strikes: u32,
    quarantined: bool,
    /// Grant of the life that holds it.
    held: Option<Token>,
    /// The step its owner may go on with.
    begun: Option<AnnouncedStep>,
}

/// The one appliance with strikes that runs a step on a worker, and those that wait for it to end.
#[derive(Clone, Debug)]
struct Alone {
    running: AnnouncedStep,
    waiting: VecDeque<AnnouncedStep>,
}

/// Every suspect there is. Bounded by the appliances of the table.
#[derive(Clone, Debug)]
pub struct Quarantine {
    config: Config,
    suspects: BTreeMap<ApplianceId, Suspect>,
    alone: BTreeMap<Life, Alone>,
    /// When which grant of a suspect has been held for long enough, in order of time.
    probation: VecDeque<(Timestamp, ApplianceId, Token)>,
}

impl Quarantine {
    /// No appliance is suspect.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self { config, suspects: BTreeMap::new(), alone: BTreeMap::new(), probation: VecDeque::new() }
    }

    /// Whether the next owner has to announce its steps.
    #[must_use]
    pub fn is_suspect(&self, appliance: ApplianceId) -> bool {
        self.suspects.contains_key(&appliance)
    }

    /// Strikes of an appliance that is granted to no worker; `None` for every other one.
    #[must_use]
    pub fn quarantined(&self, appliance: ApplianceId) -> Option<u32> {
        self.suspects.get(&appliance).filter(|suspect| suspect.quarantined).map(|suspect| suspect.strikes)
    }

    /// How many suspects there are, and how many of them are granted to no worker.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let quarantined = self.suspects.values().filter(|suspect| suspect.quarantined).count();
        (self.suspects.len() as u64, quarantined as u64)
    }

    /// A life that held all these ended without a word. Returns what is quarantined for it, with its strikes, and whether an
    /// announced step was under way, which then is the likely reason.
    pub fn died(
        &mut self,
        life: &Life,
        held: impl IntoIterator<Item = (ApplianceId, Token)>,
    ) -> (Vec<(ApplianceId, u32)>, bool) {
        self.alone.remove(life);
        let (mut found, mut explained) = (Vec::new(), false);
        for (appliance, token) in held {
            let suspect = self.suspects.entry(appliance).or_default();
            suspect.held = None;
            if suspect.begun.take().is_some_and(|step| step.token == token) {
                explained = true;
                suspect.strikes = suspect.strikes.saturating_add(1);
                suspect.quarantined = suspect.strikes >= self.config.strikes;
                if suspect.quarantined {
                    found.push((appliance, suspect.strikes));
                }
            }
        }
        (found, explained)
    }

    /// A life that holds `step.appliance` wants to begin. `true`: it may, now. `false`: [`Quarantine::ended`] will say so.
    pub fn begins(&mut self, life: &Life, step: AnnouncedStep) -> bool {
        let suspect = self.suspects.entry(step.appliance).or_default();
        if suspect.begun == Some(step) {
            return true;
        }
        if suspect.strikes > 0 {
            match self.alone.get_mut(life) {
                Some(alone) if alone.running.appliance == step.appliance => alone.running = step,
                Some(alone) => {
                    alone.waiting.retain(|waiting| waiting.appliance != step.appliance);
                    alone.waiting.push_back(step);
                    return false;
                }
                None => {
                    self.alone.insert(life.clone(), Alone { running: step, waiting: VecDeque::new() });
                }
            }
        }
        suspect.begun = Some(step);
        true
    }

    /// An announced step has ended, or will not be begun. Returns another one of this life that may begin for it.
    pub fn ended(&mut self, life: &Life, step: AnnouncedStep) -> Option<AnnouncedStep> {
        if let Some(suspect) = self.suspects.get_mut(&step.appliance)
            && suspect.begun.is_some_and(|begun| ends_with(&begun, &step))
        {
            suspect.begun = None;
            if suspect.strikes == 0 {
                self.suspects.remove(&step.appliance);
            }
        }
        self.withdraw(life, |other| ends_with(other, &step))
    }

    /// A life that lives on does not hold an appliance any more. Returns a step of it that may begin for that.
    pub fn left(&mut self, life: &Life, appliance: ApplianceId) -> Option<AnnouncedStep> {
        let suspect = self.suspects.get_mut(&appliance)?;
        suspect.held = None;
        suspect.begun = None;
        self.withdraw(life, |other| other.appliance == appliance)
    }

    fn withdraw(&mut self, life: &Life, over: impl Fn(&AnnouncedStep) -> bool) -> Option<AnnouncedStep> {
        let alone = self.alone.get_mut(life)?;
        alone.waiting.retain(|waiting| !over(waiting));
        if !over(&alone.running) {
            return None;
        }
        let next = alone.waiting.pop_front();
        match next {
            Some(next) => {
                alone.running = next;
                self.suspects.entry(next.appliance).or_default().begun = Some(next);
            }
            None => drop(self.alone.remove(life)),
        }
        next
    }

    /// A life opened a new stream and holds all these. What it announced before may have ended unheard; it announces anew
    /// what runs.
    pub fn greeted(&mut self, life: &Life, held: impl IntoIterator<Item = ApplianceId>) {
        if self.suspects.is_empty() {
            return;
        }
        self.alone.remove(life);
        for appliance in held {
            if let Some(suspect) = self.suspects.get_mut(&appliance) {
                suspect.begun = None;
            }
        }
    }

    /// A grant came to its owner.
    pub fn arrived(&mut self, now: Timestamp, appliance: ApplianceId, token: Token) {
        if let Some(suspect) = self.suspects.get_mut(&appliance)
            && suspect.held.replace(token) != Some(token)
        {
            self.probation.push_back((now + self.config.probation, appliance, token));
        }
    }

    /// Clears those that were held for long enough.
    pub fn tick(&mut self, now: Timestamp) {
        while let Some(&(at, appliance, token)) = self.probation.front()
            && at <= now
        {
            self.probation.pop_front();
            let Some(suspect) = self.suspects.get(&appliance).filter(|s| s.held == Some(token)) else { continue };
            if suspect.begun.is_some() {
                self.probation.push_back((now + self.config.probation, appliance, token));
            } else {
                self.suspects.remove(&appliance);
            }
        }
    }

    /// A user changed the appliance. Returns whether it may be granted again for it.
    pub fn changed(&mut self, appliance: ApplianceId, deleting: bool) -> bool {
        let Some(suspect) = self.suspects.get_mut(&appliance) else { return false };
        if !deleting {
            suspect.strikes = 0;
        }
        std::mem::take(&mut suspect.quarantined)
    }

    /// The appliance is gone for ever.
    pub fn forget(&mut self, appliance: ApplianceId) {
        self.suspects.remove(&appliance);
    }
}

#[cfg(test)]
mod tests {
    use common::{Incarnation, Term, WorkerId};

    use super::*;

    const T: Timestamp = Timestamp::from_millis(1_000);

    fn id(n: u128) -> ApplianceId {
        ApplianceId::from_u128(n)
    }

    fn life(n: u64) -> Life {
        Life::new(WorkerId::new(&format!("w{n}")).expect("valid"), Incarnation::new(u128::from(n)))
    }

    fn token(n: u64) -> Token {
        Token::new(Term::new(1), n)
    }

    fn step(n: u128, t: u64, number: u64) -> AnnouncedStep {
        AnnouncedStep { appliance: id(n), token: token(t), number }
    }

    fn new() -> Quarantine {
        Quarantine::new(Config { strikes: 3, probation: Duration::from_secs(60) })
    }

    /// Life `n` takes 1 and 2 under token `n`, begins a step of 1, and dies.
    fn dies_over_1(q: &mut Quarantine, n: u64) -> Vec<(ApplianceId, u32)> {
        for appliance in [id(1), id(2)] {
            q.arrived(T, appliance, token(n));
        }
        assert!(q.begins(&life(n), step(1, n, 1)));
        q.died(&life(n), [(id(1), token(n)), (id(2), token(n))]).0
    }

    #[test]
    fn the_first_death_makes_suspects_and_gives_no_strikes() {
        let mut q = new();
        assert_eq!(q.died(&life(1), [(id(1), token(1)), (id(2), token(2))]).0, []);
        assert!(q.is_suspect(id(1)) && q.is_suspect(id(2)) && !q.is_suspect(id(3)));
        assert_eq!(q.quarantined(id(1)), None);
    }

    #[test]
    fn three_deaths_over_one_appliance_quarantine_it_alone() {
        let mut q = new();
        assert_eq!(dies_over_1(&mut q, 1), []);
        assert_eq!(dies_over_1(&mut q, 2), []);
        assert_eq!(dies_over_1(&mut q, 3), [(id(1), 3)]);
        assert_eq!((q.quarantined(id(1)), q.quarantined(id(2))), (Some(3), None));
    }

    #[test]
    fn a_change_lifts_it_for_good_and_a_deletion_for_one_more_try() {
        let mut q = new();
        (1..=3).for_each(|n| drop(dies_over_1(&mut q, n)));
        let mut deleted = q.clone();
        assert!(q.changed(id(1), false));
        assert!(!q.changed(id(1), false), "it was lifted already");
        assert!(q.is_suspect(id(1)), "its next owner is still to be warned");
        assert_eq!(dies_over_1(&mut q, 4), []);
        assert!(deleted.changed(id(1), true));
        assert_eq!(dies_over_1(&mut deleted, 4), [(id(1), 4)]);
    }

    #[test]
    fn a_step_that_ended_clears_who_has_no_strike() {
        let mut q = new();
        drop(q.died(&life(1), [(id(1), token(1))]));
        assert!(q.begins(&life(2), step(1, 2, 7)));
        q.ended(&life(2), step(1, 2, 6));
        assert!(q.is_suspect(id(1)), "word of an older step");
        q.ended(&life(2), step(1, 2, 7));
        assert!(!q.is_suspect(id(1)));
        assert_eq!(q.died(&life(2), [(id(1), token(2))]).0, []);
    }

    #[test]
    fn strikes_go_when_one_life_has_held_it_for_long() {
        let mut q = new();
        dies_over_1(&mut q, 1);
        q.arrived(T, id(1), token(2));
        assert!(q.begins(&life(2), step(1, 2, 1)));
        let later = T + Duration::from_secs(60);
        q.tick(later);
        assert!(q.is_suspect(id(1)), "a step of it is under way");
        q.ended(&life(2), step(1, 2, 1));
        q.tick(later + Duration::from_secs(60));
        assert!(!q.is_suspect(id(1)));
        // Under another grant the time begins anew.
        dies_over_1(&mut q, 3);
        q.arrived(T, id(1), token(4));
        q.left(&life(4), id(1));
        q.tick(later);
        assert!(q.is_suspect(id(1)));
    }

    #[test]
    fn of_those_with_strikes_one_at_a_time_runs_on_a_worker() {
        let mut q = new();
        let held = |t: u64| (1..=3).map(move |n| (id(n), token(t)));
        assert!((1..=3).all(|n| q.begins(&life(1), step(n, 1, n as u64))), "without strikes all of them run");
        drop(q.died(&life(1), held(1)));
        let begun: Vec<_> = (1..=3).map(|n| q.begins(&life(2), step(n, 2, n as u64))).collect();
        assert_eq!(begun, [true, false, false]);
        assert!(q.begins(&life(3), step(9, 3, 1)), "others are not concerned");
        // The second gives up waiting, so the third is next.
        assert_eq!(q.ended(&life(2), step(2, 2, 2)), None);
        assert_eq!(q.ended(&life(2), step(1, 2, 1)), Some(step(3, 2, 3)));
        assert!(!q.begins(&life(2), step(1, 2, 4)));
        assert_eq!(q.left(&life(2), id(3)), Some(step(1, 2, 4)));
        assert!(q.begins(&life(2), step(1, 2, 4)), "said again");
        drop(q.died(&life(2), held(2)));
        let strikes: Vec<_> = (1..=3).map(|n| q.suspects[&id(n)].strikes).collect();
        assert_eq!(strikes, [2, 1, 1], "only the one that ran");
    }

    #[test]
    fn a_new_stream_forgets_what_may_have_ended_unheard() {
        let mut q = new();
        dies_over_1(&mut q, 1);
        assert!(q.begins(&life(2), step(1, 2, 1)));
        q.greeted(&life(2), [id(1)]);
        assert_eq!(q.died(&life(2), [(id(1), token(2))]).0, []);
        assert_eq!(q.suspects[&id(1)].strikes, 1);
        assert!(q.begins(&life(3), step(1, 3, 1)));
    }
}
