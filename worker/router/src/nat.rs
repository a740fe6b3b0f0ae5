//! Translation of addresses by nftables: one table of our own, replaced as a whole in one transaction of the kernel.
//!
//! ```text
//! table ip rug {
//!     chain prerouting  { type nat hook prerouting priority dstnat;  ip daddr FLOATING dnat to FIXED }
//!     chain postrouting { type nat hook postrouting priority srcnat; oifname EXTERNAL ip saddr FIXED snat to FLOATING
//!                         oifname EXTERNAL ip saddr INTERNAL snat to OWN }
//! }
//! ```
//!
//! IPv6 is not translated: Neutron routes it as it is.

use std::io;
use std::net::Ipv4Addr;

use rustix::net::netlink as protocols;

use crate::ApplyError;
use crate::links::failed;
use crate::netlink::{APPEND, CREATE, Message, Socket};
use crate::plan::Plan;

/// Name of the table.
pub const TABLE: &str = "rug";

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Number of nftables among the parts of netfilter.
const NFTABLES: u8 = 10;
const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const AF_INET: u8 = 2;
/// Hooks and priorities of the two chains.
const PREROUTING: (&str, u32, i32) = ("prerouting", 0, -100);
const POSTROUTING: (&str, u32, i32) = ("postrouting", 4, 100);
/// The register that is used.
const REGISTER: u32 = 1;
const SNAT: u32 = 0;
const DNAT: u32 = 1;
/// Where the addresses are in the header of IPv4.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
/// How long the name of an interface is in the kernel.
const IFNAME: usize = 16;

/// Whether the kernel translates: makes a table with a chain and removes it again, in one transaction.
pub(crate) fn probe() -> io::Result<()> {
    let name = "rug-probe";
    transaction(vec![table(NEW_TABLE, name), chain(name, PREROUTING), table(DELETE_TABLE, name)])
}

/// Replaces the rules by those of the plan; without any there is no table.
pub(crate) fn apply(plan: &Plan) -> Result<(), ApplyError> {
    // One that is not there cannot be deleted, and one that is there can be made again.
    let mut messages = vec![table(NEW_TABLE, TABLE), table(DELETE_TABLE, TABLE)];
    if plan.needs_nat() {
        messages.extend([table(NEW_TABLE, TABLE), chain(TABLE, PREROUTING), chain(TABLE, POSTROUTING)]);
        messages.extend(rules(plan));
    }
    match transaction(messages) {
        // A kernel that has no nftables has no rules of ours either.
        Err(_) if !plan.needs_nat() => Ok(()),
        result => result.map_err(|error| failed("replace the rules of translation", error)),
    }
}

fn rules(plan: &Plan) -> Vec<Message> {
    let mut rules = Vec::new();
    for (floating, fixed) in &plan.floating {
        rules.push(rule(PREROUTING.0, |m| {
            match_address(m, DESTINATION, *floating, 32);
            translate(m, DNAT, *fixed);
        }));
    }
    let external = plan.snat.as_ref().map(|snat| snat.interface.as_str()).or_else(|| floating_interface(plan));
    for (floating, fixed) in &plan.floating {
        rules.push(rule(POSTROUTING.0, |m| {
            external.into_iter().for_each(|name| match_interface(m, name));
            match_address(m, SOURCE, *fixed, 32);
            translate(m, SNAT, *floating);
        }));
    }
    if let Some(snat) = &plan.snat {
        for (network, prefix) in &snat.networks {
            rules.push(rule(POSTROUTING.0, |m| {
                match_interface(m, &snat.interface);
                match_address(m, SOURCE, *network, *prefix);
                translate(m, SNAT, snat.address);
            }));
        }
    }
    rules
}

/// The interface that has the floating addresses.
fn floating_interface(plan: &Plan) -> Option<&str> {
    let (floating, _) = plan.floating.first()?;
    let has = |addresses: &std::collections::BTreeSet<_>| {
        addresses.iter().any(|(ip, _)| *ip == std::net::IpAddr::V4(*floating))
    };
    plan.links.iter().find(|(_, link)| has(&link.addresses)).map(|(name, _)| name.as_str())
}

fn transaction(messages: Vec<Message>) -> io::Result<()> {
    let mut socket = Socket::open(Some(protocols::NETFILTER))?;
    let mark = |kind| Message::new(kind, 0, &[0, 0, 0, NFTABLES]);
    socket.batch(mark(BATCH_BEGIN), messages, mark(BATCH_END))
}

fn message(kind: u8, flags: u16) -> Message {
    Message::new(u16::from(NFTABLES) << 8 | u16::from(kind), flags, &[AF_INET, 0, 0, 0])
}

fn table(kind: u8, name: &str) -> Message {
    const NAME: u16 = 1;
    let mut message = message(kind, if kind == NEW_TABLE { CREATE } else { 0 });
    message.text(NAME, name);
    message
}

fn chain(table: &str, (name, hook, priority): (&str, u32, i32)) -> Message {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const TYPE: u16 = 7;
    let mut message = message(NEW_CHAIN, CREATE);
    message.text(TABLE, table);
    message.text(NAME, name);
    message.nested(HOOK, |m| {
        m.attribute(1, &hook.to_be_bytes());
        m.attribute(2, &priority.to_be_bytes());
    });
    message.text(TYPE, "nat");
    message
}

fn rule(chain: &str, write: impl FnOnce(&mut Message)) -> Message {
    const RULE_TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    let mut message = message(NEW_RULE, CREATE | APPEND);
    message.text(RULE_TABLE, TABLE);
    message.text(CHAIN, chain);
    message.nested(EXPRESSIONS, write);
    message
}

fn expression(message: &mut Message, name: &str, write: impl FnOnce(&mut Message)) {
    const ELEMENT: u16 = 1;
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    message.nested(ELEMENT, |m| {
        m.text(NAME, name);
        m.nested(DATA, write);
    });
}

fn number(message: &mut Message, kind: u16, value: u32) {
    message.attribute(kind, &value.to_be_bytes());
}

/// Bytes as the value of an expression.
fn value(message: &mut Message, kind: u16, bytes: &[u8]) {
    message.nested(kind, |m| m.attribute(1, bytes));
}

fn compare(message: &mut Message, bytes: &[u8]) {
    const EQUAL: u32 = 0;
    expression(message, "cmp", |m| {
        number(m, 1, REGISTER);
        number(m, 2, EQUAL);
        value(m, 3, bytes);
    });
}

/// Only what leaves by this interface.
fn match_interface(message: &mut Message, name: &str) {
    const OUT_NAME: u32 = 7;
    expression(message, "meta", |m| {
        number(m, 1, REGISTER);
        number(m, 2, OUT_NAME);
    });
    let mut bytes = [0; IFNAME];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(IFNAME - 1)) {
        *to = from;
    }
    compare(message, &bytes);
}

/// Only what has an address of this network at an offset of its header.
fn match_address(message: &mut Message, offset: u32, network: Ipv4Addr, prefix: u8) {
    const NETWORK_HEADER: u32 = 1;
    expression(message, "payload", |m| {
        number(m, 1, REGISTER);
        number(m, 2, NETWORK_HEADER);
        number(m, 3, offset);
        number(m, 4, 4);
    });
    if prefix < 32 {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        expression(message, "bitwise", |m| {
            number(m, 1, REGISTER);
            number(m, 2, REGISTER);
            number(m, 3, 4);
            value(m, 4, &mask.to_be_bytes());
            value(m, 5, &[0; 4]);
        });
    }
    compare(message, &network.octets());
}

fn translate(message: &mut Message, kind: u32, to: Ipv4Addr) {
    expression(message, "immediate", |m| {
        number(m, 1, REGISTER);
        value(m, 2, &to.octets());
    });
    expression(message, "nat", |m| {
        number(m, 1, kind);
        number(m, 2, u32::from(AF_INET));
        number(m, 3, REGISTER);
    });
}
