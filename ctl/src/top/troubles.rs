//! What is wrong, as rows: from the state of the cluster, its workers, and what their appliances run into.

use std::time::{Duration, SystemTime};

use proto::admin::v1;

use super::input::Subject;
use crate::document::view;
use crate::output::{Tone, age, count};
use crate::text::one_line;

/// For how long an appliance has had no owner when that counts as a trouble.
const UNOWNED: Duration = Duration::from_secs(5);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) tone: Tone,
    /// The sort of trouble.
    pub(crate) what: &'static str,
    /// What it is about; empty for the cluster.
    pub(crate) whom: String,
    pub(crate) detail: String,
    pub(crate) subject: Option<Subject>,
}

impl Trouble {
    /// Stays the same while the detail changes.
    pub(crate) fn key(&self) -> String {
        format!("{} {}", self.what, self.whom)
    }
}

/// Whether appliances may be in a trouble that the state of the cluster does not name.
pub(crate) fn may_be(status: &v1::ClusterStatus) -> bool {
    let calm = |phase: &str| matches!(phase, "Configured" | "Gone");
    status.phases.iter().any(|(phase, n)| *n > 0 && !calm(phase))
}

/// Everything that is wrong, the worst first.
pub(crate) fn list<'a>(
    cluster: Option<&v1::ClusterStatus>,
    appliances: Option<&v1::Troubles>,
    workers: impl Iterator<Item = &'a v1::Worker>,
    now: SystemTime,
) -> Vec<Trouble> {
    let mut found = Vec::new();
    let mut add = |tone, what, whom: String, detail: String, subject| {
        found.push(Trouble { tone, what, whom, detail: one_line(&detail), subject });
    };
    let appliance = |tenant: &str, name: &str, id: &str| Subject::Appliance {
        id: id.to_owned(),
        label: format!("{tenant}/{name}"),
    };
    if let Some(status) = cluster {
        if !status.store_problem.is_empty() {
            add(Tone::Bad, "store", String::new(), status.store_problem.clone(), None);
        }
        if status.coordination_state() == v1::CoordinationState::InDoubt {
            let detail = "the coordination service has not answered for a while".to_owned();
            add(Tone::Bad, "coordination", String::new(), detail, None);
        }
        if status.violations > 0 {
            let last = status.last_violation_time.as_ref().map(|at| format!(", the last {} ago", age(Some(at), now)));
            let detail = format!("{}{}", status.violations, last.unwrap_or_default());
            add(Tone::Bad, "violations", String::new(), detail, None);
        }
        if status.quarantined > 0 {
            let detail = format!("{}, granted to no worker", count(status.quarantined, "appliance"));
            add(Tone::Bad, "quarantine", String::new(), detail, None);
        }
        if status.stalled_moves > 0 {
            add(Tone::Busy, "stalled", String::new(), count(status.stalled_moves, "move"), None);
        }
        for note in &status.notes {
            add(Tone::Busy, "note", String::new(), note.clone(), None);
        }
    }
    let mut sick: Vec<_> = workers.filter(|w| !matches!(w.health(), v1::Health::Healthy | v1::Health::Left)).collect();
    sick.sort_by_key(|worker| (worker.health() != v1::Health::Dead, worker.id.clone()));
    for worker in sick {
        let health = view::health(worker.health());
        let detail = format!("{}: {}", count(worker.appliances, "appliance"), worker.reason);
        add(Tone::of(health), health, worker.id.clone(), detail, Some(Subject::Worker(worker.id.clone())));
    }
    if let Some(troubles) = appliances {
        for it in &troubles.worst {
            let detail = format!("{} boots failed: {}", it.failed_boots, it.last_error);
            let whom = format!("{}/{}", it.tenant, it.name);
            add(Tone::Bad, "crash loop", whom, detail, Some(appliance(&it.tenant, &it.name, &it.id)));
        }
        for it in &troubles.oldest {
            let detail = format!("for {}: {}", age(it.start_time.as_ref(), now), it.last_error);
            add(Tone::Busy, "hanging boot", it.instance.clone(), detail, Some(appliance(&it.tenant, &it.name, &it.id)));
        }
        let named = (troubles.worst.len() as u64, troubles.oldest.len() as u64);
        for (what, all, shown) in
            [("crash loop", troubles.crash_loops, named.0), ("hanging boot", troubles.hanging, named.1)]
        {
            if all > shown {
                add(Tone::Busy, what, "more".to_owned(), format!("{} more", all - shown), None);
            }
        }
    }
    if let Some(unowned) = cluster.and_then(|status| status.unowned.as_ref()) {
        // Those before are on their way to their first worker, or to the next one.
        let is_long = |it: &&v1::UnownedAppliance| {
            let since = it.since.and_then(|since| SystemTime::try_from(since).ok());
            since.is_some_and(|since| now.duration_since(since).is_ok_and(|age| age >= UNOWNED))
        };
        let mut listed = 0;
        for it in unowned.oldest.iter().filter(is_long) {
            listed += 1;
            let detail = format!("for {}: {} ({})", age(it.since.as_ref(), now), it.state, it.reason);
            let whom = format!("{}/{}", it.tenant, it.name);
            add(Tone::Busy, "unowned", whom, detail, Some(appliance(&it.tenant, &it.name, &it.id)));
        }
        // Of the others it is not known for how long, where all that are named have been for long.
        let more = unowned.appliances.saturating_sub(listed);
        if more > 0 && listed == unowned.oldest.len() as u64 {
            add(Tone::Busy, "unowned", "more".to_owned(), format!("{more} more"), None);
        }
    }
    found
}
