//! The table of the module header, pair by pair, and the answers of strangers.

use common::{Incarnation, Term};

use super::*;

fn granted(worker: &str, sequence: u64) -> Granted {
    Granted {
        worker: WorkerId::new(worker).expect("valid"),
        incarnation: Incarnation::new(1),
        token: Token::new(Term::new(1), sequence),
    }
}

fn states() -> Vec<HandoffState> {
    let g = granted("w1", 1);
    vec![
        HandoffState::Unowned,
        HandoffState::Granting(g.clone()),
        HandoffState::Offered(g.clone()),
        HandoffState::Owned(g.clone()),
        HandoffState::Releasing(g.clone()),
        HandoffState::Freeing(g.clone()),
        HandoffState::Passing { from: granted("w9", 9), to: g.clone() },
        HandoffState::Orphaned(g.clone()),
        HandoffState::Removing(g),
    ]
}

/// Name of the next state and of the effects, or "." when refused.
fn outcome(state: &HandoffState, event: HandoffEvent) -> String {
    match step(state, event) {
        Err(HandoffRefused) => ".".to_owned(),
        Ok((next, effects)) => {
            let effects: Vec<_> = effects
                .iter()
                .map(|e| format!("{e:?}").split([' ', '(']).next().unwrap_or_default().to_owned())
                .collect();
            format!("{} {}", next.name(), effects.join("+")).trim_end().to_owned()
        }
    }
}

#[test]
fn every_pair_does_what_the_table_says() {
    let own = granted("w1", 1);
    let events = [
        ("assign", HandoffEvent::Assign(granted("w2", 2))),
        ("take", HandoffEvent::Take),
        ("durable", HandoffEvent::Durable(own.token)),
        ("undone", HandoffEvent::Undone(own.token)),
        ("ack", HandoffEvent::Ack(own.clone())),
        ("declined", HandoffEvent::Declined(own.clone())),
        ("released", HandoffEvent::Released(own.clone(), Carryover::default())),
        ("deleted", HandoffEvent::Deleted(own.clone())),
        ("gone", HandoffEvent::Gone(own.life())),
        ("holds", HandoffEvent::Owns(own.clone())),
        ("nothing", HandoffEvent::OwnsNothing(own.life())),
        ("unbound", HandoffEvent::Unbound),
    ];
    let expected = [
        // Unowned, Granting, Offered, Owned, Releasing, Freeing, Passing, Orphaned, Removing
        ["granting PersistGrant", ".", ".", ".", ".", "granting PersistPass", ".", "granting PersistGrant", "."],
        [".", ".", "releasing AskRelease", "releasing AskRelease", ".", ".", ".", ".", "."],
        [
            ".",
            "offered Offer",
            ".",
            ".",
            ".",
            "unowned Confirm",
            "offered Confirm+Offer",
            ".",
            "unowned Confirm+Removed",
        ],
        [".", "unowned", ".", ".", ".", "freeing Retry", "freeing Retry", ".", "removing Retry"],
        [".", ".", "owned Arrived", ".", ".", ".", ".", ".", "."],
        [".", ".", "unowned LeaveOut", ".", "unowned LeaveOut", ".", ".", ".", "."],
        [
            "unowned Confirm",
            "granting Confirm",
            "freeing PersistFree",
            "freeing PersistFree",
            "freeing PersistFree",
            ".",
            "granting Confirm",
            "orphaned Confirm",
            "removing Confirm",
        ],
        [
            "unowned Confirm",
            "granting Confirm",
            "removing PersistRemoval",
            "removing PersistRemoval",
            "removing PersistRemoval",
            "freeing Confirm",
            "granting Confirm",
            "orphaned Confirm",
            ".",
        ],
        [
            ".",
            "orphaned StartFenceDelay",
            "orphaned StartFenceDelay",
            "orphaned StartFenceDelay",
            "orphaned StartFenceDelay",
            ".",
            "freeing Retry",
            ".",
            ".",
        ],
        [
            "unowned Conflict",
            "granting Conflict",
            "owned Arrived",
            "owned Arrived",
            "releasing AskRelease",
            "freeing Conflict",
            "granting Conflict",
            "orphaned Conflict",
            "removing Conflict",
        ],
        [".", ".", "unowned", "unowned", "unowned", ".", ".", ".", "."],
        ["unowned", ".", ".", ".", ".", ".", ".", "unowned", "."],
    ];
    for ((name, event), row) in events.into_iter().zip(expected) {
        for (state, want) in states().iter().zip(row) {
            assert_eq!(outcome(state, event.clone()), want, "{} on {name}", state.name());
        }
    }
}

#[test]
fn answers_under_another_token_or_incarnation_do_not_count() {
    let strangers =
        [granted("w2", 1), granted("w1", 2), Granted { incarnation: Incarnation::new(2), ..granted("w1", 1) }];
    for state in states() {
        for who in &strangers {
            for event in [HandoffEvent::Ack(who.clone()), HandoffEvent::Declined(who.clone())] {
                assert_eq!(step(&state, event), Err(HandoffRefused));
            }
            for event in [HandoffEvent::Released(who.clone(), Carryover::default()), HandoffEvent::Deleted(who.clone())]
            {
                let (next, effects) = step(&state, event).expect("confirmed again");
                assert_eq!((next, effects), (state.clone(), vec![HandoffEffect::Confirm(who.clone())]));
            }
        }
    }
}

#[test]
fn the_lease_end_of_another_life_leaves_the_owner_alone() {
    for state in states() {
        assert_eq!(
            step(&state, HandoffEvent::Gone(Life::new(WorkerId::new("w1").expect("valid"), Incarnation::new(9)))),
            Err(HandoffRefused)
        );
    }
}

#[test]
fn a_worker_that_holds_another_token_is_asked_to_end_it_before_anything_else() {
    let old = granted("w1", 7);
    for state in [
        HandoffState::Offered(granted("w1", 9)),
        HandoffState::Owned(granted("w1", 9)),
        HandoffState::Releasing(granted("w1", 9)),
    ] {
        let (next, effects) = step(&state, HandoffEvent::Owns(old.clone())).expect("counts");
        assert_eq!((next, effects), (HandoffState::Releasing(old.clone()), vec![HandoffEffect::AskRelease]));
    }
}

#[test]
fn a_late_durable_of_an_older_grant_does_not_offer_the_newer_one() {
    assert_eq!(
        step(&HandoffState::Granting(granted("w1", 2)), HandoffEvent::Durable(granted("w1", 1).token)),
        Err(HandoffRefused)
    );
}

#[test]
fn the_former_owner_is_confirmed_with_whichever_write_has_its_release() {
    let (from, to) = (granted("w1", 1), granted("w2", 2));
    let passing = HandoffState::Passing { from: from.clone(), to: to.clone() };
    let said_again = HandoffEvent::Released(from.clone(), Carryover::default());
    assert_eq!(step(&passing, said_again), Err(HandoffRefused), "the confirmation follows");
    assert_eq!(step(&passing, HandoffEvent::Gone(from.life())), Err(HandoffRefused), "it holds nothing");
    let (next, effects) = step(&passing, HandoffEvent::Durable(from.token)).expect("a write of its own came first");
    assert_eq!(
        (next.clone(), effects),
        (HandoffState::Granting(to.clone()), vec![HandoffEffect::Confirm(from.clone())])
    );
    assert_eq!(
        step(&next, HandoffEvent::Durable(to.token)),
        Ok((HandoffState::Offered(to.clone()), vec![HandoffEffect::Offer]))
    );
    // That write failed: the one under way has it as well.
    assert_eq!(step(&passing, HandoffEvent::Undone(from.token)), Err(HandoffRefused));
    // Both failed: what was handed in is written again before anything else.
    let undone = step(&passing, HandoffEvent::Undone(to.token));
    assert_eq!(undone, Ok((HandoffState::Freeing(from), vec![HandoffEffect::Retry])));
}
