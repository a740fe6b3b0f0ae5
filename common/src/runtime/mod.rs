//! What every binary does the same way: read the clock, start telemetry, wait for signals.

pub mod clock;
pub mod file;
pub mod retry;
pub mod shutdown;
pub mod telemetry;

/// The runtime of a server process: a thread per core, timers and sockets.
///
/// # Errors
/// When the system gives no threads or no event queue.
pub fn threads() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
