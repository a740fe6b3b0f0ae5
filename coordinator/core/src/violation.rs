//! Contradictions: what workers hold or say that the table does not allow, by kind.

/// What kind of contradiction it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ViolationKind {
    /// A worker owns what the table gives to no worker or to another one.
    HeldAgainstTable,
    /// A worker claims to own, or to have released, an appliance under a token that was given for another grant.
    ClaimedGrant,
    /// A worker owns an appliance that does not exist.
    UnknownAppliance,
    /// A worker removed an appliance whose deletion was not asked for.
    RemovedUndeleted,
    /// A worker knows a later generation than the store.
    GenerationAhead,
    /// The digest of what a worker owns is not that of the table.
    DigestDiffers,
    /// A worker does not own what it had taken, or owns it under another token; found after its digest differed.
    GrantLost,
    /// A worker says of itself what the limits of its name do not allow.
    BeyondLimits,
    /// A worker claims to have met a term that no cluster reaches.
    ImplausibleTerm,
    /// A worker has applied a version that was never sent.
    ImpossibleVersion,
    /// An appliance was created twice.
    CreatedTwice,
}

impl ViolationKind {
    /// All of them, in the order of the declaration.
    pub const ALL: [Self; 11] = [
        Self::HeldAgainstTable,
        Self::ClaimedGrant,
        Self::UnknownAppliance,
        Self::RemovedUndeleted,
        Self::GenerationAhead,
        Self::DigestDiffers,
        Self::GrantLost,
        Self::BeyondLimits,
        Self::ImplausibleTerm,
        Self::ImpossibleVersion,
        Self::CreatedTwice,
    ];

    /// The name in metrics and the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HeldAgainstTable => "held_against_table",
            Self::ClaimedGrant => "claimed_grant",
            Self::UnknownAppliance => "unknown_appliance",
            Self::RemovedUndeleted => "removed_undeleted",
            Self::GenerationAhead => "generation_ahead",
            Self::DigestDiffers => "digest_differs",
            Self::GrantLost => "grant_lost",
            Self::BeyondLimits => "beyond_limits",
            Self::ImplausibleTerm => "implausible_term",
            Self::ImpossibleVersion => "impossible_version",
            Self::CreatedTwice => "created_twice",
        }
    }
}

/// How many of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViolationCounts([u64; ViolationKind::ALL.len()]);

impl ViolationCounts {
    /// Counts one.
    pub const fn add(&mut self, kind: ViolationKind) {
        self.0[kind as usize] += 1;
    }

    /// These and others.
    #[must_use]
    pub fn and(mut self, others: &Self) -> Self {
        self.0.iter_mut().zip(others.0).for_each(|(count, more)| *count = count.saturating_add(more));
        self
    }

    /// How many of all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Every kind, and how many of it.
    pub fn iter(&self) -> impl Iterator<Item = (ViolationKind, u64)> + '_ {
        ViolationKind::ALL.into_iter().zip(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_count_and_a_name_of_its_own() {
        let mut counts = ViolationCounts::default();
        for (n, kind) in ViolationKind::ALL.into_iter().enumerate() {
            (0..=n).for_each(|_| counts.add(kind));
        }
        let counted: Vec<_> = counts.iter().map(|(_, n)| n).collect();
        assert_eq!(counted, (1..=ViolationKind::ALL.len() as u64).collect::<Vec<_>>());
        let names: std::collections::BTreeSet<_> = ViolationKind::ALL.into_iter().map(ViolationKind::name).collect();
        assert_eq!(names.len(), ViolationKind::ALL.len());
    }
}
