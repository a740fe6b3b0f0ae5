//! What a change comes to, checked against everything that is stored or being written.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use common::appliance::{FieldViolation, MAX_SPEC, MAX_VIOLATIONS, Name, Spec};
use common::change::{ApplianceDraft, ApplianceTarget, ApplianceUpdate};
use common::{ApplianceId, Generation, Site, Term};

use super::{Admission, NOTHING};
use crate::commands::{Change, ChangeOrigin, ChangeOutcome, CommandError, Mutation};
use crate::record::Record;
use crate::views::{ApplianceKey, CatalogEntry};

/// A change that is in order.
#[derive(Debug)]
pub(super) enum Checked {
    /// Nothing is to be done: there is no such appliance, which the caller said is fine.
    Missing,
    /// What the appliance would be.
    Change(Box<CheckedChange>),
}

/// An appliance as a change would make it. Nothing is reserved for it yet.
#[derive(Debug)]
pub(super) struct CheckedChange {
    pub(super) record: Record,
    pub(super) previous: Option<Arc<Record>>,
    pub(super) outcome: ChangeOutcome,
}

impl From<CheckedChange> for Checked {
    fn from(change: CheckedChange) -> Self {
        Self::Change(Box::new(change))
    }
}

impl Admission {
    /// What a change comes to: the appliance as it would be.
    pub(super) fn check(&self, mutation: &Mutation, now: SystemTime) -> Result<Checked, CommandError> {
        let checked = self.check_change(&mutation.change, &mutation.origin, now)?;
        if let Checked::Change(change) = &checked {
            check_origin(change, &mutation.change, &mutation.origin)?;
        }
        Ok(checked)
    }

    fn check_change(&self, change: &Change, origin: &ChangeOrigin, now: SystemTime) -> Result<Checked, CommandError> {
        match change {
            Change::Create { fresh, draft } => self.create(*fresh, draft, origin, now),
            Change::Update { fresh, update } => match self.current(&update.target)? {
                Some(entry) => self.update(&entry, update, origin, now),
                None => match &update.create {
                    Some(draft) => self.create(*fresh, draft, origin, now),
                    None => Err(CommandError::NotFound(update.target.clone())),
                },
            },
            Change::Delete { target, expected, allow_missing, at_once } => match self.current(target)? {
                None if *allow_missing => Ok(Checked::Missing),
                None => Err(CommandError::NotFound(target.clone())),
                Some(entry) => {
                    expect(&entry, *expected)?;
                    let mut checked = CheckedChange::unchanged(&entry);
                    let hurried = *at_once && checked.record.spec.kind.end_at_once();
                    // The next generation of a quarantined one is tried once more.
                    if !entry.record.deleting || entry.assignment.quarantined || hurried {
                        checked.record.deleting = true;
                        checked.raise(now, self.term);
                    }
                    Ok(checked.into())
                }
            },
            Change::Release { target } => {
                let entry = self.current(target)?.ok_or_else(|| CommandError::NotFound(target.clone()))?;
                let mut checked = CheckedChange::unchanged(&entry);
                if entry.record.managed_by.is_some() {
                    checked.record.managed_by = None;
                    checked.note(now);
                }
                Ok(checked.into())
            }
            Change::Rebuild { target, image, force: _ } => {
                let entry = self.current(target)?.ok_or_else(|| CommandError::NotFound(target.clone()))?;
                if entry.record.deleting {
                    return Err(CommandError::Deleting(entry.record.id));
                }
                let mut checked = CheckedChange::unchanged(&entry);
                checked.record.revision += 1;
                if let Some(image) = image {
                    checked.record.spec.image = Some(image.clone());
                    let wrong = checked.record.spec.validate().into_iter().filter(|v| v.field == "spec.image");
                    let wrong: Vec<_> = wrong.map(|v| FieldViolation::new("image", v.description)).collect();
                    if !wrong.is_empty() {
                        return Err(CommandError::Invalid(wrong));
                    }
                }
                checked.raise(now, self.term);
                Ok(checked.into())
            }
        }
    }

    /// The appliance that is meant, unless a change of it is in flight.
    fn current(&self, target: &ApplianceTarget) -> Result<Option<Arc<CatalogEntry>>, CommandError> {
        let contended = match target {
            ApplianceTarget::Id(id) => self.writing.contains_key(id),
            ApplianceTarget::Name(tenant, name) => {
                let key = (tenant.clone(), name.clone());
                self.names.contains_key(&key)
                    || self.catalog.id_of(&key).is_some_and(|id| self.writing.contains_key(&id))
            }
        };
        if contended { Err(CommandError::Contended) } else { Ok(self.catalog.get(target)) }
    }

    fn create(
        &self,
        fresh: ApplianceId,
        draft: &ApplianceDraft,
        origin: &ChangeOrigin,
        now: SystemTime,
    ) -> Result<Checked, CommandError> {
        let id = draft.id.unwrap_or(fresh);
        if id == NOTHING {
            let violation = FieldViolation::new("appliance.id", "must not be nil, which stands for no appliance");
            return Err(CommandError::Invalid(vec![violation]));
        }
        if self.writing.contains_key(&id) {
            return Err(CommandError::Contended);
        }
        if self.entry(id).is_some() || self.unreadable.contains_key(&id) {
            return Err(CommandError::IdTaken(id));
        }
        let key = (draft.tenant.clone(), draft.name.clone());
        self.check_name(&key, id)?;
        let most = self.catalog.config().max_appliances;
        if self.catalog.len() + self.writing.values().filter(|r| r.creates).count() >= most {
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
            managed_by: origin.manager().cloned(),
            created: now,
            updated: now,
        };
        check_size(&record.spec)?;
        self.check_ports(&record, origin)?;
        Ok(CheckedChange { record, previous: None, outcome: ChangeOutcome::Created }.into())
    }

    fn update(
        &self,
        entry: &Arc<CatalogEntry>,
        update: &ApplianceUpdate,
        origin: &ChangeOrigin,
        now: SystemTime,
    ) -> Result<Checked, CommandError> {
        let current = &entry.record;
        expect(entry, update.expected)?;
        if current.deleting {
            return Err(CommandError::Deleting(current.id));
        }
        check_fixed(current, update)?;
        let mut checked = CheckedChange::unchanged(entry);
        let record = &mut checked.record;
        record.spec = update.patch.apply(&current.spec).map_err(CommandError::Invalid)?;
        if let Some(labels) = &update.patch.labels {
            record.labels.clone_from(labels);
        }
        if let Some(name) = update.patch.name.as_ref().filter(|n| **n != current.name) {
            self.check_name(&(current.tenant.clone(), name.clone()), current.id)?;
            record.name = name.clone();
        }
        if record.managed_by.is_none() && origin.may_change(None) {
            record.managed_by = origin.manager().cloned();
        }
        if *record == **current {
            return Ok(checked.into());
        }
        check_size(&record.spec)?;
        self.check_ports(record, origin)?;
        // The owner knows the name (it replaces `{name}`), but neither the labels nor who manages it.
        if record.spec != current.spec || record.name != current.name {
            checked.raise(now, self.term);
        } else {
            checked.note(now);
        }
        Ok(checked.into())
    }

    fn check_name(&self, key: &ApplianceKey, for_id: ApplianceId) -> Result<(), CommandError> {
        if self.names.get(key).is_some_and(|id| *id != for_id) {
            return Err(CommandError::Contended);
        }
        let stored = self.catalog.id_of(key).filter(|id| *id != for_id);
        let unreadable = || self.unreadable.iter().find(|(_, taken)| taken.as_ref() == Some(key)).map(|(id, _)| *id);
        let Some(by) = stored.or_else(unreadable) else { return Ok(()) };
        Err(CommandError::NameTaken {
            tenant: key.0.clone(),
            name: key.1.clone(),
            by,
            deleting: self.entry(by).is_some_and(|e| e.record.deleting),
        })
    }

    /// What to add where a port is refused only because no worker has said yet that it need not be.
    fn unknown(&self, record: &Record, holder: &Record) -> String {
        let mut drivers = [&record.driver, &holder.driver].into_iter();
        let unknown = drivers.find(|driver| !self.ports.is_known(driver));
        let why =
            |driver| format!("; no worker has said yet whether instances of driver `{driver}` share ports of a host");
        unknown.map(why).unwrap_or_default()
    }

    /// Refuses ports that another appliance has. Appliances are taken to share a host unless both are bound to
    /// different ones.
    fn check_ports(&self, record: &Record, origin: &ChangeOrigin) -> Result<(), CommandError> {
        let ours = self.entry(record.id);
        let wrong = self.taken_ports(record, ours.as_deref().and_then(host), |tenant| origin.reaches(tenant))?;
        if wrong.is_empty() { Ok(()) } else { Err(CommandError::Invalid(wrong)) }
    }

    /// Whether an appliance may be freed from its host: no other one may have its ports, on whichever host.
    ///
    /// # Errors
    /// [`CommandError::PortTaken`], [`CommandError::NotFound`]; [`CommandError::Contended`] while it is being changed.
    pub fn check_unbind(&self, id: ApplianceId) -> Result<(), CommandError> {
        let target = ApplianceTarget::Id(id);
        let entry = self.current(&target)?.ok_or(CommandError::NotFound(target))?;
        if entry.record.deleting {
            return Ok(());
        }
        match self.taken_ports(&entry.record, None, |_| true)?.into_iter().next() {
            None => Ok(()),
            Some(taken) => Err(CommandError::PortTaken { appliance: id, problem: taken.description }),
        }
    }

    /// Ports of a record that another appliance has which may share the host `ours`, any host if that is absent. Appliances
    /// of tenants that the caller does not see (`shows`) are not named.
    fn taken_ports(
        &self,
        record: &Record,
        ours: Option<&str>,
        shows: impl Fn(&Name) -> bool,
    ) -> Result<Vec<FieldViolation>, CommandError> {
        let mut wrong: Vec<FieldViolation> = Vec::new();
        for (port, field) in self.ports.wanted(record) {
            for other in self.ports.claims(port).iter().filter(|id| **id != record.id) {
                if wrong.len() >= MAX_VIOLATIONS {
                    break;
                }
                let holder = self.entry(*other);
                if holder.as_deref().and_then(host).zip(ours).is_some_and(|(theirs, ours)| theirs != ours) {
                    continue;
                }
                // Whoever claims it may still be being written and fail; then this one is fine.
                let Some(holder) = holder else { return Err(CommandError::Contended) };
                let going = if holder.record.deleting { ", which is being deleted" } else { "" };
                let (tenant, name) = (&holder.record.tenant, &holder.record.name);
                let whose = if shows(tenant) {
                    format!("appliance {tenant}/{name} ({other}){going}")
                } else {
                    "an appliance of another tenant".to_owned()
                };
                let unknown = self.unknown(record, &holder.record);
                let problem = format!("port {port} is claimed by {whose}{unknown}");
                wrong.push(FieldViolation::new(format!("appliance.{field}"), problem));
            }
        }
        Ok(wrong)
    }
}

impl CheckedChange {
    fn unchanged(entry: &Arc<CatalogEntry>) -> Self {
        Self {
            record: Record::clone(&entry.record),
            previous: Some(Arc::clone(&entry.record)),
            outcome: ChangeOutcome::Unchanged,
        }
    }

    /// Something is different that no owner knows of.
    fn note(&mut self, now: SystemTime) {
        self.record.updated = now;
        self.outcome = ChangeOutcome::Changed;
    }

    fn raise(&mut self, now: SystemTime, term: Term) {
        self.record.generation = self.record.generation.next();
        self.record.written = term;
        self.record.updated = now;
        self.outcome = ChangeOutcome::Changed;
    }
}

/// The host that an appliance is bound to.
fn host(entry: &CatalogEntry) -> Option<&str> {
    entry.assignment.site.as_ref().map(Site::host)
}

/// Refuses changes of what the caller does not see, and of what a source manages by anyone else. Replacing instances is not such a change: what is wanted stays.
fn check_origin(checked: &CheckedChange, change: &Change, origin: &ChangeOrigin) -> Result<(), CommandError> {
    let CheckedChange { record, previous, outcome } = checked;
    if !origin.reaches(&record.tenant) {
        return Err(CommandError::NotFound(ApplianceTarget::Id(record.id)));
    }
    let Some(previous) = previous else { return Ok(()) };
    let managed_by = previous.managed_by.as_ref();
    if *outcome == ChangeOutcome::Unchanged || origin.may_change(managed_by) {
        return Ok(());
    }
    let appliance = record.id;
    match (origin, managed_by) {
        (ChangeOrigin::Source { name, .. }, _) => {
            Err(CommandError::NotManaged { appliance, source_name: name.clone() })
        }
        (ChangeOrigin::Client { .. }, Some(by)) if !matches!(change, Change::Rebuild { .. }) => {
            Err(CommandError::Managed { appliance, by: by.clone() })
        }
        (ChangeOrigin::Client { .. }, _) => Ok(()),
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
