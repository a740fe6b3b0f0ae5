//! The cluster as a whole.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use common::appliance::Name;
use common::cluster::ClusterIdentity;
use common::ring::Ring;
use common::{ApplianceId, CoordinatorId, RebalanceId, Term, WorkerId};
use coordinator_core::planner::{Spread, Strategy};

use crate::record::PauseRecord;
use crate::store::StoreProblem;
use crate::views::OrdersView;

/// The cluster as a whole, less what the catalog counts itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// The current term.
    pub term: Term,
    /// Which cluster this is.
    pub identity: ClusterIdentity,
    /// The coordinator that leads, and where it keeps and finds things.
    pub leader: LeaderView,
    /// What moves, and what keeps appliances from being moved.
    pub placement: PlacementView,
    /// What was refused because it contradicts the table.
    pub violations: ViolationsView,
    /// Appliances without an owner.
    pub unowned: UnownedView,
    /// Appliances whose former owner died while it held them.
    pub suspects: u64,
    /// Those of them that nobody is granted any more.
    pub quarantined: u64,
    /// What a person should look at: what differs after a restored database or a wiped ZooKeeper, stored appliances
    /// that cannot be read. The first [`MAX_NOTES`] are shown.
    pub notes: Vec<String>,
    /// Why the store takes no changes, until a write succeeds.
    pub store_problem: Option<StoreProblem>,
}

#[cfg(test)]
impl ClusterView {
    /// A cluster in this term about which there is nothing to say.
    pub fn of_term(term: u64) -> Self {
        let leader = LeaderView {
            coordinator: "c1".parse().expect("a valid name"),
            started: SystemTime::UNIX_EPOCH,
            store: "sqlite".into(),
            coordination: "embedded".into(),
            coordination_state: CoordinationState::Connected,
            coordinators: vec![],
        };
        Self {
            term: Term::new(term),
            identity: ClusterIdentity { id: uuid::Uuid::from_u128(1), name: "test".parse().ok() },
            leader,
            placement: PlacementView::default(),
            violations: ViolationsView::default(),
            unowned: UnownedView::default(),
            suspects: 0,
            quarantined: 0,
            notes: vec![],
            store_problem: None,
        }
    }
}

/// The coordinator that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderView {
    /// Its name.
    pub coordinator: CoordinatorId,
    /// When its process started.
    pub started: SystemTime,
    /// Where appliances are stored, without credentials.
    pub store: String,
    /// How the cluster is coordinated, without credentials.
    pub coordination: String,
    /// Whether the coordination service answers.
    pub coordination_state: CoordinationState,
    /// Every coordinator that is known, by name; this one among them.
    pub coordinators: Vec<CoordinatorView>,
}

/// What moves, and what keeps appliances from being moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlacementView {
    /// Why the leader places nothing; empty when it does.
    pub waiting: String,
    /// Moves under way.
    pub moves_in_flight: u64,
    /// Moves past their deadline.
    pub stalled_moves: u64,
    /// Too many workers vanished at once: nothing is moved.
    pub frozen: Option<FrozenView>,
    /// An operator stopped all planning.
    pub paused: Option<PausedView>,
    /// What operators order about workers and appliances.
    pub orders: OrdersView,
}

/// What was refused because it contradicts the table, since this coordinator leads without another one in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViolationsView {
    /// How often.
    pub count: u64,
    /// By kind; every kind there is.
    pub kinds: Vec<(&'static str, u64)>,
    /// When last.
    pub last: Option<SystemTime>,
}

/// Appliances that nobody acts on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnownedView {
    /// How many.
    pub appliances: u64,
    /// Those without an owner for longest, at most [`MAX_UNOWNED`], the longest first.
    pub oldest: Vec<UnownedAppliance>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnownedAppliance {
    /// Its identity.
    pub id: ApplianceId,
    /// Its tenant.
    pub tenant: Name,
    /// Its name.
    pub name: Name,
    /// Since when it has no owner, as far as the leader knows.
    pub since: SystemTime,
    /// State of the hand-off machine.
    pub state: &'static str,
    /// Why it is in it.
    pub reason: Cow<'static, str>,
}

/// Most appliances without an owner that are shown with the cluster.
pub const MAX_UNOWNED: usize = 10;

/// Most notes that are shown.
pub const MAX_NOTES: usize = 20;

/// Most names of missing workers that are shown.
pub const MAX_MISSING: usize = 20;

/// Whether the coordination service answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CoordinationState {
    /// It does; also what embedded coordination always says.
    #[default]
    Connected,
    /// Not for a while: this leader may be about to step down.
    InDoubt,
}

/// A coordinator as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorView {
    /// Its name.
    pub id: CoordinatorId,
    /// Address of its APIs; empty when it told none.
    pub address: String,
    /// It is the one that leads.
    pub leading: bool,
}

/// A freeze after a loss of sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenView {
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
    /// Who vanished, by name. The first [`MAX_MISSING`] are shown, and the number of all.
    pub missing: Vec<WorkerId>,
}

/// An operator's stop of planning, or of moves alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PausedView {
    /// Why, in the operator's words; may be empty.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
    /// Who asked for it.
    pub by: String,
    /// What has no owner still gets one.
    pub moves_only: bool,
    /// The rebalance that was aborted with it.
    pub aborts: Option<RebalanceId>,
}

impl From<PauseRecord> for PausedView {
    fn from(PauseRecord { reason, by, since, moves_only, aborts }: PauseRecord) -> Self {
        Self { reason, since, by, moves_only, aborts }
    }
}

/// The ring and the policy in force.
#[derive(Clone, Debug)]
pub struct RingView {
    /// Counts changes of membership in this term.
    pub version: u64,
    /// The ring itself.
    pub ring: Arc<Ring>,
    /// How members share the appliances.
    pub strategy: Strategy,
    /// Width of the band.
    pub band: f64,
    /// What is spread over zones.
    pub spread: Spread,
}
