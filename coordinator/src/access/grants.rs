//! What a caller may do.

use std::collections::BTreeSet;
use std::fmt;

use common::access::Role;
use common::appliance::Name;
use common::{CoordinatorId, WorkerId};

use super::permission::{self, Permission};

/// Most roles of one caller. They are passed on in a header when a coordinator forwards a call; the rest does not count.
pub const MAX_ROLES: usize = 100;

/// Whoever makes a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// How audit entries name it: its name and where it calls from. Printable.
    pub name: String,
    /// What it may do.
    pub grants: Grants,
}

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grants {
    /// Everything, as any worker and any coordinator, too: a process of the coordinator's own user, or any peer of a
    /// coordinator that runs without TLS because its operator said so.
    Everything,
    /// What these roles allow; nothing when there are none.
    Roles(BTreeSet<Role>),
}

/// Which appliances a call may be about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All.
    #[default]
    All,
    /// Those of these tenants.
    Tenants(BTreeSet<Name>),
}

impl Scope {
    /// Whether appliances of this tenant are within it.
    #[must_use]
    pub fn contains(&self, tenant: &Name) -> bool {
        match self {
            Self::All => true,
            Self::Tenants(tenants) => tenants.contains(tenant),
        }
    }
}

/// A call that the caller may not make.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{who} may not call {call}: that needs {needed}, and its roles are: {roles}")]
pub struct Denied {
    /// The caller.
    pub who: String,
    /// The call.
    pub call: String,
    /// Roles that may make it.
    pub needed: String,
    /// The roles it has.
    pub roles: String,
}

impl Grants {
    /// No role: nothing is allowed.
    #[must_use]
    pub const fn none() -> Self {
        Self::Roles(BTreeSet::new())
    }

    /// These roles, the first [`MAX_ROLES`] of them in the order of [`Role`].
    #[must_use]
    pub fn of(roles: impl IntoIterator<Item = Role>) -> Self {
        let roles: BTreeSet<_> = roles.into_iter().collect();
        Self::Roles(roles.into_iter().take(MAX_ROLES).collect())
    }

    fn roles(&self) -> impl Iterator<Item = &Role> {
        match self {
            Self::Everything => None,
            Self::Roles(roles) => Some(roles.iter()),
        }
        .into_iter()
        .flatten()
    }

    /// Whether there is any role at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Roles(roles) if roles.is_empty())
    }

    /// For which appliances the permission is granted; `None` when it is not granted at all.
    #[must_use]
    pub fn scope(&self, permission: Permission) -> Option<Scope> {
        if *self == Self::Everything {
            return Some(Scope::All);
        }
        let mut tenants = BTreeSet::new();
        for role in self.roles().filter(|role| permission::has(role, permission)) {
            match role {
                Role::Editor(tenant) => tenants.insert(tenant.clone()),
                _ => return Some(Scope::All),
            };
        }
        (!tenants.is_empty()).then_some(Scope::Tenants(tenants))
    }

    /// Whether values that may be secrets are shown, of appliances of this tenant: to whoever could change them.
    #[must_use]
    pub fn sees_secrets(&self, tenant: &Name) -> bool {
        self.scope(Permission::EditAppliances).is_some_and(|scope| scope.contains(tenant))
    }

    /// Whether the caller may take part as this worker.
    #[must_use]
    pub fn is_worker(&self, worker: &WorkerId) -> bool {
        *self == Self::Everything || self.roles().any(|role| matches!(role, Role::Worker(own) if own == worker))
    }

    /// Whether the caller is this coordinator, so that it may forward calls of others.
    #[must_use]
    pub fn is_coordinator(&self, coordinator: &CoordinatorId) -> bool {
        *self == Self::Everything
            || self.roles().any(|role| matches!(role, Role::Coordinator(own) if own == coordinator))
    }

    /// Whether the caller is any coordinator.
    #[must_use]
    pub fn is_some_coordinator(&self) -> bool {
        *self == Self::Everything || self.roles().any(|role| matches!(role, Role::Coordinator(_)))
    }

    /// The roles as text, for a coordinator that the call is forwarded to. Whoever may do everything is an admin there:
    /// only calls of the admin API are forwarded.
    #[must_use]
    pub fn to_header(&self) -> String {
        match self {
            Self::Everything => Role::Admin.to_string(),
            Self::Roles(_) => self.to_string(),
        }
    }

    /// Reads what [`to_header`](Self::to_header) has written; `None` when it is something else. Nobody becomes a worker
    /// or a coordinator in this way.
    #[must_use]
    pub fn from_header(text: &str) -> Option<Self> {
        let mut roles = BTreeSet::new();
        for role in text.split(',').map(str::trim).filter(|role| !role.is_empty()) {
            match role.parse().ok()? {
                Role::Worker(_) | Role::Coordinator(_) => {}
                role => {
                    roles.insert(role);
                }
            }
        }
        (roles.len() <= MAX_ROLES).then_some(Self::Roles(roles))
    }
}

impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("everything"),
            Self::Roles(roles) => {
                let roles: Vec<_> = roles.iter().map(ToString::to_string).collect();
                f.write_str(&roles.join(","))
            }
        }
    }
}

impl Principal {
    /// For which appliances this caller may make a call.
    ///
    /// # Errors
    /// [`Denied`]; it may not make it at all.
    pub fn allow(&self, call: &permission::Call) -> Result<Scope, Denied> {
        self.grants.scope(call.permission).ok_or_else(|| Denied {
            who: self.name.clone(),
            call: format!("{}/{}", call.service, call.method),
            needed: call.permission.holders(),
            roles: if self.grants.is_empty() { "none".to_owned() } else { self.grants.to_string() },
        })
    }
}
