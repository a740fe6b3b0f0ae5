//! Interfaces, addresses and routes by rtnetlink.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;

use crate::ApplyError;
use crate::netlink::{CREATE, Message, REPLACE, Socket, attributes};
use crate::plan::{Link, Plan, PlannedRoute};

/// Number of the routes that are ours, beside those of the kernel, of daemons and of operators.
pub const PROTOCOL: u8 = 82;

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

/// Length of what addresses, links and routes begin with.
const ADDRESS_HEAD: usize = 8;
const LINK_HEAD: usize = 16;
const ROUTE_HEAD: usize = 12;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const UP: u32 = 1;
const MAIN_TABLE: u8 = 254;
const UNICAST: u8 = 1;
/// The address may be used at once: Neutron has made sure that nobody else has it.
const NO_DAD: u8 = 0x02;

/// Brings interfaces and routes to the plan. Those of `former` lose their addresses.
pub(crate) fn apply(plan: &Plan, former: &BTreeSet<String>) -> Result<(), ApplyError> {
    let mut socket = Socket::open(None).map_err(|error| failed("open a socket of rtnetlink", error))?;
    let links = links(&mut socket).map_err(|error| failed("list the interfaces", error))?;
    let index = |name: &str| {
        links
            .get(name)
            .copied()
            .ok_or_else(|| failed(&format!("find {name}"), io::Error::from(io::ErrorKind::NotFound)))
    };
    // All of them are looked for before one is touched.
    let wanted: Vec<_> =
        plan.links.iter().map(|(name, link)| Ok((name, index(name)?, link))).collect::<Result<_, ApplyError>>()?;
    if !plan.links.is_empty() {
        forward().map_err(|error| failed("let the kernel forward", error))?;
    }
    let present = addresses(&mut socket).map_err(|error| failed("list the addresses", error))?;
    let routes = own_routes(&mut socket).map_err(|error| failed("list the routes", error))?;
    // Routes go before the addresses that they need, and come after them.
    for route in routes.iter().filter(|route| !plan.routes.contains(route)) {
        gone(socket.request(route_message(DELETE_ROUTE, 0, route)))
            .map_err(|error| failed(&format!("remove the route to {}/{}", route.destination, route.prefix), error))?;
    }
    let nothing = Link::default();
    let leaving = former.iter().filter_map(|name| Some((name, *links.get(name)?, &nothing)));
    for (name, index, link) in leaving.chain(wanted.iter().map(|(name, index, link)| (*name, *index, *link))) {
        for (ip, prefix) in
            present.iter().filter(|a| a.0 == index).map(|a| (a.1, a.2)).filter(|a| !link.addresses.contains(a))
        {
            gone(socket.request(address_message(DELETE_ADDRESS, 0, index, ip, prefix)))
                .map_err(|error| failed(&format!("remove {ip}/{prefix} from {name}"), error))?;
        }
    }
    for (name, index, link) in &wanted {
        set_up(&mut socket, *index, link.mtu).map_err(|error| failed(&format!("set up {name}"), error))?;
        for (ip, prefix) in &link.addresses {
            let message = address_message(NEW_ADDRESS, CREATE | REPLACE, *index, *ip, *prefix);
            socket.request(message).map_err(|error| failed(&format!("give {ip}/{prefix} to {name}"), error))?;
        }
    }
    // Also those that were there: the kernel may have dropped them with an address.
    for route in &plan.routes {
        socket.request(route_message(NEW_ROUTE, CREATE | REPLACE, route)).map_err(|error| {
            failed(&format!("route {}/{} by {}", route.destination, route.prefix, route.gateway), error)
        })?;
    }
    Ok(())
}

pub(crate) fn failed(doing: &str, error: io::Error) -> ApplyError {
    ApplyError::Kernel { doing: doing.to_owned(), error }
}

/// What is to be removed may be gone: the kernel drops routes with addresses, and addresses with others.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        // No such process, and no such address.
        Err(error) if matches!(error.raw_os_error(), Some(3 | 99)) => Ok(()),
        result => result,
    }
}

/// Lets the kernel of this namespace forward.
fn forward() -> io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    match std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn links(socket: &mut Socket) -> io::Result<HashMap<String, u32>> {
    const NAME: u16 = 3;
    let found = socket.dump(Message::new(GET_LINK, 0, &[0; LINK_HEAD]))?;
    let read = |body: Vec<u8>| {
        let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        let (_, name) = attributes(&body, LINK_HEAD).find(|(kind, _)| *kind == NAME)?;
        let name = std::str::from_utf8(name.split(|byte| *byte == 0).next()?).ok()?;
        Some((name.to_owned(), index))
    };
    Ok(found.into_iter().filter_map(read).collect())
}

fn set_up(socket: &mut Socket, index: u32, mtu: Option<u32>) -> io::Result<()> {
    const MTU: u16 = 4;
    let mut head = [0; LINK_HEAD];
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    head[8..12].copy_from_slice(&UP.to_ne_bytes());
    head[12..16].copy_from_slice(&UP.to_ne_bytes());
    let mut message = Message::new(NEW_LINK, 0, &head);
    if let Some(mtu) = mtu {
        message.attribute(MTU, &mtu.to_ne_bytes());
    }
    socket.request(message)
}

/// Addresses of all interfaces, but for those of a link, which the kernel gives.
fn addresses(socket: &mut Socket) -> io::Result<Vec<(u32, IpAddr, u8)>> {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    const GLOBAL: u8 = 0;
    let found = socket.dump(Message::new(GET_ADDRESS, 0, &[0; ADDRESS_HEAD]))?;
    let read = |body: Vec<u8>| {
        let (prefix, scope) = (*body.get(1)?, *body.get(3)?);
        let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
        let value = |wanted| attributes(&body, ADDRESS_HEAD).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let ip = ip(value(LOCAL).or_else(|| value(ADDRESS))?)?;
        (scope == GLOBAL).then_some((index, ip, prefix))
    };
    Ok(found.into_iter().filter_map(read).collect())
}

fn address_message(kind: u16, flags: u16, index: u32, ip: IpAddr, prefix: u8) -> Message {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    let mut head = [0; ADDRESS_HEAD];
    head[0] = family(ip);
    head[1] = prefix;
    head[2] = if ip.is_ipv6() && kind == NEW_ADDRESS { NO_DAD } else { 0 };
    head[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(kind, flags, &head);
    message.attribute(LOCAL, &octets(ip));
    message.attribute(ADDRESS, &octets(ip));
    message
}

/// Our routes of the main table.
fn own_routes(socket: &mut Socket) -> io::Result<BTreeSet<PlannedRoute>> {
    const DESTINATION: u16 = 1;
    const GATEWAY: u16 = 5;
    let found = socket.dump(Message::new(GET_ROUTE, 0, &[0; ROUTE_HEAD]))?;
    let read = |body: Vec<u8>| {
        let (family, prefix, table, protocol) = (*body.first()?, *body.get(1)?, *body.get(4)?, *body.get(5)?);
        if (table, protocol) != (MAIN_TABLE, PROTOCOL) {
            return None;
        }
        let value = |wanted| attributes(&body, ROUTE_HEAD).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let all = if family == AF_INET { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let destination = value(DESTINATION).map_or(Some(all), ip)?;
        Some(PlannedRoute { destination, prefix, gateway: ip(value(GATEWAY)?)? })
    };
    Ok(found.into_iter().filter_map(read).collect())
}

fn route_message(kind: u16, flags: u16, route: &PlannedRoute) -> Message {
    const DESTINATION: u16 = 1;
    const GATEWAY: u16 = 5;
    let mut head = [0; ROUTE_HEAD];
    head[0] = family(route.destination);
    head[1] = route.prefix;
    head[4] = MAIN_TABLE;
    head[5] = PROTOCOL;
    head[7] = UNICAST;
    let mut message = Message::new(kind, flags, &head);
    if route.prefix > 0 {
        message.attribute(DESTINATION, &octets(route.destination));
    }
    message.attribute(GATEWAY, &octets(route.gateway));
    message
}

const fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
