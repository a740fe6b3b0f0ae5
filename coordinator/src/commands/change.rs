//! Changes of the stored appliances.

use std::sync::Arc;

use common::appliance::Name;
use common::change::{ApplianceDraft, ApplianceTarget, ApplianceUpdate};
use common::manager::Manager;
use common::{ApplianceId, Generation};
use uuid::Uuid;

use crate::access::Scope;
use crate::views::CatalogEntry;

/// A change of the stored appliances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// What changes.
    pub change: Change,
    /// Check everything and change nothing.
    pub validate_only: bool,
    /// Makes the call idempotent.
    pub request: Option<RequestKey>,
    /// Who asks: address of the caller.
    pub actor: String,
    /// On whose behalf.
    pub origin: ChangeOrigin,
}

/// On whose behalf an appliance is changed. What a source creates is managed by it, and changed by no one else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeOrigin {
    /// A client of the API.
    Client {
        /// Also what a source manages.
        force: bool,
        /// Whose appliances the client may change, and see.
        scope: Scope,
    },
    /// A source.
    Source {
        /// Its name, such as `neutron`, or that of its object, such as `kubernetes/shop/web`.
        name: Manager,
        /// Also an appliance that nobody manages, which it then does.
        adopt: bool,
    },
}

impl ChangeOrigin {
    /// Who manages what is created.
    #[must_use]
    pub fn manager(&self) -> Option<&Manager> {
        match self {
            Self::Client { .. } => None,
            Self::Source { name, .. } => Some(name),
        }
    }

    /// Whether appliances of this tenant exist for it. Sources see all of them.
    #[must_use]
    pub fn reaches(&self, tenant: &Name) -> bool {
        match self {
            Self::Client { scope, .. } => scope.contains(tenant),
            Self::Source { .. } => true,
        }
    }

    /// Whether it may change what `managed_by` manages.
    #[must_use]
    pub fn may_change(&self, managed_by: Option<&Manager>) -> bool {
        match self {
            Self::Client { force, .. } => *force || managed_by.is_none(),
            Self::Source { name, adopt } => managed_by.map_or(*adopt, |by| by == name),
        }
    }
}

/// The caller's id of a call, and a digest of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestKey {
    /// The caller's id, or what stands for it among the callers of its tenants.
    pub id: Uuid,
    /// Digest of the content; a repeat with another is refused.
    pub digest: [u8; 16],
}

impl RequestKey {
    /// The key of a call with this id and content. Of the same call the content has to be the same bytes, whenever and
    /// wherever it is made: the digest is stored.
    ///
    /// Callers that may change all appliances share one namespace of ids; those of certain tenants have another one, so that
    /// an id never tells one tenant about the calls of another, and none can use up the ids of others.
    #[must_use]
    pub fn new(id: Uuid, scope: &Scope, content: &[u8]) -> Self {
        let id = match scope {
            Scope::All => id,
            Scope::Tenants(tenants) => {
                let tenants: Vec<_> = tenants.iter().map(Name::as_str).collect();
                Uuid::new_v5(&id, tenants.join("\n").as_bytes())
            }
        };
        Self { id, digest: *Uuid::new_v5(&Uuid::NAMESPACE_OID, content).as_bytes() }
    }
}

/// What changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new appliance.
    Create {
        /// Its identity, unless the draft has one.
        fresh: ApplianceId,
        /// What it shall be.
        draft: Box<ApplianceDraft>,
    },
    /// Fields of an appliance; creates it when the update says so.
    Update {
        /// Identity of a new one, unless the draft has one.
        fresh: ApplianceId,
        /// What changes.
        update: Box<ApplianceUpdate>,
    },
    /// An appliance is to be removed.
    Delete {
        /// Which.
        target: ApplianceTarget,
        /// Generation it must have.
        expected: Option<Generation>,
        /// One that does not exist is no error.
        allow_missing: bool,
        /// Its instances get no time to end.
        at_once: bool,
    },
    /// An appliance is managed by nobody any more, and lives on: clients may change it.
    Release {
        /// Which.
        target: ApplianceTarget,
    },
    /// Every instance is to be replaced.
    Rebuild {
        /// Which.
        target: ApplianceTarget,
        /// Image from now on; unchanged when absent.
        image: Option<String>,
        /// Also where a budget of disruption has no room.
        force: bool,
    },
}

impl Change {
    /// A new appliance; the server chooses its identity unless the draft has one.
    #[must_use]
    pub fn create(draft: ApplianceDraft) -> Self {
        Self::Create { fresh: fresh_id(), draft: Box::new(draft) }
    }

    /// Fields of an appliance.
    #[must_use]
    pub fn update(update: ApplianceUpdate) -> Self {
        Self::Update { fresh: fresh_id(), update: Box::new(update) }
    }

    /// The word for it in the audit trail.
    #[must_use]
    pub const fn action(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Update { .. } => "update",
            Self::Delete { .. } => "delete",
            Self::Release { .. } => "release",
            Self::Rebuild { .. } => "rebuild",
        }
    }
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeOutcome {
    /// The appliance is new.
    Created,
    /// It is different now.
    Changed,
    /// It was so already.
    Unchanged,
}

/// Answer to a change.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The appliance afterwards; `None` when there is none, which only a `Delete` can say.
    pub entry: Option<Arc<CatalogEntry>>,
    /// What was done.
    pub outcome: ChangeOutcome,
    /// What its caller should know although the change is in order.
    pub warning: Option<String>,
}

/// An id that no appliance has.
fn fresh_id() -> ApplianceId {
    ApplianceId::new(Uuid::new_v4())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_of_one_tenant_are_not_those_of_another() {
        let tenants = |names: &[&str]| Scope::Tenants(names.iter().map(|name| name.parse().expect("a name")).collect());
        let id = Uuid::from_u128(7);
        let key = |scope: &Scope| RequestKey::new(id, scope, b"content");
        assert_eq!(key(&Scope::All).id, id, "as earlier versions stored it");
        let keys = [key(&Scope::All), key(&tenants(&["a"])), key(&tenants(&["b"])), key(&tenants(&["a", "b"]))];
        for (n, one) in keys.iter().enumerate() {
            assert!(keys[n + 1..].iter().all(|other| other.id != one.id && other.digest == one.digest));
        }
        assert_eq!(key(&tenants(&["b", "a"])), keys[3], "the order of roles does not matter");
    }
}
