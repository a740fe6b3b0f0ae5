//! Vocabulary shared by every package of Rug.
//!
//! Names, versions and domain types live here, free of IO, clock and randomness, so that the pure cores
//! (`coordinator-core`, `worker-core`) can depend on them. Nothing here does IO behind any feature: what needs a runtime
//! is in the packages `runtime` and `coordination`, which only binaries use.

pub mod access;
pub mod appliance;
pub mod backoff;
#[cfg(feature = "canon")]
pub mod canon;
pub mod change;
pub mod cluster;
pub mod digest;
pub mod driver;
pub mod election;
pub mod execution;
pub mod id;
pub mod inquiry;
pub mod kind;
mod limits;
pub mod manager;
pub mod membership;
pub mod mode;
pub mod mutant;
mod name;
pub mod network_port;
pub mod pod;
pub mod process;
pub mod profile;
pub mod reload;
pub mod ring;
pub mod roster;
pub mod run;
#[cfg(feature = "schema")]
pub mod schema;
pub mod secret;
pub mod selector;
pub mod session;
pub mod signal;
pub mod site;
pub mod status;
pub mod telemetry;
pub mod text;
pub mod time;
pub mod trace;
pub mod version;

pub use digest::Digest;
pub use id::{ApplianceId, CoordinatorId, RebalanceId, WorkerId};
pub use mode::{Mode, ModeEdition, ModeId, ModeSubject};
pub use process::ProcessIdentity;
pub use profile::Profile;
pub use session::Life;
pub use site::{Site, SiteId};
pub use time::Timestamp;
pub use trace::TraceContext;
pub use version::{Edition, Generation, Incarnation, PLAUSIBLE_STREAMS, PLAUSIBLE_TERMS, StreamNumber, Term, Token};
