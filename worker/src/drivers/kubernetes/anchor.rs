//! The anchor of an appliance: a Lease that says which token is in force and which instances may run.
//!
//! It is what ownership is decided by: a pod that no anchor names never runs, because its gate is removed only after the anchor named
//! it, and every change of the anchor names the version of it that was read. Written by owners only, in one namespace.

use std::collections::BTreeSet;

use common::{ApplianceId, Token};
use kubernetes::k8s_openapi::api::coordination::v1::Lease;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::names::{PodKey, anchor, annotation, label, read_token, write_token};

/// An anchor as it was read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) token: Token,
    pub(super) journal: Journal,
}

/// What may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Journal {
    /// Pods that may run.
    pub(super) instances: Vec<JournalInstance>,
    /// The newest attempt of each ordinal.
    pub(super) attempts: Vec<(u16, u32)>,
    /// Namespaces where there may be a Service: those where there were pods.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) services: BTreeSet<String>,
}

/// A pod that may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JournalInstance {
    pub(super) ordinal: u16,
    pub(super) attempt: u32,
    pub(super) uid: String,
    pub(super) namespace: String,
}

impl JournalInstance {
    pub(super) fn key(&self, appliance: ApplianceId) -> PodKey {
        PodKey { appliance, ordinal: self.ordinal, attempt: self.attempt }
    }
}

impl Journal {
    /// The same with an instance in the place of all at its ordinal.
    pub(super) fn with(&self, instance: JournalInstance) -> Self {
        let mut changed = self.clone();
        changed.instances.retain(|known| known.ordinal != instance.ordinal);
        changed.note_attempt(instance.ordinal, instance.attempt);
        changed.instances.push(instance);
        changed
    }

    /// Takes in that there was this attempt.
    pub(super) fn note_attempt(&mut self, ordinal: u16, attempt: u32) {
        match self.attempts.iter_mut().find(|(known, _)| *known == ordinal) {
            Some((_, newest)) => *newest = attempt.max(*newest),
            None => self.attempts.push((ordinal, attempt)),
        }
    }
}

/// An anchor cannot be read: somebody else has changed it. Nothing is done about its appliance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the anchor {0} cannot be read ({1}): restore it, or delete it once no pod of its appliance runs")]
pub(super) struct UnreadableAnchor(String, &'static str);

impl Anchor {
    /// Reads one.
    pub(super) fn read(lease: &Lease) -> Result<Self, UnreadableAnchor> {
        let metadata = &lease.metadata;
        let name = metadata.name.clone().unwrap_or_default();
        let unreadable = |what| UnreadableAnchor(name.clone(), what);
        let annotations = metadata.annotations.as_ref().ok_or_else(|| unreadable("it has no annotations"))?;
        let token = annotations.get(annotation::TOKEN).and_then(|text| read_token(text));
        let journal = annotations.get(annotation::JOURNAL).and_then(|text| serde_json::from_str(text).ok());
        Ok(Self {
            uid: metadata.uid.clone().ok_or_else(|| unreadable("it has no uid"))?,
            version: metadata.resource_version.clone().ok_or_else(|| unreadable("it has no version"))?,
            token: token.ok_or_else(|| unreadable("its token"))?,
            journal: journal.ok_or_else(|| unreadable("its journal"))?,
        })
    }

    /// The object to be written for this token and journal: new, or in the place of exactly what was read.
    pub(super) fn write(
        appliance: ApplianceId,
        namespace: &str,
        worker: &str,
        token: Token,
        journal: &Journal,
        read: Option<&Self>,
    ) -> Value {
        let mut lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": anchor(appliance),
                "namespace": namespace,
                "labels": {label::MANAGED_BY: "rug", label::APPLIANCE: appliance.to_string()},
                "annotations": {
                    annotation::TOKEN: write_token(token),
                    annotation::JOURNAL: serde_json::to_string(journal).unwrap_or_default(),
                },
            },
            "spec": {"holderIdentity": worker},
        });
        // Leases may be made by an update, so that the version alone would not keep a late one from making a deleted anchor anew: an
        // object that does not exist has no uid, and one that names a uid is refused then.
        if let Some(read) = read {
            lease["metadata"]["uid"] = read.uid.clone().into();
            lease["metadata"]["resourceVersion"] = read.version.clone().into();
        }
        lease
    }
}

#[cfg(test)]
mod tests {
    use common::Term;

    use super::*;

    #[test]
    fn an_anchor_is_read_as_it_was_written_and_one_that_others_changed_is_refused() {
        let appliance = ApplianceId::from_u128(7);
        let instance =
            |ordinal, attempt| JournalInstance { ordinal, attempt, uid: format!("u{attempt}"), namespace: "n".into() };
        let journal = Journal::default().with(instance(0, 1)).with(instance(1, 1)).with(instance(0, 2));
        assert_eq!(journal.instances, [instance(1, 1), instance(0, 2)]);
        assert_eq!(journal.attempts, [(0, 2), (1, 1)]);
        let token = Token::new(Term::new(1), 2);
        let mut written = Anchor::write(appliance, "n", "w", token, &journal, None);
        written["metadata"]["uid"] = "u".into();
        written["metadata"]["resourceVersion"] = "5".into();
        let lease: Lease = serde_json::from_value(written.clone()).expect("a lease");
        let read = Anchor::read(&lease).expect("readable");
        assert_eq!((read.token, &read.journal), (token, &journal));
        let again = Anchor::write(appliance, "n", "w", token, &journal, Some(&read));
        assert_eq!(again, written);
        written["metadata"]["annotations"][annotation::JOURNAL] = "x".into();
        let lease: Lease = serde_json::from_value(written).expect("a lease");
        assert!(Anchor::read(&lease).expect_err("no journal").to_string().contains("its journal"));
    }
}
