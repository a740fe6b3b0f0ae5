//! The page about metrics: one table per group of the catalogue.

use std::fmt::Write as _;
use std::path::Path;

use super::catalogue::{Label, LabelValues, Metric, MetricGroup, MetricKind};
use crate::reference;

/// The page, from the folder of the repository.
pub const PAGE: &str = "docs/observability/metrics.md";

/// The group of every process.
#[must_use]
pub const fn of_every_process() -> &'static MetricGroup {
    &super::process::GROUP
}

/// Groups as the page has them.
#[must_use]
pub fn tables(groups: &[&MetricGroup]) -> String {
    let mut text = String::new();
    for MetricGroup { title, about, metrics } in groups {
        let _ = write!(text, "### {title}\n\n{about}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n");
        for metric in *metrics {
            let labels = if metric.labels.is_empty() { String::new() } else { labels(metric.labels) };
            let _ = writeln!(
                text,
                "| `{}` | {} | {labels} | {} |",
                metric.prometheus_name(),
                kind(metric),
                metric.help.replace('|', "\\|")
            );
        }
        text.push('\n');
    }
    text
}

fn kind(metric: &Metric) -> String {
    match metric.kind {
        MetricKind::Counter => "counter".to_owned(),
        MetricKind::Gauge => "gauge".to_owned(),
        MetricKind::Histogram(bounds) => {
            let bounds: Vec<String> = bounds.iter().map(ToString::to_string).collect();
            let traces = if metric.exemplars { ", with exemplars" } else { "" };
            format!("histogram{traces}: {}", bounds.join(", "))
        }
    }
}

fn labels(labels: &[Label]) -> String {
    let one = |label: &Label| match label.values {
        LabelValues::Open(which) => format!("`{}`: {which}", label.name),
        LabelValues::Fixed(_) | LabelValues::Listed(_) => {
            let values: Vec<String> =
                label.known().unwrap_or_default().iter().map(|value| format!("`{value}`")).collect();
            format!("`{}`: {}", label.name, values.join(", "))
        }
    };
    labels.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Compares a part of [`PAGE`] with the groups of a binary, or renews it. `repository` is the folder that has the page.
///
/// # Errors
/// What is wrong, and what to do about it.
pub fn check(repository: &Path, part: &str, groups: &[&MetricGroup]) -> Result<(), String> {
    reference::check(&repository.join(PAGE), &format!("metrics of {part}"), &tables(groups))
}

/// Compares what a process shows with its catalogue: what is shown and not in it, or differs, and what is in it and not shown
/// though it is there from the start. Empty when all is well.
#[must_use]
pub fn differences(text: &str, groups: &[&MetricGroup], later: &[&Metric]) -> Vec<String> {
    let all: Vec<&Metric> = groups.iter().flat_map(|group| group.metrics.iter().copied()).collect();
    let find = |name: &str| all.iter().find(|metric| metric.prometheus_name() == name);
    let mut wrong = Vec::new();
    for line in text.lines() {
        if let Some(("target_info", _)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            continue;
        }
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' '))
            && find(name).is_none_or(|metric| metric.help != help)
        {
            wrong.push(format!("{name} is shown, and is not in the catalogue with that meaning: {help}"));
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
            && let Some(metric) = find(name)
            && self::kind(metric).split([':', ',']).next() != Some(kind)
        {
            wrong.push(format!("{name} is shown as {kind}"));
        }
    }
    for metric in all {
        let begins = |line: &str| line.strip_prefix("# TYPE ").is_some_and(|rest| rest.starts_with(&shown(metric)));
        let is_later = matches!(metric.kind, MetricKind::Histogram(_)) || later.iter().any(|m| m.name == metric.name);
        if !is_later && !text.lines().any(begins) {
            wrong.push(format!("{} is in the catalogue and not shown", metric.prometheus_name()));
        }
    }
    wrong
}

fn shown(metric: &Metric) -> String {
    format!("{} ", metric.prometheus_name())
}

/// Rules that the names and texts of a catalogue break, those of `promtool check metrics` and ours. Empty when all is well.
#[must_use]
pub fn lint(groups: &[&MetricGroup]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for metric in groups.iter().flat_map(|group| group.metrics.iter().copied()) {
        let name = metric.prometheus_name();
        let mut is_wrong = |what: &str| wrong.push(format!("{name}: {what}"));
        let reserved = ["_bucket", "_count", "_sum", "_total", "_created", "_gauge", "_counter", "_histogram"];
        let stem = if metric.kind == MetricKind::Counter { name.trim_end_matches("_total") } else { &name };
        if reserved.iter().any(|end| stem.ends_with(end)) {
            is_wrong("ends in what is reserved");
        }
        if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            is_wrong("is not in snake case");
        }
        if metric.help.len() < 6 || !metric.help.ends_with('.') || metric.help.contains('\n') {
            is_wrong("its meaning is no sentence");
        }
        if metric.labels.iter().any(|label| label.name.contains(|c: char| !c.is_ascii_lowercase() && c != '_')) {
            is_wrong("has a label that is not in snake case");
        }
        if let MetricKind::Histogram(bounds) = metric.kind
            && !(bounds.is_sorted() && (2..=20).contains(&bounds.len()))
        {
            is_wrong("has bounds that are not in order, or too many");
        }
        // In OpenMetrics counters are families without their end.
        if !names.insert(stem.to_owned()) {
            is_wrong("is there twice");
        }
    }
    wrong
}
