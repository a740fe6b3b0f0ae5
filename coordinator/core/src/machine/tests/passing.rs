//! A hand-off in one commit: the carryover of the former owner and the grant of the next one.

use super::super::*;
use super::{World, two};
use crate::grants::GrantOp;
use common::ApplianceId;

/// Appliances that a commit frees, those it grants, in order.
fn freed_and_granted(commit: &Commit) -> (Vec<ApplianceId>, Vec<ApplianceId>) {
    let (mut freed, mut granted) = (vec![], vec![]);
    for op in &commit.grants {
        match op {
            GrantOp::Free { appliance, .. } => freed.push(*appliance),
            GrantOp::Grant { appliance, .. } => granted.push(*appliance),
            GrantOp::Unbind { .. } | GrantOp::Remove { .. } => panic!("nothing is unbound or removed"),
        }
    }
    (freed, granted)
}

#[test]
fn a_hand_off_is_one_commit_and_one_that_fails_is_made_anew_as_a_whole() {
    let mut w = two();
    w.connect("w3");
    w.pass(Duration::from_millis(400));
    w.hold_commits = true;
    w.pass(Duration::from_millis(200));
    // Ten over three: the floor is 3.
    let made = std::mem::take(&mut w.commits);
    let [(batch, commit)] = made.as_slice() else { panic!("one commit, not {made:?}") };
    let (freed, granted) = freed_and_granted(commit);
    assert_eq!(freed.len(), 3);
    assert_eq!(freed, granted, "each is granted anew in the write that frees it");
    assert_eq!(w.loads()[2], 0, "nobody was told");
    let confirmed = |w: &World| {
        w.sent
            .iter()
            .filter(|(_, down)| matches!(down, ToWorker::Confirm(confirm) if !confirm.released.is_empty()))
            .count()
    };
    let before = confirmed(&w);

    w.step(Event::Undone(*batch));
    assert_eq!(confirmed(&w), before, "the release is not in the store");
    w.hold_commits = false;
    w.pass(WRITE_RETRY * 2);
    assert_eq!(w.loads().iter().sum::<usize>(), 10);
    assert_eq!(w.loads()[2], 3);
    assert!(confirmed(&w) > before, "the former owners may forget it");
    let again: Vec<_> = w.stored.iter().map(freed_and_granted).filter(|(freed, _)| !freed.is_empty()).collect();
    assert!(again.iter().all(|(freed, _)| freed.iter().all(|id| granted.contains(id))), "{again:?}");
    assert_eq!(w.violations, Vec::<String>::new());
}
