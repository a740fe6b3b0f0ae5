//! What is to be done next about one custom resource. Pure: every race is a row of a table of tests.

use common::change::ApplianceTarget;

use super::resource::{Resource, Wanted, WantedAppliance};
use super::status::{Acceptance, RefusedBecause};
use crate::commands::Change;
use crate::record::Record;
use crate::views::CatalogEntry;

/// The next step. After each but the last two it is decided anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Have the object wait for its appliance, before there is one.
    Hold,
    /// Let the object go.
    LetGo,
    /// Change the appliance.
    Change(Change),
    /// Show this; nothing else is to be done until something changes.
    Show(Acceptance),
    /// Nothing, not even that.
    Leave,
}

/// What the leader knows of the appliance of an object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Own<'a> {
    /// It is managed by the object.
    There(&'a CatalogEntry),
    /// Nobody has seen one; a change that makes one may be under way.
    NotSeen,
    /// There is none: the leader was asked.
    None,
}

/// Decides the next step.
pub(super) fn decide(resource: &Resource, wanted: &Wanted, own: Own<'_>) -> Step {
    if *wanted == Wanted::Elsewhere {
        return Step::Leave;
    }
    if resource.deleting { delete(resource, wanted, own) } else { keep(resource, wanted, own) }
}

fn delete(resource: &Resource, wanted: &Wanted, own: Own<'_>) -> Step {
    if !resource.is_held() {
        return Step::Leave;
    }
    match (own, wanted) {
        (Own::There(entry), _) if resource.retain => {
            Step::Change(Change::Release { target: ApplianceTarget::Id(entry.record.id) })
        }
        (Own::There(entry), _) if entry.record.deleting => Step::Show(Acceptance::Deleting),
        (Own::There(entry), _) => Step::Change(deleted(ApplianceTarget::Id(entry.record.id))),
        // Whoever asks for it by name also waits for what is under way.
        (Own::NotSeen, Wanted::Appliance(wanted)) => Step::Change(deleted(wanted.update.target.clone())),
        (Own::NotSeen | Own::None, _) => Step::LetGo,
    }
}

fn deleted(target: ApplianceTarget) -> Change {
    Change::Delete { target, expected: None, allow_missing: true, at_once: false }
}

fn keep(resource: &Resource, wanted: &Wanted, own: Own<'_>) -> Step {
    let wanted = match wanted {
        Wanted::Elsewhere => return Step::Leave,
        Wanted::Refused(violations) => return Step::Show(Acceptance::invalid(violations)),
        Wanted::Appliance(wanted) => wanted,
    };
    if !resource.is_held() {
        return Step::Hold;
    }
    match own {
        Own::There(entry) if entry.record.deleting => {
            let text =
                format!("the former appliance {} is being deleted; the new one is made after that", entry.record.id);
            Step::Show(Acceptance::Refused(RefusedBecause::BeingDeleted, text))
        }
        Own::There(entry) => match differs(wanted, &entry.record) {
            Difference::None => Step::Show(Acceptance::Accepted),
            Difference::OtherId => {
                let text = format!("spec.id: is `{}` and cannot change", entry.record.id);
                Step::Show(Acceptance::Refused(RefusedBecause::Invalid, text))
            }
            Difference::Fields => {
                let mut update = wanted.update.clone();
                // Also after its name has changed, here or there.
                update.target = ApplianceTarget::Id(entry.record.id);
                Step::Change(Change::update(update))
            }
        },
        Own::NotSeen | Own::None => Step::Change(Change::update(wanted.update.clone())),
    }
}

enum Difference {
    None,
    OtherId,
    Fields,
}

/// How an appliance differs from what is asked for.
fn differs(wanted: &WantedAppliance, record: &Record) -> Difference {
    if wanted.id.is_some_and(|id| id != record.id) {
        return Difference::OtherId;
    }
    let patch = &wanted.update.patch;
    let fixed = &patch.fixed;
    let same = patch.name.as_ref().is_none_or(|name| *name == record.name)
        && patch.labels.as_ref().is_none_or(|labels| *labels == record.labels)
        && patch.spec.as_ref().is_none_or(|spec| *spec == record.spec)
        && fixed.tenant.as_ref().is_none_or(|tenant| *tenant == record.tenant)
        && fixed.driver.as_ref().is_none_or(|driver| *driver == record.driver)
        && fixed.placement_key.as_ref().is_none_or(|key| *key == record.placement_key);
    if same { Difference::None } else { Difference::Fields }
}
