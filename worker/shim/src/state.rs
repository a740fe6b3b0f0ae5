//! What a shim knows about its instance, in a file that outlives both.
//!
//! Written by the shim when the main process has started and again when it has ended; read by workers, also of later
//! versions: lines `name=value`, of which unknown ones are ignored. It never changes but by further names.

use std::path::PathBuf;

use crate::processes::ProcessId;

/// Longest file that is read, in bytes.
pub const MAX_STATE: u64 = 64 * 1024;
/// Most lines of output that are kept for the end of an instance.
pub const MAX_LINES: usize = 5;
/// Most bytes of output that are kept for the end of an instance.
pub const MAX_OUTPUT: usize = 2048;

/// What a shim knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimState {
    /// Name of its instance.
    pub instance: String,
    /// Boot that the processes below belong to.
    pub boot: String,
    /// The shim itself.
    pub shim: ProcessId,
    /// The main process.
    pub main: ProcessId,
    /// Its control group, if it has one.
    pub cgroup: Option<PathBuf>,
    /// Bytes of output that were dropped, because the logs of the host or its disk were full.
    pub dropped: u64,
    /// How the main process ended, once it has.
    pub end: Option<End>,
}

/// How the main process of an instance ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// What the kernel said.
    pub cause: EndCause,
    /// When, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// Whether the kernel killed processes of it because they had no more memory.
    pub out_of_memory: bool,
    /// Its last lines of output, without control characters.
    pub last_lines: Vec<String>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// With this exit status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl ShimState {
    /// The state as the content of its file.
    #[must_use]
    pub fn encode(&self) -> String {
        let Self { instance, boot, shim, main, cgroup, dropped, end } = self;
        let mut text = format!("instance={instance}\nboot={boot}\nshim={shim}\nmain={main}\n");
        if let Some(cgroup) = cgroup {
            text += &format!("cgroup={}\n", plain(&cgroup.to_string_lossy()));
        }
        if *dropped > 0 {
            text += &format!("dropped={dropped}\n");
        }
        if let Some(End { cause, at_unix_ms, out_of_memory, last_lines }) = end {
            let cause = match cause {
                EndCause::Exit(status) => format!("exit {status}"),
                EndCause::Signal(number) => format!("signal {number}"),
            };
            text += &format!("ended={cause}\nended_at={at_unix_ms}\n");
            if *out_of_memory {
                text += "out_of_memory=1\n";
            }
            for line in last_lines {
                text += &format!("last={}\n", plain(line));
            }
        }
        text
    }

    /// Reads what [`ShimState::encode`] wrote; `None` for what is no whole state.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        let first = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let end = match first("ended") {
            None => None,
            Some(cause) => Some(End {
                cause: cause_of(cause)?,
                at_unix_ms: first("ended_at")?.parse().ok()?,
                out_of_memory: first("out_of_memory").is_some(),
                last_lines: text
                    .lines()
                    .filter_map(|line| line.strip_prefix("last="))
                    .map(plain)
                    .take(MAX_LINES)
                    .collect(),
            }),
        };
        Some(Self {
            instance: plain(first("instance")?),
            boot: plain(first("boot")?),
            shim: first("shim")?.parse().ok()?,
            main: first("main")?.parse().ok()?,
            cgroup: first("cgroup").map(plain).map(PathBuf::from).filter(|path| path.is_absolute()),
            dropped: first("dropped").map_or(Some(0), |bytes| bytes.parse().ok())?,
            end,
        })
    }
}

fn cause_of(text: &str) -> Option<EndCause> {
    let (kind, number) = text.split_once(' ')?;
    match kind {
        "exit" => Some(EndCause::Exit(number.parse().ok()?)),
        "signal" => Some(EndCause::Signal(number.parse().ok()?)),
        _ => None,
    }
}

/// A line of output as it may be stored and shown: what a terminal would act on is replaced.
fn plain(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The last lines in a piece of output: at most [`MAX_LINES`] that are not empty.
#[must_use]
pub fn last_lines(output: &[u8]) -> Vec<String> {
    let from = output.len().saturating_sub(MAX_OUTPUT);
    let text = String::from_utf8_lossy(&output[from..]);
    let mut lines: Vec<String> =
        text.lines().rev().filter(|line| !line.trim().is_empty()).take(MAX_LINES).map(plain).collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(end: Option<End>) -> ShimState {
        let id = |pid| ProcessId { pid, start_ticks: 70 };
        ShimState {
            instance: "a-0-1".into(),
            boot: "b".into(),
            shim: id(3),
            main: id(4),
            cgroup: None,
            dropped: 0,
            end,
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let end = End {
            cause: EndCause::Exit(3),
            at_unix_ms: 17,
            out_of_memory: true,
            last_lines: vec!["one".into(), "two=2".into()],
        };
        let dropping = ShimState { dropped: 5, cgroup: Some("/sys/fs/cgroup/a".into()), ..state(None) };
        for state in
            [state(None), dropping, state(Some(end.clone())), state(Some(End { cause: EndCause::Signal(9), ..end }))]
        {
            assert_eq!(ShimState::decode(&state.encode()), Some(state.clone()));
            assert_eq!(
                ShimState::decode(&format!("new=1\n{}", state.encode())),
                Some(state),
                "a later version adds names"
            );
        }
    }

    #[test]
    fn what_is_no_whole_state_is_none() {
        let text = state(None).encode();
        for cut in ["", "instance=a\n", &text[..text.find("main").expect("there")], "\0\0\0", "ended=exit x"] {
            assert_eq!(ShimState::decode(cut), None, "{cut:?}");
        }
        assert_eq!(ShimState::decode(&format!("{text}ended=exit x\nended_at=1\n")), None);
    }

    #[test]
    fn output_cannot_forge_the_state_or_act_on_a_terminal() {
        let lines = last_lines(b"\x1b[2Jx\rmain=1:1\n\n  \nlast\xff\n");
        assert_eq!(lines, ["\u{fffd}[2Jx\u{fffd}main=1:1", "last\u{fffd}"]);
        let end = End { cause: EndCause::Exit(0), at_unix_ms: 1, out_of_memory: false, last_lines: lines };
        let read = ShimState::decode(&state(Some(end)).encode()).expect("whole");
        assert_eq!(read.main.pid, 4);
        assert_eq!(last_lines(b"1\n2\n3\n4\n5\n6\n7"), ["3", "4", "5", "6", "7"]);
        assert!(last_lines(&vec![b'x'; 1 << 20])[0].len() <= MAX_OUTPUT);
        assert!(last_lines(b"").is_empty());
    }
}
