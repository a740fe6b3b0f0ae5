//! Servers that stop, are killed, hang, are cut off or lose responses, under load: acknowledged changes are stored,
//! refused ones are not, and everything continues without a restart.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use ::servers::proxy::Proxy;

use super::servers::DatabaseServer;
use super::*;

/// What became of changes.
#[derive(Debug, Default)]
struct Tally {
    stored: Mutex<Vec<u128>>,
    refused: Mutex<Vec<u128>>,
    enough: AtomicBool,
}

impl Tally {
    fn stored(&self) -> usize {
        self.stored.lock().expect("nobody panicked").len()
    }

    /// Submits changes one after the other until it is enough.
    async fn load(&self, store: &Store, from: u128) {
        for n in from.. {
            if self.enough.load(SeqCst) {
                return;
            }
            let grant = GrantOp::Grant { appliance: id(n), to: granted(1, 1), site: None, fence_delay: Duration::ZERO };
            let change =
                vec![StoreWrite::PutAppliance(record(n, &format!("a{n}")).into()), StoreWrite::Grants(vec![grant])];
            match store.submit(change).await {
                Ok(()) => self.stored.lock().expect("nobody panicked").push(n),
                Err(Error::Unavailable(_)) => {
                    self.refused.lock().expect("nobody panicked").push(n);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits until further changes have been stored.
    async fn goes_on(&self) {
        let before = self.stored();
        until(|| self.stored() > before + 20).await;
    }

    /// Ends the store and compares with what the next leader reads.
    async fn check(&self, home: &Home, store: Store) {
        store.close().await;
        let (store, _, loaded) = home.lead().await;
        let records: std::collections::HashSet<_> = loaded.records.iter().map(|r| r.id).collect();
        assert_eq!(records, loaded.grants.keys().copied().collect(), "changes are whole");
        for n in self.stored.lock().expect("nobody panicked").iter() {
            assert!(records.contains(&id(*n)), "{n} was acknowledged");
        }
        for n in self.refused.lock().expect("nobody panicked").iter() {
            assert!(!records.contains(&id(*n)), "{n} was refused, and is stored nevertheless");
        }
        assert_eq!(records.len(), self.stored(), "nothing else is there");
        store.close().await;
    }
}

/// Runs `trouble` while four clients submit, and checks what became of their changes.
async fn under_load(home: &Home, trouble: impl AsyncFnOnce(&Store, &Tally)) {
    let (store, term, _) = home.lead().await;
    let tally = Arc::new(Tally::default());
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let (store, tally) = (store.clone(), tally.clone());
            tokio::spawn(async move { tally.load(&store, n * 1_000_000).await })
        })
        .collect();
    tally.goes_on().await;
    trouble(&store, &tally).await;
    tally.goes_on().await;
    tally.enough.store(true, SeqCst);
    for client in clients {
        client.await.expect("every answer was one a leader can live with");
    }
    assert!(store.leads(term), "no leader has lost its term over it");
    tally.check(home, store).await;
}

fn short(url: String) -> Home {
    let mut home = Home::at(tempfile::tempdir().expect("a folder"), url);
    home.config.statement_timeout = Duration::from_secs(2);
    home
}

async fn a_server_may_stop_crash_and_hang(kind: DatabaseKind) {
    let mut server = DatabaseServer::start(kind).await;
    let home = short(server.create_database("rug").await);
    under_load(&home, async |store, tally| {
        server.stop().await;
        until(|| store.outage().is_some()).await;
        assert!(matches!(store.submit(vec![]).await, Err(Error::Unavailable(_))), "refused at once");
        assert!(matches!(store.rebalances(None, 1).await, Err(Error::Unavailable(_))));
        server.start_again().await;
        tally.goes_on().await;
        assert_eq!(store.outage(), None);
        assert_eq!(store.rebalances(None, 1).await, Ok(vec![]));

        for _ in 0..3 {
            server.kill();
            server.start_again().await;
            tally.goes_on().await;
        }

        server.pause();
        until(|| store.outage().is_some()).await;
        server.resume();
        tally.goes_on().await;
    })
    .await;
}

async fn connections_may_break_at_any_moment(kind: DatabaseKind) {
    let url = servers::new_database(kind).await;
    let parsed = ::url::Url::parse(&url).expect("the server's own");
    let proxy =
        Proxy::start(&format!("127.0.0.1:{}", parsed.port().expect("it has one"))).await.expect("a port is free");
    let mut through = parsed.clone();
    through.set_port(Some(proxy.port())).expect("it has a host");
    let home = short(through.into());
    under_load(&home, async |store, tally| {
        for n in 0..40 {
            let pause = n * 7 % 31;
            tokio::time::sleep(Duration::from_millis(pause)).await;
            proxy.reset();
        }
        tally.goes_on().await;
        // Answers get lost, statements do not.
        for _ in 0..2 {
            proxy.cut_down();
            until(|| store.outage().is_some()).await;
            proxy.heal();
            tally.goes_on().await;
        }
        proxy.cut();
        until(|| store.outage().is_some()).await;
        proxy.heal();
    })
    .await;
}

/// A trigger that runs inside `COMMIT` keeps it from answering, until the connection is gone.
#[tokio::test]
async fn an_interrupted_commit_is_resolved_from_the_chain() {
    let url = servers::new_database(DatabaseKind::Postgres).await;
    let parsed = ::url::Url::parse(&url).expect("the server's own");
    let proxy =
        Proxy::start(&format!("127.0.0.1:{}", parsed.port().expect("it has one"))).await.expect("a port is free");
    let mut through = parsed.clone();
    through.set_port(Some(proxy.port())).expect("it has a host");
    let (home, direct) = (short(through.into()), short(url));
    let (store, _, _) = home.lead().await;
    direct
        .sql(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END';
             CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .await;
    let watch = direct.raw().await;
    let committing = async || {
        let sql = "SELECT 1 AS n FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'PgSleep'";
        let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, sql);
        watch.query_one_raw(statement).await.expect("the server is there").is_some()
    };
    let first = store.submit(vec![StoreWrite::Event(event(1))]);
    let (first, ()) = tokio::join!(first, async {
        until_async(committing).await;
        proxy.reset();
    });
    first.expect("it was stored, and the chain says so");
    assert_eq!(store.events(10).await, Ok(vec![event(1)]));

    // The server is killed half way: it was not stored.
    let second = store.submit(vec![StoreWrite::Event(event(2))]);
    let (second, ()) = tokio::join!(second, async {
        until_async(committing).await;
        direct.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'COMMIT'").await;
    });
    assert!(matches!(second, Err(Error::Unavailable(_))), "{second:?}");
    settle(&store).await;
    assert_eq!(store.events(10).await, Ok(vec![event(1)]));
    watch.close().await.expect("nothing is under way");
    store.close().await;
}

async fn a_new_leader_takes_over_from_a_paused_one(kind: DatabaseKind) {
    let home = short(servers::new_database(kind).await);
    let (old, term, _) = home.lead().await;
    old.submit(vec![StoreWrite::Event(event(1))]).await.expect("it leads");
    // What a leader leaves that was stopped in the middle of a transaction: the lock, and a connection that is alive.
    let still = home.lock().await;
    let new = home.open().await;
    let me = CoordinatorId::new("c2").expect("a name");
    new.begin_term(&me, term.next()).await.expect("the server ends what stands still");
    new.submit(vec![StoreWrite::Event(event(2))]).await.expect("it leads");
    assert!(dialect::commit(still).await.is_err(), "its transaction is over");
    until_async(async || old.submit(vec![]).await == Err(Error::Deposed { term })).await;
    assert_eq!(new.events(10).await, Ok(vec![event(2), event(1)]));
}

async fn concurrent_migrations_succeed(kind: DatabaseKind) {
    let home = Home::new(kind).await;
    let opened = futures::future::join_all((0..4).map(|_| home.try_open())).await;
    for store in opened {
        store.expect("one of them makes the tables, the others wait").close().await;
    }
}

mod postgres {
    use super::super::servers::DatabaseKind::Postgres;

    #[tokio::test]
    async fn a_server_may_stop_crash_and_hang() {
        super::a_server_may_stop_crash_and_hang(Postgres).await;
    }

    #[tokio::test]
    async fn connections_may_break_at_any_moment() {
        super::connections_may_break_at_any_moment(Postgres).await;
    }

    #[tokio::test]
    async fn a_new_leader_takes_over_from_a_paused_one() {
        super::a_new_leader_takes_over_from_a_paused_one(Postgres).await;
    }

    #[tokio::test]
    async fn concurrent_migrations_succeed() {
        super::concurrent_migrations_succeed(Postgres).await;
    }
}

mod mariadb {
    use super::super::servers::DatabaseKind::MariaDb;

    #[tokio::test]
    async fn a_server_may_stop_crash_and_hang() {
        super::a_server_may_stop_crash_and_hang(MariaDb).await;
    }

    #[tokio::test]
    async fn connections_may_break_at_any_moment() {
        super::connections_may_break_at_any_moment(MariaDb).await;
    }

    #[tokio::test]
    async fn a_new_leader_takes_over_from_a_paused_one() {
        super::a_new_leader_takes_over_from_a_paused_one(MariaDb).await;
    }

    #[tokio::test]
    async fn concurrent_migrations_succeed() {
        super::concurrent_migrations_succeed(MariaDb).await;
    }
}
