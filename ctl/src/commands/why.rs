//! Why a worker, a rebalance or placement as a whole is as it is: `worker explain`, `rebalance explain`, `placement explain`.
//!
//! Everything is read from what any client can read, one sentence for each thing that holds something up, and what follows next.

use std::collections::BTreeMap;
use std::time::SystemTime;

use proto::admin::v1;
use serde::Serialize;

use crate::commands::orders::describe;
use crate::commands::placement::{why_frozen, why_paused};
use crate::commands::{CommandContext, budget};
use crate::error::Failure;
use crate::output::{age, count};
use crate::text::one_line;

/// Reasons of moves that are told.
const REASONS: usize = 5;

/// Sentences about a subject.
#[derive(Debug, Serialize)]
struct Account {
    subject: String,
    because: Vec<String>,
    next: Vec<String>,
}

impl Account {
    fn show(&self, context: &CommandContext) -> Result<(), Failure> {
        if context.ui.format.is_structured() {
            return context.ui.print_value(self);
        }
        let mut text = format!("{}\n", self.subject);
        self.because.iter().for_each(|line| text.push_str(&format!("  because  {line}\n")));
        self.next.iter().for_each(|line| text.push_str(&format!("  next     {line}\n")));
        context.ui.print(text.trim_end())
    }
}

/// What keeps the leader from moving anything, or something.
fn holds(status: &v1::ClusterStatus, budgets: &[v1::Budget], now: SystemTime) -> Vec<String> {
    let mut holds = Vec::new();
    holds.extend(status.paused.as_ref().map(|paused| format!("placement is paused: {}", why_paused(paused, now))));
    holds.extend(status.frozen.as_ref().map(|frozen| format!("placement is frozen: {}", why_frozen(frozen, now))));
    if holds.is_empty() && !status.waiting.is_empty() {
        holds.push(one_line(&status.waiting));
    }
    holds.extend(budgets.iter().filter(|budget| budget.held > 0).map(|budget| {
        let scope = budget::scope_text(budget);
        format!("budget {} ({scope}, {}) holds {}", budget.name, budget::limit(budget), count(budget.held, "move"))
    }));
    if status.moves_in_flight > 0 {
        let stalled = match status.stalled_moves {
            0 => String::new(),
            stalled => format!(", {stalled} of them for so long that others do not wait for them"),
        };
        holds.push(format!("{} under way{stalled}: others begin as these end", count(status.moves_in_flight, "move")));
    }
    holds
}

/// How many moves there are for each reason, the most frequent first.
fn by_reason<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    reasons.for_each(|reason| *counts.entry(reason).or_default() += 1);
    let mut sorted: Vec<_> = counts.into_iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let told: Vec<_> = sorted.iter().take(REASONS).map(|(reason, n)| format!("{n} {}", one_line(reason))).collect();
    told.join(", ")
}

/// Runs `placement explain`: what moves, or why nothing does.
pub(crate) async fn placement(context: &CommandContext) -> Result<(), Failure> {
    let status = context.client.status().await?;
    let budgets = context.client.budgets().await?;
    let plan = context.client.plan(v1::PlanRequest { page_size: 1_000, ..v1::PlanRequest::default() }).await?;
    explain_placement(&status, &budgets, &plan, SystemTime::now()).show(context)
}

fn explain_placement(
    status: &v1::ClusterStatus,
    budgets: &[v1::Budget],
    plan: &v1::PlacementPlan,
    now: SystemTime,
) -> Account {
    let held = holds(status, budgets, now);
    let subject = match (status.moves_in_flight, plan.moves) {
        (0, 0) => "nothing moves, and nothing has to".to_owned(),
        (0, 1) => "nothing moves, and 1 move is to be made".to_owned(),
        (0, planned) => format!("nothing moves, and {planned} moves are to be made"),
        (under_way, planned) => format!("{} under way, {planned} more to be made", count(under_way, "move")),
    };
    let mut because = held;
    if plan.moves == 0 {
        because.push("every appliance that can be placed is where policy, orders and pins want it".to_owned());
    }
    if plan.unplaced_count > 0 {
        let reasons = by_reason(plan.unplaced.iter().map(|unplaced| unplaced.reason.as_str()));
        because
            .push(format!("{} without a worker that can take it: {reasons}", count(plan.unplaced_count, "appliance")));
    }
    let mut next = Vec::new();
    if plan.moves > 0 {
        let reasons = by_reason(plan.r#move.iter().map(|planned| planned.reason.as_str()));
        next.push(format!("{}: {reasons}", count(plan.moves, "move")));
    }
    if status.paused.is_some() || status.frozen.is_some() {
        next.push("`rugctl placement resume` lets placement go on".to_owned());
    }
    Account { subject, because, next }
}

/// Runs `worker explain`.
pub(crate) async fn worker(context: &CommandContext, name: &str) -> Result<(), Failure> {
    let worker = context.worker(name).await?;
    let status = context.client.status().await?;
    let budgets = context.client.budgets().await?;
    let plan = context.client.plan(v1::PlanRequest { page_size: 1_000, ..v1::PlanRequest::default() }).await?;
    explain_worker(&worker, &status, &budgets, &plan, SystemTime::now()).show(context)
}

fn explain_worker(
    worker: &v1::Worker,
    status: &v1::ClusterStatus,
    budgets: &[v1::Budget],
    plan: &v1::PlacementPlan,
    now: SystemTime,
) -> Account {
    let health = worker.health().as_str_name().to_lowercase();
    let subject = format!("{} is {health} and owns {}", worker.id, count(worker.appliances, "appliance"));
    let mut because = Vec::new();
    if !worker.reason.is_empty() {
        because.push(one_line(&worker.reason));
    }
    if !worker.member {
        because.push("it is no member of the ring: it is given nothing".to_owned());
    }
    because.extend(worker.orders.iter().map(|order| describe(order, now)));
    if worker.draining && !worker.drained {
        because.push("it is about to stop, and gives up what it has".to_owned());
    }
    if worker.immovable > 0 {
        because.push(format!("{} of it no other worker can take", count(worker.immovable, "appliance")));
    }
    because.extend(worker.limited.iter().map(|limited| one_line(limited)));
    let mut next = Vec::new();
    let (gets, gives) = (
        plan.r#move.iter().filter(|planned| planned.to == worker.id),
        plan.r#move.iter().filter(|planned| planned.from == worker.id),
    );
    let (incoming, outgoing) = (gets.clone().count() as u64, gives.clone().count() as u64);
    if incoming > 0 {
        next.push(format!("it gets {incoming}: {}", by_reason(gets.map(|planned| planned.reason.as_str()))));
    }
    if outgoing > 0 {
        next.push(format!("it gives up {outgoing}: {}", by_reason(gives.map(|planned| planned.reason.as_str()))));
    }
    if incoming + outgoing > 0 {
        because.extend(holds(status, budgets, now));
    } else {
        next.push("nothing is to be moved to or from it".to_owned());
    }
    Account { subject, because, next }
}

/// Runs `rebalance explain`; the newest one where none is named.
pub(crate) async fn rebalance(context: &CommandContext, id: Option<&str>) -> Result<(), Failure> {
    let id = match id {
        Some(id) => id.to_owned(),
        None => match context.client.rebalances(1).await?.into_iter().next() {
            Some(newest) => newest.id,
            None => return context.ui.print("there are no rebalances"),
        },
    };
    let rebalance = context.client.whole_rebalance(&id).await?;
    let status = context.client.status().await?;
    let budgets = context.client.budgets().await?;
    explain_rebalance(&rebalance, &status, &budgets, SystemTime::now()).show(context)
}

fn explain_rebalance(
    rebalance: &v1::Rebalance,
    status: &v1::ClusterStatus,
    budgets: &[v1::Budget],
    now: SystemTime,
) -> Account {
    let started = age(rebalance.start_time.as_ref(), now);
    let subject = format!(
        "rebalance {} is {}: {} of {} made, begun {started} ago",
        rebalance.id,
        rebalance.outcome,
        rebalance.moves_done,
        count(rebalance.moves, "move")
    );
    let mut because = vec![one_line(&rebalance.cause)];
    if !rebalance.members.is_empty() {
        let takers = rebalance.members.iter().filter(|member| member.takes).count();
        because.push(format!(
            "{} then, {takers} of them could be given appliances",
            count(rebalance.members.len() as u64, "member")
        ));
    }
    let made = rebalance.r#move.iter().filter(|made| made.state == "done");
    let reasons = by_reason(made.map(|made| made.reason.as_str()));
    if !reasons.is_empty() {
        because.push(format!("made: {reasons}"));
    }
    let dropped = rebalance.r#move.iter().filter(|made| made.state == "dropped").count() as u64;
    if dropped > 0 {
        because.push(format!(
            "{} given up: the worker declined, was lost, or what moved went elsewhere",
            count(dropped, "move")
        ));
    }
    let mut next = Vec::new();
    if rebalance.outcome == "running" {
        because.extend(holds(status, budgets, now));
        let left = rebalance.moves.saturating_sub(rebalance.moves_done);
        next.push(format!("{} to be made; `rugctl rebalance abort {}` ends it", count(left, "move"), rebalance.id));
    } else {
        let ended = match rebalance.outcome.as_str() {
            "superseded" => "a newer plan took over what was left",
            "interrupted" => "its leader ended, and the next one went on with a newer one",
            "aborted" => {
                "an operator had it end; moves are paused until `rugctl placement resume`, unless that was given"
            }
            _ => "all that it was for was made, or was not needed any more",
        };
        next.push(ended.to_owned());
    }
    Account { subject, because, next }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn planned(from: &str, to: &str, reason: &str) -> v1::placement_plan::PlannedMove {
        v1::placement_plan::PlannedMove {
            from: from.into(),
            to: to.into(),
            reason: reason.into(),
            ..v1::placement_plan::PlannedMove::default()
        }
    }

    #[test]
    fn that_nothing_moves_has_a_reason() {
        let (status, plan) = (v1::ClusterStatus::default(), v1::PlacementPlan::default());
        let calm = explain_placement(&status, &[], &plan, NOW);
        assert_eq!(calm.subject, "nothing moves, and nothing has to");
        assert_eq!(calm.because, ["every appliance that can be placed is where policy, orders and pins want it"]);
        let paused =
            Some(v1::Paused { reason: "work".into(), by: "me".into(), moves_only: true, ..v1::Paused::default() });
        let status = v1::ClusterStatus { paused, ..status };
        let budget = v1::Budget { name: "web".into(), per: "all".into(), held: 2, ..v1::Budget::default() };
        let plan = v1::PlacementPlan {
            moves: 3,
            r#move: vec![
                planned("w1", "w2", "its owner drains"),
                planned("w1", "w3", "its owner drains"),
                planned("w2", "w3", "over the band"),
            ],
            ..plan
        };
        let held = explain_placement(&status, std::slice::from_ref(&budget), &plan, NOW + Duration::from_secs(1));
        assert_eq!(held.subject, "nothing moves, and 3 moves are to be made");
        assert!(held.because[0].starts_with("placement is paused: moves alone: work (by me"), "{held:?}");
        assert_eq!(held.because[1], "budget web (everything, at most ?) holds 2 moves");
        assert_eq!(held.next[0], "3 moves: 2 its owner drains, 1 over the band");
        let worker = v1::Worker { id: "w1".into(), member: true, drained: true, immovable: 1, ..v1::Worker::default() };
        let worker = explain_worker(&worker, &status, &[budget], &plan, NOW);
        assert!(worker.next.contains(&"it gives up 2: 2 its owner drains".to_owned()), "{worker:?}");
        assert!(worker.because.contains(&"1 appliance of it no other worker can take".to_owned()), "{worker:?}");
    }

    #[test]
    fn a_rebalance_says_what_it_was_for_and_what_became_of_it() {
        let made = |state: &str| v1::Move { state: state.into(), reason: "back".into(), ..v1::Move::default() };
        let rebalance = v1::Rebalance {
            id: "r1-2".into(),
            cause: "gone: w1".into(),
            outcome: "aborted".into(),
            moves: 3,
            moves_done: 2,
            r#move: vec![made("done"), made("done"), made("dropped")],
            members: vec![v1::MemberThen { takes: true, ..v1::MemberThen::default() }, v1::MemberThen::default()],
            ..v1::Rebalance::default()
        };
        let account = explain_rebalance(&rebalance, &v1::ClusterStatus::default(), &[], NOW);
        assert!(account.subject.starts_with("rebalance r1-2 is aborted: 2 of 3 moves made"), "{account:?}");
        assert_eq!(account.because[1], "2 members then, 1 of them could be given appliances");
        assert!(
            account.because[2] == "made: 2 back" && account.because[3].starts_with("1 move given up"),
            "{account:?}"
        );
        assert!(account.next[0].contains("placement resume"), "{account:?}");
    }
}
