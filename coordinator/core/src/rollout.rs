//! One command over many appliances, a few at a time: which of them are begun next, and when to stop.
//!
//! Free of IO like everything here. The shell begins what [`Rollout::next`] says, tells what came of it, and keeps the whole in the store,
//! so that the next leader goes on. An appliance is begun at most once, whoever leads: the call for it has an id that follows from the
//! rollout's.
//!
//! Appliances are taken in the order of the selection: the *canary* first, then one *wave* after the other. A wave begins when nothing of
//! the one before is under way or waits. Within a wave appliances are begun as long as fewer than `max_unavailable` of the whole
//! selection are unavailable, for whatever reason: what is down already counts. One that is down itself takes no further one down,
//! so that it is begun as long as fewer than that are under way.

use std::fmt;
use std::time::Duration;

use common::{ApplianceId, Generation};
use serde::{Deserialize, Serialize};

/// Most appliances of one rollout.
pub const MAX_ITEMS: usize = 100_000;

/// Most rollouts that have not ended.
pub const MAX_ACTIVE: usize = 32;

/// Most waves.
pub const MAX_WAVES: usize = 20;

/// Most different images that a rollout remembers, to go back to.
pub const MAX_IMAGES: usize = 1_000;

/// What is done to each appliance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutAction {
    /// Its instances are replaced.
    Rebuild,
    /// Its image is changed, which replaces its instances.
    SetImage(String),
    /// It is probed now.
    Check,
    /// It is removed.
    Delete,
}

impl RolloutAction {
    /// The word for it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Rebuild => "rebuild",
            Self::SetImage(_) => "set-image",
            Self::Check => "check",
            Self::Delete => "delete",
        }
    }

    /// Whether appliances are unavailable because of it.
    #[must_use]
    pub const fn disrupts(&self) -> bool {
        !matches!(self, Self::Check)
    }
}

/// How fast a rollout goes, and when it stops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutPolicy {
    /// Most appliances of the selection that may be unavailable at a time for another one to be begun; at least 1.
    pub max_unavailable: u32,
    /// It stops once so many have failed; never when 0.
    pub max_failures: u32,
    /// Appliances that go first, alone. One of them that fails stops it.
    pub canary: u32,
    /// Ends of the waves after the canary, in percent of what is left, rising; one wave of everything when empty.
    pub waves: Vec<u8>,
    /// After how long an appliance that has not succeeded counts as failed.
    pub item_timeout: Duration,
    /// Where the canary fails, images go back to what they were.
    pub rollback: bool,
}

/// How far one appliance is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ItemState {
    /// Nothing was done.
    #[default]
    Waiting,
    /// It was asked for, and is so as soon as it has acted on this generation.
    Begun(Generation),
    /// It succeeded.
    Done,
    /// It failed.
    Failed,
    /// It was gone, or being removed, when its turn came.
    Skipped,
    /// It goes back to its former image, and is so as soon as it has acted on this generation.
    Returning(Generation),
    /// It has its former image again.
    Returned,
    /// It was to have its former image again, and failed.
    NotReturned,
}

impl ItemState {
    /// Whether nothing more happens to it as long as the rollout goes forward.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Skipped | Self::Returned | Self::NotReturned)
    }

    /// Whether something was done to it that could be undone. Of one that was asked for and is not known to have been changed the
    /// answer is waited for.
    fn was_changed(self) -> bool {
        match self {
            Self::Begun(generation) => generation != Generation::default(),
            Self::Done | Self::Failed => true,
            Self::Waiting | Self::Skipped | Self::Returning(_) | Self::Returned | Self::NotReturned => false,
        }
    }
}

/// An appliance of the selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RolloutItem {
    /// Which.
    pub appliance: ApplianceId,
    /// How far it is.
    pub state: ItemState,
    /// Its image before, by its place among [`Rollout::images`]; for [`RolloutAction::SetImage`], once it was begun.
    pub former_image: Option<u16>,
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// It goes on.
    Running,
    /// An operator holds it: what was begun is followed, and nothing more is.
    Paused,
    /// It holds because the canary or too many others failed. An operator resumes it, aborts it or has it go back.
    Stopped,
    /// It goes back: appliances get their former images.
    RollingBack,
    /// Every appliance has ended.
    Completed,
    /// An operator ended it.
    Aborted,
    /// Appliances have their former images.
    RolledBack,
}

impl RolloutState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Running,
        Self::Paused,
        Self::Stopped,
        Self::RollingBack,
        Self::Completed,
        Self::Aborted,
        Self::RolledBack,
    ];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::RollingBack => "rolling-back",
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled-back",
        }
    }

    /// Whether nothing follows.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Aborted | Self::RolledBack)
    }
}

/// What an operator asks of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RolloutOrder {
    /// Begin nothing more for now.
    Pause,
    /// Go on. Failures from before count no more.
    Resume,
    /// Begin nothing more, ever.
    Abort,
    /// Go back to the former images.
    Rollback,
}

impl RolloutOrder {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
        }
    }
}

/// Why an order is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderRefused {
    /// It does not fit how far it is.
    State(RolloutState),
    /// What was done cannot be undone.
    NothingToUndo,
}

impl fmt::Display for OrderRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(f, "it is {}", state.name()),
            Self::NothingToUndo => f.write_str("there are no former images to go back to"),
        }
    }
}

impl std::error::Error for OrderRefused {}

/// Failures that an operator has seen and resumed after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgiven {
    /// Of all.
    pub failed: usize,
    /// Of the canary.
    pub canary: usize,
}

/// How an appliance is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// It is unavailable.
    pub down: bool,
    /// It may not be begun now.
    pub held: bool,
}

/// Numbers of appliances by how far they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RolloutCounts {
    /// Nothing was done.
    pub waiting: usize,
    /// Under way, forwards or back.
    pub begun: usize,
    /// Succeeded.
    pub done: usize,
    /// Failed.
    pub failed: usize,
    /// Gone before their turn.
    pub skipped: usize,
    /// Back at their former image.
    pub returned: usize,
}

/// A rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// What is done.
    pub action: RolloutAction,
    /// How fast, and when it stops.
    pub policy: RolloutPolicy,
    /// How far it is.
    pub state: RolloutState,
    /// The selection, in the order in which it is taken.
    pub items: Vec<RolloutItem>,
    /// Former images.
    pub images: Vec<String>,
    /// Failures that an operator has resumed after.
    pub forgiven: Forgiven,
    /// All before this one have ended.
    first_open: usize,
}

/// What follows for a rollout now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolloutStep {
    /// Items to be begun, by their places.
    pub begin: Vec<usize>,
    /// Items to be given their former images, by their places.
    pub give_back: Vec<usize>,
    /// It is in another state from now on; why is for [`Rollout::why_stopped`].
    pub state: Option<RolloutState>,
}

impl Rollout {
    /// One that begins.
    #[must_use]
    pub fn new(action: RolloutAction, policy: RolloutPolicy, selection: impl IntoIterator<Item = ApplianceId>) -> Self {
        let item = |appliance| RolloutItem { appliance, state: ItemState::Waiting, former_image: None };
        let items = selection.into_iter().map(item).collect();
        Self::restore(action, policy, RolloutState::Running, items, Vec::new(), Forgiven::default())
    }

    /// One as it was stored.
    #[must_use]
    pub fn restore(
        action: RolloutAction,
        policy: RolloutPolicy,
        state: RolloutState,
        items: Vec<RolloutItem>,
        images: Vec<String>,
        forgiven: Forgiven,
    ) -> Self {
        Self { action, policy, state, items, images, forgiven, first_open: 0 }
    }

    /// How many appliances are how far.
    #[must_use]
    pub fn counts(&self) -> RolloutCounts {
        let mut counts = RolloutCounts::default();
        for item in &self.items {
            let count = match item.state {
                ItemState::Waiting => &mut counts.waiting,
                ItemState::Begun(_) | ItemState::Returning(_) => &mut counts.begun,
                ItemState::Done => &mut counts.done,
                ItemState::Failed | ItemState::NotReturned => &mut counts.failed,
                ItemState::Skipped => &mut counts.skipped,
                ItemState::Returned => &mut counts.returned,
            };
            *count += 1;
        }
        counts
    }

    /// The wave that is under way, from 0, which is the canary if there is one, and where it ends in the selection.
    #[must_use]
    pub fn wave(&self) -> (usize, usize) {
        let ends = self.wave_ends();
        let open = self.items.iter().position(|item| !item.state.has_ended()).unwrap_or(self.items.len());
        let at = ends.iter().position(|end| open < *end).unwrap_or(ends.len().saturating_sub(1));
        (at, ends.get(at).copied().unwrap_or(0))
    }

    /// Where each wave ends in the selection, the canary's first if there is one.
    #[must_use]
    pub fn wave_ends(&self) -> Vec<usize> {
        let all = self.items.len();
        let canary = (self.policy.canary as usize).min(all);
        let rest = all - canary;
        let mut ends = Vec::with_capacity(self.policy.waves.len() + 2);
        ends.extend((canary > 0).then_some(canary));
        // Rounded up, so that no wave that is asked for is empty.
        ends.extend(self.policy.waves.iter().map(|percent| canary + (rest * usize::from(*percent)).div_ceil(100)));
        if ends.last() != Some(&all) {
            ends.push(all);
        }
        ends.dedup();
        ends
    }

    /// What follows. `condition` says how the item at a place is now, and `admit` whether it may be made unavailable besides those
    /// that it said so of before: it is asked of those alone that would be begun.
    #[must_use]
    pub fn next(
        &mut self,
        mut condition: impl FnMut(usize) -> Condition,
        mut admit: impl FnMut(usize) -> bool,
    ) -> RolloutStep {
        let mut step = RolloutStep::default();
        while self.items.get(self.first_open).is_some_and(|item| item.state.has_ended()) {
            self.first_open += 1;
        }
        match self.state {
            RolloutState::Running => {
                if self.why_stopped().is_some() {
                    let goes_back = self.policy.rollback && self.has_failed_canary() && self.can_go_back();
                    step.state = Some(if goes_back { RolloutState::RollingBack } else { RolloutState::Stopped });
                } else if self.items.iter().all(|item| item.state.has_ended()) {
                    step.state = Some(RolloutState::Completed);
                } else {
                    let (_, end) = self.wave();
                    let waiting = (self.first_open..end).filter(|at| self.items[*at].state == ItemState::Waiting);
                    step.begin = self.within_limits(waiting.collect(), &mut condition, &mut admit);
                }
            }
            RolloutState::RollingBack => {
                let changed = |item: &RolloutItem| item.former_image.is_some() && item.state.was_changed();
                let is_open = |item: &RolloutItem| matches!(item.state, ItemState::Begun(_) | ItemState::Returning(_));
                if self.items.iter().any(|item| changed(item) || is_open(item)) {
                    let all = (0..self.items.len()).filter(|at| changed(&self.items[*at]));
                    step.give_back = self.within_limits(all.collect(), &mut condition, &mut admit);
                } else {
                    step.state = Some(RolloutState::RolledBack);
                }
            }
            RolloutState::Paused | RolloutState::Stopped => {}
            RolloutState::Completed | RolloutState::Aborted | RolloutState::RolledBack => {}
        }
        step
    }

    /// Those of some items that may be begun now: what is down already as long as fewer than `max_unavailable` are under way,
    /// others as long as fewer than that are unavailable.
    fn within_limits(
        &self,
        some: Vec<usize>,
        condition: &mut impl FnMut(usize) -> Condition,
        admit: &mut impl FnMut(usize) -> bool,
    ) -> Vec<usize> {
        let conditions: Vec<Condition> = (0..self.items.len()).map(condition).collect();
        let is_open = |at: &usize| matches!(self.items[*at].state, ItemState::Begun(_) | ItemState::Returning(_));
        let under_way = (0..self.items.len()).filter(is_open).count();
        let down = (0..self.items.len()).filter(|at| !is_open(at) && conditions[*at].down).count();
        let most = self.policy.max_unavailable as usize;
        let free = most.saturating_sub(under_way);
        let room = if self.action.disrupts() { free.saturating_sub(down) } else { free };
        let allowed = some.into_iter().filter(|at| !conditions[*at].held);
        let (is_down, is_up): (Vec<_>, Vec<_>) = allowed.partition(|at| conditions[*at].down && self.action.disrupts());
        let disrupts = self.action.disrupts();
        let mut may = |at: &usize| !disrupts || admit(*at);
        // Also what is down is asked for: it may be up again before its call is made.
        let mut chosen: Vec<usize> = is_down.into_iter().filter(&mut may).take(free).collect();
        let left = free - chosen.len();
        chosen.extend(is_up.into_iter().filter(&mut may).take(room.min(left)));
        chosen.sort_unstable();
        chosen
    }

    /// Why it does not go on by itself, as far as that is because appliances failed.
    #[must_use]
    pub fn why_stopped(&self) -> Option<String> {
        if self.has_failed_canary() {
            return Some("the canary failed".to_owned());
        }
        let failed = self.counts().failed;
        let (fresh, most) = (failed.saturating_sub(self.forgiven.failed), self.policy.max_failures as usize);
        (most > 0 && fresh >= most).then(|| format!("{failed} failed, and {most} are too many"))
    }

    /// Whether more of the canary have failed than an operator has seen.
    fn has_failed_canary(&self) -> bool {
        self.failed_canaries() > self.forgiven.canary
    }

    fn failed_canaries(&self) -> usize {
        let canary = self.items.iter().take(self.policy.canary as usize);
        canary.filter(|item| item.state == ItemState::Failed).count()
    }

    fn can_go_back(&self) -> bool {
        matches!(self.action, RolloutAction::SetImage(_))
    }

    /// Notes an image from before, for an item that is begun; `None` when there are too many different ones.
    pub fn remember_image(&mut self, image: &str) -> Option<u16> {
        let at = match self.images.iter().position(|known| known == image) {
            Some(at) => at,
            None if self.images.len() < MAX_IMAGES => {
                self.images.push(image.to_owned());
                self.images.len() - 1
            }
            None => return None,
        };
        u16::try_from(at).ok()
    }

    /// Takes in what an operator asks for.
    ///
    /// # Errors
    /// [`OrderRefused`]; nothing has changed.
    pub fn order(&mut self, order: RolloutOrder) -> Result<(), OrderRefused> {
        use RolloutState as S;
        let refused = Err(OrderRefused::State(self.state));
        let state = match (order, self.state) {
            (RolloutOrder::Pause, S::Running) => S::Paused,
            // What failed while it was paused was seen by nobody.
            (RolloutOrder::Resume, S::Paused) => S::Running,
            (RolloutOrder::Resume, S::Stopped) => {
                self.forgiven = Forgiven { failed: self.counts().failed, canary: self.failed_canaries() };
                S::Running
            }
            (RolloutOrder::Abort, state) if !state.has_ended() => S::Aborted,
            // Also after its end: that the new image is bad may be found out late.
            (RolloutOrder::Rollback, S::RollingBack | S::RolledBack) => return refused,
            (RolloutOrder::Rollback, _) if self.can_go_back() => S::RollingBack,
            (RolloutOrder::Rollback, _) => return Err(OrderRefused::NothingToUndo),
            _ => return refused,
        };
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RolloutPolicy {
        RolloutPolicy {
            max_unavailable: 5,
            max_failures: 0,
            canary: 0,
            waves: Vec::new(),
            item_timeout: Duration::from_secs(60),
            rollback: true,
        }
    }

    fn rollout(count: u128, policy: RolloutPolicy) -> Rollout {
        Rollout::new(RolloutAction::Rebuild, policy, (1..=count).map(ApplianceId::from_u128))
    }

    /// Carries out a step as a world in which everything fails that `fails` names.
    fn play(rollout: &mut Rollout, fails: impl Fn(usize) -> bool) -> Vec<usize> {
        let step = rollout.next(|_| Condition::default(), |_| true);
        if let Some(state) = step.state {
            rollout.state = state;
        }
        for &at in &step.begin {
            rollout.items[at].state = if fails(at) { ItemState::Failed } else { ItemState::Done };
            if matches!(rollout.action, RolloutAction::SetImage(_)) {
                rollout.items[at].former_image = rollout.remember_image("v1");
            }
        }
        for &at in &step.give_back {
            rollout.items[at].state = ItemState::Returned;
        }
        step.begin
    }

    #[test]
    fn waves_begin_one_after_the_other_and_the_canary_first() {
        let mut it = rollout(21, RolloutPolicy { canary: 1, waves: vec![10, 50], max_unavailable: 100, ..policy() });
        assert_eq!(it.wave_ends(), [1, 3, 11, 21]);
        let begun: Vec<usize> = (0..4).map(|_| play(&mut it, |_| false).len()).collect();
        assert_eq!(begun, [1, 2, 8, 10]);
        play(&mut it, |_| false);
        assert_eq!(it.state, RolloutState::Completed);
        assert_eq!(rollout(3, RolloutPolicy { canary: 9, ..policy() }).wave_ends(), [3]);
        assert_eq!(rollout(3, RolloutPolicy { waves: vec![1, 2, 100], ..policy() }).wave_ends(), [1, 3]);
        assert_eq!(rollout(0, policy()).wave_ends(), [0]);
    }

    /// Conditions in which these are down and these are held.
    fn with(down: &[usize], held: &[usize]) -> impl FnMut(usize) -> Condition {
        let (down, held) = (down.to_vec(), held.to_vec());
        move |at| Condition { down: down.contains(&at), held: held.contains(&at) }
    }

    #[test]
    fn what_is_down_already_counts_and_what_is_held_is_left_out() {
        let mut it = rollout(20, policy());
        assert_eq!(
            it.next(with(&[17, 18, 19], &[]), |_| true).begin,
            [0, 1, 17, 18, 19],
            "what is down takes nothing down"
        );
        let all: Vec<usize> = (0..20).collect();
        assert_eq!(it.next(with(&all, &[]), |_| true).begin, [0, 1, 2, 3, 4], "and as many as that at a time");
        it.items[17].state = ItemState::Failed;
        it.items[0].state = ItemState::Begun(Generation::new(2));
        assert_eq!(it.next(with(&[17], &[]), |_| true).begin, [1, 2, 3], "one that failed and is down counts");
        assert_eq!(it.next(with(&[17], &[1]), |_| true).begin, [2, 3, 4]);
        // A probe takes nothing down.
        it.action = RolloutAction::Check;
        assert_eq!(it.next(with(&all, &[]), |_| true).begin.len(), 4);
    }

    #[test]
    fn the_way_back_is_as_slow_and_leaves_out_what_is_held() {
        let mut it = Rollout::new(RolloutAction::SetImage("v2".into()), policy(), (1..=9).map(ApplianceId::from_u128));
        let image = it.remember_image("v1");
        it.items.iter_mut().for_each(|item| (item.state, item.former_image) = (ItemState::Done, image));
        it.items[8] = RolloutItem { state: ItemState::Begun(Generation::default()), ..it.items[8] };
        it.order(RolloutOrder::Rollback).expect("images are known");
        assert_eq!(
            it.next(with(&[], &[0]), |_| true).give_back,
            [1, 2, 3, 4],
            "the one that is asked for is under way"
        );
        it.items[8].state = ItemState::Failed;
        assert_eq!(it.next(with(&[5, 8], &[0]), |_| true).give_back, [1, 2, 3, 5, 8]);
    }

    #[test]
    fn it_stops_at_the_failure_that_is_one_too_many_and_resumes_after_it() {
        let one_at_a_time = RolloutPolicy { max_failures: 3, max_unavailable: 1, ..policy() };
        let mut it = rollout(100, one_at_a_time);
        let fails = |at: usize| at % 10 == 9;
        while it.state == RolloutState::Running {
            play(&mut it, fails);
        }
        let counts = it.counts();
        assert_eq!((it.state, counts.done, counts.failed), (RolloutState::Stopped, 27, 3));
        assert_eq!(it.why_stopped().expect("it says why"), "3 failed, and 3 are too many");
        it.order(RolloutOrder::Resume).expect("it is stopped");
        while it.state == RolloutState::Running {
            play(&mut it, fails);
        }
        assert_eq!((it.counts().done, it.counts().failed), (54, 6));
    }

    #[test]
    fn a_canary_that_fails_stops_it_and_images_go_back() {
        let canary = RolloutPolicy { canary: 2, max_failures: 50, ..policy() };
        let mut it = Rollout::new(RolloutAction::SetImage("v2".into()), canary, (1..=9).map(ApplianceId::from_u128));
        while it.state == RolloutState::Running {
            play(&mut it, |at| at == 1);
        }
        assert_eq!((it.state, it.counts().waiting), (RolloutState::RollingBack, 7));
        while it.state == RolloutState::RollingBack {
            play(&mut it, |_| false);
        }
        assert_eq!((it.state, it.counts().returned, it.images), (RolloutState::RolledBack, 2, vec!["v1".to_owned()]));

        let mut rebuild = rollout(9, RolloutPolicy { canary: 2, ..policy() });
        while rebuild.state == RolloutState::Running {
            play(&mut rebuild, |at| at == 1);
        }
        assert_eq!(rebuild.state, RolloutState::Stopped, "there is nothing to go back to");
        assert_eq!(rebuild.order(RolloutOrder::Rollback), Err(OrderRefused::NothingToUndo));
        assert_eq!(rebuild.order(RolloutOrder::Resume), Ok(()));
        let mut paused = rollout(9, RolloutPolicy { canary: 2, ..policy() });
        paused.order(RolloutOrder::Pause).expect("it runs");
        paused.items[0].state = ItemState::Failed;
        paused.order(RolloutOrder::Resume).expect("it is paused");
        assert_eq!(paused.why_stopped().as_deref(), Some("the canary failed"), "nobody has seen that");
        play(&mut rebuild, |_| false);
        assert_eq!(rebuild.state, RolloutState::Running, "an operator has seen it");
    }

    #[test]
    fn orders_are_taken_only_where_they_make_sense() {
        let mut it = rollout(3, policy());
        assert_eq!(it.order(RolloutOrder::Resume), Err(OrderRefused::State(RolloutState::Running)));
        it.order(RolloutOrder::Pause).expect("it runs");
        assert_eq!(it.next(|_| Condition::default(), |_| true), RolloutStep::default());
        it.order(RolloutOrder::Abort).expect("it has not ended");
        for order in [RolloutOrder::Abort, RolloutOrder::Pause, RolloutOrder::Resume] {
            assert_eq!(it.order(order), Err(OrderRefused::State(RolloutState::Aborted)));
        }
    }

    #[test]
    fn a_rollout_ends_after_its_end_when_the_new_image_turns_out_to_be_bad() {
        let mut it = Rollout::new(RolloutAction::SetImage("v2".into()), policy(), (1..=3).map(ApplianceId::from_u128));
        while it.state == RolloutState::Running {
            play(&mut it, |_| false);
        }
        it.order(RolloutOrder::Rollback).expect("images are known");
        while it.state == RolloutState::RollingBack {
            play(&mut it, |_| false);
        }
        assert_eq!((it.state, it.counts().returned), (RolloutState::RolledBack, 3));
    }

    #[test]
    fn what_may_not_be_made_unavailable_is_passed_over() {
        let mut it = Rollout::new(RolloutAction::Rebuild, policy(), (0..20).map(ApplianceId::from_u128));
        (it.policy.canary, it.policy.waves, it.policy.max_unavailable) = (0, Vec::new(), 3);
        let mut asked = Vec::new();
        let even = |at: usize| {
            asked.push(at);
            at.is_multiple_of(2)
        };
        assert_eq!(it.next(|_| Condition::default(), even).begin, [0, 2, 4]);
        assert_eq!(asked, [0, 1, 2, 3, 4], "nobody is asked who would not be begun");
    }
}
