//! The worker's session with the leading coordinator, as pure state machines.
//!
//! [`Control`] decides which life, which stream and when to leave. It owns no socket, no channel and no clock: a driver
//! carries out its [`ControlAction`]s and feeds back what came of them.

mod control;
mod departure;
mod heartbeat;
mod targets;

pub use control::{
    Control, ControlAction, ControlEvent, JoinFailure, Membership, Notice, Outcome, Settings, StreamEnd,
};
pub use departure::{LeaveReason, StopRequest};
