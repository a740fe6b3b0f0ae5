//! Connections that stand, checked again when the TLS files have changed: one whose certificate was revoked, or whose CA is
//! no longer trusted, ends.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use runtime::tls::{CertificateChain, ServerTls};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::PeerInfo;

/// The connections of a listener with TLS. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Standing(Arc<Mutex<Vec<Weak<StandingPeer>>>>);

#[derive(Debug)]
struct StandingPeer {
    chain: CertificateChain,
    peer: PeerInfo,
    over: CancellationToken,
}

/// Held by a connection; says when it has to end.
#[derive(Debug)]
pub(in crate::grpc) struct Trusted(Arc<StandingPeer>);

impl Standing {
    /// Adds a connection that was just let in; `None` if the files have changed meanwhile so that it would not be.
    pub(super) fn add(&self, tls: &ServerTls, chain: CertificateChain, peer: PeerInfo) -> Option<Trusted> {
        let peer = Arc::new(StandingPeer { chain, peer, over: CancellationToken::new() });
        {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that have ended are forgotten whenever the list would have to grow.
            if all.len() == all.capacity() {
                all.retain(|peer| peer.strong_count() > 0);
            }
            all.push(Arc::downgrade(&peer));
        }
        // After it was added: a change from now on is noticed by `check_again`.
        tls.still_trusts(&peer.chain).then_some(Trusted(peer))
    }

    /// Ends the connections that would not be let in any more. Takes some 100 µs for each.
    pub(super) fn check_again(&self, tls: &ServerTls) {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut kept: Vec<_> =
            all.into_iter().filter(|peer| peer.upgrade().is_some_and(|peer| peer.check(tls))).collect();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).append(&mut kept);
    }
}

impl StandingPeer {
    fn check(&self, tls: &ServerTls) -> bool {
        let trusted = tls.still_trusts(&self.chain);
        if !trusted {
            info!(target: "audit", peer = %self.peer, "its certificate is no longer accepted: the connection ends");
            self.over.cancel();
        }
        trusted
    }
}

impl Trusted {
    /// Ready once the connection has to end.
    pub(in crate::grpc) async fn over(&self) {
        self.0.over.cancelled().await;
    }
}
