//! Signals as a process has them by default, whatever the one that started it had.

use nix::libc;

/// Every signal does what it does by default. Ignored ones are inherited over `exec`, also by what a worker starts that was started
/// with `nohup`.
#[expect(unsafe_code, reason = "the call that sets a disposition also takes handlers")]
pub(crate) fn default_dispositions() {
    // Those that cannot be changed, and those that the C library keeps for itself, are refused.
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: no handler is installed, and the only ones that are removed are those of the standard library for overflows
        // of the stack.
        let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
