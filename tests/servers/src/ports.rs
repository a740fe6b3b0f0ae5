//! Claims on what a machine has once: ports and network names.
//!
//! A claim is an abstract Unix socket, so it holds against every other process that asks here, and ends with its
//! process however that ends. Ports lie below the range the kernel gives to outgoing connections, and above the one
//! that Rug's own cluster tests take theirs from.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Context, Result};
use rand::Rng;

const RANGE: std::ops::Range<u16> = 30_000..32_700;

/// Something only one process of this machine has at a time.
#[derive(Debug)]
pub(crate) struct PortClaim(#[expect(dead_code, reason = "held open, never used")] UnixListener);

impl PortClaim {
    /// `None` when somebody else has it.
    pub(crate) fn take(name: &str) -> Option<Self> {
        let address = SocketAddr::from_abstract_name(format!("rug-test-{name}")).ok()?;
        UnixListener::bind_addr(&address).ok().map(Self)
    }
}

/// A port that nobody listened at when it was taken and that no other test gets while this lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: PortClaim,
}

impl Port {
    /// A free one.
    ///
    /// # Errors
    /// When the machine has none left.
    pub fn free() -> Result<Self> {
        let first = rand::rng().random_range(RANGE);
        (first..RANGE.end)
            .chain(RANGE.start..first)
            .find_map(|number| {
                let claim = PortClaim::take(&format!("port-{number}"))?;
                // Not only the loopback address: a server at any other could be in the way of one that wants them all.
                TcpListener::bind(("0.0.0.0", number)).ok()?;
                Some(Self { number, _claim: claim })
            })
            .context("no free port is left")
    }

    /// Its number.
    #[must_use]
    pub const fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_a_port_twice_while_it_is_held() {
        let ports: Vec<Port> = (0..50).map(|_| Port::free().expect("fifty ports are free")).collect();
        let numbers: std::collections::BTreeSet<u16> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
        assert!(PortClaim::take(&format!("port-{}", ports[0].number())).is_none());
        let first = ports[0].number();
        drop(ports);
        assert!(PortClaim::take(&format!("port-{first}")).is_some());
    }
}
