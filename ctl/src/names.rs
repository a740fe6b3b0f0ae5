//! Appliances as they are named on the command line: everything that `rugctl` prints as the name of one is read here, and
//! every part of it counts.
//!
//! | form | means |
//! |---|---|
//! | `web` | the name within the tenant of `--tenant`, else `default` |
//! | `6f1c9a52-...` | the id |
//! | `custom/web` | the same name, only of this kind |
//! | `demo/web` | the name within this tenant, which has not the name of a kind |
//! | `demo/custom/web` | all of it |

use clap::Args;
use common::ApplianceId;
use common::appliance::Name;
use common::kind::KindName;
use proto::admin::v1;

use crate::client::{AdminClient, by_id};
use crate::complete;
use crate::document::view::{self, DEFAULT_TENANT};
use crate::error::{Exit, Failure};
use crate::suggest;

/// The tenant in which names are looked up.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Tenant {
    /// Tenant of the names [default: that of the context, else default]
    #[arg(short, long, value_parser = Name::new, add = complete::tenants())]
    pub(crate) tenant: Option<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Which {
    Id(ApplianceId),
    Name(Name),
}

/// One appliance, as it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApplianceName {
    /// As it was given; the default tenant when absent.
    tenant: Option<Name>,
    kind: Option<KindName>,
    which: Which,
}

impl ApplianceName {
    /// Parses a name, with the tenant of the flag.
    ///
    /// # Errors
    /// It is none, or names another tenant than the flag.
    pub(crate) fn parse(text: &str, flag: Option<&Name>) -> Result<Self, Failure> {
        let name = |text: &str| Name::new(text).map_err(|e| Failure::usage(e.to_string()));
        let parts: Vec<_> = text.split('/').collect();
        let (tenant, kind, which) = match parts.as_slice() {
            [one] => match one.parse::<ApplianceId>() {
                Ok(id) => (None, None, Which::Id(id)),
                Err(_) => (None, None, Which::Name(name(one)?)),
            },
            [first, last] => match KindName::find(first) {
                Some(kind) => (None, Some(kind), Which::Name(name(last)?)),
                None => (Some(name(first)?), None, Which::Name(name(last)?)),
            },
            [tenant, kind, last] => {
                let known = || KindName::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
                let found = KindName::find(kind)
                    .ok_or_else(|| Failure::usage(format!("`{text}`: `{kind}` is no kind; known are {}", known())))?;
                (Some(name(tenant)?), Some(found), Which::Name(name(last)?))
            }
            _ => {
                return Err(Failure::usage(format!(
                    "`{text}` is no name: give NAME, KIND/NAME, TENANT/KIND/NAME or an id"
                )));
            }
        };
        match (&tenant, flag) {
            (Some(own), Some(flag)) if own != flag => {
                Err(Failure::usage(format!("`{text}` is of tenant {own}, and --tenant says {flag}")))
            }
            _ => Ok(Self { tenant: tenant.or_else(|| flag.cloned()), kind, which }),
        }
    }

    /// The same, within this tenant if it names none. An id is in whichever tenant it is.
    pub(crate) fn within(self, home: Option<&Name>) -> Self {
        match self.which {
            Which::Id(_) => self,
            Which::Name(_) => Self { tenant: self.tenant.or_else(|| home.cloned()), ..self },
        }
    }

    /// What a document names: tenant, kind and name, and the id where it has one.
    ///
    /// # Errors
    /// It does not name an appliance.
    pub(crate) fn of_document(appliance: &v1::Appliance) -> Result<Self, Failure> {
        let odd = |e: &dyn std::fmt::Display| Failure::usage(e.to_string());
        let which = match appliance.id.parse::<ApplianceId>() {
            Ok(id) => Which::Id(id),
            Err(_) => Which::Name(Name::new(&appliance.name).map_err(|e| odd(&e))?),
        };
        let tenant = Some(Name::new(&appliance.tenant).map_err(|e| odd(&e))?);
        Ok(Self { tenant, kind: KindName::find(view::kind(appliance)), which })
    }

    /// The reference for a call, which says nothing of the kind, and of the tenant only beside a name.
    fn reference(&self) -> v1::ApplianceRef {
        match &self.which {
            Which::Id(id) => by_id(&id.to_string()),
            Which::Name(name) => {
                let tenant = self.tenant.as_ref().map_or(DEFAULT_TENANT, Name::as_str).to_owned();
                let by = v1::appliance_ref::By::Name(v1::TenantName { tenant, name: name.to_string() });
                v1::ApplianceRef { by: Some(by) }
            }
        }
    }

    /// Tenant and name as `tenant/name`, where it is named so.
    pub(crate) fn tenant_and_name(&self) -> Option<String> {
        let Which::Name(name) = &self.which else { return None };
        Some(format!("{}/{name}", self.tenant.as_ref().map_or(DEFAULT_TENANT, Name::as_str)))
    }

    /// The appliance, which is what every part of its name says.
    ///
    /// # Errors
    /// There is none, or the one with this name is of another kind or tenant.
    pub(crate) async fn find(&self, client: &AdminClient) -> Result<v1::Appliance, Failure> {
        match client.get(self.reference()).await {
            Ok(found) => self.check(&found).map(|()| found),
            Err(failure) if failure.exit == Exit::NotFound => Err(self.with_suggestion(client, failure).await),
            Err(failure) => Err(failure),
        }
    }

    /// The failure, with the name that may have been meant.
    async fn with_suggestion(&self, client: &AdminClient, mut failure: Failure) -> Failure {
        let Which::Name(name) = &self.which else { return failure };
        // Whoever mistypes a name mostly has its first letter right, and there may be very many names.
        let filter = v1::ApplianceFilter {
            tenant: self.tenant.as_ref().map_or(DEFAULT_TENANT, Name::as_str).to_owned(),
            name_prefix: name.as_str().chars().take(1).collect(),
            ..v1::ApplianceFilter::default()
        };
        let found = client.list_some(filter, suggest::COMPARED).await.unwrap_or_default();
        let names = found.into_iter().map(|appliance| appliance.name);
        if let Some(meant) = suggest::nearest(name.as_str(), names.filter(|other| other != name.as_str())) {
            failure.message = format!("{}; did you mean `{meant}`?", failure.message);
        }
        failure
    }

    fn check(&self, found: &v1::Appliance) -> Result<(), Failure> {
        let kind_differs = self.kind.is_some_and(|kind| kind.as_str() != view::kind(found));
        let tenant_differs = self.tenant.as_ref().is_some_and(|tenant| tenant.as_str() != found.tenant);
        if kind_differs || tenant_differs {
            let text = format!("there is no {self}: that is {}", view::full_label(found));
            return Err(Failure::new(Exit::NotFound, text));
        }
        Ok(())
    }
}

impl std::fmt::Display for ApplianceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(tenant) = &self.tenant {
            write!(f, "{tenant}/")?;
        }
        if let Some(kind) = self.kind {
            write!(f, "{}/", kind.as_str())?;
        }
        match &self.which {
            Which::Id(id) => write!(f, "{id}"),
            Which::Name(name) => write!(f, "{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appliance(tenant: &str, name: &str) -> v1::Appliance {
        let kind = Some(v1::spec::Kind::Custom(v1::Custom::default()));
        v1::Appliance {
            tenant: tenant.into(),
            name: name.into(),
            spec: Some(v1::Spec { kind, ..v1::Spec::default() }),
            ..v1::Appliance::default()
        }
    }

    fn demo() -> Name {
        Name::new("demo").expect("a name")
    }

    #[test]
    fn a_name_has_up_to_three_parts() {
        use v1::appliance_ref::By;
        let by = |text: &str, flag: Option<&Name>| {
            let name = ApplianceName::parse(text, flag).expect(text);
            (name.reference().by.expect("set"), name.kind.map(KindName::as_str))
        };
        let named = |tenant: &str| By::Name(v1::TenantName { tenant: tenant.into(), name: "web".into() });
        assert_eq!(by("web", None), (named("default"), None));
        assert_eq!(by("web", Some(&demo())), (named("demo"), None));
        assert_eq!(by("loadbalancer/web", None), (named("default"), Some("loadbalancer")));
        assert_eq!(by("demo/web", None), (named("demo"), None));
        assert_eq!(by("demo/custom/web", Some(&demo())), (named("demo"), Some("custom")));
        let id = "6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11";
        assert_eq!(by(id, None), (By::Id(id.into()), None));
        for text in ["We b", "", "/web", "web/", "demo/vm/web", "a/custom/web/x", "custom/", "other/custom/web"] {
            let failure = ApplianceName::parse(text, Some(&demo())).expect_err(text);
            assert_eq!(failure.exit, Exit::Usage, "{text:?}");
        }
    }

    #[test]
    fn every_part_of_a_name_counts() {
        let found = appliance("demo", "web");
        let check = |text: &str, flag: Option<&Name>| ApplianceName::parse(text, flag).expect(text).check(&found);
        check("demo/custom/web", None).expect("it is");
        check("custom/web", Some(&demo())).expect("it is");
        let failure = check("demo/loadbalancer/web", None).expect_err("another kind");
        assert_eq!(failure.exit, Exit::NotFound);
        assert_eq!(failure.to_string(), "there is no demo/loadbalancer/web: that is demo/custom/web");
        let id = "6f1c9a52-0f5e-4f0a-9a3e-0d2b6a1c7e11";
        check(id, Some(&demo())).expect("of this tenant");
        assert!(check(id, Name::new("other").ok().as_ref()).is_err(), "an id of another tenant");
    }

    #[test]
    fn what_is_printed_as_a_name_is_read() {
        for tenant in ["default", "demo", "custom"] {
            let found = appliance(tenant, "web");
            for home in [None, Some(demo())] {
                let read = |label: &str| ApplianceName::parse(label, None).expect("a label").within(home.as_ref());
                let name = read(&view::label(&found, home.as_ref()));
                name.check(&found).expect("the same");
                assert_eq!(name.reference(), read(&view::full_label(&found)).reference());
            }
            let name = ApplianceName::parse(&view::full_label(&found), None).expect("a label");
            let reference = name.reference();
            let by = v1::appliance_ref::By::Name(v1::TenantName { tenant: tenant.into(), name: "web".into() });
            assert_eq!(reference.by, Some(by));
        }
    }
}
