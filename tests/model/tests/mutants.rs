//! Every rule that the model can see, broken: a promise has to fall. This shows that the checks can fail.
//!
//! `RUG_MODEL_MUTANT=Name` tries one of them; with `RUG_MODEL_PATHS=1` the ways to their mistakes are printed.

use common::mutant::Mutant;
use model::{Fault, FencingMode, Setup, find};

/// States that may be made before a mutant counts as not found.
const LIMIT: usize = 1_000_000;

/// What of each mutant is enough to see it, and why the others cannot be seen here.
fn setup(mutant: Mutant) -> Result<Setup, &'static str> {
    let base = Setup { mutant: Some(mutant), calls: false, sample: 8, ..Setup::default() };
    let one = |faults| Setup { faults, budget: 1, ..base.clone() };
    let two = |faults| Setup { faults, budget: 2, ..base.clone() };
    let called = |setup| Setup { calls: true, ..setup };
    let ordered = |setup| Setup { orders: 1, ..setup };
    let held = |setup| Setup { calls: true, fencing: FencingMode::FenceDelay, ..setup };
    Ok(match mutant {
        Mutant::NoTermCheck => two(&[Fault::Deposed, Fault::NodeDeleted]),
        Mutant::GrantNotPersisted => one(&[Fault::Crash]),
        Mutant::GoneWithStream => one(&[Fault::Break]),
        Mutant::NoLease => one(&[Fault::LeaseEnd]),
        Mutant::EarlyRelease => called(one(&[Fault::NodeDeleted])),
        Mutant::BackendIgnoresTokens => called(one(&[Fault::Crash])),
        Mutant::LateGrant => Setup { workers: 3, ..two(&[Fault::Crash, Fault::Break]) },
        Mutant::GatePerWorker => called(one(&[Fault::NodeDeleted])),
        Mutant::TokenOfferedTwice => two(&[Fault::Crash, Fault::Break]),
        Mutant::FenceDelayLostOnOffer => held(two(&[Fault::Crash, Fault::Break])),
        Mutant::FenceDelayLostOnRelease => held(two(&[Fault::NodeDeleted, Fault::Late])),
        Mutant::GoneByMemberNode => one(&[Fault::NodeDeleted]),
        Mutant::UnchainedBatches => two(&[Fault::Crash, Fault::Unknown]),
        Mutant::SeenNotReset => two(&[Fault::LeaderCut, Fault::LeaseEnd]),
        Mutant::NameWithoutSession => Setup { restart: true, ..two(&[Fault::Crash, Fault::LeaderCut]) },
        Mutant::OfferEndedByTime => Setup { workers: 3, ..two(&[Fault::Crash, Fault::Break]) },
        Mutant::ProofNotAsked | Mutant::ClaimOfAnybody | Mutant::ClaimsBelieved => one(&[Fault::Stranger]),
        // Deaths are held back for less than a step.
        Mutant::BrokenStreamAsWitness => Setup { steps: 2, ..one(&[Fault::Break]) },
        Mutant::ModeAcknowledgedEarly | Mutant::GateIgnoresMode => ordered(one(&[])),
        Mutant::ModeAnsweredUnreached => ordered(one(&[Fault::Break])),
        Mutant::ModeLostOnGrant => ordered(one(&[Fault::Crash])),
        Mutant::ModeForgotten => ordered(one(&[Fault::Deposed])),
        Mutant::ModeEndedByWorker => Setup { steps: 2, ..ordered(one(&[])) },
        Mutant::RefusedHelloBeats => return Err("heartbeats are not on the stream here"),
        Mutant::OldTokens => return Err("a message would have to arrive twice on one stream"),
        Mutant::StandingClock => return Err("nobody is suspended here, and there is one clock"),
        Mutant::BudgetIgnoresDown => return Err("there are no budgets here"),
        Mutant::SpreadCountsMovedTwice => return Err("there are no zones here"),
        Mutant::WitnessByPlace => return Err("witnesses name lives here, not processes"),
        // Cached members, members from events, and what else is about reading nodes.
        _ => return Err("the rule is kept by common::roster, which only the simulation runs"),
    })
}

#[test]
fn every_mutant_that_can_be_seen_is_found() {
    let mut missed = Vec::new();
    let only = std::env::var("RUG_MODEL_MUTANT").ok();
    for mutant in Mutant::ALL {
        if only.as_ref().is_some_and(|only| format!("{mutant:?}") != *only) {
            continue;
        }
        match setup(mutant) {
            Err(why) => println!("{mutant:?}: not to be seen: {why}"),
            Ok(setup) => match find(setup, LIMIT) {
                Some(found) => {
                    if std::env::var_os("RUG_MODEL_PATHS").is_some() {
                        println!("{}", found.text);
                    }
                    println!(
                        "{mutant:?}: {} falls after {} actions ({} states)",
                        found.promise,
                        found.path.len(),
                        found.unique
                    );
                }
                None => missed.push(mutant),
            },
        }
    }
    assert_eq!(missed, [], "not found in {LIMIT} states");
}
