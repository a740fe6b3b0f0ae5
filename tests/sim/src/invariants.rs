//! What must hold: after every step, and when the world has come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{ApplianceId, Token, WorkerId};
use coordinator_core::checks;
use coordinator_core::handoff::State;
use coordinator_core::health::Health;
use coordinator_core::machine::{Event, Machine};
use coordinator_core::planner::{Needs, Strategy};
use coordinator_core::table::Entry;

use super::Time;
use super::world::{Ev, World};

/// How long after the last fault the world may take to come to rest. Leases, graces and back-offs are a few seconds
/// each, and one can follow another.
const PATIENCE: Time = 90_000_000_000;

/// For how long it then has to stay that way.
const CALM: Time = 3_000_000_000;

/// How long the brake holds before the simulated operator lets it go.
const OPERATOR: Duration = Duration::from_secs(20);

impl World {
    /// What the machine keeps agrees with its table.
    pub(super) fn check_leader(&mut self) {
        let Some(leader) = &self.leader else { return };
        if let Some(wrong) = checks::machine(&leader.machine).into_iter().next() {
            self.fail(wrong);
        }
    }

    /// I1: no two workers are able to act on one appliance at this moment.
    pub(super) fn check_gates(&mut self) {
        let mut able: BTreeMap<ApplianceId, (usize, Token)> = BTreeMap::new();
        let mut two = None;
        for (n, place) in self.places.iter().enumerate() {
            for (id, token) in place.able(self.now, self.mutant) {
                if let Some((other, older)) = able.insert(id, (n, token)) {
                    two = Some(format!(
                        "I1: workers {} under {older} and {} under {token} can both act on {id}",
                        other + 1,
                        n + 1
                    ));
                }
            }
        }
        if let Some(two) = two {
            self.fail(two);
        }
    }

    /// I4: a grant is in the store before a worker hears of it.
    pub(super) fn check_taken(&mut self, place: usize, id: ApplianceId, token: Token) {
        let name = &self.places[place].name;
        let stored = self.store.ever.get(&token).is_some_and(|(of, to)| *of == id && to.worker == *name);
        if !stored {
            self.fail(format!("I4: worker {} takes {id} under {token}, which the store never had", place + 1));
        }
    }

    /// I1 and I3 as the appliance sees them.
    pub(super) fn check_touched(&mut self, place: usize, id: ApplianceId, token: Token) {
        let journal = self.journals.entry(id).or_default();
        if token < journal.token {
            let newest = journal.token;
            self.fail(format!("I3: worker {} acts on {id} under {token} after {newest}", place + 1));
        } else if journal.removed {
            self.fail(format!("worker {} acts on {id}, whose rows are gone", place + 1));
        } else {
            journal.token = token;
        }
        self.check_gates();
    }

    pub(super) fn look_whether_settled(&mut self, calm_since: Option<Time>) {
        // Those that never come back keep the brake on until an operator has looked.
        let now = self.leader_clock.local(self.now);
        let frozen = self.leader.as_ref().and_then(|l| l.machine.frozen(now));
        if frozen.is_some_and(|f| f.since >= OPERATOR) {
            self.note(|| "an operator resumes".to_owned());
            self.leader_step(Event::Resume);
        }
        let calm_since = match (self.unsettled(), calm_since) {
            (None, Some(since)) if self.now - since >= CALM => return self.finish(),
            (None, since) => Some(since.unwrap_or(self.now)),
            (Some(why), _) if self.now > self.settings.faults_end + PATIENCE => {
                return self.fail(format!("the world does not come to rest: {why}"));
            }
            (Some(why), Some(_)) => {
                self.note(|| format!("was at rest, but: {why}"));
                None
            }
            (Some(_), None) => None,
        };
        self.after(250_000_000, Ev::Settled { calm_since });
    }

    /// Why the world is not at rest (I2), if it is not.
    fn unsettled(&self) -> Option<String> {
        let Some(leader) = &self.leader else { return Some("there is no leader".to_owned()) };
        let machine = &leader.machine;
        if !self.store.pending.is_empty() || !leader.changing.is_empty() {
            return Some("writes are under way".to_owned());
        }
        let table: BTreeMap<ApplianceId, &Entry> = machine.table().iter().map(|(_, e)| (e.id, e)).collect();
        if !table.keys().eq(self.store.records.keys()) || !table.keys().eq(leader.catalog.keys()) {
            return Some("table, catalog and store have different appliances".to_owned());
        }
        self.members_unsettled(machine)
            .or_else(|| table.values().find_map(|entry| self.entry_unsettled(machine, entry)))
            .or_else(|| self.places.iter().enumerate().find_map(|(n, _)| self.worker_unsettled(n, &table)))
            .or_else(|| self.band_unsettled(machine, &table))
            .or_else(|| (!leader.rebalances.is_empty()).then(|| format!("{:?} is still open", leader.rebalances)))
            .or_else(|| (machine.moves_in_flight() > 0).then(|| "moves are counted as under way".to_owned()))
            .or_else(|| machine.backlog().into_iter().find(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")))
    }

    fn members_unsettled(&self, machine: &Machine) -> Option<String> {
        let local = self.leader_clock.local(self.now);
        let views = machine.workers(local);
        let living: BTreeSet<_> =
            views.iter().filter(|v| v.health != Health::Dead).map(|v| (v.id.clone(), v.incarnation)).collect();
        let stored: BTreeSet<_> =
            self.store.members.iter().filter(|(_, m)| !m.departed).map(|(life, _)| life.clone()).collect();
        if stored != living {
            return Some(format!("the store has members {stored:?}, the leader {living:?}"));
        }
        let mut real = BTreeSet::new();
        for place in self.places.iter().filter(|p| !p.dead) {
            let process = place.process.as_ref();
            let Some(from) = process.and_then(|p| p.holdings.envelope()) else {
                return Some(format!("{} has no session", place.name));
            };
            real.insert((place.name.clone(), from.incarnation));
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
        let able = self.places.iter().filter(|p| !p.dead).filter(|p| {
            p.profile.drivers.contains(&needs.driver) && needs.host.as_ref().is_none_or(|h| *h == p.profile.host)
        });
        able.map(|p| p.name.clone()).collect()
    }

    fn entry_unsettled(&self, machine: &Machine, entry: &Entry) -> Option<String> {
        let id = entry.id;
        let (may_be, is) = self.journals.get(&id).map_or((false, false), |j| (j.may_be_bound, j.is_bound));
        if (entry.needs.host.is_some() && !may_be) || (entry.needs.host.is_none() && is) {
            return Some(format!("{id} is kept on {:?}; was it taken anywhere: {is}", entry.needs.host));
        }
        let able = self.eligible(&entry.needs);
        let mut eligible = able.clone();
        if machine.config().planner.strategy == Strategy::Ring {
            let owner = machine.planner().ring().owner(&id.to_string()).cloned();
            eligible.retain(|w| Some(w) == owner.as_ref());
        }
        let record = &self.store.records[&id];
        if eligible.is_empty() {
            let idle = entry.state.wants_owner() && entry.unplaced.is_some();
            // What the ring cannot place stays where it is while its owner lives.
            let stays = matches!(&entry.state, State::Owned(g) if able.contains(&g.worker)) && !record.deleting;
            return (!idle && !stays).then(|| format!("{id}, which nobody can take, is {}", entry.state.name()));
        }
        if record.deleting {
            return Some(format!("{id} is still being removed: {:?}", entry.state));
        }
        let State::Owned(g) = &entry.state else {
            return Some(format!("{id} is {:?}, {eligible:?} could take it", entry.state));
        };
        if !eligible.contains(&g.worker) {
            return Some(format!("{id} is with {}, eligible are {eligible:?}", g.worker));
        }
        if self.store.grants.get(&id).and_then(|s| s.granted.as_ref()) != Some(g) {
            return Some(format!("{id} is held under {}, but not in the store", g.token));
        }
        if record.generation != entry.generation {
            return Some(format!("{id} is at {}, the store at {}", entry.generation, record.generation));
        }
        let place = self.places.iter().find(|p| p.name == g.worker)?;
        let acts = place.passes(self.now, id, g.token, None);
        let knows = place.process.as_ref().and_then(|p| p.generation(id));
        if !acts || knows != Some(entry.generation) {
            return Some(format!("{} holds {id} at {knows:?}, may act: {acts}", g.worker));
        }
        None
    }

    fn worker_unsettled(&self, n: usize, table: &BTreeMap<ApplianceId, &Entry>) -> Option<String> {
        let place = &self.places[n];
        let process = place.process.as_ref()?;
        for (id, held) in process.holdings.iter() {
            let holder = table.get(&id).and_then(|e| e.state.holder());
            if holder.is_none_or(|g| g.token != held.token || g.worker != place.name) {
                return Some(format!("{} holds {id} under {} against the table", place.name, held.token));
            }
        }
        let unsaid = process.holdings.clone().hello();
        if !unsaid.released.is_empty() || !unsaid.gone.is_empty() {
            return Some(format!("{} still repeats {:?} {:?}", place.name, unsaid.released, unsaid.gone));
        }
        process.is_busy().then(|| format!("{} is busy", place.name))
    }

    /// Every eligible worker holds its share, give or take the band.
    fn band_unsettled(&self, machine: &Machine, table: &BTreeMap<ApplianceId, &Entry>) -> Option<String> {
        let config = &machine.config().planner;
        if config.strategy == Strategy::Ring {
            return None;
        }
        let mut classes: BTreeMap<BTreeSet<WorkerId>, Vec<&Entry>> = BTreeMap::new();
        for entry in table.values() {
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
