//! What the coordinator keeps of an appliance, a rebalance and a move, outside the ownership table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use common::appliance::{Name, Spec};
use common::driver::DriverName;
use common::manager::Manager;
use common::run::{PhaseChange, RunOutcome, RunStep};
use common::{ApplianceId, Edition, Generation, RebalanceId, Term, WorkerId};
use coordinator_core::orders::OrderOp;
use coordinator_core::rollout::{Forgiven, Rollout, RolloutAction, RolloutPolicy, RolloutState};
use serde::{Deserialize, Serialize};

/// An appliance as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Identity.
    pub id: ApplianceId,
    /// Owner in the sense of the business; names are unique within it.
    pub tenant: Name,
    /// Unique within the tenant.
    pub name: Name,
    /// Where instances run. Cannot change.
    pub driver: DriverName,
    /// What the ring hashes. Cannot change.
    pub placement_key: String,
    /// Free labels for filters.
    pub labels: BTreeMap<String, String>,
    /// What it shall be.
    pub spec: Spec,
    /// Counts the changes of `spec`, `revision` and `deleting`.
    pub generation: Generation,
    /// The term this generation was written in.
    pub written: Term,
    /// Raised by each rebuild.
    pub revision: u64,
    /// It is to be removed.
    pub deleting: bool,
    /// Source that manages it, or its object; `None` when clients do. Changed by a source that adopts or releases it.
    pub managed_by: Option<Manager>,
    /// When it was created.
    pub created: SystemTime,
    /// When it was last changed by a user.
    pub updated: SystemTime,
}

impl Record {
    /// Its generation and the term that wrote it.
    #[must_use]
    pub const fn edition(&self) -> Edition {
        Edition::new(self.generation, self.written)
    }
}

/// How a rebalance ended, or that it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RebalanceOutcome {
    /// Moves are under way.
    Running,
    /// Every move was made, or was not needed any more.
    Completed,
    /// A newer plan took over what was left.
    Superseded,
    /// Its leader ended before it, and the next one went on with a newer one.
    Interrupted,
    /// An operator had it end with the moves that were under way.
    Aborted,
}

impl RebalanceOutcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Running, Self::Completed, Self::Superseded, Self::Interrupted, Self::Aborted];

    /// The name in tables, traces and the store.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Superseded => "superseded",
            Self::Interrupted => "interrupted",
            Self::Aborted => "aborted",
        }
    }
}

/// What one cause moves, over all plans and leaders that make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RebalanceRecord {
    /// Identity.
    pub id: RebalanceId,
    /// What set it off.
    pub cause: String,
    /// W3C trace id, 32 hex digits; empty when nothing was traced.
    pub trace_id: String,
    /// When it began.
    pub started: SystemTime,
    /// When it ended.
    pub ended: Option<SystemTime>,
    /// How it ended.
    pub outcome: RebalanceOutcome,
    /// Moves planned.
    pub moves: u64,
    /// Moves made.
    pub done: u64,
}

/// A member of the ring as it was when a rebalance began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberThen {
    /// Its name.
    pub worker: WorkerId,
    /// Its weight, as published or as ordered.
    pub weight: u32,
    /// Its zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// It could be given appliances.
    pub takes: bool,
    /// It gave up what it had.
    #[serde(default)]
    pub gives_up: bool,
}

/// One move of a rebalance, once it has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveRecord {
    /// The rebalance it belongs to.
    pub rebalance: RebalanceId,
    /// What moved.
    pub appliance: ApplianceId,
    /// Who held it.
    pub from: Option<WorkerId>,
    /// Who holds it now.
    pub to: WorkerId,
    /// Why, as the planner's reason prints.
    pub reason: String,
    /// `false`: the move was given up.
    pub done: bool,
    /// How it went.
    pub times: MoveTimes,
    /// When it ended.
    pub time: SystemTime,
}

/// When the stages of a move were reached, as far as they were and the leader saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveTimes {
    /// The old owner was asked to give it up, or, where there was none, the new one was being stored.
    pub began: Option<SystemTime>,
    /// The old owner had given it up: the new one was being stored.
    pub released: Option<SystemTime>,
    /// The new owner was stored, and told.
    pub granted: Option<SystemTime>,
    /// The new owner had seen how the appliance is. Comes after the end of the move.
    pub adopted: Option<SystemTime>,
}

/// A new owner has seen how an appliance is that came to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptionRecord {
    /// The rebalance that moved it.
    pub rebalance: RebalanceId,
    /// What was moved.
    pub appliance: ApplianceId,
    /// When its new owner had seen it.
    pub time: SystemTime,
}

/// An operator's stop of planning, or of moves alone. It lasts until it is resumed, whoever leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PauseRecord {
    /// Why, in the operator's words; may be empty.
    pub reason: String,
    /// Who asked for it.
    pub by: String,
    /// Since when.
    pub since: SystemTime,
    /// What has no owner still gets one.
    pub moves_only: bool,
    /// The rebalance that was aborted with it.
    pub aborts: Option<RebalanceId>,
}

/// Who gave an order, when and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderNote {
    /// Why, in the operator's words; may be empty.
    pub reason: String,
    /// Who gave it.
    pub by: String,
    /// Since when.
    pub since: SystemTime,
}

/// An operator's order about placement. It lasts until it is taken back, whoever leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderRecord {
    /// What is ordered.
    pub order: OrderOp,
    /// By whom.
    pub note: OrderNote,
}

/// A rollout, without how far each appliance is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// Identity; whoever starts one makes it up.
    pub id: uuid::Uuid,
    /// What is done.
    pub action: RolloutAction,
    /// How fast, and when it stops.
    pub policy: RolloutPolicy,
    /// How far it is.
    pub state: RolloutState,
    /// Former images.
    pub images: Vec<String>,
    /// Failures that an operator has resumed after.
    pub forgiven: Forgiven,
    /// Appliances of the selection.
    pub items: u64,
    /// How they were selected, for people.
    pub selection: String,
    /// Also what sources manage.
    pub force: bool,
    /// Why, in the operator's words; may be empty.
    pub reason: String,
    /// Who started it.
    pub by: String,
    /// Why it is in its state, for people; empty where that is plain.
    pub note: String,
    /// The last appliances that failed, at most [`RolloutRecord::MAX_FAILURES`].
    pub failures: Vec<RolloutFailure>,
    /// When it was started.
    pub started: SystemTime,
    /// When it ended.
    pub ended: Option<SystemTime>,
}

impl RolloutRecord {
    /// Most failures that are told.
    pub const MAX_FAILURES: usize = 50;
}

/// An appliance that failed in a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutFailure {
    /// Which.
    pub appliance: ApplianceId,
    /// Tenant and name.
    pub name: String,
    /// Why.
    pub why: String,
}

/// A rollout, with how far each appliance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRollout {
    /// What is told of it.
    pub record: RolloutRecord,
    /// How it goes on.
    pub rollout: Rollout,
}

/// One line of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// When.
    pub time: SystemTime,
    /// Who asked: address of the caller, or `rug` for what the system did by itself.
    pub actor: String,
    /// What was done, such as `create`.
    pub action: String,
    /// To what: an appliance or worker id.
    pub subject: String,
    /// Further words.
    pub detail: String,
}

/// An event of the audit trail, and its number, which grows from one to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumberedEvent {
    /// Its number.
    pub number: u64,
    /// The event.
    pub event: AuditEvent,
}

/// Which events of the audit trail are asked for: conditions that all must hold; absent ones hold for every event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Not before this.
    pub since: Option<SystemTime>,
    /// Before this.
    pub until: Option<SystemTime>,
    /// By this actor.
    pub actor: Option<String>,
    /// This action.
    pub action: Option<String>,
    /// About this subject, or an appliance that had this tenant/name.
    pub subject: Option<String>,
}

/// What a worker did about an appliance, or how its phase changed by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRecord {
    /// Which one, as its worker named it: what is told twice is kept once.
    pub id: u128,
    /// The appliance.
    pub appliance: ApplianceId,
    /// Its tenant.
    pub tenant: Name,
    /// What it was called.
    pub name: Name,
    /// Generation it was brought to.
    pub generation: Generation,
    /// Who did it.
    pub worker: WorkerId,
    /// What set it off.
    pub cause: String,
    /// How it ended.
    pub outcome: RunOutcome,
    /// What was wrong last; may be empty.
    pub error: String,
    /// When it began, by the clock of the leader.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What was done.
    pub steps: Vec<RunStep>,
    /// How the phase changed.
    pub changes: Vec<PhaseChange>,
}

/// A run, and its number, which grows from one to the next that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumberedRun {
    /// Its number.
    pub number: u64,
    /// The run.
    pub run: RunRecord,
}

/// Which runs are asked for: conditions that all must hold; absent ones hold for every run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Not ended before this.
    pub since: Option<SystemTime>,
    /// Ended before this.
    pub until: Option<SystemTime>,
    /// Of this appliance.
    pub appliance: Option<ApplianceId>,
    /// Of an appliance of this name.
    pub name: Option<Name>,
    /// Of appliances of these tenants.
    pub tenants: Option<BTreeSet<Name>>,
    /// Of this worker.
    pub worker: Option<WorkerId>,
    /// Those that ended like this.
    pub outcome: Option<RunOutcome>,
    /// Without those that have no step.
    pub with_steps: bool,
}

/// Which part of the audit trail, or of the runs, is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditPart {
    /// Those before this number, or the last ones, newest first.
    Before(Option<u64>),
    /// Those after this number, oldest first.
    After(u64),
}

impl AuditEvent {
    /// Writes it to the audit log: the log with target `audit`.
    pub fn log(&self) {
        let Self { actor, action, subject, detail, .. } = self;
        // In the trace of the call, and without the fields of its span in the line.
        tracing::info!(target: "audit", parent: None, actor, action, subject, "{detail}");
    }
}

/// An idempotent call that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecord {
    /// The caller's id.
    pub id: uuid::Uuid,
    /// Digest of the call's content; a repeat with another is refused.
    pub digest: [u8; 16],
    /// What it was about.
    pub appliance: ApplianceId,
    /// When it was carried out; kept for 24 h.
    pub time: SystemTime,
}
