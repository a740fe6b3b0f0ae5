//! Reads pages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// A command of a page, with the lines it prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where it stands, for messages.
    pub place: String,
    /// What is typed, without the prompt.
    pub command: String,
    /// What the page shows below it.
    pub output: Vec<String>,
}

/// A block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The set-up it is tried in; `None` when the page says why it is not.
    pub scenario: Option<String>,
    /// Its rows depend on chance.
    pub varies: bool,
    /// Its commands, in the order of the page.
    pub steps: Vec<Step>,
}

/// The folder with README and docs.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The pages for users: README, and what is in docs. Decisions tell what was true on their day, and are none.
///
/// # Errors
/// When the folder cannot be read.
pub fn pages() -> Result<Vec<PathBuf>> {
    let mut found = vec![root().join("README.md")];
    for folder in ["docs", "docs/observability"] {
        for entry in fs::read_dir(root().join(folder)).with_context(|| format!("read {folder}"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The blocks of commands of a page.
///
/// # Errors
/// For a block that does not say where it is tried, and for one that does not begin with a command.
pub fn blocks(page: &Path) -> Result<Vec<Block>> {
    let text = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let name = page.strip_prefix(root()).unwrap_or(page).display().to_string();
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    let mut above = "";
    while let Some((at, line)) = lines.next() {
        if line.trim() != "```console" {
            above = line;
            continue;
        }
        let mut block = mark(above)
            .with_context(|| format!("{name}:{at}: the line above a block of commands says where it is tried"))?;
        for (at, line) in lines.by_ref().take_while(|(_, line)| line.trim() != "```") {
            if let Some(command) = line.trim_start().strip_prefix("$ ") {
                let place = format!("{name}:{}", at + 1);
                block.steps.push(Step { place, command: command.to_owned(), output: Vec::new() });
            } else {
                let step = block.steps.last_mut().with_context(|| format!("{name}:{}: no command above it", at + 1))?;
                // A command that goes on in the next line.
                if step.output.is_empty() && is_open(&step.command) {
                    step.command = format!("{}\n{line}", step.command);
                } else if !line.trim().is_empty() {
                    step.output.push(line.trim_end().to_owned());
                }
            }
        }
        ensure!(!block.steps.is_empty(), "{name}:{at}: an empty block");
        found.push(block);
    }
    Ok(found)
}

/// What the line above a block says.
fn mark(line: &str) -> Result<Block> {
    let said = line.trim().strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")).unwrap_or_default();
    let (scenario, varies) = match said.split_once(": ") {
        Some(("run", what)) => match what.split_once(", ") {
            Some((scenario, "varies")) => (Some(scenario.to_owned()), true),
            Some((_, other)) => bail!("`{other}` is no word of a mark"),
            None => (Some(what.to_owned()), false),
        },
        Some(("not run", why)) if !why.is_empty() => (None, false),
        _ => bail!("it is {line:?}"),
    };
    Ok(Block { scenario, varies, steps: Vec::new() })
}

/// Whether a command goes on in the next line: after a backslash, or inside quotes.
fn is_open(command: &str) -> bool {
    command.ends_with('\\') || command.matches('\'').count() % 2 == 1
}

/// The calls of programs of Rug that a page has, in blocks and in running text.
///
/// # Errors
/// When the page cannot be read.
pub fn calls(page: &Path) -> Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let mut found = Vec::new();
    let mut is_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if is_block {
            let command = line.trim_start();
            found.extend(commands_of(command.strip_prefix("$ ").unwrap_or(command)));
        } else {
            // Every second part stands between backquotes.
            line.split('`').skip(1).step_by(2).for_each(|span| found.extend(commands_of(&span.replace("\\|", "|"))));
        }
    }
    Ok(found)
}

/// The commands in a line of shell that call Rug.
fn commands_of(line: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for words in commands(line) {
        let Some(program) = words.iter().position(|word| is_program(word)) else { continue };
        // Before it only variables and words such as `sudo` or `do`.
        if words[..program].iter().all(|word| word.contains('=') || ["sudo", "do", "then"].contains(&word.as_str())) {
            found.push(words[program..].to_vec());
        }
    }
    found
}

fn is_program(word: &str) -> bool {
    ["rugctl", "rug-worker", "rug-coordinator"].contains(&word.strip_prefix("target/release/").unwrap_or(word))
}

/// The words of each command in a line, as far as a page needs it: quotes, comments, and what stands between commands.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut commands, mut words, mut word, mut quote) = (Vec::new(), Vec::new(), String::new(), None);
    let mut chars = line.chars().peekable();
    let mut is_word = false;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.push(c),
            (None, '\'' | '"') => (quote, is_word) = (Some(c), true),
            (None, '#') if !is_word => break,
            (None, '>') => {
                // Where the output goes is none of the command's business.
                word.clear();
                is_word = false;
                while chars.next_if(|c| *c == ' ' || *c == '>').is_some() {}
                while chars.next_if(|c| !c.is_whitespace()).is_some() {}
            }
            (None, ';' | '|' | '&' | '(' | ')') => {
                if is_word {
                    words.push(std::mem::take(&mut word));
                }
                is_word = false;
                // `rebuild|set-image` are choices, no pipe.
                if c == '|'
                    && !words.is_empty()
                    && chars.peek().is_some_and(|next| !next.is_whitespace() && *next != '|')
                {
                    while chars.next_if(|c| !c.is_whitespace() && *c != ']').is_some() {}
                    continue;
                }
                commands.push(std::mem::take(&mut words));
            }
            (None, c) if c.is_whitespace() => {
                if is_word {
                    words.push(std::mem::take(&mut word));
                }
                is_word = false;
            }
            // What may go on behind a word.
            (None, '[') if is_word => while chars.next_if(|c| *c != ']').is_some() {},
            (None, '[' | ']' | '\\') => {
                if is_word {
                    words.push(std::mem::take(&mut word));
                }
                is_word = false;
            }
            (None, c) => {
                word.push(c);
                is_word = true;
            }
        }
    }
    if is_word {
        words.push(word);
    }
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        commands_of(line).iter().map(|words| words.join("_")).collect()
    }

    #[test]
    fn calls_are_found_in_shell_and_in_synopses() {
        assert_eq!(words("kill -9 %1 && rugctl list      # if c2 leads"), ["rugctl_list"]);
        assert_eq!(
            words("rugctl debug set --reason \"ticket 4711\" --for 2h"),
            ["rugctl_debug_set_--reason_ticket 4711_--for_2h"]
        );
        assert_eq!(
            words("for n in 1 2; do rug-worker run --name w$n 2> w$n.log & done"),
            ["rug-worker_run_--name_w$n"]
        );
        assert_eq!(
            words("rugctl rebalance undo ID [--reason TEXT] [--yes]"),
            ["rugctl_rebalance_undo_ID_--reason_TEXT_--yes"]
        );
        assert_eq!(words("rugctl rollout get|wait ID"), ["rugctl_rollout_get_ID"]);
        assert_eq!(words("RUG_SERVER=x sudo rugctl get web-1 -o json | jq -r"), ["rugctl_get_web-1_-o_json"]);
        assert_eq!(words("rug.admin.v1 rugctl"), Vec::<String>::new());
    }

    #[test]
    fn a_mark_says_where_a_block_is_tried() {
        assert_eq!(
            mark("<!-- run: cluster, varies -->").map(|b| (b.scenario, b.varies)).ok(),
            Some((Some("cluster".into()), true))
        );
        assert_eq!(mark("<!-- not run: needs a cloud -->").map(|b| b.scenario).ok(), Some(None));
        assert!(
            mark("").is_err() && mark("<!-- run: cluster, often -->").is_err() && mark("<!-- not run:  -->").is_err()
        );
    }
}
