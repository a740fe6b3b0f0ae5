//! What Neutron says, turned into what Rug is asked for. Pure: nothing here reads a clock or a socket.
//!
//! - [`notification`] reads a message of Neutron's exchange: which routers, networks or floating IPs it is about;
//! - [`index`] knows which of our routers that concerns, without asking anybody;
//! - [`state`] holds what was read from Neutron, of one router or of all;
//! - [`translate`] makes the appliance of a router from that.
//!
//! A message says only that something changed. What is then put in place is always the whole state as Neutron has it, so that a
//! message that is lost, doubled or late does no harm.

pub mod index;
pub mod notification;
pub mod state;
pub mod translate;

#[cfg(test)]
mod samples;
