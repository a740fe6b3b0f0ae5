use super::*;
use crate::gate::SharedGate;
use runtime::clock;

fn permit(sequence: u64) -> Permit {
    let gate = SharedGate::new();
    let (appliance, token) = (ApplianceId::from_u128(1), Token::new(Term::new(1), sequence));
    gate.extend(clock::now() + Duration::from_secs(60));
    gate.admit(appliance, token, Duration::ZERO);
    gate.pass(appliance, token).expect("the gate is open")
}

fn folder_of(path: &Path) -> Folder {
    Folder::private(path, &[]).expect("a writable folder")
}

fn fences(folder: &Path) -> Arc<Fences> {
    let worker = WorkerId::new("w1").expect("a name");
    Arc::new(Fences::open(folder_of(folder), worker, Duration::from_millis(100)).expect("/proc shows us"))
}

#[tokio::test]
async fn a_newer_token_shuts_out_a_call_that_is_under_way() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fences = fences(folder.path());
    let held = fences.acquire(&permit(1)).await.expect("nobody else");
    held.check().expect("the newest token");
    let busy = fences.acquire(&permit(2)).await;
    let Err(Error::FenceBusy(text)) = busy else { panic!("expected a busy fence, got {busy:?}") };
    assert!(text.contains("worker w1") && text.contains("t1/1"), "{text}");
    assert!(matches!(held.check(), Err(Error::Superseded(token)) if token.sequence == 2));
    drop(held);
    fences.acquire(&permit(2)).await.expect("the lock is free");
    assert!(matches!(fences.acquire(&permit(1)).await, Err(Error::Superseded(_))));
}

#[tokio::test]
async fn a_tombstone_stays_for_seven_days_and_two_terms() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fences = fences(folder.path());
    let held = fences.acquire(&permit(1)).await.expect("nobody else");
    held.note("forget", 0, 0, None, "done");
    held.entomb().expect("writable");
    drop(held);
    let late = SystemTime::now() + TOMBSTONE + Duration::from_secs(60);
    assert_eq!(fences.cleanup(Term::new(9), SystemTime::now()).expect("readable"), 0, "too early");
    assert_eq!(fences.cleanup(Term::new(2), late).expect("readable"), 0, "too few terms");
    assert!(matches!(fences.claim(&permit(0)).await, Err(Error::Superseded(_))), "it still fences");
    assert_eq!(fences.cleanup(Term::new(3), late).expect("readable"), 1);
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
}

#[tokio::test]
async fn a_journal_is_bounded_and_keeps_the_newest_entries_whole() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fences = fences(folder.path());
    let held = fences.acquire(&permit(1)).await.expect("nobody else");
    for attempt in 0..3000 {
        held.note("spawn", 0, attempt, None, "done");
    }
    let text = fs::read_to_string(fences.journal_path(ApplianceId::from_u128(1))).expect("readable");
    assert!(text.len() as u64 <= JOURNAL_LIMIT);
    let entries: Vec<FenceJournalEntry> = text.lines().map(|l| serde_json::from_str(l).expect("whole lines")).collect();
    assert_eq!(entries.last().map(|e| e.attempt), Some(2999));
    assert!(entries.windows(2).all(|pair| pair[0].attempt + 1 == pair[1].attempt));
}

#[tokio::test]
async fn a_damaged_token_file_is_refused_and_an_empty_one_is_new() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fences = fences(folder.path());
    let path = folder.path().join(fences.token_path(ApplianceId::from_u128(1)));
    fs::write(&path, b"").expect("writable");
    fences.claim(&permit(1)).await.expect("as if it was not there");
    fs::write(&path, b"{\"token\":").expect("writable");
    assert!(matches!(fences.claim(&permit(1)).await, Err(Error::Failed(_))));
}
