//! What follows from the wanted state of an appliance for its instances.

use std::fmt::Write as _;

pub use common::session::Desired;
use md5::{Digest, Md5};

use crate::ports::{PluggedPort, PluggedPorts};

/// Digest of everything an instance can only take on by being started anew. An instance with another digest is
/// replaced; everything else is configured in place.
///
/// Derived from the content, not from the generation, so that a change of labels, members or replicas restarts
/// nothing. Network ports count only where the driver cannot plug them into a running instance (`plugs_ports` is false).
#[must_use]
pub fn boot_digest(desired: &Desired, plugs_ports: bool) -> String {
    let mut hash = Md5::new();
    let mut field = |name: &str, value: &str| {
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name);
        hash.update((value.len() as u64).to_be_bytes());
        hash.update(value);
    };
    field("revision", &desired.revision.to_string());
    field("image", desired.spec.image.as_deref().unwrap_or(""));
    field("kind", desired.spec.kind.name());
    desired.spec.kind.restart_inputs(&mut field);
    if let Some(pod) = &desired.spec.pod {
        field("pod", pod.as_str());
    }
    if !plugs_ports {
        for PluggedPort { name, digest } in PluggedPorts::from_iter(&desired.spec.ports).iter() {
            field(name.as_str(), &digest.to_string());
        }
    }
    hash.finalize().iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use common::Edition;
    use common::appliance::{Name, Spec, Timing};
    use common::driver::DriverName;
    use common::kind::{Custom, HealthCheck, KindSpec, Limits, Listener, LoadBalancer, Probe};
    use common::network_port::NetworkPort;

    use super::*;

    fn desired(revision: u64, image: Option<&str>, kind: KindSpec) -> Desired {
        let name = Name::new("a").expect("a name");
        let spec = Spec {
            replicas: 2,
            probe_interval: None,
            timing: Timing::default(),
            image: image.map(str::to_owned),
            pod: None,
            ports: vec![],
            kind,
        };
        let (driver, edition) = (DriverName::process(), Edition::default());
        Desired { name: name.clone(), tenant: name, driver, edition, revision, deleting: false, spec }
    }

    fn custom(port: Option<u16>, probe: Probe) -> KindSpec {
        let env = BTreeMap::from([("B".to_owned(), "2".to_owned()), ("A".to_owned(), "{port}".to_owned())]);
        let args = vec!["-m".to_owned(), "http.server".to_owned(), "{port}".to_owned()];
        KindSpec::Custom(Custom { command: "python3".into(), args, env, port, probe, ..Custom::default() })
    }

    fn balancer() -> KindSpec {
        let listener = Listener {
            name: "l".into(),
            address: [127, 0, 0, 1].into(),
            port: 8080,
            members: vec![],
            health_check: HealthCheck::default(),
            limits: Limits::default(),
            algorithm: Default::default(),
            proxy_protocol: None,
            trust_proxy_from: vec![],
        };
        KindSpec::Loadbalancer(LoadBalancer { listeners: vec![listener] })
    }

    /// Instances that run were started with these. Another digest for the same specification would restart every one of
    /// them on an upgrade.
    #[test]
    fn boot_digests_never_change() {
        let http = Probe::Http { path: "/".into() };
        for (desired, digest) in [
            (desired(0, None, custom(Some(8000), http)), "8e771898a0629c3cf833624ff7f1370d"),
            (desired(0, None, custom(Some(8000), Probe::Tcp)), "8e771898a0629c3cf833624ff7f1370d"),
            (desired(0, None, custom(None, Probe::Tcp)), "02a5f56ba2195b227ee0156e3ba27bf4"),
            (desired(3, Some("image-2"), custom(None, Probe::Tcp)), "37fee7e8415b978c3dfe5cd6856e2872"),
            (desired(0, None, balancer()), "f7e55ea8620aa0f6431ae2f3b098629f"),
            (desired(1, Some("image-2"), balancer()), "b06a30ecf9b6212492a083687ed9a23a"),
        ] {
            for plugs_ports in [false, true] {
                assert_eq!(boot_digest(&desired, plugs_ports), digest, "{desired:?}");
            }
        }
    }

    #[test]
    fn ports_need_a_restart_only_where_they_cannot_be_plugged() {
        let port = |name: &str, network: &str| NetworkPort {
            name: Name::new(name).expect("a name"),
            network: network.into(),
            addresses: vec![],
            mac: None,
        };
        let with = |ports| {
            let plain = desired(0, None, balancer());
            Desired { spec: Spec { ports, ..plain.spec }, ..plain }
        };
        let (none, one) = (with(vec![]), with(vec![port("a", "n1")]));
        let both = [port("a", "n1"), port("b", "n1")];
        assert_eq!(boot_digest(&none, true), boot_digest(&one, true));
        let digests: std::collections::BTreeSet<_> = [none, one, with(vec![port("a", "n2")]), with(both.to_vec())]
            .iter()
            .map(|d| boot_digest(d, false))
            .collect();
        assert_eq!(digests.len(), 4);
        let turned = with(both.iter().rev().cloned().collect());
        assert_eq!(
            boot_digest(&with(both.to_vec()), false),
            boot_digest(&turned, false),
            "their order does not matter"
        );
    }
}
