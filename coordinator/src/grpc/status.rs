//! The one mapping of errors to gRPC codes and details.
//!
//! | situation | code | details |
//! |---|---|---|
//! | bad input, a request that cannot be read, request id reused | `INVALID_ARGUMENT` | `BadRequest` |
//! | no such appliance, worker, rebalance | `NOT_FOUND` | `ResourceInfo` |
//! | id or name taken | `ALREADY_EXISTS` | `ResourceInfo` |
//! | stale generation, stale plan, another incarnation of a worker, watcher too slow | `ABORTED` | |
//! | being deleted, no owner, no lease, last able worker, meant for another cluster | `FAILED_PRECONDITION` | `PreconditionFailure` |
//! | cluster full, too many orders, request too large | `RESOURCE_EXHAUSTED` | `QuotaFailure` |
//! | no leader, or it cannot be reached; stopping; store unavailable | `UNAVAILABLE` | `RetryInfo` |
//! | no answer in time | `DEADLINE_EXCEEDED` | |
//! | the caller's roles do not allow it | `PERMISSION_DENIED` | |
//! | no certificate and no valid token | `UNAUTHENTICATED` | |
//! | no such call | `UNIMPLEMENTED` | |
//!
//! Every status has an `ErrorInfo` with domain `rug` and a reason in capitals for programs to compare.

use std::collections::HashMap;
use std::time::Duration;

use common::appliance::FieldViolation;
use common::cluster::{ClusterIdentity, ClusterRef};
use common::{Incarnation, WorkerId};
use coordination::Leader;
use proto::convert::scalar::clip;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::budget::Exhausted;
use crate::commands::CommandError;
use crate::history::HistoryError;
use crate::metrics;

/// Domain of all error reasons.
pub const DOMAIN: &str = "rug";
/// Details travel in a header; clients accept some 8 to 16 KiB of headers in all.
const MAX_DETAILS: usize = 4096;
/// Longest text of one violation.
const MAX_TEXT: usize = 300;
/// Retry delay for temporary failures.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The status of a command that failed.
pub fn from_command(error: &CommandError) -> Status {
    let text = error.to_string();
    let status = |code, reason: &str, details| build(code, &text, reason, HashMap::new(), details);
    match error {
        CommandError::Invalid(violations) => invalid(violations),
        CommandError::RequestReused(_) => invalid(&[FieldViolation::new("request_id", text)]),
        CommandError::NotFound(target) => not_found("appliance", &target.to_string()),
        CommandError::RequestedGone(id) => {
            status(Code::NotFound, "GONE", resource("appliance", &id.to_string(), &text))
        }
        CommandError::NameTaken { tenant, name, .. } => {
            status(Code::AlreadyExists, "NAME_TAKEN", resource("appliance", &format!("{tenant}/{name}"), &text))
        }
        CommandError::IdTaken(id) => {
            status(Code::AlreadyExists, "ID_TAKEN", resource("appliance", &id.to_string(), &text))
        }
        CommandError::Stale { expected, current, .. } => {
            let facts = [("expected", expected.get().to_string()), ("current", current.get().to_string())];
            let facts = facts.map(|(k, v)| (k.to_owned(), v)).into();
            build(Code::Aborted, &text, "STALE_GENERATION", facts, ErrorDetails::new())
        }
        CommandError::Deleting(id) => precondition("DELETING", &id.to_string(), &text),
        CommandError::NoOwner { appliance, .. } => precondition("NO_OWNER", &appliance.to_string(), &text),
        CommandError::NoLog { .. } => status(Code::Unavailable, "NO_LOG", retry()),
        CommandError::KeepsNoLogs { appliance, .. } => precondition("KEEPS_NO_LOGS", &appliance.to_string(), &text),
        CommandError::NotExecuted { appliance, .. } => precondition("NOT_EXECUTED", &appliance.to_string(), &text),
        CommandError::NoAnswer { .. } => status(Code::Unavailable, "NO_ANSWER", retry()),
        CommandError::Managed { appliance, .. } => precondition("MANAGED", &appliance.to_string(), &text),
        CommandError::NotManaged { appliance, .. } => precondition("NOT_MANAGED", &appliance.to_string(), &text),
        CommandError::MayBeOwned { appliance, .. } => precondition("MAY_BE_OWNED", &appliance.to_string(), &text),
        CommandError::OtherSite { appliance, .. } => precondition("OTHER_SITE", &appliance.to_string(), &text),
        CommandError::PortTaken { appliance, .. } => precondition("PORT_TAKEN", &appliance.to_string(), &text),
        CommandError::Full(_) => {
            let details = ErrorDetails::with_quota_failure_violation("appliances", text.as_str());
            status(Code::ResourceExhausted, "CLUSTER_FULL", details)
        }
        CommandError::NoWorker(id) => status(Code::NotFound, "NOT_FOUND", resource("worker", id.as_str(), &text)),
        CommandError::OtherLife { worker, current } => other_life(worker, *current),
        CommandError::NoLease(id) => precondition("NO_LEASE", id.as_str(), &text),
        CommandError::HasLease(id) => precondition("HAS_LEASE", id.as_str(), &text),
        CommandError::NoRollout(id) => status(Code::NotFound, "NOT_FOUND", resource("rollout", &id.to_string(), &text)),
        CommandError::RolloutIdTaken(id) => {
            status(Code::AlreadyExists, "ID_TAKEN", resource("rollout", &id.to_string(), &text))
        }
        CommandError::TooManyRollouts(_) | CommandError::RolloutTooLarge(_) => {
            let details = ErrorDetails::with_quota_failure_violation("rollouts", text.as_str());
            status(Code::ResourceExhausted, "TOO_MANY", details)
        }
        CommandError::RolloutRefused(id, _) => precondition("ROLLOUT_STATE", &id.to_string(), &text),
        CommandError::NoMode(id) => status(Code::NotFound, "NOT_FOUND", resource("debug mode", &id.to_string(), &text)),
        CommandError::ModeIdTaken(id) => {
            status(Code::AlreadyExists, "ID_TAKEN", resource("debug mode", &id.to_string(), &text))
        }
        CommandError::ModesFull(_) => {
            let details = ErrorDetails::with_quota_failure_violation("debug modes", text.as_str());
            status(Code::ResourceExhausted, "TOO_MANY", details)
        }
        CommandError::RingDecides(subject) => precondition("RING_DECIDES", subject, &text),
        CommandError::LastAble { worker, .. } => precondition("LAST_ABLE", worker.as_str(), &text),
        CommandError::CannotTake { appliance, .. } => precondition("CANNOT_TAKE", &appliance.to_string(), &text),
        CommandError::BudgetSpent { appliance, .. } => precondition("BUDGET_SPENT", &appliance.to_string(), &text),
        CommandError::NotRebalancing(id) => {
            let subject = id.map(|id| id.to_string()).unwrap_or_default();
            precondition("REBALANCE_ENDED", &subject, &text)
        }
        CommandError::StillRebalancing(id) => precondition("REBALANCE_RUNS", &id.to_string(), &text),
        CommandError::StalePlan { planned, current } => {
            let facts = [("planned", planned), ("current", current)];
            let facts = facts.map(|(k, v)| (k.to_owned(), v.clone())).into();
            build(Code::Aborted, &text, "STALE_PLAN", facts, ErrorDetails::new())
        }
        CommandError::NotAppliable(_) => precondition("NOT_APPLIABLE", "plan", &text),
        CommandError::TooManyOrders => {
            let details = ErrorDetails::with_quota_failure_violation("orders", text.as_str());
            status(Code::ResourceExhausted, "TOO_MANY_ORDERS", details)
        }
        CommandError::NotLeading(leader) => {
            let facts = leader.iter().map(|l| ("leader".to_owned(), l.to_string())).collect();
            build(Code::Unavailable, &text, "NOT_LEADING", facts, retry())
        }
        CommandError::Unavailable(_) => status(Code::Unavailable, "STORE_UNAVAILABLE", retry()),
        CommandError::Stopping => status(Code::Unavailable, "STOPPING", retry()),
        CommandError::Contended => status(Code::Unavailable, "CONTENDED", retry()),
        CommandError::DeadlineExceeded => status(Code::DeadlineExceeded, "DEADLINE", ErrorDetails::new()),
        CommandError::Unanswered => status(Code::Unavailable, "STOPPING", retry()),
    }
}

/// The status that names every invalid field.
pub fn invalid(violations: &[FieldViolation]) -> Status {
    let mut details = ErrorDetails::new();
    let mut size = 0;
    for violation in violations {
        let (field, description) = (clip(&violation.field, MAX_TEXT), clip(&violation.description, MAX_TEXT));
        size += field.len() + description.len();
        if size > MAX_DETAILS && details.has_bad_request_violations() {
            break;
        }
        details.add_bad_request_violation(field, description);
    }
    let text = clip(&CommandError::Invalid(violations.to_vec()).to_string(), 2 * MAX_TEXT);
    build(Code::InvalidArgument, &text, "INVALID", HashMap::new(), details)
}

/// The status of a missing object.
pub fn not_found(kind: &str, name: &str) -> Status {
    let text = format!("there is no {kind} {name}");
    build(Code::NotFound, &text, "NOT_FOUND", HashMap::new(), resource(kind, name, &text))
}

/// The status of a call that is meant for another cluster.
pub fn other_cluster(meant: &ClusterRef, identity: &ClusterIdentity) -> Status {
    let text = format!("this is cluster {identity}, and the call is for {meant}: nothing was done");
    precondition("OTHER_CLUSTER", &identity.id.to_string(), &text)
}

/// The status when a worker has another incarnation than the request named.
pub fn other_life(worker: &WorkerId, current: Option<Incarnation>) -> Status {
    let text = CommandError::OtherLife { worker: worker.clone(), current }.to_string();
    let facts = current.map(|i| ("current".to_owned(), i.to_string())).into_iter().collect();
    build(Code::Aborted, &text, "OTHER_LIFE", facts, ErrorDetails::new())
}

/// The status when the store could not be read.
pub fn from_history(error: &HistoryError) -> Status {
    build(Code::Unavailable, &error.to_string(), "STORE_UNAVAILABLE", HashMap::new(), retry())
}

/// The status when the leader did not answer before the deadline. The change may still be made.
pub fn deadline() -> Status {
    from_command(&CommandError::DeadlineExceeded)
}

/// The status while nothing is known yet.
pub fn starting() -> Status {
    build(Code::Unavailable, "the coordinator is starting", "STARTING", HashMap::new(), retry())
}

/// The status when a watcher missed `missed` changes and has to watch again.
pub fn lagged(missed: u64) -> Status {
    metrics::watch_lagged();
    let text = format!("{missed} changes came faster than they were read; watch again");
    build(Code::Aborted, &text, "WATCH_LAGGED", HashMap::new(), ErrorDetails::new())
}

/// The status when a watch ended on this side.
pub fn watch_over() -> Status {
    build(Code::Unavailable, "the coordinator ended the watch; watch again", "WATCH_OVER", HashMap::new(), retry())
}

/// The status of a coordinator that does not lead; names the leader if known.
pub fn not_leading(leader: Option<&Leader>) -> Status {
    let text = match leader {
        Some(leader) => format!("this coordinator does not lead; {} does", leader.id),
        None => "no coordinator is known to lead at the moment".to_owned(),
    };
    build(Code::Unavailable, &text, "NOT_LEADING", leader.map(facts_of).unwrap_or_default(), retry())
}

/// The status of a coordinator that is elected and cannot begin its term.
pub fn no_term(why: &str) -> Status {
    build(Code::Unavailable, &format!("no coordinator leads: {why}"), "NO_TERM", HashMap::new(), retry())
}

/// The status of a request that cannot be read.
pub fn undecodable(why: &str) -> Status {
    invalid(&[FieldViolation::new("request", format!("cannot be read: {why}"))])
}

/// The status of a request that is larger than what is accepted.
pub fn too_large(why: &str) -> Status {
    let details = ErrorDetails::with_quota_failure_violation("request", clip(why, MAX_TEXT));
    build(Code::ResourceExhausted, why, "TOO_LARGE", HashMap::new(), details)
}

/// The status of a request whose end did not come within this time.
pub fn not_arrived(limit: Duration) -> Status {
    let text = format!("the request did not arrive in full within {} s", limit.as_secs());
    build(Code::DeadlineExceeded, &text, "REQUEST_NOT_ARRIVED", HashMap::new(), ErrorDetails::new())
}

/// The status of a call on a connection that has `most` calls under way, which is all it may.
pub fn too_many_calls(most: usize) -> Status {
    let text = format!("{most} calls are under way on this connection, which is all it may have");
    let details = ErrorDetails::with_quota_failure_violation("connection", text.as_str());
    build(Code::ResourceExhausted, &text, "TOO_MANY_CALLS", HashMap::new(), details)
}

/// The status of a request that is larger than its call ever needs.
pub fn request_too_large(most: usize) -> Status {
    let text = format!("the request has more than the {most} bytes that are read of such a call");
    let details = ErrorDetails::with_quota_failure_violation("request", text.as_str());
    build(Code::ResourceExhausted, &text, "REQUEST_TOO_LARGE", HashMap::new(), details)
}

/// The status of a request for which there is no room beside others that are arriving.
pub fn too_many_bytes(exhausted: &Exhausted) -> Status {
    let text = format!("{exhausted}: requests that are still arriving; try again later");
    let details = ErrorDetails::with_quota_failure_violation("requests", text.as_str());
    build(Code::ResourceExhausted, &text, "TOO_MANY_BYTES", HashMap::new(), details)
}

/// The status of a list beyond the bound.
pub fn too_many_lists(exhausted: &Exhausted) -> Status {
    let text = format!("{exhausted}: lists that were not read yet; read them, or try again later");
    let details = ErrorDetails::with_quota_failure_violation("lists", text.as_str());
    build(Code::ResourceExhausted, &text, "TOO_MANY_LISTS", HashMap::new(), details)
}

/// The status of a watch beyond the bound; `who` has `most` open.
pub fn too_many_watches(who: &str, most: usize) -> Status {
    let text = format!("{who} {most} watches open, which is all that are allowed: close one, or try again later");
    let details = ErrorDetails::with_quota_failure_violation("watches", text.as_str());
    build(Code::ResourceExhausted, &text, "TOO_MANY_WATCHES", HashMap::new(), details)
}

/// The status when the leader could not be reached, or was lost before its response was complete. A change may have
/// been made.
pub fn leader_unreachable(leader: &Leader, why: &str) -> Status {
    let text = format!("no answer from {}, which leads: {why}; the call may have been carried out", leader.id);
    build(Code::Unavailable, &text, "LEADER_UNREACHABLE", facts_of(leader), retry())
}

/// The status when a stream ends because another coordinator leads now, or is about to.
pub fn leader_changed() -> Status {
    let text = "the coordinator that answered this call does not lead any more; call again";
    build(Code::Unavailable, text, "LEADER_CHANGED", HashMap::new(), retry())
}

/// The status of a call that the caller's roles do not allow.
pub fn permission_denied(text: &str) -> Status {
    build(Code::PermissionDenied, text, "PERMISSION_DENIED", HashMap::new(), ErrorDetails::new())
}

/// The status of a call whose caller has shown nothing that counts.
pub fn unauthenticated(text: &str) -> Status {
    build(Code::Unauthenticated, text, "UNAUTHENTICATED", HashMap::new(), ErrorDetails::new())
}

/// The status of a call with a token, while there are no keys to check it with.
pub fn no_keys() -> Status {
    let text = "the keys that tokens are checked with could not be fetched yet";
    build(Code::Unavailable, text, "NO_TOKEN_KEYS", HashMap::new(), retry())
}

/// The status of a call that does not exist.
pub fn unknown_call(path: &str) -> Status {
    let text = format!("there is no call {}", clip(path, MAX_TEXT));
    build(Code::Unimplemented, &text, "UNKNOWN_CALL", HashMap::new(), ErrorDetails::new())
}

/// The status of a coordinator that is stopping.
pub fn stopping() -> Status {
    from_command(&CommandError::Stopping)
}

fn facts_of(leader: &Leader) -> HashMap<String, String> {
    let facts = [("leader", leader.id.to_string()), ("address", leader.address.clone())];
    facts.into_iter().filter(|(_, text)| !text.is_empty()).map(|(k, v)| (k.to_owned(), v)).collect()
}

fn resource(kind: &str, name: &str, description: &str) -> ErrorDetails {
    ErrorDetails::with_resource_info(kind, clip(name, MAX_TEXT), "", clip(description, MAX_TEXT))
}

fn precondition(reason: &str, subject: &str, text: &str) -> Status {
    let details = ErrorDetails::with_precondition_failure_violation(reason, subject, clip(text, MAX_TEXT));
    build(Code::FailedPrecondition, text, reason, HashMap::new(), details)
}

fn retry() -> ErrorDetails {
    ErrorDetails::with_retry_info(Some(RETRY_AFTER))
}

fn build(code: Code, text: &str, reason: &str, facts: HashMap<String, String>, mut details: ErrorDetails) -> Status {
    details.set_error_info(reason, DOMAIN, facts);
    Status::with_error_details(code, clip(text, 2 * MAX_TEXT), details)
}
