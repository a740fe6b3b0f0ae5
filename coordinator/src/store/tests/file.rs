//! A store that is a file: copies of one in use, its log, and what follows when the file is deleted. And the audit trail.

use super::*;

async fn store_with_events() -> (Home, Store) {
    let home = Home::new(DatabaseKind::Sqlite).await;
    let (store, _, _) = home.lead().await;
    for n in 1..=3 {
        store.submit(vec![StoreWrite::Event(event(n))]).await.expect("stored");
    }
    (home, store)
}

#[tokio::test]
async fn a_copy_of_a_store_in_use_is_complete_and_replaces_nothing() {
    let (home, store) = store_with_events().await;
    let copy = home.dir.path().join("it's a copy.db");
    let bytes = Store::backup(&home.config, &copy).await.expect("copied");
    assert_eq!(std::fs::metadata(&copy).expect("it is there").len(), bytes);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&copy).expect("it is there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let again = Store::backup(&home.config, &copy).await.expect_err("it exists");
    assert!(again.to_string().contains("is not replaced"), "{again}");
    let missing = home.dir.path().join("no/folder/copy.db");
    assert!(matches!(Store::backup(&home.config, &missing).await, Err(BackupError::Output { .. })));
    // Whoever can replace files there would get everything.
    let open = home.dir.path().join("open");
    std::fs::create_dir(&open).expect("made");
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("ours");
    let exposed = Store::backup(&home.config, &open.join("copy.db")).await;
    assert!(matches!(exposed, Err(BackupError::Exposed(_))), "{exposed:?}");
    assert_eq!(std::fs::read_dir(&open).expect("a folder").count(), 0);
    let left = std::fs::read_dir(home.dir.path()).expect("a folder").flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("partial")));

    store.submit(vec![StoreWrite::Event(event(4))]).await.expect("it goes on");
    let restored = Home::at(tempfile::tempdir().expect("a folder"), format!("sqlite:{}", copy.display()));
    let (restored, ..) = restored.lead().await;
    assert_eq!(restored.events(10).await, Ok(vec![event(3), event(2), event(1)]));
}

#[tokio::test]
async fn a_database_server_is_copied_by_its_own_program() {
    let config = Config { url: "postgres://h/rug".to_owned(), ..Config::default() };
    let refused = Store::backup(&config, std::path::Path::new("/nowhere/copy.db")).await.expect_err("no file");
    assert!(refused.to_string().contains("pg_dump"), "{refused}");
}

#[tokio::test]
async fn changes_are_refused_once_the_file_is_deleted_or_replaced() {
    let (home, store) = store_with_events().await;
    let path = home.dir.path().join("rug.db");
    std::fs::rename(&path, home.dir.path().join("moved.db")).expect("moved");
    until(|| store.problem().is_some_and(|problem| problem.cause == OutageCause::Deleted)).await;
    let refused = store.submit(vec![StoreWrite::Event(event(4))]).await;
    assert_eq!(refused, Err(Error::Unavailable(OutageCause::Deleted)));
    assert!(!path.exists(), "no new file is made");
    std::fs::write(&path, b"").expect("another file");
    let refused = store.submit(vec![StoreWrite::Event(event(5))]).await;
    assert_eq!(refused, Err(Error::Unavailable(OutageCause::Deleted)));
}

#[tokio::test]
async fn the_audit_trail_is_read_in_parts_and_by_conditions() {
    let home = Home::new(DatabaseKind::Sqlite).await;
    let (store, ..) = home.lead().await;
    let event = |n: u64, actor: &str, subject: &str, detail: &str| AuditEvent {
        time: at(n),
        actor: actor.into(),
        action: "update".into(),
        subject: subject.into(),
        detail: detail.into(),
    };
    let all = [
        event(1, "ops", "id-1", "demo/web_1 g1"),
        event(2, "ops", "id-2", "demo/web-1 g1"),
        event(3, "dev", "w1", "stuck"),
        event(4, "dev", "id-1 from h1", "lost"),
    ];
    for event in all.clone() {
        store.submit(vec![StoreWrite::Event(event)]).await.expect("stored");
    }
    let read = async |filter: AuditFilter, part, limit| {
        let found = store.audit(&filter, part, limit).await.expect("read");
        found.into_iter().map(|e| e.number).collect::<Vec<_>>()
    };
    let every = AuditFilter::default;
    assert_eq!(read(every(), AuditPart::Before(None), 3).await, [4, 3, 2]);
    assert_eq!(read(every(), AuditPart::Before(Some(2)), 3).await, [1]);
    assert_eq!(read(every(), AuditPart::After(2), 9).await, [3, 4]);
    let newest = AuditPart::Before(None);
    assert_eq!(read(AuditFilter { actor: Some("ops".into()), ..every() }, newest, 9).await, [2, 1]);
    let between = AuditFilter { since: Some(at(2)), until: Some(at(4)), ..every() };
    assert_eq!(read(between, newest, 9).await, [3, 2]);
    let about = |subject: &str| AuditFilter { subject: Some(subject.into()), ..AuditFilter::default() };
    assert_eq!(read(about("demo/web_1"), newest, 9).await, [1], "`_` stands for itself");
    assert_eq!(read(about("id-1"), newest, 9).await, [4, 1]);
    assert_eq!(read(about("id"), newest, 9).await, [0; 0]);
}
