//! Names, labels and annotations of what the driver makes.

use common::pod::{OWN_LABELS, OWN_PREFIX};
use common::{ApplianceId, Term, Token};
use worker_core::instance::Instance;

/// The scheduling gate that keeps a pod from running until its owner has written it down.
pub(super) const GATE: &str = "rug.dev/owner";
/// The condition that the readiness of a load balancer's pod waits for: it has taken a configuration.
pub(super) const CONFIGURED: &str = "rug.dev/configured";
/// Who makes what the driver makes, for the API server.
pub(super) const FIELD_MANAGER: &str = "rug-worker";
/// Which pods are Rug's, as a query has it: those with the label [`label::APPLIANCE`], whatever else is written over.
pub(super) const SELECTOR_QUERY: &str = "rug.dev%2Fappliance";

/// Labels.
pub(super) mod label {
    pub(in super::super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    pub(in super::super) const NAME: &str = "app.kubernetes.io/name";
    pub(in super::super) const APPLIANCE: &str = "rug.dev/appliance";
    pub(in super::super) const TENANT: &str = "rug.dev/tenant";
    pub(in super::super) const KIND: &str = "rug.dev/kind";
    pub(in super::super) const ORDINAL: &str = "rug.dev/ordinal";
    pub(in super::super) const ATTEMPT: &str = "rug.dev/attempt";
    /// Namespace of the anchors: which installation of Rug a pod belongs to.
    pub(in super::super) const ANCHORS: &str = "rug.dev/anchors";
}

/// Annotations.
pub(super) mod annotation {
    /// The newest token that the object knows.
    pub(in super::super) const TOKEN: &str = "rug.dev/token";
    /// Of an anchor: the instances that may run, as JSON.
    pub(in super::super) const JOURNAL: &str = "rug.dev/journal";
    /// What a pod was started with.
    pub(in super::super) const BOOT_DIGEST: &str = "rug.dev/boot-digest";
    /// A pod has answered a probe.
    pub(in super::super) const ANSWERED: &str = "rug.dev/answered";
    /// Name of the appliance.
    pub(in super::super) const NAME: &str = "rug.dev/name";
    /// Port of a pod's service.
    pub(in super::super) const PORT: &str = "rug.dev/port";
    /// Port of a pod's REST contract.
    pub(in super::super) const MANAGEMENT_PORT: &str = "rug.dev/management-port";
    /// The command that a pod's readiness depends on, as JSON.
    pub(in super::super) const EXEC_PROBE: &str = "rug.dev/exec-probe";
}

/// What a namespace's name is.
pub(super) const NAMESPACE_RULE: &str =
    "must be the name of a namespace: 1 to 63 of a-z 0-9 - that start and end with a letter or digit";

/// Whether a text is the name of a namespace (a label of DNS).
pub(super) fn is_namespace(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Whether a label or annotation of this name is set by Rug.
pub(super) fn is_own(key: &str) -> bool {
    key.starts_with(OWN_PREFIX) || OWN_LABELS.contains(&key)
}

/// A text as the value of a label: 63 bytes at most, of letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
pub(super) fn label_value(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
    let value: String = text.chars().map(plain).take(63).collect();
    value.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// The anchor of an appliance, and its Service.
pub(super) fn anchor(appliance: ApplianceId) -> String {
    format!("rug-{appliance}")
}

/// Which instance a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PodKey {
    pub(super) appliance: ApplianceId,
    pub(super) ordinal: u16,
    pub(super) attempt: u32,
}

impl PodKey {
    /// The name of the pod.
    pub(super) fn name(self) -> String {
        Instance::name(self.appliance, self.ordinal, self.attempt)
    }

    /// The instance that a pod of this name is; `None` for a pod of others.
    pub(super) fn read(name: &str) -> Option<Self> {
        let (rest, attempt) = name.rsplit_once('-')?;
        let (appliance, ordinal) = rest.rsplit_once('-')?;
        let key =
            Self { appliance: appliance.parse().ok()?, ordinal: ordinal.parse().ok()?, attempt: attempt.parse().ok()? };
        (key.name() == name).then_some(key)
    }
}

/// A token as an annotation.
pub(super) fn write_token(token: Token) -> String {
    format!("{}/{}", token.term.get(), token.sequence)
}

/// The token of an annotation.
pub(super) fn read_token(text: &str) -> Option<Token> {
    let (term, sequence) = text.split_once('/')?;
    Some(Token::new(Term::new(term.parse().ok()?), sequence.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_its_name_alone() {
        let key = PodKey { appliance: ApplianceId::from_u128(7), ordinal: 3, attempt: 12 };
        assert_eq!(PodKey::read(&key.name()), Some(key));
        assert!(key.name().len() <= 63);
        for other in
            ["", "web-0-1", "00000000-0000-0000-0000-000000000007-3", "00000000-0000-0000-0000-000000000007-03-1"]
        {
            assert_eq!(PodKey::read(other), None, "{other}");
        }
    }

    #[test]
    fn texts_fit_into_labels_and_tokens_are_read_as_written() {
        assert_eq!(label_value("größe/1 "), "gr__e_1");
        assert_eq!(label_value(&"x".repeat(100)).len(), 63);
        let token = Token::new(Term::new(7), 9);
        assert_eq!(read_token(&write_token(token)), Some(token));
        assert_eq!(read_token("7"), None);
        assert!(is_namespace("rug-1") && !is_namespace("-a") && !is_namespace("A") && !is_namespace(""));
    }
}
