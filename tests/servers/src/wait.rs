//! Waiting for conditions.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(25);

/// Looks until `look` succeeds and returns what it found. One look may fail for any reason.
///
/// # Errors
/// The last failure, once `limit` is over. The condition is looked at once more after that, so that a test that was not
/// scheduled for long does not fail for it.
pub async fn until<T>(limit: Duration, what: &str, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        let over = began.elapsed() >= limit;
        match look().await {
            Ok(found) => return Ok(found),
            Err(problem) if over => return Err(anyhow!("waited {limit:?} until {what}: {problem:#}")),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
