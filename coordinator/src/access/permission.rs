//! Which permission each call needs, and which role has which permission.
//!
//! A call that is added to a `.proto` file without a row in [`CALLS`] cannot be made, and fails a test. The table of calls
//! and roles in `docs/roles.md` is made of this file, by the test of that page.

use common::access::Role;

/// What a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Reading appliances.
    ReadAppliances,
    /// Creating, changing and removing appliances.
    EditAppliances,
    /// Replacing instances of appliances as they are specified.
    RebuildAppliances,
    /// Probing appliances now.
    CheckAppliances,
    /// Reading what instances of appliances have printed, which may hold secrets.
    ReadLogs,
    /// Running commands in instances of appliances.
    Execute,
    /// Reading what is no appliance: workers, the ring, rebalances, the audit trail, the state of the cluster.
    ReadCluster,
    /// Measures against trouble: evicting workers, pausing placement, freeing appliances from lost hosts; orders about
    /// placement; having processes read their configuration again.
    Operate,
    /// Reading what processes log and sample by order.
    ReadTelemetry,
    /// Taking part as a worker.
    JoinAsWorker,
    /// Asking which cluster this is.
    Identify,
    /// Asking whether a coordinator serves.
    Health,
    /// Asking which calls there are.
    Reflection,
}

impl Permission {
    /// Whether a role can have it for the appliances of some tenants only.
    #[cfg(test)]
    const fn is_about_appliances(self) -> bool {
        !matches!(self, Self::ReadTelemetry | Self::Identify | Self::Health | Self::Reflection)
    }

    /// The roles that have it, for people.
    #[must_use]
    pub fn holders(self) -> String {
        let mut holders = KINDS.iter().filter(|kind| kind.has(self)).map(|kind| kind.shown());
        let first = holders.next().unwrap_or_default();
        holders.fold(first.to_owned(), |text, next| text + ", " + next)
    }
}

/// A call, and what it needs.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Full name of the service.
    pub service: &'static str,
    /// Name of the method.
    pub method: &'static str,
    /// What it needs.
    pub permission: Permission,
}

const fn call(service: &'static str, method: &'static str, permission: Permission) -> Call {
    Call { service, method, permission }
}

const APPLIANCES: &str = "rug.admin.v1.Appliances";
const WORKERS: &str = "rug.admin.v1.Workers";
const PLACEMENT: &str = "rug.admin.v1.Placement";
const REBALANCES: &str = "rug.admin.v1.Rebalances";
const CLUSTER: &str = "rug.admin.v1.Cluster";
const TELEMETRY: &str = "rug.admin.v1.Telemetry";
const DEBUG: &str = "rug.admin.v1.Debug";
const ROLLOUTS: &str = "rug.admin.v1.Rollouts";
const BUDGETS: &str = "rug.admin.v1.Budgets";
const AUDIT: &str = "rug.admin.v1.Audit";
const RUNS: &str = "rug.admin.v1.Runs";

/// Every call that can be made.
pub const CALLS: &[Call] = &[
    call(APPLIANCES, "Create", Permission::EditAppliances),
    call(APPLIANCES, "Get", Permission::ReadAppliances),
    call(APPLIANCES, "List", Permission::ReadAppliances),
    call(APPLIANCES, "Update", Permission::EditAppliances),
    call(APPLIANCES, "Delete", Permission::EditAppliances),
    call(APPLIANCES, "Rebuild", Permission::RebuildAppliances),
    call(APPLIANCES, "Check", Permission::CheckAppliances),
    call(APPLIANCES, "Watch", Permission::ReadAppliances),
    call(APPLIANCES, "Explain", Permission::ReadAppliances),
    call(APPLIANCES, "Logs", Permission::ReadLogs),
    call(APPLIANCES, "Exec", Permission::Execute),
    call(WORKERS, "List", Permission::ReadCluster),
    call(WORKERS, "Get", Permission::ReadCluster),
    call(WORKERS, "Watch", Permission::ReadCluster),
    call(WORKERS, "Evict", Permission::Operate),
    call(WORKERS, "Forget", Permission::Operate),
    call(WORKERS, "Cordon", Permission::Operate),
    call(WORKERS, "Uncordon", Permission::Operate),
    call(WORKERS, "Drain", Permission::Operate),
    call(WORKERS, "Undrain", Permission::Operate),
    call(WORKERS, "SetWeight", Permission::Operate),
    call(PLACEMENT, "Locate", Permission::ReadAppliances),
    call(PLACEMENT, "GetRing", Permission::ReadCluster),
    call(PLACEMENT, "Pause", Permission::Operate),
    call(PLACEMENT, "Resume", Permission::Operate),
    call(PLACEMENT, "Unbind", Permission::Operate),
    call(DEBUG, "Set", Permission::Operate),
    call(DEBUG, "Clear", Permission::Operate),
    call(DEBUG, "Get", Permission::ReadCluster),
    call(DEBUG, "List", Permission::ReadCluster),
    call(DEBUG, "WouldHave", Permission::ReadAppliances),
    call(PLACEMENT, "Plan", Permission::ReadCluster),
    call(PLACEMENT, "Apply", Permission::Operate),
    call(PLACEMENT, "Pin", Permission::Operate),
    call(PLACEMENT, "Unpin", Permission::Operate),
    call(BUDGETS, "Set", Permission::Operate),
    call(BUDGETS, "Clear", Permission::Operate),
    call(BUDGETS, "List", Permission::ReadCluster),
    call(ROLLOUTS, "Start", Permission::Operate),
    call(ROLLOUTS, "Get", Permission::ReadCluster),
    call(ROLLOUTS, "List", Permission::ReadCluster),
    call(ROLLOUTS, "Pause", Permission::Operate),
    call(ROLLOUTS, "Resume", Permission::Operate),
    call(ROLLOUTS, "Abort", Permission::Operate),
    call(ROLLOUTS, "Rollback", Permission::Operate),
    call(REBALANCES, "List", Permission::ReadCluster),
    call(REBALANCES, "Get", Permission::ReadCluster),
    call(REBALANCES, "Watch", Permission::ReadCluster),
    call(REBALANCES, "Abort", Permission::Operate),
    call(CLUSTER, "Identify", Permission::Identify),
    call(CLUSTER, "Status", Permission::ReadCluster),
    call(CLUSTER, "Watch", Permission::ReadCluster),
    call(CLUSTER, "ReloadConfig", Permission::Operate),
    call(TELEMETRY, "Get", Permission::ReadTelemetry),
    call(TELEMETRY, "SetLogFilter", Permission::Operate),
    call(TELEMETRY, "SetSampling", Permission::Operate),
    call(AUDIT, "List", Permission::ReadCluster),
    call(AUDIT, "Watch", Permission::ReadCluster),
    call(RUNS, "List", Permission::ReadAppliances),
    call(RUNS, "Watch", Permission::ReadAppliances),
    call("rug.worker.v1.Session", "Open", Permission::JoinAsWorker),
    call("grpc.health.v1.Health", "Check", Permission::Health),
    call("grpc.health.v1.Health", "Watch", Permission::Health),
    call("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo", Permission::Reflection),
    call("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", Permission::Reflection),
];

/// The call that a request with this path makes; `None` when there is no such call.
#[must_use]
pub fn of_path(path: &str) -> Option<&'static Call> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    CALLS.iter().find(|call| call.service == service && call.method == method)
}

/// The kinds of roles, without the names in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoleKind {
    Admin,
    Operator,
    Editor,
    Viewer,
    Worker,
    Coordinator,
}

const KINDS: [RoleKind; 6] =
    [RoleKind::Admin, RoleKind::Operator, RoleKind::Editor, RoleKind::Viewer, RoleKind::Worker, RoleKind::Coordinator];

impl RoleKind {
    const fn of(role: &Role) -> Self {
        match role {
            Role::Admin => Self::Admin,
            Role::Operator => Self::Operator,
            Role::Editor(_) => Self::Editor,
            Role::Viewer => Self::Viewer,
            Role::Worker(_) => Self::Worker,
            Role::Coordinator(_) => Self::Coordinator,
        }
    }

    const fn shown(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::Editor => "editor",
            Self::Viewer => "viewer",
            Self::Worker => "worker",
            Self::Coordinator => "coordinator",
        }
    }

    const fn has(self, permission: Permission) -> bool {
        use Permission as P;
        match (self, permission) {
            (_, P::Identify | P::Health | P::Reflection) => true,
            (Self::Admin, P::JoinAsWorker) => false,
            (Self::Admin, _) => true,
            (Self::Operator, P::ReadAppliances | P::RebuildAppliances | P::CheckAppliances) => true,
            (Self::Operator, P::ReadCluster | P::Operate | P::ReadTelemetry | P::ReadLogs) => true,
            (Self::Operator, P::EditAppliances | P::JoinAsWorker | P::Execute) => false,
            (Self::Editor, P::ReadAppliances | P::EditAppliances | P::RebuildAppliances | P::CheckAppliances) => true,
            (Self::Editor, P::ReadLogs) => true,
            (Self::Editor, P::ReadCluster | P::Operate | P::ReadTelemetry | P::JoinAsWorker | P::Execute) => false,
            (Self::Viewer, P::ReadAppliances | P::ReadCluster | P::ReadTelemetry) => true,
            (Self::Viewer, P::EditAppliances | P::RebuildAppliances | P::CheckAppliances) => false,
            (Self::Viewer, P::Operate | P::JoinAsWorker | P::ReadLogs | P::Execute) => false,
            (Self::Worker, permission) => matches!(permission, P::JoinAsWorker),
            // What it forwards is judged by the roles of the original caller; of its own it only asks what to log.
            (Self::Coordinator, permission) => matches!(permission, P::ReadTelemetry),
        }
    }
}

/// Whether a role has a permission, if only for the appliances of its tenant.
#[must_use]
pub const fn has(role: &Role, permission: Permission) -> bool {
    RoleKind::of(role).has(permission)
}

/// The table of calls and roles, as Markdown.
#[cfg(test)]
pub(super) fn matrix() -> String {
    use std::fmt::Write as _;

    let mut text = String::from("| call |");
    let mut rule = String::from("|---|");
    for kind in KINDS {
        let _ = write!(text, " {} |", kind.shown());
        rule.push_str("---|");
    }
    let _ = write!(text, "\n{rule}\n");
    for Call { service, method, permission } in CALLS {
        let _ = write!(text, "| `{service}/{method}` |");
        for kind in KINDS {
            let cell = match (kind.has(*permission), kind) {
                (false, _) => "",
                (true, RoleKind::Editor) if permission.is_about_appliances() => "own tenants",
                (true, RoleKind::Worker) if matches!(permission, Permission::JoinAsWorker) => "as itself",
                (true, _) => "yes",
            };
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}
