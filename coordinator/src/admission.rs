//! Admission of changes: each is checked against everything that is stored *or being written*, and what it takes is
//! reserved until it is durable or failed.
//!
//! The leader calls [`Admission::admit`], makes [`AdmittedChange::record`] and [`AdmittedChange::request`] durable in one
//! transaction with [`AdmittedChange::audit`], and calls [`Admission::commit`], which shows the change in the catalog; or
//! [`Admission::withdraw`] when the store refused it. A change that meets another one of the same appliance, name, port or
//! request id under way is [`CommandError::Contended`]. So two changes under way can neither take one name or port, nor be
//! made from one state.
//!
//! The leader owns one of these per term and is the only writer of the catalog. That is why neither a lock spans the two
//! nor a change can outlive its term: between a check and its reservation nothing else can change either of them.

mod check;
mod ports;
mod requests;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use common::change::ApplianceTarget;
use common::driver::DriverOffers;
use common::{ApplianceId, Generation, Term};
use tokio::sync::Notify;

use self::check::{Checked, CheckedChange};
use self::ports::Ports;
use self::requests::Requests;
use crate::catalog::Catalog;
use crate::commands::{Change, ChangeOutcome, Changed, CommandError, Mutation};
use crate::record::{AuditEvent, Record, RequestRecord};
use crate::views::{ApplianceKey, AssignmentView, CatalogEntry};

/// Stands in a remembered call for the appliance that it did not find. No appliance has this id.
const NOTHING: ApplianceId = ApplianceId::from_u128(0);

/// What is to be done about a change that is in order.
#[derive(Debug)]
pub enum Admitted {
    /// Nothing: it was so already, is a repeat, or was only to be checked. Answer with this.
    Done(Changed),
    /// Make it durable, then commit it.
    Write(AdmittedChange),
}

/// A change under way. Its name, its ports and its request id are reserved until it is committed or withdrawn.
#[derive(Debug)]
#[must_use = "what it has reserved is free only after it was committed or withdrawn"]
pub struct AdmittedChange {
    /// The appliance as it would be; `None` when there is none and that only the request is to be remembered.
    record: Option<Arc<Record>>,
    previous: Option<Arc<Record>>,
    outcome: ChangeOutcome,
    request: Option<RequestRecord>,
    audit: Option<AuditEvent>,
    /// What its caller is to be told.
    warning: Option<String>,
}

impl AdmittedChange {
    /// The same, with something that its caller is to be told.
    pub fn with_warning(self, warning: Option<String>) -> Self {
        Self { warning, ..self }
    }

    /// The appliance as it shall be stored; `None` when only the request is to be remembered.
    #[must_use]
    pub fn record(&self) -> Option<&Arc<Record>> {
        self.record.as_ref().filter(|_| self.outcome != ChangeOutcome::Unchanged)
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

    /// Its line of the audit trail, if it changes anything.
    #[must_use]
    pub const fn audit(&self) -> Option<&AuditEvent> {
        self.audit.as_ref()
    }
}

/// What a change under way has taken beyond what its appliance has already.
#[derive(Debug, Default)]
struct Reservation {
    key: Option<ApplianceKey>,
    ports: Vec<u16>,
    creates: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Admission {
    catalog: Arc<Catalog>,
    /// The term that changes are written in.
    term: Term,
    /// Who claims which port, stored or being written.
    ports: Ports,
    requests: Requests,
    /// Appliances with a change under way.
    writing: HashMap<ApplianceId, Reservation>,
    /// Names that changes under way take.
    names: HashMap<ApplianceKey, ApplianceId>,
    /// Appliances that are stored and cannot be read. They may have an owner and instances, and whoever mends their rows
    /// wants them back: their ids and names stay taken.
    unreadable: HashMap<ApplianceId, Option<ApplianceKey>>,
    /// Notified whenever a change under way was committed or withdrawn.
    settled: Arc<Notify>,
}

impl Admission {
    /// Admits the changes of `term` to what is in `catalog`. `requests` are the idempotent calls that are remembered,
    /// oldest first.
    #[must_use]
    pub fn new(catalog: Arc<Catalog>, term: Term, requests: &[RequestRecord], settled: Arc<Notify>) -> Self {
        let mut ports = Ports::default();
        catalog.for_each(|entry| ports.claim_stored(&entry.record));
        let mut known = Requests::new(catalog.config().max_requests);
        requests.iter().for_each(|request| known.remember(request, None));
        Self {
            catalog,
            term,
            ports,
            requests: known,
            writing: HashMap::new(),
            names: HashMap::new(),
            unreadable: HashMap::new(),
            settled,
        }
    }

    /// Keeps id and name of an appliance that is stored and cannot be read from being taken by another. `key` is `None`
    /// when not even its name can be read.
    pub fn reserve_unreadable(&mut self, id: ApplianceId, key: Option<ApplianceKey>) {
        self.unreadable.insert(id, key);
    }

    /// Takes in what all workers offer that are there now: whether appliances of a driver share the ports of their host is
    /// what workers say.
    pub fn learn_drivers<'a>(&mut self, workers: impl IntoIterator<Item = &'a DriverOffers>) {
        if !self.ports.learn(workers) {
            return;
        }
        self.ports.clear();
        self.catalog.for_each(|entry| self.ports.claim_stored(&entry.record));
        for (id, reservation) in &self.writing {
            reservation.ports.iter().for_each(|port| self.ports.claim(*port, *id));
        }
    }

    /// The appliance as `mutation` would have it stored, and as it is, if it is another specification than that; `None` where nothing
    /// would be written, and where it is not in order: [`Admission::admit`] says why. Reserves nothing.
    pub fn preview(&self, mutation: &Mutation, now: SystemTime) -> Option<(Record, Option<Arc<Record>>)> {
        // What was carried out before is not looked at anew.
        if !matches!(self.repeated(mutation, now), Ok(None)) {
            return None;
        }
        match self.check(mutation, now).ok()? {
            Checked::Missing => None,
            Checked::Change(change) => {
                let CheckedChange { record, previous, .. } = *change;
                let is_same = previous.as_ref().is_some_and(|previous| previous.spec == record.spec);
                (!record.deleting && !is_same).then_some((record, previous))
            }
        }
    }

    /// Checks `mutation` at `now` and reserves what it takes.
    ///
    /// # Errors
    /// Why it cannot be carried out; nothing is reserved then.
    pub fn admit(&mut self, mutation: &Mutation, now: SystemTime) -> Result<Admitted, CommandError> {
        if let Some(changed) = self.repeated(mutation, now)? {
            return Ok(Admitted::Done(changed));
        }
        let change = match self.check(mutation, now)? {
            Checked::Missing => return Ok(self.admit_nothing(mutation, now)),
            Checked::Change(change) => *change,
        };
        let CheckedChange { outcome, .. } = change;
        let id = change.record.id;
        if mutation.validate_only || (outcome == ChangeOutcome::Unchanged && mutation.request.is_none()) {
            let (status, assignment) = match self.entry(id) {
                Some(known) => (known.status.clone(), known.assignment.clone()),
                None => (None, AssignmentView::default()),
            };
            let entry = CatalogEntry { record: Arc::new(change.record), status, assignment };
            return Ok(Admitted::Done(Changed { entry: Some(Arc::new(entry)), outcome, warning: None }));
        }
        self.reserve(&change);
        if let Some(request) = mutation.request {
            self.requests.begin(request.id);
        }
        let audit = || AuditEvent {
            time: now,
            actor: mutation.actor.clone(),
            action: match outcome {
                // Also by an update that makes what is missing.
                ChangeOutcome::Created => "create".to_owned(),
                ChangeOutcome::Changed | ChangeOutcome::Unchanged => mutation.change.action().to_owned(),
            },
            subject: id.to_string(),
            detail: format!("{}/{} {}", change.record.tenant, change.record.name, change.record.generation),
        };
        Ok(Admitted::Write(AdmittedChange {
            request: mutation.request.map(|r| RequestRecord { id: r.id, digest: r.digest, appliance: id, time: now }),
            audit: (outcome != ChangeOutcome::Unchanged).then(audit),
            record: Some(Arc::new(change.record)),
            previous: change.previous,
            outcome,
            warning: None,
        }))
    }

    /// There is nothing to be changed. That is remembered as well: a repeat must not find what was made in between.
    fn admit_nothing(&mut self, mutation: &Mutation, now: SystemTime) -> Admitted {
        let outcome = ChangeOutcome::Unchanged;
        let Some(request) = mutation.request.filter(|_| !mutation.validate_only) else {
            return Admitted::Done(Changed { entry: None, outcome, warning: None });
        };
        self.requests.begin(request.id);
        let request = RequestRecord { id: request.id, digest: request.digest, appliance: NOTHING, time: now };
        let (request, audit, warning) = (Some(request), None, None);
        Admitted::Write(AdmittedChange { record: None, previous: None, outcome, request, audit, warning })
    }

    /// Shows a change to everybody. The store has it.
    pub fn commit(&mut self, change: AdmittedChange) -> Changed {
        let AdmittedChange { record, previous, outcome, request, audit, warning } = change;
        let reservation = self.release(record.as_ref().map(|record| record.id), request.as_ref());
        if let Some(request) = &request {
            self.requests.remember(request, Some(outcome));
        }
        if let Some(audit) = audit {
            audit.log();
        }
        let entry = record.and_then(|record| {
            if outcome == ChangeOutcome::Unchanged {
                return self.entry(record.id);
            }
            self.settle_ports(&record, previous.as_deref(), &reservation);
            Some(self.catalog.put_record(&record))
        });
        self.settled.notify_waiters();
        Changed { entry, outcome, warning }
    }

    /// Gives up a change that was not stored: what it had reserved is free again.
    pub fn withdraw(&mut self, change: AdmittedChange) {
        let AdmittedChange { record, request, .. } = change;
        let id = record.map(|record| record.id);
        let reservation = self.release(id, request.as_ref());
        if let Some(id) = id {
            reservation.ports.iter().for_each(|port| self.ports.release(*port, id));
        }
        self.settled.notify_waiters();
    }

    /// Something that callers wait for, who met it under way, has ended: they ask again.
    pub fn settle(&self) {
        self.settled.notify_waiters();
    }

    /// Nothing is left of an appliance, and the store has that; the catalog may still show it.
    pub fn removed(&mut self, id: ApplianceId) {
        let Some(entry) = self.entry(id) else { return };
        self.ports.release_all(&entry.record);
    }

    fn entry(&self, id: ApplianceId) -> Option<Arc<CatalogEntry>> {
        self.catalog.get(&ApplianceTarget::Id(id))
    }

    /// The answer to a call that was carried out before.
    fn repeated(&self, mutation: &Mutation, now: SystemTime) -> Result<Option<Changed>, CommandError> {
        let Some(request) = mutation.request else { return Ok(None) };
        if self.requests.is_writing(request.id) {
            return Err(CommandError::Contended);
        }
        let Some(known) = self.requests.get(request.id, now) else { return Ok(None) };
        if known.digest != request.digest {
            return Err(CommandError::RequestReused(request.id));
        }
        if known.appliance == NOTHING {
            return Ok(Some(Changed { entry: None, outcome: ChangeOutcome::Unchanged, warning: None }));
        }
        let entry = self.entry(known.appliance);
        let deletes = matches!(mutation.change, Change::Delete { .. });
        let outcome = match (known.outcome, &entry) {
            (_, None) if !deletes => return Err(CommandError::RequestedGone(known.appliance)),
            (Some(outcome), _) => outcome,
            (None, Some(entry)) if entry.record.generation == Generation::new(1) => ChangeOutcome::Created,
            (None, _) => ChangeOutcome::Changed,
        };
        Ok(Some(Changed { entry, outcome, warning: None }))
    }

    fn reserve(&mut self, change: &CheckedChange) {
        let id = change.record.id;
        let key = (change.record.tenant.clone(), change.record.name.clone());
        let mut reservation = Reservation { creates: change.previous.is_none(), ..Reservation::default() };
        if self.catalog.id_of(&key) != Some(id) {
            self.names.insert(key.clone(), id);
            reservation.key = Some(key);
        }
        for (port, _) in self.ports.wanted(&change.record) {
            if !self.ports.claims(port).contains(&id) {
                self.ports.claim(port, id);
                reservation.ports.push(port);
            }
        }
        self.writing.insert(id, reservation);
    }

    /// Ends the reservation of an appliance, its name and its request; its ports are for the caller.
    fn release(&mut self, id: Option<ApplianceId>, request: Option<&RequestRecord>) -> Reservation {
        let reservation = id.and_then(|id| self.writing.remove(&id)).unwrap_or_default();
        if let Some(key) = &reservation.key {
            self.names.remove(key);
        }
        if let Some(request) = request {
            self.requests.end(request.id);
        }
        reservation
    }

    /// Frees the ports that an appliance had and has no more. What is known of its driver may have changed while it was being
    /// written.
    fn settle_ports(&mut self, record: &Record, previous: Option<&Record>, reservation: &Reservation) {
        if let Some(previous) = previous {
            self.ports.release_all(previous);
        }
        reservation.ports.iter().for_each(|port| self.ports.release(*port, record.id));
        for (port, _) in self.ports.wanted(record) {
            self.ports.claim(port, record.id);
        }
    }
}

impl Drop for Admission {
    /// With the term everything that was under way has ended: callers that wait for it ask again, and are told so.
    fn drop(&mut self) {
        self.settled.notify_waiters();
    }
}
