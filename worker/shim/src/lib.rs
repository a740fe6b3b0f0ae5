//! The shim: one small process beside each instance, and what it and its worker say to each other.
//!
//! `rug-shim` is started by the process driver for one instance and outlives the worker. It is the parent of the instance
//! and adopts whatever that leaves behind (subreaper), so that an instance is a whole tree of processes whatever these
//! do: start sessions of their own, fork twice, change their user, clear their environment. It reaps them, copies their
//! output to the log and bounds it, notes how the main process ended, and ends what is left then.
//!
//! It decides nothing about an appliance. A worker gives one [`order::Order`] through a pipe, which no other user can
//! read, gets one line as the answer, and finds out everything later from [`state::ShimState`], a file beside the
//! record of the instance. To stop an instance a worker sends the stop signal to the shim, which passes it on to all of its
//! processes; whether and when they are killed is the worker's decision, made under the lock of the appliance.
//!
//! Single-threaded, without allocation in steady state: hundreds of them run on one host.

pub mod channel;
pub mod order;
pub mod processes;
pub mod state;

/// Variable in the environment of a shim that names its instance. Not the one by which instances are found, so that a shim is
/// taken for none.
pub const SHIM_VARIABLE: &str = "RUG_SHIM";

/// File in the folder of an instance that the shim keeps its [`state::ShimState`] in.
pub const STATE_FILE: &str = "shim";

/// File in the folder of an instance that its output goes to. Older ones have `.1` (the newest of them), `.2` and so on appended.
pub const LOG_FILE: &str = "log";
