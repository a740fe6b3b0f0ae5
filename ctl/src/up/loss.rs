//! What is told of a state folder that is deleted or moved under a running cluster, as a whole or in part.

use std::path::{Path, PathBuf};

use super::folder::STORE;
use crate::output::count;

/// What was deleted or moved under a running cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// Nothing.
    Nothing,
    /// These parts of the state folder.
    Parts(Vec<&'static str>),
    /// The state folder.
    Deleted,
    /// The state folder is somewhere else now.
    Moved(PathBuf),
}

impl Loss {
    /// Whether what is stored ends with the cluster.
    fn of_store(&self) -> bool {
        match self {
            Self::Nothing | Self::Moved(_) => false,
            Self::Parts(parts) => parts.contains(&STORE),
            Self::Deleted => true,
        }
    }

    /// Whether the next owner cannot find what runs.
    fn of_instances(&self) -> bool {
        match self {
            Self::Nothing | Self::Moved(_) => false,
            Self::Parts(parts) => parts.contains(&"workers"),
            Self::Deleted => true,
        }
    }

    /// What is told of a loss while the cluster runs.
    pub(super) fn told(&self, folder: &Path) -> String {
        let folder = folder.display();
        match self {
            Self::Nothing => format!(
                "the state folder {folder} is as it was again. Changes may still be refused: Ctrl-C, then `rugctl up` ends that"
            ),
            Self::Deleted => format!(
                "the state folder {folder} was deleted under the running cluster: changes are refused from now on, and \
                 nothing of what is stored survives its end. Ctrl-C stops it"
            ),
            Self::Moved(to) => format!(
                "the state folder {folder} was moved to {} under the running cluster: changes are refused from now on. Stop \
                 the cluster with Ctrl-C, move the folder back, and start it again",
                to.display()
            ),
            Self::Parts(parts) => {
                let mut text =
                    format!("deleted or replaced in {folder} under the running cluster: {}", parts.join(", "));
                if self.of_store() {
                    text += "; changes are refused from now on, and nothing of what is stored survives its end";
                } else if self.of_instances() {
                    text += "; instances are neither started nor ended from now on";
                } else if parts.contains(&"coordinator.sock") {
                    text += "; no command reaches it any more, until it is started again";
                }
                text + ". Ctrl-C stops it"
            }
        }
    }
}

/// What remains of a cluster that was stopped. `running`: how many appliances run, as far as is known; `workers`: the state directory of
/// the workers.
pub(super) fn last_words(running: Option<u64>, loss: &Loss, workers: &Path) -> String {
    let who = match running {
        Some(0) => return "stopped; no appliance is running".to_owned(),
        Some(1) => "1 appliance keeps running".to_owned(),
        Some(n) => format!("{} keep running", count(n, "appliance")),
        None => "appliances keep running".to_owned(),
    };
    let by_hand = format!("end what `rug-worker instances --state-dir {}` lists by hand", workers.display());
    match loss {
        Loss::Moved(to) => format!(
            "stopped; {who}. The state folder is at {} now: move it back, then `rugctl up` takes over again, and \
             `rugctl up --down` removes what runs",
            to.display()
        ),
        loss if loss.of_store() => format!(
            "stopped; {who}, and no cluster knows of that any more: its records were deleted. The next `rugctl up` begins anew; {by_hand}"
        ),
        loss if loss.of_instances() => format!(
            "stopped; {who}, and the next `rugctl up` cannot take over: the folder of the workers was deleted. First {by_hand}, then \
             use `rugctl placement unbind`"
        ),
        _ => format!("stopped; {who}: `rugctl up` takes over again, `rugctl up --down` removes them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_promise_only_what_holds() {
        let said = |running, loss: &Loss| last_words(running, loss, Path::new("/a/.rug/workers"));
        assert_eq!(said(Some(0), &Loss::Deleted), "stopped; no appliance is running");
        let usual = said(Some(2), &Loss::Nothing);
        assert!(usual.starts_with("stopped; 2 appliances keep running: `rugctl up` takes over again"), "{usual}");
        assert!(said(None, &Loss::Parts(vec!["lock"])).contains("takes over again"));
        for lost in [Loss::Deleted, Loss::Parts(vec!["coordinator", STORE]), Loss::Parts(vec!["workers"])] {
            let text = said(Some(1), &lost);
            assert!(!text.contains("takes over again") && text.contains("1 appliance keeps running"), "{text}");
            assert!(text.contains("rug-worker instances --state-dir /a/.rug/workers"), "{text}");
        }
        assert!(said(None, &Loss::Moved("/b".into())).contains("is at /b now: move it back"));
    }
}
