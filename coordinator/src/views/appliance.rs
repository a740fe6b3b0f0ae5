//! An appliance with everything known about it, and why it is where it is.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use common::appliance::Name;
use common::mode::ModeRule;
use common::status::{Phase, Status};
use common::{Site, Token, WorkerId};

use super::PinView;
use crate::record::Record;

/// An appliance with everything known about it. Replaced as a whole, never changed in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// What is stored.
    pub record: Arc<Record>,
    /// What its owner last reported, and when.
    pub status: Option<(Arc<Status>, SystemTime)>,
    /// Who holds it.
    pub assignment: AssignmentView,
}

impl CatalogEntry {
    /// Its phase; `Down` before the first report.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.status.as_ref().map_or(Phase::Down, |(status, _)| status.phase)
    }

    /// Whether one of its instances has all the connections it may have, as its owner reported last.
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.status.as_ref().is_some_and(|(status, _)| status.is_saturated())
    }

    /// Where it stands in lists.
    #[must_use]
    pub fn key(&self) -> ApplianceKey {
        (self.record.tenant.clone(), self.record.name.clone())
    }
}

/// Tenant and name.
pub type ApplianceKey = (Name, Name);

/// Who holds an appliance, in the words of the hand-off machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignmentView {
    /// State of the hand-off machine.
    pub state: &'static str,
    /// Who holds it, or is being offered it.
    pub worker: Option<WorkerId>,
    /// Token of the grant.
    pub token: Option<Token>,
    /// Why it is there, or is nowhere.
    pub reason: Cow<'static, str>,
    /// Where its instances are kept, once they are bound to it.
    pub site: Option<Site>,
    /// It is granted to no worker until somebody changes it.
    pub quarantined: bool,
    /// A debug mode covers it.
    pub hands_off: bool,
    /// Where an operator wants it.
    pub pin: Option<Arc<PinView>>,
}

impl Default for AssignmentView {
    fn default() -> Self {
        Self {
            state: "unowned",
            worker: None,
            token: None,
            reason: Cow::Borrowed("new"),
            site: None,
            quarantined: false,
            hands_off: false,
            pin: None,
        }
    }
}

/// Why an appliance is where it is, or is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Ring position of its placement key.
    pub position: u128,
    /// One sentence.
    pub summary: String,
    /// Every member, in ring order of preference.
    pub candidates: Vec<Candidate>,
    /// Debug modes that cover it, at most twenty.
    pub modes: Vec<ModeRule>,
}

/// A member, as far as one appliance is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The member.
    pub worker: WorkerId,
    /// It could take the appliance.
    pub eligible: bool,
    /// Why it could not, or why it was not chosen; empty for the owner.
    pub reason: String,
    /// Appliances of the same class it holds.
    pub load: u64,
    /// Least it should hold.
    pub floor: u64,
    /// Most it should hold.
    pub ceiling: u64,
}
