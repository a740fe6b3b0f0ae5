//! `rugctl edit`: change an appliance in an editor.
//!
//! The file is the document of the appliance as `get -o yaml` writes it. What is saved is applied only if nobody else has changed
//! the appliance meanwhile; what is refused is opened again with the reasons above it, and nothing that was typed is lost: a file that
//! could not be applied is kept.

use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use clap::Args;
use proto::admin::v1;

use crate::client::request_id;
use crate::commands::{CommandContext, Wait};
use crate::complete;
use crate::document::{self, view};
use crate::error::{Exit, Failure};
use crate::names::Tenant;
use crate::output::{OutputFormat, foreign_escaped, render};
use crate::wait::{Goal, Tracker, settle};

/// What is asked for an editor, and what is taken where none is named.
const EDITORS: [&str; 2] = ["VISUAL", "EDITOR"];
const EDITOR: &str = "vi";

/// Arguments.
#[derive(Args, Debug)]
pub(crate) struct EditArgs {
    /// Name or id
    #[arg(add = complete::appliances())]
    name: String,
    #[command(flatten)]
    tenant: Tenant,
    /// Also if a source manages it, which may change it back
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Runs `edit`.
///
/// # Errors
/// The editor failed, or what was saved last was refused; the message names the file that is kept.
pub(crate) async fn run(context: &CommandContext, args: &EditArgs) -> Result<(), Failure> {
    let (_, context) = &context.identified().await?;
    let before = context.find(&args.name, args.tenant.tenant.as_ref()).await?;
    let document = render(OutputFormat::Yaml, &view::Appliance::document(&before, view::Secrets::Shown))?;
    let folder = tempfile::Builder::new().prefix("rugctl-edit-").tempdir();
    let folder = folder.map_err(|e| Failure::failed(format!("make a temporary folder: {e}")))?;
    let file = folder.path().join("appliance.yaml");
    let mut problems = Vec::new();
    let mut text = document.clone();
    loop {
        let shown = with_comments(&before, &problems, &text);
        write(&file, &shown)?;
        let edited = open_editor(&file).await.and_then(|()| read(&file));
        let saved = match edited {
            Ok(saved) => without_comments(&saved),
            // The first time, and nothing was typed.
            Err(failure) if problems.is_empty() && read(&file).is_ok_and(|left| left == shown) => return Err(failure),
            Err(failure) => return Err(kept(folder, failure)),
        };
        if saved.trim().is_empty() || saved == document {
            context.ui.note("nothing was changed");
            return Ok(());
        }
        if !problems.is_empty() && saved == text {
            // Opened again and left as it was: whoever does that has given up.
            return Err(kept(folder, Failure::new(Exit::Usage, problems.join("\n"))));
        }
        match apply(context, args, &before, &saved).await {
            Ok(answer) => return finish(context, args, answer).await,
            Err(failure) if failure.exit == Exit::Usage || failure.exit == Exit::Failed => {
                problems = foreign_escaped(&failure.to_string()).lines().map(str::to_owned).collect();
                text = saved;
            }
            Err(failure) => return Err(kept(folder, failure)),
        }
    }
}

/// Sends what was saved, for the generation that was read.
async fn apply(
    context: &CommandContext,
    args: &EditArgs,
    before: &v1::Appliance,
    saved: &str,
) -> Result<v1::UpdateApplianceResponse, Failure> {
    let home = context.ui.tenant.as_ref();
    let documents = document::parse("the document", saved, home).map_err(|e| Failure::usage(e.join("\n")))?;
    let [document] = documents.as_slice() else {
        return Err(Failure::usage("there must be one document, which is that of the appliance"));
    };
    let mut wanted = document.appliance.clone();
    if !wanted.id.is_empty() && wanted.id != before.id {
        return Err(Failure::usage("id: is that of another appliance; `rugctl apply` makes new ones"));
    }
    wanted.id.clone_from(&before.id);
    let request = v1::UpdateApplianceRequest {
        appliance: Some(wanted),
        expected_generation: before.generation,
        request_id: request_id(),
        force: args.force,
        ..v1::UpdateApplianceRequest::default()
    };
    context.client.update(request).await.map_err(|failure| located(document, failure))
}

/// The fields that the server refused, as they stand in the document.
fn located(document: &document::Document, failure: Failure) -> Failure {
    let lines: Vec<_> =
        failure.fields.iter().map(|v| format!("{}: {}", document.locate(&v.field), v.description)).collect();
    if lines.is_empty() { failure } else { Failure::new(failure.exit, lines.join("\n")) }
}

async fn finish(context: &CommandContext, args: &EditArgs, answer: v1::UpdateApplianceResponse) -> Result<(), Failure> {
    answer.warnings.iter().for_each(|warning| context.ui.note(&foreign_escaped(warning)));
    let changed = answer.outcome() == v1::Outcome::Changed;
    let appliance = answer.appliance.unwrap_or_default();
    if changed && !args.wait.no_wait {
        let goal = Goal::Configured { generation: appliance.generation };
        settle(&context.client, &context.ui, Tracker::new(&context.ui, [(&appliance, goal)]), context.wait()).await?;
    }
    let outcome = if changed { "changed" } else { "unchanged" };
    context.ui.print(&format!("{} {outcome}", context.ui.label(&appliance)))
}

/// The document with the reasons why it was refused above it.
fn with_comments(appliance: &v1::Appliance, problems: &[String], text: &str) -> String {
    let mut comments = vec![
        format!(
            "{} at generation {}. Lines that begin with # are left out.",
            view::full_label(appliance),
            appliance.generation
        ),
        "Save to apply it; leave it as it is, or empty, to change nothing.".to_owned(),
    ];
    if !problems.is_empty() {
        comments.push(String::new());
        comments.push("It was refused:".to_owned());
        comments.extend(problems.iter().map(|problem| format!("  {problem}")));
    }
    let comments: String = comments.iter().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect();
    format!("{comments}{text}")
}

/// The document without the comments at its beginning.
fn without_comments(text: &str) -> String {
    text.split_inclusive('\n').skip_while(|line| line.starts_with('#')).collect()
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", file.display()));
    let mut options = fs::OpenOptions::new();
    let mut out = options.write(true).create(true).truncate(true).open(file).map_err(failed)?;
    // It may have secrets; the folder is closed to others already.
    out.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
    out.write_all(text.as_bytes()).map_err(failed)
}

fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|e| Failure::failed(format!("{}: {e}", file.display())))
}

/// Runs the editor and waits for its end.
async fn open_editor(file: &Path) -> Result<(), Failure> {
    let named = EDITORS.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.trim().is_empty()));
    if named.is_none() && !std::io::stdin().is_terminal() {
        return Err(Failure::usage("`rugctl edit` needs a terminal, or an editor in VISUAL or EDITOR"));
    }
    let editor = named.unwrap_or_else(|| EDITOR.to_owned());
    // By a shell, as other programs do, because the variable may have arguments.
    let status = tokio::process::Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "sh"])
        .arg(file)
        .stdin(Stdio::inherit())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|e| Failure::failed(format!("run {editor}: {e}")))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::failed(format!("{editor} ended with {status}: nothing was changed")))
    }
}

/// The failure, with the place where the file is kept.
fn kept(folder: tempfile::TempDir, failure: Failure) -> Failure {
    let path = folder.keep().join("appliance.yaml");
    let message = format!("{failure}\nwhat was typed is in {}", path.display());
    Failure { message, fields: Vec::new(), ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stand_above_the_document_and_are_left_out_again() {
        let appliance = v1::Appliance { name: "web".into(), generation: 3, ..v1::Appliance::default() };
        let text = "name: web\n# of the user\nreplicas: 1\n";
        let shown = with_comments(&appliance, &["replicas: must be 1 to 16".to_owned()], text);
        assert!(shown.contains("# It was refused:\n#   replicas: must be 1 to 16\nname: web\n"), "{shown}");
        assert_eq!(without_comments(&shown), text, "comments within the document are the user's");
    }
}
