//! `rugctl diff`: what `apply` would change, field by field.
//!
//! Both sides are as the server has them: what is stored, and what its dry run of the document says would be stored. So a field that
//! a document leaves out differs where its absence changes something, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use proto::admin::v1;
use serde::Serialize;
use serde_json::Value;

use crate::client::by_id;
use crate::commands::CommandContext;
use crate::document::{self, view};
use crate::error::Failure;
use crate::output::{Tone, count};
use crate::text::one_line;

/// Calls in flight.
const IN_FLIGHT: usize = 32;

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// YAML file with one or more documents, or a folder of them; - reads standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE", required = true, value_hint = clap::ValueHint::AnyPath)]
    files: Vec<String>,
    /// Also appliances that a source manages
    #[arg(long)]
    force: bool,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct FieldChange {
    field: String,
    /// Absent where the field is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// Absent where the field goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
}

/// What would become of an appliance.
#[derive(Debug, Serialize)]
struct ApplianceChange {
    tenant: String,
    name: String,
    /// `created`, `changed` or `unchanged`.
    outcome: &'static str,
    fields: Vec<FieldChange>,
    #[serde(skip)]
    label: String,
}

/// Runs `diff`.
///
/// # Errors
/// Exit code 1 when something differs, with no message.
pub(crate) async fn run(context: &CommandContext, args: &DiffArgs) -> Result<(), Failure> {
    let (files, home) = (args.files.clone(), context.ui.tenant.clone());
    let documents = tokio::task::spawn_blocking(move || document::read(&files, home.as_ref()))
        .await
        .map_err(|e| Failure::failed(format!("read documents: {e}")))??;
    let (cluster, context) = &context.identified().await?;
    document::check_cluster(&documents, cluster, |meant| cluster.is(meant))?;
    let calls = documents.iter().map(|document| async move {
        let located = |failure: Failure| failure.during(&format!("{}: {}", document.place(), document.label()));
        change(context, &document.appliance, args.force).await.map_err(located)
    });
    let changes: Vec<_> = stream::iter(calls).buffered(IN_FLIGHT).try_collect().await?;
    let differing = changes.iter().filter(|change| change.outcome != "unchanged").count();
    if context.ui.format.is_structured() {
        context.ui.print_value(&changes)?;
    } else if differing > 0 {
        let shown = changes.iter().filter(|change| change.outcome != "unchanged");
        context.ui.print(&shown.map(|change| text(context, change)).collect::<Vec<_>>().join("\n"))?;
    } else {
        context.ui.note(&format!("{} as stored", count(changes.len() as u64, "document")));
    }
    if differing == 0 { Ok(()) } else { Err(Failure::failed("")) }
}

async fn change(context: &CommandContext, wanted: &v1::Appliance, force: bool) -> Result<ApplianceChange, Failure> {
    let request = v1::UpdateApplianceRequest {
        appliance: Some(wanted.clone()),
        allow_missing: true,
        validate_only: true,
        force,
        ..v1::UpdateApplianceRequest::default()
    };
    let answer = context.client.update(request).await?;
    let after = answer.appliance.clone().unwrap_or_default();
    let (outcome, before) = match answer.outcome() {
        v1::Outcome::Created => ("created", v1::Appliance::default()),
        v1::Outcome::Changed => ("changed", context.client.get(by_id(&after.id)).await?),
        v1::Outcome::Unchanged | v1::Outcome::Unspecified => ("unchanged", after.clone()),
    };
    // Of one that is new, the identity is in the line above its fields, and an id that the dry run made up is nothing.
    let fields = differences(&before, &after)?;
    let own = ["id", "tenant", "name", "kind"];
    let made_up = |change: &FieldChange| {
        own.contains(&change.field.as_str()) || change.to.as_deref().is_some_and(|to| to == after.id)
    };
    let fields = fields.into_iter().filter(|change| outcome != "created" || !made_up(change));
    Ok(ApplianceChange {
        tenant: after.tenant.clone(),
        name: after.name.clone(),
        outcome,
        fields: fields.collect(),
        label: context.ui.label(&after),
    })
}

fn text(context: &CommandContext, change: &ApplianceChange) -> String {
    let outcome = context.ui.paint(Tone::of(change.outcome), change.outcome);
    let mut lines = vec![format!("{} would be {outcome}", change.label)];
    for FieldChange { field, from, to } in &change.fields {
        lines.push(match (from, to) {
            (Some(from), Some(to)) => format!("  {} {field}: {from} -> {to}", context.ui.paint(Tone::Busy, "~")),
            (None, Some(to)) => format!("  {} {field}: {to}", context.ui.paint(Tone::Good, "+")),
            (Some(from), None) => format!("  {} {field}: {from}", context.ui.paint(Tone::Bad, "-")),
            (None, None) => continue,
        });
    }
    lines.join("\n")
}

/// Fields of the documents of two appliances that differ, by their paths. Values of environment variables are compared, and not
/// shown.
pub(crate) fn differences(before: &v1::Appliance, after: &v1::Appliance) -> Result<Vec<FieldChange>, Failure> {
    let fields = |appliance: &v1::Appliance, secrets| -> Result<BTreeMap<String, String>, Failure> {
        let mut found = BTreeMap::new();
        if *appliance != v1::Appliance::default() {
            let document = serde_json::to_value(view::Appliance::document(appliance, secrets));
            flatten(&document.map_err(|e| Failure::failed(format!("write a document: {e}")))?, "", &mut found);
        }
        Ok(found)
    };
    let (old, new) = (fields(before, view::Secrets::Shown)?, fields(after, view::Secrets::Shown)?);
    let (old_shown, new_shown) = (fields(before, view::Secrets::Hidden)?, fields(after, view::Secrets::Hidden)?);
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let change = |field: &String| FieldChange {
        field: one_line(field),
        from: old_shown.get(field).map(|value| one_line(value)),
        to: new_shown.get(field).map(|value| one_line(value)),
    };
    Ok(names.into_iter().filter(|field| old.get(*field) != new.get(*field)).map(change).collect())
}

/// The values of a document by their paths, such as `spec.listeners[0].port`.
fn flatten(value: &Value, path: &str, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(value, &path, found);
            }
        }
        Value::Array(entries) => {
            for (n, value) in entries.iter().enumerate() {
                flatten(value, &format!("{path}[{n}]"), found);
            }
        }
        Value::String(text) => {
            found.insert(path.to_owned(), text.clone());
        }
        other => {
            found.insert(path.to_owned(), other.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appliance(replicas: i32, args: &[&str], secret: &str) -> v1::Appliance {
        let custom = v1::Custom {
            command: "serve".into(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: [("TOKEN".to_owned(), secret.to_owned())].into(),
            ..v1::Custom::default()
        };
        let spec =
            v1::Spec { replicas: Some(replicas), kind: Some(v1::spec::Kind::Custom(custom)), ..v1::Spec::default() };
        v1::Appliance { name: "web".into(), tenant: "demo".into(), spec: Some(spec), ..v1::Appliance::default() }
    }

    #[test]
    fn fields_that_differ_are_named_by_their_paths_and_secrets_are_not_shown() {
        let found = differences(&appliance(1, &["-v"], "old secret"), &appliance(3, &["-v", "-q"], "new secret"));
        let found = found.expect("plain data");
        let texts: Vec<_> = found.iter().map(|it| (it.field.as_str(), it.from.as_deref(), it.to.as_deref())).collect();
        assert_eq!(texts[0], ("replicas", Some("1"), Some("3")));
        assert_eq!(texts[1], ("spec.args[1]", None, Some("-q")));
        assert_eq!((texts[2].0, texts[2].1 == texts[2].2), ("spec.env.TOKEN", true));
        assert!(!format!("{found:?}").contains("secret"), "{found:?}");
        let same = appliance(1, &[], "x");
        assert_eq!(differences(&same, &same).expect("plain data"), []);
    }
}
