//! Evaluates the responses: one line for each check. Pure, so that every sentence can be tested.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::admin::v1;

use super::{CoordinatorReply, Finding, Inspection, LeadAndStatus, Severity};
use crate::commands::placement::{why_frozen, why_paused};
use crate::commands::worker::phases;
use crate::document::view;
use crate::output::{age, count, short};
use crate::text::one_line;

/// Appliances without an owner for less than this are being handed off, which takes milliseconds.
const ON_THEIR_WAY: Duration = Duration::from_secs(5);

/// Appliances without an owner for this long need an operator: after the loss of a worker, another takes over within
/// seconds.
const ABANDONED: Duration = Duration::from_secs(60);

/// A violation younger than this is a problem, an older one a warning.
const RECENT: Duration = Duration::from_secs(600);

/// Clock difference above which ages and expiry times are misleading.
const SKEW: Duration = Duration::from_secs(5);

/// Largest number of affected objects that are listed.
const SHOWN: usize = 10;

/// All checks, prerequisites first.
pub(super) fn judge(seen: &Inspection) -> Vec<Finding> {
    let mut checks = vec![coordinators(seen)];
    let answers = || seen.servers.iter().filter_map(|server| server.answer.as_ref().ok());
    // Prefer the leader's own response over a forwarded one.
    let status = answers().filter(|a| a.leads).chain(answers()).find_map(|answer| answer.status.as_ref().ok());
    let Some(status) = status else { return checks };
    checks.push(identity(seen));
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
    checks.push(instances(seen, status));
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
        return check(name, Severity::Problem, "no coordinator answers: the state of the cluster is unknown")
            .detail(silent)
            .advise("check that rug-coordinator runs, and its log if it exited")
            .advise("pass its address with --server, or start a cluster on this machine: rugctl up");
    }
    let leaders: Vec<&str> = answers.iter().filter(|(_, a)| a.leads).map(|(s, _)| s.address.as_str()).collect();
    let statuses: Vec<&v1::ClusterStatus> = answers.iter().filter_map(|(_, a)| a.status.as_ref().ok()).collect();
    let named: BTreeSet<(u64, &str)> = statuses.iter().map(|s| (s.term, s.coordinator.as_str())).collect();
    let Some(&(term, leader)) = named.last() else {
        let why = answers.iter().filter_map(|(s, a)| Some(format!("{}: {}", s.address, a.status.as_ref().err()?)));
        return check(name, Severity::Problem, "there is no leader: nothing is placed and no change is accepted")
            .detail(why.chain(silent))
            .advise("retry in a few seconds; then check the coordinators' logs, ZooKeeper and the database")
            .advise("workers continue with the appliances they own while their leases last");
    };
    if leaders.len() > 1 {
        let says = leaders.iter().map(|address| format!("{address} reports that it leads"));
        return check(name, Severity::Problem, format!("{} report that they lead", leaders.len()))
            .detail(says.chain(silent))
            .advise("retry: a former leader may not have noticed yet that it was replaced; its writes are refused")
            .advise("if this persists, stop the one with the lower term");
    }
    if named.len() > 1 {
        let says = named.iter().map(|(term, leader)| format!("{leader} in term {term}"));
        return check(name, Severity::Warning, "they report different leaders")
            .detail(says.chain(silent))
            .advise("the leader is changing: retry in a few seconds");
    }
    let known = statuses.iter().map(|s| s.coordinators.len()).max().unwrap_or_default();
    let leads = format!("{} leads in term {term}", one_line(leader));
    let embedded = statuses.iter().any(|s| s.coordination.starts_with("embedded"));
    if !silent.is_empty() {
        let (n, all) = (silent.len(), seen.servers.len());
        let verb = if n == 1 { "does" } else { "do" };
        return check(name, Severity::Warning, format!("{leads}; {n} of {all} {verb} not answer"))
            .detail(silent)
            .advise("a coordinator that is down cannot take over: check that it runs and can be reached");
    }
    if known < 2 && !embedded {
        return check(name, Severity::Warning, format!("{leads}, without a standby"))
            .advise("start a second coordinator that can take over");
    }
    let others = known.saturating_sub(1) as u64;
    let stand = if others == 1 { "1 standby" } else { &format!("{others} standbys") };
    let more = if others == 0 { String::new() } else { format!("; {stand}") };
    check(name, Severity::Ok, leads + &more)
}

/// All servers that were named are to be of one cluster.
fn identity(seen: &Inspection) -> Finding {
    let name = "cluster";
    let answers = seen.servers.iter().filter_map(|s| Some((&s.address, s.answer.as_ref().ok()?.status.as_ref().ok()?)));
    let named = answers.filter_map(|(address, status)| Some((address, status.identity.as_ref()?)));
    let shown = |identity: &v1::ClusterIdentity| match identity.name.as_str() {
        "" => one_line(&identity.id),
        name => format!("{} ({})", one_line(name), one_line(&identity.id)),
    };
    let all: Vec<_> = named.map(|(address, identity)| (address, &identity.id, shown(identity))).collect();
    let ids: BTreeSet<_> = all.iter().map(|(_, id, _)| *id).collect();
    match (all.first(), ids.len()) {
        (None, _) => check(name, Severity::Ok, "not reported by this version of the coordinator"),
        (Some((.., shown)), 1) => check(name, Severity::Ok, shown.clone()),
        (_, several) => check(name, Severity::Problem, format!("the servers are of {several} clusters"))
            .detail(all.iter().map(|(address, _, shown)| format!("{address}: {shown}")))
            .advise("name servers of one cluster with --server or RUG_SERVER"),
    }
}

fn coordination(status: &v1::ClusterStatus) -> Finding {
    let name = "coordination";
    let service = one_line(&status.coordination);
    match status.coordination_state() {
        v1::CoordinationState::InDoubt => check(
            name,
            Severity::Problem,
            format!("no answer from {service} for a while: the leader is about to step down"),
        )
        .advise("check that the ZooKeeper servers run, have a majority, and can be reached from the coordinators"),
        v1::CoordinationState::Connected | v1::CoordinationState::Unspecified => check(name, Severity::Ok, service),
    }
}

fn store(status: &v1::ClusterStatus) -> Finding {
    let name = "store";
    if status.store_problem.is_empty() {
        return check(name, Severity::Ok, one_line(&status.store));
    }
    let found = check(name, Severity::Problem, format!("accepts no writes: {}", one_line(&status.store_problem)))
        .detail([one_line(&status.store)]);
    if status.store_problem.contains("was deleted or replaced") {
        return found.advise("what was changed since its last backup is lost: rug-coordinator store backup makes one");
    }
    if status.store_problem.contains("no space is left") {
        return found
            .advise("free space on the disk of the database; until a write succeeds nothing is placed or changed");
    }
    found.advise("repair the database; until then nothing is placed or changed, and reads are served from memory")
}

fn clocks(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "clocks";
    let Some(theirs) = status.time.and_then(|time| std::time::SystemTime::try_from(time).ok()) else {
        return check(name, Severity::Ok, "not reported by this version of the coordinator");
    };
    let apart = seen.now.duration_since(theirs).unwrap_or_else(|e| e.duration());
    if apart <= SKEW {
        return check(name, Severity::Ok, "this machine's clock and the coordinator's agree");
    }
    check(name, Severity::Warning, format!("this machine's clock and the coordinator's differ by {}", short(apart)))
        .advise("safety does not depend on it, but ages shown here are wrong by as much: check time synchronisation on both")
}

fn versions(seen: &Inspection) -> Finding {
    let name = "versions";
    let client = env!("CARGO_PKG_VERSION");
    let mut each: BTreeSet<String> = BTreeSet::from([client.to_owned()]);
    let answers = seen.servers.iter().filter_map(|server| server.answer.as_ref().ok());
    each.extend(answers.filter_map(|a| a.status.as_ref().ok()).map(|s| one_line(&s.version)).filter(|v| !v.is_empty()));
    let gone = |w: &&v1::Worker| matches!(w.health(), v1::Health::Dead | v1::Health::Left);
    let workers = seen.workers.iter().flatten().filter(|w| !gone(w));
    each.extend(workers.map(|w| one_line(&w.version)).filter(|v| !v.is_empty()));
    if each.len() == 1 {
        return check(name, Severity::Ok, client);
    }
    let all = each.into_iter().collect::<Vec<_>>().join(", ");
    check(name, Severity::Warning, format!("several versions are in use: {all}"))
        .advise("expected during an upgrade; find the others with: rugctl worker list -o wide")
}

fn placement(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "placement";
    if let Some(frozen) = &status.frozen {
        return check(name, Severity::Problem, format!("frozen: {}", why_frozen(frozen, seen.now)))
            .advise("bring the missing workers back, or check why they lost their connection to the leader")
            .advise("if they will not come back: rugctl placement resume");
    }
    if let Some(paused) = &status.paused {
        return check(name, Severity::Warning, format!("paused: {}", why_paused(paused, seen.now)))
            .advise("when the reason no longer applies: rugctl placement resume");
    }
    if !status.waiting.is_empty() {
        return check(name, Severity::Warning, one_line(&status.waiting)).advise("retry in a few seconds");
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
            .advise("start workers, or check why those that run cannot reach a coordinator");
    }
    let calm = |w: &&v1::Worker| matches!(w.health(), v1::Health::Healthy | v1::Health::Left);
    let ill: Vec<&v1::Worker> = all.iter().filter(|w| !calm(w)).collect();
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
            .advise("appliances of dead workers are given to others; a dead worker is listed for an hour, until its name is back, or until: rugctl worker forget NAME");
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
        parts.push("not in the ring, so it is given no appliances".to_owned());
    }
    if !worker.reason.is_empty() {
        parts.push(one_line(&worker.reason));
    }
    parts.join(", ")
}

fn unowned(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "unowned";
    let Some(unowned) = status.unowned.as_ref() else {
        return check(name, Severity::Ok, "not reported by this version of the coordinator");
    };
    let Some(first) = unowned.oldest.first() else {
        return check(name, Severity::Ok, "every appliance has an owner");
    };
    let since = first.since.and_then(|time| std::time::SystemTime::try_from(time).ok());
    let lasts = since.and_then(|since| seen.now.duration_since(since).ok()).unwrap_or_default();
    let verb = if unowned.appliances == 1 { "has" } else { "have" };
    let summary = format!("{} {verb} no owner", count(unowned.appliances, "appliance"));
    let state = match lasts {
        lasts if lasts < ON_THEIR_WAY => return check(name, Severity::Ok, summary + " right now: being handed off"),
        lasts if lasts < ABANDONED => Severity::Warning,
        _ => Severity::Problem,
    };
    let line = |a: &v1::UnownedAppliance| {
        let age = age(a.since.as_ref(), seen.now);
        format!("{}/{} for {age}: {}", one_line(&a.tenant), one_line(&a.name), one_line(&a.reason))
    };
    let rest = unowned.appliances.saturating_sub(unowned.oldest.len() as u64);
    let rest = (rest > 0).then(|| format!("and {rest} more, for a shorter time"));
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
            format!("{many} granted to no worker, because workers died during their steps"),
        )
        .advise("list them with their reason: rugctl list -o wide")
        .advise("after fixing the cause, release them: rugctl rebuild NAME, or a changed specification");
    }
    match suspects {
        0 => check(name, Severity::Ok, "no appliance is suspected of crashing workers"),
        _ => check(
            name,
            Severity::Ok,
            format!(
                "{} suspect, because a worker died; their steps are announced to the leader",
                count(suspects, "appliance")
            ),
        ),
    }
}

fn ownership(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "ownership";
    if status.violations == 0 {
        return check(name, Severity::Ok, "what workers report agrees with the assignment table");
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
        .advise(
            "the last violation in words: rugctl cluster status; all of them: the leader's log, lines with `refused`",
        )
        .advise("expected after a store or ZooKeeper was restored from a copy; otherwise report it")
}

fn moves(status: &v1::ClusterStatus) -> Finding {
    let name = "moves";
    if status.stalled_moves == 0 {
        return check(name, Severity::Ok, format!("{} under way", status.moves_in_flight));
    }
    let stalled = count(status.stalled_moves, "move");
    check(
        name,
        Severity::Warning,
        format!("{stalled} past the deadline; they continue and no longer count against the limits"),
    )
    .advise("list them: rugctl rebalance list")
    .advise("if a worker does not release its appliances: rugctl worker evict NAME")
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

/// What crashes in a loop, and what hangs while it starts.
fn instances(seen: &Inspection, status: &v1::ClusterStatus) -> Finding {
    let name = "instances";
    let Some(found) = &status.troubles else {
        return check(name, Severity::Ok, "not reported by this version of the coordinator");
    };
    let appliance = |tenant: &str, name: &str| format!("{}/{}", one_line(tenant), one_line(name));
    let looping = |a: &v1::CrashLoop| {
        let end = a.last_end.as_ref().map(|end| {
            let ago = age(end.time.as_ref(), seen.now);
            let output = end.last_lines.last().map(|line| format!(": {}", one_line(line))).unwrap_or_default();
            format!("; the last one ended {ago} ago with {}{output}", view::end_cause(end))
        });
        let why = end.unwrap_or_else(|| format!(": {}", one_line(&a.last_error)));
        format!("{}: {} in a row failed{why}", appliance(&a.tenant, &a.name), count(a.failed_boots.into(), "start"))
    };
    let hanging = |a: &v1::HangingBoot| {
        let since = age(a.start_time.as_ref(), seen.now);
        format!(
            "{}: {} was started {since} ago: {}",
            appliance(&a.tenant, &a.name),
            one_line(&a.instance),
            one_line(&a.last_error)
        )
    };
    let verb = |n: u64, one: &str, more: &str| if n == 1 { one.to_owned() } else { more.to_owned() };
    let mut parts = Vec::new();
    if found.crash_loops > 0 {
        let what = verb(found.crash_loops, "crashes", "crash");
        parts.push(format!("{} {what} in a loop", count(found.crash_loops, "appliance")));
    }
    if found.hanging > 0 {
        let what = verb(found.hanging, "hangs while it starts", "hang while they start");
        parts.push(format!("{} {what}", count(found.hanging, "instance")));
    }
    let first = found.worst.first().map(|a| (&a.tenant, &a.name));
    let Some((tenant, named)) = first.or_else(|| found.oldest.first().map(|a| (&a.tenant, &a.name))) else {
        return check(name, Severity::Ok, "none crashes in a loop or hangs while it starts");
    };
    check(name, Severity::Warning, parts.join(", "))
        .detail(found.worst.iter().map(looping).chain(found.oldest.iter().map(hanging)))
        .advise(format!("rugctl describe --tenant {} {}", one_line(tenant), one_line(named)))
}

fn notes(status: &v1::ClusterStatus) -> Option<Finding> {
    // The store has a check of its own.
    let notes: Vec<_> = status
        .notes
        .iter()
        .map(|n| one_line(n))
        .filter(|n| !n.starts_with("the database does not answer") && !n.starts_with("the database takes no changes"))
        .collect();
    (!notes.is_empty()).then(|| {
        let verb = if notes.len() == 1 { "needs" } else { "need" };
        let summary = format!("{} {verb} attention", count(notes.len() as u64, "thing"));
        check("notes", Severity::Warning, summary).detail(notes)
    })
}
