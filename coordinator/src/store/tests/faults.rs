//! What the surroundings can do to a store: full and read-only disks, locks, lost answers, damaged rows, a crash. What
//! becomes of it when a server is away is in `outages`.

use super::*;

on_every_database!(
    changes_queued_behind_a_failure_fail_with_it,
    an_unknown_commit_is_resolved_from_the_chain,
    a_change_waits_until_its_outcome_is_known,
    an_outcome_unknown_at_close_is_not_a_success,
    a_schema_of_a_later_version_is_left_alone,
    a_term_begins_on_a_copy_from_before_the_last_migration,
    a_damaged_row_is_named_in_the_error,
    an_unreadable_appliance_is_skipped,
    a_value_that_cannot_be_stored_fails_its_own_change,
);

/// A row large enough that a few of them fill the pages a test leaves.
fn bulky(n: u128) -> Record {
    let mut it = record(n, &format!("a{n}"));
    it.labels = (0..20).map(|i| (format!("label-{i}"), "x".repeat(1_000))).collect();
    it
}

#[tokio::test]
async fn a_full_disk_is_retryable_and_needs_no_restart() {
    let home = Home::new(DatabaseKind::Sqlite).await;
    let (store, _, _) = home.lead().await;
    store.submit(vec![StoreWrite::PutAppliance(bulky(1).into())]).await.expect("there is room");
    store.close().await;

    home.faults.max_pages.store(80, SeqCst);
    let (store, _, _) = home.lead().await;
    let mut stored = vec![1];
    let full = loop {
        let n = stored.len() as u128 + 1;
        match store.submit(vec![StoreWrite::PutAppliance(bulky(n).into())]).await {
            Ok(()) => stored.push(n),
            Err(error) => break error,
        }
    };
    assert_eq!(full, Error::Unavailable(OutageCause::Full));
    assert_eq!(
        store.submit(vec![StoreWrite::PutAppliance(bulky(500).into())]).await,
        Err(Error::Unavailable(OutageCause::Full))
    );

    home.faults.max_pages.store(0, SeqCst);
    store.submit(vec![StoreWrite::PutAppliance(bulky(600).into())]).await.expect("there is room again");
    stored.push(600);
    store.close().await;
    let (_, _, loaded) = home.lead().await;
    let mut found: Vec<_> = loaded.records.iter().map(|r| r.id.uuid().as_u128()).collect();
    found.sort_unstable();
    assert_eq!(found, stored);
}

#[tokio::test]
async fn an_unusable_database_is_reported_with_the_cause() {
    let opened = async |url: String| {
        let config = Config { url, ..Config::default() };
        Store::open(&config).await.map(drop).expect_err("it cannot be used")
    };
    let path = "/proc/rug.db".to_owned();
    assert_eq!(opened(format!("sqlite:{path}")).await, Error::Open { path, cause: OutageCause::CannotOpen });
    let path = "/nowhere/at/all/rug.db".to_owned();
    assert_eq!(opened(format!("sqlite:{path}")).await, Error::Open { path, cause: OutageCause::CannotOpen });
    assert!(matches!(opened("postgres://localhost".into()).await, Error::Url { .. }));
    let nobody = opened("postgres://rug:hush@127.0.0.1:1/rug".into()).await;
    assert!(matches!(nobody, Error::Open { cause: OutageCause::Lost(_), .. }), "{nobody}");
    assert!(!nobody.to_string().contains("hush"), "{nobody}");
    assert!(matches!(opened("sqlite:".into()).await, Error::Url { .. }));

    let home = Home::new(DatabaseKind::Sqlite).await;
    std::fs::write(home.dir.path().join("rug.db"), "no database at all, ".repeat(100)).expect("written");
    assert!(matches!(home.try_open().await, Err(Error::Database { .. })));
}

#[tokio::test]
async fn a_read_only_file_is_detected_when_opened() {
    let home = Home::new(DatabaseKind::Sqlite).await;
    home.open().await.close().await;
    home.faults.read_only.store(true, SeqCst);
    let error = home.try_open().await.map(drop).expect_err("it cannot be written");
    assert!(matches!(error, Error::Open { cause: OutageCause::ReadOnly, .. }), "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");
}

#[tokio::test]
async fn what_the_store_writes_is_for_its_user_alone() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    let home = Home::new(DatabaseKind::Sqlite).await;
    home.faults.unlocked.store(false, SeqCst);
    let database = home.dir.path().join("rug.db");
    // As an earlier version left it.
    std::fs::write(&database, "").expect("written");
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o644)).expect("ours");
    let (store, _, _) = home.lead().await;
    store.submit(vec![StoreWrite::Event(event(1))]).await.expect("written");
    for file in ["rug.db", "rug.db-wal", "rug.db-shm", "rug.db.lock"] {
        let mode = std::fs::metadata(home.dir.path().join(file)).expect(file).mode();
        assert_eq!(mode & 0o7777, 0o600, "{file}");
    }
    store.close().await;
}

#[tokio::test]
async fn a_lock_of_another_process_is_reported_and_waited_for() {
    let home = Home::new(DatabaseKind::Sqlite).await;
    let (store, _, _) = home.lead().await;
    let lock = home.lock().await;
    assert_eq!(store.submit(vec![]).await, Err(Error::Unavailable(OutageCause::Locked)));
    let refused = home.try_open().await.map(drop);
    assert!(matches!(refused, Err(Error::Open { cause: OutageCause::Locked, .. })), "{refused:?}");
    dialect::rollback(lock).await.expect("held");
    store.submit(vec![StoreWrite::Event(event(1))]).await.expect("the lock is gone");
}

#[tokio::test]
async fn a_file_is_open_in_one_process_at_a_time() {
    let home = Home::new(DatabaseKind::Sqlite).await;
    home.faults.unlocked.store(false, SeqCst);
    let store = home.open().await;
    let refused = home.try_open().await.map(drop).expect_err("it is open");
    assert!(matches!(refused, Error::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
    let link = home.dir.path().join("link.db");
    std::os::unix::fs::symlink(home.dir.path().join("rug.db"), &link).expect("a folder of its own");
    let linked = Config { url: format!("sqlite:{}", link.display()), ..home.config.clone() };
    let refused = Store::open(&linked).await.map(drop).expect_err("by another name").to_string();
    assert!(refused.contains("symbolic link"), "{refused}");
    Store::inspect(&home.config, Vec::new()).await.expect("looking is free");
    store.close().await;
    home.open().await.close().await;
}

async fn changes_queued_behind_a_failure_fail_with_it(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, _, _) = home.lead().await;
    let lock = home.lock().await;
    let big = (0..30_000).map(|n| GrantOp::Remove { appliance: id(n) }).collect();
    let (first, second) =
        (store.submit(vec![StoreWrite::Grants(big)]), store.submit(vec![StoreWrite::Event(event(1))]));
    let failed = Err(Error::Unavailable(OutageCause::Locked));
    assert_eq!((first.await, second.await), (failed.clone(), failed), "the second may build on the first");
    dialect::rollback(lock).await.expect("held");
    settle(&store).await;
    assert_eq!(store.events(10).await, Ok(vec![]));
}

async fn an_unknown_commit_is_resolved_from_the_chain(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, term, _) = home.lead().await;
    home.faults.lose_answers.store(true, SeqCst);
    store.submit(vec![StoreWrite::Event(event(1))]).await.expect("it was stored, and that can be read");
    store.submit(vec![StoreWrite::Event(event(2))]).await.expect("the chain goes on");
    assert_eq!(store.events(10).await, Ok(vec![event(2), event(1)]));

    // The answer is lost and meanwhile another leader has begun a term.
    home.faults.unreachable.store(true, SeqCst);
    let third = store.submit(vec![StoreWrite::Event(event(3))]);
    let second_leader = async {
        until(|| store.outage().is_some()).await;
        home.sql("UPDATE leadership SET term = 9").await;
        home.faults.unreachable.store(false, SeqCst);
    };
    let (third, ()) = tokio::join!(third, second_leader);
    assert_eq!(third, Err(Error::Deposed { term }));
    assert!(!store.leads(term));
    assert_eq!(store.submit(vec![]).await, Err(Error::Deposed { term }));
}

async fn a_change_waits_until_its_outcome_is_known(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, term, _) = home.lead().await;
    home.faults.lose_answers.store(true, SeqCst);
    home.faults.unreachable.store(true, SeqCst);
    let mut first = store.submit(vec![StoreWrite::Event(event(1))]);
    until(|| store.outage().is_some()).await;
    let away = Err(Error::Unavailable(OutageCause::TimedOut));
    until_async(async || store.submit(vec![StoreWrite::Event(event(2))]).await == away).await;
    assert!(matches!(store.events(10).await, Err(Error::Unavailable(_))), "lists do not wait either");
    assert!(matches!(begin(&store).await, Err(Error::Unavailable(_))), "nor does a new term");
    assert!(futures::poll!(&mut first).is_pending(), "nobody knows yet");
    home.faults.unreachable.store(false, SeqCst);
    first.await.expect("it was stored");
    settle(&store).await;
    assert!(store.leads(term));
    assert_eq!(store.events(10).await, Ok(vec![event(1)]), "what was refused is not stored");
    home.faults.lose_answers.store(false, SeqCst);
    store.submit(vec![StoreWrite::Event(event(3))]).await.expect("everything goes on");
    assert_eq!(store.events(10).await, Ok(vec![event(3), event(1)]));
}

async fn an_outcome_unknown_at_close_is_not_a_success(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, _, _) = home.lead().await;
    home.faults.lose_answers.store(true, SeqCst);
    home.faults.unreachable.store(true, SeqCst);
    let first = store.submit(vec![StoreWrite::Event(event(1))]);
    until(|| store.outage().is_some()).await;
    store.close().await;
    assert_eq!(first.await, Err(Error::Unresolved));
}

async fn a_schema_of_a_later_version_is_left_alone(database: DatabaseKind) {
    let home = Home::new(database).await;
    home.open().await.close().await;
    home.sql("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m0099_later', 0)").await;
    let error = home.try_open().await.map(drop).expect_err("it is too new");
    assert!(matches!(&error, Error::SchemaTooNew { migration, .. } if migration == "m0099_later"), "{error}");
}

/// The dump that was put back may be older than the last upgrade of the coordinators that run on.
async fn a_term_begins_on_a_copy_from_before_the_last_migration(database: DatabaseKind) {
    if database == DatabaseKind::Sqlite {
        // Its file is put back while nobody has it open, and opening it migrates.
        return;
    }
    let home = Home::new(database).await;
    let (store, term, _) = home.lead().await;
    home.sql("ALTER TABLE appliances DROP COLUMN written_term").await;
    home.sql("ALTER TABLE appliances DROP COLUMN managed_by").await;
    home.sql("DELETE FROM seaql_migrations WHERE version <> 'm0001_first'").await;
    let (next, _) = begin(&store).await.expect("it is migrated again");
    assert!(store.leads(next) && next > term);
}

async fn a_damaged_row_is_named_in_the_error(database: DatabaseKind) {
    let unknown_format = match database {
        DatabaseKind::Sqlite => "UPDATE grants SET data = x'09' || substr(data, 2)",
        DatabaseKind::Postgres => "UPDATE grants SET data = '\\x09'::bytea || substr(data, 2)",
        DatabaseKind::MariaDb => "UPDATE grants SET data = CONCAT(x'09', substr(data, 2))",
    };
    let cases = [
        ("UPDATE grants SET data = substr(data, 1, length(data) - 3)", "stored grants (term 1, batch 1, part 0)"),
        ("UPDATE grants SET data = substr(data, 1, 0)", "stored grants (term 1, batch 1, part 0)"),
        (unknown_format, "stored grants (term 1, batch 1, part 0)"),
        ("UPDATE grants SET format = 3", "stored grants (term 1, batch 1, part 0)"),
        ("UPDATE members SET profile = '[]'", "stored member w1"),
        ("UPDATE rebalances SET outcome = 'odd'", "stored rebalance r1-1"),
        ("UPDATE leadership SET term = -1", "stored leadership 1"),
        ("DELETE FROM leadership", "stored leadership 1"),
    ];
    for (damage, named) in cases {
        let home = Home::new(database).await;
        let (store, _, _) = home.lead().await;
        let change = vec![
            StoreWrite::PutAppliance(record(1, "a").into()),
            StoreWrite::Grants(vec![GrantOp::Grant {
                appliance: id(1),
                to: granted(1, 1),
                site: None,
                fence_delay: Duration::ZERO,
            }]),
            StoreWrite::PutMember(member(1)),
            StoreWrite::PutRebalance(rebalance(1)),
        ];
        store.submit(change).await.expect("stored");
        home.sql(damage).await;
        let error = begin(&store).await.map(drop).expect_err("damage is noticed").to_string();
        assert!(error.contains(named), "{damage}: {error}");
        if damage.contains("grants") {
            store.dump(Vec::new()).await.expect("a dump goes on past damage");
        }
    }
}

async fn an_unreadable_appliance_is_skipped(database: DatabaseKind) {
    let cases = [
        ("UPDATE appliances SET spec = '{\"replicas\": 0}' WHERE name = 'odd'", "spec"),
        ("UPDATE appliances SET tenant = 'A B' WHERE name = 'odd'", "tenant: `A B` is not a name"),
        ("UPDATE progress SET progress = '[' WHERE hold_ns = 7", "stored progress"),
    ];
    for (damage, named) in cases {
        let home = Home::new(database).await;
        let (store, _, _) = home.lead().await;
        let freed = GrantOp::Free { appliance: id(1), progress: progress(), fence_delay: Duration::from_nanos(7) };
        let change = vec![
            StoreWrite::PutAppliance(record(1, "odd").into()),
            StoreWrite::PutAppliance(record(2, "sound").into()),
            StoreWrite::Grants(vec![
                freed,
                GrantOp::Grant { appliance: id(1), to: granted(1, 1), site: None, fence_delay: Duration::ZERO },
            ]),
        ];
        store.submit(change).await.expect("stored");
        store.submit_statuses([(id(1), status(), at(4)), (id(2), status(), at(4))]);
        store.close().await;
        home.sql(damage).await;
        home.sql("UPDATE statuses SET phase = 'unheard'").await;
        for round in 0..2 {
            let (store, _, loaded) = home.lead().await;
            assert_eq!(loaded.records, [record(2, "sound")], "{damage}");
            let [odd] = &*loaded.unreadable else { panic!("{damage}: {:?}", loaded.unreadable) };
            assert_eq!((odd.id, &*odd.name), (id(1), "odd"));
            assert!(odd.why.contains(named), "{damage}: {odd:?}");
            assert_eq!(
                loaded.grants[&id(1)].granted,
                Some(granted(1, 1)),
                "{damage}, round {round}: it keeps its owner"
            );
            assert!(loaded.statuses.is_empty(), "a status that cannot be read is missing until it is reported anew");
            store.submit(vec![StoreWrite::Event(event(1))]).await.expect("everything else goes on");
            store.close().await;
        }
    }
}

async fn a_value_that_cannot_be_stored_fails_its_own_change(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, _, _) = home.lead().await;
    let mut odd = record(1, "odd");
    odd.placement_key = "a\0b".into();
    let mut busy = status();
    busy.last_error = Some("it said \0".into());
    let (refused, stored) = (
        store.submit(vec![StoreWrite::PutAppliance(odd.into())]),
        store.submit(vec![StoreWrite::PutAppliance(record(2, "sound").into())]),
    );
    let refused = refused.await;
    match database {
        DatabaseKind::Postgres => assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}"),
        DatabaseKind::Sqlite | DatabaseKind::MariaDb => assert_eq!(refused, Ok(())),
    }
    stored.await.expect("it shares nothing with the other");
    store.submit_statuses([(id(2), busy, at(1))]);
    store.close().await;
    let (_, _, loaded) = home.lead().await;
    assert_eq!(loaded.statuses[&id(2)].0.last_error.as_deref(), Some("it said \u{fffd}"));
}

/// The runtime goes down in the middle, as with `kill -9`: nothing is flushed, closed or rolled back in order.
fn a_crash_loses_nothing_that_was_acknowledged(database: DatabaseKind) {
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    let home = runtime().block_on(Home::new(database));
    for round in 0..3_u64 {
        let crashing = runtime();
        let (store, _, _) = crashing.block_on(home.lead());
        let (acknowledged, seen) = std::sync::mpsc::channel();
        for task in 0..8_u64 {
            let (store, acknowledged) = (store.clone(), acknowledged.clone());
            crashing.spawn(async move {
                for n in 0.. {
                    let number = round * 1_000_000 + task * 100_000 + n;
                    let (appliance, to) = (id(number.into()), granted(1, number));
                    let grant = GrantOp::Grant { appliance, to, site: None, fence_delay: Duration::ZERO };
                    let change = vec![
                        StoreWrite::PutAppliance(record(number.into(), &format!("a{number}")).into()),
                        StoreWrite::Grants(vec![grant]),
                    ];
                    if store.submit(change).await.is_err() || acknowledged.send(number).is_err() {
                        return;
                    }
                }
            });
        }
        let first: Vec<_> = seen.iter().take(200).collect();
        crashing.shutdown_background();
        drop(acknowledged);
        let all: Vec<u64> = first.into_iter().chain(seen.try_iter()).collect();
        runtime().block_on(async {
            // The thread of the dead runtime's connection may hold its lock for a moment.
            let opened = tokio::time::timeout(Duration::from_secs(20), async {
                loop {
                    match home.try_open().await {
                        Ok(store) => break store,
                        Err(Error::Open { cause: OutageCause::Locked, .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            let store = opened.await.expect("the lock goes with its thread");
            let (_, loaded) = begin(&store).await.expect("alone");
            let records: std::collections::HashSet<_> = loaded.records.iter().map(|r| r.id).collect();
            for number in all {
                let id = id(number.into());
                assert!(records.contains(&id) && loaded.grants.contains_key(&id), "{number} was acknowledged");
            }
            assert_eq!(records, loaded.grants.keys().copied().collect(), "changes are whole");
            store.close().await;
        });
    }
}

#[test]
fn a_crash_beside_a_file_loses_nothing_that_was_acknowledged() {
    a_crash_loses_nothing_that_was_acknowledged(DatabaseKind::Sqlite);
}

#[test]
fn a_crash_beside_postgres_loses_nothing_that_was_acknowledged() {
    a_crash_loses_nothing_that_was_acknowledged(DatabaseKind::Postgres);
}

#[test]
fn a_crash_beside_mariadb_loses_nothing_that_was_acknowledged() {
    a_crash_loses_nothing_that_was_acknowledged(DatabaseKind::MariaDb);
}
