//! Retention: history that is older than the store's settings keep is deleted while this coordinator leads.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::store::Store;

/// Time between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);

/// Deletes old history in rounds until `over`.
pub(super) async fn run(store: Store, over: CancellationToken) {
    let rounds = async {
        loop {
            tokio::time::sleep(INTERVAL).await;
            // The store logs what is worth it; the next round tries again.
            if let Err(error) = store.prune().await {
                debug!("old history was not deleted: {error}");
            }
        }
    };
    over.run_until_cancelled(rounds).await;
}
