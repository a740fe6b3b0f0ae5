//! What daemons and instances wrote.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of each log that are shown after a failure.
const TAIL: usize = 40;

/// Lines that no test expects: a panic anywhere, or an error of a daemon without one of the `tolerated` texts.
#[must_use]
pub fn unexpected(root: &Path, tolerated: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for path in all(root) {
        let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
        for line in text.lines() {
            let error = line.contains(" ERROR ") && !tolerated.iter().any(|text| line.contains(text));
            if error || line.contains("panicked at") {
                found.push(format!("{}: {line}", path.strip_prefix(root).unwrap_or(&path).display()));
            }
        }
    }
    found
}

/// The ends of all logs.
#[must_use]
pub fn tails(root: &Path) -> String {
    let mut text = String::new();
    for path in all(root) {
        let log = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        if lines.is_empty() {
            continue;
        }
        let _ = writeln!(text, "--- end of {}", path.display());
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// Logs of the daemons, then those of the instances.
fn all(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(_)
                    if path.extension().is_some_and(|e| e == "log") || path.file_name().is_some_and(|n| n == "log") =>
                {
                    found.push(path);
                }
                _ => {}
            }
        }
    }
    found.sort_by_key(|path| (path.extension().is_none(), path.clone()));
    found
}
