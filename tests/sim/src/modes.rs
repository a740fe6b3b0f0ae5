//! Debug modes: operators that set and clear rules of all scopes at any time, what they are answered, and what must hold
//! from then on (I6).
//!
//! A call starts when the gate lets it pass. What is answered is looked at after each step of the newest leader: a former
//! one answers nobody any more (the lease on its leadership sees to that in the product). What ends a rule, or has an
//! appliance covered no longer, ends what was answered about it with the commit that makes it durable.

use std::time::Duration;

use common::mode::{ModeRule, ModeScope};
use common::mutant::{self, Mutant};
use common::session::GrantRef;
use common::{ApplianceId, Mode, ModeId, ModeSubject, Token};
use coordinator_core::machine::{Event, HandsOff};
use coordinator_core::modes::StoredMode;
use worker_core::gate;

use super::database::ApplianceRow;
use super::rng::Rng;
use super::worker::WorkerTimer;
use super::world::SimWorld;

/// Whether rules that are in force when the faults are over stay so.
pub(super) const fn are_left_at_end(seed: u64) -> bool {
    seed.is_multiple_of(4)
}

/// Tenant and labels of an appliance, of a few there are.
pub(super) fn any_subject(rng: &mut Rng) -> ModeSubject {
    let tenant = common::appliance::Name::new(["t1", "t2"][rng.index(2)]).expect("letters and digits");
    ModeSubject { tenant, labels: [("color".to_owned(), ["red", "blue"][rng.index(2)].to_owned())].into() }
}

impl SimWorld {
    /// The time of the wall, which is the same everywhere here.
    fn wall_ms(&self) -> u64 {
        self.now / 1_000_000
    }

    /// A rule as whoever begins a term reads it.
    pub(super) fn read_rule(&self, rule: &ModeRule) -> StoredMode {
        let left = rule.expires_unix_ms.map(|at| Duration::from_millis(at.saturating_sub(self.wall_ms())));
        StoredMode { rule: rule.clone(), expires_in: left }
    }

    /// An operator sets a rule at a leader.
    pub(super) fn set_mode(&mut self, coordinator: usize, who: u32) {
        let Some(leader) = self.coordinators[coordinator].leader() else { return };
        let known: Vec<ApplianceId> = leader.catalog.keys().copied().collect();
        let pick = (who >> 4) as usize;
        let scope = match who % 8 {
            0 | 1 => ModeScope::Global,
            2 => ModeScope::Tenant(any_subject(&mut self.rng).tenant),
            3 | 4 => ModeScope::Worker(self.places[pick % self.places.len()].name.clone()),
            5 => {
                let color = any_subject(&mut self.rng).labels["color"].clone();
                let is = if self.rng.chance(70) { "=" } else { "!=" };
                ModeScope::Labels(format!("color{is}{color}").parse().expect("a selector"))
            }
            _ if known.is_empty() => ModeScope::Global,
            _ => ModeScope::Appliance(known[pick % known.len()]),
        };
        self.rules_set += 1;
        let since_unix_ms = self.wall_ms();
        let lasts = self.rng.chance(40).then(|| self.rng.duration(100, 6_000));
        let expires_unix_ms = lasts.map(|lasts| since_unix_ms + lasts.as_millis() as u64);
        let (reason, by) = (String::new(), String::new());
        let rule = ModeRule { id: ModeId::new(self.rules_set), scope, reason, by, since_unix_ms, expires_unix_ms };
        self.note(|| format!("c{coordinator}: {rule:?}"));
        let mode = self.read_rule(&rule);
        self.leader_step(coordinator, Event::SetMode(mode.clone(), 0));
        if self.rng.chance(20) {
            // A caller that was not answered asks again.
            self.leader_step(coordinator, Event::SetMode(mode, 0));
        }
    }

    /// An operator clears one of the rules that the store has.
    pub(super) fn clear_mode(&mut self, coordinator: usize, who: u32) {
        let rules: Vec<ModeId> = self.database.rows.modes.keys().copied().collect();
        if let Some(id) = rules.get((who >> 4) as usize % rules.len().max(1)) {
            self.leader_step(coordinator, Event::ClearMode(*id, 0));
        }
    }

    /// When all is over operators clear what is left, in most worlds.
    pub(super) fn clear_modes_at_end(&mut self, coordinator: usize) {
        if !are_left_at_end(self.seed) {
            let rules: Vec<ModeId> = self.database.rows.modes.keys().copied().collect();
            for id in rules {
                self.leader_step(coordinator, Event::ClearMode(id, 0));
            }
        }
    }

    /// Whether a rule covers an appliance, as the store has both.
    fn covers(&self, rule: &ModeRule, row: &ApplianceRow, owner: Option<&common::WorkerId>) -> bool {
        rule.scope.covers(row.id, &row.subject, owner)
    }

    /// Whether any rule that the store has covers an appliance which this worker owns.
    pub(super) fn is_covered(&self, row: &ApplianceRow, owner: &common::WorkerId) -> bool {
        self.database.rows.modes.values().any(|rule| self.covers(rule, row, Some(owner)))
    }

    /// Notes for what whoever set a rule is answered by now.
    pub(super) fn look_for_answers(&mut self, coordinator: usize) {
        let local = self.coordinators[coordinator].clock.local(self.now);
        let Some(leader) = self.coordinators[coordinator].leader() else { return };
        let (machine, rows) = (&leader.machine, &self.database.rows);
        if rows.modes.is_empty() || machine.term() != rows.place.0 {
            return;
        }
        let mut answered = Vec::new();
        let is_off = |id| matches!(machine.hands_off(local, id), Some(HandsOff::Off(_)));
        for (_, row) in machine.table().iter().filter(|(_, row)| row.mode.hands_off && is_off(row.id)) {
            let Some(stored) = rows.records.get(&row.id) else { continue };
            let (here, granted) = (row.state.granted_to(), rows.grants.get(&row.id));
            let owner = granted.and_then(|grant| grant.granted.as_ref()).map(|granted| &granted.worker);
            for rule in machine.mode_rules().filter(|rule| rows.modes.contains_key(&rule.id)) {
                let is_covered = rule.scope.covers(row.id, &row.subject, here.as_ref().map(|life| &life.worker));
                if is_covered && self.covers(rule, stored, owner) {
                    answered.push((rule.id, row.id));
                }
            }
        }
        for of in answered {
            if self.answered.insert(of) {
                self.note(|| format!("c{coordinator}: rule {} is answered for {}", of.0.get(), of.1));
            }
        }
    }

    /// I6: a call has passed the gate.
    pub(super) fn check_hands_off(&mut self, place: usize, id: ApplianceId, token: Token) {
        let rows = &self.database.rows;
        let Some(stored) = rows.records.get(&id) else { return };
        let granted = rows.grants.get(&id).and_then(|grant| grant.granted.as_ref());
        if self.database.restored && granted.is_none_or(|granted| granted.token != token) {
            // Owners that the copy knows nothing of.
            return;
        }
        let name = &self.places[place].name;
        let broken = |rule: &&ModeRule| self.answered.contains(&(rule.id, id)) && self.covers(rule, stored, Some(name));
        if let Some(rule) = rows.modes.values().find(broken) {
            let text = format!("I6: w{} starts a call on {id} under {token} with rule {:?} answered", place + 1, rule);
            self.fail(text);
        }
    }

    /// What was answered stands as long as the store has the rule, and covers the appliance without a break.
    pub(super) fn forget_answers(&mut self) {
        let rows = &self.database.rows;
        let stands = |(rule, id): &(ModeId, ApplianceId)| {
            let (Some(rule), Some(row)) = (rows.modes.get(rule), rows.records.get(id)) else { return false };
            let owner = rows.grants.get(id).and_then(|grant| grant.granted.as_ref()).map(|granted| &granted.worker);
            rule.scope.covers(row.id, &row.subject, owner)
        };
        self.answered.retain(stands);
    }

    /// A worker is told a mode of a grant.
    pub(super) fn obey(&mut self, place: usize, grant: GrantRef, mode: Mode) {
        if !self.places[place].knows_modes {
            return;
        }
        let GrantRef { appliance: id, token } = grant;
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place) else { return };
        let early = mutant::is(Mutant::ModeAcknowledgedEarly) && mode.hands_off;
        if early {
            process.conversation.quiet(grant, mode.edition, Duration::ZERO);
        } else {
            process.gate.set_hands_off(now, id, token, mode.hands_off);
        }
        let Some(task) = process.tasks.get_mut(&id).filter(|task| task.token == token) else { return };
        task.mode = mode;
        task.owes_quiet = mode.hands_off;
        let delay = if early { self.rng.millis(10, 1_500) } else { self.rng.micros(1, 20_000) };
        self.timer(place, delay, WorkerTimer::FallsQuiet(id, token));
    }

    /// Says that hands are off one appliance, if they are, nothing runs, and it was not said.
    pub(super) fn fall_quiet(&mut self, place: usize, id: ApplianceId, token: Token) {
        let now = self.places[place].clock.local(self.now);
        let Some(process) = self.process(place) else { return };
        let Some(task) = process.tasks.get_mut(&id).filter(|task| task.token == token && task.is_quiet()) else {
            return;
        };
        task.owes_quiet = false;
        let (edition, fence_delay) = (task.mode.edition, gate::fence_delay_left(now, task.fence_delay_until()));
        if mutant::is(Mutant::ModeAcknowledgedEarly) {
            return process.gate.set_hands_off(now, id, token, true);
        }
        process.conversation.quiet(GrantRef::new(id, token), edition, fence_delay);
    }

    /// What the newest words about modes come to at an owner, for a world at rest.
    pub(super) fn mode_unsettled(
        &self,
        place: usize,
        row: &ApplianceRow,
        token: Token,
        seen: Option<HandsOff>,
    ) -> Option<String> {
        let host = &self.places[place];
        let process = host.process.as_ref()?;
        let passed = process.gate.pass(host.clock.local(self.now), row.id, token);
        let covered = self.is_covered(row, &host.name);
        let right = match (covered, host.knows_modes) {
            (false, _) => passed.is_ok() && seen == Some(HandsOff::On),
            (true, true) => passed == Err(gate::Shut::HandsOff) && matches!(seen, Some(HandsOff::Off(_))),
            (true, false) => {
                let wait = coordinator_core::machine::ModeWait::Version(host.name.clone());
                seen == Some(HandsOff::Waits(wait))
            }
        };
        let id = row.id;
        (!right).then(|| format!("{id} is covered: {covered}, its gate says {passed:?}, the leader {seen:?}"))
    }
}
