//! The worker's session with the leading coordinator, as pure state machines.
//!
//! [`Control`] decides which life, which stream and when to leave; [`Conversation`] what each message on a stream does and
//! what is answered. They own no socket, no channel and no clock: a driver carries out their actions and feeds back what
//! came of them. The worker's shell, the simulator and, without the times of [`Control`], the model are such drivers.

mod control;
mod conversation;
mod departure;
mod heartbeat;
mod pending;
mod targets;

pub use control::{
    Control, ControlAction, ControlEvent, JoinFailure, Membership, Notice, Outcome, Settings, StreamEnd,
};
pub use conversation::{Conversation, ConversationAction, ConversationNotice, ConversationSettings, Incoming};
pub use departure::{LeaveReason, StopRequest};
