//! Appliances for tests.

use std::time::Duration;

use proto::admin::v1;

use super::binaries;

/// A web server that answers with its name, probed over HTTP once a second, on a port the worker picks.
///
/// # Panics
/// When the helper was not built, which it is with the tests.
#[must_use]
pub fn web(name: &str) -> v1::Appliance {
    let helper = binaries::path("rug-test-helper").expect("built with the tests");
    let custom = v1::Custom {
        command: helper.to_string_lossy().into_owned(),
        args: ["serve", "{port}", "{name}"].map(Into::into).to_vec(),
        probe: Some(v1::Probe { probe: Some(v1::probe::Probe::Http(v1::HttpProbe { path: "/".into() })) }),
        ..v1::Custom::default()
    };
    appliance(name, "process", v1::spec::Kind::Custom(custom))
}

/// A program that listens nowhere and is probed by its process, once a second.
#[must_use]
pub fn sleeper(name: &str) -> v1::Appliance {
    let custom = v1::Custom {
        command: "sleep".into(),
        args: vec!["86400".into()],
        probe: Some(v1::Probe { probe: Some(v1::probe::Probe::Process(v1::ProcessProbe {})) }),
        ..v1::Custom::default()
    };
    appliance(name, "process", v1::spec::Kind::Custom(custom))
}

/// [`web`] on this port.
#[must_use]
pub fn web_at(name: &str, port: u16) -> v1::Appliance {
    let mut appliance = web(name);
    custom(&mut appliance).port = Some(port.into());
    appliance
}

/// A load balancer on `port` with these members, which it checks five times a second.
#[must_use]
pub fn balancer(name: &str, port: u16, members: &[u16]) -> v1::Appliance {
    let member = |port: &u16| v1::Member { address: "127.0.0.1".into(), port: (*port).into() };
    let listener = v1::Listener {
        name: "http".into(),
        address: "127.0.0.1".into(),
        port: port.into(),
        members: members.iter().map(member).collect(),
        health_check: Some(v1::HealthCheck {
            interval: Some(duration(Duration::from_millis(200))),
            timeout: Some(duration(Duration::from_secs(1))),
            fall: 2,
            rise: 1,
        }),
        ..v1::Listener::default()
    };
    let kind = v1::spec::Kind::Loadbalancer(v1::LoadBalancer { listeners: vec![listener] });
    appliance(name, "process", kind)
}

/// An appliance that exists in the memory of a worker.
#[must_use]
pub fn simulated(name: &str) -> v1::Appliance {
    let custom = v1::Custom { command: "simulated".into(), ..v1::Custom::default() };
    let mut appliance = appliance(name, "simulated", v1::spec::Kind::Custom(custom));
    spec(&mut appliance).probe_interval = None;
    appliance
}

/// The specification of an appliance made here.
///
/// # Panics
/// When it has none.
#[must_use]
pub fn spec(appliance: &mut v1::Appliance) -> &mut v1::Spec {
    appliance.spec.as_mut().expect("appliances made here have a spec")
}

/// What [`web`] runs.
///
/// # Panics
/// When it is of another kind.
#[must_use]
pub fn custom(appliance: &mut v1::Appliance) -> &mut v1::Custom {
    match spec(appliance).kind.as_mut() {
        Some(v1::spec::Kind::Custom(custom)) => custom,
        other => panic!("not a custom appliance: {other:?}"),
    }
}

/// A duration as the wire has it.
#[must_use]
pub fn duration(duration: Duration) -> prost_types::Duration {
    proto::convert::scalar::duration_to_wire(duration)
}

fn appliance(name: &str, driver: &str, kind: v1::spec::Kind) -> v1::Appliance {
    v1::Appliance {
        name: name.into(),
        driver: driver.into(),
        spec: Some(v1::Spec {
            probe_interval: Some(duration(Duration::from_secs(1))),
            kind: Some(kind),
            ..v1::Spec::default()
        }),
        ..v1::Appliance::default()
    }
}
