//! Texts of the planner's reasons, for people, metrics and the API. Kept together so that they read alike.

use std::fmt;

use crate::planner::{CandidateRefusal, CandidateStanding, Reason, Unplaced};

impl Reason {
    /// One clause: why an appliance came to its owner, or is on its way to the next.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unowned => "it had no owner",
            Self::New => "it is new",
            Self::OwnerGone => "its former owner is gone",
            Self::Returned => "back to its former owner",
            Self::Draining => "its owner drains",
            Self::Ineligible => "its owner lacks what it needs",
            Self::Pinned => "it is pinned to its new owner",
            Self::OverCeiling => "its owner held more than the band allows",
            Self::UnderFloor => "its new owner held less than the band allows",
            Self::RingOwner => "the ring names its new owner",
        }
    }
}

impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMembers => f.write_str("no worker is in the ring yet"),
            Self::NoDriver(driver) => write!(f, "no worker offers driver `{driver}`"),
            Self::NoKind(driver, kind) => write!(f, "no worker's driver `{driver}` runs kind `{kind}`"),
            Self::SiteGone(site) if site.state_dir().is_empty() => {
                write!(f, "its instances are bound to host {}, which has no worker", site.host())
            }
            Self::SiteGone(site) => {
                write!(f, "its instances are kept on host {} in {}", site.host(), site.state_dir())?;
                match site.id() {
                    Some(id) => write!(f, " (site {id}), which no worker uses"),
                    None => f.write_str(", which no worker uses"),
                }
            }
            Self::NotConnected => f.write_str("the workers that could take it have no session with the leader"),
            Self::AllDraining => f.write_str("the workers that could take it drain"),
            Self::Cordoned => f.write_str("the workers that could take it are cordoned, or drain"),
            Self::Pinned(worker) => write!(f, "it is pinned to {worker} alone, which cannot take it now"),
            Self::Declined => f.write_str("the workers that could take it declined it recently"),
            Self::NoModes => {
                f.write_str("hands are off it, and the versions of the workers that could take it cannot keep to that")
            }
            Self::Quarantined(deaths) => write!(
                f,
                "quarantined: {deaths} workers died while a step of it ran; update, rebuild or delete it to try again"
            ),
            Self::Frozen(worker) => write!(
                f,
                "its owner {worker} and most others vanished at once; nothing moves before they are back or placement is resumed"
            ),
            Self::WaitsFor(worker) => write!(f, "its owner {worker} is gone and may be back soon"),
            Self::RingOwnerCannot(worker) => write!(f, "the ring names {worker}, which cannot take it"),
        }
    }
}

impl fmt::Display for CandidateRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoDriver => "it does not offer the driver",
            Self::NoKind => "its driver does not run the kind",
            Self::OtherSite => "it runs on another host, or uses another state directory, than the instances",
            Self::NotConnected => "it has no session with the leader",
            Self::Draining => "it drains",
            Self::Cordoned => "it is cordoned",
            Self::PinnedElsewhere => "the appliance is pinned to another worker alone",
            Self::Declined => "it declined the appliance recently",
            Self::NotRingOwner => "the ring names another owner",
            Self::AtCeiling => "it holds as much as the band allows",
        })
    }
}

impl fmt::Display for CandidateStanding {
    /// Why a member has the appliance, gets it, or does not; empty for an owner that keeps it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Keeps => Ok(()),
            Self::GivesUp(reason) => write!(f, "it gives it up: {}", reason.text()),
            Self::Next(reason) => write!(f, "it gets it: {}", reason.text()),
            Self::NotNeeded => f.write_str("it could take it, and nothing asks for a move"),
            Self::Barred => f.write_str("it could take it, and no worker gets it now"),
            Self::PinFirst => f.write_str("the worker that it is pinned to gets it"),
            Self::FormerFirst => f.write_str("its former owner gets it"),
            Self::ShareFirst => f.write_str("a worker with less than its share gets it"),
            Self::SpreadFirst => f.write_str("a worker of a zone with fewer appliances of the tenant gets it"),
            Self::RingFirst => f.write_str("a worker that the ring names before it gets it"),
            Self::OthersFill => f.write_str("appliances that are placed with it come before it here"),
        }
    }
}
