//! Vocabulary shared by every package of Rug.
//!
//! Names, versions and domain types live here, free of IO, clock and randomness, so that the pure cores
//! (`coordinator-core`, `worker-core`) can depend on them. What needs a runtime (loading configuration, start-up of
//! telemetry, signals) sits behind the feature `runtime` and is used by the binaries only.

pub mod appliance;
#[cfg(feature = "canon")]
pub mod canon;
pub mod digest;
pub mod id;
pub mod mutant;
pub mod profile;
pub mod retry;
pub mod ring;
pub mod roster;
pub mod status;
pub mod time;
pub mod version;

#[cfg(feature = "runtime")]
pub mod config;
#[cfg(feature = "coordination")]
pub mod coordination;
#[cfg(feature = "runtime")]
pub mod runtime;
#[cfg(feature = "tls")]
pub mod tls;

pub use digest::Digest;
pub use id::{ApplianceId, CoordinatorId, RebalanceId, WorkerId};
pub use profile::{Profile, Site};
pub use time::Timestamp;
pub use version::{Edition, Generation, Incarnation, StreamNumber, Term, Token};
