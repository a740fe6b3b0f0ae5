//! What happens to the model, and what it asks for.
//!
//! Everything that comes from the cluster, from the terminal or from the clock is an [`Input`]; everything that has to be done outside is
//! an [`Order`], whose result comes back as another input.

use std::time::SystemTime;

use proto::admin::v1;

use super::screen::Target;

/// A stream of the server that is followed all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feed {
    Cluster,
    Workers,
    Rebalances,
    Audit,
}

impl Feed {
    /// Every one.
    pub(crate) const ALL: [Self; 4] = [Self::Cluster, Self::Workers, Self::Rebalances, Self::Audit];

    /// What it is about.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "the cluster",
            Self::Workers => "workers",
            Self::Rebalances => "rebalances",
            Self::Audit => "the audit trail",
        }
    }
}

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// A stream is open; what it says of the present state follows.
    Opened(Feed),
    /// A stream broke and is being opened again, with the reason.
    Interrupted(Feed, String),
    /// A stream was refused and is not tried again, with the reason.
    Refused(Feed, String),
    /// The state of the cluster changed.
    Cluster(Box<v1::ClusterStatus>),
    /// A worker changed, or the state at the start is complete.
    Worker(Box<v1::WorkerEvent>),
    /// A rebalance began, went on or ended.
    Rebalance(Box<v1::Rebalance>),
    /// Somebody did something.
    Audit(Box<v1::AuditEvent>),
    /// Answer to [`Order::Troubles`]; `None` when there was none.
    Troubles(Option<Box<v1::Troubles>>),
    /// Answer to [`Order::Ring`]; `None` when there was none.
    Ring(Option<Box<v1::Ring>>),
    /// Answer to [`Order::Modes`]; `None` when there was none.
    Modes(Option<Vec<v1::DebugMode>>),
    /// Answer to [`Order::Rollouts`]; `None` when there was none.
    Rollouts(Option<Vec<v1::Rollout>>),
    /// Answer to [`Order::Budgets`]; `None` when there was none.
    Budgets(Option<Vec<v1::Budget>>),
    /// Answer to [`Order::Page`] with this number.
    Page(u64, Result<Box<v1::ListAppliancesResponse>, String>),
    /// Answer to [`Order::Inspect`] or [`Order::Explain`].
    Text(Result<(String, String), String>),
    /// Answer to [`Order::Change`]: what was done, or why not.
    Changed(Result<String, String>),
    /// A key was pressed.
    Key(Key),
    /// Something was clicked.
    Click(Target),
    /// The wheel was turned by so many lines, downwards if positive.
    Wheel(Option<Target>, isize),
    /// Time went on.
    Tick(SystemTime),
}

/// A key as the model knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Tab,
    BackTab,
    Backspace,
}

/// Something that can be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Worker(String),
    Appliance { id: String, label: String },
    Rebalance(String),
}

/// Something to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Rebuild {
        id: String,
        label: String,
    },
    /// Only this incarnation: another one has done nothing.
    Evict {
        worker: String,
        incarnation: String,
    },
    Drain {
        worker: String,
    },
    Undrain {
        worker: String,
    },
    /// Set a debug mode.
    HandsOff(Subject),
    /// Clear these debug modes.
    HandsOn {
        label: String,
        modes: Vec<String>,
    },
    Pause,
    Resume,
}

/// Something that the model wants done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Order {
    /// The program ends.
    Quit,
    /// Ask what is wrong with appliances.
    Troubles,
    /// Ask for the policy and the weights.
    Ring,
    /// Ask for the debug modes.
    Modes,
    /// Ask for the rollouts.
    Rollouts,
    /// Ask for the budgets of disruption.
    Budgets,
    /// Ask for a page of appliances.
    Page {
        /// Comes back with the answer.
        number: u64,
        filter: v1::ApplianceFilter,
        token: String,
    },
    /// Describe it.
    Inspect(Subject),
    /// Say why an appliance is where it is.
    Explain {
        id: String,
        label: String,
    },
    Change(Change),
}
