//! What happens to a world besides its own course: faults and load, one decision after the other.
//!
//! The list is made from the seed before the run and apart from all other chance, so that it can be shortened: a run with
//! fewer decisions is a run like any other. A seed also picks which sorts of faults exist in it at all (swarm testing):
//! where everything fails all the time, little happens that takes a while.
//!
//! A decision names whom it strikes by a number that is reduced to what there is when it is carried out, so that it means
//! something in every world. As text it is `what@seconds:who,amount`.

use std::fmt;
use std::str::FromStr;

use super::SimTime;
use super::rng::Rng;

macro_rules! whats {
    ($($(#[$doc:meta])* $name:ident = $text:literal $weight:literal,)*) => {
        /// What is decided; `who` and `amount` (milliseconds) mean what it needs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum What {
            $($(#[$doc])* $name,)*
        }

        impl What {
            const ALL: &'static [(Self, &'static str, u64)] = &[$((Self::$name, $text, $weight),)*];
        }
    };
}

whats! {
    /// A worker is killed, and started again.
    KillWorker = "kill-worker" 2,
    /// A worker stops without draining, and is started again.
    StopWorker = "stop-worker" 1,
    /// A worker drains, and is started again.
    DrainWorker = "drain-worker" 1,
    /// A worker does not run for a while; its clock does.
    PauseWorker = "pause-worker" 2,
    /// A coordinator is killed, and started again.
    KillCoordinator = "kill-coordinator" 2,
    /// A coordinator does not run for a while.
    PauseCoordinator = "pause-coordinator" 2,
    /// The leader does not run for so long that another one is elected, and goes on.
    PauseLeader = "pause-leader" 3,
    /// The leader gives the leadership up.
    Resign = "resign" 1,
    /// A stream breaks.
    BreakStream = "break-stream" 2,
    /// A stream stands still, in one direction or both.
    StallStream = "stall-stream" 2,
    /// A worker and a coordinator do not reach each other, or one of them not the other.
    CutSession = "cut-session" 2,
    /// A worker reaches nobody.
    CutWorker = "cut-worker" 1,
    /// A coordinator reaches nobody.
    CutCoordinator = "cut-coordinator" 1,
    /// A coordinator and the store.
    CutStore = "cut-coordinator-store" 2,
    /// The store refuses everything.
    StoreRefuses = "store-refuses" 2,
    /// The store is put back to an earlier copy.
    Restore = "restore" 1,
    /// Something happens to the coordination service, to the way there, or to somebody's nodes: `who` says what.
    Service = "service" 7,
    /// Somebody who knows everything of a life but its secret, or who asks for a life of its own, speaks to a leader.
    Stranger = "stranger" 4,
    /// An operator evicts a worker.
    Evict = "evict" 1,
    /// What drivers call is slow.
    SlowBackend = "slow-backend" 2,
    /// An appliance is created.
    Create = "create" 0,
    /// An appliance is changed.
    Update = "update" 0,
    /// An appliance is deleted.
    Delete = "delete" 0,
    /// Somebody wants an appliance probed.
    Check = "check" 0,
    /// An operator sets a debug mode.
    SetMode = "set-mode" 0,
    /// An operator clears one.
    ClearMode = "clear-mode" 0,
    /// An operator gives an order about placement, or takes one back.
    Order = "order" 0,
    /// A copy of the store is made.
    Backup = "backup" 0,
    /// A worker does not come back.
    LoseWorker = "lose-worker" 0,
    /// A coordinator does not come back.
    LoseCoordinator = "lose-coordinator" 0,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(what, ..)| what == self).map_or("?", |(_, name, _)| *name);
        f.write_str(name)
    }
}

/// Something that happens at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When.
    pub at: SimTime,
    /// What.
    pub what: What,
    /// To whom, reduced to what there is.
    pub who: u32,
    /// How much of it: most often milliseconds.
    pub amount: u32,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, what, who, amount } = self;
        write!(f, "{what}@{}.{:06}:{who},{amount}", at / 1_000_000_000, at % 1_000_000_000 / 1_000)
    }
}

impl FromStr for Decision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no decision, such as kill-worker@1.500000:2,800");
        let (name, rest) = text.split_once('@').ok_or_else(wrong)?;
        let (at, rest) = rest.split_once(':').ok_or_else(wrong)?;
        let (who, amount) = rest.split_once(',').ok_or_else(wrong)?;
        let (what, ..) = What::ALL.iter().find(|(_, known, _)| *known == name).ok_or_else(wrong)?;
        let (seconds, micros) = at.split_once('.').ok_or_else(wrong)?;
        if micros.len() != 6 {
            return Err(wrong());
        }
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let at = number(seconds)?.checked_mul(1_000_000).ok_or_else(wrong)? + number(micros)?;
        Ok(Self {
            at: at.checked_mul(1_000).ok_or_else(wrong)?,
            what: *what,
            who: who.parse().map_err(|_| wrong())?,
            amount: amount.parse().map_err(|_| wrong())?,
        })
    }
}

/// Everything that is decided in the world of a seed, in order, until `faults_end`.
pub(super) fn decide(seed: u64, faults_end: SimTime) -> Vec<Decision> {
    let mut rng = Rng::new(seed ^ 0x6465_6369_6465);
    let mut decisions = Vec::new();
    let kept = [15, 40, 70][rng.index(3)];
    let faults: Vec<(What, u64)> = What::ALL
        .iter()
        .filter(|(.., w)| *w > 0)
        .filter(|_| rng.chance(kept))
        .map(|(what, _, w)| (*what, *w))
        .collect();
    let total: u64 = faults.iter().map(|(_, weight)| weight).sum();
    let calm_ms = [400, 1_500, 4_000, 8_000][rng.index(4)];
    // Where faults are long and come one upon the other, nothing happens besides.
    let longest_ms = [600, 2_500, 8_000][rng.index(3)];
    let mut at = rng.millis(500, 5_000);
    while at < faults_end && total > 0 {
        let mut left = rng.below(total);
        let what = faults.iter().find(|(_, weight)| {
            let found = left < *weight;
            left = left.saturating_sub(*weight);
            found
        });
        if let Some((what, _)) = what {
            let amount =
                match what {
                    What::KillWorker | What::StopWorker | What::DrainWorker | What::KillCoordinator => {
                        if rng.chance(30) { rng.below(200) } else { 200 + rng.below(longest_ms) }
                    }
                    What::PauseLeader => 4_000 + rng.below(8_000),
                    What::StoreRefuses => 50 + rng.below(longest_ms.min(3_000)),
                    _ => 50 + if rng.chance(30) { rng.below(600) } else { rng.below(longest_ms) },
                };
            if *what == What::Restore {
                let copied = rng.below(at.max(1) / 1_000) * 1_000;
                decisions.push(Decision { at: copied, what: What::Backup, who: 0, amount: 0 });
            }
            decisions.push(Decision {
                at: at / 1_000 * 1_000,
                what: *what,
                who: rng.draw() as u32,
                amount: amount as u32,
            });
        }
        at += rng.millis(20, calm_ms);
    }
    let mut at = rng.millis(1, 500);
    while at < faults_end {
        let what = [
            What::Create,
            What::Create,
            What::Create,
            What::Create,
            What::Create,
            What::Update,
            What::Update,
            What::Update,
            What::Delete,
            What::Check,
        ][rng.index(10)];
        decisions.push(Decision { at: at / 1_000 * 1_000, what, who: rng.draw() as u32, amount: 0 });
        at += if rng.chance(20) { rng.millis(1, 50) } else { rng.millis(50, 1_500) };
    }
    for who in 0..6 {
        if rng.chance(15) {
            decisions.push(Decision { at: faults_end, what: What::LoseWorker, who, amount: 0 });
        }
    }
    if rng.chance(15) {
        decisions.push(Decision { at: faults_end, what: What::LoseCoordinator, who: rng.draw() as u32, amount: 0 });
    }
    // Seldom, often, or not at all.
    let every_ms = [0, 800, 3_000, 8_000][rng.index(4)];
    let mut at = rng.millis(500, 5_000);
    while every_ms > 0 && at < faults_end {
        let what = if rng.chance(60) { What::SetMode } else { What::ClearMode };
        decisions.push(Decision { at: at / 1_000 * 1_000, what, who: rng.draw() as u32, amount: 0 });
        at += rng.millis(20, 2 * every_ms);
    }
    let every_ms = [0, 0, 1_000, 5_000][rng.index(4)];
    let mut at = rng.millis(500, 5_000);
    while every_ms > 0 && at < faults_end {
        decisions.push(Decision { at: at / 1_000 * 1_000, what: What::Order, who: rng.draw() as u32, amount: 0 });
        at += rng.millis(20, 2 * every_ms);
    }
    decisions.sort_by_key(|decision| decision.at);
    decisions
}

/// A run: a seed, and what is decided in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The seed.
    pub seed: u64,
    /// What is decided; `None` is what the seed itself comes to.
    pub decisions: Option<Vec<Decision>>,
}

impl From<u64> for Case {
    fn from(seed: u64) -> Self {
        Self { seed, decisions: None }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        let Some(decisions) = &self.decisions else { return Ok(()) };
        f.write_str("/")?;
        for (n, decision) in decisions.iter().enumerate() {
            write!(f, "{}{decision}", if n == 0 { "" } else { "/" })?;
        }
        Ok(())
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.trim().split('/').map(str::trim);
        let seed = parts.next().unwrap_or_default();
        let seed = seed.parse().map_err(|_| format!("a case begins with its seed, not with {seed:?}"))?;
        let rest: Vec<&str> = parts.collect();
        let decisions = match rest.as_slice() {
            [] => None,
            [""] => Some(Vec::new()),
            some => Some(some.iter().map(|part| part.parse()).collect::<Result<_, _>>()?),
        };
        Ok(Self { seed, decisions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read_as_it_is_written() {
        for seed in 1..50 {
            let case = Case { seed, decisions: Some(decide(seed, 10_000_000_000)) };
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        assert_eq!("7".parse(), Ok(Case::from(7)));
        assert_eq!("7/".parse(), Ok(Case { seed: 7, decisions: Some(vec![]) }));
        for wrong in ["", "x", "7/kill-worker", "7/kill-worker@1.5:2,3", "7/sleep@1.500000:2,3"] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }
}
