//! What is wrong with a text that is no YAML, in our own words: those of the parser name its types and settings, and may quote
//! a value, which may be a password.

use serde_saphyr::Error;
use serde_saphyr::budget::BudgetBreach;

/// One sentence about an error of the parser, without its place.
pub(super) fn describe(error: &Error) -> String {
    match error.without_snippet() {
        Error::DuplicateMappingKey { .. } => "a field stands here that the same mapping has already".to_owned(),
        Error::Eof { .. } => "the text ends in the middle of a document".to_owned(),
        Error::UnknownAnchor { .. } => "`*` refers to an anchor (`&`) that does not stand before it".to_owned(),
        Error::RecursiveReferencesRequireWeakTypes { .. } => "`*` refers to what it is a part of".to_owned(),
        Error::AliasError { error, .. } => describe(error),
        Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => "references (`*`) expand to more than is read".to_owned(),
        Error::MergeValueNotMapOrSeqOfMaps { .. } => "`<<` needs a mapping, or a list of them".to_owned(),
        Error::MergeKeyNotAllowed { .. } => "`<<` is not supported".to_owned(),
        Error::FoldedBlockScalarMustIndentContent { .. } => "a text that begins with `>` must be indented".to_owned(),
        Error::Budget { breach, .. } => over_limit(breach).to_owned(),
        Error::ExternalMessage { .. } | Error::Message { .. } => syntax(&error.to_string()).to_owned(),
        _ => OTHER.to_owned(),
    }
}

const OTHER: &str = "is not valid YAML; look at indentation, quotes and brackets here and in the line before";

const fn over_limit(breach: &BudgetBreach) -> &'static str {
    match breach {
        BudgetBreach::Depth { .. } => "is nested too deeply: documents have at most 64 levels",
        BudgetBreach::Documents { .. } => "holds more than 65536 documents",
        BudgetBreach::Aliases { .. }
        | BudgetBreach::Anchors { .. }
        | BudgetBreach::AliasAnchorRatio { .. }
        | BudgetBreach::RecordedAnchorEvents { .. } => "has more anchors (`&`) and references (`*`) than are read",
        _ => "holds more values than are read from one file; split it",
    }
}

/// The commonest mistakes, by words of the parser's message. What is not recognised is described in general.
fn syntax(message: &str) -> &'static str {
    let message = message.to_lowercase();
    let has = |words: &str| message.contains(words);
    if has("tab") {
        "a tab stands where YAML takes spaces only"
    } else if has("flow sequence") {
        "a list that begins with `[` is not closed, or lacks a comma"
    } else if has("flow mapping") {
        "a mapping that begins with `{` is not closed, or lacks a comma"
    } else if has("quoted") || has("scalar") && has("quote") {
        "a text in quotes is not closed"
    } else if has("mapping values are not allowed") {
        "a colon stands in a value that is not in quotes, or the line is indented too far"
    } else {
        OTHER
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    /// No word of the parser, of Rust or of a source path.
    fn is_plain(problem: &str) {
        for word in ["Policy", "udget", "serde", "saphyr", ".rs", "::", "breach", "scanner", "parser", "anchor id"] {
            assert!(!problem.contains(word), "{word:?} in {problem:?}");
        }
    }

    #[test]
    fn what_is_no_yaml_is_described_in_our_own_words() {
        let deep = "name: ".to_owned() + &"[".repeat(100) + &"]".repeat(100) + "\n";
        for (text, part) in [
            ("name: a\nname: b\n", "f.yaml:2: a field stands here that the same mapping has already"),
            ("name: a\n\tkind: b\n", ""),
            ("name: [a\nkind: b\n", ""),
            ("name: {a: b\nkind: c\n", ""),
            ("name: \"a\nkind: b\n", ""),
            ("kind: *nowhere\n", "f.yaml:1: `*` refers to an anchor"),
            ("name: a: b\n", ""),
            ("a: &a [*a]\n", ""),
            (&deep, "is nested too deeply"),
            ("name: a\n- b\n", ""),
            ("!!binary x: %\n", ""),
            ("a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n", ""),
        ] {
            let owned = text.to_owned();
            let reader = std::thread::Builder::new().stack_size(8 << 20).spawn(move || parse("f.yaml", &owned));
            let read = reader.expect("a thread").join().expect("no panic");
            let problems = read.expect_err(text);
            assert!(problems.iter().any(|problem| problem.contains(part)), "{problems:?} has not {part:?}");
            problems.iter().for_each(|problem| is_plain(problem));
        }
    }
}
