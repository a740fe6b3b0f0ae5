//! Debug modes: what callers ask about them, and callers that wait until one has taken hold.
//!
//! The machine decides what a rule covers and how far it has taken hold (docs/protocol.md, Hands off); nothing of that is
//! remembered here. A caller that waits is answered by what the table says at that moment, so that the same call to the next
//! leader is answered alike. A leader that is deposed meanwhile and does not know it yet may still say that a mode holds: that
//! is true, since the rule was durable before any later term began, and the next leader holds everything it covers to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::mode::{ModeRule, ModeScope};
use common::{ApplianceId, ModeId};
use coordinator_core::machine::{Commit, Event, ModeNumber, ModeOutcome, ModeProgress};
use coordinator_core::modes::{MAX_RULES, ModeOp, StoredMode};
use runtime::clock;
use tokio::time::Instant;
use tracing::info;

use super::Leader;
use super::commands::audit_event;
use crate::commands::{CommandError, NewMode, Operator, Reply};
use crate::record::AuditEvent;
use crate::views::{ModeList, ModeView};

/// Least time between two looks whether what callers wait for has come: a look goes through the whole table.
const LOOK: Duration = Duration::from_millis(20);

/// Appliances of each kind that an answer names.
const NAMED: usize = 100;

/// Rules times appliances up to which a list says how many appliances each rule covers.
const COUNTED: usize = 2_000_000;

/// Rules that an explanation names.
const EXPLAINED: usize = 20;

/// Callers about debug modes.
#[derive(Debug, Default)]
pub(super) struct ModeCallers {
    last: ModeNumber,
    /// Those whose request is being stored.
    storing: HashMap<ModeNumber, Storing>,
    /// Those whose rule is stored, until it has taken hold.
    holding: Vec<Holding>,
    /// Something has changed that they may wait for: when to look.
    look_at: Option<Instant>,
    looked: Option<Instant>,
    /// One has come that is looked for at once.
    is_new: bool,
}

#[derive(Debug)]
enum Storing {
    Set { id: ModeId, until: Instant, reply: Reply<ModeView> },
    Clear { id: ModeId, request: Operator, reply: Reply<()> },
}

#[derive(Debug)]
struct Holding {
    id: ModeId,
    until: Instant,
    reply: Reply<ModeView>,
}

impl ModeCallers {
    fn add(&mut self, storing: Storing) -> ModeNumber {
        self.last += 1;
        self.storing.insert(self.last, storing);
        self.last
    }

    /// Notes that the table or the rules have changed.
    pub(super) fn changed(&mut self) {
        if !self.holding.is_empty() && self.look_at.is_none() {
            let now = Instant::now();
            self.look_at = Some(self.looked.map_or(now, |looked| now.max(looked + LOOK)));
        }
    }

    /// When to look next whether somebody can be answered; `None` while nobody waits.
    pub(super) fn next_look(&self) -> Option<Instant> {
        let until = self.holding.iter().map(|holding| holding.until).min()?;
        let at = self.look_at.map_or(until, |look| look.min(until));
        // Never at once again: nothing may have come of the last look.
        Some(self.looked.filter(|_| !self.is_new).map_or(at, |looked| at.max(looked + LOOK)))
    }

    /// Answers every caller with `error`.
    pub(super) fn fail_all(&mut self, error: &CommandError) {
        for (_, storing) in self.storing.drain() {
            match storing {
                Storing::Set { reply, .. } => drop(reply.send(Err(error.clone()))),
                Storing::Clear { reply, .. } => drop(reply.send(Err(error.clone()))),
            }
        }
        for Holding { reply, .. } in self.holding.drain(..) {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

impl Leader<'_> {
    /// Sets a rule. Answered once it has taken hold.
    pub(super) fn set_mode(&mut self, mode: NewMode, request: Operator, until: Instant, reply: Reply<ModeView>) {
        if reply.is_closed() {
            // The caller's deadline has passed, as for changes.
            return;
        }
        let NewMode { id, scope, expires_in } = mode;
        let Operator { reason, actor: by } = request;
        let since_unix_ms = unix_ms(SystemTime::now());
        let expires_unix_ms = expires_in.map(|left| since_unix_ms.saturating_add(millis(left)));
        let rule = ModeRule { id, scope, reason, by, since_unix_ms, expires_unix_ms };
        let number = self.modes.add(Storing::Set { id, until, reply });
        self.step(Event::SetMode(StoredMode { rule, expires_in }, number));
    }

    /// Clears a rule. Answered once that is stored.
    pub(super) fn clear_mode(&mut self, id: ModeId, request: Operator, reply: Reply<()>) {
        if reply.is_closed() {
            return;
        }
        let number = self.modes.add(Storing::Clear { id, request, reply });
        self.step(Event::ClearMode(id, number));
    }

    /// The machine has answered a request about a rule.
    pub(super) fn mode_outcome(&mut self, number: ModeNumber, outcome: ModeOutcome) {
        let Some(caller) = self.modes.storing.remove(&number) else { return };
        let error = |id| match outcome {
            ModeOutcome::InForce | ModeOutcome::Cleared | ModeOutcome::Unknown => CommandError::NoMode(id),
            ModeOutcome::OtherRule => CommandError::ModeIdTaken(id),
            ModeOutcome::TooMany => CommandError::ModesFull(MAX_RULES),
            ModeOutcome::BeingStored => CommandError::Contended,
            ModeOutcome::NotStored => CommandError::Unavailable("the debug mode was not stored".to_owned()),
        };
        match (caller, &outcome) {
            (Storing::Set { id, until, reply }, ModeOutcome::InForce) => {
                self.modes.holding.push(Holding { id, until, reply });
                // This one is looked for at once.
                (self.modes.look_at, self.modes.is_new) = (Some(Instant::now()), true);
            }
            (Storing::Set { id, reply, .. }, _) => drop(reply.send(Err(error(id)))),
            (Storing::Clear { id, reply, .. }, ModeOutcome::Cleared) => {
                info!(mode = %id, "debug mode cleared");
                let _ = reply.send(Ok(()));
            }
            (Storing::Clear { id, reply, .. }, _) => drop(reply.send(Err(error(id)))),
        }
        if !matches!(outcome, ModeOutcome::BeingStored) {
            self.admission.settle();
        }
    }

    /// Lines of the audit trail that are to be stored together with this commit.
    pub(super) fn mode_events(&self, commit: &Commit) -> Vec<AuditEvent> {
        commit.modes.iter().filter_map(|op| self.mode_event(op)).collect()
    }

    fn mode_event(&self, op: &ModeOp) -> Option<AuditEvent> {
        if let ModeOp::Set(rule) = op {
            let request = Operator { reason: described(rule), actor: rule.by.clone() };
            return Some(audit_event("debug-set", &subject(&rule.scope), &request));
        }
        let rule = self.machine.mode_rules().find(|rule| rule.id == op.id())?;
        let caller = self.modes.storing.values().find_map(|storing| match storing {
            Storing::Clear { id, request, .. } if *id == op.id() => Some(request),
            _ => None,
        });
        let (action, actor, reason) = match caller {
            Some(request) => ("debug-clear", request.actor.as_str(), request.reason.as_str()),
            None => ("debug-expire", "rug", ""),
        };
        let reason = if reason.is_empty() { rule.id.to_string() } else { format!("{}: {reason}", rule.id) };
        Some(audit_event(action, &subject(&rule.scope), &Operator { reason, actor: actor.to_owned() }))
    }

    /// Answers callers whose rule has taken hold everywhere, and those who waited long enough.
    pub(super) fn answer_modes(&mut self) {
        let now = Instant::now();
        if self.modes.next_look().is_none_or(|at| at > now) || self.end.is_some() {
            return;
        }
        self.modes.is_new = false;
        if !self.writes.leads(self.machine.term()) {
            (self.modes.look_at, self.modes.looked) = (Some(now + LOOK), Some(now));
            return;
        }
        self.modes.look_at = None;
        // Who has given up is not looked for.
        self.modes.holding.retain(|holding| !holding.reply.is_closed());
        let holding = std::mem::take(&mut self.modes.holding);
        // A look goes through the whole table: one for all who wait for the same rule.
        let ids: BTreeSet<ModeId> = holding.iter().map(|holding| holding.id).collect();
        let views: BTreeMap<ModeId, _> = ids.into_iter().map(|id| (id, self.mode_view(id))).collect();
        for holding in holding {
            match views.get(&holding.id).cloned().unwrap_or(Err(CommandError::NoMode(holding.id))) {
                Ok(view) if view.waiting_count > 0 && holding.until > now => self.modes.holding.push(holding),
                answer => drop(holding.reply.send(answer)),
            }
        }
        self.modes.looked = Some(Instant::now());
    }

    /// How far a rule has taken hold.
    pub(super) fn mode_view(&self, id: ModeId) -> Result<ModeView, CommandError> {
        let rule = self.machine.mode_rules().find(|rule| rule.id == id).ok_or(CommandError::NoMode(id))?;
        let progress = self.machine.mode_progress(clock::now(), id).ok_or(CommandError::NoMode(id))?;
        Ok(view(rule, Some(progress), NAMED))
    }

    /// A part of the rules. How far each is is told unless that takes too long.
    pub(super) fn mode_list(&self, after: Option<ModeId>, most: usize) -> ModeList {
        let total = self.machine.mode_rules().count();
        let counted = most.min(total).saturating_mul(self.machine.table().len()) <= COUNTED;
        let mut rest = self.machine.mode_rules().filter(|rule| after.is_none_or(|after| rule.id > after));
        let progress = |id| counted.then(|| self.machine.mode_progress(clock::now(), id)).flatten();
        let modes = rest.by_ref().take(most).map(|rule| view(rule, progress(rule.id), 0)).collect();
        ModeList { modes, more: rest.next().is_some(), total: total as u64 }
    }

    /// The rules that cover an appliance.
    pub(super) fn modes_of(&self, appliance: ApplianceId) -> Vec<ModeRule> {
        let table = self.machine.table();
        let Some(row) = table.slot(appliance).and_then(|slot| table.get(slot)) else { return Vec::new() };
        let owner = row.state.granted_to().map(|life| life.worker);
        let covers = |rule: &&ModeRule| rule.scope.covers(appliance, &row.subject, owner.as_ref());
        self.machine.mode_rules().filter(covers).take(EXPLAINED).cloned().collect()
    }
}

/// A rule as a store has it, by the clock of this machine.
pub(super) fn stored_mode(rule: ModeRule, now: SystemTime) -> StoredMode {
    let left = rule.expires_unix_ms.map(|at| Duration::from_millis(at.saturating_sub(unix_ms(now))));
    StoredMode { rule, expires_in: left }
}

fn view(rule: &ModeRule, progress: Option<ModeProgress>, named: usize) -> ModeView {
    let covered = progress.as_ref().map(|progress| progress.covered as u64);
    let ModeProgress { covered: _, late, waiting } = progress.unwrap_or_default();
    ModeView {
        rule: rule.clone(),
        covered,
        waiting_count: waiting.len() as u64,
        waiting: waiting.into_iter().take(named).map(|(id, why)| (id, why.to_string())).collect(),
        late_count: late.len() as u64,
        late: late.into_iter().take(named).collect(),
    }
}

/// What events of the audit trail about a rule are found by.
fn subject(scope: &ModeScope) -> String {
    match scope {
        ModeScope::Global => "everything".to_owned(),
        ModeScope::Tenant(tenant) => tenant.to_string(),
        ModeScope::Worker(worker) => worker.to_string(),
        ModeScope::Appliance(id) => id.to_string(),
        ModeScope::Labels(selector) => selector.to_string(),
    }
}

fn described(ModeRule { id, scope, reason, since_unix_ms, expires_unix_ms, .. }: &ModeRule) -> String {
    let lasts = expires_unix_ms.map(|at| Duration::from_millis(at.saturating_sub(*since_unix_ms)));
    let lasts = lasts.map(|lasts| format!(" for {lasts:?}")).unwrap_or_default();
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("{id} on {scope}{lasts}{reason}")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
