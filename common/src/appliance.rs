//! What a user asks for: the specification of an appliance, checked as a whole.
//!
//! A [`Spec`] in memory is always valid: `proto::convert` builds one field by field and calls [`Spec::validate`] before
//! anything else sees it, and the store reads it back through the same check. Limits are generous for real appliances and
//! small enough that no single document can exhaust a worker.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kind::KindSpec;
use crate::limits::check_text;
pub use crate::limits::{FieldViolation, MAX_ENTRIES, MAX_REPLICAS, MAX_SPEC, MAX_TEXT, MAX_VIOLATIONS, Violations};
pub use crate::name::{InvalidName, MAX_NAME, Name};
use crate::network_port::{self, NetworkPort};

/// What a user asks of one appliance. Every change of it raises the generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Instances wanted, 1 to [`MAX_REPLICAS`]. Instance `n` of a process appliance listens on `port + n`.
    pub replicas: u16,
    /// Time between two probes of one instance; the worker's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_interval: Option<Duration>,
    /// Image to boot, where the driver has images; part of what makes a rebuild.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Network ports that every instance has, beside those its driver needs for itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NetworkPort>,
    /// What the appliance does.
    pub kind: KindSpec,
}

impl Spec {
    /// Every rule the spec breaks, with field paths below `spec`.
    #[must_use]
    pub fn validate(&self) -> Vec<FieldViolation> {
        let mut found = Vec::new();
        if self.replicas == 0 || self.replicas > MAX_REPLICAS {
            found.push(FieldViolation::new(
                "spec.replicas",
                format!("must be 1 to {MAX_REPLICAS}, is {}", self.replicas),
            ));
        }
        if let Some(interval) = self.probe_interval
            && !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&interval)
        {
            found.push(FieldViolation::new("spec.probe_interval", "must be 100ms to 1h"));
        }
        if let Some(image) = &self.image {
            check_text(&mut found, "spec.image", image, 1);
        }
        network_port::validate(&self.ports, self.replicas, "spec.ports", &mut found);
        self.kind.validate(self.replicas, &mut found);
        found
    }

    /// Adds what [`Spec::validate`] says to `found`, with its paths put below `at`.
    pub fn validate_at(&self, at: &str, found: &mut Violations) {
        for violation in self.validate() {
            let below = violation.field.strip_prefix("spec").unwrap_or(&violation.field);
            found.add_if_new(FieldViolation::new(format!("{at}{below}"), violation.description));
        }
    }

    /// Ports this spec claims on the host that runs it, with the field that names each. Empty for drivers that give
    /// every instance an address of its own.
    #[must_use]
    pub fn claimed_ports(&self) -> Vec<(u16, String)> {
        self.kind
            .ports()
            .into_iter()
            .flat_map(|(port, field)| {
                (0..self.replicas).filter_map(move |n| port.checked_add(n)).map(move |p| (p, field.clone()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::kind::{Custom, HealthCheck, Listener, LoadBalancer, Probe};

    use super::*;

    fn custom() -> Spec {
        Spec {
            replicas: 2,
            probe_interval: None,
            image: None,
            ports: vec![],
            kind: KindSpec::Custom(Custom {
                command: "sleep".into(),
                args: vec!["1".into()],
                env: BTreeMap::new(),
                port: Some(8000),
                probe: Probe::Tcp,
            }),
        }
    }

    #[test]
    fn a_valid_spec_has_no_violations_and_survives_json() {
        let spec = custom();
        assert_eq!(spec.validate(), vec![]);
        let text = serde_json::to_string(&spec).expect("a spec is plain data");
        assert_eq!(serde_json::from_str::<Spec>(&text).expect("round trip"), spec);
    }

    #[test]
    fn every_violation_names_its_field() {
        let mut spec = custom();
        spec.replicas = 0;
        let KindSpec::Custom(c) = &mut spec.kind else { unreachable!() };
        c.command = String::new();
        c.port = Some(0);
        c.probe = Probe::Http { path: "x y".into() };
        let fields: Vec<_> = spec.validate().into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["spec.replicas", "spec.custom.command", "spec.custom.port", "spec.custom.probe.http.path"]);
    }

    #[test]
    fn instance_ports_follow_the_first_one() {
        let ports: Vec<_> = custom().claimed_ports().into_iter().map(|(p, _)| p).collect();
        assert_eq!(ports, [8000, 8001]);
    }

    #[test]
    fn listeners_whose_instance_ports_overlap_are_refused() {
        let listener = |name: &str, port| Listener {
            name: name.into(),
            address: [127, 0, 0, 1].into(),
            port,
            members: vec![],
            health_check: HealthCheck::default(),
            limits: crate::kind::Limits::default(),
            algorithm: Default::default(),
            proxy_protocol: None,
            trust_proxy_from: vec![],
        };
        let spec = Spec {
            kind: KindSpec::Loadbalancer(LoadBalancer { listeners: vec![listener("a", 80), listener("b", 81)] }),
            ..custom()
        };
        assert_eq!(spec.validate()[0].field, "spec.loadbalancer.listeners[1].port");
    }
}
