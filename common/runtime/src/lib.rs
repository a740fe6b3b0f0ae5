//! What every binary does the same way: load its configuration, read the clock, start telemetry, wait for signals, and
//! speak TLS.

pub mod clock;
pub mod config;
pub mod file;
pub mod retry;
pub mod shutdown;
pub mod telemetry;
pub mod tls;

/// The runtime of a server process: a thread per core, timers and sockets.
///
/// # Errors
/// When the system gives no threads or no event queue.
pub fn threads() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
