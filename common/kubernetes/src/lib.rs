//! What coordinators and workers share of Kubernetes: one client, set up and bounded in one way.
//!
//! [`connect`] gives a [`kube::Client`] whose every call has a deadline, is throttled, waits as long as the API server asks it to, is
//! traced and measured ([`policy`]); whoever has it uses kube's typed [`Api`](kube::Api). A watch has the deadline for its beginning
//! only. What went wrong is one [`Error`], made of kube's: it tells apart what callers do different things about.

mod config;
mod connection;
mod error;
mod metrics;
mod policy;
mod request;
mod throttle;

pub use self::config::ClientConfig;
pub use self::connection::{Connection, SetupError, connect};
pub use self::error::{Error, MAX_MESSAGE};
pub use self::metrics::reference;
pub use k8s_openapi;
pub use kube;
