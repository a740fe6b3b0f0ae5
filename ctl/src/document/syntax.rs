//! What is wrong with a text that is no YAML, in our own words: those of the parser name its types and settings, and may quote
//! a value, which may be a password.

use serde_saphyr::Error;
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::granit_parser::ErrorKind;
use serde_saphyr::localizer::ExternalMessageSource;

/// One sentence about an error of the parser, without its place.
pub(super) fn describe(error: &Error) -> String {
    match error.without_snippet() {
        Error::DuplicateMappingKey { key, .. } => duplicate(key.as_deref()),
        Error::Eof { .. } => "the text ends in the middle of a document".to_owned(),
        Error::UnknownAnchor { .. } => UNKNOWN_ANCHOR.to_owned(),
        Error::RecursiveReferencesRequireWeakTypes { .. } => "`*` refers to what it is a part of".to_owned(),
        Error::AliasError { error, .. } => describe(error),
        Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => "references (`*`) expand to more than is read".to_owned(),
        Error::MergeValueNotMapOrSeqOfMaps { .. } => "`<<` needs a mapping, or a list of them".to_owned(),
        Error::MergeKeyNotAllowed { .. } => "`<<` is not supported".to_owned(),
        Error::FoldedBlockScalarMustIndentContent { .. } => "a text that begins with `>` must be indented".to_owned(),
        Error::InvalidScalar { .. }
        | Error::InvalidBooleanStrict { .. }
        | Error::InvalidBinaryBase64 { .. }
        | Error::BinaryNotUtf8 { .. }
        | Error::BytesNotSupportedMissingBinaryTag { .. }
        | Error::TaggedScalarCannotDeserializeIntoString { .. }
        | Error::TaggedEnumMismatch { .. }
        | Error::UnsupportedIncludeForm { .. }
        | Error::ResolverError { .. } => TAG.to_owned(),
        Error::NonFiniteFloat { .. } => "a number is too large, or none; put it in quotes if it is a text".to_owned(),
        Error::ContainerEndMismatch { .. }
        | Error::UnexpectedSequenceEnd { .. }
        | Error::UnexpectedMappingEnd { .. } => BRACKETS.to_owned(),
        Error::Budget { breach, .. } => over_limit(breach).to_owned(),
        Error::ExternalMessage { source, .. } => match source.as_ref() {
            ExternalMessageSource::Parser(problem) => syntax(problem.kind()).to_owned(),
            _ => OTHER.to_owned(),
        },
        _ => OTHER.to_owned(),
    }
}

/// The name of a field may be quoted where it looks like one: what is none may be a value that lost its own name.
fn duplicate(key: Option<&str>) -> String {
    let is_word =
        |key: &&str| key.len() <= 64 && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    match key.filter(is_word) {
        Some(key) => format!("`{key}` stands here a second time in the same mapping"),
        None => "a field stands here that the same mapping has already".to_owned(),
    }
}

const UNKNOWN_ANCHOR: &str = "`*` refers to an anchor (`&`) that does not stand before it";
const TAG: &str = "has a tag (`!`) that its value does not fit, or that is not known; documents need no tags";
const BRACKETS: &str = "a bracket closes what was not opened by it: `[` needs `]`, and `{` needs `}`";
const LIST: &str = "a list that begins with `[` is not closed, or lacks a comma";
const MAPPING: &str = "a mapping that begins with `{` is not closed, or lacks a comma";
const TAB: &str = "a tab stands where YAML takes spaces only";
const QUOTES: &str = "a text in quotes is not closed";
const DEPTH: &str = "is nested too deeply: documents have at most 64 levels";
const OTHER: &str = "is not valid YAML; look at indentation, quotes and brackets here and in the line before";

const fn over_limit(breach: &BudgetBreach) -> &'static str {
    match breach {
        BudgetBreach::Depth { .. } => DEPTH,
        BudgetBreach::Documents { .. } => "holds more than 65536 documents",
        BudgetBreach::Aliases { .. }
        | BudgetBreach::Anchors { .. }
        | BudgetBreach::AliasAnchorRatio { .. }
        | BudgetBreach::RecordedAnchorEvents { .. } => "has more anchors (`&`) and references (`*`) than are read",
        _ => "holds more values than are read from one file; split it",
    }
}

/// What breaks the rules of YAML.
const fn syntax(kind: &ErrorKind) -> &'static str {
    use ErrorKind as E;

    match kind {
        E::TabNotAllowed
        | E::TabInBlockIndentation
        | E::TabInIndentation
        | E::TabAtBlockScalarStart
        | E::TabInPlainScalar => TAB,
        E::UnexpectedEofFlowSequence | E::ExpectedFlowSequenceSeparator | E::UnclosedFlowCollection { open: '[' } => {
            LIST
        }
        E::UnexpectedEofFlowMapping
        | E::UnexpectedEofImplicitFlowMapping
        | E::ExpectedFlowMappingSeparator
        | E::UnclosedFlowCollection { .. } => MAPPING,
        E::MisplacedFlowCollectionEnd | E::MismatchedFlowCollectionEnd { .. } => BRACKETS,
        E::UnclosedQuotedScalar | E::DocumentIndicatorInQuotedScalar => QUOTES,
        E::InvalidQuotedScalarIndent => "a text in quotes goes on in a line that is not indented; is it closed?",
        E::InvalidTrailingSingleQuotedScalar | E::InvalidTrailingDoubleQuotedScalar => {
            "something follows the quote that ends a text; a quote within it must be doubled (`''`) or escaped (`\\\"`)"
        }
        E::UnknownQuotedScalarEscape
        | E::InvalidQuotedScalarHexEscape
        | E::InvalidLowSurrogateHexEscape
        | E::InvalidLowSurrogate
        | E::MissingLowSurrogate
        | E::UnpairedLowSurrogate
        | E::InvalidUnicodeEscape => {
            "a text in double quotes has a `\\` before a character that it cannot escape; write `\\\\`, or single quotes"
        }
        E::UndeclaredTagHandle
        | E::ExpectedTagBang
        | E::InvalidGlobalTagCharacter
        | E::InvalidTagTerminator
        | E::MissingTagUri
        | E::UnclosedVerbatimTag
        | E::InvalidTagEscape
        | E::InvalidTagUtf8LeadingByte
        | E::InvalidTagUtf8TrailingByte
        | E::InvalidTagUtf8
        | E::MissingIncludeResolver => TAG,
        E::UnknownAnchor => UNKNOWN_ANCHOR,
        E::MissingAnchorOrAliasName => "a value that begins with `*` or `&` belongs in quotes",
        E::UnexpectedCharacter { .. } => "a value that begins with `@`, `%` or a backtick belongs in quotes",
        E::MappingValueNotAllowed | E::InvalidColonPlacement => {
            "a colon stands in a value that is not in quotes, the line is indented too far, or a bracket before it is not closed"
        }
        E::SimpleKeyExpected | E::InvalidSimpleKey => "a line is neither a field with its colon nor an entry of a list",
        E::ExpectedBlockMappingKey | E::ExpectedBlockSequenceEntry | E::BlockSequenceEntryNotAllowed => {
            "an entry of a list (`-`) and a field stand side by side; is it indented as the lines before?"
        }
        E::InvalidIndentation | E::InvalidBlockScalarIndent | E::InvalidFlowScalarIndent => {
            "the line is not indented as the lines before"
        }
        E::RecursionLimitExceeded => DEPTH,
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    /// No word of the parser, of Rust or of a source path, and no value.
    fn is_plain(problem: &str) {
        for word in
            ["Policy", "udget", "serde", "saphyr", ".rs", "::", "breach", "scanner", "parser", "anchor id", "hush"]
        {
            assert!(!problem.contains(word), "{word:?} in {problem:?}");
        }
    }

    #[test]
    fn what_is_no_yaml_is_described_in_our_own_words() {
        let deep = "name: ".to_owned() + &"[".repeat(100) + &"]".repeat(100) + "\n";
        let mut wrong = Vec::new();
        let secret = "name: a\nspec: {password: 'hush4711";
        for (text, part) in [
            ("name: a\nname: b\n", "f.yaml:2: `name` stands here a second time"),
            ("hush 4711: a\nhush 4711: b\n", "f.yaml:2: a field stands here that the same mapping has already"),
            ("name: a\n\tkind: b\n", ": a tab stands"),
            ("name: [a, b\n", "a list that begins with `[` is not closed"),
            ("name: [a\nkind: b\n", "f.yaml:2: a colon stands in a value that is not in quotes"),
            ("name: {a: b\nkind: c\n", "a mapping that begins with `{` is not closed"),
            ("name: [a}\n", "a bracket closes"),
            ("name: \"a\nkind: b\n", "f.yaml:1: a text in quotes is not closed"),
            (secret, "a text in quotes"),
            ("name: 'a' hush4711\n", "f.yaml:1: something follows the quote"),
            ("name: \"C:\\hush4711\"\n", "f.yaml:1: a text in double quotes has a `\\`"),
            ("kind: *nowhere\n", "f.yaml:1: `*` refers to an anchor"),
            ("kind: * x\n", "f.yaml:1: a value that begins with `*`"),
            ("kind: @hush4711\n", "f.yaml:1: a value that begins with `@`"),
            ("name: a: b\n", "f.yaml:1: a colon stands in a value"),
            ("a: &a [*a]\n", "`*` refers to what it is a part of"),
            (&deep, "is nested too deeply"),
            ("name: a\n- b\n", "f.yaml:2: an entry of a list"),
            ("name: !!int hush4711\n", "f.yaml:1: has a tag"),
            ("name: !!binary hush4711\n", "f.yaml:1: has a tag"),
            ("name: !x!y hush4711\n", "f.yaml:1: has a tag"),
            ("name: .nan\n", ""),
            ("!!binary x: %\n", ""),
            ("a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n", ""),
        ] {
            let owned = text.to_owned();
            let reader = std::thread::Builder::new().stack_size(8 << 20).spawn(move || parse("f.yaml", &owned, None));
            let read = reader.expect("a thread").join().expect("no panic");
            let problems = read.expect_err(text);
            if !problems.iter().any(|problem| problem.contains(part)) {
                wrong.push(format!("{text:?}: {problems:?} has not {part:?}"));
            }
            problems.iter().for_each(|problem| is_plain(problem));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
