//! How well a worker is, judged from its lease, its session and the moment it is asked. For people and metrics; ownership
//! never depends on it.

use std::fmt;
use std::time::Duration;

/// Judgement of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// Its session is settled and its lease fresh.
    Healthy,
    /// It may be well, but something is missing.
    Suspect(Suspicion),
    /// Its lease is over.
    Dead,
    /// It said that it leaves, and nothing is missing.
    Left,
}

/// What is missing of a suspect worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suspicion {
    /// It has no session stream.
    NoSession,
    /// Its session has not said what it holds.
    Unsettled,
    /// More than half of its lease passed without a heartbeat.
    LateHeartbeat,
}

impl Health {
    /// The name in tables and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Suspect(_) => "suspect",
            Self::Dead => "dead",
            Self::Left => "left",
        }
    }

    /// Why it is not healthy; empty when it is.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Healthy => "",
            Self::Suspect(s) => s.text(),
            Self::Dead => "its lease is over",
            Self::Left => "it left in good order",
        }
    }
}

impl Suspicion {
    /// One clause for people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoSession => "it has no session with the leader",
            Self::Unsettled => "it has not said yet what it holds",
            Self::LateHeartbeat => "its heartbeat is late",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// State of a worker's session stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// None is open.
    None,
    /// Open, but `Hello` is not answered yet.
    Unsettled,
    /// Open and welcomed.
    Settled,
}

/// Judges a worker. `last_beat` is how long ago its last heartbeat was seen and the length of its lease; `None` when its
/// lease is over.
#[must_use]
pub fn judge(last_beat: Option<(Duration, Duration)>, session: SessionState) -> Health {
    match (last_beat, session) {
        (None, _) => Health::Dead,
        (Some(_), SessionState::None) => Health::Suspect(Suspicion::NoSession),
        (Some(_), SessionState::Unsettled) => Health::Suspect(Suspicion::Unsettled),
        // Heartbeats come every quarter of the lease: two in a row are missing.
        (Some((age, lease)), SessionState::Settled) if age > lease / 2 => Health::Suspect(Suspicion::LateHeartbeat),
        (Some(_), SessionState::Settled) => Health::Healthy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judgement_follows_lease_then_session_then_heartbeat() {
        let fresh = Some((Duration::from_millis(100), Duration::from_secs(2)));
        let late = Some((Duration::from_millis(1001), Duration::from_secs(2)));
        assert_eq!(judge(None, SessionState::Settled), Health::Dead);
        assert_eq!(judge(fresh, SessionState::None), Health::Suspect(Suspicion::NoSession));
        assert_eq!(judge(fresh, SessionState::Unsettled), Health::Suspect(Suspicion::Unsettled));
        assert_eq!(judge(late, SessionState::Settled), Health::Suspect(Suspicion::LateHeartbeat));
        assert_eq!(judge(fresh, SessionState::Settled), Health::Healthy);
    }
}
