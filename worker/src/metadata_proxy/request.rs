//! Who asks, as a request says, and what Nova is told about that: pure.

use std::net::IpAddr;

use common::ApplianceId;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::guests::Guest;
use super::refusal::Refusal;
use super::secret::SigningKey;
use crate::appliance::api::metadata_header::{FORWARDED_FOR, NETWORK, ROUTER};
use crate::held::HeldAppliance;
use crate::http_passing;

/// Id of the server.
pub(super) const INSTANCE: HeaderName = HeaderName::from_static("x-instance-id");
/// Its project.
pub(super) const TENANT: HeaderName = HeaderName::from_static("x-tenant-id");
/// Proof that the proxy says so.
pub(super) const SIGNATURE: HeaderName = HeaderName::from_static("x-instance-id-signature");

/// Longest id of a network, in bytes.
const MAX_ID: usize = common::network_port::MAX_NETWORK_ID;

/// Where a server asks from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AskedFrom {
    Network(String),
    Router(ApplianceId),
}

/// Who asks, as its appliance says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) address: IpAddr,
    pub(super) from: AskedFrom,
}

impl Asker {
    /// Reads who asks.
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Refusal> {
        let address = only(headers, &FORWARDED_FOR, "X-Forwarded-For must be there once")?;
        let address = address.ok_or(Refusal::Malformed("X-Forwarded-For is missing"))?;
        let address: IpAddr = address.parse().map_err(|_| Refusal::Malformed("X-Forwarded-For is not one address"))?;
        let network = only(headers, &NETWORK, "X-Neutron-Network-ID must be there once")?;
        let router = only(headers, &ROUTER, "X-Neutron-Router-ID must be there once")?;
        let from = match (network, router) {
            (Some(network), None) if (1..=MAX_ID).contains(&network.len()) => AskedFrom::Network(network.to_owned()),
            (Some(_), None) => return Err(Refusal::Malformed("X-Neutron-Network-ID is not the id of a network")),
            (None, Some(router)) => {
                let no_router = || Refusal::Malformed("X-Neutron-Router-ID is not the id of a router");
                AskedFrom::Router(router.parse().map_err(|_| no_router())?)
            }
            _ => return Err(Refusal::Malformed("either X-Neutron-Network-ID or X-Neutron-Router-ID must be there")),
        };
        Ok(Self { address: address.to_canonical(), from })
    }

    /// The networks in one of which it has its address.
    pub(super) fn networks(&self, held: &HeldAppliance) -> Result<Vec<String>, Refusal> {
        let inner = held.inner_networks();
        match &self.from {
            AskedFrom::Network(network) if inner.contains(network.as_str()) => Ok(vec![network.clone()]),
            AskedFrom::Network(network) => Err(Refusal::ForeignNetwork(network.clone())),
            AskedFrom::Router(router) if *router == held.appliance => {
                Ok(inner.into_iter().map(str::to_owned).collect())
            }
            AskedFrom::Router(router) => Err(Refusal::ForeignRouter(router.to_string())),
        }
    }
}

/// The value of a header that may be there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName, problem: &'static str) -> Result<Option<&'a str>, Refusal> {
    let mut all = headers.get_all(name).iter();
    let first = all.next();
    if all.next().is_some() {
        return Err(Refusal::Malformed(problem));
    }
    first.map(HeaderValue::to_str).transpose().map_err(|_| Refusal::Malformed(problem))
}

/// Reads who asks from lines of headers, and writes it again.
pub(crate) fn rewrite_asker(lines: &[u8]) -> Result<Vec<u8>, String> {
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(64) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..at], line[at + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let Asker { address, from } = Asker::read(&headers).map_err(|refusal| refusal.to_string())?;
    let (name, place) = match from {
        AskedFrom::Network(network) => (NETWORK, network),
        AskedFrom::Router(router) => (ROUTER, router.to_string()),
    };
    Ok(format!("{FORWARDED_FOR}: {address}\n{name}: {place}\n").into_bytes())
}

/// The headers that go on to Nova.
pub(super) fn headers(from: &HeaderMap, address: IpAddr, guest: &Guest, key: &SigningKey) -> HeaderMap {
    let (server, project) = (guest.server.as_str(), guest.project.as_str());
    let own = [
        (FORWARDED_FOR, address.to_string()),
        (INSTANCE, server.to_owned()),
        (TENANT, project.to_owned()),
        (SIGNATURE, key.sign(server)),
    ];
    http_passing::headers(from, own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::tests::router;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        headers
    }

    #[test]
    fn who_asks_is_one_address_and_one_place() {
        let appliance = ApplianceId::from_u128(7);
        let of = |pairs: &[(&str, &str)]| Asker::read(&map(pairs));
        let network = Asker { address: [10, 0, 0, 5].into(), from: AskedFrom::Network("n1".to_owned()) };
        assert_eq!(of(&[("X-Forwarded-For", "10.0.0.5"), ("X-Neutron-Network-ID", "n1")]), Ok(network));
        let by_router = of(&[("X-Forwarded-For", "fd00::5"), ("X-Neutron-Router-ID", &appliance.to_string())]);
        assert_eq!(by_router.map(|asker| asker.from), Ok(AskedFrom::Router(appliance)));
        for bad in [
            &[("X-Neutron-Network-ID", "n1")][..],
            &[("X-Forwarded-For", "10.0.0.5")],
            &[("X-Forwarded-For", ""), ("X-Neutron-Network-ID", "n1")],
            &[("X-Forwarded-For", "10.0.0.5, 10.0.0.6"), ("X-Neutron-Network-ID", "n1")],
            &[("X-Forwarded-For", "10.0.0.5:80"), ("X-Neutron-Network-ID", "n1")],
            &[("X-Forwarded-For", "10.0.0.5"), ("X-Forwarded-For", "10.0.0.6"), ("X-Neutron-Network-ID", "n1")],
            &[("X-Forwarded-For", "10.0.0.5"), ("X-Neutron-Network-ID", "")],
            &[("X-Forwarded-For", "10.0.0.5"), ("X-Neutron-Network-ID", "\u{e9}")],
            &[("X-Forwarded-For", "10.0.0.5"), ("X-Neutron-Network-ID", "n1"), ("X-Neutron-Network-ID", "n2")],
            &[("X-Forwarded-For", "10.0.0.5"), ("X-Neutron-Router-ID", "r1")],
            &[
                ("X-Forwarded-For", "10.0.0.5"),
                ("X-Neutron-Network-ID", "n1"),
                ("X-Neutron-Router-ID", "00000000-0000-0000-0000-000000000007"),
            ],
        ] {
            assert!(matches!(of(bad), Err(Refusal::Malformed(_))), "{bad:?}");
        }
    }

    #[test]
    fn only_inner_networks_of_the_appliance_can_be_asked_for() {
        let held = HeldAppliance { appliance: ApplianceId::from_u128(7), desired: router("openstack") };
        let of = |from| Asker { address: [10, 0, 0, 5].into(), from }.networks(&held);
        assert_eq!(of(AskedFrom::Network("id-int".into())), Ok(vec!["id-int".to_owned()]));
        assert_eq!(of(AskedFrom::Router(held.appliance)), Ok(vec!["id-int".to_owned()]));
        let foreign = Refusal::ForeignNetwork("id-ext".into());
        assert_eq!(of(AskedFrom::Network("id-ext".into())), Err(foreign), "others have addresses there");
        assert!(of(AskedFrom::Router(ApplianceId::from_u128(8))).is_err());
    }

    #[test]
    fn nothing_that_a_server_sends_becomes_a_header_of_the_proxy() {
        let sent = map(&[
            ("Accept", "*/*"),
            ("X-Instance-ID", "other"),
            ("X_Instance_ID", "other"),
            ("X-Tenant-ID", "other"),
            ("X-Instance-ID-Signature", "other"),
            ("X-Metadata-Provider", "other"),
            ("X-Forwarded-For", "10.0.0.6"),
            ("Connection", "X-Tenant-ID"),
            ("Transfer-Encoding", "chunked"),
            ("Host", "169.254.169.254"),
        ]);
        let guest = Guest { server: "i-1".parse().expect("an id"), project: "p-1".parse().expect("an id") };
        let headers = headers(&sent, [10, 0, 0, 5].into(), &guest, &SigningKey::new(b"Jefe"));
        let mut shown: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        shown.sort_unstable();
        let signature = SigningKey::new(b"Jefe").sign("i-1");
        let wanted = [
            ("accept", "*/*"),
            ("x-forwarded-for", "10.0.0.5"),
            ("x-instance-id", "i-1"),
            ("x-instance-id-signature", signature.as_str()),
            ("x-tenant-id", "p-1"),
        ];
        assert_eq!(shown, wanted);
    }
}
