//! Messages of Neutron's exchange: oslo.messaging's envelope, and which objects the event in it is about.

use std::collections::BTreeSet;

use openstack::ResourceId;
use serde::Deserialize;
use serde_json::Value;

/// Largest message that is read, in bytes. A bulk of a thousand ports has some 2 MiB.
pub const MAX_MESSAGE: usize = 8 << 20;
/// Longest type of an event, in bytes.
const MAX_EVENT: usize = 128;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Its type, such as `router.update.end`.
    pub event: String,
    /// What it is about. Nothing for events that do not concern routers.
    pub subjects: BTreeSet<Subject>,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// This router, or one of its interfaces.
    Router(ResourceId),
    /// This router is gone.
    RouterGone(ResourceId),
    /// This network, or a subnet or port of it.
    Network(ResourceId),
    /// This subnet of a network that is not told.
    Subnet(ResourceId),
    /// This port of a network that is not told.
    Port(ResourceId),
    /// This floating IP; which router has it now is told beside it.
    FloatingIp(ResourceId),
}

/// Why a message cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableMessage {
    /// It is too large.
    #[error("has {0} bytes, at most {MAX_MESSAGE} are read")]
    TooLarge(usize),
    /// It has another form.
    #[error("is no notification of oslo.messaging: {0}")]
    Form(String),
}

/// The envelope. Version 1 of it has none: the message is the body.
#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "oslo.message")]
    message: String,
}

#[derive(Deserialize)]
struct Inner {
    event_type: String,
    #[serde(default)]
    payload: Value,
}

impl Notification {
    /// Reads the body of a message.
    ///
    /// # Errors
    /// [`UnreadableMessage`].
    pub fn read(body: &[u8]) -> Result<Self, UnreadableMessage> {
        if body.len() > MAX_MESSAGE {
            return Err(UnreadableMessage::TooLarge(body.len()));
        }
        let form = |error: serde_json::Error| UnreadableMessage::Form(error.to_string());
        let inner: Inner = match serde_json::from_slice::<Envelope>(body) {
            Ok(envelope) => serde_json::from_str(&envelope.message).map_err(form)?,
            Err(_) => serde_json::from_slice(body).map_err(form)?,
        };
        let mut event = inner.event_type;
        let subjects = subjects(&event, &inner.payload);
        if event.len() > MAX_EVENT {
            event = event.chars().take(MAX_EVENT / 4).collect();
        }
        Ok(Self { event, subjects })
    }
}

/// What an event is about. Only what has been done counts: of `router.update.start` and `.end` the latter. Events of router interfaces
/// have neither.
fn subjects(event: &str, payload: &Value) -> BTreeSet<Subject> {
    let mut found = BTreeSet::new();
    let parts: Vec<&str> = event.split('.').collect();
    match parts.as_slice() {
        ["router", "interface", "create" | "delete"] => {
            // The name of the object was once that of the event.
            for name in ["router_interface", "router.interface"] {
                let interface = &payload[name];
                found.extend(id(interface, "id").map(Subject::Router));
                found.extend(id(interface, "network_id").map(Subject::Network));
            }
        }
        ["router", "delete", "end"] => {
            found.extend(id(payload, "router_id").or_else(|| id(&payload["router"], "id")).map(Subject::RouterGone));
        }
        ["router", _, "end"] => {
            found.extend(objects(payload, "router").filter_map(|o| id(o, "id")).map(Subject::Router))
        }
        ["network", _, "end"] => {
            found.extend(objects(payload, "network").filter_map(|o| id(o, "id")).map(Subject::Network));
            found.extend(id(payload, "network_id").map(Subject::Network));
        }
        ["subnet", _, "end"] => {
            found.extend(objects(payload, "subnet").filter_map(|o| id(o, "network_id")).map(Subject::Network));
            if found.is_empty() {
                found.extend(id(payload, "subnet_id").map(Subject::Subnet));
            }
        }
        ["port", _, "end"] => {
            for port in objects(payload, "port") {
                found.extend(id(port, "network_id").map(Subject::Network));
                if text(port, "device_owner").starts_with("network:router_") {
                    found.extend(id(port, "device_id").map(Subject::Router));
                }
            }
            if found.is_empty() {
                found.extend(id(payload, "port_id").map(Subject::Port));
            }
        }
        ["floatingip", _, "end"] => {
            for floating in objects(payload, "floatingip") {
                found.extend(id(floating, "id").map(Subject::FloatingIp));
                found.extend(id(floating, "router_id").map(Subject::Router));
            }
            found.extend(id(payload, "floatingip_id").map(Subject::FloatingIp));
        }
        ["tag", _, "end"] if text(payload, "parent_resource") == "routers" => {
            found.extend(id(payload, "parent_resource_id").map(Subject::Router));
        }
        _ => {}
    }
    found
}

/// The objects of a payload: one under its name, or several under the plural of it, as a bulk has them.
fn objects<'a>(payload: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    let several = payload.get(format!("{name}s")).and_then(Value::as_array).into_iter().flatten();
    payload.get(name).into_iter().chain(several)
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn id(object: &Value, field: &str) -> Option<ResourceId> {
    text(object, field).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{enveloped, id};

    fn subjects_of(event: &str, payload: Value) -> Vec<Subject> {
        let body = enveloped(event, &payload);
        let read = Notification::read(&body).expect("readable");
        assert_eq!(read.event, event);
        read.subjects.into_iter().collect()
    }

    #[test]
    fn an_event_names_the_objects_that_it_is_about() {
        use serde_json::json;
        let (r, n, f) = (id("r1"), id("n1"), id("f1"));
        let router = Subject::Router(r.clone());
        let network = Subject::Network(n.clone());
        let cases = [
            ("router.create.end", json!({"router": {"id": r, "tenant_id": "t"}}), vec![router.clone()]),
            ("router.update.end", json!({"router": {"id": r}}), vec![router.clone()]),
            ("router.update.start", json!({"router": {"id": r}}), vec![]),
            ("router.delete.end", json!({"router_id": r}), vec![Subject::RouterGone(r.clone())]),
            ("router.delete.end", json!({"router_id": r, "router": {"id": r}}), vec![Subject::RouterGone(r.clone())]),
            (
                "router.interface.create",
                json!({"router_interface": {"id": r, "tenant_id": "t", "port_id": "p", "network_id": n, "subnet_id": "s"}}),
                vec![router.clone(), network.clone()],
            ),
            ("router.interface.delete", json!({"router.interface": {"id": r}}), vec![router.clone()]),
            ("network.update.end", json!({"network": {"id": n, "mtu": 1400}}), vec![network.clone()]),
            ("network.delete.end", json!({"network_id": n}), vec![network.clone()]),
            ("subnet.update.end", json!({"subnet": {"id": "s1", "network_id": n}}), vec![network.clone()]),
            ("subnet.delete.end", json!({"subnet_id": "s1"}), vec![Subject::Subnet(id("s1"))]),
            ("port.delete.end", json!({"port_id": "p1", "port": {"id": "p1", "network_id": n}}), vec![network.clone()]),
            ("port.delete.end", json!({"port_id": "p1"}), vec![Subject::Port(id("p1"))]),
            (
                "port.create.end",
                json!({"ports": [{"id": "p1", "network_id": n}, {"id": "p2", "network_id": "n2"}]}),
                vec![network.clone(), Subject::Network(id("n2"))],
            ),
            (
                "port.update.end",
                json!({"port": {"id": "p", "network_id": n, "device_owner": "network:router_gateway", "device_id": r}}),
                vec![router.clone(), network],
            ),
            (
                "floatingip.update.end",
                json!({"floatingip": {"id": f, "router_id": r, "port_id": "p"}}),
                vec![router, Subject::FloatingIp(f.clone())],
            ),
            (
                "floatingip.update.end",
                json!({"floatingip": {"id": f, "router_id": null, "port_id": null}}),
                vec![Subject::FloatingIp(f.clone())],
            ),
            ("floatingip.delete.end", json!({"floatingip_id": f}), vec![Subject::FloatingIp(f)]),
            ("security_group.create.end", json!({"security_group": {"id": "x"}}), vec![]),
            ("router.create.end", json!({"router": {"id": "../x"}}), vec![]),
            ("router.create.end", json!(null), vec![]),
        ];
        for (event, payload, expected) in cases {
            assert_eq!(subjects_of(event, payload.clone()), expected, "{event} {payload}");
        }
    }

    #[test]
    fn the_notification_of_a_real_neutron_is_read() {
        let read = Notification::read(crate::samples::ROUTER_CREATED.as_bytes()).expect("readable");
        assert_eq!(read.event, "router.create.end");
        let router = "6e97d14a-93b4-4daa-a307-36c1761e1b76".parse().expect("an id");
        assert_eq!(read.subjects, [Subject::Router(router)].into());
    }

    #[test]
    fn a_message_without_an_envelope_is_read_and_others_are_refused() {
        let bare = br#"{"event_type": "router.delete.end", "payload": {"router_id": "r1"}}"#;
        let read = Notification::read(bare).expect("readable");
        assert_eq!(read.subjects, [Subject::RouterGone(id("r1"))].into());
        for body in ["", "[]", "{}", r#"{"oslo.message": "{}"}"#, r#"{"oslo.message": 7}"#, "\u{0}"] {
            assert!(matches!(Notification::read(body.as_bytes()), Err(UnreadableMessage::Form(_))), "{body}");
        }
        let large = vec![b' '; MAX_MESSAGE + 1];
        assert_eq!(Notification::read(&large), Err(UnreadableMessage::TooLarge(MAX_MESSAGE + 1)));
    }
}
