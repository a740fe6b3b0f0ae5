//! Changes of stored appliances: checked against what is stored and what is being written, reserved, then committed.
//!
//! The leader calls [`Catalog::prepare`], makes [`Write::record`] and [`Write::request`] durable in one transaction
//! with [`Write::audit`], and calls [`Write::commit`]; or drops the [`Write`] when the store refused. A change that
//! meets another one of the same appliance, name or request id in flight is [`CommandError::Contended`].

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use common::appliance::{FieldViolation, MAX_SPEC, MAX_VIOLATIONS, Spec};
use common::change::{ApplianceDraft, ApplianceTarget, ApplianceUpdate};
use common::{ApplianceId, Generation, Site, Term};

use super::{Catalog, Reservation, State, ports};
use crate::commands::{Change, ChangeOutcome, Changed, CommandError, Mutation};
use crate::record::{AuditEvent, Record, RequestRecord};
use crate::views::{ApplianceKey, AssignmentView, CatalogEntry};

/// What is to be done about a change that was found to be in order.
#[derive(Debug)]
pub enum Prepared {
    /// Nothing: it was so already, is a repeat, or was only to be checked. Answer with this.
    Done(Changed),
    /// Make it durable, then commit it.
    Write(Write),
}

/// A change in flight. It holds its name, its ports and its request id until it is committed or dropped.
#[derive(Debug)]
pub struct Write {
    catalog: Arc<Catalog>,
    epoch: u64,
    record: Arc<Record>,
    previous: Option<Arc<Record>>,
    outcome: ChangeOutcome,
    request: Option<RequestRecord>,
    audit: AuditEvent,
    settled: bool,
}

/// What a change comes to, before anything is reserved.
struct Draw {
    record: Record,
    previous: Option<Arc<Record>>,
    outcome: ChangeOutcome,
}

enum Found {
    Draw(Box<Draw>),
    Done(Changed),
}

impl Catalog {
    /// Checks `mutation` at `now` and reserves what it takes.
    ///
    /// # Errors
    /// Why it cannot be carried out; nothing is reserved then.
    pub fn prepare(self: &Arc<Self>, mutation: &Mutation, now: SystemTime) -> Result<Prepared, CommandError> {
        let mut state = self.write();
        if let Some(changed) = repeated(&state, mutation, now)? {
            return Ok(Prepared::Done(changed));
        }
        let draw = match state.draw(mutation, now, self.config.max_appliances)? {
            Found::Done(changed) => return Ok(Prepared::Done(changed)),
            Found::Draw(draw) => *draw,
        };
        let id = draw.record.id;
        if mutation.validate_only || (draw.outcome == ChangeOutcome::Unchanged && mutation.request.is_none()) {
            let known = state.entries.get(&id);
            let (status, assignment) =
                known.map_or((None, AssignmentView::default()), |e| (e.status.clone(), e.assignment.clone()));
            let entry = CatalogEntry { record: Arc::new(draw.record), status, assignment };
            return Ok(Prepared::Done(Changed { entry: Some(Arc::new(entry)), outcome: draw.outcome }));
        }
        state.reserve(&draw);
        if let Some(request) = mutation.request {
            state.requests.begin(request.id);
        }
        Ok(Prepared::Write(Write {
            catalog: Arc::clone(self),
            epoch: state.epoch,
            request: mutation.request.map(|r| RequestRecord { id: r.id, digest: r.digest, appliance: id, time: now }),
            audit: AuditEvent {
                time: now,
                actor: mutation.actor.clone(),
                action: mutation.change.action().to_owned(),
                subject: id.to_string(),
                detail: format!("{}/{} {}", draw.record.tenant, draw.record.name, draw.record.generation),
            },
            record: Arc::new(draw.record),
            previous: draw.previous,
            outcome: draw.outcome,
            settled: false,
        }))
    }
}

/// The answer to a call that was carried out before.
fn repeated(state: &State, mutation: &Mutation, now: SystemTime) -> Result<Option<Changed>, CommandError> {
    let Some(request) = mutation.request else { return Ok(None) };
    if state.requests.is_writing(request.id) {
        return Err(CommandError::Contended);
    }
    let Some(known) = state.requests.get(request.id, now) else { return Ok(None) };
    if known.digest != request.digest {
        return Err(CommandError::RequestReused(request.id));
    }
    let entry = state.entries.get(&known.appliance).cloned();
    let deletes = matches!(mutation.change, Change::Delete { .. });
    let outcome = match (known.outcome, &entry) {
        (_, None) if !deletes => return Err(CommandError::RequestedGone(known.appliance)),
        (Some(outcome), _) => outcome,
        (None, Some(entry)) if entry.record.generation == Generation::new(1) => ChangeOutcome::Created,
        (None, _) => ChangeOutcome::Changed,
    };
    Ok(Some(Changed { entry, outcome }))
}

impl State {
    fn draw(&self, mutation: &Mutation, now: SystemTime, most: usize) -> Result<Found, CommandError> {
        let found = |draw: Draw| Found::Draw(Box::new(draw));
        match &mutation.change {
            Change::Create { fresh, draft } => self.create(*fresh, draft, now, most).map(found),
            Change::Update { fresh, update } => match self.current(&update.target)? {
                Some(entry) => self.update(entry, update, now).map(found),
                None => match &update.create {
                    Some(draft) => self.create(*fresh, draft, now, most).map(found),
                    None => Err(CommandError::NotFound(update.target.clone())),
                },
            },
            Change::Delete { target, expected, allow_missing } => match self.current(target)? {
                None if *allow_missing => Ok(Found::Done(Changed { entry: None, outcome: ChangeOutcome::Unchanged })),
                None => Err(CommandError::NotFound(target.clone())),
                Some(entry) => {
                    expect(entry, *expected)?;
                    let mut draw = Draw::unchanged(entry);
                    if !entry.record.deleting {
                        draw.record.deleting = true;
                        draw.raise(now, self.term);
                    }
                    Ok(found(draw))
                }
            },
            Change::Rebuild { target, image } => {
                let entry = self.current(target)?.ok_or_else(|| CommandError::NotFound(target.clone()))?;
                if entry.record.deleting {
                    return Err(CommandError::Deleting(entry.record.id));
                }
                let mut draw = Draw::unchanged(entry);
                draw.record.revision += 1;
                if let Some(image) = image {
                    draw.record.spec.image = Some(image.clone());
                    let wrong = draw.record.spec.validate().into_iter().filter(|v| v.field == "spec.image");
                    let wrong: Vec<_> = wrong.map(|v| FieldViolation::new("image", v.description)).collect();
                    if !wrong.is_empty() {
                        return Err(CommandError::Invalid(wrong));
                    }
                }
                draw.raise(now, self.term);
                Ok(found(draw))
            }
        }
    }

    /// The appliance that is meant, unless a change of it is in flight.
    fn current(&self, target: &ApplianceTarget) -> Result<Option<&Arc<CatalogEntry>>, CommandError> {
        let contended = match target {
            ApplianceTarget::Id(id) => self.writing.contains_key(id),
            ApplianceTarget::Name(tenant, name) => {
                let key = (tenant.clone(), name.clone());
                self.reserved.contains_key(&key) || self.names.get(&key).is_some_and(|id| self.writing.contains_key(id))
            }
        };
        if contended { Err(CommandError::Contended) } else { Ok(self.find(target)) }
    }

    fn create(
        &self,
        fresh: ApplianceId,
        draft: &ApplianceDraft,
        now: SystemTime,
        most: usize,
    ) -> Result<Draw, CommandError> {
        let id = draft.id.unwrap_or(fresh);
        if self.writing.contains_key(&id) {
            return Err(CommandError::Contended);
        }
        if self.entries.contains_key(&id) {
            return Err(CommandError::IdTaken(id));
        }
        let key = (draft.tenant.clone(), draft.name.clone());
        self.check_name(&key, id)?;
        if self.entries.len() + self.writing.values().filter(|r| r.creates).count() >= most {
            return Err(CommandError::Full(most));
        }
        let record = Record {
            id,
            tenant: draft.tenant.clone(),
            name: draft.name.clone(),
            driver: draft.driver.clone(),
            placement_key: draft.placement_key.clone().unwrap_or_else(|| id.to_string()),
            labels: draft.labels.clone(),
            spec: draft.spec.clone(),
            generation: Generation::new(1),
            written: self.term,
            revision: 0,
            deleting: false,
            created: now,
            updated: now,
        };
        check_size(&record.spec)?;
        self.check_ports(&record)?;
        Ok(Draw { record, previous: None, outcome: ChangeOutcome::Created })
    }

    fn update(
        &self,
        entry: &Arc<CatalogEntry>,
        update: &ApplianceUpdate,
        now: SystemTime,
    ) -> Result<Draw, CommandError> {
        let current = &entry.record;
        expect(entry, update.expected)?;
        if current.deleting {
            return Err(CommandError::Deleting(current.id));
        }
        check_fixed(current, update)?;
        let mut draw = Draw::unchanged(entry);
        let record = &mut draw.record;
        record.spec = update.patch.apply(&current.spec).map_err(CommandError::Invalid)?;
        if let Some(labels) = &update.patch.labels {
            record.labels.clone_from(labels);
        }
        if let Some(name) = update.patch.name.as_ref().filter(|n| **n != current.name) {
            self.check_name(&(current.tenant.clone(), name.clone()), current.id)?;
            record.name = name.clone();
        }
        if *record == **current {
            return Ok(draw);
        }
        check_size(&record.spec)?;
        self.check_ports(record)?;
        // The owner knows the name (it replaces `{name}`), but not the labels.
        if record.spec != current.spec || record.name != current.name {
            draw.raise(now, self.term);
        } else {
            record.updated = now;
            draw.outcome = ChangeOutcome::Changed;
        }
        Ok(draw)
    }

    fn check_name(&self, key: &ApplianceKey, for_id: ApplianceId) -> Result<(), CommandError> {
        if self.reserved.get(key).is_some_and(|id| *id != for_id) {
            return Err(CommandError::Contended);
        }
        let Some(by) = self.names.get(key).filter(|id| **id != for_id) else { return Ok(()) };
        Err(CommandError::NameTaken {
            tenant: key.0.clone(),
            name: key.1.clone(),
            by: *by,
            deleting: self.entries.get(by).is_some_and(|e| e.record.deleting),
        })
    }

    /// Refuses ports that another appliance has. Appliances are taken to share a host unless both are bound to
    /// different ones.
    fn check_ports(&self, record: &Record) -> Result<(), CommandError> {
        let host = |id| self.entries.get(id).and_then(|e| e.assignment.site.as_ref()).map(Site::host);
        let ours = host(&record.id);
        let mut wrong: Vec<FieldViolation> = Vec::new();
        for (port, field) in ports::claimed(record) {
            for other in self.ports.claims(port).iter().filter(|id| **id != record.id) {
                let holder = self.entries.get(other);
                if host(other).zip(ours).is_some_and(|(theirs, ours)| theirs != ours) {
                    continue;
                }
                // Whoever claims it may still be being written and fail; then this one is fine.
                let Some(holder) = holder else { return Err(CommandError::Contended) };
                let going = if holder.record.deleting { ", which is being deleted" } else { "" };
                let (tenant, name) = (&holder.record.tenant, &holder.record.name);
                wrong.push(FieldViolation::new(
                    format!("appliance.{field}"),
                    format!("port {port} is claimed by appliance {tenant}/{name} ({other}){going}"),
                ));
            }
            if wrong.len() >= MAX_VIOLATIONS {
                break;
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(CommandError::Invalid(wrong)) }
    }

    fn reserve(&mut self, draw: &Draw) {
        let id = draw.record.id;
        let key = (draw.record.tenant.clone(), draw.record.name.clone());
        let mut reservation = Reservation { creates: draw.previous.is_none(), ..Reservation::default() };
        if self.names.get(&key) != Some(&id) {
            self.reserved.insert(key.clone(), id);
            reservation.key = Some(key);
        }
        for (port, _) in ports::claimed(&draw.record) {
            if !self.ports.claims(port).contains(&id) {
                self.ports.claim(port, id);
                reservation.ports.push(port);
            }
        }
        self.writing.insert(id, reservation);
    }
}

impl Draw {
    fn unchanged(entry: &Arc<CatalogEntry>) -> Self {
        Self {
            record: Record::clone(&entry.record),
            previous: Some(Arc::clone(&entry.record)),
            outcome: ChangeOutcome::Unchanged,
        }
    }

    fn raise(&mut self, now: SystemTime, term: Term) {
        self.record.generation = self.record.generation.next();
        self.record.written = term;
        self.record.updated = now;
        self.outcome = ChangeOutcome::Changed;
    }
}

fn expect(entry: &CatalogEntry, expected: Option<Generation>) -> Result<(), CommandError> {
    match expected {
        Some(expected) if expected != entry.record.generation => {
            Err(CommandError::Stale { appliance: entry.record.id, expected, current: entry.record.generation })
        }
        _ => Ok(()),
    }
}

fn check_fixed(current: &Record, update: &ApplianceUpdate) -> Result<(), CommandError> {
    let fixed = &update.patch.fixed;
    let differs = [
        ("appliance.tenant", fixed.tenant.as_ref().is_some_and(|t| *t != current.tenant), current.tenant.as_str()),
        ("appliance.driver", fixed.driver.as_ref().is_some_and(|d| *d != current.driver), current.driver.as_str()),
        (
            "appliance.placement_key",
            fixed.placement_key.as_ref().is_some_and(|k| *k != current.placement_key),
            &current.placement_key,
        ),
    ];
    let wrong: Vec<_> = differs
        .into_iter()
        .filter(|(_, differs, _)| *differs)
        .map(|(field, _, is)| FieldViolation::new(field, format!("is `{is}` and cannot change")))
        .collect();
    if wrong.is_empty() { Ok(()) } else { Err(CommandError::Invalid(wrong)) }
}

/// Refuses a specification whose stored form is too large.
fn check_size(spec: &Spec) -> Result<(), CommandError> {
    struct Size(usize);
    impl io::Write for Size {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut size = Size(0);
    let problem = match serde_json::to_writer(&mut size, spec) {
        Ok(()) if size.0 <= MAX_SPEC => return Ok(()),
        Ok(()) => format!("takes {} bytes when stored, at most {MAX_SPEC} are allowed", size.0),
        Err(e) => format!("cannot be stored: {e}"),
    };
    Err(CommandError::Invalid(vec![FieldViolation::new("appliance.spec", problem)]))
}

impl Write {
    /// The appliance as it shall be stored; `None` when only the request is to be remembered.
    #[must_use]
    pub fn record(&self) -> Option<&Arc<Record>> {
        (self.outcome != ChangeOutcome::Unchanged).then_some(&self.record)
    }

    /// What it was before; `None` for a new one.
    #[must_use]
    pub const fn previous(&self) -> Option<&Arc<Record>> {
        self.previous.as_ref()
    }

    /// What the change does.
    #[must_use]
    pub const fn outcome(&self) -> ChangeOutcome {
        self.outcome
    }

    /// The request to be remembered with it.
    #[must_use]
    pub const fn request(&self) -> Option<&RequestRecord> {
        self.request.as_ref()
    }

    /// Its line of the audit trail.
    #[must_use]
    pub const fn audit(&self) -> &AuditEvent {
        &self.audit
    }

    /// Shows the change to everybody. The store has it.
    pub fn commit(mut self) -> Changed {
        let catalog = Arc::clone(&self.catalog);
        let mut state = catalog.write();
        self.settled = true;
        let entry = if state.epoch == self.epoch {
            state.settle(&self, true)
        } else {
            // Another term read the store since; what was written is part of what it read.
            state.entries.get(&self.record.id).cloned()
        };
        drop(state);
        catalog.settled.notify_waiters();
        Changed { entry, outcome: self.outcome }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut state = self.catalog.write();
        if state.epoch == self.epoch {
            state.settle(self, false);
        }
        drop(state);
        self.catalog.settled.notify_waiters();
    }
}

impl State {
    /// Ends a reservation: what it took becomes the appliance's own, or is free again.
    fn settle(&mut self, write: &Write, committed: bool) -> Option<Arc<CatalogEntry>> {
        let id = write.record.id;
        let reservation = self.writing.remove(&id).unwrap_or_default();
        if let Some(key) = &reservation.key {
            self.reserved.remove(key);
        }
        if let Some(request) = &write.request {
            self.requests.end(request.id);
            if committed {
                self.requests.remember(request, Some(write.outcome));
            }
        }
        if !committed {
            reservation.ports.iter().for_each(|port| self.ports.release(*port, id));
            return None;
        }
        if write.outcome == ChangeOutcome::Unchanged {
            return self.entries.get(&id).cloned();
        }
        if let Some(previous) = &write.previous {
            if previous.name != write.record.name {
                self.names.remove(&(previous.tenant.clone(), previous.name.clone()));
            }
            let kept = ports::claimed(&write.record);
            for (port, _) in ports::claimed(previous) {
                if !kept.iter().any(|(p, _)| *p == port) {
                    self.ports.release(port, id);
                }
            }
        }
        // Status and assignment may have changed since the change was prepared.
        let (status, assignment) = self
            .entries
            .get(&id)
            .map_or((None, AssignmentView::default()), |e| (e.status.clone(), e.assignment.clone()));
        self.names.insert((write.record.tenant.clone(), write.record.name.clone()), id);
        Some(self.put(CatalogEntry { record: Arc::clone(&write.record), status, assignment }))
    }
}
