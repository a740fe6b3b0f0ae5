//! Completion of command lines by the shell: of flags and commands, and of names that only the server knows.
//!
//! The script of `rugctl completion SHELL` calls this program with the line as it stands ([`VARIABLE`] set), and it answers with
//! what may follow. Names are asked for from the server that the line itself leads to, by its flags, the environment, the context
//! in use and the working directory. A shell waits for the answer with the cursor standing still: so there is one attempt, within
//! [`LIMIT`], and whatever goes wrong is silence.

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::time::Duration;

use clap::{ArgMatches, CommandFactory, FromArgMatches};
use clap_complete::env::Shells;
use clap_complete::{ArgValueCompleter, CompletionCandidate, Shell};
use common::appliance::Name;
use proto::admin::v1;

use crate::client::{AdminClient, working_folder};
use crate::contexts::Contexts;
use crate::document::view;
use crate::error::Failure;
use crate::global::Global;
use crate::output::Ui;

/// The environment variable by which a shell asks; its value names the shell.
pub(crate) const VARIABLE: &str = "RUG_COMPLETE";
/// How long an answer may take, all calls together.
const LIMIT: Duration = Duration::from_secs(1);
/// Most names that are offered. Whoever has more types another letter.
const MOST: usize = 500;

/// Prints what has a shell ask.
pub(crate) fn script(ui: &Ui, shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    let failed = |why: &dyn std::fmt::Display| Failure::failed(format!("write the script: {why}"));
    let shells = Shells::builtins();
    let shell = shells.completer(&shell.to_string()).ok_or_else(|| failed(&"this shell is not known"))?;
    shell.write_registration(VARIABLE, "rugctl", "rugctl", "rugctl", &mut script).map_err(|e| failed(&e))?;
    ui.print(&String::from_utf8_lossy(&script))
}

/// Names of appliances: within the tenant of the line, and with tenant and kind where a `/` has been typed.
pub(crate) fn appliances() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let Some(current) = current.to_str() else { return Vec::new() };
        let is_full = current.contains('/');
        let names = ask(async |client, tenant| {
            let filter = match is_full {
                true => v1::ApplianceFilter::default(),
                false => v1::ApplianceFilter {
                    tenant: tenant.unwrap_or_else(|| "default".to_owned()),
                    name_prefix: current.to_owned(),
                    ..v1::ApplianceFilter::default()
                },
            };
            let found = client.list_some(filter, MOST).await?;
            Ok(found.into_iter().flat_map(|a| names_of(&a, is_full)).collect())
        });
        candidates(names, current)
    })
}

/// How an appliance may be named: by its name alone, or by every longer form of it.
fn names_of(appliance: &v1::Appliance, is_full: bool) -> Vec<String> {
    if !is_full {
        return vec![appliance.name.clone()];
    }
    let (tenant, kind, name) = (&appliance.tenant, view::kind(appliance), &appliance.name);
    vec![format!("{tenant}/{name}"), format!("{kind}/{name}"), format!("{tenant}/{kind}/{name}")]
}

/// Names of tenants that have appliances.
pub(crate) fn tenants() -> ArgValueCompleter {
    asked(async |client, _| {
        let found = client.list_some(v1::ApplianceFilter::default(), MOST).await?;
        Ok(found.into_iter().map(|appliance| appliance.tenant).collect())
    })
}

/// Ids of debug modes.
pub(crate) fn debug_modes() -> ArgValueCompleter {
    asked(async |client, _| Ok(client.debug_modes().await?.into_iter().map(|mode| mode.id).collect()))
}

/// Names of budgets.
pub(crate) fn budgets() -> ArgValueCompleter {
    asked(async |client, _| Ok(client.budgets().await?.into_iter().map(|budget| budget.name).collect()))
}

/// Ids of rollouts.
pub(crate) fn rollouts() -> ArgValueCompleter {
    asked(async |client, _| Ok(client.rollouts().await?.into_iter().map(|rollout| rollout.id).collect()))
}

/// Names of workers.
pub(crate) fn workers() -> ArgValueCompleter {
    asked(async |client, _| Ok(client.workers().await?.into_iter().map(|worker| worker.id).collect()))
}

/// Drivers that workers offer.
pub(crate) fn drivers() -> ArgValueCompleter {
    asked(async |client, _| Ok(client.workers().await?.into_iter().flat_map(|worker| worker.drivers).collect()))
}

/// What was done lately, as the audit trail names it.
pub(crate) fn actions() -> ArgValueCompleter {
    asked(async |client, _| {
        let events = client.audit(&v1::AuditFilter::default(), MOST).await?;
        Ok(events.into_iter().map(|event| event.action).collect())
    })
}

/// Words that are the same for every cluster.
pub(crate) fn words(words: fn() -> Vec<String>) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| {
        let words = words();
        current.to_str().map(|current| candidates(words, current)).unwrap_or_default()
    })
}

/// Ids of the latest rebalances.
pub(crate) fn rebalances() -> ArgValueCompleter {
    asked(async |client, _| Ok(client.rebalances(100).await?.into_iter().map(|rebalance| rebalance.id).collect()))
}

fn asked<F>(names: F) -> ArgValueCompleter
where
    F: AsyncFn(AdminClient, Option<String>) -> Result<Vec<String>, Failure> + Send + Sync + 'static,
{
    ArgValueCompleter::new(move |current: &OsStr| {
        current.to_str().map(|current| candidates(ask(&names), current)).unwrap_or_default()
    })
}

/// Those that begin as the word does, each once, in their order. Names are plain text; anything else is not handed to a shell.
fn candidates(mut names: Vec<String>, current: &str) -> Vec<CompletionCandidate> {
    names.retain(|name| name.starts_with(current) && name.bytes().all(is_plain));
    names.sort();
    names.dedup();
    names.truncate(MOST);
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// Whether shells take a byte as it stands.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'/')
}

/// Asks the server that the line leads to. Empty when it does not answer in time, or at all.
fn ask(names: impl AsyncFn(AdminClient, Option<String>) -> Result<Vec<String>, Failure>) -> Vec<String> {
    let Some((global, tenant)) = line(std::env::args_os().collect()) else { return Vec::new() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let answer = async {
        let connection = global.connection(&working_folder(), Contexts::of_user().as_ref()).ok()?;
        let tenant = tenant.or(connection.reached.tenant).map(|tenant| tenant.to_string());
        within(LIMIT, names(connection.client.once(LIMIT), tenant)).await
    };
    runtime.block_on(answer).unwrap_or_default()
}

async fn within(limit: Duration, names: impl Future<Output = Result<Vec<String>, Failure>>) -> Option<Vec<String>> {
    tokio::time::timeout(limit, names).await.ok()?.ok()
}

/// What the line that is completed says so far: the flags of every command, and the tenant. The shell's words follow a `--`.
fn line(words: Vec<OsString>) -> Option<(Global, Option<Name>)> {
    let mut words = words.into_iter().skip_while(|word| word != "--").skip(1).collect::<Vec<_>>();
    // The word that is being typed is not said yet.
    if words.len() > 1 {
        words.pop();
    }
    let matches = crate::Cli::command().ignore_errors(true).try_get_matches_from(words).ok()?;
    let mut global = Global::from_arg_matches(&matches).ok()?;
    global.note_typed(&matches);
    Some((global, tenant_of(&matches)))
}

fn tenant_of(matches: &ArgMatches) -> Option<Name> {
    let own = matches.try_get_one::<Name>("tenant").ok().flatten().cloned();
    own.or_else(|| tenant_of(matches.subcommand()?.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line_so_far: &str) -> (Option<String>, Option<String>) {
        let words = format!("rugctl -- {line_so_far}").split(' ').map(OsString::from).collect();
        let (global, tenant) = line(words).expect("a line");
        (global.server().map(str::to_owned), tenant.map(|tenant| tenant.to_string()))
    }

    #[test]
    fn a_line_that_is_not_finished_says_where_to_ask() {
        assert_eq!(said("rugctl get we"), (None, None));
        assert_eq!(said("rugctl get -t demo we"), (None, Some("demo".into())));
        assert_eq!(said("rugctl --server h:1 delete web-1 --tenant=demo "), (Some("h:1".into()), Some("demo".into())));
        assert_eq!(said("rugctl worker evict --server h:1 w"), (Some("h:1".into()), None));
        assert_eq!(said("rugctl "), (None, None));
    }

    #[test]
    fn only_what_begins_as_the_word_does_and_is_plain_is_offered() {
        let names = ["web-2", "web-1", "db", "web-1", "web $(reboot)"].map(str::to_owned).to_vec();
        let offered: Vec<_> = candidates(names, "web").iter().map(|c| c.get_value().to_owned()).collect();
        assert_eq!(offered, ["web-1", "web-2"]);
        let kind = Some(v1::spec::Kind::Custom(v1::Custom::default()));
        let spec = Some(v1::Spec { kind, ..v1::Spec::default() });
        let web = v1::Appliance { name: "web".into(), tenant: "demo".into(), spec, ..v1::Appliance::default() };
        assert_eq!(names_of(&web, true), ["demo/web", "custom/web", "demo/custom/web"]);
    }

    #[test]
    fn every_shell_gets_a_script_that_asks_this_program() {
        for shell in Shells::builtins().names() {
            let mut script = Vec::new();
            let shells = Shells::builtins();
            let shell = shells.completer(shell).expect("known");
            shell.write_registration(VARIABLE, "rugctl", "rugctl", "rugctl", &mut script).expect("written");
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains(VARIABLE) && script.contains("rugctl"), "{script}");
        }
    }
}
