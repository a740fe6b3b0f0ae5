//! What must hold when all is over (I2): one leader, everything placed, table, store and workers of one mind, and nothing
//! of what was acknowledged lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::appliance::Name;
use common::{ApplianceId, Generation, Life, Timestamp, WorkerId};
use coordinator_core::handoff::HandoffState;
use coordinator_core::health::Health;
use coordinator_core::machine::{Event, Machine};
use coordinator_core::planner::{Needs, Strategy};
use coordinator_core::table::TableRow;

use super::SimTime;
use super::orders::Ordered;
use super::worker::WorkerHost;
use super::world::{SimEvent, SimWorld};

/// How long after the last fault the world may take to come to rest. Leases, graces and back-offs are a few seconds
/// each, and one can follow another.
const PATIENCE: SimTime = 90_000_000_000;

/// For how long it then has to stay that way.
const CALM: SimTime = 3_000_000_000;

/// How long the brake holds before the simulated operator lets it go.
const OPERATOR: Duration = Duration::from_secs(20);

impl SimWorld {
    pub(super) fn look_whether_settled(&mut self, calm_since: Option<SimTime>) {
        // Those that never come back keep the brake on until an operator has looked.
        for coordinator in 0..self.coordinators.len() {
            let now = self.coordinators[coordinator].clock.local(self.now);
            let frozen = self.coordinators[coordinator].leader().and_then(|leader| leader.machine.frozen(now));
            if frozen.is_some_and(|frozen| frozen.since >= OPERATOR) {
                self.note(|| "an operator resumes".to_owned());
                self.leader_step(coordinator, Event::Resume);
            }
            self.clear_modes_at_end(coordinator);
            self.clear_orders_at_end(coordinator);
        }
        let calm_since = match (self.unsettled(), calm_since) {
            (None, Some(since)) if self.now - since >= CALM => {
                self.check_everything();
                return self.finish();
            }
            (None, since) => Some(since.unwrap_or(self.now)),
            (Some(why), _) if self.now > self.settings.faults_end + PATIENCE => {
                return self.fail(format!("I2: the world does not come to rest: {why}"));
            }
            (Some(why), Some(_)) => {
                self.note(|| format!("was at rest, but: {why}"));
                None
            }
            (Some(_), None) => None,
        };
        self.after(250_000_000, SimEvent::Settled { calm_since });
    }

    /// Why the world is not at rest (I2), if it is not.
    fn unsettled(&self) -> Option<String> {
        let mut leading =
            (0..self.coordinators.len()).filter(|&coordinator| self.coordinators[coordinator].leader().is_some());
        let (Some(coordinator), None) = (leading.next(), leading.next()) else {
            let roles = self
                .coordinators
                .iter()
                .map(|coordinator| coordinator.process.as_ref().map(|process| process.role.name()));
            return Some(format!("there is not one leader: {:?}", roles.collect::<Vec<_>>()));
        };
        let coordinators = self.coordinators.iter();
        if coordinators.filter(|coordinator| !coordinator.lost).any(|coordinator| coordinator.process.is_none()) {
            return Some("a coordinator is away".to_owned());
        }
        let Some(leader) = self.coordinators[coordinator].leader() else {
            return Some("there is no leader".to_owned());
        };
        let machine = &leader.machine;
        let local = self.coordinators[coordinator].clock.local(self.now);
        if self.has_orders_to_clear() {
            return Some("orders are in force".to_owned());
        }
        if self.is_writing(coordinator) || !leader.changing.is_empty() {
            return Some("writes are under way".to_owned());
        }
        let rows = &self.database.rows;
        if machine.term() != rows.place.0 {
            return Some(format!("{} leads, the store is at {}", machine.term(), rows.place.0));
        }
        let table: BTreeMap<ApplianceId, &TableRow> = machine.table().iter().map(|(_, e)| (e.id, e)).collect();
        if !table.keys().eq(rows.records.keys()) || !table.keys().eq(leader.catalog.keys()) {
            return Some("table, catalog and store have different appliances".to_owned());
        }
        self.acknowledged_lost()
            .or_else(|| self.members_unsettled(coordinator, machine))
            .or_else(|| table.values().find_map(|entry| self.entry_unsettled(local, machine, entry)))
            .or_else(|| self.places.iter().enumerate().find_map(|(n, _)| self.worker_unsettled(n, &table)))
            .or_else(|| self.band_unsettled(machine, &table))
            .or_else(|| spread_unsettled(machine, &table))
            .or_else(|| (!leader.rebalances.is_empty()).then(|| format!("{:?} is still open", leader.rebalances)))
            .or_else(|| (machine.moves_in_flight() > 0).then(|| "moves are counted as under way".to_owned()))
            .or_else(|| machine.backlog().into_iter().find(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")))
    }

    /// A change that was acknowledged and is not there any more.
    fn acknowledged_lost(&self) -> Option<String> {
        let removed = |id| self.journals.get(id).is_some_and(|journal| journal.removed);
        let kept = |id, generation: Generation| {
            self.database.rows.records.get(id).is_some_and(|record| record.edition.generation >= generation)
        };
        let mut acknowledged = self.acknowledged.iter().filter(|_| !self.database.restored);
        let lost = acknowledged.find(|(id, generation)| !removed(id) && !kept(id, **generation));
        lost.map(|(id, generation)| format!("{id} was acknowledged at {generation} and is lost"))
    }

    fn members_unsettled(&self, coordinator: usize, machine: &Machine) -> Option<String> {
        let local = self.coordinators[coordinator].clock.local(self.now);
        let views = machine.workers(local);
        let living: BTreeSet<_> = views
            .iter()
            .filter(|v| !matches!(v.health, Health::Dead | Health::Left))
            .map(|v| Life::new(v.id.clone(), v.incarnation))
            .collect();
        let stored: BTreeSet<_> =
            self.database.rows.members.iter().filter(|(_, m)| !m.departed).map(|(life, _)| life.clone()).collect();
        if stored != living {
            return Some(format!("the store has members {stored:?}, the leader {living:?}"));
        }
        let mut real = BTreeSet::new();
        for place in self.places.iter().filter(|p| !p.lost) {
            let process = place.process.as_ref();
            let Some(incarnation) = process.and_then(|p| p.conversation.envelope()?.incarnation) else {
                return Some(format!("{} has no session", place.name));
            };
            real.insert(Life::new(place.name.clone(), incarnation));
        }
        if real != living {
            return Some(format!("the living are {real:?}, the leader thinks {living:?}"));
        }
        let members = machine.planner().members();
        (members.len() != real.len() || members.iter().any(|m| !m.connected))
            .then(|| format!("the planner knows {members:?}"))
    }

    /// Workers that could hold an appliance with these needs, whatever they hold.
    fn eligible(&self, needs: &Needs) -> BTreeSet<WorkerId> {
        let can_run = |p: &&WorkerHost| p.profile.can_run(&needs.driver, needs.kind, needs.site.as_ref());
        let able = self.places.iter().filter(|p| !p.lost).filter(can_run);
        able.map(|p| p.name.clone()).collect()
    }

    fn entry_unsettled(&self, local: Timestamp, machine: &Machine, entry: &TableRow) -> Option<String> {
        let id = entry.id;
        let (may_be, is) = self.journals.get(&id).map_or((false, false), |j| (j.may_be_bound, j.is_bound));
        let known = !self.database.restored;
        if known && ((entry.needs.site.is_some() && !may_be) || (entry.needs.site.is_none() && is)) {
            return Some(format!("{id} is kept on {:?}; was it taken anywhere: {is}", entry.needs.site));
        }
        let able = self.eligible(&entry.needs);
        let mut eligible = able.clone();
        let record = &self.database.rows.records[&id];
        let waits = entry.state.holder().is_some_and(|g| self.is_covered(record, &g.worker));
        match self.ordered_to(machine, entry, &able) {
            Ordered::With(workers) => eligible = workers,
            Ordered::Anywhere if matches!(entry.state, HandoffState::Owned(_)) => {}
            Ordered::Anywhere => {
                let idle = entry.state.wants_owner() && entry.placement.unplaced.is_some();
                return (!idle).then(|| format!("{id}, which nobody is given, is {}", entry.state.name()));
            }
        }
        // What is to be removed is not moved for the balance any more, also while its removal waits.
        if machine.config().planner.strategy == Strategy::Ring && !(record.deleting && waits) {
            let owner = machine.planner().ring().owner(&id.to_string()).cloned();
            eligible.retain(|w| Some(w) == owner.as_ref());
        }
        if eligible.is_empty() {
            let idle = entry.state.wants_owner() && entry.placement.unplaced.is_some();
            // What the ring cannot place stays where it is while its owner lives.
            let owned = matches!(&entry.state, HandoffState::Owned(g) if able.contains(&g.worker));
            let stays = owned && (!record.deleting || waits);
            return (!idle && !stays).then(|| format!("{id}, which nobody can take, is {}", entry.state.name()));
        }
        if record.deleting && !waits {
            return Some(format!("{id} is still being removed: {:?}", entry.state));
        }
        let HandoffState::Owned(g) = &entry.state else {
            return Some(format!("{id} is {:?}, {eligible:?} could take it", entry.state));
        };
        if !eligible.contains(&g.worker) {
            return Some(format!("{id} is with {}, eligible are {eligible:?}", g.worker));
        }
        if self.database.rows.grants.get(&id).and_then(|s| s.granted.as_ref()) != Some(g) {
            return Some(format!("{id} is held under {}, but not in the store", g.token));
        }
        if record.edition != entry.edition {
            return Some(format!("{id} is at {}, the store at {}", entry.edition, record.edition));
        }
        let place = self.places.iter().find(|p| p.name == g.worker)?;
        let acts = place.able(self.now, id) == Some(g.token);
        let knows = place.process.as_ref().and_then(|p| p.edition(id));
        if !acts || knows != Some(entry.edition) {
            return Some(format!("{} holds {id} at {knows:?}, may act: {acts}", g.worker));
        }
        let number = self.places.iter().position(|p| p.name == g.worker)?;
        self.mode_unsettled(number, record, g.token, machine.hands_off(local, id))
    }

    fn worker_unsettled(&self, n: usize, table: &BTreeMap<ApplianceId, &TableRow>) -> Option<String> {
        let place = &self.places[n];
        let process = place.process.as_ref()?;
        for (id, held) in process.conversation.assignments().iter() {
            let holder = table.get(&id).and_then(|e| e.state.holder());
            if holder.is_none_or(|g| g.token != held.token || g.worker != place.name) {
                return Some(format!("{} holds {id} under {} against the table", place.name, held.token));
            }
        }
        let (_, unsaid) = process.conversation.assignments().clone().hello(&place.name, &place.profile, &place.secret);
        if !unsaid.released.is_empty() || !unsaid.removed.is_empty() {
            return Some(format!("{} still repeats {:?} {:?}", place.name, unsaid.released, unsaid.removed));
        }
        process.is_busy().then(|| format!("{} is busy", place.name))
    }

    /// Every eligible worker holds its share, give or take the band.
    fn band_unsettled(&self, machine: &Machine, table: &BTreeMap<ApplianceId, &TableRow>) -> Option<String> {
        let config = &machine.config().planner;
        if config.strategy == Strategy::Ring || self.has_orders() {
            return None;
        }
        let mut classes: BTreeMap<BTreeSet<WorkerId>, Vec<&TableRow>> = BTreeMap::new();
        for entry in table.values().filter(|entry| !entry.deleting) {
            classes.entry(self.eligible(&entry.needs)).or_default().push(entry);
        }
        for (eligible, entries) in classes.iter().filter(|(eligible, _)| !eligible.is_empty()) {
            let weight =
                |w: &WorkerId| self.places.iter().find(|p| p.name == *w).map_or(0.0, |p| f64::from(p.profile.weight));
            let weights: f64 = eligible.iter().map(weight).sum();
            for worker in eligible {
                let fair = entries.len() as f64 * weight(worker) / weights;
                let load = entries.iter().filter(|e| e.state.holder().is_some_and(|g| g.worker == *worker)).count();
                let (floor, ceiling) = ((fair / config.band - 1e-9).floor(), (fair * config.band + 1e-9).ceil());
                if (load as f64) < floor || load as f64 > ceiling {
                    return Some(format!("{worker} holds {load}, its band is {floor} to {ceiling} of {eligible:?}"));
                }
            }
        }
        None
    }
}

/// Tenants are counted in the zones in which the table has them.
fn spread_unsettled(machine: &Machine, table: &BTreeMap<ApplianceId, &TableRow>) -> Option<String> {
    let members = machine.planner().members().iter();
    let zones: BTreeMap<&WorkerId, &str> = members
        .filter(|member| !member.draining && !member.drained && !member.drivers.is_empty())
        .map(|member| (&member.id, member.zone.as_str()))
        .collect();
    let none: BTreeMap<&str, u64> = zones.values().map(|zone| (*zone, 0)).collect();
    let mut tenants: BTreeMap<&Name, BTreeMap<&str, u64>> = BTreeMap::new();
    for entry in table.values().filter(|entry| !entry.deleting) {
        let zone = entry.state.holder().and_then(|holder| zones.get(&holder.worker));
        if let Some(count) =
            zone.and_then(|zone| tenants.entry(&entry.subject.tenant).or_insert_with(|| none.clone()).get_mut(zone))
        {
            *count += 1;
        }
    }
    let is_uneven =
        |zones: &&BTreeMap<&str, u64>| zones.values().max().unwrap_or(&0) - zones.values().min().unwrap_or(&0) > 1;
    let (uneven, counted) = (tenants.values().filter(is_uneven).count() as u64, machine.planner().uneven_tenants());
    (uneven != counted).then(|| format!("{uneven} tenants are uneven, and {counted} are counted: {tenants:?}"))
}
