//! Tasks that run only while this coordinator leads: each is started for one term and ends with it.
//!
//! A task gets a token that is cancelled when the term ends, and is to return soon after that; the next campaign waits for
//! it, within a bound. A task that ends earlier, also by a panic, is noticed and logged. What the term cannot do without
//! ends the term then.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// How long tasks may take to end with their term. After that they are aborted, which ends them where they wait next.
const STOP: Duration = Duration::from_secs(3);

/// What follows when a task ends before its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyEnd {
    /// The term goes on without it.
    TermGoesOn,
    /// The term ends: leading without the task would be wrong.
    EndsTerm,
}

#[derive(Debug)]
struct LeaderTask {
    name: &'static str,
    early_end: EarlyEnd,
}

/// The tasks of one term.
#[derive(Debug, Default)]
pub struct LeaderTasks {
    over: CancellationToken,
    tasks: JoinSet<()>,
    running: HashMap<Id, LeaderTask>,
}

impl LeaderTasks {
    /// Starts a task. It gets the token that is cancelled when the term ends; `name` names it in the log.
    pub fn spawn<F>(&mut self, name: &'static str, early_end: EarlyEnd, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let handle = self.tasks.spawn(task(self.over.clone()));
        self.running.insert(handle.id(), LeaderTask { name, early_end });
    }

    /// Waits until a task has ended without which the term cannot go on, and returns its name. Other tasks that end are
    /// logged meanwhile. Cancel-safe.
    pub async fn failed(&mut self) -> &'static str {
        loop {
            match self.tasks.join_next_with_id().await {
                None => std::future::pending().await,
                Some(ended) => {
                    if let Some(LeaderTask { name, early_end: EarlyEnd::EndsTerm }) = self.ended(ended) {
                        return name;
                    }
                }
            }
        }
    }

    /// Tells the tasks that the term is over.
    pub fn cancel(&self) {
        self.over.cancel();
    }

    /// Cancels the tasks and waits until they have ended, at most some seconds.
    pub async fn stop(mut self) {
        self.cancel();
        let ended = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended);
            }
        };
        if tokio::time::timeout(STOP, ended).await.is_err() {
            for LeaderTask { name, .. } in self.running.values() {
                warn!(task = name, "the task did not end with its term in time; aborting it");
            }
        }
    }

    /// Takes the end of a task in, and logs it unless the term is over and the task returned.
    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) -> Option<LeaderTask> {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(failure) => failure.id(),
        };
        let task = self.running.remove(&id)?;
        match ended {
            Err(failure) => error!(task = task.name, "a task of the leader failed: {failure}"),
            Ok(_) if !self.over.is_cancelled() => {
                error!(task = task.name, "a task of the leader ended before its term");
            }
            Ok(_) => {}
        }
        Some(task)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_are_stopped_and_awaited_at_the_end_of_the_term() {
        let mut tasks = LeaderTasks::default();
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        tasks.spawn("tidy", EarlyEnd::EndsTerm, |over| async move {
            over.cancelled().await;
            sleep(Duration::from_secs(1)).await;
            seen.store(true, Ordering::SeqCst);
        });
        let began = Instant::now();
        tasks.stop().await;
        assert!(ended.load(Ordering::SeqCst));
        assert_eq!(began.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_stop_holds_the_end_of_the_term_up_no_longer_than_the_deadline() {
        struct Dropped(Arc<AtomicBool>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let mut tasks = LeaderTasks::default();
        let dropped = Arc::new(AtomicBool::new(false));
        let guard = Dropped(Arc::clone(&dropped));
        tasks.spawn("stubborn", EarlyEnd::EndsTerm, |_| async move {
            let _guard = guard;
            std::future::pending().await
        });
        tokio::task::yield_now().await;
        let began = Instant::now();
        tasks.stop().await;
        assert_eq!(began.elapsed(), STOP);
        tokio::task::yield_now().await;
        assert!(dropped.load(Ordering::SeqCst), "it was aborted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_and_an_early_end_are_noticed() {
        let mut tasks = LeaderTasks::default();
        tasks.spawn("spare", EarlyEnd::TermGoesOn, |_| async { panic!("on purpose") });
        let waited = timeout(Duration::from_secs(1), tasks.failed()).await;
        assert!(waited.is_err(), "the term goes on without it");
        tasks.spawn("needed", EarlyEnd::EndsTerm, |_| async { panic!("on purpose") });
        assert_eq!(tasks.failed().await, "needed");
        tasks.spawn("short", EarlyEnd::EndsTerm, |_| std::future::ready(()));
        assert_eq!(tasks.failed().await, "short");
        tasks.stop().await;
    }
}
