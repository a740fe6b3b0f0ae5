//! What must be true of what a drill left behind: pure functions over [`Evidence`], each answering with what contradicts
//! one rule.
//!
//! | rule | contradicted by |
//! |---|---|
//! | one owner at a time | journals in which a token falls, belongs to two lives, or acts before an older one is done |
//! | nobody acts once gone | an action, or a right to act, after a leader called that life gone |
//! | tenures follow each other | an appliance that is taken before its former owner let go of it or was called gone |
//! | no change is lost | an appliance that is not what its clients were told ([`super::ledger`]) |
//! | everything ends where the API says | processes that the API does not show, or the other way round |
//! | the store agrees | rows that differ from what the API shows |
//!
//! All moments are nanoseconds of CLOCK_BOOTTIME.

use std::collections::{BTreeMap, BTreeSet};

use super::ledger::{CallLedger, Existence, Shown};
use crate::journal::{JournalLine, Journals};
use crate::lives::{Lives, LoggedLife};

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The rule.
    pub rule: &'static str,
    /// What contradicts it.
    pub text: String,
}

/// The end of a process: not before this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessExit {
    /// Name of the daemon.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// When it was asked to end, or was last seen alive.
    pub at_ns: u64,
}

/// One worker's time with one appliance, by what it logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The worker.
    pub worker: String,
    /// Which life of it.
    pub incarnation: String,
    /// The grant.
    pub token: (u64, u64),
    /// When it may have begun to act.
    pub taken_ns: u64,
    /// When it could not act any more, if it said so.
    pub released_ns: Option<u64>,
}

/// What an appliance is, by the API, once all is calm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resting {
    /// Name, for messages.
    pub name: String,
    /// Instances there should be.
    pub replicas: u32,
    /// Pids of its instances, where its driver has such.
    pub pids: BTreeSet<u32>,
    /// Worker that owns it.
    pub worker: String,
    /// Token of the grant, as `t1/2`.
    pub token: String,
    /// Its generation.
    pub generation: u64,
}

/// An instance that exists now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningInstance {
    /// Its appliance.
    pub appliance: String,
    /// Its ordinal.
    pub ordinal: u64,
    /// Its process; absent for a simulated one.
    pub pid: Option<u32>,
}

/// What the store has of an appliance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Its generation.
    pub generation: u64,
    /// Worker and token of its grant, the latter as `t1/2`.
    pub granted: Option<(String, String)>,
}

/// Everything a drill left behind.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// What the process driver did.
    pub journals: Journals,
    /// What the simulated driver did; its actions take no time.
    pub simulated: Journals,
    /// Lives of workers.
    pub lives: Lives,
    /// Who had what, by appliance and in the order of tokens.
    pub tenures: BTreeMap<String, Vec<Tenure>>,
    /// Ends of processes.
    pub exits: Vec<ProcessExit>,
}

/// What is there at the end, once all is calm.
#[derive(Clone, Debug, Default)]
pub struct FinalState {
    /// What clients know.
    pub ledger: CallLedger,
    /// Appliances as the API shows them.
    pub shown: BTreeMap<String, Shown>,
    /// The same, as far as their instances go.
    pub resting: BTreeMap<String, Resting>,
    /// What runs.
    pub running: Vec<RunningInstance>,
    /// What is stored.
    pub stored: BTreeMap<String, Stored>,
}

/// All rules about what was done.
#[must_use]
pub fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut found = Vec::new();
    for journals in [&evidence.journals, &evidence.simulated] {
        for entries in journals.values() {
            found.extend(one_owner_at_a_time(entries, &evidence.exits));
            found.extend(acted_as_taken(entries, evidence));
        }
    }
    found.extend(might_act_once_gone(&evidence.lives));
    for (appliance, tenures) in &evidence.tenures {
        found.extend(tenures_follow(appliance, tenures, &evidence.lives));
    }
    found
}

/// All rules about what is there at the end.
#[must_use]
pub fn check_end(end: &FinalState) -> Vec<Violation> {
    let mut found = no_change_is_lost(&end.ledger, &end.shown);
    found.extend(ends_where_the_api_says(&end.resting, &end.running));
    found.extend(store_agrees(&end.resting, &end.stored));
    found
}

/// How many actions [`check`] judges.
#[must_use]
pub fn actions(evidence: &Evidence) -> usize {
    evidence.journals.values().chain(evidence.simulated.values()).flatten().filter(|entry| entry.begins()).count()
}

fn violation(rule: &'static str, text: String) -> Violation {
    Violation { rule, text }
}

/// In one journal, in the order in which it was written: time and tokens never fall, a token is one process's, and no
/// action begins before the one before it is done or its process is.
#[must_use]
pub fn one_owner_at_a_time(entries: &[JournalLine], exits: &[ProcessExit]) -> Vec<Violation> {
    const RULE: &str = "one owner at a time";
    let mut found = Vec::new();
    let mut owners: BTreeMap<(u64, u64), (&str, u32)> = BTreeMap::new();
    let mut newest: Option<&JournalLine> = None;
    let mut open: Option<&JournalLine> = None;
    for entry in entries {
        let owner = *owners.entry(entry.token).or_insert((&entry.worker, entry.pid));
        if owner != (entry.worker.as_str(), entry.pid) {
            found.push(violation(RULE, format!("{} acted with the token of {owner:?}", brief(entry))));
        }
        if let Some(newest) = newest {
            if entry.token < newest.token {
                found.push(violation(RULE, format!("{} comes after {}", brief(entry), brief(newest))));
            }
            if entry.at_ns < newest.at_ns {
                found.push(violation(RULE, format!("{} was written after {}", brief(entry), brief(newest))));
            }
        }
        if newest.is_none_or(|newest| newest.token <= entry.token) {
            newest = Some(entry);
        }
        if entry.begins() {
            if let Some(open) = open.filter(|open| !may_be_left_open(open, entry, exits)) {
                found.push(violation(RULE, format!("{} began before {} was done", brief(entry), brief(open))));
            }
            open = Some(entry);
        } else if open.is_some_and(|open| (open.token, &open.action) == (entry.token, &entry.action)) {
            open = None;
        }
    }
    found
}

/// Whether an action without an end was over when the next one began: it is over as soon as it has begun, or its process
/// was on its way out by then.
fn may_be_left_open(open: &JournalLine, next: &JournalLine, exits: &[ProcessExit]) -> bool {
    // A signal is sent at once; what is given up at a time-out is only the wait for its effect. A sweep notes no end, and
    // the simulated driver notes what it has done.
    let at_once = matches!(open.action.as_str(), "terminate" | "kill" | "sweep" | "boot" | "end");
    at_once || exits.iter().any(|exit| exit.pid == open.pid && exit.at_ns <= next.at_ns)
}

/// Every action is one of the life that took the appliance with that token, and of no life that is gone.
fn acted_as_taken(entries: &[JournalLine], evidence: &Evidence) -> Vec<Violation> {
    const RULE: &str = "nobody acts once gone";
    let mut found = Vec::new();
    for entry in entries.iter().filter(|entry| entry.begins()) {
        let tenures = evidence.tenures.get(&entry.appliance).map(Vec::as_slice).unwrap_or_default();
        let Some(tenure) = tenures.iter().find(|tenure| tenure.token == entry.token) else {
            found.push(violation(RULE, format!("{} acted with a token that nobody took", brief(entry))));
            continue;
        };
        // The simulated driver does not say who it is.
        if !entry.worker.is_empty() && tenure.worker != entry.worker {
            found.push(violation(RULE, format!("{} acted with a token that {} took", brief(entry), tenure.worker)));
        }
        if tenure.released_ns.is_some_and(|released| released < entry.at_ns) {
            found.push(violation(RULE, format!("{} acted after it had let go of it", brief(entry))));
        }
        let life = evidence.lives.get(&(tenure.worker.clone(), tenure.incarnation.clone()));
        if let Some(gone) = life.and_then(|life| life.gone).filter(|gone| *gone < entry.at_ns) {
            let late = entry.at_ns - gone;
            found.push(violation(RULE, format!("{} acted {late} ns after its life was called gone", brief(entry))));
        }
    }
    found
}

/// No life might act by its own gate after a leader called it gone.
#[must_use]
pub fn might_act_once_gone(lives: &Lives) -> Vec<Violation> {
    const RULE: &str = "nobody acts once gone";
    let mut found = Vec::new();
    for ((worker, incarnation), life) in lives {
        if let Some(slack) = life.slack_ns().filter(|slack| *slack < 0) {
            let text = format!("{worker} {incarnation} might act for {} ns after it was called gone", -slack);
            found.push(violation(RULE, text));
        }
    }
    found
}

/// The former owner of an appliance has let go of it, or was called gone, before the next one takes it.
#[must_use]
pub fn tenures_follow(appliance: &str, tenures: &[Tenure], lives: &Lives) -> Vec<Violation> {
    const RULE: &str = "tenures follow each other";
    let mut found = Vec::new();
    for pair in tenures.windows(2) {
        let [former, next] = pair else { continue };
        let gone = lives.get(&(former.worker.clone(), former.incarnation.clone())).and_then(|life| life.gone);
        let over = former.released_ns.into_iter().chain(gone).min();
        if over.is_none_or(|over| over > next.taken_ns) {
            let text = format!(
                "{appliance} was taken while its former owner could act: {former:?}, gone {gone:?}, then {next:?}"
            );
            found.push(violation(RULE, text));
        }
    }
    found
}

/// Everything is what its clients were told, and nothing else is there.
#[must_use]
pub fn no_change_is_lost(ledger: &CallLedger, shown: &BTreeMap<String, Shown>) -> Vec<Violation> {
    const RULE: &str = "no acknowledged change is lost";
    let mut found = Vec::new();
    for (id, record) in ledger {
        for text in record.contradictions(shown.get(id)) {
            found.push(violation(RULE, format!("{} {id}: {text}", record.name)));
        }
    }
    for id in shown.keys().filter(|id| !ledger.contains_key(*id)) {
        found.push(violation(RULE, format!("{id} is there, and nobody asked for it")));
    }
    // Said apart, because it is what users notice first.
    for (id, record) in ledger.iter().filter(|(_, record)| record.existence() == Existence::MustNot) {
        if shown.get(id).is_some_and(|shown| shown.deleting) {
            found.push(violation(RULE, format!("{} {id} is still being deleted", record.name)));
        }
    }
    found
}

/// Every instance that runs is one the API shows, once, and the other way round.
#[must_use]
pub fn ends_where_the_api_says(resting: &BTreeMap<String, Resting>, running: &[RunningInstance]) -> Vec<Violation> {
    const RULE: &str = "everything ends where the API says";
    let mut found = Vec::new();
    let mut by_appliance: BTreeMap<&str, Vec<&RunningInstance>> = BTreeMap::new();
    for one in running {
        by_appliance.entry(&one.appliance).or_default().push(one);
        if !resting.contains_key(&one.appliance) {
            found.push(violation(RULE, format!("{one:?} runs without an appliance")));
        }
    }
    for (id, resting) in resting {
        let instances = by_appliance.get(id.as_str()).map(Vec::as_slice).unwrap_or_default();
        let ordinals: BTreeSet<u64> = instances.iter().map(|one| one.ordinal).collect();
        if ordinals.len() != instances.len() {
            found.push(violation(RULE, format!("{id} runs twice: {instances:?}")));
        }
        if instances.len() != resting.replicas as usize {
            let text = format!("{id} has {} instances of {}: {instances:?}", instances.len(), resting.replicas);
            found.push(violation(RULE, text));
        }
        let pids: BTreeSet<u32> = instances.iter().filter_map(|one| one.pid).collect();
        if pids != resting.pids {
            found.push(violation(RULE, format!("{id} runs as {pids:?}, and the API shows {:?}", resting.pids)));
        }
    }
    found
}

/// What is stored is what the API shows.
#[must_use]
pub fn store_agrees(resting: &BTreeMap<String, Resting>, stored: &BTreeMap<String, Stored>) -> Vec<Violation> {
    const RULE: &str = "the store agrees";
    let mut found = Vec::new();
    for (id, resting) in resting {
        let expected =
            Stored { generation: resting.generation, granted: Some((resting.worker.clone(), resting.token.clone())) };
        let is = stored.get(id);
        if is != Some(&expected) {
            found.push(violation(RULE, format!("{id} is stored as {is:?}, and the API shows {expected:?}")));
        }
    }
    for id in stored.keys().filter(|id| !resting.contains_key(*id)) {
        found.push(violation(RULE, format!("{id} is stored, and the API does not show it")));
    }
    found
}

/// A time in which nobody could act on an appliance that somebody had acted on before and did again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The appliance.
    pub appliance: String,
    /// When it began.
    pub since_ns: u64,
    /// How long, in nanoseconds.
    pub ns: u64,
}

/// Every such time. It begins when the owner let go, when its lease ran out, or when its process was killed, whichever was
/// first, and ends when the next one takes the appliance, or when the lease stands again. For a process that was paused it
/// begins with the end of its lease.
#[must_use]
pub fn unowned(evidence: &Evidence) -> Vec<Gap> {
    let mut found = Vec::new();
    for (appliance, tenures) in &evidence.tenures {
        let mut gap = |since_ns: u64, to: u64| {
            found.push(Gap { appliance: appliance.clone(), since_ns, ns: to.saturating_sub(since_ns) });
        };
        for (i, tenure) in tenures.iter().enumerate() {
            let life = evidence.lives.get(&(tenure.worker.clone(), tenure.incarnation.clone()));
            let next = tenures.get(i + 1).map(|next| next.taken_ns);
            let end = ended(tenure, life, next, &evidence.exits);
            for (since, until) in life.iter().flat_map(|life| &life.fenced) {
                if let Some(until) = until
                    && *since >= tenure.taken_ns
                    && end.is_none_or(|end| *until <= end)
                {
                    gap(*since, *until);
                }
            }
            if let (Some(end), Some(next)) = (end, next) {
                gap(end, next);
            }
        }
    }
    found
}

fn ended(tenure: &Tenure, life: Option<&LoggedLife>, next: Option<u64>, exits: &[ProcessExit]) -> Option<u64> {
    let over = life.filter(|life| life.over || life.gone.is_some()).and_then(|life| life.until);
    let killed = exits.iter().filter(|exit| exit.name == tenure.worker && exit.at_ns > tenure.taken_ns);
    let killed = killed.map(|exit| exit.at_ns).min().filter(|at| next.is_none_or(|next| *at <= next));
    tenure.released_ns.into_iter().chain(over.filter(|over| *over >= tenure.taken_ns)).chain(killed).min()
}

fn brief(entry: &JournalLine) -> String {
    let JournalLine { appliance, at_ns, worker, pid, token: (term, sequence), action, outcome, .. } = entry;
    format!("{worker} ({pid}) with t{term}/{sequence} on {appliance} ({action}, {outcome}) at {at_ns}")
}

#[cfg(test)]
mod tests;
