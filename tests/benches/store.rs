//! The store's rates beside floors of the same run: what the disk syncs, and what SQLite takes as plain multi-row inserts.
//!
//! `cargo bench -p tests --bench store -- [--seconds N] [--clients N] [--dir PATH] [--url URL]`
//! With `--url` (`postgres://`, `mariadb://`) the store of that URL is measured, which must be empty, and no floors.
//! Times are wall clock. The folder decides what is measured: a `tmpfs` has no disk.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use common::appliance::{Name, Spec, Timing};
use common::driver::DriverName;
use common::kind::{Custom, KindSpec, Probe};
use common::{ApplianceId, CoordinatorId, Generation, Incarnation, Term, Token, WorkerId};
use coordinator::record::{AuditEvent, Record, RequestRecord};
use coordinator::store::{Config, Store, StoreWrite};
use coordinator_core::grants::{GrantOp, Granted};
use sea_orm::sea_query::{Alias, Query};
use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use uuid::Uuid;

/// Grants of one change in the bulk measurement.
const BULK: u64 = 10_000;
/// Rows of one transaction in the floor of inserts; about what a group of 64 clients writes per table.
const FLOOR_ROWS: u32 = 64;

struct Options {
    seconds: u64,
    clients: u64,
    dir: Option<String>,
    url: Option<String>,
}

fn options() -> Result<Options> {
    let mut options = Options { seconds: 5, clients: 64, dir: None, url: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--seconds" => options.seconds = value()?.parse().context("--seconds")?,
            "--clients" => options.clients = value()?.parse().context("--clients")?,
            "--dir" => options.dir = Some(value()?),
            "--url" => options.url = Some(value()?),
            // What `cargo bench` adds.
            "--bench" => {}
            other => bail!("unknown argument {other}"),
        }
    }
    ensure!(options.seconds > 0 && options.clients > 0, "--seconds and --clients must be at least 1");
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    let dir = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir_in("."),
    }
    .context("a folder for the database")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let span = Duration::from_secs(options.seconds);
        let url = match options.url {
            Some(url) => url,
            None => {
                floor_of_syncs(dir.path(), span)?;
                floor_of_inserts(dir.path(), span).await?;
                format!("sqlite:{}", dir.path().join("store.db").display())
            }
        };
        let config = Config { url, ..Config::default() };
        let store = Store::open(&config).await?;
        let term = store.highest_term().await?.next();
        store.begin_term(&CoordinatorId::new("bench")?, term).await?;
        for clients in [1, options.clients] {
            creates(&store, span, clients).await?;
        }
        bulk_grants(&store, term, options.seconds).await?;
        store.close().await;
        let started = Instant::now();
        let store = Store::open(&config).await?;
        let loaded = store.begin_term(&CoordinatorId::new("bench")?, term.next()).await?;
        let (records, grants) = (loaded.records.len(), loaded.grants.len());
        println!("begin of a term   {:>10.1} ms  for {records} appliances, {grants} grants", millis(started.elapsed()));
        store.close().await;
        Ok(())
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Prints median and 99th percentile of these times.
fn latencies(what: &str, mut times: Vec<Duration>) -> Result<()> {
    ensure!(!times.is_empty(), "{what}: nothing was measured");
    times.sort_unstable();
    let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{what:<18}{:>10.3} ms  p99 {:.3} ms", millis(median), millis(p99));
    Ok(())
}

fn floor_of_syncs(dir: &Path, span: Duration) -> Result<()> {
    let mut file = std::fs::File::create(dir.join("floor"))?;
    let mut times = Vec::new();
    let until = Instant::now() + span / 2;
    while Instant::now() < until {
        let started = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    latencies("fdatasync 4 KiB", times)
}

/// One table with the width and the random keys of `appliances`, written by sea-orm with the pragmas of the store.
async fn floor_of_inserts(dir: &Path, span: Duration) -> Result<()> {
    let url = format!("sqlite:{}?mode=rwc", dir.join("floor.db").display());
    let mut connect = sea_orm::ConnectOptions::new(url);
    connect.max_connections(1).sqlx_logging(false).test_before_acquire(false);
    let db = Database::connect(connect).await?;
    for pragma in ["journal_mode=WAL", "synchronous=FULL", "cache_size=-65536", "wal_autocheckpoint=8000"] {
        db.execute_unprepared(&format!("PRAGMA {pragma}")).await?;
    }
    db.execute_unprepared("CREATE TABLE t (id BLOB PRIMARY KEY, a TEXT, b TEXT, c INTEGER, d INTEGER)").await?;
    let (mut rows, started) = (0, Instant::now());
    while started.elapsed() < span / 2 {
        let mut insert = Query::insert();
        insert.into_table(Alias::new("t")).columns(["id", "a", "b", "c", "d"].map(Alias::new));
        for n in 0..FLOOR_ROWS {
            insert.values([
                Uuid::new_v4().into(),
                "a name like others".into(),
                "x".repeat(200).into(),
                n.into(),
                1.into(),
            ])?;
        }
        let transaction = db.begin().await?;
        transaction.execute(&insert).await?;
        transaction.commit().await?;
        rows += FLOOR_ROWS;
    }
    println!(
        "plain inserts     {:>10.0} rows/s, {FLOOR_ROWS} per transaction",
        f64::from(rows) / started.elapsed().as_secs_f64()
    );
    db.close().await?;
    Ok(())
}

fn create() -> Result<Vec<StoreWrite>> {
    let (id, now) = (ApplianceId::new(Uuid::new_v4()), SystemTime::now());
    let record = Record {
        id,
        tenant: Name::new("bench")?,
        name: Name::new(&format!("a-{id}"))?,
        driver: DriverName::simulated(),
        placement_key: id.to_string(),
        labels: BTreeMap::new(),
        spec: Spec {
            replicas: 1,
            probe_interval: None,
            timing: Timing::default(),
            image: None,
            pod: None,
            ports: vec![],
            kind: KindSpec::Custom(Custom {
                command: "sleep".into(),
                args: vec!["infinity".into()],
                env: BTreeMap::new(),
                port: None,
                probe: Probe::Tcp,
                ..Custom::default()
            }),
        },
        generation: Generation::new(1),
        written: Term::new(1),
        revision: 0,
        deleting: false,
        managed_by: None,
        created: now,
        updated: now,
    };
    let event = AuditEvent {
        time: now,
        actor: "127.0.0.1:4711".into(),
        action: "create".into(),
        subject: id.to_string(),
        detail: String::new(),
    };
    let request = RequestRecord { id: Uuid::new_v4(), digest: [0; 16], appliance: id, time: now };
    Ok(vec![StoreWrite::PutAppliance(record.into()), StoreWrite::Request(request), StoreWrite::Event(event)])
}

/// `clients` that each create one appliance after the other.
async fn creates(store: &Store, span: Duration, clients: u64) -> Result<()> {
    let started = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while started.elapsed() < span {
                    let began = Instant::now();
                    store.submit(create()?).await?;
                    times.push(began.elapsed());
                }
                Ok::<_, anyhow::Error>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    println!("creates, {clients:>3} open {rate:>10.0} /s");
    latencies("  each", times)
}

/// Changes of ten thousand grants each, as after the loss of a worker.
async fn bulk_grants(store: &Store, term: Term, rounds: u64) -> Result<()> {
    let ids: Vec<_> = (0..BULK).map(|_| ApplianceId::new(Uuid::new_v4())).collect();
    let mut times = Vec::new();
    for round in 0..rounds.max(5) {
        let to = |n: u64| -> Result<Granted> {
            let worker = WorkerId::new(&format!("worker-{}", (n + round) % 20))?;
            let token = Token::new(term, round * BULK + n);
            Ok(Granted { worker, incarnation: Incarnation::embedded(term, n % 20), token })
        };
        let ops: Result<Vec<_>> = (0..)
            .zip(&ids)
            .map(|(n, id)| {
                Ok(GrantOp::Grant {
                    appliance: *id,
                    to: to(n)?,
                    site: Some("host-1".into()),
                    fence_delay: Duration::ZERO,
                })
            })
            .collect();
        let ops = ops?;
        let began = Instant::now();
        store.submit(vec![StoreWrite::Grants(ops)]).await?;
        times.push(began.elapsed());
    }
    latencies("10,000 grants", times)
}
