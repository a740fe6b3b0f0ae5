//! The driver `kubernetes` against an API server in this process: boots, takeovers, late calls of former owners, and everything an API
//! server can do to a client.

mod api_server;
mod fencing;
mod judging;
mod lifecycle;
mod world;
