//! Looks on while a drill runs: who leads, what was rebalanced, what leaders complain of, and whether an instance runs
//! twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::evidence::slot;
use crate::cluster::api::Api;
use crate::cluster::processes::{self, ProcessIdentity};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(400);
/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(3);
/// Between two looks at the history of rebalances, of which the API shows the newest hundred.
const HISTORY: Duration = Duration::from_secs(4);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Who led each term.
    pub leaders: BTreeMap<u64, String>,
    /// Most contradictions the leader of each term had counted.
    pub violations: BTreeMap<u64, u64>,
    /// What leaders wanted a person to look at.
    pub notes: BTreeSet<String>,
    /// Rebalances.
    pub rebalances: BTreeSet<String>,
    /// Instances that ran twice at the same time.
    pub doubles: BTreeSet<String>,
    /// Looks, and those of them that nobody answered.
    pub looks: (u64, u64),
}

/// Looks until it is dropped.
#[derive(Debug)]
pub struct Observer {
    seen: Arc<Mutex<Observed>>,
    looking: AbortHandle,
}

impl Observer {
    /// Begins.
    #[must_use]
    pub fn start(apis: &[Api], root: &Path) -> Self {
        let seen = Arc::new(Mutex::new(Observed::default()));
        let looking = tokio::spawn(look(apis.to_vec(), root.to_owned(), Arc::clone(&seen))).abort_handle();
        Self { seen, looking }
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Observed {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

async fn look(apis: Vec<Api>, root: PathBuf, seen: Arc<Mutex<Observed>>) {
    let note = |write: &dyn Fn(&mut Observed)| write(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
    let (mut ask, mut history) = (0, Instant::now());
    loop {
        tokio::time::sleep(PERIOD).await;
        let doubles = doubles(&root);
        let api = &apis[ask % apis.len()];
        let status = tokio::time::timeout(LIMIT, api.status()).await;
        note(&|seen| {
            seen.doubles.extend(doubles.iter().cloned());
            seen.looks.0 += 1;
            seen.looks.1 += u64::from(!matches!(status, Ok(Ok(_))));
        });
        let Ok(Ok(status)) = status else {
            ask += 1;
            continue;
        };
        note(&|seen| {
            seen.leaders.insert(status.term, status.coordinator.clone());
            let counted = seen.violations.entry(status.term).or_default();
            *counted = status.violations.max(*counted);
            seen.notes.extend(status.notes.iter().cloned());
        });
        if history.elapsed() >= HISTORY
            && let Ok(Ok(rebalances)) = tokio::time::timeout(LIMIT, api.rebalances()).await
        {
            history = Instant::now();
            note(&|seen| seen.rebalances.extend(rebalances.iter().map(|rebalance| rebalance.id.clone())));
        }
    }
}

/// Instances of one ordinal that run at the same time.
fn doubles(root: &Path) -> Vec<String> {
    let mut slots: BTreeMap<(String, u64), Vec<(String, ProcessIdentity)>> = BTreeMap::new();
    for (name, process) in processes::instances(root) {
        if let Some((appliance, ordinal)) = slot(&name) {
            slots.entry((appliance.to_owned(), ordinal)).or_default().push((name, process));
        }
    }
    let several = slots.into_values().filter(|found| found.len() > 1);
    // The kernel's list is not of one moment: one may have ended before the other began.
    let several = several.filter(|found| found.iter().all(|(_, process)| processes::is_alive(*process)));
    several.map(|found| format!("{found:?}")).collect()
}
