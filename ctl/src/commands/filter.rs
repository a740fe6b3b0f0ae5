//! Which appliances `list`, `watch` and `delete` are about.

use std::collections::HashMap;

use clap::Args;
use common::WorkerId;
use common::appliance::Name;
use common::driver::DriverName;
use common::kind::KindName;
use common::status::Phase;
use proto::admin::v1;

use crate::complete;
use crate::error::Failure;

/// Conditions that all must hold. Without any, every appliance of every tenant matches.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FilterArgs {
    /// Only of this tenant [default: that of the context, else all]
    #[arg(short, long, value_parser = Name::new, add = complete::tenants())]
    pub(crate) tenant: Option<Name>,
    /// Only of this kind
    #[arg(long, value_parser = parse_kind, add = complete::words(kinds))]
    kind: Option<KindName>,
    /// Only on this driver
    #[arg(long, add = complete::drivers())]
    driver: Option<DriverName>,
    /// Only owned by this worker
    #[arg(long, value_parser = WorkerId::new, add = complete::workers())]
    worker: Option<WorkerId>,
    /// Only in this phase; repeat for any of several
    #[arg(long = "phase", value_parser = parse_phase, add = complete::words(phases))]
    phases: Vec<v1::Phase>,
    #[command(flatten)]
    labels: LabelArgs,
    /// Only names with this prefix
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name_prefix: Option<String>,
}

/// Labels that an appliance must have.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct LabelArgs {
    /// Only with this label, as KEY=VALUE; repeat for all of several
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
}

impl LabelArgs {
    /// Whether there is no condition.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The labels by key.
    ///
    /// # Errors
    /// A key is given two values, which no appliance has.
    pub(crate) fn map(&self) -> Result<HashMap<String, String>, Failure> {
        let mut map = HashMap::new();
        for (key, value) in &self.labels {
            if map.insert(key.clone(), value.clone()).is_some_and(|other| other != *value) {
                return Err(Failure::usage(format!("--label: `{key}` is given two values, and a label has one")));
            }
        }
        Ok(map)
    }
}

impl FilterArgs {
    /// Whether everything matches.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { tenant, kind, driver, worker, phases, labels, name_prefix } = self;
        let none = tenant.is_none() && kind.is_none() && driver.is_none() && worker.is_none() && name_prefix.is_none();
        none && phases.is_empty() && labels.is_empty()
    }

    /// Whether there is no condition but a tenant.
    pub(crate) fn is_tenant_only(&self) -> bool {
        Self { tenant: None, ..self.clone() }.is_empty()
    }

    /// The filter for the server, within the tenant `home` unless another one is named.
    ///
    /// # Errors
    /// The conditions contradict each other.
    pub(crate) fn filter(&self, home: Option<&Name>) -> Result<v1::ApplianceFilter, Failure> {
        fn text(value: Option<&impl ToString>) -> String {
            value.map(ToString::to_string).unwrap_or_default()
        }
        Ok(v1::ApplianceFilter {
            tenant: text(self.tenant.as_ref().or(home)),
            kind: text(self.kind.as_ref()),
            driver: text(self.driver.as_ref()),
            worker: text(self.worker.as_ref()),
            phases: self.phases.iter().map(|p| i32::from(*p)).collect(),
            labels: self.labels.map()?,
            name_prefix: text(self.name_prefix.as_ref()),
        })
    }
}

fn parse_kind(text: &str) -> Result<KindName, String> {
    KindName::find(text).ok_or_else(|| format!("known are {}", kinds().join(", ")))
}

fn kinds() -> Vec<String> {
    KindName::ALL.iter().map(|kind| kind.as_str().to_owned()).collect()
}

fn phases() -> Vec<String> {
    Phase::ALL.iter().map(|phase| phase.name().to_lowercase()).collect()
}

pub(crate) fn parse_phase(text: &str) -> Result<v1::Phase, String> {
    let wanted = format!("PHASE_{}", text.to_uppercase());
    match v1::Phase::from_str_name(&wanted) {
        Some(phase) if phase != v1::Phase::Unspecified => Ok(phase),
        _ => Err(format!("known are {}", phases().join(", "))),
    }
}

pub(crate) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_conditions_are_refused() {
        assert_eq!(parse_phase("Configured"), Ok(v1::Phase::Configured));
        assert!(parse_phase("unspecified").expect_err("no phase").contains("down, booting"));
        assert_eq!(parse_label("app=a=b"), Ok(("app".into(), "a=b".into())));
        assert!(parse_label("app").is_err() && parse_label("=b").is_err());
        assert!(parse_kind("vm").expect_err("no kind").contains("custom"));
    }

    #[test]
    fn a_label_with_two_values_matches_nothing_and_is_refused() {
        let labels = |pairs: &[(&str, &str)]| LabelArgs {
            labels: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        assert!(labels(&[("app", "a"), ("app", "b")]).map().is_err());
        assert_eq!(labels(&[("app", "a"), ("app", "a"), ("tier", "")]).map().expect("valid").len(), 2);
    }
}
