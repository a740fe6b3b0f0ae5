use super::*;
use crate::kind::KindSpec;

pub(crate) fn router() -> Router {
    let address = |text: &str| text.parse().expect("an address");
    let network = |text: &str| text.parse::<Network>().expect("a network");
    let subnet = |cidr: &str, gateway: &str| Subnet {
        cidr: network(cidr),
        gateway: Some(address(gateway)),
        dhcp: true,
        dns: vec![address("192.0.2.53")],
        host_routes: vec![],
        ra_mode: None,
        address_mode: None,
    };
    let external = RouterNetwork {
        port: Name::new("ext").expect("a name"),
        role: NetworkRole::External,
        addresses: vec!["203.0.113.7/24".parse().expect("an address")],
        mtu: Some(1500),
        subnets: vec![subnet("198.51.100.0/24", "198.51.100.1"), subnet("203.0.113.0/24", "203.0.113.1")],
        allocations: vec![],
    };
    let v6 = Subnet {
        ra_mode: Some(Ipv6Mode::Slaac),
        address_mode: Some(Ipv6Mode::Slaac),
        ..subnet("fd00:1::/64", "fd00:1::1")
    };
    let internal = RouterNetwork {
        port: Name::new("int").expect("a name"),
        role: NetworkRole::Internal,
        addresses: ["10.0.0.1/24", "fd00:1::1/64"].map(|text| text.parse().expect("an address")).to_vec(),
        mtu: None,
        subnets: vec![
            Subnet {
                host_routes: vec![Route { destination: network("10.9.0.0/16"), next_hop: address("10.0.0.9") }],
                ..subnet("10.0.0.0/24", "10.0.0.1")
            },
            v6,
        ],
        allocations: vec![Allocation {
            mac: "fa:16:3e:00:00:05".parse().expect("an address"),
            addresses: vec![address("10.0.0.5"), address("fd00:1::5")],
            hostname: "10-0-0-5.local".into(),
            device: "server-1".into(),
        }],
    };
    Router {
        networks: vec![external, internal],
        routes: vec![Route { destination: network("10.8.0.0/16"), next_hop: address("10.0.0.8") }],
        floating_ips: vec![FloatingIp { floating: address("203.0.113.20"), fixed: address("10.0.0.5") }],
        labels: [("peers".to_owned(), vec![network("192.0.2.0/24")])].into(),
        ..Router::default()
    }
}

fn violations(router: &Router) -> Vec<String> {
    let mut found = Vec::new();
    router.validate(1, &mut found);
    found.iter().map(ToString::to_string).collect()
}

#[test]
fn a_router_survives_json_and_is_valid() {
    let router = router();
    assert_eq!(violations(&router), Vec::<String>::new());
    let text = serde_json::to_string(&KindSpec::Router(router.clone())).expect("plain data");
    assert_eq!(serde_json::from_str::<KindSpec>(&text).expect("round trip"), KindSpec::Router(router));
    let bare: Router = serde_json::from_str(r#"{"networks":[]}"#).expect("the rest has defaults");
    assert_eq!(bare, Router::default());
    assert!(bare.snat && violations(&bare).is_empty());
}

#[test]
fn the_configuration_has_what_appliances_of_the_old_system_read() {
    let Ok(Configuration::Router(draft)) = router().configuration(Generation::new(3), 0) else {
        panic!("a router has such a configuration")
    };
    assert_eq!(draft.ports.iter().map(Name::as_str).collect::<Vec<_>>(), ["ext", "int"]);
    let sent = serde_json::to_value(&draft.config).expect("plain data");
    assert_eq!(sent["default_v4_gateway"], "203.0.113.1", "of the subnet that the address is in");
    assert_eq!(sent["asn"], contract::DEFAULT_ASN);
    assert_eq!(sent["static_routes"][0], serde_json::json!(["10.8.0.0/16", "10.0.0.8"]));
    assert_eq!(sent["floating_ips"][0], serde_json::json!({"floating_ip": "203.0.113.20", "fixed_ip": "10.0.0.5"}));
    assert_eq!(sent["labels"]["peers"], serde_json::json!(["192.0.2.0/24"]));
    let internal = &sent["networks"][1];
    assert_eq!(internal["network_type"], "internal");
    assert_eq!(internal["v4_conf_service"], "static");
    assert_eq!(internal["interface"]["addresses"], serde_json::json!(["10.0.0.1/24", "fd00:1::1/64"]));
    assert_eq!(
        internal["subnets"][0],
        serde_json::json!({"cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.1", "dhcp_enabled": true,
            "dns_nameservers": ["192.0.2.53"], "host_routes": [{"destination": "10.9.0.0/16", "nexthop": "10.0.0.9"}]})
    );
    assert_eq!(internal["subnets"][1]["dhcp_enabled"], false, "hosts make their addresses themselves");
    assert_eq!(internal["subnets"][1]["ipv6_ra_mode"], "slaac");
    assert_eq!(
        internal["allocations"][0],
        serde_json::json!({"ip_addresses": {"10.0.0.5": true, "fd00:1::5": true}, "device_id": "server-1",
            "hostname": "10-0-0-5.local", "mac_address": "fa:16:3e:00:00:05"})
    );
    assert_eq!(serde_json::from_value::<contract::Config>(sent).expect("round trip"), draft.config);
}

#[test]
fn every_violation_names_its_field() {
    let mut bad = router();
    bad.hostname = Some("a b".into());
    bad.networks[1].role = NetworkRole::External;
    bad.networks[1].port = bad.networks[0].port.clone();
    bad.networks[1].addresses.push("203.0.113.7".parse().expect("an address"));
    bad.networks[1].mtu = Some(1);
    bad.networks[1].subnets[0].ra_mode = Some(Ipv6Mode::Slaac);
    bad.networks[1].subnets[1].gateway = Some([10, 0, 0, 1].into());
    bad.networks[1].allocations[0].hostname = String::new();
    bad.routes[0].next_hop = "::1".parse().expect("an address");
    bad.floating_ips.push(bad.floating_ips[0]);
    bad.floating_ips[1].fixed = "::1".parse().expect("an address");
    let mut found = Vec::new();
    bad.validate(1, &mut found);
    let fields: Vec<_> = found.iter().map(|v| v.field.strip_prefix("spec.router.").expect("of the kind")).collect();
    assert_eq!(
        fields,
        [
            "hostname",
            "networks[1].port",
            "networks[1].addresses",
            "networks[1].addresses",
            "networks[1].mtu",
            "networks[1].subnets[0].ra_mode",
            "networks[1].subnets[1].gateway",
            "networks[1].allocations[0].hostname",
            "networks",
            "routes[0].next_hop",
            "floating_ips[1].fixed",
            "floating_ips[1].floating",
        ]
    );
}

#[test]
fn lists_are_bounded() {
    let mut big = router();
    big.routes = vec![big.routes[0]; MAX_ENTRIES + 1];
    big.networks[1].allocations = vec![big.networks[1].allocations[0].clone(); MAX_ALLOCATIONS + 1];
    let found = violations(&big);
    assert!(found.iter().any(|v| v.contains("1025 allocations")), "{found:?}");
    assert!(found.iter().any(|v| v.starts_with("spec.router.routes: has 257")), "{found:?}");
}
