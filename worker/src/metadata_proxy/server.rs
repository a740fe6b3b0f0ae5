//! Connections of appliances: HTTP/1, as many as may be open, of one address and in all.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use runtime::log_limited;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Proxy;

/// Connections at a time; more wait in the backlog of the system.
const CONNECTIONS: usize = 1_024;
/// The same of one address; more are closed at once. An appliance opens one for each request.
const CONNECTIONS_OF_ONE: usize = 64;
/// How long the head of a request may take, and a connection be idle.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a connection may last in any case, beyond the time of a request.
const LONGEST: Duration = Duration::from_secs(120);
/// Most bytes of the head of a request.
const MOST_HEAD: usize = 16 * 1024;
/// Pause after a failed accept, which mostly means that the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Open connections by address.
#[derive(Debug, Default)]
struct Openings(Mutex<HashMap<IpAddr, usize>>);

impl Openings {
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Opening> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= CONNECTIONS_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Opening { all: Arc::clone(self), address })
    }
}

/// One connection, for as long as it is open.
struct Opening {
    all: Arc<Openings>,
    address: IpAddr,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut open = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Serves until `stop`, which ends what is under way.
pub(super) async fn serve(listener: TcpListener, proxy: Arc<Proxy>, stop: CancellationToken) {
    let (free, openings) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Openings::default()));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept(&listener, &free) => accepted,
        };
        let Some((stream, address, permit)) = accepted else { continue };
        let Some(opening) = openings.enter(address) else { continue };
        let (proxy, stop) = (Arc::clone(&proxy), stop.clone());
        // Bounded by the permits.
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(LONGEST + proxy.config.timeout) => {}
                () = converse(stream, address, proxy.as_ref()) => {}
            }
            drop((opening, permit));
        });
    }
}

/// A connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    free: &Arc<Semaphore>,
) -> Option<(TcpStream, IpAddr, tokio::sync::OwnedSemaphorePermit)> {
    // Nothing closes the semaphore.
    let permit = Arc::clone(free).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, address)) => Some((stream, address.ip().to_canonical(), permit)),
        Err(error) => {
            log_limited!(warn, "metadata proxy: accept a connection: {error}");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn converse(stream: TcpStream, address: IpAddr, proxy: &Proxy) {
    let service = hyper::service::service_fn(async |request| Ok::<_, Infallible>(proxy.handle(address, request).await));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(MOST_HEAD);
    // How it ended is the caller's business.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_open_more_than_its_share() {
        let openings = Arc::new(Openings::default());
        let of = |last| openings.enter([192, 0, 2, last].into());
        let mut open: Vec<_> = std::iter::repeat_with(|| of(1)).take(CONNECTIONS_OF_ONE).collect();
        assert!(open.iter().all(Option::is_some) && of(1).is_none() && of(2).is_some());
        open.pop();
        assert!(of(1).is_some());
        drop(open);
        assert!(openings.0.lock().expect("whole").is_empty(), "nothing is left of those that are closed");
    }
}
