//! What clients asked for and what they were told: what must therefore be true in the end.
//!
//! One client at a time changes an appliance, and updates and deletions name the generation they expect, so that a call
//! whose outcome nobody knows cannot come into force after a later one was acknowledged. Only a rebuild can: it raises
//! the generation and changes nothing else.

use std::collections::BTreeMap;

/// What a call asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// A new appliance.
    Create,
    /// Another specification.
    Update,
    /// New instances.
    Rebuild,
    /// Its end.
    Delete,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// It is in force, with this generation.
    Acknowledged(u64),
    /// It was refused for good and never comes into force.
    Refused,
    /// Nobody said.
    Unknown,
}

/// What distinguishes one specification of an appliance from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Value of a variable in its environment; each update has its own.
    pub value: u64,
    /// Instances.
    pub replicas: u32,
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedCall {
    /// What it asked for.
    pub change: CallKind,
    /// What the specification would be.
    pub content: Option<Content>,
    /// What became of it.
    pub outcome: CallOutcome,
}

/// One appliance: everything its client asked for, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApplianceHistory {
    /// Name, for messages.
    pub name: String,
    /// Driver.
    pub driver: String,
    /// Calls in the order in which they were begun.
    pub ops: Vec<RecordedCall>,
    /// Highest generation an answer showed.
    pub seen: u64,
}

/// Appliances by id.
pub type CallLedger = BTreeMap<String, ApplianceHistory>;

/// Whether an appliance is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    /// Its creation was acknowledged, no deletion was asked for.
    Must,
    /// A creation or deletion is unknown.
    May,
    /// Its deletion was acknowledged, or its creation refused.
    MustNot,
}

/// An appliance as the API or the store shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its generation.
    pub generation: u64,
    /// Whether it is marked for deletion.
    pub deleting: bool,
    /// Its specification; absent where what shows it does not tell.
    pub content: Option<Content>,
}

impl ApplianceHistory {
    fn acknowledged(&self) -> impl Iterator<Item = (&RecordedCall, u64)> {
        self.ops.iter().filter_map(|op| match op.outcome {
            CallOutcome::Acknowledged(generation) => Some((op, generation)),
            CallOutcome::Refused | CallOutcome::Unknown => None,
        })
    }

    fn unknown(&self) -> impl Iterator<Item = &RecordedCall> {
        self.ops.iter().filter(|op| op.outcome == CallOutcome::Unknown)
    }

    /// Whether it has to be there.
    #[must_use]
    pub fn existence(&self) -> Existence {
        let acknowledged = |change| self.acknowledged().any(|(op, _)| op.change == change);
        let unknown = |change| self.unknown().any(|op| op.change == change);
        if acknowledged(CallKind::Delete) {
            Existence::MustNot
        } else if unknown(CallKind::Delete) || unknown(CallKind::Create) {
            Existence::May
        } else if acknowledged(CallKind::Create) {
            Existence::Must
        } else {
            Existence::MustNot
        }
    }

    /// Newest generation that was acknowledged or shown.
    #[must_use]
    pub fn least_generation(&self) -> u64 {
        self.acknowledged().map(|(_, generation)| generation).max().unwrap_or_default().max(self.seen)
    }

    /// What contradicts what clients were told, if it is shown so, or not at all, after the last call.
    #[must_use]
    pub fn contradictions(&self, shown: Option<&Shown>) -> Vec<String> {
        let mut found = self.torn();
        match (self.existence(), shown) {
            (Existence::Must, None) => found.push("its creation was acknowledged, and it is not there".to_owned()),
            (Existence::Must, Some(Shown { deleting: true, .. })) => {
                found.push("it is being deleted, and nobody asked for that".to_owned());
            }
            (Existence::MustNot, Some(Shown { deleting: false, .. })) => {
                let why = if self.ops.iter().any(|op| op.change == CallKind::Delete) {
                    "its deletion was acknowledged"
                } else {
                    "its creation was refused"
                };
                found.push(format!("{why}, and it is there"));
            }
            _ => {}
        }
        let Some(shown) = shown.filter(|shown| !shown.deleting) else { return found };
        let least = self.least_generation();
        if shown.generation < least {
            found.push(format!("it is at generation {}, and clients were told {least}", shown.generation));
        }
        let newest = self.acknowledged().map(|(_, generation)| generation).max().unwrap_or_default();
        let most = newest + self.unknown().count() as u64;
        if shown.generation > most {
            found.push(format!("it is at generation {}, and at most {most} follows from all calls", shown.generation));
        }
        if let Some(content) = shown.content {
            let allowed = self.allowed();
            if !allowed.contains(&content) {
                found.push(format!("it is {content:?}, and should be one of {allowed:?}"));
            }
        }
        found
    }

    /// What its specification may be: the newest acknowledged one, and those of later calls without an answer.
    fn allowed(&self) -> Vec<Content> {
        let known =
            self.ops.iter().rposition(|op| op.content.is_some() && matches!(op.outcome, CallOutcome::Acknowledged(_)));
        let later = self.ops.iter().skip(known.unwrap_or_default()).filter(|op| op.outcome != CallOutcome::Refused);
        later.filter_map(|op| op.content).collect()
    }

    /// Acknowledged changes that took each other's place: each raises the generation by one, and so may those without
    /// an answer.
    fn torn(&self) -> Vec<String> {
        let mut found = Vec::new();
        let (mut last, mut unknown) = (0, 0);
        for op in &self.ops {
            match op.outcome {
                CallOutcome::Unknown => unknown += 1,
                CallOutcome::Refused => {}
                // A repeat of a deletion that had come to its end by then: what is gone has no generation to be shown.
                CallOutcome::Acknowledged(0) if op.change == CallKind::Delete => {}
                CallOutcome::Acknowledged(generation) => {
                    if generation <= last || generation > last + 1 + unknown {
                        found.push(format!(
                            "{:?} was acknowledged with generation {generation} after {last} and {unknown} calls without \
                             an answer",
                            op.change
                        ));
                    }
                    last = generation;
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(change: CallKind, value: Option<u64>, outcome: CallOutcome) -> RecordedCall {
        RecordedCall { change, content: value.map(content), outcome }
    }

    const fn content(value: u64) -> Content {
        Content { value, replicas: 1 }
    }

    fn record(ops: &[RecordedCall]) -> ApplianceHistory {
        ApplianceHistory { ops: ops.to_vec(), ..ApplianceHistory::default() }
    }

    fn shown(generation: u64, value: u64) -> Shown {
        Shown { generation, deleting: false, content: Some(content(value)) }
    }

    use CallKind::{Create, Delete, Rebuild, Update};
    use CallOutcome::{Acknowledged, Refused, Unknown};

    fn finds(record: &ApplianceHistory, shown: Option<&Shown>, text: &str) {
        let found = record.contradictions(shown);
        assert!(found.iter().any(|one| one.contains(text)), "{text:?} is not in {found:?}");
    }

    #[test]
    fn an_acknowledged_update_that_is_lost_is_found() {
        let record = record(&[op(Create, Some(1), Acknowledged(1)), op(Update, Some(2), Acknowledged(2))]);
        assert_eq!(record.contradictions(Some(&shown(2, 2))), Vec::<String>::new());
        finds(&record, Some(&shown(1, 1)), "told 2");
        finds(&record, Some(&shown(2, 1)), "should be one of");
        finds(&record, None, "is not there");
        let deleting = Shown { deleting: true, ..shown(3, 2) };
        finds(&record, Some(&deleting), "nobody asked");
    }

    #[test]
    fn a_call_without_an_answer_may_have_come_into_force_once() {
        let unsure = op(Update, Some(2), Unknown);
        let record = record(&[op(Create, Some(1), Acknowledged(1)), unsure]);
        for fine in [shown(1, 1), shown(2, 2)] {
            assert_eq!(record.contradictions(Some(&fine)), Vec::<String>::new());
        }
        finds(&record, Some(&shown(3, 2)), "at most 2");
        // What was shown once has to stay.
        finds(&ApplianceHistory { seen: 2, ..record }, Some(&shown(1, 1)), "told 2");
    }

    #[test]
    fn an_update_without_an_answer_cannot_undo_a_later_one() {
        let record = record(&[
            op(Create, Some(1), Acknowledged(1)),
            op(Update, Some(2), Unknown),
            op(Update, Some(3), Acknowledged(2)),
            op(Rebuild, None, Acknowledged(3)),
        ]);
        assert_eq!(record.contradictions(Some(&shown(3, 3))), Vec::<String>::new());
        finds(&record, Some(&shown(4, 2)), "should be one of");
    }

    #[test]
    fn an_acknowledged_deletion_that_is_undone_is_found() {
        let gone = record(&[op(Create, Some(1), Acknowledged(1)), op(Delete, None, Acknowledged(2))]);
        assert_eq!(gone.contradictions(None), Vec::<String>::new());
        finds(&gone, Some(&shown(2, 1)), "deletion was acknowledged");
        // Repeated, and answered after it had come to its end.
        let repeated = record(&[op(Create, Some(1), Acknowledged(1)), op(Delete, None, Acknowledged(0))]);
        assert_eq!(repeated.contradictions(None), Vec::<String>::new());
        finds(&repeated, Some(&shown(2, 1)), "deletion was acknowledged");
        let never = record(&[op(Create, Some(1), Refused)]);
        finds(&never, Some(&shown(1, 1)), "creation was refused");
        assert_eq!(record(&[op(Create, Some(1), Unknown)]).existence(), Existence::May);
    }

    #[test]
    fn two_changes_with_one_generation_are_found() {
        let record = record(&[
            op(Create, Some(1), Acknowledged(1)),
            op(Update, Some(2), Acknowledged(2)),
            op(Update, Some(3), Acknowledged(2)),
        ]);
        finds(&record, Some(&shown(2, 3)), "after 2 and 0 calls");
    }
}
