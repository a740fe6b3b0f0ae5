//! Metrics as data: name, unit, labels, buckets and meaning of each in one table per binary. Instruments are made from the
//! table, and so is the page about them ([`reference`](super::reference)).
//!
//! Labels have values of a fixed list, which also makes counters begin at 0: the first event is an increase then, and not a
//! series that was not there before.

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Counter, Histogram, Meter};

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MetricKind {
    /// What has happened so far; only grows.
    Counter,
    /// How something is now.
    Gauge,
    /// How often something was within each of these bounds.
    Histogram(&'static [f64]),
}

/// The unit of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// None: a number such as a term, or 0 and 1.
    None,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// Things of a sort, in braces as OpenTelemetry has it: `{appliance}`.
    Things(&'static str),
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Seconds => "s",
            Self::Bytes => "By",
            Self::Things(name) => name,
        }
    }

    /// What Prometheus has at the end of names.
    const fn suffix(self) -> &'static str {
        match self {
            Self::None | Self::Things(_) => "",
            Self::Seconds => "_seconds",
            Self::Bytes => "_bytes",
        }
    }
}

/// Which values a label has.
#[derive(Clone, Copy, Debug)]
pub enum LabelValues {
    /// These.
    Fixed(&'static [&'static str]),
    /// Those of an enum.
    Listed(fn() -> Vec<&'static str>),
    /// Others; this says which, and what bounds their number.
    Open(&'static str),
}

/// A label of a metric.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values.
    pub values: LabelValues,
}

impl Label {
    /// A label with one of these values.
    #[must_use]
    pub const fn fixed(name: &'static str, values: &'static [&'static str]) -> Self {
        Self { name, values: LabelValues::Fixed(values) }
    }

    /// A label with a value of an enum.
    #[must_use]
    pub const fn listed(name: &'static str, values: fn() -> Vec<&'static str>) -> Self {
        Self { name, values: LabelValues::Listed(values) }
    }

    /// A label with other values; `which` says what bounds their number.
    #[must_use]
    pub const fn open(name: &'static str, which: &'static str) -> Self {
        Self { name, values: LabelValues::Open(which) }
    }

    /// Its values, where they are known beforehand.
    #[must_use]
    pub fn known(&self) -> Option<Vec<&'static str>> {
        match self.values {
            LabelValues::Fixed(values) => Some(values.to_vec()),
            LabelValues::Listed(values) => Some(values()),
            LabelValues::Open(_) => None,
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name in OpenTelemetry, such as `rug.unowned`.
    pub name: &'static str,
    /// What it counts.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: Unit,
    /// Its labels.
    pub labels: &'static [Label],
    /// What it means, in one sentence or two.
    pub help: &'static str,
    /// Its buckets name traces.
    pub exemplars: bool,
}

impl Metric {
    /// A counter.
    #[must_use]
    pub const fn counter(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, unit, labels: &[], help, exemplars: false }
    }

    /// A gauge.
    #[must_use]
    pub const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Gauge, unit, labels: &[], help, exemplars: false }
    }

    /// A histogram.
    #[must_use]
    pub const fn histogram(name: &'static str, unit: Unit, bounds: &'static [f64], help: &'static str) -> Self {
        Self { name, kind: MetricKind::Histogram(bounds), unit, labels: &[], help, exemplars: false }
    }

    /// The same with these labels.
    #[must_use]
    pub const fn by(self, labels: &'static [Label]) -> Self {
        Self { labels, ..self }
    }

    /// The same, whose buckets name traces.
    #[must_use]
    pub const fn with_exemplars(self) -> Self {
        Self { exemplars: true, ..self }
    }

    /// Its name as Prometheus has it, such as `rug_unowned_seconds`.
    #[must_use]
    pub fn prometheus_name(&self) -> String {
        let total = if self.kind == MetricKind::Counter { "_total" } else { "" };
        format!("{}{}{total}", self.name.replace('.', "_"), self.unit.suffix())
    }

    /// Every set of attributes it can have, where those are known beforehand.
    #[must_use]
    pub fn attribute_sets(&self) -> Option<Vec<Vec<KeyValue>>> {
        let mut sets = vec![Vec::new()];
        for label in self.labels {
            let values = label.known()?;
            let with = |set: &Vec<KeyValue>| {
                let set = set.clone();
                let more = move |value: &&'static str| {
                    let mut set = set.clone();
                    set.push(KeyValue::new(label.name, *value));
                    set
                };
                values.iter().map(more).collect::<Vec<_>>()
            };
            sets = sets.iter().flat_map(with).collect();
        }
        Some(sets)
    }

    /// A counter of whole numbers that begins at 0.
    #[must_use]
    pub fn count(&self, meter: &Meter) -> Counter<u64> {
        let counter = meter.u64_counter(self.name).with_unit(self.unit.name()).with_description(self.help).build();
        for set in self.attribute_sets().unwrap_or_default() {
            counter.add(0, &set);
        }
        counter
    }

    /// A counter of seconds that begins at 0.
    #[must_use]
    pub fn count_seconds(&self, meter: &Meter) -> Counter<f64> {
        let counter = meter.f64_counter(self.name).with_unit(self.unit.name()).with_description(self.help).build();
        for set in self.attribute_sets().unwrap_or_default() {
            counter.add(0.0, &set);
        }
        counter
    }

    /// A histogram.
    #[must_use]
    pub fn distribution(&self, meter: &Meter) -> Histogram<f64> {
        let bounds = if let MetricKind::Histogram(bounds) = self.kind { bounds } else { &[] };
        meter
            .f64_histogram(self.name)
            .with_unit(self.unit.name())
            .with_description(self.help)
            .with_boundaries(bounds.to_vec())
            .build()
    }

    /// A counter or gauge of whole numbers that is looked at whenever somebody reads it.
    pub fn look(&self, meter: &Meter, look: impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static) {
        let (name, unit, help) = (self.name, self.unit.name(), self.help);
        if self.kind == MetricKind::Counter {
            meter.u64_observable_counter(name).with_unit(unit).with_description(help).with_callback(look).build();
        } else {
            meter.u64_observable_gauge(name).with_unit(unit).with_description(help).with_callback(look).build();
        }
    }

    /// A counter or gauge of any numbers that is looked at whenever somebody reads it.
    pub fn look_f64(&self, meter: &Meter, look: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static) {
        let (name, unit, help) = (self.name, self.unit.name(), self.help);
        if self.kind == MetricKind::Counter {
            meter.f64_observable_counter(name).with_unit(unit).with_description(help).with_callback(look).build();
        } else {
            meter.f64_observable_gauge(name).with_unit(unit).with_description(help).with_callback(look).build();
        }
    }
}

/// Metrics that belong together: a part of the page about them.
#[derive(Clone, Copy, Debug)]
pub struct MetricGroup {
    /// Its heading.
    pub title: &'static str,
    /// Who shows them, in a sentence.
    pub about: &'static str,
    /// The metrics.
    pub metrics: &'static [&'static Metric],
}

/// Declares metrics and the group of them, so that none is missing from the page about them.
///
/// ```
/// # use runtime::meter::catalogue::{Metric, Unit};
/// runtime::metric_group! {
///     GROUP = "Doors", "Shown by every house.";
///     /// Doors that are open.
///     OPEN = Metric::gauge("house.doors.open", Unit::Things("{door}"), "Doors that are open.");
/// }
/// assert_eq!(GROUP.metrics[0].prometheus_name(), OPEN.prometheus_name());
/// ```
#[macro_export]
macro_rules! metric_group {
    ($group:ident = $title:expr, $about:expr; $($(#[$doc:meta])* $name:ident = $metric:expr;)+) => {
        $($(#[$doc])* pub(crate) static $name: $crate::meter::catalogue::Metric = $metric;)+
        pub(crate) static $group: $crate::meter::catalogue::MetricGroup = $crate::meter::catalogue::MetricGroup {
            title: $title,
            about: $about,
            metrics: &[$(&$name),+],
        };
    };
}
