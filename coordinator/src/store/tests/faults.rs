//! What the surroundings can do to a store: full and read-only disks, locks, lost answers, damaged rows, a crash.

use std::sync::atomic::Ordering::SeqCst;

use super::*;

/// A row large enough that a few of them fill the pages a test leaves.
fn bulky(n: u128) -> Record {
    let mut it = record(n, &format!("a{n}"));
    it.labels = (0..20).map(|i| (format!("label-{i}"), "x".repeat(1_000))).collect();
    it
}

#[tokio::test]
async fn a_full_disk_is_retryable_and_goes_by_without_a_restart() {
    let home = Home::new();
    let (store, _, _) = home.lead().await;
    store.submit(vec![Write::PutAppliance(bulky(1))]).await.expect("there is room");
    store.close().await;

    home.faults.max_pages.store(80, SeqCst);
    let (store, _, _) = home.lead().await;
    let mut stored = vec![1];
    let full = loop {
        let n = stored.len() as u128 + 1;
        match store.submit(vec![Write::PutAppliance(bulky(n))]).await {
            Ok(()) => stored.push(n),
            Err(error) => break error,
        }
    };
    assert_eq!(full, Error::Unavailable(Cause::Full));
    assert!(common::retry::Retryable::is_retryable(&full));
    assert_eq!(store.submit(vec![Write::PutAppliance(bulky(500))]).await, Err(Error::Unavailable(Cause::Full)));

    home.faults.max_pages.store(0, SeqCst);
    store.submit(vec![Write::PutAppliance(bulky(600))]).await.expect("there is room again");
    stored.push(600);
    store.close().await;
    let (_, _, loaded) = home.lead().await;
    let mut found: Vec<_> = loaded.records.iter().map(|r| r.id.uuid().as_u128()).collect();
    found.sort_unstable();
    assert_eq!(found, stored);
}

#[tokio::test]
async fn a_database_that_cannot_be_used_says_why() {
    let opened = async |url: String| {
        let config = Config { url, ..Config::default() };
        Store::open(&config).await.map(drop).expect_err("it cannot be used")
    };
    let path = "/proc/rug.db".to_owned();
    assert_eq!(opened(format!("sqlite:{path}")).await, Error::Open { path, cause: Cause::CannotOpen });
    let path = "/nowhere/at/all/rug.db".to_owned();
    assert_eq!(opened(format!("sqlite:{path}")).await, Error::Open { path, cause: Cause::CannotOpen });
    assert!(matches!(opened("postgres://localhost/rug".into()).await, Error::Url { .. }));
    assert!(matches!(opened("sqlite:".into()).await, Error::Url { .. }));

    let home = Home::new();
    std::fs::write(home.dir.path().join("rug.db"), "no database at all, ".repeat(100)).expect("written");
    assert!(matches!(home.try_open().await, Err(Error::Database { .. })));
}

#[tokio::test]
async fn a_read_only_file_is_found_at_the_start() {
    let home = Home::new();
    home.open().await.close().await;
    home.faults.read_only.store(true, SeqCst);
    let error = home.try_open().await.map(drop).expect_err("it cannot be written");
    assert!(matches!(error, Error::Open { cause: Cause::ReadOnly, .. }), "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");
}

#[tokio::test]
async fn a_lock_of_another_process_is_told_and_waited_out() {
    let home = Home::new();
    let (store, _, _) = home.lead().await;
    let other = home.raw().await;
    let lock = dialect::begin_write(&other).await.expect("free");
    assert_eq!(store.submit(vec![]).await, Err(Error::Unavailable(Cause::Locked)));
    let refused = home.try_open().await.map(drop);
    assert!(matches!(refused, Err(Error::Open { cause: Cause::Locked, .. })), "{refused:?}");
    lock.rollback().await.expect("held");
    store.submit(vec![Write::Event(event(1))]).await.expect("the lock is gone");
}

#[tokio::test]
async fn what_waits_behind_a_failure_fails_with_it() {
    let home = Home::new();
    let (store, _, _) = home.lead().await;
    let other = home.raw().await;
    let lock = dialect::begin_write(&other).await.expect("free");
    let big = (0..30_000).map(|n| GrantOp::Remove { appliance: id(n) }).collect();
    let (first, second) = (store.submit(vec![Write::Grants(big)]), store.submit(vec![Write::Event(event(1))]));
    let failed = Err(Error::Unavailable(Cause::Locked));
    assert_eq!((first.await, second.await), (failed.clone(), failed), "the second may build on the first");
    lock.rollback().await.expect("held");
    store.submit(vec![]).await.expect("the lock is gone");
    assert_eq!(store.events(10).await, Ok(vec![]));
}

#[tokio::test]
async fn a_lost_answer_is_found_out_from_the_chain() {
    let home = Home::new();
    let (store, term, _) = home.lead().await;
    home.faults.lose_answers.store(true, SeqCst);
    store.submit(vec![Write::Event(event(1))]).await.expect("it was stored, and that can be read");
    store.submit(vec![Write::Event(event(2))]).await.expect("the chain goes on");
    assert_eq!(store.events(10).await, Ok(vec![event(2), event(1)]));

    // The answer is lost and meanwhile another leader has begun a term.
    home.sql("CREATE TRIGGER usurp AFTER INSERT ON events BEGIN UPDATE leadership SET term = 9; END").await;
    assert_eq!(store.submit(vec![Write::Event(event(3))]).await, Err(Error::Deposed { term }));
}

#[tokio::test]
async fn an_answer_that_cannot_be_found_out_ends_the_store() {
    let home = Home::new();
    let (store, _, _) = home.lead().await;
    store.submit(vec![]).await.expect("it leads");
    home.faults.lose_answers.store(true, SeqCst);
    home.faults.unreachable.store(true, SeqCst);
    assert_eq!(store.submit(vec![Write::Event(event(1))]).await, Err(Error::Unresolved));
    home.faults.unreachable.store(false, SeqCst);
    assert_eq!(store.submit(vec![]).await, Err(Error::Unresolved), "also once the database is back");
    assert_eq!(begin(&store).await.map(drop), Err(Error::Unresolved));
    store.close().await;
}

#[tokio::test]
async fn a_schema_of_a_later_version_is_left_alone() {
    let home = Home::new();
    home.open().await.close().await;
    home.sql("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m0099_later', 0)").await;
    let error = home.try_open().await.map(drop).expect_err("it is too new");
    assert!(matches!(&error, Error::SchemaTooNew { migration, .. } if migration == "m0099_later"), "{error}");
}

#[tokio::test]
async fn a_damaged_row_is_named() {
    let cases = [
        ("UPDATE grants SET data = substr(data, 1, length(data) - 3)", "stored grants (term 1, batch 1, part 0)"),
        ("UPDATE grants SET data = x''", "stored grants (term 1, batch 1, part 0)"),
        ("UPDATE grants SET data = x'09' || substr(data, 2)", "stored grants (term 1, batch 1, part 0)"),
        ("UPDATE grants SET format = 3", "stored grants (term 1, batch 1, part 0)"),
        ("UPDATE appliances SET spec = '{\"replicas\": 0}'", "stored appliance 00000000-0000-0000-0000-000000000001"),
        ("UPDATE appliances SET name = 'A B'", "name: `A B` is not a name"),
        ("UPDATE members SET profile = '[]'", "stored member w1"),
        ("UPDATE rebalances SET outcome = 'odd'", "stored rebalance r1-1"),
        ("DELETE FROM leadership", "stored leadership 1"),
    ];
    for (damage, named) in cases {
        let home = Home::new();
        let (store, _, _) = home.lead().await;
        let change = vec![
            Write::PutAppliance(record(1, "a")),
            Write::Grants(vec![GrantOp::Grant { appliance: id(1), to: granted(1, 1), host: None }]),
            Write::PutMember(member(1)),
            Write::PutRebalance(rebalance(1)),
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

/// The runtime goes down in the middle, as with `kill -9`: nothing is flushed, closed or rolled back in order.
#[test]
fn a_crash_loses_nothing_that_was_acknowledged() {
    let home = Home::new();
    let runtime = || tokio::runtime::Runtime::new().expect("a runtime");
    for round in 0..3_u64 {
        let crashing = runtime();
        let (store, _, _) = crashing.block_on(home.lead());
        let (acknowledged, seen) = std::sync::mpsc::channel();
        for task in 0..8_u64 {
            let (store, acknowledged) = (store.clone(), acknowledged.clone());
            crashing.spawn(async move {
                for n in 0.. {
                    let number = round * 1_000_000 + task * 100_000 + n;
                    let grant = GrantOp::Grant { appliance: id(number.into()), to: granted(1, number), host: None };
                    let change = vec![
                        Write::PutAppliance(record(number.into(), &format!("a{number}"))),
                        Write::Grants(vec![grant]),
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
                        Err(Error::Open { cause: Cause::Locked, .. }) => {}
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
