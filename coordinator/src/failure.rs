//! Why a coordinator's process ends, each with its documented exit code.

use std::net::SocketAddr;
use std::process::ExitCode;

use crate::{state_dir, store};

/// Why the process ends, with its documented exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// 3: the state directory or the store cannot be used, and waiting would not mend it.
    #[error("{0}")]
    State(String),
    /// 4: the address cannot be listened at.
    #[error("listen at {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// 6: a live coordinator has its name.
    #[error("{0}")]
    NameTaken(coordination::Error),
    /// 1: the coordination service refuses this coordinator for good.
    #[error("coordination: {0}")]
    Coordination(coordination::Error),
    /// 5: the store was lost to another term, or an outcome could not be found out. Starting again is safe.
    #[error("stepping down: {0}")]
    StoreLost(store::Error),
    /// 1: anything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Other(_) | Self::Coordination(_) => 1,
            Self::State(_) => 3,
            Self::Listen(..) => 4,
            Self::StoreLost(_) => 5,
            Self::NameTaken(_) => 6,
        })
    }
}

impl From<state_dir::Error> for Failure {
    fn from(error: state_dir::Error) -> Self {
        Self::State(error.to_string())
    }
}
