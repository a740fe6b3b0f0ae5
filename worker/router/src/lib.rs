//! A router in the network namespace of its process: what `rug-appliance` does with the configuration of one.
//!
//! - `plan` makes of a configuration what the kernel is to have: pure, everything is checked before anything is touched;
//! - `links` brings interfaces, addresses and routes to that by rtnetlink, and lets the kernel forward;
//! - `nat` replaces the rules of translation by nftables, all of them in one transaction of the kernel;
//! - `netlink` is how both are spoken to.
//!
//! Only the interfaces that a configuration names are touched, and never that of the management network. Of the routes those are
//! ours that carry our number ([`links::PROTOCOL`]), of nftables one table.

mod links;
mod nat;
mod netlink;
mod plan;

use std::collections::BTreeSet;

use common::kind::router::contract::Config;

pub use self::links::PROTOCOL;
pub use self::nat::TABLE;
pub use self::plan::{InvalidConfig, METADATA_ADDRESS, Plan, metadata_doors};

/// Why a configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It cannot be: nothing was touched.
    #[error(transparent)]
    Invalid(#[from] InvalidConfig),
    /// The kernel translates no addresses: nothing was touched.
    #[error("the configuration needs NAT, which this kernel refuses: {0}")]
    NoNat(std::io::Error),
    /// The kernel refused a part. What was put in place before stays, and the same configuration can be put in place again.
    #[error("{doing}: {error}")]
    Kernel {
        /// What was done.
        doing: String,
        /// What the kernel said.
        error: std::io::Error,
    },
}

/// Traffic of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Name of the interface.
    pub interface: String,
    /// Bytes that came in by it.
    pub received: u64,
    /// Bytes that went out.
    pub sent: u64,
}

/// The router of this namespace.
#[derive(Debug, Default)]
pub struct Router {
    /// Interfaces that the last configuration named. Those that the next one does not name lose their addresses.
    interfaces: BTreeSet<String>,
}

impl Router {
    /// Puts a configuration in force. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub fn apply(&mut self, config: &Config) -> Result<(), ApplyError> {
        let plan = Plan::new(config)?;
        if plan.needs_nat() {
            nat::probe().map_err(ApplyError::NoNat)?;
        }
        let former: BTreeSet<_> = self.interfaces.difference(&plan.interface_names()).cloned().collect();
        let result = links::apply(&plan, &former).and_then(|()| nat::apply(&plan));
        // Also after a failure: what is there has to be taken away again some time.
        self.interfaces.extend(plan.interface_names());
        if result.is_ok() {
            self.interfaces = plan.interface_names();
        }
        result
    }

    /// What has passed the interfaces of the configuration in force, since each was made.
    #[must_use]
    pub fn traffic(&self) -> Vec<Traffic> {
        let counter = |interface: &str, name: &str| {
            let read = std::fs::read_to_string(format!("/sys/class/net/{interface}/statistics/{name}"));
            read.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        let one = |interface: &String| Traffic {
            interface: interface.clone(),
            received: counter(interface, "rx_bytes"),
            sent: counter(interface, "tx_bytes"),
        };
        self.interfaces.iter().map(one).collect()
    }
}
