//! Help: examples of every command, and the pages of the manual.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::Command;

use crate::error::Failure;
use crate::output::Ui;

/// Examples of each command, by its path. A test holds each of them against the command line.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("up", &["rugctl up", "rugctl up --workers 5 --state-dir /var/tmp/rug", "rugctl up --down"]),
    (
        "apply",
        &[
            "rugctl apply -f fleet.yaml",
            "rugctl apply -f fleet.yaml --dry-run",
            "rugctl apply -f fleet/ --prune -l app=web",
        ],
    ),
    ("diff", &["rugctl diff -f fleet.yaml", "rugctl diff -f fleet/ -o json"]),
    ("edit", &["rugctl edit web-1", "rugctl edit demo/custom/web-1 --no-wait"]),
    ("get", &["rugctl get web-1", "rugctl get demo/custom/web-1 -o yaml"]),
    (
        "list",
        &[
            "rugctl list",
            "rugctl list -t demo -l app=web --phase error -o wide",
            "rugctl list -A -l tier!=db,canary",
            "rugctl list -o custom-columns=NAME:.name,WORKER:.status.assignment.worker",
            "rugctl list --watch",
        ],
    ),
    ("describe", &["rugctl describe web-1", "rugctl describe web-1 web-2 -t demo"]),
    ("explain", &["rugctl explain web-1"]),
    (
        "wait",
        &[
            "rugctl wait web-1",
            "rugctl wait -l app=web --for=phase=Configured --timeout 2m",
            "rugctl wait web-1 web-2 --for=deleted",
        ],
    ),
    ("watch", &["rugctl watch", "rugctl watch web-1", "rugctl watch -t demo --kind loadbalancer -o json"]),
    (
        "delete",
        &["rugctl delete web-1 custom/web-2", "rugctl delete -f fleet.yaml", "rugctl delete --all -t demo --yes"],
    ),
    (
        "rebuild",
        &["rugctl rebuild web-1", "rugctl rebuild web-1 --image v2", "rugctl rebuild -l app=web,!canary --yes"],
    ),
    ("scale", &["rugctl scale web-1 --replicas 3"]),
    ("check", &["rugctl check web-1", "rugctl check -l app=web -A"]),
    ("worker list", &["rugctl worker list", "rugctl worker list -o wide"]),
    ("worker get", &["rugctl worker get worker-1"]),
    ("worker watch", &["rugctl worker watch"]),
    ("worker explain", &["rugctl worker explain worker-1"]),
    ("worker evict", &["rugctl worker evict worker-1 --reason stuck"]),
    ("worker cordon", &["rugctl worker cordon worker-1 --reason noisy-neighbour"]),
    ("worker uncordon", &["rugctl worker uncordon worker-1"]),
    (
        "worker drain",
        &["rugctl worker drain worker-1 --wait --reason new-disks", "rugctl worker drain worker-1 --force"],
    ),
    ("worker undrain", &["rugctl worker undrain worker-1"]),
    ("worker weight", &["rugctl worker weight worker-1 4", "rugctl worker weight worker-1 --as-published"]),
    ("worker forget", &["rugctl worker forget worker-1 --reason scrapped"]),
    ("ring locate", &["rugctl ring locate web-1", "rugctl ring locate --key some-text --count 5"]),
    ("ring show", &["rugctl ring show", "rugctl ring show --points"]),
    ("placement pause", &["rugctl placement pause --reason maintenance", "rugctl placement pause --moves-only"]),
    ("placement resume", &["rugctl placement resume"]),
    ("placement explain", &["rugctl placement explain"]),
    ("placement unbind", &["rugctl placement unbind web-1 --reason host-lost --yes"]),
    (
        "debug set",
        &[
            "rugctl debug set --appliance web-1 --reason ticket-4711",
            "rugctl debug set --tenant demo --for 2h",
            "rugctl debug set -l app=web,tier!=db",
        ],
    ),
    ("debug clear", &["rugctl debug clear 6f1c9a52", "rugctl debug clear --all --yes"]),
    ("debug list", &["rugctl debug list"]),
    ("debug would-have", &["rugctl debug would-have web-1"]),
    (
        "placement pin",
        &["rugctl placement pin web-1 worker-2", "rugctl placement pin web-1 worker-2 --strict --reason licence"],
    ),
    ("placement unpin", &["rugctl placement unpin web-1", "rugctl placement unpin --undo-of r3-17 --yes"]),
    (
        "budget set",
        &[
            "rugctl budget set per-tenant --per tenant --max-unavailable 1",
            "rugctl budget set web -l app=web --max-unavailable 10% --reason promised",
        ],
    ),
    ("budget clear", &["rugctl budget clear per-tenant"]),
    ("budget list", &["rugctl budget list"]),
    (
        "rollout start",
        &[
            "rugctl rollout start rebuild -l app=web --max-unavailable 5 --max-failures 20",
            "rugctl rollout start set-image --image v2 -t demo --canary 1 --waves 10,50,100",
            "rugctl rollout start check --all",
        ],
    ),
    ("rollout list", &["rugctl rollout list"]),
    ("rollout get", &["rugctl rollout get 6f1c9a52"]),
    ("rollout wait", &["rugctl rollout wait 6f1c9a52"]),
    ("rollout pause", &["rugctl rollout pause 6f1c9a52 --reason night"]),
    ("rollout resume", &["rugctl rollout resume 6f1c9a52"]),
    ("rollout abort", &["rugctl rollout abort 6f1c9a52"]),
    ("rollout rollback", &["rugctl rollout rollback 6f1c9a52 --reason slow"]),
    (
        "plan apply",
        &[
            "rugctl plan --drain worker-1 --weight worker-4=2",
            "rugctl plan --join worker-9,zone=b -o json",
            "rugctl plan apply p0123456789abcdef --reason maintenance",
        ],
    ),
    (
        "plan replay",
        &[
            "rugctl plan replay --since 24h --band 1.05 --band 1.2 --ring",
            "rugctl plan replay --from dump.json --band 1.2",
            "rugctl plan replay --since 24h --spread tenant",
        ],
    ),
    ("rebalance list", &["rugctl rebalance list --limit 10", "rugctl history"]),
    ("rebalance get", &["rugctl rebalance get r3-17"]),
    ("rebalance explain", &["rugctl rebalance explain", "rugctl rebalance explain r3-17"]),
    ("rebalance trace", &["rugctl rebalance trace r3-17", "rugctl rebalance trace r3-17 -o otlp"]),
    ("rebalance abort", &["rugctl rebalance abort --reason too-much-at-once"]),
    ("rebalance undo", &["rugctl rebalance undo r3-17 --reason worse-than-before"]),
    ("rebalance watch", &["rugctl rebalance watch"]),
    (
        "logs",
        &["rugctl logs web-1 --tail 100", "rugctl logs web-1 --follow", "rugctl logs web-1 --instance 2 --previous"],
    ),
    (
        "runs",
        &["rugctl runs web-1", "rugctl runs --outcome failed --since 2h", "rugctl runs --worker worker-1 --follow"],
    ),
    ("audit", &["rugctl audit --since 2h", "rugctl audit web-1 -o json", "rugctl audit --action delete --follow"]),
    (
        "log-level",
        &[
            "rugctl log-level",
            "rugctl log-level debug --process worker-1",
            "rugctl log-level worker::runner=debug --for 1h",
        ],
    ),
    (
        "exec",
        &[
            "rugctl exec web -- uptime",
            "rugctl exec web --instance 1 --timeout 30s -- sh -c 'ss -tlnp'",
            "rugctl exec web -i -- tee notes.txt",
        ],
    ),
    ("ssh", &["rugctl ssh edge --user ops", "rugctl ssh edge --instance 1 -- uptime"]),
    (
        "config reload",
        &["rugctl config reload", "rugctl config reload --worker worker-1", "rugctl config reload --all"],
    ),
    ("sampling", &["rugctl sampling", "rugctl sampling --ratio 0.1 --slow 2s", "rugctl sampling --reset"]),
    ("top", &["rugctl top", "rugctl top --cluster prod", "rugctl top --ascii --no-color"]),
    ("doctor", &["rugctl doctor", "rugctl doctor --server https://rug-1:7470,https://rug-2:7470"]),
    ("cluster status", &["rugctl cluster status", "rugctl cluster status --cluster prod -o json"]),
    ("cluster watch", &["rugctl cluster watch"]),
    ("cluster dump", &["rugctl cluster dump", "rugctl cluster dump --since 24h"]),
    (
        "openstack check",
        &[
            "rugctl openstack check --cloud rug",
            "rugctl openstack check --image rug --flavor m1.small",
            "rugctl openstack check --management-network mgmt --try-port",
        ],
    ),
    ("context list", &["rugctl context list"]),
    ("context use", &["rugctl context use prod", "rugctl context use local"]),
    ("context show", &["rugctl context show", "rugctl context show prod -o json"]),
    (
        "context save",
        &[
            "rugctl context save prod --server https://rug-1:7470,https://rug-2:7470 \\\n  \
             --tls-ca ca.pem --tls-cert me.pem --tls-key me.key",
            "rugctl context save here --tenant demo",
        ],
    ),
    ("completion", &["rugctl completion bash", "source <(rugctl completion bash)"]),
    ("man", &["rugctl man /usr/local/share/man/man1"]),
    ("version", &["rugctl version", "rugctl version --client"]),
];

/// Widest line of help, in characters: what a terminal has that nobody has made larger.
const WIDTH: usize = 80;

/// What the help of `rugctl` itself ends with, after [`FIRST`].
const ABOUT_ALL: &str = "\
Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 server unreachable, 4 not found, 5 conflict, 130 interrupted.

The server is the one of --server or RUG_SERVER, else that of --context or RUG_CONTEXT, else that of the context in use \
(`rugctl context use`), else that of a cluster `rugctl up` runs in this folder or one above (.rug/endpoint), else that of \
`rug-coordinator run` there (rug-coordinator-state/coordinator.sock). There is no other default. With --cluster or \
RUG_CLUSTER a command is refused by every cluster but that one.";

/// What somebody who has just installed it may want to call.
const FIRST: &[&str] =
    &["rugctl up", "rugctl apply -f fleet.yaml", "rugctl list", "rugctl doctor", "rugctl help apply"];

/// The command line with examples at the end of the help of each command.
pub(crate) fn with_examples(command: Command) -> Command {
    let command = EXAMPLES.iter().fold(command.max_term_width(WIDTH), |command, (path, lines)| {
        at_path(command, path, |command| command.after_help(examples(lines)))
    });
    let groups = groups();
    let command = groups.iter().fold(command, |command, (group, lines)| {
        at_path(command, group, |command| command.after_help(examples(lines)))
    });
    command.after_help(format!("{}\n\n{ABOUT_ALL}", examples(FIRST)))
}

/// Commands that only group others, each with the first example of each of those.
fn groups() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (path, lines) in EXAMPLES {
        let Some((group, _)) = path.split_once(' ') else { continue };
        groups.entry(group).or_default().extend(lines.first());
    }
    groups
}

fn examples(lines: &[&str]) -> String {
    lines.iter().fold("Examples:".to_owned(), |text, line| format!("{text}\n  {line}"))
}

/// Changes the command at a path of one or two names.
fn at_path(command: Command, path: &str, change: impl FnOnce(Command) -> Command) -> Command {
    match path.split_once(' ') {
        None => command.mut_subcommand(path, change),
        Some((first, second)) => command.mut_subcommand(first, |command| command.mut_subcommand(second, change)),
    }
}

/// Writes a page of the manual for each command, as `rugctl.1`, `rugctl-apply.1` and so on.
pub(crate) fn write_manual(ui: &Ui, command: Command, folder: &Path) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    // Made aside and moved: a link at the name of a page is replaced and not written through.
    let aside = tempfile::Builder::new().prefix(".rugctl-").tempdir_in(folder).map_err(failed)?;
    clap_mangen::generate_to(command, aside.path()).map_err(failed)?;
    for page in fs::read_dir(aside.path()).map_err(failed)? {
        let page = page.map_err(failed)?;
        fs::rename(page.path(), folder.join(page.file_name())).map_err(failed)?;
    }
    ui.note(&format!("the pages of the manual are in {}", folder.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::Cli;

    /// Paths of the commands that do something.
    fn leaves(command: &Command, path: &str, found: &mut BTreeSet<String>) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name()).trim_start().to_owned();
            if sub.has_subcommands() {
                leaves(sub, &path, found);
            } else {
                found.insert(path);
            }
        }
    }

    /// Whether a line is a call that the command line takes.
    fn parses(line: &str) {
        let line = line.replace("\\\n", " ");
        let call = line.strip_prefix("source <(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(&line);
        Cli::try_parse_from(call.split_whitespace()).unwrap_or_else(|e| panic!("{line}: {e}"));
    }

    #[test]
    fn every_command_has_examples_and_every_example_is_one() {
        let mut commands = BTreeSet::new();
        leaves(&Cli::command(), "", &mut commands);
        let documented: BTreeSet<_> = EXAMPLES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(commands, documented);
        for (path, lines) in EXAMPLES {
            for line in *lines {
                parses(line);
                // Those that are called without the name of the command below.
                let alias = *line == "rugctl history" || line.starts_with("rugctl plan --");
                assert!(alias || line.contains(&format!("rugctl {path}")), "{line:?} is no example of {path}");
            }
        }
        FIRST.iter().filter(|line| !line.contains(" help ")).for_each(|line| parses(line));
    }

    /// The help of a command and of all below it, by path, as `-h` and as `--help` show it.
    fn helps(command: &mut Command, path: &str, found: &mut Vec<(String, String)>) {
        found.push((format!("{path} -h"), command.render_help().to_string()));
        found.push((format!("{path} --help"), command.render_long_help().to_string()));
        for sub in command.get_subcommands_mut() {
            let path = format!("{path} {}", sub.get_name());
            helps(sub, &path, found);
        }
    }

    #[test]
    fn no_line_of_help_is_wider_than_a_terminal_and_every_command_has_examples() {
        let mut command = with_examples(Cli::command());
        command.build();
        let mut found = Vec::new();
        helps(&mut command, "rugctl", &mut found);
        assert!(found.len() > 60, "{}", found.len());
        for (call, help) in &found {
            let wide: Vec<_> = help.lines().filter(|line| line.chars().count() > WIDTH).collect();
            assert!(wide.is_empty(), "{call} is wider than {WIDTH}: {wide:#?}");
            let is_help = call.split(' ').any(|word| word == "help");
            assert!(is_help || help.contains("\nExamples:\n  "), "{call} has no example:\n{help}");
        }
        let worker = &found.iter().find(|(call, _)| call == "rugctl worker -h").expect("it is there").1;
        assert!(worker.contains("rugctl worker list\n  rugctl worker get worker-1\n"), "{worker}");
    }

    #[test]
    fn help_has_the_examples_and_sets_the_flags_of_every_command_apart() {
        let mut command = with_examples(Cli::command());
        command.build();
        let apply = command.find_subcommand_mut("apply").expect("it is there");
        let help = apply.render_help().to_string();
        assert!(help.trim_end().ends_with("rugctl apply -f fleet/ --prune -l app=web"), "{help}");
        let (own, global) = help.split_once("\nOptions of every command:\n").expect("a heading of its own");
        assert!(own.contains("--dry-run") && !own.contains("--server"), "{help}");
        let (global, examples) = global.split_once("\nExamples:\n").expect("examples at the end");
        assert!(global.contains("--server") && !global.contains("--dry-run"), "{help}");
        assert!(examples.contains("--dry-run"), "{help}");
    }

    #[test]
    fn the_manual_has_a_page_for_each_command() {
        let dir = tempfile::tempdir().expect("a folder");
        let ui = Ui::plain(crate::output::OutputFormat::Table);
        let folder = dir.path().join("man1");
        let other = dir.path().join("other");
        fs::create_dir(&folder).expect("made");
        fs::write(&other, "kept").expect("written");
        std::os::unix::fs::symlink(&other, folder.join("rugctl.1")).expect("made");
        write_manual(&ui, with_examples(Cli::command()), &folder).expect("written");
        for page in ["rugctl.1", "rugctl-apply.1", "rugctl-worker-evict.1"] {
            let text = fs::read_to_string(folder.join(page)).expect(page);
            assert!(text.contains(".TH"), "{page}");
        }
        assert_eq!(fs::read_to_string(other).expect("read"), "kept", "links are replaced");
        let names = fs::read_dir(&folder).expect("read").map(|entry| entry.expect("read").file_name());
        assert!(names.map(|name| name.to_string_lossy().into_owned()).all(|name| name.ends_with(".1")), "nothing else");
    }
}
