//! Which process a worker is, so that others on its machine can tell when it has ended.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A process as its kernel tells it from every other one, before and after it (docs/protocol.md, Witnessed deaths).
///
/// As text it is `<boot id>/<pid namespace>/<pid>/<start>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessIdentity {
    /// What the kernel drew when it started (`/proc/sys/kernel/random/boot_id`, a UUID): one run of one machine.
    pub boot: u128,
    /// Inode of the pid namespace that `pid` is of (`/proc/self/ns/pid`).
    pub pid_namespace: u64,
    /// Its process id. Given to others after its end.
    pub pid: u32,
    /// When it started, in clock ticks after the start of the kernel (field 22 of `/proc/<pid>/stat`).
    pub start: u64,
}

impl ProcessIdentity {
    /// Whether the other one's pid means the same here: same run of one kernel, same pid namespace.
    #[must_use]
    pub fn is_neighbour(&self, other: &Self) -> bool {
        (self.boot, self.pid_namespace) == (other.boot, other.pid_namespace) && self != other
    }
}

impl fmt::Display for ProcessIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { boot, pid_namespace, pid, start } = self;
        write!(f, "{}/{pid_namespace}/{pid}/{start}", Uuid::from_u128(*boot))
    }
}

/// The text is no [`ProcessIdentity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no process, such as 4e1f…/4026531836/4711/123456")]
pub struct NoProcess;

impl FromStr for ProcessIdentity {
    type Err = NoProcess;

    fn from_str(text: &str) -> Result<Self, NoProcess> {
        let mut parts = text.splitn(4, '/');
        let mut next = || parts.next().ok_or(NoProcess);
        let boot = Uuid::parse_str(next()?).map_err(|_| NoProcess)?.as_u128();
        let pid_namespace = next()?.parse().map_err(|_| NoProcess)?;
        let pid = next()?.parse().map_err(|_| NoProcess)?;
        let start = next()?.parse().map_err(|_| NoProcess)?;
        let this = Self { boot, pid_namespace, pid, start };
        // One text for each, since it is compared in places.
        if this.to_string() == text { Ok(this) } else { Err(NoProcess) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "5f0c2a52-5b0a-4f2e-9d6c-0a1b2c3d4e5f/4026531836/4711/123456";

    #[test]
    fn it_is_read_as_it_is_written_and_nothing_else_is() {
        let process: ProcessIdentity = TEXT.parse().expect("a process");
        assert_eq!((process.pid, process.start, process.to_string().as_str()), (4711, 123_456, TEXT));
        for wrong in [
            "",
            "/",
            "x/1/2/3",
            &TEXT[..40],
            &format!("{TEXT}/1"),
            &TEXT.replace("4711", "+4711"),
            &TEXT.replace("4711", "04711"),
        ] {
            assert_eq!(wrong.parse::<ProcessIdentity>(), Err(NoProcess), "{wrong}");
        }
    }

    #[test]
    fn neighbours_share_kernel_and_namespace_and_are_not_the_same() {
        let one: ProcessIdentity = TEXT.parse().expect("a process");
        assert!(!one.is_neighbour(&one));
        assert!(one.is_neighbour(&ProcessIdentity { pid: 4712, ..one }));
        assert!(one.is_neighbour(&ProcessIdentity { start: 1, ..one }), "an earlier process with this pid");
        assert!(!one.is_neighbour(&ProcessIdentity { pid: 4712, pid_namespace: 1, ..one }));
        assert!(!one.is_neighbour(&ProcessIdentity { pid: 4712, boot: 1, ..one }));
    }
}
