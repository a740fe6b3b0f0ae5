//! Every state of every setup that fits into a run of the tests; with `RUG_MODEL_FULL=1` also of those that do not.
//! `RUG_MODEL_ONLY=text` checks the setups whose name holds this text, whatever their size.

use model::{Fault, FencingMode, Setup, alike, exhaust};

/// Faults while one coordinator leads, other than of calls.
const PLAIN: &[Fault] =
    &[Fault::Crash, Fault::LeaseEnd, Fault::NodeDeleted, Fault::Break, Fault::Cut, Fault::LeaderCut, Fault::Unknown];

/// The same where a second coordinator comes to lead.
const DEPOSING: &[Fault] =
    &[Fault::Crash, Fault::LeaseEnd, Fault::NodeDeleted, Fault::Break, Fault::Cut, Fault::Unknown, Fault::Deposed];

/// With somebody who speaks for others.
const STRANGE: &[Fault] =
    &[Fault::Crash, Fault::LeaseEnd, Fault::Break, Fault::LeaderCut, Fault::Deposed, Fault::Stranger];

/// With witnesses of who was killed.
const WITNESSED: &[Fault] =
    &[Fault::Crash, Fault::Break, Fault::LeaderCut, Fault::Unknown, Fault::Deposed, Fault::Witness];

/// With calls that take effect late.
const LATE: &[Fault] =
    &[Fault::Crash, Fault::LeaseEnd, Fault::NodeDeleted, Fault::Break, Fault::Cut, Fault::Unknown, Fault::Late];

/// Setups, and whether they take more than a run of the tests has.
fn setups() -> Vec<(Setup, bool)> {
    let gates = Setup { calls: false, faults: PLAIN, ..Setup::default() };
    let plain = Setup { faults: PLAIN, ..Setup::default() };
    let holds = Setup { fencing: FencingMode::FenceDelay, faults: LATE, ..Setup::default() };
    vec![
        (Setup { name: "2 workers, 1 appliance, tokens, no fault", budget: 0, ..Setup::default() }, false),
        (Setup { name: "2 workers, 1 appliance, tokens and calls, 1 fault", ..Setup::default() }, false),
        (Setup { name: "2 workers, 1 appliance, holds, 1 fault", ..holds.clone() }, false),
        (Setup { name: "2 workers, 1 appliance, half steps, 1 fault", steps: 2, ..gates.clone() }, false),
        (Setup { name: "2 workers that restart, 1 appliance, 1 fault", restart: true, ..gates.clone() }, false),
        (Setup { name: "3 workers, 1 appliance, 1 fault", workers: 3, ..gates.clone() }, false),
        (Setup { name: "2 workers, 2 appliances, 1 fault", appliances: 2, ..gates.clone() }, false),
        (
            Setup {
                name: "2 workers that restart, 2 appliances, 1 fault",
                appliances: 2,
                restart: true,
                ..gates.clone()
            },
            false,
        ),
        (Setup { name: "2 coordinators, 2 workers, 1 appliance, 1 fault", faults: DEPOSING, ..gates.clone() }, false),
        (
            Setup {
                name: "2 coordinators, 2 workers, 2 appliances, 1 fault",
                appliances: 2,
                faults: DEPOSING,
                ..gates.clone()
            },
            false,
        ),
        (
            Setup {
                name: "2 workers that restart, 1 appliance, witnesses, half steps, 1 fault",
                steps: 2,
                restart: true,
                faults: WITNESSED,
                ..gates.clone()
            },
            false,
        ),
        (
            Setup {
                name: "2 workers, 1 appliance, holds, witnesses, 1 fault",
                faults: &[Fault::Crash, Fault::Witness, Fault::Late],
                ..holds.clone()
            },
            false,
        ),
        (
            Setup {
                name: "2 workers that restart, 1 appliance, witnesses, 2 faults",
                budget: 2,
                delay: 1,
                restart: true,
                faults: WITNESSED,
                ..gates.clone()
            },
            true,
        ),
        (Setup { name: "2 workers, 1 appliance, a stranger, 1 fault", faults: STRANGE, ..gates.clone() }, false),
        (
            Setup {
                name: "2 workers, 1 appliance, a stranger, 2 faults",
                budget: 2,
                delay: 1,
                faults: STRANGE,
                ..gates.clone()
            },
            true,
        ),
        (
            Setup { name: "2 workers, 1 appliance, a mode set, calls, 1 fault", orders: 1, delay: 1, ..plain.clone() },
            false,
        ),
        (
            Setup {
                name: "2 workers, 1 appliance, a mode set and cleared, 1 fault",
                orders: 2,
                delay: 1,
                ..gates.clone()
            },
            false,
        ),
        (
            Setup {
                name: "2 coordinators, 2 workers, 1 appliance, a mode set and cleared, 1 fault",
                orders: 2,
                delay: 1,
                faults: DEPOSING,
                ..gates.clone()
            },
            false,
        ),
        (
            Setup {
                name: "2 coordinators, 2 workers, 1 appliance, a mode set, cleared and set, 1 fault",
                orders: 3,
                delay: 1,
                faults: DEPOSING,
                ..gates.clone()
            },
            true,
        ),
        (Setup { name: "2 workers, 1 appliance, tokens, 2 faults", budget: 2, delay: 1, ..gates.clone() }, false),
        (Setup { name: "2 workers, 1 appliance, holds, 2 faults", budget: 2, ..holds.clone() }, true),
        (
            Setup {
                name: "2 coordinators, 2 workers, 1 appliance, 2 faults",
                budget: 2,
                delay: 1,
                faults: DEPOSING,
                ..gates.clone()
            },
            true,
        ),
        (Setup { name: "2 workers, 1 appliance, 3 faults", budget: 3, delay: 1, ..gates.clone() }, true),
        (Setup { name: "2 workers, 1 appliance, 3 faults, in time", budget: 3, delay: 0, ..gates.clone() }, true),
        (
            Setup {
                name: "2 coordinators, 2 workers, 1 appliance, 3 faults, in time",
                budget: 3,
                delay: 0,
                faults: DEPOSING,
                ..gates.clone()
            },
            true,
        ),
        (Setup { name: "3 workers, 1 appliance, 2 faults", workers: 3, budget: 2, delay: 1, ..gates.clone() }, true),
        (Setup { name: "2 workers, 2 appliances, 2 faults", appliances: 2, budget: 2, delay: 1, ..gates }, true),
    ]
}

#[test]
fn ownership_holds_in_every_state() {
    let full = std::env::var_os("RUG_MODEL_FULL").is_some();
    let only = std::env::var("RUG_MODEL_ONLY").ok();
    let mut total = 0;
    for (setup, large) in setups() {
        let wanted = match &only {
            Some(text) => setup.name.contains(text.as_str()),
            None => full || !large,
        };
        if !wanted {
            continue;
        }
        let name = setup.name;
        match exhaust(setup) {
            Ok(s) => {
                total += s.unique;
                let rate = s.generated as f64 / s.took.as_secs_f64();
                println!(
                    "{name}: {} states, {} made, depth {}, {:.1?}, {rate:.0} made per second",
                    s.unique, s.generated, s.depth, s.took
                );
            }
            Err(finding) => panic!("{name}: {}", finding.text),
        }
    }
    println!("{total} states in all, none that breaks a promise");
}

/// The state space is as small as it is because states that differ in nothing that matters are taken for one.
#[test]
fn states_that_count_as_equal_go_on_alike() {
    for (setup, large) in setups() {
        // The larger ones hold more of the same.
        if large || setup.budget > 1 {
            continue;
        }
        let name = setup.name;
        match alike(setup) {
            Ok(met) => println!("{name}: {met} states were met"),
            Err(text) => panic!("{name}: {text}"),
        }
    }
}
