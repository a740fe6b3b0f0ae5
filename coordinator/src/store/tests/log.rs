//! The log of grants against a model: whatever was logged, packed into snapshots and deleted, what is read is the same.

use common::Site;
use proptest::prelude::*;
use sea_orm::EntityTrait;

use super::super::batch::Batch;
use super::super::entities::grants;
use super::super::ledger::{self, GrantTable, LogPosition, ReplayedLog};
use super::*;

on_every_database!(a_long_log_is_cut_down_while_work_goes_on, a_change_larger_than_a_row_is_one_batch);

/// What happens to a log.
#[derive(Clone, Debug)]
enum LogStep {
    Log(Vec<GrantOp>),
    /// A snapshot is read; what was left of an earlier one is given up.
    Draft,
    /// One chunk of it is written.
    Chunk,
    /// Covered rows are deleted, if the snapshot is complete.
    Delete,
    NewTerm,
}

fn op() -> impl Strategy<Value = GrantOp> {
    let site = proptest::option::of((0..3_u8).prop_map(|n| Site::from(format!("host-{n}"))));
    let fence_delay = prop_oneof![Just(0), any::<u64>()].prop_map(Duration::from_nanos);
    prop_oneof![
        6 => (0..40_u128, 0..4_u32, any::<u64>(), site, fence_delay).prop_map(|(n, w, sequence, site, fence_delay)| GrantOp::Grant {
            appliance: id(n),
            to: granted(w, sequence),
            site,
            fence_delay,
        }),
        2 => (0..40_u128).prop_map(|n| GrantOp::Free {
            appliance: id(n),
            progress: Progress::default(),
            fence_delay: Duration::ZERO,
        }),
        1 => (0..40_u128).prop_map(|n| GrantOp::Unbind {
            appliance: id(n),
            progress: Progress::default(),
            fence_delay: Duration::ZERO,
        }),
        1 => (0..40_u128).prop_map(|n| GrantOp::Remove { appliance: id(n) }),
    ]
}

fn step() -> impl Strategy<Value = LogStep> {
    prop_oneof![
        5 => proptest::collection::vec(op(), 1..12).prop_map(LogStep::Log),
        2 => Just(LogStep::Draft),
        6 => Just(LogStep::Chunk),
        1 => Just(LogStep::Delete),
        1 => Just(LogStep::NewTerm),
    ]
}

fn apply(model: &mut GrantTable, op: &GrantOp) {
    match op {
        GrantOp::Grant { appliance, to, site, fence_delay } => {
            let grant = model.entry(*appliance).or_default();
            grant.granted = Some(to.clone());
            grant.site.clone_from(site);
            grant.fence_delay = *fence_delay;
        }
        GrantOp::Free { appliance, .. } => {
            let grant = model.entry(*appliance).or_default();
            grant.granted = None;
            grant.fence_delay = Duration::ZERO;
        }
        GrantOp::Unbind { appliance, .. } => {
            let grant = model.entry(*appliance).or_default();
            grant.granted = None;
            grant.site = None;
            grant.fence_delay = Duration::ZERO;
        }
        GrantOp::Remove { appliance } => drop(model.remove(appliance)),
    }
}

/// A log that is written to directly, one batch after the other.
struct Log {
    db: DatabaseConnection,
    place: LogPosition,
}

impl Log {
    async fn write(&mut self, batch: &Batch) {
        self.place.batch += 1;
        batch.write(&self.db, self.place.term, self.place.batch).await.expect("written");
    }
}

async fn check(steps: Vec<LogStep>) {
    let home = Home::new(DatabaseKind::Sqlite).await;
    home.open().await.close().await;
    let mut log = Log { db: home.raw().await, place: LogPosition { term: 1, batch: 0 } };
    log.db.execute_unprepared("PRAGMA synchronous = OFF").await.expect("only this test's file");
    let mut model = GrantTable::new();
    let mut draft: Option<(LogPosition, std::vec::IntoIter<Vec<u8>>)> = None;
    let mut complete = None;
    for step in steps {
        match step {
            LogStep::Log(ops) => {
                ops.iter().for_each(|op| apply(&mut model, op));
                log.write(&Batch::of(&[super::super::batch::PreparedWrite::Grants(ops)])).await;
            }
            LogStep::Draft => {
                let ledger = ReplayedLog::read(&log.db).await.expect("sound");
                let chunks = ledger.snapshot(120);
                // Nothing to cover is not worth a snapshot; the writer's threshold sees to that.
                draft = (ledger.last > LogPosition::default()).then(|| (ledger.last, chunks.into_iter()));
            }
            LogStep::Chunk => {
                let Some((covers, chunks)) = &mut draft else { continue };
                let Some(chunk) = chunks.next() else { continue };
                let last = chunks.len() == 0;
                log.write(&Batch::of_chunk(chunk[0], chunk)).await;
                if last {
                    complete = Some(*covers);
                }
            }
            LogStep::Delete => {
                let Some(covers) = complete else { continue };
                while ledger::delete_covered(&log.db, covers).await.expect("deleted") {}
            }
            LogStep::NewTerm => {
                log.place = LogPosition { term: log.place.term + 1, batch: 0 };
                draft = None;
            }
        }
        let read = ReplayedLog::read(&log.db).await.expect("sound").table;
        assert_eq!(read, model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn snapshots_and_the_log_give_the_same_grants(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(check(steps));
    }
}

async fn a_long_log_is_cut_down_while_work_goes_on(database: DatabaseKind) {
    let mut home = Home::new(database).await;
    home.config.snapshot_after = 2_000;
    let (store, _, _) = home.lead().await;
    let mut model = GrantTable::new();
    let mut written = 0;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    // Until a snapshot is there and what it covers, beginning with the first batch, is gone.
    loop {
        written += 1;
        let ops: Vec<_> = (0..20_u64)
            .map(|n| GrantOp::Grant {
                appliance: id(u128::from(written * 7 + n) % 90),
                to: granted(1, written * 100 + n),
                site: Some("h".into()),
                fence_delay: Duration::from_secs(n),
            })
            .collect();
        ops.iter().for_each(|op| apply(&mut model, op));
        store.submit(vec![StoreWrite::Grants(ops)]).await.expect("stored");
        if written > 10 {
            let rows = grants::Entity::find().all(&store.readers.now()).await.expect("read");
            let snapshot = rows.iter().any(|row| row.format == i32::from(ledger::LAST_CHUNK));
            if snapshot && rows.iter().all(|row| row.batch > 1) {
                break;
            }
        }
        assert!(tokio::time::Instant::now() < deadline, "no snapshot after {written} batches");
    }
    store.close().await;
    let (store, _, loaded) = home.lead().await;
    assert_eq!(loaded.grants, model);
    store.close().await;
}

async fn a_change_larger_than_a_row_is_one_batch(database: DatabaseKind) {
    let home = Home::new(database).await;
    let (store, _, _) = home.lead().await;
    let host = "h".repeat(100);
    let ops = (0..30_000_u64)
        .map(|n| GrantOp::Grant {
            appliance: id(n.into()),
            to: granted(1, n),
            site: Some(format!("{host}{n}").into()),
            fence_delay: Duration::ZERO,
        })
        .collect();
    store.submit(vec![StoreWrite::Grants(ops)]).await.expect("stored");
    let rows = grants::Entity::find().all(&store.readers.now()).await.expect("read");
    assert!(rows.len() > 3 && rows.iter().all(|row| row.batch == 1 && row.data.len() < 2 * codec::ROW_BYTES));
    let (_, loaded) = begin(&store).await.expect("alone");
    assert_eq!(loaded.grants.len(), 30_000);
}
