//! Which appliances `list`, `watch` and `delete` are about.

use std::collections::HashMap;

use clap::Args;
use common::WorkerId;
use common::appliance::Name;
use common::driver::DriverName;
use common::kind::KindName;
use common::selector::{LabelCondition, LabelSelector, LabelTest};
use common::status::Phase;
use proto::admin::v1;

use crate::commands::{CommandContext, Extent};
use crate::complete;
use crate::error::{Exit, Failure};

/// Conditions that all must hold. Without any, every appliance of every tenant matches.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FilterArgs {
    /// Only of this tenant [default: that of the context, else all]
    #[arg(short, long, value_parser = Name::new, add = complete::tenants())]
    pub(crate) tenant: Option<Name>,
    /// Of all tenants, whatever the context says
    #[arg(short = 'A', long, conflicts_with = "tenant")]
    all_tenants: bool,
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

/// Labels that an appliance must have, or must not.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct LabelArgs {
    /// Only with these labels, as KEY=VALUE, KEY!=VALUE, `KEY in (A,B)`, `KEY notin (A,B)`, KEY or !KEY, with commas between
    /// several; repeat for all of several
    #[arg(short, long = "label", visible_alias = "selector", value_name = "SELECTOR", value_parser = parse_labels)]
    labels: Vec<LabelSelector>,
}

/// Conditions on labels, as a filter of the server has them.
#[derive(Debug, Default)]
pub(crate) struct LabelConditions {
    /// Labels with this value; servers of earlier versions know nothing else.
    pub(crate) labels: HashMap<String, String>,
    /// All others, as the text of a selector.
    pub(crate) selector: String,
}

impl LabelArgs {
    /// Whether there is no condition.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The conditions.
    ///
    /// # Errors
    /// A key is given two values, which no appliance has.
    pub(crate) fn conditions(&self) -> Result<LabelConditions, Failure> {
        let mut found = LabelConditions::default();
        let mut others = Vec::new();
        for condition in self.labels.iter().flat_map(LabelSelector::conditions) {
            let only = match &condition.test {
                LabelTest::In(values) if values.len() == 1 => values.first(),
                _ => None,
            };
            let Some(value) = only else {
                others.push(condition.clone());
                continue;
            };
            let key = &condition.key;
            if found.labels.insert(key.clone(), value.clone()).is_some_and(|other| other != *value) {
                return Err(Failure::usage(format!("--label: `{key}` is given two values, and a label has one")));
            }
        }
        found.selector = LabelSelector::new(others).to_string();
        Ok(found)
    }

    /// Leaves out what is not selected: a server of an earlier version knows no selector, and would answer with too much.
    pub(crate) fn retain(&self, appliances: &mut Vec<v1::Appliance>) {
        let has = |appliance: &v1::Appliance, condition: &LabelCondition| {
            condition.test.passes(appliance.labels.get(&condition.key))
        };
        let all = || self.labels.iter().flat_map(LabelSelector::conditions);
        appliances.retain(|appliance| all().all(|condition| has(appliance, condition)));
    }
}

/// Appliances by their names, or all with some labels.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Targets {
    /// Names or ids
    #[arg(value_name = "NAME", required_unless_present = "labels", conflicts_with = "labels", add = complete::appliances())]
    names: Vec<String>,
    #[command(flatten)]
    labels: LabelArgs,
    /// Tenant of the names [default: that of the context, else default]; with --label only its appliances
    #[arg(short, long, value_parser = Name::new, add = complete::tenants())]
    tenant: Option<Name>,
    /// With --label: of all tenants, whatever the context says
    #[arg(short = 'A', long, conflicts_with_all = ["tenant", "names"])]
    all_tenants: bool,
}

impl Targets {
    /// What they are, and whether they were named or found.
    ///
    /// # Errors
    /// A name is that of no appliance, unless `missing` says that this is in order.
    pub(crate) async fn find(
        &self,
        context: &CommandContext,
        missing: bool,
    ) -> Result<(Vec<v1::Appliance>, Extent), Failure> {
        if !self.labels.is_empty() {
            let home = context.ui.tenant.as_ref().filter(|_| !self.all_tenants);
            let LabelConditions { labels, selector } = self.labels.conditions()?;
            let tenant = self.tenant.as_ref().or(home).map(ToString::to_string).unwrap_or_default();
            let filter = v1::ApplianceFilter { tenant, labels, selector, ..v1::ApplianceFilter::default() };
            let mut found = context.client.list(filter).await?;
            self.labels.retain(&mut found);
            return Ok((found, Extent::Found));
        }
        let mut found = Vec::new();
        // All names, before any of them is looked up.
        let names: Result<Vec<_>, _> = self.names.iter().map(|name| context.name(name, self.tenant.as_ref())).collect();
        for name in names? {
            match name.find(&context.client).await {
                Ok(one) => found.push(one),
                Err(failure) if failure.exit == Exit::NotFound && missing => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok((found, Extent::Named))
    }
}

impl FilterArgs {
    /// Whether everything matches.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { tenant, all_tenants: _, kind, driver, worker, phases, labels, name_prefix } = self;
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
        let LabelConditions { labels, selector } = self.labels.conditions()?;
        Ok(v1::ApplianceFilter {
            tenant: text(self.tenant.as_ref().or(home.filter(|_| !self.all_tenants))),
            kind: text(self.kind.as_ref()),
            driver: text(self.driver.as_ref()),
            worker: text(self.worker.as_ref()),
            phases: self.phases.iter().map(|p| i32::from(*p)).collect(),
            labels,
            name_prefix: text(self.name_prefix.as_ref()),
            selector,
        })
    }

    /// Leaves out what the server knew no better than to send.
    pub(crate) fn retain(&self, appliances: &mut Vec<v1::Appliance>) {
        self.labels.retain(appliances);
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

/// Conditions on labels. What is no selector may be a label with a value that selectors cannot write.
fn parse_labels(text: &str) -> Result<LabelSelector, String> {
    match text.parse::<LabelSelector>() {
        Ok(selector) if !selector.is_empty() => Ok(selector),
        Ok(_) => Err("must be KEY=VALUE or another condition".to_owned()),
        Err(why) => match parse_label(text) {
            Ok((key, value)) if !text.contains([',', '(', '!']) => {
                Ok(LabelSelector::new(vec![LabelCondition { key, test: LabelTest::In([value].into()) }]))
            }
            _ => Err(why.to_string()),
        },
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

    fn labels(texts: &[&str]) -> LabelArgs {
        LabelArgs { labels: texts.iter().map(|text| parse_labels(text).expect(text)).collect() }
    }

    #[test]
    fn a_label_with_two_values_matches_nothing_and_is_refused() {
        assert!(labels(&["app=a", "app=b"]).conditions().is_err());
        assert!(labels(&["app=a,app==b"]).conditions().is_err());
        assert_eq!(labels(&["app=a", "app=a", "tier="]).conditions().expect("valid").labels.len(), 2);
    }

    #[test]
    fn what_a_server_of_an_earlier_version_does_not_know_is_a_selector() {
        let found =
            labels(&["app=a,tier!=db", "zone in (z1,z2)", "!old", "owner=Anna B."]).conditions().expect("valid");
        assert_eq!(found.selector, "tier!=db,zone in (z1,z2),!old");
        let mut pairs: Vec<_> = found.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.sort();
        assert_eq!(pairs, ["app=a", "owner=Anna B."]);
        assert!(parse_labels("").is_err() && parse_labels("a in").is_err() && parse_labels("a=b c,d").is_err());
    }

    #[test]
    fn what_is_sent_although_it_is_not_selected_is_left_out() {
        let with = |labels: &[(&str, &str)]| v1::Appliance {
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..v1::Appliance::default()
        };
        let mut found = vec![with(&[("app", "a")]), with(&[("app", "a"), ("old", "")]), with(&[])];
        labels(&["app,!old"]).retain(&mut found);
        assert_eq!(found, [with(&[("app", "a")])]);
    }
}
