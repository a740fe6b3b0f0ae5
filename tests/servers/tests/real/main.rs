//! Every server starts, answers a client that knows nothing of this package, and keeps its data over a restart; faults
//! are what they say they are.

mod databases;
mod guard;
mod network;
mod python;
mod zookeeper;
