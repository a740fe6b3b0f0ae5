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
use crate::pod::PodTemplate;

/// What a user asks of one appliance. Every change of it raises the generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Instances wanted, 1 to [`MAX_REPLICAS`]. Instance `n` of a process appliance listens on `port + n`.
    pub replicas: u16,
    /// Time between two probes of one instance; the worker's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_interval: Option<Duration>,
    /// Other times.
    #[serde(default, skip_serializing_if = "Timing::is_default")]
    pub timing: Timing,
    /// Image to boot, where the driver has images; part of what makes a rebuild.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Network ports that every instance has, beside those its driver needs for itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<NetworkPort>,
    /// What the pods of instances have besides, where the driver makes pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodTemplate>,
    /// What the appliance does.
    pub kind: KindSpec,
}

/// How long an instance may take. In documents and in the API these are fields of the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// For one probe; the worker's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_timeout: Option<Duration>,
    /// From its start to its first answered probe; the worker's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_timeout: Option<Duration>,
    /// From its start until an answered probe counts; when absent what the kind says ([`Spec::settle_time`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settle_time: Option<Duration>,
}

impl Timing {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A time in a specification, as update masks name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecTime {
    /// Between two probes.
    ProbeInterval,
    /// For one probe.
    ProbeTimeout,
    /// From the start to the first answered probe.
    BootTimeout,
    /// From the start until an answered probe counts.
    SettleTime,
}

impl SpecTime {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::ProbeInterval, Self::ProbeTimeout, Self::BootTimeout, Self::SettleTime];

    /// Its field.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProbeInterval => "probe_interval",
            Self::ProbeTimeout => "probe_timeout",
            Self::BootTimeout => "boot_timeout",
            Self::SettleTime => "settle_time",
        }
    }

    /// The least and the most it may be, in milliseconds, and both in words.
    const fn range(self) -> (u64, u64, &'static str) {
        match self {
            Self::ProbeInterval => (100, 3_600_000, "must be 100ms to 1h"),
            Self::ProbeTimeout => (10, 600_000, "must be 10ms to 10m"),
            Self::BootTimeout => (1_000, 86_400_000, "must be 1s to 1d"),
            Self::SettleTime => (0, 3_600_000, "must be 1h or less"),
        }
    }
}

impl Spec {
    /// One of its times, to be changed.
    pub const fn time_mut(&mut self, time: SpecTime) -> &mut Option<Duration> {
        match time {
            SpecTime::ProbeInterval => &mut self.probe_interval,
            SpecTime::ProbeTimeout => &mut self.timing.probe_timeout,
            SpecTime::BootTimeout => &mut self.timing.boot_timeout,
            SpecTime::SettleTime => &mut self.timing.settle_time,
        }
    }

    /// One of its times; `None` where a default of the worker or of the kind applies.
    #[must_use]
    pub const fn time(&self, time: SpecTime) -> Option<Duration> {
        match time {
            SpecTime::ProbeInterval => self.probe_interval,
            SpecTime::ProbeTimeout => self.timing.probe_timeout,
            SpecTime::BootTimeout => self.timing.boot_timeout,
            SpecTime::SettleTime => self.timing.settle_time,
        }
    }

    /// How long an instance has to run before an answered probe counts: a process that was only just started always runs.
    #[must_use]
    pub fn settle_time(&self) -> Duration {
        self.timing.settle_time.unwrap_or_else(|| self.kind.settle_time())
    }

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
        for time in SpecTime::ALL {
            let (least, most, rule) = time.range();
            let range = Duration::from_millis(least)..=Duration::from_millis(most);
            if self.time(time).is_some_and(|value| !range.contains(&value)) {
                found.push(FieldViolation::new(format!("spec.{}", time.name()), rule));
            }
        }
        if self.timing.boot_timeout.is_some_and(|most| most <= self.settle_time()) {
            found.push(FieldViolation::new("spec.boot_timeout", "must be more than the settle_time"));
        }
        if let Some(image) = &self.image {
            check_text(&mut found, "spec.image", image, 1);
        }
        network_port::validate(&self.ports, self.replicas, "spec.ports", &mut found);
        for (name, field) in self.kind.network_ports() {
            if !self.ports.iter().any(|port| port.name == *name) {
                found.push(FieldViolation::new(field, format!("`{name}` is none of spec.ports")));
            }
        }
        if self.image.is_none() && self.kind.needs_image() {
            found.push(FieldViolation::new(
                "spec.custom.command",
                "must not be empty, unless there is an image that says what is run",
            ));
        }
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
            timing: Timing::default(),
            image: None,
            pod: None,
            ports: vec![],
            kind: KindSpec::Custom(Custom {
                command: "sleep".into(),
                args: vec!["1".into()],
                env: BTreeMap::new(),
                port: Some(8000),
                probe: Probe::Tcp,
                ..Custom::default()
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
    fn times_have_ranges_and_are_stored_only_if_given() {
        let plain = serde_json::to_string(&custom()).expect("plain data");
        assert!(!plain.contains("timing"), "{plain}");
        for (time, good, bad) in [
            (SpecTime::ProbeInterval, 100, 99),
            (SpecTime::ProbeTimeout, 600_000, 600_001),
            (SpecTime::BootTimeout, 1_000, 999),
            (SpecTime::SettleTime, 0, 3_600_001),
        ] {
            let with = |ms| {
                let mut spec = custom();
                *spec.time_mut(time) = Some(Duration::from_millis(ms));
                spec
            };
            assert_eq!(with(good).validate(), []);
            let stored = serde_json::to_string(&with(good)).expect("plain data");
            assert_eq!(serde_json::from_str::<Spec>(&stored).expect("round trip"), with(good));
            assert_eq!(with(bad).validate()[0].field, format!("spec.{}", time.name()));
        }
        let mut hopeless = custom();
        let second = Some(Duration::from_secs(1));
        hopeless.timing = Timing { settle_time: second, boot_timeout: second, ..Timing::default() };
        assert_eq!(hopeless.validate()[0].field, "spec.boot_timeout");
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
