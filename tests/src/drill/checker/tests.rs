//! The checker finds what it is there to find: made-up evidence, one rule broken in each.

use super::*;
use crate::drill::ledger::{ApplianceHistory, CallKind, CallOutcome, Content, RecordedCall};

fn entry(at_ns: u64, worker: &str, sequence: u64, action: &str, outcome: &str) -> JournalLine {
    let pid = if worker == "w1" { 11 } else { 22 };
    JournalLine {
        appliance: "a".to_owned(),
        at_ns,
        worker: worker.to_owned(),
        pid,
        token: (1, sequence),
        action: action.to_owned(),
        outcome: outcome.to_owned(),
        ..JournalLine::default()
    }
}

/// Two owners, one after the other.
fn orderly() -> Vec<JournalLine> {
    vec![
        entry(10, "w1", 1, "spawn", "begun"),
        entry(20, "w1", 1, "spawn", "done"),
        entry(30, "w2", 2, "terminate", "begun"),
        entry(40, "w2", 2, "terminate", "done"),
    ]
}

fn tenure(worker: &str, sequence: u64, taken_ns: u64, released_ns: Option<u64>) -> Tenure {
    let incarnation = format!("i{worker}");
    Tenure { worker: worker.to_owned(), incarnation, token: (1, sequence), taken_ns, released_ns }
}

fn evidence(entries: Vec<JournalLine>) -> Evidence {
    let tenures = vec![tenure("w1", 1, 5, Some(25)), tenure("w2", 2, 28, None)];
    Evidence {
        journals: BTreeMap::from([("a".to_owned(), entries)]),
        tenures: BTreeMap::from([("a".to_owned(), tenures)]),
        ..Evidence::default()
    }
}

fn gone(worker: &str, at: u64) -> Lives {
    let life = LoggedLife { gone: Some(at), ..LoggedLife::default() };
    Lives::from([((worker.to_owned(), format!("i{worker}")), life)])
}

/// One text of each violation, and nothing else.
fn finds(found: &[Violation], texts: &[&str]) {
    assert_eq!(found.len(), texts.len(), "{found:#?}");
    for (one, text) in found.iter().zip(texts) {
        assert!(one.text.contains(text), "{text:?} is not in {one:?}");
    }
}

#[test]
fn an_orderly_hand_over_is_fine() {
    finds(&check(&evidence(orderly())), &[]);
    assert_eq!(actions(&evidence(orderly())), 2);
}

#[test]
fn an_older_token_after_a_newer_one_is_found() {
    let mut entries = orderly();
    entries.extend([entry(50, "w1", 1, "kill", "begun"), entry(60, "w1", 1, "kill", "done")]);
    let found = one_owner_at_a_time(&entries, &[]);
    finds(&found, &["comes after", "comes after"]);
    // The end of an action counts as well: it was still under way.
    let late = [
        entry(10, "w1", 1, "spawn", "begun"),
        entry(30, "w2", 2, "kill", "begun"),
        entry(31, "w1", 1, "spawn", "done"),
    ];
    finds(&one_owner_at_a_time(&late, &[]), &["began before", "comes after"]);
}

#[test]
fn an_action_that_begins_within_another_ones_is_found_unless_its_process_was_killed() {
    let cut_short = [entry(10, "w1", 1, "spawn", "begun"), entry(30, "w2", 2, "kill", "begun")];
    finds(&one_owner_at_a_time(&cut_short, &[]), &["began before"]);
    let exit = |at_ns| [ProcessExit { name: "w1".to_owned(), pid: 11, at_ns }];
    finds(&one_owner_at_a_time(&cut_short, &exit(15)), &[]);
    finds(&one_owner_at_a_time(&cut_short, &exit(35)), &["began before"]);
    // Of a signal only the wait for its effect can be cut short.
    let given_up = [entry(10, "w1", 1, "terminate", "begun"), entry(30, "w2", 2, "kill", "begun")];
    finds(&one_owner_at_a_time(&given_up, &[]), &[]);
}

#[test]
fn a_token_of_two_processes_is_found() {
    let mut entries = orderly();
    entries[2].token = (1, 1);
    entries[3].token = (1, 1);
    finds(&one_owner_at_a_time(&entries, &[]), &["with the token of", "with the token of"]);
}

#[test]
fn a_journal_out_of_order_is_found() {
    let entries = [entry(20, "w1", 1, "spawn", "begun"), entry(10, "w1", 1, "spawn", "done")];
    finds(&one_owner_at_a_time(&entries, &[]), &["was written after"]);
}

#[test]
fn an_action_after_its_life_was_called_gone_is_found() {
    let mut evidence = evidence(orderly());
    evidence.lives = gone("w2", 35);
    finds(&check(&evidence), &[]);
    evidence.lives = gone("w2", 29);
    finds(&check(&evidence), &["1 ns after its life was called gone"]);
}

#[test]
fn a_right_to_act_beyond_the_word_that_it_is_gone_is_found() {
    let mut lives = gone("w1", 30);
    finds(&might_act_once_gone(&lives), &[]);
    for life in lives.values_mut() {
        life.until = Some(31);
    }
    finds(&might_act_once_gone(&lives), &["for 1 ns after"]);
}

#[test]
fn an_action_without_a_tenure_or_after_it_is_found() {
    let mut untaken = evidence(orderly());
    untaken.tenures.get_mut("a").expect("made above").truncate(1);
    finds(&check(&untaken), &["a token that nobody took"]);
    let mut released = evidence(orderly());
    released.tenures.get_mut("a").expect("made above")[0].released_ns = Some(9);
    finds(&check(&released), &["after it had let go of it"]);
    let mut other = evidence(orderly());
    other.tenures.get_mut("a").expect("made above")[1].worker = "w3".to_owned();
    finds(&check(&other), &["that w3 took"]);
}

#[test]
fn a_tenure_that_begins_within_another_is_found() {
    let of = |released| [tenure("w1", 1, 5, released), tenure("w2", 2, 28, None)];
    finds(&tenures_follow("a", &of(Some(25)), &Lives::new()), &[]);
    finds(&tenures_follow("a", &of(Some(29)), &Lives::new()), &["could act"]);
    finds(&tenures_follow("a", &of(None), &Lives::new()), &["could act"]);
    finds(&tenures_follow("a", &of(None), &gone("w1", 27)), &[]);
    finds(&tenures_follow("a", &of(None), &gone("w1", 29)), &["could act"]);
}

#[test]
fn what_is_lost_or_comes_from_nowhere_is_found() {
    let content = Some(Content { value: 1, replicas: 1 });
    let op =
        |change, content, generation| RecordedCall { change, content, outcome: CallOutcome::Acknowledged(generation) };
    let there = ApplianceHistory { ops: vec![op(CallKind::Create, content, 1)], ..ApplianceHistory::default() };
    let deleted = ApplianceHistory {
        ops: vec![op(CallKind::Create, content, 1), op(CallKind::Delete, None, 2)],
        ..ApplianceHistory::default()
    };
    let ledger = CallLedger::from([("a".to_owned(), there), ("b".to_owned(), deleted)]);
    let shown = Shown { generation: 1, deleting: false, content };
    let good = BTreeMap::from([("a".to_owned(), shown)]);
    finds(&no_change_is_lost(&ledger, &good), &[]);
    let strange = BTreeMap::from([("b".to_owned(), Shown { deleting: true, ..shown }), ("c".to_owned(), shown)]);
    finds(&no_change_is_lost(&ledger, &strange), &["is not there", "nobody asked for it", "still being deleted"]);
}

fn resting(replicas: u32, pids: &[u32]) -> BTreeMap<String, Resting> {
    let resting = Resting {
        replicas,
        pids: pids.iter().copied().collect(),
        worker: "w1".to_owned(),
        token: "t1/2".to_owned(),
        generation: 3,
        ..Resting::default()
    };
    BTreeMap::from([("a".to_owned(), resting)])
}

#[test]
fn processes_that_are_not_what_the_api_shows_are_found() {
    let runs =
        |appliance: &str, ordinal, pid| RunningInstance { appliance: appliance.to_owned(), ordinal, pid: Some(pid) };
    let both = [runs("a", 0, 7), runs("a", 1, 8)];
    finds(&ends_where_the_api_says(&resting(2, &[7, 8]), &both), &[]);
    finds(&ends_where_the_api_says(&resting(2, &[7, 9]), &both), &["the API shows"]);
    finds(&ends_where_the_api_says(&resting(1, &[7]), &both), &["2 instances of 1", "the API shows"]);
    let twice = [runs("a", 0, 7), runs("a", 0, 8)];
    finds(&ends_where_the_api_says(&resting(2, &[7, 8]), &twice), &["runs twice"]);
    finds(&ends_where_the_api_says(&BTreeMap::new(), &both[..1]), &["without an appliance"]);
}

#[test]
fn a_store_that_differs_is_found() {
    let grant = |worker: &str| Some((worker.to_owned(), "t1/2".to_owned()));
    let stored = |stored| BTreeMap::from([("a".to_owned(), stored)]);
    let resting = resting(1, &[7]);
    finds(&store_agrees(&resting, &stored(Stored { generation: 3, granted: grant("w1") })), &[]);
    for wrong in [Stored { generation: 2, granted: grant("w1") }, Stored { generation: 3, granted: grant("w2") }] {
        finds(&store_agrees(&resting, &stored(wrong)), &["is stored as"]);
    }
    finds(&store_agrees(&resting, &BTreeMap::new()), &["is stored as None"]);
    finds(&store_agrees(&BTreeMap::new(), &stored(Stored::default())), &["does not show it"]);
}

#[test]
fn nobody_owns_an_appliance_from_the_end_of_one_tenure_to_the_next() {
    let mut evidence = evidence(Vec::new());
    let gaps = |evidence: &Evidence| unowned(evidence).into_iter().map(|gap| gap.ns).collect::<Vec<_>>();
    assert_eq!(gaps(&evidence), [3]);
    // Killed before it could let go.
    evidence.tenures.get_mut("a").expect("made above")[0].released_ns = None;
    evidence.exits = vec![ProcessExit { name: "w1".to_owned(), pid: 11, at_ns: 14 }];
    assert_eq!(gaps(&evidence), [14]);
    // Its lease had run out before, and once before that for a while.
    let fenced = vec![(6, Some(8)), (12, None)];
    let life = LoggedLife { until: Some(12), over: true, fenced, ..LoggedLife::default() };
    evidence.lives = Lives::from([(("w1".to_owned(), "iw1".to_owned()), life)]);
    assert_eq!(gaps(&evidence), [2, 16]);
}
