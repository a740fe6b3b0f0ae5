//! The begin of a term: raised in the coordination service, then in the store, which is read in the same transaction.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::appliance::Name;
use common::status::Status;
use common::{ApplianceId, Term};
use coordination::Leadership;
use coordinator_core::grants::StoredGrant;
use coordinator_core::machine::{Event, Machine, Restored, TermClaim};
use coordinator_core::membership::LeaseAuthority;
use coordinator_core::table::Seed;
use runtime::clock;
use runtime::process::ProcessWatch;
use tracing::{error, info};

use super::causes::Causes;
use super::commands::in_force;
use super::connections::Connections;
use super::convert::seed;
use super::direct::DirectInquiries;
use super::inquiries::Inquiries;
use super::modes::{ModeCallers, stored_mode};
use super::notes::{Notes, Violations};
use super::orders::OrderBook;
use super::publisher::Publisher;
use super::rebalances::RebalanceHistory;
use super::rollouts::Rollouts;
use super::waiting::WaitingCallers;
use super::witness::HeldWitnesses;
use super::writes::PendingWrites;
use super::{Leader, LeaderSetup};
use crate::admission::Admission;
use crate::record::Record;
use crate::store::{self, Store, StoredState};
use crate::views::{AssignmentView, CatalogEntry, PausedView};

/// Why a term could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The store cannot be used, or is led by a higher term.
    #[error("begin a term: {0}")]
    Store(#[from] store::Error),
    /// The coordination service did not take the term.
    #[error("raise the term: {0}")]
    Coordination(#[from] coordination::Error),
}

/// What the terms before this one on this coordinator say about it.
#[derive(Clone, Debug, Default)]
pub struct FormerTerms {
    /// That a worker has met a higher term, if that ended the last one.
    pub claim: Option<TermClaim>,
    /// What was refused in them.
    pub violations: Violations,
    /// How long the new term lasts at least before a worker that has met a higher one ends it.
    pub raise_after: Duration,
}

impl<'a> Leader<'a> {
    /// Begins a term above everything the coordination service, the store and any worker have met: raises it there,
    /// then in the store, and reads everything.
    ///
    /// # Errors
    /// [`BeginError`]; nothing was begun, or nothing that anybody was told of.
    pub async fn begin(
        setup: &LeaderSetup,
        leadership: &'a dyn Leadership,
        store: Store,
        former: FormerTerms,
    ) -> Result<Self, BeginError> {
        let FormerTerms { claim, violations, raise_after } = former;
        let claimed = claim.as_ref().map_or(Term::default(), |claim| claim.met);
        let highest = store.highest_term().await?.max(claimed);
        let raised = leadership.raise_term(highest).await?;
        let term = raised.term;
        let stored = store.begin_term(&setup.identity.coordinator, term).await?;
        let roster = leadership.roster();
        // Not `highest`: the database may have been swapped for an older copy since that was read.
        let mut notes = Notes::found(stored.former, raised.found, roster.is_some(), claim.as_ref(), violations);
        let StoredState {
            cluster,
            records,
            statuses,
            grants,
            members,
            requests,
            rebalances,
            unfinished,
            pause,
            modes,
            orders,
            rollouts,
            unreadable,
            former: _,
        } = stored;
        for one in &unreadable {
            error!(appliance = %one.id, tenant = one.tenant, name = one.name, "skipping appliance: it is stored and cannot be read: {}", one.why);
            notes.unreadable(one);
        }
        info!(%term, %cluster, appliances = records.len(), members = members.len(), "leading");
        let (appliances, entries) = restore(records, statuses, grants);
        let (rebalances, unfinished) = RebalanceHistory::restore(
            (setup.identity.coordinator.clone(), term),
            store.system(),
            rebalances,
            &unfinished,
        );
        setup.catalog.load(entries, rebalances.views());
        let catalog = Arc::clone(&setup.catalog);
        let mut admission = Admission::new(Arc::clone(&catalog), term, &requests, Arc::clone(&setup.settled));
        let mut config = setup.machine.clone();
        config.authority = if roster.is_some() { LeaseAuthority::External } else { LeaseAuthority::Embedded };
        let paused = pause.as_ref().map(in_force);
        let inherited = unfinished.as_ref().map(|unfinished| unfinished.id);
        let modes = modes.into_iter().map(|rule| stored_mode(rule, SystemTime::now())).collect();
        let known: HashSet<ApplianceId> = appliances.iter().map(|(seed, _)| seed.id).collect();
        let (book, orders) = OrderBook::restore(orders, |id| known.contains(&id));
        let restored = Restored { appliances, members, raise_after, paused, unfinished, modes, orders };
        let began = clock::now();
        let machine = Machine::new(config, term, began, restored);
        admission.learn_drivers(machine.offers());
        for one in unreadable {
            let key = Name::new(&one.tenant).ok().zip(Name::new(&one.name).ok());
            admission.reserve_unreadable(one.id, key);
        }
        let writes = PendingWrites::new(store.clone());
        let mut leader = Self {
            machine,
            leadership,
            roster,
            connections: Connections::new(setup.identity.coordination.clone(), Arc::clone(&setup.tuning)),
            writes,
            waiting: WaitingCallers::default(),
            modes: ModeCallers::default(),
            rollouts: Rollouts::restore(rollouts),
            inquiries: Inquiries::default(),
            direct: DirectInquiries::default(),
            publisher: Publisher::new(setup, store, cluster, began, (pause.map(PausedView::from), book)),
            notes,
            rebalances,
            causes: Causes::default(),
            processes: ProcessWatch::default(),
            held_witnesses: HeldWitnesses::new(),
            tuning: Arc::clone(&setup.tuning),
            coordinators: setup.identity.coordinators.clone(),
            admission,
            catalog,
            end: None,
        };
        if let Some(id) = inherited {
            leader.publisher.inherit_rebalance(id, leader.rebalances.cause(id));
        }
        // Readers and the admission of changes see who owns what before the first call is answered.
        leader.step(Event::Tick);
        leader.publish();
        leader.watch_processes();
        Ok(leader)
    }
}

/// What the machine and what readers know of each stored appliance.
fn restore(
    records: Vec<Record>,
    mut statuses: HashMap<ApplianceId, (Status, SystemTime)>,
    mut grants: HashMap<ApplianceId, StoredGrant>,
) -> (Vec<(Seed, StoredGrant)>, Vec<CatalogEntry>) {
    let mut appliances = Vec::with_capacity(records.len());
    let mut entries = Vec::with_capacity(records.len());
    for record in records {
        let stored = grants.remove(&record.id);
        let stored = StoredGrant { ever: stored.is_some(), ..stored.unwrap_or_default() };
        appliances.push((seed(&record), stored));
        let status = statuses.remove(&record.id).map(|(status, at)| (Arc::new(status), at));
        entries.push(CatalogEntry { record: Arc::new(record), status, assignment: AssignmentView::default() });
    }
    (appliances, entries)
}
