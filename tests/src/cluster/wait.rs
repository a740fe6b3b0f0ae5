//! Waiting for conditions, and watching that one holds.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};

pub use servers::wait::until;

/// How often [`holds`] looks.
const LOOK: Duration = Duration::from_millis(200);

/// Watches for this long that a condition holds.
///
/// # Errors
/// It does not, with what is wrong.
pub async fn holds(long: Duration, what: &str, mut check: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + long;
    loop {
        check().await.with_context(|| format!("it does not hold that {what}"))?;
        if Instant::now() >= end {
            return Ok(());
        }
        sleep(LOOK).await;
    }
}
