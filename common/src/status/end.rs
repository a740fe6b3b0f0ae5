//! How an instance ended.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::signal;
use crate::text::{clip, escaped};

/// Most lines of output that are kept.
const MAX_LINES: usize = 5;
/// Longest line, in bytes.
const MAX_LINE: usize = 400;
/// Longest name of an instance, in bytes.
const MAX_INSTANCE: usize = 256;

/// How the main process of an instance ended by itself, as its driver found it. Its texts are bounded and plain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InstanceEnd {
    /// Name of the instance.
    pub instance: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// What the system said.
    pub cause: EndCause,
    /// Whether the kernel killed processes of it because they had no more memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// The last lines of output of this run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_lines: Vec<String>,
}

/// What ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// It exited with this status.
    Exit(i32),
    /// This signal.
    Signal(i32),
}

impl InstanceEnd {
    /// The same end with texts that may be stored and shown: what a terminal would act on is escaped, and what is too long is cut. Of
    /// the lines the last ones are kept.
    #[must_use]
    pub fn bounded(self) -> Self {
        let plain = |text: &str, most| clip(&escaped(clip(text, most)), most).to_owned();
        let skipped = self.last_lines.len().saturating_sub(MAX_LINES);
        let last_lines = self.last_lines.iter().skip(skipped).map(|line| plain(line, MAX_LINE)).collect();
        Self { instance: plain(&self.instance, MAX_INSTANCE), last_lines, ..self }
    }
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exit(status) => write!(f, "exit status {status}"),
            Self::Signal(number) => match signal::name(number) {
                Some(name) => write!(f, "signal {number} ({name})"),
                None => write!(f, "signal {number}"),
            },
        }
    }
}

/// In one line, without the name of the instance: `exit status 3; last output: first | second`.
impl fmt::Display for InstanceEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        if self.out_of_memory {
            f.write_str(", out of memory")?;
        }
        if self.last_lines.is_empty() {
            f.write_str("; no output")
        } else {
            write!(f, "; last output: {}", self.last_lines.join(" | "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(cause: EndCause, out_of_memory: bool, lines: &[&str]) -> InstanceEnd {
        let last_lines = lines.iter().map(|line| (*line).to_owned()).collect();
        InstanceEnd { instance: "a-0-1".into(), at_unix_ms: 7, cause, out_of_memory, last_lines }
    }

    #[test]
    fn an_end_is_told_in_one_line() {
        for (end, text) in [
            (end(EndCause::Exit(3), false, &["a", "b"]), "exit status 3; last output: a | b"),
            (end(EndCause::Signal(9), true, &[]), "signal 9 (SIGKILL), out of memory; no output"),
            (end(EndCause::Signal(64), false, &[]), "signal 64; no output"),
        ] {
            assert_eq!(end.to_string(), text);
            let stored = serde_json::to_string(&end).expect("plain data");
            assert_eq!(serde_json::from_str::<InstanceEnd>(&stored).expect("round trip"), end);
        }
    }

    #[test]
    fn its_texts_are_bounded_and_no_terminal_acts_on_them() {
        let long = "é".repeat(10_000);
        let lines = ["0", "1", "2", "3", "\u{202e}x", long.as_str()];
        let bounded = InstanceEnd { instance: long.clone(), ..end(EndCause::Exit(1), false, &lines) }.bounded();
        assert_eq!(bounded.last_lines[..4], ["1", "2", "3", "\\u{202e}x"]);
        assert_eq!((bounded.last_lines.len(), bounded.last_lines[4].len(), bounded.instance.len()), (5, 400, 256));
        assert_eq!(bounded.clone().bounded(), bounded);
    }
}
