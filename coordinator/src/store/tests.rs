//! The store against real databases: acknowledged changes survive closing, dropping and killing the store. Tests that
//! are not about files alone run on SQLite, PostgreSQL and MariaDB.

mod faults;
mod file;
mod fixtures;
mod full;
mod log;
mod outages;
mod plans;
mod servers;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::appliance::{Name, Spec};
use common::driver::{DriverCapabilities, DriverName, DriverOffers};
use common::kind::{Custom, KindName, KindSpec, Probe};
use common::mode::{ModeRule, ModeScope};
use common::run::RunOutcome;
use common::status::{InstanceStatus, JournalEntry, Phase, Progress, Status};
use common::{Generation, ModeId, Token};
use coordinator_core::grants::{Granted, Profile, StoredGrant};
use coordinator_core::modes::ModeOp;
use coordinator_core::orders::{OrderOp, Pin};
use coordinator_core::rollout::{Forgiven, ItemState, Rollout, RolloutAction, RolloutPolicy, RolloutState};
use sea_orm::ConnectionTrait;
use tempfile::TempDir;

use self::fixtures::*;
use self::servers::DatabaseKind;
use super::dialect::Faults;
use super::*;
use crate::record::{MemberThen, MoveTimes, OrderNote, RebalanceOutcome, RolloutFailure, StoredRollout};

/// Runs each of these tests on every database.
macro_rules! on_every_database {
    ($($test:ident),+ $(,)?) => {
        on_every_database!(@ sqlite Sqlite $($test)+);
        on_every_database!(@ postgres Postgres $($test)+);
        on_every_database!(@ mariadb MariaDb $($test)+);
    };
    (@ $module:ident $kind:ident $($test:ident)+) => {
        mod $module {
            use crate::store::tests::servers::DatabaseKind;

            $(#[tokio::test]
            async fn $test() {
                super::$test(DatabaseKind::$kind).await;
            })+
        }
    };
}
use on_every_database;

/// A store of one test, with its own folder, or its own database on the shared server.
struct Home {
    dir: TempDir,
    config: Config,
    faults: Arc<Faults>,
}

impl Home {
    async fn new(database: DatabaseKind) -> Self {
        let dir = tempfile::tempdir().expect("a folder for temporary files");
        let url = match database {
            DatabaseKind::Sqlite => format!("sqlite:{}", dir.path().join("rug.db").display()),
            DatabaseKind::Postgres | DatabaseKind::MariaDb => servers::new_database(database).await,
        };
        Self::at(dir, url)
    }

    fn at(dir: TempDir, url: String) -> Self {
        let config = Config {
            // What happens in tests happened long ago.
            retention: Duration::MAX,
            url,
            observation_interval: Duration::from_millis(10),
            statement_timeout: Duration::from_secs(4),
            ..Config::default()
        };
        let faults = Arc::new(Faults::default());
        // Several leaders in one test stand for as many processes.
        faults.unlocked.store(true, SeqCst);
        Self { dir, config, faults }
    }

    fn target(&self) -> DatabaseTarget {
        let mut target = DatabaseTarget::parse(&self.config).expect("the tests know how to write a URL");
        target.faults = self.faults.clone();
        target
    }

    async fn try_open(&self) -> Result<Store, Error> {
        Store::open_target(&self.config, self.target()).await
    }

    async fn open(&self) -> Store {
        self.try_open().await.expect("a fresh database can be used")
    }

    /// Opens the store and begins a term.
    async fn lead(&self) -> (Store, Term, StoredState) {
        let store = self.open().await;
        let (term, loaded) = begin(&store).await.expect("nobody else leads");
        (store, term, loaded)
    }

    /// A transaction of another connection that holds the lock on the chain.
    async fn lock(&self) -> dialect::Transaction {
        let (target, db) = (self.target(), self.raw().await);
        let tx = target.begin(&db, target.limits(Duration::from_secs(60))).await.expect("the database is there");
        dialect::lock_chain(&tx).await.expect("it is free");
        tx
    }

    /// A connection of the test itself.
    async fn raw(&self) -> DatabaseConnection {
        let target = DatabaseTarget::parse(&self.config).expect("it was opened with it");
        target.connect_writer().await.expect("it was opened before")
    }

    async fn sql(&self, sql: &str) {
        let db = self.raw().await;
        db.execute_unprepared(sql).await.expect("the statement is right");
        db.close().await.expect("nothing is under way");
    }
}

/// Waits until a condition holds.
async fn until(mut holds: impl FnMut() -> bool) {
    until_async(async || holds()).await;
}

/// As [`until`].
async fn until_async(mut holds: impl AsyncFnMut() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(tokio::time::Instant::now() < limit, "it has not come to hold in a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the store accepts changes again.
async fn settle(store: &Store) {
    until_async(async || match store.submit(vec![]).await {
        Ok(()) => true,
        Err(Error::Unavailable(_)) => false,
        Err(error) => panic!("{error}"),
    })
    .await;
}

async fn begin(store: &Store) -> Result<(Term, StoredState), Error> {
    let term = store.highest_term().await?.next();
    Ok((term, store.begin_term(&CoordinatorId::new("c1").expect("a name"), term).await?))
}

on_every_database!(
    everything_survives_a_restart,
    a_rollout_is_stored_in_parts_and_progress_replaces_single_ones,
    a_debug_mode_that_cannot_be_read_covers_everything,
    a_term_begins_only_above_the_stored_one,
    nothing_is_written_outside_of_a_term,
    a_leader_that_changes_nothing_learns_of_a_later_term,
    changes_take_effect_in_the_order_of_submission,
    a_constraint_violation_fails_its_own_change_as_a_whole,
    a_full_queue_refuses_changes,
    observations_are_merged_and_end_with_their_appliance,
    old_history_is_pruned_in_parts,
    old_history_is_deleted_when_the_leader_asks,
    runs_are_kept_once_and_found_by_what_they_are_about,
    a_dump_shows_counts_and_grants_and_needs_no_term,
);

/// A rollout of so many appliances, and the write of some parts of it.
fn rollout(items: u128) -> StoredRollout {
    let policy = RolloutPolicy {
        max_unavailable: 5,
        max_failures: 0,
        canary: 1,
        waves: vec![10, 100],
        item_timeout: Duration::from_secs(60),
        rollback: true,
    };
    let action = RolloutAction::SetImage("v2".into());
    let mut rollout = Rollout::new(action.clone(), policy.clone(), (1..=items).map(ApplianceId::from_u128));
    rollout.forgiven = Forgiven { failed: 3, canary: 1 };
    rollout.images = vec!["v1 \u{1f4a5}".into()];
    rollout.items[0].former_image = Some(0);
    rollout.items[0].state = ItemState::Begun(Generation::new(7));
    let failure = RolloutFailure { appliance: id(9), name: "t/web".into(), why: "it's \"broken\"".into() };
    let record = RolloutRecord {
        id: Uuid::from_u128(items),
        action,
        policy,
        state: RolloutState::Running,
        images: rollout.images.clone(),
        forgiven: Forgiven { failed: 3, canary: 1 },
        items: rollout.items.len() as u64,
        selection: "tenant t".into(),
        force: true,
        reason: "new image".into(),
        by: "rug://role/operator".into(),
        note: String::new(),
        failures: vec![failure],
        started: at(8),
        ended: None,
    };
    StoredRollout { record, rollout }
}

fn put_rollout(stored: &StoredRollout, parts: std::ops::Range<usize>) -> StoreWrite {
    let chunks: Vec<_> = stored.rollout.items.chunks(ROLLOUT_PART).map(<[_]>::to_vec).collect();
    let parts = parts.map(|part| (part, chunks[part].clone())).collect();
    StoreWrite::PutRollout(Box::new(stored.record.clone()), parts)
}

async fn a_rollout_is_stored_in_parts_and_progress_replaces_single_ones(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, ..) = home.lead().await;
    let (mut large, small) = (rollout(2_500), rollout(3));
    store.submit(vec![put_rollout(&large, 0..3), put_rollout(&small, 0..1)]).await.expect("stored");
    large.rollout.items[2_400].state = ItemState::Failed;
    (large.record.state, large.rollout.state) = (RolloutState::Stopped, RolloutState::Stopped);
    store.submit(vec![put_rollout(&large, 2..3)]).await.expect("stored");
    store.close().await;
    let (store, _, mut loaded) = home.lead().await;
    loaded.rollouts.sort_by_key(|stored| stored.record.items);
    assert_eq!(loaded.rollouts, [small.clone(), large.clone()]);
    store.submit(vec![StoreWrite::RemoveRollout(large.record.id)]).await.expect("removed");
    store.close().await;
    // One whose parts are damaged is left out, and keeps nobody from leading.
    home.sql("UPDATE rollout_items SET part = 7").await;
    let (store, _, loaded) = home.lead().await;
    assert_eq!(loaded.rollouts, []);
    store.close().await;
}

/// A rule with everything that is hard to store.
fn mode(n: u128) -> ModeRule {
    ModeRule {
        id: ModeId::new(n),
        scope: ModeScope::Labels("env=prod,zone notin (\u{e4},b)".parse().expect("a selector")),
        reason: "it's \"broken\" \u{1f4a5}".into(),
        by: "rug://role/operator".into(),
        since_unix_ms: 5,
        expires_unix_ms: (n > 2).then_some(u64::MAX),
    }
}

async fn everything_survives_a_restart(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, term, empty) = home.lead().await;
    assert_eq!(term, Term::new(1));
    assert!(empty.records.is_empty() && empty.grants.is_empty() && empty.members.is_empty());
    let request = RequestRecord {
        id: uuid::Uuid::from_u128(5),
        digest: *b"0123456789abcdef",
        appliance: id(1),
        time: SystemTime::now() - Duration::from_secs(60),
    };
    let pause = PauseRecord {
        reason: "network work".into(),
        by: "rug://role/operator".into(),
        since: at(8),
        moves_only: true,
        aborts: None,
    };
    let mut lb = record(2, "lb");
    lb.deleting = true;
    lb.created = UNIX_EPOCH - Duration::new(5, 1);
    let change = vec![
        StoreWrite::PutAppliance(record(1, "web").into()),
        StoreWrite::PutAppliance(lb.clone().into()),
        StoreWrite::PutAppliance(record(3, "gone").into()),
        StoreWrite::Grants(vec![
            GrantOp::Grant {
                appliance: id(1),
                to: granted(1, 1),
                site: Some("h1".into()),
                fence_delay: Duration::from_secs(9),
            },
            GrantOp::Free { appliance: id(2), progress: progress(), fence_delay: Duration::from_secs(7) },
            GrantOp::Grant {
                appliance: id(2),
                to: granted(2, u64::MAX),
                site: None,
                fence_delay: Duration::from_secs(5),
            },
            GrantOp::Grant { appliance: id(3), to: granted(2, 3), site: None, fence_delay: Duration::ZERO },
            GrantOp::Free { appliance: id(1), progress: progress(), fence_delay: Duration::from_millis(1_234) },
        ]),
        StoreWrite::PutMember(member(1)),
        StoreWrite::PutMember(member(2)),
        StoreWrite::PutRebalance(rebalance(1)),
        StoreWrite::PutRebalance(rebalance(2)),
        StoreWrite::Moves(vec![moved(1, 1, None), moved(2, 1, Some(4)), moved(1, 2, Some(5))]),
        StoreWrite::Adoptions(vec![AdoptionRecord { rebalance: rebalance(1).id, appliance: id(2), time: at(8) }]),
        StoreWrite::Event(event(1)),
        StoreWrite::Request(request.clone()),
        StoreWrite::Pause(Some(pause.clone())),
        StoreWrite::Mode(ModeOp::Set(mode(1))),
        StoreWrite::Mode(ModeOp::Set(mode(2))),
        StoreWrite::Mode(ModeOp::Clear(ModeId::new(1))),
        StoreWrite::Mode(ModeOp::Set(mode(3))),
    ];
    let change: Vec<_> = change.into_iter().chain(orders(true).into_iter().map(StoreWrite::Order)).collect();
    store.submit(change).await.expect("stored");
    let ended = RebalanceRecord { ended: Some(at(9)), outcome: RebalanceOutcome::Completed, done: 2, ..rebalance(2) };
    store.submit_statuses([(id(1), status(), at(4)), (id(3), status(), at(4))]);
    let change = vec![
        StoreWrite::Grants(vec![GrantOp::Remove { appliance: id(3) }]),
        StoreWrite::RemoveMember(worker(2), member(2).incarnation),
        StoreWrite::RemoveMember(worker(1), Incarnation::new(99)),
        StoreWrite::PutRebalance(ended.clone()),
    ];
    store.submit(change).await.expect("stored");
    store.close().await;

    let (store, term, mut loaded) = home.lead().await;
    assert_eq!(term, Term::new(2));
    loaded.records.sort_by_key(|r| r.id);
    assert_eq!(loaded.records, [record(1, "web"), lb]);
    let freed = StoredGrant {
        ever: false,
        granted: None,
        site: Some("h1".into()),
        progress: progress(),
        fence_delay: Duration::from_millis(1_234),
    };
    let held = StoredGrant {
        granted: Some(granted(2, u64::MAX)),
        progress: progress(),
        fence_delay: Duration::from_secs(5),
        ..StoredGrant::default()
    };
    assert_eq!(loaded.grants, [(id(1), freed), (id(2), held)].into());
    assert_eq!(loaded.statuses, [(id(1), (status(), at(4)))].into());
    assert_eq!(loaded.members, [member(1)]);
    assert_eq!(loaded.requests, [request]);
    assert_eq!(loaded.rebalances, [ended.clone(), rebalance(1)]);
    let adopted = |moved: MoveRecord| MoveRecord { times: MoveTimes { adopted: Some(at(8)), ..moved.times }, ..moved };
    let made = vec![moved(1, 1, None), adopted(moved(1, 2, Some(5)))];
    assert_eq!(loaded.unfinished[&rebalance(1).id], made, "of the newest that has not ended");
    assert_eq!(loaded.pause, Some(pause));
    assert_eq!(loaded.modes, [mode(2), mode(3)]);
    let mut kept = orders(true);
    // That of what is removed goes with it.
    kept.retain(|record| !matches!(record.order, OrderOp::Pin { appliance, .. } if appliance == id(3)));
    kept.sort_by(|a, b| a.order.cmp(&b.order));
    loaded.orders.sort_by(|a, b| a.order.cmp(&b.order));
    assert_eq!(loaded.orders, kept);
    let back = orders(false).into_iter().map(StoreWrite::Order);
    let clear = StoreWrite::Mode(ModeOp::Clear(ModeId::new(2)));
    store.submit(back.chain([StoreWrite::Pause(None), clear]).collect()).await.expect("stored");
    store.close().await;
    let (store, _, loaded) = home.lead().await;
    assert_eq!(loaded.modes, [mode(3)]);
    assert_eq!((loaded.pause, loaded.orders), (None, vec![]));

    assert_eq!(store.events(10).await, Ok(vec![event(1)]));
    assert_eq!(store.rebalances(Some(ended.id), 10).await, Ok(vec![rebalance(1)]));
    let one = store.rebalance(rebalance(1).id).await;
    assert_eq!(one, Ok(Some((rebalance(1), made))));
    assert_eq!(store.rebalance(rebalance(7).id).await, Ok(None));
    assert_eq!(store.moves_of(id(1), 10).await, Ok(vec![moved(2, 1, Some(4)), moved(1, 1, None)]));
    assert_eq!(store.moves_of(id(1), 1).await, Ok(vec![moved(2, 1, Some(4))]));
    assert_eq!(store.moves_of(id(2), 1).await, Ok(vec![adopted(moved(1, 2, Some(5)))]));
    store.close().await;
}

async fn a_debug_mode_that_cannot_be_read_covers_everything(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, ..) = home.lead().await;
    store
        .submit(vec![1, 2].into_iter().map(|n| StoreWrite::Mode(ModeOp::Set(mode(n)))).collect())
        .await
        .expect("stored");
    store.close().await;
    home.sql(&format!("UPDATE debug_modes SET rule = '{{\"scope\": \"moon\"}}' WHERE id = '{}'", ModeId::new(2))).await;
    let (store, _, loaded) = home.lead().await;
    assert_eq!(loaded.modes[0], mode(1));
    assert_eq!((loaded.modes[1].id, &loaded.modes[1].scope), (ModeId::new(2), &ModeScope::Global));
    assert!(loaded.modes[1].reason.contains("cannot be read"), "{:?}", loaded.modes[1]);
    store.submit(vec![StoreWrite::Mode(ModeOp::Clear(ModeId::new(2)))]).await.expect("it can be cleared");
    store.close().await;
    let (store, _, loaded) = home.lead().await;
    assert_eq!(loaded.modes, [mode(1)]);
    store.close().await;
}

async fn a_term_begins_only_above_the_stored_one(database: DatabaseKind) {
    let home = Home::new(database).await;
    let store = home.open().await;
    let me = CoordinatorId::new("c1").expect("a name");
    let begun = async |term| store.begin_term(&me, Term::new(term)).await.map(drop);
    assert_eq!(store.highest_term().await, Ok(Term::new(0)));
    assert_eq!(begun(42).await, Ok(()));
    assert_eq!(store.highest_term().await, Ok(Term::new(42)));
    for lower in [0, 3, 42] {
        assert_eq!(begun(lower).await, Err(Error::Deposed { term: Term::new(42) }));
    }
    assert_eq!(begun(u64::MAX).await, Err(Error::TermsExhausted(Term::new(u64::MAX))));
    assert_eq!(begun(43).await, Ok(()), "a refused begin changes nothing");
}

async fn nothing_is_written_outside_of_a_term(database: DatabaseKind) {
    let home = Home::new(database).await;
    let old = home.open().await;
    assert_eq!(old.submit(vec![StoreWrite::Event(event(1))]).await, Err(Error::NotLeading));
    let (term, _) = begin(&old).await.expect("alone");
    old.submit(vec![StoreWrite::Event(event(2))]).await.expect("it leads");

    let new = home.open().await;
    let (_, loaded) = begin(&new).await.expect("a later term is always possible");
    assert_eq!(loaded.records, []);
    let late = vec![StoreWrite::PutAppliance(record(1, "late").into()), StoreWrite::Event(event(3))];
    assert!(old.leads(term), "it has heard of nothing yet");
    assert_eq!(old.submit(late).await, Err(Error::Deposed { term }));
    assert!(!old.leads(term));
    assert_eq!(old.submit(vec![]).await, Err(Error::Deposed { term }));
    new.submit(vec![StoreWrite::Event(event(4))]).await.expect("it leads");
    assert_eq!(new.events(10).await, Ok(vec![event(4), event(2)]));

    let (term, _) = begin(&old).await.expect("it may lead again");
    old.submit(vec![]).await.expect("it leads again");
    assert!(old.leads(term));
}

async fn a_leader_that_changes_nothing_learns_of_a_later_term(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (old, term, _) = home.lead().await;
    let _new = home.lead().await;
    assert!(old.leads(term), "it has written nothing since");
    old.submit_seen(worker(1), at(5));
    until(|| !old.leads(term)).await;
}

async fn changes_take_effect_in_the_order_of_submission(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, _, _) = home.lead().await;
    let mut pending = Vec::new();
    for n in 1..=500_u64 {
        let mut changed = record(1, "web");
        changed.revision = n;
        let to = granted(u32::try_from(n % 5).expect("small"), n);
        let grant = GrantOp::Grant { appliance: id(1), to, site: None, fence_delay: Duration::ZERO };
        pending.push(store.submit(vec![
            StoreWrite::PutAppliance(changed.into()),
            StoreWrite::Grants(vec![grant]),
            StoreWrite::Event(event(n)),
        ]));
        if n % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for change in pending {
        change.await.expect("stored");
    }
    let order: Vec<_> = store.events(1_000).await.expect("read").into_iter().map(|e| e.time).collect();
    assert_eq!(order, (1..=500).rev().map(at).collect::<Vec<_>>());
    store.close().await;
    let (_, _, loaded) = home.lead().await;
    assert_eq!(loaded.records[0].revision, 500);
    assert_eq!(loaded.grants[&id(1)].granted, Some(granted(0, 500)));
}

async fn a_constraint_violation_fails_its_own_change_as_a_whole(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, _, _) = home.lead().await;
    store.submit(vec![StoreWrite::PutAppliance(record(1, "taken").into())]).await.expect("stored");
    let names: Vec<_> = (2..40_u64).map(|n| if n % 9 == 0 { "taken".to_owned() } else { format!("a{n}") }).collect();
    let pending: Vec<_> = (2..)
        .zip(&names)
        .map(|(n, name)| {
            store.submit(vec![StoreWrite::Event(event(n)), StoreWrite::PutAppliance(record(n.into(), name).into())])
        })
        .collect();
    for (pending, name) in pending.into_iter().zip(&names) {
        let result = pending.await;
        assert_eq!(matches!(result, Err(Error::Conflict(_))), name == "taken", "{name}: {result:?}");
        assert_eq!(result.is_ok(), name != "taken", "{name}: {result:?}");
    }
    let stored = store.events(100).await.expect("read");
    let expected: Vec<_> = (2..40).rev().filter(|n| n % 9 != 0).map(event).collect();
    assert_eq!(stored, expected, "a refused change leaves nothing behind, the others keep their order");
    let removal = StoreWrite::Grants(vec![GrantOp::Remove { appliance: id(1) }]);
    let renamed = vec![removal, StoreWrite::PutAppliance(record(9, "taken").into())];
    store.submit(renamed).await.expect("a name is free once its appliance is gone");
}

async fn a_full_queue_refuses_changes(database: DatabaseKind) {
    let mut home = Home::new(database).await;
    home.config.queue = 2;
    let (store, _, _) = home.lead().await;
    // The writer shares this thread, so that it takes nothing before the first await.
    let (first, second, third) = (store.submit(vec![]), store.submit(vec![]), store.submit(vec![]));
    assert_eq!(third.await, Err(Error::Busy));
    assert_eq!((first.await, second.await), (Ok(()), Ok(())));
}

async fn observations_are_merged_and_end_with_their_appliance(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, _, _) = home.lead().await;
    store.submit(vec![StoreWrite::PutAppliance(record(1, "a").into())]).await.expect("stored");
    for n in 0..3_000 {
        let status = Status { failed_boots: n, ..Status::default() };
        store.submit_statuses([(id(1), status, at(n.into())), (id(2), Status::default(), at(0))]);
    }
    store.close().await;
    let (_, _, loaded) = home.lead().await;
    assert_eq!(loaded.statuses.len(), 1, "of an appliance that is not stored, nothing is kept");
    assert_eq!(loaded.statuses[&id(1)].0.failed_boots, 2_999);
}

async fn old_history_is_pruned_in_parts(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, _, _) = home.lead().await;
    let request =
        |n: u64| RequestRecord { id: uuid::Uuid::from_u128(n.into()), digest: [0; 16], appliance: id(1), time: at(n) };
    for part in 0..5 {
        let numbers = part * 1_000 + 1..=(part + 1) * 1_000;
        let change = numbers.flat_map(|n| [StoreWrite::Event(event(n)), StoreWrite::Request(request(n))]);
        store.submit(change.collect()).await.expect("stored");
    }
    let history =
        (1..=9).flat_map(|n| [StoreWrite::PutRebalance(rebalance(n)), StoreWrite::Moves(vec![moved(n, 1, None)])]);
    store.submit(history.collect()).await.expect("stored");
    let db = home.raw().await;
    let since = rows::nanos(at(4_990));
    let keep = load::Keep {
        events: 10,
        rebalances: 3,
        runs: 10,
        since_ns: 0,
        requests_since_ns: since,
        requests: u64::MAX >> 1,
    };
    let mut rounds = 1;
    while load::prune(&db, keep).await.expect("pruned") {
        rounds += 1;
    }
    assert!((2..10).contains(&rounds), "{rounds}");
    assert_eq!(store.events(100).await.expect("read").len(), 10);
    assert_eq!(store.rebalances(None, 100).await.expect("read").len(), 3);
    assert_eq!(store.moves_of(id(1), 100).await.expect("read").len(), 3);
    // By age alone: what happened before, and of rebalances what has ended before.
    let old = load::Keep { events: 1_000, rebalances: 1_000, since_ns: rows::nanos(at(4_996)), ..keep };
    let ended = |n, time| StoreWrite::PutRebalance(RebalanceRecord { ended: Some(at(time)), ..rebalance(n) });
    store.submit(vec![ended(7, 4_990), ended(8, 4_999)]).await.expect("stored");
    while load::prune(&db, old).await.expect("pruned") {}
    assert_eq!(store.events(100).await.expect("read").len(), 5);
    let left: Vec<_> = store.rebalances(None, 100).await.expect("read").into_iter().map(|it| it.id.number).collect();
    assert_eq!(left, [9, 8], "one that runs is kept, and so is what ended later");
    let (_, loaded) = begin(&store).await.expect("alone");
    assert_eq!(loaded.requests.len(), 11);
    let keep = load::Keep { requests_since_ns: 0, requests: 4, ..keep };
    while load::prune(&db, keep).await.expect("pruned") {}
    let (_, loaded) = begin(&store).await.expect("alone");
    let times: Vec<_> = loaded.requests.iter().map(|request| request.time).collect();
    assert_eq!(times, [4_997, 4_998, 4_999, 5_000].map(at), "the newest are kept");
}

async fn old_history_is_deleted_when_the_leader_asks(database: DatabaseKind) {
    let mut home = Home::new(database).await;
    home.config.keep_events = 10;
    home.config.keep_rebalances = 3;
    let (store, _, _) = home.lead().await;
    store.submit((1..=50).map(|n| StoreWrite::Event(event(n))).collect()).await.expect("stored");
    store.submit((1..=9).map(|n| StoreWrite::PutRebalance(rebalance(n))).collect()).await.expect("stored");
    store.prune().await.expect("deleted");
    assert_eq!(store.events(100).await.expect("read").len(), 10);
    assert_eq!(store.rebalances(None, 100).await.expect("read").len(), 3);
    let other = store.clone();
    store.close().await;
    assert_eq!(other.prune().await, Err(Error::Closed));
}

async fn runs_are_kept_once_and_found_by_what_they_are_about(database: DatabaseKind) {
    let mut home = Home::new(database).await;
    home.config.keep_runs = 20;
    let (store, _, _) = home.lead().await;
    store.submit(vec![StoreWrite::Runs((1..=25).map(run).collect())]).await.expect("stored");
    // Told again, in another batch and twice in one.
    let again = [20, 26, 26].map(run).to_vec();
    store.submit(vec![StoreWrite::Runs(again), StoreWrite::Runs(vec![run(26)])]).await.expect("stored");
    let find = async |filter: RunFilter, part, limit| {
        let found = store.runs(&filter, part, limit).await.expect("read");
        found.into_iter().map(|numbered| numbered.run).collect::<Vec<_>>()
    };
    let all = find(RunFilter::default(), AuditPart::Before(None), 100).await;
    assert_eq!(all, (1..=26).rev().map(run).collect::<Vec<_>>());
    let numbered = store.runs(&RunFilter::default(), AuditPart::Before(None), 3).await.expect("read");
    let after = find(RunFilter::default(), AuditPart::After(numbered[2].number), 100).await;
    assert_eq!(after, [25, 26].map(run));
    let ids = async |filter: RunFilter| {
        let found = find(filter, AuditPart::Before(None), 100).await;
        found.into_iter().map(|run| run.id).collect::<Vec<_>>()
    };
    let odd = Some([Name::new("odd").expect("a name")].into());
    let filter = RunFilter { tenants: odd, outcome: Some(RunOutcome::Failed), ..RunFilter::default() };
    assert_eq!(ids(filter).await, [25, 15, 5]);
    let filter = RunFilter { appliance: Some(id(1)), since: Some(at(20)), until: Some(at(25)), ..RunFilter::default() };
    assert_eq!(ids(filter).await, [22]);
    let filter = RunFilter { worker: Some(worker(2)), ..RunFilter::default() };
    assert!(ids(filter).await.is_empty());
    let filter = RunFilter { name: Some(Name::new("web").expect("a name")), with_steps: true, ..RunFilter::default() };
    assert_eq!(ids(filter).await.len(), 26);
    store.prune().await.expect("deleted");
    // Where a run was told twice, numbers may have a gap, of those three.
    assert!((17..=20).contains(&ids(RunFilter::default()).await.len()));
}

async fn a_dump_shows_counts_and_grants_and_needs_no_term(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, _, _) = home.lead().await;
    let fence_delay = Duration::from_millis(1_500);
    let grant = GrantOp::Grant { appliance: id(7), to: granted(1, 1), site: Some("h1".into()), fence_delay };
    store
        .submit(vec![StoreWrite::PutAppliance(record(7, "a").into()), StoreWrite::Grants(vec![grant])])
        .await
        .expect("stored");
    let mut out = Vec::new();
    Store::inspect(&home.config, &mut out).await.expect("readable beside the running store");
    let text = String::from_utf8(out).expect("text");
    assert!(text.starts_with("cluster ") && text.contains("\nterm 1 batch 1 coordinator c1\n"), "{text}");
    assert!(text.contains("appliances           1\n"), "{text}");
    let to = granted(1, 1).incarnation;
    let line = format!("  {} granted to w1 {to} with t1/1 on h1, with a fence delay of 1.5s\n", id(7));
    assert!(text.contains(&line), "{text}");
}
