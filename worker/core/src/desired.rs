//! What follows from the wanted state of an appliance for its instances.

use std::fmt::Write as _;

pub use common::session::Desired;
use md5::{Digest, Md5};

/// Digest of everything an instance can only take on by being started anew. An instance with another digest is
/// replaced; everything else is configured in place.
///
/// Derived from the content, not from the generation, so that a change of labels, members or replicas restarts
/// nothing.
#[must_use]
pub fn boot_digest(desired: &Desired) -> String {
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
    hash.finalize().iter().fold(String::with_capacity(32), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use common::Edition;
    use common::appliance::{Name, Spec};
    use common::driver::DriverName;
    use common::kind::{Custom, HealthCheck, KindSpec, Listener, LoadBalancer, Probe};

    use super::*;

    fn desired(revision: u64, image: Option<&str>, kind: KindSpec) -> Desired {
        let name = Name::new("a").expect("a name");
        let spec = Spec { replicas: 2, probe_interval: None, image: image.map(str::to_owned), kind };
        let (driver, edition) = (DriverName::process(), Edition::default());
        Desired { name: name.clone(), tenant: name, driver, edition, revision, deleting: false, spec }
    }

    fn custom(port: Option<u16>, probe: Probe) -> KindSpec {
        let env = BTreeMap::from([("B".to_owned(), "2".to_owned()), ("A".to_owned(), "{port}".to_owned())]);
        let args = vec!["-m".to_owned(), "http.server".to_owned(), "{port}".to_owned()];
        KindSpec::Custom(Custom { command: "python3".into(), args, env, port, probe })
    }

    fn balancer() -> KindSpec {
        let listener = Listener {
            name: "l".into(),
            address: [127, 0, 0, 1].into(),
            port: 8080,
            members: vec![],
            health_check: HealthCheck::default(),
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
            assert_eq!(boot_digest(&desired), digest, "{desired:?}");
        }
    }
}
