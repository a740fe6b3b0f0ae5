//! Help: examples of every command, and the pages of the manual.

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
    ("get", &["rugctl get web-1", "rugctl get demo/custom/web-1 -o yaml"]),
    ("list", &["rugctl list", "rugctl list -t demo -l app=web --phase error -o wide", "rugctl list --watch"]),
    ("describe", &["rugctl describe web-1", "rugctl describe web-1 web-2 -t demo"]),
    ("explain", &["rugctl explain web-1"]),
    ("watch", &["rugctl watch", "rugctl watch web-1", "rugctl watch -t demo --kind loadbalancer -o json"]),
    (
        "delete",
        &["rugctl delete web-1 custom/web-2", "rugctl delete -f fleet.yaml", "rugctl delete --all -t demo --yes"],
    ),
    ("rebuild", &["rugctl rebuild web-1", "rugctl rebuild web-1 --image v2"]),
    ("scale", &["rugctl scale web-1 --replicas 3"]),
    ("check", &["rugctl check web-1"]),
    ("worker list", &["rugctl worker list", "rugctl worker list -o wide"]),
    ("worker get", &["rugctl worker get worker-1"]),
    ("worker watch", &["rugctl worker watch"]),
    ("worker evict", &["rugctl worker evict worker-1 --reason stuck"]),
    ("worker forget", &["rugctl worker forget worker-1 --reason scrapped"]),
    ("ring locate", &["rugctl ring locate web-1", "rugctl ring locate --key some-text --count 5"]),
    ("ring show", &["rugctl ring show", "rugctl ring show --points"]),
    ("placement pause", &["rugctl placement pause --reason maintenance"]),
    ("placement resume", &["rugctl placement resume"]),
    ("placement unbind", &["rugctl placement unbind web-1 --reason host-lost --yes"]),
    ("rebalance list", &["rugctl rebalance list --limit 10", "rugctl history"]),
    ("rebalance get", &["rugctl rebalance get r3-17"]),
    ("rebalance watch", &["rugctl rebalance watch"]),
    ("audit", &["rugctl audit --since 2h", "rugctl audit web-1 -o json", "rugctl audit --action delete --follow"]),
    ("doctor", &["rugctl doctor", "rugctl doctor --server https://rug-1:7470,https://rug-2:7470"]),
    ("cluster status", &["rugctl cluster status", "rugctl cluster status --cluster prod -o json"]),
    ("cluster watch", &["rugctl cluster watch"]),
    ("completion", &["rugctl completion bash"]),
    ("man", &["rugctl man /usr/local/share/man/man1"]),
    ("version", &["rugctl version", "rugctl version --client"]),
];

/// The same command with examples at the end of the help of each.
pub(crate) fn with_examples(command: Command) -> Command {
    EXAMPLES.iter().fold(command, |command, (path, lines)| {
        let text = lines.iter().fold("Examples:".to_owned(), |text, line| format!("{text}\n  {line}"));
        let mut parts = path.split(' ');
        match (parts.next(), parts.next()) {
            (Some(first), None) => command.mut_subcommand(first, |command| command.after_help(text)),
            (Some(first), Some(second)) => command
                .mut_subcommand(first, |command| command.mut_subcommand(second, |command| command.after_help(text))),
            (None, _) => command,
        }
    })
}

/// Writes a page of the manual for each command, as `rugctl.1`, `rugctl-apply.1` and so on.
pub(crate) fn write_manual(ui: &Ui, command: Command, folder: &Path) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(command, folder).map_err(failed)?;
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

    #[test]
    fn every_command_has_examples_and_every_example_is_one() {
        let mut commands = BTreeSet::new();
        leaves(&Cli::command(), "", &mut commands);
        let documented: BTreeSet<_> = EXAMPLES.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(commands, documented);
        for (path, lines) in EXAMPLES {
            for line in *lines {
                Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
                let alias = *line == "rugctl history";
                assert!(alias || line.starts_with(&format!("rugctl {path}")), "{line:?} is no example of {path}");
            }
        }
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
        let ui = Ui { format: crate::output::OutputFormat::Table, colour: false, progress: false };
        let folder = dir.path().join("man1");
        write_manual(&ui, with_examples(Cli::command()), &folder).expect("written");
        for page in ["rugctl.1", "rugctl-apply.1", "rugctl-worker-evict.1"] {
            let text = fs::read_to_string(folder.join(page)).expect(page);
            assert!(text.contains(".TH"), "{page}");
        }
    }
}
