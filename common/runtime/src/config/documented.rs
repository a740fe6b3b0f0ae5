//! Holds the page about settings against the settings, for tests.

use std::collections::BTreeSet;

use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use figment::value::Value;

use super::Settings;

/// Settings that the program has and the page does not list. `page` is Markdown; the first TOML block after `heading` lists
/// the settings, those that are off by default behind `# `.
///
/// # Panics
/// The page has no such block, or one that is no configuration of the program.
#[must_use]
pub fn missing<C: Settings>(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split_once(&format!("\n{heading}\n")).expect("the heading is there").1;
    let block = section.split_once("```toml\n").expect("a block begins").1.split_once("\n```").expect("it ends").0;
    let listed = listed(block);
    let mut known = BTreeSet::new();
    leaves(&Value::serialize(C::default()).expect("settings are plain data"), String::new(), &mut known);
    let read: Result<C, _> = Figment::from(Serialized::defaults(C::default())).merge(Toml::string(block)).extract();
    read.map(drop).expect("the block is a configuration");
    known.difference(&listed).cloned().collect()
}

/// Every setting of a block, with its sections in front. What belongs to entries of lists stands for the list.
fn listed(block: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut section = String::new();
    let mut in_list = false;
    for line in block.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((name, _)) = line.strip_prefix("[[").and_then(|rest| rest.split_once("]]")) {
            found.insert(name.to_owned());
            in_list = true;
        } else if let Some((name, _)) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = format!("{name}.");
            in_list = false;
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| !in_list) {
            found.insert(format!("{section}{name}"));
        }
    }
    found
}

fn leaves(value: &Value, path: String, found: &mut BTreeSet<String>) {
    match value {
        Value::Dict(_, entries) if !entries.is_empty() => {
            for (name, value) in entries {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(value, path, found);
            }
        }
        _ => {
            found.insert(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_lists_its_settings_with_their_sections() {
        let block = "a = 1\n\n[s]  # about s\nb = \"x\"   # c = 2\n# d = 3\n# [[s.rules]]\n# e = 4\n\n[s.t]\nf = []";
        let expected = ["a", "s.b", "s.d", "s.rules", "s.t.f"].map(str::to_owned);
        assert_eq!(listed(block), expected.into());
    }
}
