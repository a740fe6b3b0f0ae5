//! The judgement: from what was seen to one line for each thing that matters. Pure, so that every sentence can be tested.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::admin::v1;

use super::{CoordinatorReply, Finding, Inspection, LeadAndStatus, Severity};
use crate::commands::placement::{why_frozen, why_paused};
use crate::commands::worker::phases;
use crate::document::view;
use crate::output::{age, count, one_line, short};

/// Until when appliances without an owner are on their way to one: a hand-off takes milliseconds.
const ON_THEIR_WAY: Duration = Duration::from_secs(5);

/// From when somebody has to look after them: whoever dies is followed by another within some seconds.
const ABANDONED: Duration = Duration::from_secs(60);

/// For how long a violation is a problem, and not only worth knowing.
const RECENT: Duration = Duration::from_secs(600);

/// How far clocks may be apart before ages and expiries are hard to read.
const SKEW: Duration = Duration::from_secs(5);

/// Most things of a kind that are named.
const SHOWN: usize = 10;

/// Everything that is judged, in the order of what depends on what.
pub(super) fn judge(seen: &Inspection) -> Vec<Finding> {
    let mut checks = vec![coordinators(seen)];
    let answers = || seen.servers.iter().filter_map(|server| server.answer.as_ref().ok());
    // The leader's own words before those another passed on.
    let status = answers().filter(|a| a.leads).chain(answers()).find_map(|answer| answer.status.as_ref().ok());
    let Some(status) = status else { return checks };
    checks.push(coordination(status));
    checks.push(store(status));
    checks.push(clocks(seen, status));
    checks.push(versions(seen));
    checks.push(placement(seen, status));
    checks.push(workers(seen, status));
    checks.push(unowned(seen, status));
    checks.push(quarantine(status));
    checks.push(ownership(seen, status));
    checks.push(moves(status));
    checks.push(appliances(status));
    checks.extend(notes(status));
    checks
}

fn check(check: &'static str, state: Severity, summary: impl Into<String>) -> Finding {
    Finding { check, state, summary: summary.into(), details: Vec::new(), advice: Vec::new() }
}

impl Finding {
    fn detail(mut self, details: impl IntoIterator<Item = String>) -> Self {
        let all: Vec<_> = details.into_iter().collect();
        let more = all.len().saturating_sub(SHOWN);
        self.details.extend(all.into_iter().take(SHOWN));
        if more > 0 {
            self.details.push(format!("and {more} more"));
        }
        self
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }
}

fn coordinators(seen: &Inspection) -> Finding {
    let name = "coordinators";
    let answers: Vec<(&CoordinatorReply, &LeadAndStatus)> =
        seen.servers.iter().filter_map(|server| Some((server, server.answer.as_ref().ok()?))).collect();
    let silent: Vec<String> = seen
        .servers
        .iter()
        .filter_map(|server| server.answer.as_ref().err().map(|why| format!("{}: {why}", server.address)))
        .collect();
    if answers.is_empty() {
        return check(name, Severity::Problem, "none answers: nothing can be said of the cluster")
            .detail(silent)
            .advise("look whether rug-coordinator runs, and what it says when it ends")
            .advise("name its address with --server, or start a cluster on this machine: rugctl up");
    }
    let leaders: Vec<&str> = answers.iter().filter(|(_, a)| a.leads).map(|(s, _)| s.address.as_str()).collect();
    let statuses: Vec<&v1::ClusterStatus> = answers.iter().filter_map(|(_, a)| a.status.as_ref().ok()).collect();
    let named: BTreeSet<(u64, &str)> = statuses.iter().map(|s| (s.term, s.coordinator.as_str())).collect();
    let Some(&(term, leader)) = named.last() else {
        let why = answers.iter().filter_map(|(s, a)| Some(format!("{}: {}", s.address, a.status.as_ref().err()?)));
        return check(name, Severity::Problem, "nobody leads: nothing is placed, and no change is taken")
            .detail(why.chain(silent))
            .advise(
                "ask again in a few seconds; then look into the coordinators' logs, and at ZooKeeper and the database",
            )
            .advise("workers go on with what they hold for as long as their leases stand");
    };
    if leaders.len() > 1 {
        let says = leaders.iter().map(|address| format!("{address} says that it leads"));
        return check(name, Severity::Problem, format!("{} say that they lead", leaders.len()))
            .detail(says.chain(silent))
            .advise("ask again: one that was just followed may not have noticed yet; whatever it writes is refused")
            .advise("if it stays so, stop the one with the lower term");
    }
    if named.len() > 1 {
        let says = named.iter().map(|(term, leader)| format!("{leader} in term {term}"));
        return check(name, Severity::Warning, "they do not name the same leader")
            .detail(says.chain(silent))
            .advise("the leader is changing: ask again in a few seconds");
    }
    let known = statuses.iter().map(|s| s.coordinators.len()).max().unwrap_or_default();
    let leads = format!("{} leads in term {term}", one_line(leader));
    let embedded = statuses.iter().any(|s| s.coordination.starts_with("embedded"));
    if !silent.is_empty() {
        let (n, all) = (silent.len(), seen.servers.len());
        let verb = if n == 1 { "does" } else { "do" };
        return check(name, Severity::Warning, format!("{leads}; {n} of {all} {verb} not answer"))
            .detail(silent)
            .advise("one that is away cannot take over when the leader ends: look whether it runs and can be reached");
    }
    if known < 2 && !embedded {
        return check(name, Severity::Warning, format!("{leads}, and there is no other one"))
            .advise("start a second coordinator, so that another one can take over");
    }
    let others = known.saturating_sub(1) as u64;
    let stand = if others == 1 { "1 other stands by" } else { &format!("{others} others stand by") };
    let more = if others == 0 { String::new() } else { format!("; {stand}") };
    check(name, Severity::Ok, leads + &more)
}

fn coordination(status: &v1::ClusterStatus) -> Finding {
    let name = "coordination";
    let service = one_line(&status.coordination);
    match status.coordination_state() {
        v1::CoordinationState::InDoubt => check(
            name,
            Severity::Problem,
            format!("no word from {service} for a while: the leader is about to step down"),
        )
        .advise("look whether the ZooKeeper servers run, have a majority, and can be reached from the coordinators"),
        v1::CoordinationState::Connected | v1::CoordinationState::Unspecified => check(name, Severity::Ok, service),
    }
}

fn store(status: &v1::ClusterStatus) -> Finding {
    let name = "store";
    if status.store_problem.is_empty() {
        return check(name, Severity::Ok, one_line(&status.store));
    }
    check(name, Severity::Problem, format!("takes no changes: {}", one_line(&status.store_problem)))
        .detail([one_line(&status.store)])
        .advise("look after the database; until it is back nothing is placed or changed, and reads go on from memory")
}

fn clocks(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "clocks";
    let Some(theirs) = status.time.and_then(|time| std::time::SystemTime::try_from(time).ok()) else {
        return check(name, Severity::Ok, "not told by this version of the coordinator");
    };
    let apart = seen.now.duration_since(theirs).unwrap_or_else(|e| e.duration());
    if apart <= SKEW {
        return check(name, Severity::Ok, "this machine's and the coordinator's agree");
    }
    check(name, Severity::Warning, format!("this machine's and the coordinator's are {} apart", short(apart)))
        .advise("no promise rests on it, but ages shown here are off by as much: look at the time service of both")
}

fn versions(seen: &Inspection) -> Finding {
    let name = "versions";
    let client = env!("CARGO_PKG_VERSION");
    let mut each: BTreeSet<String> = BTreeSet::from([client.to_owned()]);
    let answers = seen.servers.iter().filter_map(|server| server.answer.as_ref().ok());
    each.extend(answers.filter_map(|a| a.status.as_ref().ok()).map(|s| one_line(&s.version)).filter(|v| !v.is_empty()));
    let workers = seen.workers.iter().flatten().filter(|w| w.health() != v1::Health::Dead);
    each.extend(workers.map(|w| one_line(&w.version)).filter(|v| !v.is_empty()));
    if each.len() == 1 {
        return check(name, Severity::Ok, client);
    }
    let all = each.into_iter().collect::<Vec<_>>().join(", ");
    check(name, Severity::Warning, format!("several are in use: {all}"))
        .advise("fine while an upgrade is under way; finish it with: rugctl worker list -o wide")
}

fn placement(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "placement";
    if let Some(frozen) = &status.frozen {
        return check(name, Severity::Problem, format!("frozen: {}", why_frozen(frozen, seen.now)))
            .advise("bring the missing workers back, or look why the leader lost sight of them")
            .advise("if they will not come back: rugctl placement resume");
    }
    if let Some(paused) = &status.paused {
        return check(name, Severity::Warning, format!("paused: {}", why_paused(paused, seen.now)))
            .advise("when that is over: rugctl placement resume");
    }
    if !status.waiting.is_empty() {
        return check(name, Severity::Warning, one_line(&status.waiting)).advise("ask again in a few seconds");
    }
    check(name, Severity::Ok, "goes on")
}

fn workers(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "workers";
    let all = match &seen.workers {
        Ok(all) => all,
        Err(why) => return check(name, Severity::Problem, format!("could not be listed: {why}")),
    };
    let of = |health: v1::Health| all.iter().filter(move |w| w.health() == health);
    let healthy = of(v1::Health::Healthy).count();
    if healthy == 0 {
        let state = if status.appliances > 0 { Severity::Problem } else { Severity::Warning };
        return check(name, state, format!("none is healthy, for {}", count(status.appliances, "appliance")))
            .detail(all.iter().map(|w| told(w, seen)))
            .advise("start workers, or look why those that run do not reach a coordinator");
    }
    let ill: Vec<&v1::Worker> = all.iter().filter(|w| w.health() != v1::Health::Healthy).collect();
    let outside: Vec<&v1::Worker> = of(v1::Health::Healthy).filter(|w| !w.member && !w.draining).collect();
    let draining = of(v1::Health::Healthy).filter(|w| w.draining).count();
    let mut summary = format!("{healthy} healthy");
    if draining > 0 {
        summary += &format!(", {draining} of them draining");
    }
    if ill.is_empty() && outside.is_empty() {
        return check(name, Severity::Ok, summary);
    }
    for (health, word) in [(v1::Health::Suspect, "suspect"), (v1::Health::Dead, "dead")] {
        let n = of(health).count();
        if n > 0 {
            summary += &format!(", {n} {word}");
        }
    }
    let first = ill.first().or(outside.first()).map(|w| one_line(&w.id)).unwrap_or_default();
    let mut found = check(name, Severity::Warning, summary).detail(ill.iter().chain(&outside).map(|w| told(w, seen)));
    if of(v1::Health::Dead).next().is_some() {
        found = found
            .advise("what the dead held went to others; a dead one is shown for an hour, or until its name is back");
    }
    found.advise(format!("rugctl worker get {first}"))
}

fn told(worker: &v1::Worker, seen: &Inspection) -> String {
    let seen_ago = age(worker.last_seen.as_ref(), seen.now);
    let mut parts = vec![format!("{} is {}", one_line(&worker.id), view::health(worker.health()))];
    if !seen_ago.is_empty() {
        parts.push(format!("last seen {seen_ago} ago"));
    }
    if !worker.host.is_empty() {
        parts.push(format!("on {}", one_line(&worker.host)));
    }
    if worker.health() == v1::Health::Healthy && !worker.member {
        parts.push("in no ring, so that it is given nothing".to_owned());
    }
    if !worker.reason.is_empty() {
        parts.push(one_line(&worker.reason));
    }
    parts.join(", ")
}

fn unowned(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "unowned";
    let Some(unowned) = status.unowned.as_ref() else {
        return check(name, Severity::Ok, "not told by this version of the coordinator");
    };
    let Some(first) = unowned.oldest.first() else {
        return check(name, Severity::Ok, "every appliance has an owner");
    };
    let since = first.since.and_then(|time| std::time::SystemTime::try_from(time).ok());
    let lasts = since.and_then(|since| seen.now.duration_since(since).ok()).unwrap_or_default();
    let verb = if unowned.appliances == 1 { "has" } else { "have" };
    let summary = format!("{} {verb} no owner", count(unowned.appliances, "appliance"));
    let state = match lasts {
        lasts if lasts < ON_THEIR_WAY => return check(name, Severity::Ok, summary + " right now: on the way to one"),
        lasts if lasts < ABANDONED => Severity::Warning,
        _ => Severity::Problem,
    };
    let line = |a: &v1::UnownedAppliance| {
        let age = age(a.since.as_ref(), seen.now);
        format!("{}/{} for {age}: {}", one_line(&a.tenant), one_line(&a.name), one_line(&a.reason))
    };
    let rest = unowned.appliances.saturating_sub(unowned.oldest.len() as u64);
    let rest = (rest > 0).then(|| format!("and {rest} more, for less long"));
    check(name, state, format!("{summary}, the oldest for {}", short(lasts)))
        .detail(unowned.oldest.iter().take(SHOWN).map(line))
        .and(rest)
        .advise(format!("rugctl explain --tenant {} {}", one_line(&first.tenant), one_line(&first.name)))
}

impl Finding {
    fn and(mut self, detail: Option<String>) -> Self {
        self.details.extend(detail);
        self
    }
}

fn quarantine(status: &v1::ClusterStatus) -> Finding {
    let name = "quarantine";
    let suspects = status.suspects.saturating_sub(status.quarantined);
    if status.quarantined > 0 {
        let many = count(status.quarantined, "appliance");
        return check(
            name,
            Severity::Problem,
            format!("{many} granted to nobody, because workers died during steps of them"),
        )
        .advise("find them by their reason: rugctl list -o wide")
        .advise("once the cause is mended, let them be tried again: rugctl rebuild NAME, or a changed specification");
    }
    match suspects {
        0 => check(name, Severity::Ok, "nothing is suspected of ending workers"),
        _ => check(
            name,
            Severity::Ok,
            format!("{} suspect, because a worker died; each is watched", count(suspects, "appliance")),
        ),
    }
}

fn ownership(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "ownership";
    if status.violations == 0 {
        return check(name, Severity::Ok, "what workers hold agrees with the table");
    }
    let last = status.last_violation_time.as_ref();
    let since = last.and_then(|time| std::time::SystemTime::try_from(*time).ok());
    let recent = since.is_none_or(|at| seen.now.duration_since(at).unwrap_or_default() < RECENT);
    let mut kinds: Vec<_> = status.violation_kinds.iter().filter(|(_, n)| **n > 0).collect();
    kinds.sort();
    let ago = last.map(|at| format!(", the last {} ago", age(Some(at), seen.now))).unwrap_or_default();
    let summary = format!("{} in this term{ago}", count(status.violations, "violation"));
    check(name, if recent { Severity::Problem } else { Severity::Warning }, summary)
        .detail(kinds.into_iter().map(|(kind, n)| format!("{n} {}", one_line(kind))))
        .advise("what was refused, in words: rugctl cluster status; all of it: the leader's log, lines with `refused`")
        .advise("expected after a store or ZooKeeper was restored from a copy; otherwise report it")
}

fn moves(status: &v1::ClusterStatus) -> Finding {
    let name = "moves";
    if status.stalled_moves == 0 {
        return check(name, Severity::Ok, format!("{} under way", status.moves_in_flight));
    }
    let stalled = count(status.stalled_moves, "move");
    check(name, Severity::Warning, format!("{stalled} past the deadline; they go on, and count against no limit"))
        .advise("see which, and from whom: rugctl rebalance list")
        .advise("a worker that does not give up what it should, and will not: rugctl worker evict NAME")
}

fn appliances(status: &v1::ClusterStatus) -> Finding {
    let name = "appliances";
    let all = phases(&status.phases);
    let failed = status.phases.get("Error").copied().unwrap_or_default();
    let shown = if all.is_empty() { "none".to_owned() } else { all };
    if failed == 0 {
        return check(name, Severity::Ok, shown);
    }
    check(name, Severity::Warning, format!("{} in phase error: {shown}", count(failed, "appliance")))
        .advise("rugctl list --phase error")
}

fn notes(status: &v1::ClusterStatus) -> Option<Finding> {
    // Told by its own check.
    let notes: Vec<_> =
        status.notes.iter().map(|n| one_line(n)).filter(|n| !n.starts_with("the database does not answer")).collect();
    (!notes.is_empty()).then(|| {
        let verb = if notes.len() == 1 { "needs" } else { "need" };
        let summary = format!("{} {verb} a look", count(notes.len() as u64, "thing"));
        check("notes", Severity::Warning, summary).detail(notes)
    })
}
