//! How zones are chosen for the appliances of a tenant, where these are spread ([`spread`](super::super::spread)): what needs an owner goes
//! to zones below their quota, and what the band moves goes first where that makes tenants more even. All of it is without effect where
//! the takers of a class are of one zone.

use super::super::classes::Band;
use super::super::spread::{OpenZones, SpreadEffect};
use super::{BandPass, BandStage, Homeless};

/// Which zones a step of placing is for.
#[derive(Clone, Copy)]
pub(super) enum ZoneStep {
    /// Zones do not count.
    Whichever,
    /// Zones with less of the tenant than they are to have.
    BelowQuota,
    /// Of those that are open the ones with the fewest of the tenant.
    Fewest,
}

/// The zones that one appliance may go to.
#[derive(Clone, Copy)]
pub(super) enum ZoneChoice {
    Any,
    BelowQuota { row: usize },
    With { row: usize, count: u32 },
}

impl BandPass<'_, '_> {
    /// How those that need an owner are placed. Zones that are below their quota go before the soft bound, which only looks ahead; the floor
    /// goes before them, or more would have to move.
    pub(super) fn steps(&mut self, homeless: &[Homeless]) -> &'static [(BandStage, ZoneStep)] {
        use BandStage::{Ceiling, Floor, Soft};
        use ZoneStep::{BelowQuota, Fewest, Whichever};
        let (Some(counts), Some(zones)) = (self.counts.as_deref_mut(), &self.zones) else {
            return &[(Floor, Whichever), (Soft, Whichever), (Ceiling, Whichever)];
        };
        counts.share_out(homeless.iter().map(|h| h.slot), zones);
        &[
            (Floor, BelowQuota),
            (Floor, Fewest),
            (Soft, BelowQuota),
            (Ceiling, BelowQuota),
            (Soft, Fewest),
            (Ceiling, Fewest),
        ]
    }

    /// The zones that an appliance may go to in a step, of those that are open; `None` when it is another step's.
    pub(super) fn zones_for(&mut self, step: ZoneStep, slot: u32, open: Option<&OpenZones>) -> Option<ZoneChoice> {
        let (Some(counts), Some(zones)) = (self.counts.as_deref_mut(), &self.zones) else {
            return Some(ZoneChoice::Any);
        };
        let Some(row) = counts.row(slot) else { return Some(ZoneChoice::Any) };
        match step {
            ZoneStep::Whichever => Some(ZoneChoice::Any),
            ZoneStep::BelowQuota => {
                let suits = open.is_none_or(|open| open.iter(zones).any(|zone| counts.is_below_quota(row, zone)));
                suits.then_some(ZoneChoice::BelowQuota { row })
            }
            ZoneStep::Fewest => {
                let fewest = open?.iter(zones).map(|zone| counts.count(row, zone)).min()?;
                Some(ZoneChoice::With { row, count: fewest })
            }
        }
    }

    pub(super) fn is_in(&self, choice: ZoneChoice, local: u32) -> bool {
        let (Some(counts), Some(zones)) = (self.counts.as_deref(), &self.zones) else { return true };
        match choice {
            ZoneChoice::Any => true,
            ZoneChoice::BelowQuota { row } => counts.is_below_quota(row, zones.of(local)),
            ZoneChoice::With { row, count } => counts.count(row, zones.of(local)) == count,
        }
    }

    /// The zones with members that are open to something; `None` where zones do not count.
    pub(super) fn open_zones(&self, is_open: impl Fn(&Band, u32) -> bool) -> Option<OpenZones> {
        let (counts, zones) = (self.counts.as_deref()?, self.zones.as_ref()?);
        Some(OpenZones::new(counts, zones, |local| is_open(&self.band, local)))
    }

    /// A member is open no longer.
    pub(super) fn close(&self, open: Option<&mut OpenZones>, local: u32) {
        if let (Some(open), Some(zones)) = (open, &self.zones) {
            open.close(zones.of(local));
        }
    }

    /// The effects that moves between members may have, step by step.
    pub(super) fn effects(&self) -> &'static [SpreadEffect] {
        if self.zones.is_some() { &SpreadEffect::ALL } else { &[SpreadEffect::Worsens] }
    }

    /// Where the tenant of an appliance is counted, if zones count.
    pub(super) fn row(&mut self, slot: u32) -> Option<usize> {
        self.counts.as_deref_mut().filter(|_| self.zones.is_some())?.row(slot)
    }

    /// What a move between members does to the spread of the tenant of this row.
    pub(super) fn effect(&self, row: Option<usize>, from: u32, to: u32) -> SpreadEffect {
        match (row, self.counts.as_deref(), &self.zones) {
            (Some(row), Some(counts), Some(zones)) => counts.effect(row, zones.of(from), zones.of(to)),
            _ => SpreadEffect::Keeps,
        }
    }

    /// Whether some zone that is open is one to which a move has no worse effect than this.
    pub(super) fn can_have(
        &self,
        worst: SpreadEffect,
        row: Option<usize>,
        from: u32,
        open: Option<&OpenZones>,
    ) -> bool {
        match (row, self.counts.as_deref(), &self.zones, open) {
            (Some(row), Some(counts), Some(zones), Some(open)) if worst < SpreadEffect::Worsens => {
                open.iter(zones).any(|zone| counts.effect(row, zones.of(from), zone) <= worst)
            }
            _ => SpreadEffect::Keeps <= worst,
        }
    }
}
