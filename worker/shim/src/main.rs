//! `rug-shim`: started by the process driver for one instance. Not for people: it takes its order from standard input.
//!
//! `rug-shim run` is the shim. `rug-shim launch` is what it starts: that sets up the process it is in and becomes the command.
//! `rug-shim probe` runs a command beside an instance and says how it ended. `rug-shim exec` runs one for an operator.

mod cgroup;
mod exec;
mod launch;
mod log;
mod probe;
mod signals;
mod supervise;

use std::io::Read as _;
use std::process::ExitCode;

use shim::order::{InvalidOrder, MAX_ORDER, Order};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("run") => supervise::run(),
        Some("launch") => launch::run(),
        Some("probe") => probe::run(),
        Some("exec") => exec::run(),
        _ => {
            eprintln!("rug-shim is started by rug-worker for each instance; it is not for use by hand");
            ExitCode::from(2)
        }
    }
}

/// Reads the order from standard input, to its end.
fn read_order() -> Result<Order, String> {
    let mut bytes = Vec::new();
    let limit = MAX_ORDER as u64 + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(|error| format!("read the order: {error}"))?;
    if bytes.len() > MAX_ORDER {
        return Err(format!("the order is longer than {MAX_ORDER} bytes"));
    }
    Order::decode(&bytes).map_err(|error: InvalidOrder| error.to_string())
}
