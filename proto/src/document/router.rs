//! Routers in documents.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use common::appliance::Name;
use common::kind::Network;
use common::kind::router::{Ipv6Mode, NetworkRole};
use common::network_port::{MacAddress, PortAddress};

use super::read::{checked, one_of};
use super::tree::{Field, Fields, ReadReport};
use crate::admin::v1;
use crate::convert::{ipv6_mode_to_wire, role_to_wire};

pub(super) fn router(mut fields: Fields, report: &mut ReadReport) -> v1::Router {
    let hostname = fields.take("hostname", report).and_then(|f| f.text(report));
    let networks = all(&mut fields, "networks", report, network);
    let routes = all(&mut fields, "routes", report, route);
    let floating_ips = all(&mut fields, "floating_ips", report, floating_ip);
    let snat = fields.take("snat", report).and_then(|f| f.flag(report));
    let labels = all(&mut fields, "labels", report, label);
    fields.finish(report);
    v1::Router { hostname: hostname.unwrap_or_default(), networks, routes, floating_ips, snat, labels }
}

/// The entries of a list that can be read.
fn all<T>(
    fields: &mut Fields,
    name: &'static str,
    report: &mut ReadReport,
    read: impl Fn(Field, &mut ReadReport) -> Option<T>,
) -> Vec<T> {
    let list = fields.take(name, report).map(|field| field.list(report)).unwrap_or_default();
    list.into_iter().filter_map(|field| read(field, report)).collect()
}

/// A text that a parser of the domain takes, in the form in which that is written.
fn parsed<T: FromStr<Err: Display> + Display>(field: &Field, report: &mut ReadReport) -> Option<String> {
    checked(field, report, str::parse::<T>).map(|value| value.to_string())
}

fn address(field: &Field, report: &mut ReadReport) -> Option<String> {
    let read = |text: &str| text.parse::<IpAddr>().map_err(|_| format!("`{text}` is not an IP address"));
    checked(field, report, read).map(|address| address.to_string())
}

fn network(field: Field, report: &mut ReadReport) -> Option<v1::RouterNetwork> {
    let mut fields = field.fields(report)?;
    let port = fields.require("port", report).and_then(|f| checked(&f, report, Name::new));
    let roles = NetworkRole::ALL.map(|role| (role.name(), role));
    let role = fields.require("role", report).and_then(|f| one_of(&f, &roles, report));
    let addresses = all(&mut fields, "addresses", report, |f, report| parsed::<PortAddress>(&f, report));
    let mtu = fields.take("mtu", report).and_then(|f| f.whole(1..=u32::from(u16::MAX), report));
    let subnets = all(&mut fields, "subnets", report, subnet);
    let allocations = all(&mut fields, "allocations", report, allocation);
    fields.finish(report);
    let (port, role, mtu) = (port?.to_string(), role_to_wire(role?), mtu.unwrap_or_default());
    Some(v1::RouterNetwork { port, role, addresses, mtu, subnets, allocations })
}

fn subnet(field: Field, report: &mut ReadReport) -> Option<v1::Subnet> {
    let mut fields = field.fields(report)?;
    let cidr = fields.require("cidr", report).and_then(|f| parsed::<Network>(&f, report));
    let gateway = fields.take("gateway", report).and_then(|f| address(&f, report));
    let dhcp = fields.take("dhcp", report).and_then(|f| f.flag(report));
    let dns = all(&mut fields, "dns", report, |f, report| address(&f, report));
    let host_routes = all(&mut fields, "host_routes", report, route);
    let modes = Ipv6Mode::ALL.map(|mode| (mode.name(), mode));
    let [ra_mode, address_mode] = ["ra_mode", "address_mode"]
        .map(|name| ipv6_mode_to_wire(fields.take(name, report).and_then(|f| one_of(&f, &modes, report))));
    fields.finish(report);
    Some(v1::Subnet {
        cidr: cidr?,
        gateway: gateway.unwrap_or_default(),
        dhcp: dhcp.unwrap_or_default(),
        dns,
        host_routes,
        ra_mode,
        address_mode,
    })
}

fn route(field: Field, report: &mut ReadReport) -> Option<v1::Route> {
    let mut fields = field.fields(report)?;
    let destination = fields.require("destination", report).and_then(|f| parsed::<Network>(&f, report));
    let next_hop = fields.require("next_hop", report).and_then(|f| address(&f, report));
    fields.finish(report);
    Some(v1::Route { destination: destination?, next_hop: next_hop? })
}

fn allocation(field: Field, report: &mut ReadReport) -> Option<v1::Allocation> {
    let mut fields = field.fields(report)?;
    let mac = fields.require("mac", report).and_then(|f| parsed::<MacAddress>(&f, report));
    let addresses = all(&mut fields, "addresses", report, |f, report| address(&f, report));
    let hostname = fields.require("hostname", report).and_then(|f| f.text(report));
    let device = fields.take("device", report).and_then(|f| f.text(report)).unwrap_or_default();
    fields.finish(report);
    Some(v1::Allocation { mac: mac?, addresses, hostname: hostname?, device })
}

fn floating_ip(field: Field, report: &mut ReadReport) -> Option<v1::FloatingIp> {
    let mut fields = field.fields(report)?;
    let floating = fields.require("floating", report).and_then(|f| address(&f, report));
    let fixed = fields.require("fixed", report).and_then(|f| address(&f, report));
    fields.finish(report);
    Some(v1::FloatingIp { floating: floating?, fixed: fixed? })
}

fn label(field: Field, report: &mut ReadReport) -> Option<v1::RouterLabel> {
    let mut fields = field.fields(report)?;
    let name = fields.require("name", report).and_then(|f| parsed::<Name>(&f, report));
    let networks = all(&mut fields, "networks", report, |f, report| parsed::<Network>(&f, report));
    fields.finish(report);
    Some(v1::RouterLabel { name: name?, networks })
}
