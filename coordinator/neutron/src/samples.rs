//! What tests share: messages and objects as a real Neutron gave them, with shorter ids.

use openstack::ResourceId;
use serde_json::{Value, json};

use crate::state::Snapshot;

pub(crate) fn id(text: &str) -> ResourceId {
    text.parse().expect("an id")
}

/// A message with this event in oslo's envelope.
pub(crate) fn enveloped(event: &str, payload: &Value) -> Vec<u8> {
    let inner = json!({
        "message_id": "8d070d48-48c5-441a-914f-dc33fa38d0ad", "publisher_id": "network.vm", "event_type": event, "priority": "INFO",
        "timestamp": "2026-11-22 11:28:31.312879", "payload": payload, "_unique_id": "1ccc0004cb604038ae8768ec29e166fa",
    });
    json!({"oslo.version": "2.0", "oslo.message": inner.to_string()}).to_string().into_bytes()
}

/// As RabbitMQ delivered it.
pub(crate) const ROUTER_CREATED: &str = r#"{"oslo.version": "2.0", "oslo.message": "{\"message_id\": \"8d070d48-48c5-441a-914f-dc33fa38d0ad\", \"publisher_id\": \"network.vm\", \"event_type\": \"router.create.end\", \"priority\": \"INFO\", \"payload\": {\"router\": {\"id\": \"6e97d14a-93b4-4daa-a307-36c1761e1b76\", \"name\": \"r1\", \"tenant_id\": \"e5f5fe9aff804036b5abdb7bd0404910\", \"project_id\": \"e5f5fe9aff804036b5abdb7bd0404910\", \"admin_state_up\": true, \"status\": \"ACTIVE\", \"external_gateway_info\": null, \"description\": \"\", \"availability_zones\": [], \"availability_zone_hints\": [], \"distributed\": false, \"ha\": false, \"routes\": [], \"flavor_id\": null, \"tags\": [], \"created_at\": \"2026-11-22T11:28:31Z\", \"updated_at\": \"2026-11-22T11:28:31Z\", \"revision_number\": 1}}, \"timestamp\": \"2026-11-22 11:28:31.312879\", \"_unique_id\": \"1ccc0004cb604038ae8768ec29e166fa\", \"_context_request_id\": \"req-0f8adcd0\"}"}"#;

fn read<T: serde::de::DeserializeOwned>(objects: Value) -> Vec<T> {
    serde_json::from_value(objects).expect("objects of Neutron")
}

/// Two routers: `r1` with two subnets behind it, a gateway and a floating IP; `r2` with a gateway alone, and for two instances.
pub(crate) fn snapshot() -> Snapshot {
    let routers = json!([
        {"id": "r1", "name": "shop", "project_id": "e5f5fe9aff804036b5abdb7bd0404910", "admin_state_up": true, "status": "ACTIVE",
         "external_gateway_info": {"network_id": "n-ext", "enable_snat": true,
            "external_fixed_ips": [{"subnet_id": "s-ext", "ip_address": "203.0.113.7"}]},
         "routes": [{"destination": "10.8.0.0/16", "nexthop": "10.0.0.8"}], "ha": false, "flavor_id": null, "tags": ["blue"],
         "availability_zone_hints": ["z1"], "revision_number": 4},
        {"id": "r2", "name": "", "project_id": "p2", "ha": true, "flavor_id": "fl",
         "external_gateway_info": {"network_id": "n-ext", "enable_snat": false, "external_fixed_ips": []}, "routes": []},
    ]);
    let networks = json!([
        {"id": "n-int", "name": "inner", "project_id": "e5f5fe9aff804036b5abdb7bd0404910", "mtu": 1450, "router:external": false},
        {"id": "n-ext", "name": "outer", "project_id": "a", "mtu": 1500, "router:external": true},
    ]);
    let subnets = json!([
        {"id": "s-v6", "network_id": "n-int", "ip_version": 6, "cidr": "fd00:1::/64", "gateway_ip": "fd00:1::1", "enable_dhcp": true,
         "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"},
        {"id": "s-v4", "network_id": "n-int", "ip_version": 4, "cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.1", "enable_dhcp": true,
         "dns_nameservers": ["192.0.2.53"], "host_routes": [{"destination": "10.9.0.0/16", "nexthop": "10.0.0.9"}]},
        {"id": "s-ext", "network_id": "n-ext", "ip_version": 4, "cidr": "203.0.113.0/24", "gateway_ip": "203.0.113.1",
         "enable_dhcp": false},
    ]);
    let floating = json!([
        {"id": "f1", "floating_ip_address": "203.0.113.20", "fixed_ip_address": "10.0.0.5", "floating_network_id": "n-ext",
         "port_id": "p-vm", "router_id": "r1"},
        {"id": "f2", "floating_ip_address": "203.0.113.21", "fixed_ip_address": null, "floating_network_id": "n-ext"},
    ]);
    Snapshot::new(read(routers), read(networks), read(subnets), ports(), read(floating))
}

/// The ports of both, and of others in their networks.
pub(crate) fn ports() -> Vec<openstack::Port> {
    let ports = json!([
        {"id": "p-v6", "network_id": "n-int", "mac_address": "fa:16:3e:00:00:02", "device_id": "r1",
         "device_owner": "network:router_interface", "fixed_ips": [{"subnet_id": "s-v6", "ip_address": "fd00:1::1"}]},
        {"id": "p-v4", "network_id": "n-int", "mac_address": "fa:16:3e:00:00:01", "device_id": "r1",
         "device_owner": "network:router_interface", "fixed_ips": [{"subnet_id": "s-v4", "ip_address": "10.0.0.1"}]},
        {"id": "p-gw", "network_id": "n-ext", "mac_address": "fa:16:3e:00:00:03", "device_id": "r1", "project_id": "",
         "device_owner": "network:router_gateway", "fixed_ips": [{"subnet_id": "s-ext", "ip_address": "203.0.113.7"}]},
        {"id": "p-vm", "network_id": "n-int", "mac_address": "fa:16:3e:00:00:05", "device_id": "server-1", "device_owner": "compute:nova",
         "fixed_ips": [{"subnet_id": "s-v4", "ip_address": "10.0.0.5"}, {"subnet_id": "s-v6", "ip_address": "fd00:1::5"}]},
        {"id": "p-dhcp", "network_id": "n-int", "mac_address": "fa:16:3e:00:00:06", "device_id": "dhcp", "device_owner": "network:dhcp",
         "fixed_ips": [{"subnet_id": "s-v4", "ip_address": "10.0.0.2"}]},
        {"id": "p-own", "network_id": "n-int", "name": "RUG:VRRP:r1-0-1:n", "mac_address": "fa:16:3e:00:00:07", "device_id": "server-2",
         "device_owner": "compute:nova", "fixed_ips": [{"subnet_id": "s-v4", "ip_address": "10.0.0.77"}]},
        {"id": "p-bare", "network_id": "n-int", "mac_address": "fa:16:3e:00:00:08", "device_id": "", "device_owner": "", "fixed_ips": []},
    ]);
    read(ports)
}
