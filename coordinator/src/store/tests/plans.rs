//! How the databases find the rows of every statement, with as many rows as a large fleet has.
//!
//! Every statement that a store of the tests executes is noted by its [`shape`] ([`Faults::note`]), and has to be in
//! [`STATEMENTS`], which says whether it may read a whole table: one that is new fails in whichever test executes it
//! first. Here all of them are executed, then explained by the database after `RUG_PLAN_ROWS` rows (`make plans`:
//! 500,000) were put into each table that grows with the fleet, and one that scans where it must not is a failure: with
//! a million appliances such a one once kept a cluster without a leader for hours.

use sea_orm::{DbBackend, Statement};

use super::*;

/// How a statement may find its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Through an index, or it only adds rows.
    Index,
    /// It reads a whole table, for this reason.
    Scan(&'static str),
}

use Access::{Index, Scan};

const BEGIN: Access = Scan("the begin of a term reads everything once");
const DUMP: Access = Scan("a person asked for a dump");

/// Every statement, by how its shape begins; the longest match counts.
const STATEMENTS: &[(&str, Access)] = &[
    ("SELECT clusters", Index),
    ("SELECT leadership", Index),
    ("UPDATE leadership", Index),
    ("SELECT appliances", BEGIN),
    ("SELECT statuses", BEGIN),
    ("SELECT progress", BEGIN),
    ("SELECT members", BEGIN),
    ("SELECT requests", BEGIN),
    ("SELECT pauses WHERE id =", Index),
    ("SELECT debug_modes", BEGIN),
    ("DELETE debug_modes WHERE id =", Index),
    ("DELETE pauses WHERE id =", Index),
    ("SELECT worker_orders", BEGIN),
    ("SELECT rollouts", BEGIN),
    ("SELECT rollout_items", BEGIN),
    ("DELETE rollouts WHERE id =", Index),
    ("DELETE rollout_items WHERE rollout =", Index),
    ("SELECT pins", BEGIN),
    ("SELECT budgets", BEGIN),
    ("DELETE budgets WHERE name =", Index),
    ("SELECT rebalance_members WHERE term", Index),
    ("DELETE worker_orders WHERE worker", Index),
    ("DELETE pins WHERE appliance IN", Index),
    ("DELETE statuses WHERE NOT EXISTS", BEGIN),
    ("SELECT COUNT(*)", DUMP),
    ("SELECT requests WHERE time_ns < ? LIMIT", Index),
    ("SELECT requests ORDER BY time_ns DESC LIMIT ? OFFSET", Index),
    ("SELECT grants", Index),
    ("SELECT rebalances", Index),
    ("SELECT moves", Index),
    ("SELECT events", Index),
    ("SELECT MAX(events", Index),
    ("SELECT MIN(events", Index),
    ("SELECT runs", Index),
    ("SELECT MAX(runs", Index),
    ("SELECT MIN(runs", Index),
    ("DELETE appliances WHERE id IN", Index),
    ("DELETE statuses WHERE appliance IN", Index),
    ("DELETE progress WHERE appliance IN", Index),
    ("DELETE members WHERE worker", Index),
    ("DELETE requests WHERE id IN", Index),
    ("DELETE events WHERE id <=", Index),
    ("DELETE runs WHERE id <=", Index),
    ("DELETE grants WHERE term <", Index),
    ("DELETE rebalances WHERE term <", Index),
    ("DELETE moves WHERE term <", Index),
    ("DELETE rebalance_members WHERE term <", Index),
    ("INSERT", Index),
    // Of MariaDB alone, for migrations.
    ("SELECT CAST(GET_LOCK", Index),
    ("SELECT CAST(RELEASE_LOCK", Index),
];

fn access(shape: &str) -> Option<Access> {
    let found = STATEMENTS.iter().filter(|(begins, _)| shape.starts_with(begins));
    found.max_by_key(|(begins, _)| begins.len()).map(|(_, access)| *access)
}

/// A statement without quotes, columns of selects, numbers of parameters and lengths of lists, so that the same
/// statement has one shape on every database and for any number of rows.
fn shape(sql: &str) -> String {
    let mut text: String = sql.chars().filter(|c| !matches!(c, '"' | '`')).collect();
    while let Some(at) = text.find('$') {
        let digits = text[at + 1..].chars().take_while(char::is_ascii_digit).count();
        text.replace_range(at..=at + digits, "?");
    }
    for list in ["?, ", "(?), "] {
        while text.contains(&format!("{list}{list}")) {
            text = text.replace(&format!("{list}{list}"), list);
        }
    }
    for table in [
        "clusters",
        "leadership",
        "appliances",
        "statuses",
        "progress",
        "grants",
        "rebalance_members",
        "members",
        "workers",
        "rebalances",
        "moves",
        "events",
        "runs",
        "requests",
        "pauses",
        "debug_modes",
        "worker_orders",
        "pins",
        "budgets",
        "rollouts",
        "rollout_items",
    ] {
        text = text.replace(&format!("{table}."), "");
        let from = format!(" FROM {table}");
        if let Some(end) = text.find(&from).filter(|_| text.starts_with("SELECT ")) {
            let selected = &text[..end];
            let aggregate = ["COUNT(*)", "MAX(", "MIN("].into_iter().find(|name| selected.contains(name));
            let kind = match aggregate {
                Some("COUNT(*)") => "SELECT COUNT(*) ".to_owned(),
                Some(name) => format!("SELECT {name}"),
                None => "SELECT ".to_owned(),
            };
            return format!("{kind}{table}{}", &text[end + from.len()..]);
        }
        text = text.replace(&format!("DELETE FROM {table}"), &format!("DELETE {table}"));
    }
    if text.starts_with("INSERT") {
        text.truncate(text.find(" VALUES").unwrap_or(text.len()));
    }
    // Conditions in brackets or not.
    text.replace("WHERE (", "WHERE ").replace("WHERE (", "WHERE ")
}

impl Faults {
    /// Notes a statement that is about to be executed.
    pub(in crate::store) fn note(&self, statement: &Statement) {
        let shape = shape(&statement.sql);
        assert!(
            access(&shape).is_some(),
            "a statement that store/tests/plans.rs does not list: {shape}\n{}",
            statement.sql
        );
        self.executed.lock().expect("no panic under it").entry(shape).or_insert_with(|| statement.clone());
    }
}

/// Executes every statement the store has.
async fn exercise(home: &Home) {
    let (store, _, _) = home.lead().await;
    let request =
        |n: u64| RequestRecord { id: uuid::Uuid::from_u128(n.into()), digest: [0; 16], appliance: id(1), time: at(n) };
    // One is too old to be kept, the other is what the table is filled from.
    let recent = RequestRecord { time: SystemTime::now(), ..request(2) };
    let history = (1..=9).flat_map(|n| {
        [
            StoreWrite::PutRebalance(rebalance(n)),
            StoreWrite::Moves(vec![moved(n, 1, None)]),
            StoreWrite::Members(rebalance(n).id, vec![member_then()]),
            StoreWrite::Event(event(n)),
            StoreWrite::Runs(vec![run(n)]),
        ]
    });
    let appliances = (1..=3).map(|n| StoreWrite::PutAppliance(record(n, &format!("a{n}")).into()));
    let members = [StoreWrite::PutMember(member(1)), StoreWrite::RemoveMember(worker(2), member(2).incarnation)];
    let grants = StoreWrite::Grants(vec![
        GrantOp::Grant { appliance: id(1), to: granted(1, 1), site: None, fence_delay: Duration::ZERO },
        GrantOp::Free { appliance: id(2), progress: progress(), fence_delay: Duration::ZERO },
        GrantOp::Remove { appliance: id(3) },
    ]);
    let pause = PauseRecord { reason: "work".into(), by: "admin".into(), since: at(3), moves_only: true, aborts: None };
    store.submit(vec![StoreWrite::Pause(Some(pause))]).await.expect("stored");
    store.submit(vec![StoreWrite::Pause(None)]).await.expect("stored");
    let rolled = rollout(2_500);
    store.submit(vec![put_rollout(&rolled, 0..3)]).await.expect("stored");
    store.submit(vec![StoreWrite::RemoveRollout(rolled.record.id)]).await.expect("stored");
    let clear = StoreWrite::Mode(ModeOp::Clear(ModeId::new(2)));
    store.submit(vec![StoreWrite::Mode(ModeOp::Set(mode(2)))]).await.expect("stored");
    store.submit(vec![clear]).await.expect("stored");
    store.submit(orders(true).into_iter().map(StoreWrite::Order).collect()).await.expect("stored");
    store.submit(orders(false).into_iter().map(StoreWrite::Order).collect()).await.expect("stored");
    let writes = history.chain(appliances).chain(members).chain([
        grants,
        StoreWrite::Request(request(1)),
        StoreWrite::Request(recent),
    ]);
    store.submit(writes.collect()).await.expect("stored");
    store.submit_statuses([(id(1), status(), at(4))]);
    store.submit_seen(worker(1), at(5));
    store.prune().await.expect("pruned");
    store.events(10).await.expect("read");
    let filter = RunFilter { appliance: Some(id(1)), ..RunFilter::default() };
    store.runs(&filter, AuditPart::Before(None), 10).await.expect("read");
    store.runs(&RunFilter::default(), AuditPart::After(2), 10).await.expect("read");
    store.rebalances(Some(rebalance(5).id), 10).await.expect("read");
    store.rebalance(rebalance(9).id).await.expect("read");
    assert_eq!(store.members_of(rebalance(9).id).await, Ok(vec![member_then()]));
    store.moves_of(id(1), 10).await.expect("read");
    store.dump(std::io::sink()).await.expect("written");
    // A snapshot, and the deletion of what it covers.
    let done = |home: &Home| home.executed_any("DELETE grants");
    for n in 1..10_000 {
        if done(home) {
            break;
        }
        let op = GrantOp::Grant { appliance: id(n), to: granted(1, 1), site: None, fence_delay: Duration::ZERO };
        store.submit(vec![StoreWrite::Grants(vec![op])]).await.expect("stored");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    store.close().await;
    let (store, _, _) = home.lead().await;
    store.close().await;
}

impl Home {
    fn executed_any(&self, begins: &str) -> bool {
        self.faults.executed.lock().expect("no panic under it").keys().any(|shape| shape.starts_with(begins))
    }
}

/// Fills the tables that grow with the fleet, each from its first row.
fn fill(backend: DbBackend, rows: u64) -> Vec<String> {
    let (numbers, uuid, text): (String, &str, fn(&str) -> String) = match backend {
        DbBackend::Postgres => (
            format!("(SELECT n FROM generate_series(100, {rows} + 99) AS g(n)) AS numbers"),
            "gen_random_uuid()",
            |n| format!("CAST({n} AS varchar)"),
        ),
        DbBackend::MySql => {
            (format!("(SELECT seq AS n FROM seq_100_to_{}) AS numbers", rows + 99), "UNHEX(MD5(n))", |n| {
                format!("CAST({n} AS char)")
            })
        }
        _ => (
            format!(
                "(WITH RECURSIVE r(n) AS (SELECT 100 UNION ALL SELECT n + 1 FROM r WHERE n < {rows} + 99) SELECT n FROM r) \
                 AS numbers"
            ),
            "randomblob(16)",
            |n| format!("CAST({n} AS text)"),
        ),
    };
    let copy = |table: &str, columns: &[(&str, &str)]| {
        let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
        let values: Vec<_> = columns.iter().map(|(_, value)| *value).collect();
        let one = format!("(SELECT * FROM {table} LIMIT 1) AS one");
        format!(
            "INSERT INTO {table} ({}) SELECT {} FROM {one} CROSS JOIN {numbers}",
            names.join(", "),
            values.join(", ")
        )
    };
    let name = text("n");
    vec![
        copy("appliances", &[
            ("id", uuid), ("tenant", "tenant"), ("name", &name), ("driver", "driver"), ("placement_key", &name),
            ("labels", "labels"), ("spec", "spec"), ("generation", "generation"), ("written_term", "written_term"),
            ("revision", "revision"), ("deleting", "deleting"), ("managed_by", "managed_by"),
            ("created_ns", "created_ns"), ("updated_ns", "updated_ns"),
        ]),
        "INSERT INTO statuses (appliance, phase, observed_generation, failed_boots, instances, last_error, time_ns) \
         SELECT id, phase, 1, 0, instances, last_error, time_ns FROM appliances CROSS JOIN (SELECT phase, instances, \
         last_error, time_ns FROM statuses LIMIT 1) AS one WHERE id NOT IN (SELECT appliance FROM statuses)"
            .to_owned(),
        "INSERT INTO progress (appliance, progress, hold_ns) SELECT id, one.progress, 0 FROM appliances CROSS JOIN (SELECT \
         progress FROM progress LIMIT 1) AS one WHERE id NOT IN (SELECT appliance FROM progress)"
            .to_owned(),
        copy("requests", &[("id", uuid), ("digest", "digest"), ("appliance", "appliance"), ("time_ns", "time_ns + n")]),
        copy("events", &[
            ("id", "id + n"), ("time_ns", "time_ns"), ("actor", "actor"), ("action", "action"), ("subject", "subject"),
            ("detail", "detail"),
        ]),
        copy("runs", &[
            ("id", "id + n"), ("run", uuid), ("appliance", uuid), ("tenant", "tenant"), ("name", "name"),
            ("generation", "generation"), ("worker", "worker"), ("cause", "cause"), ("outcome", "outcome"),
            ("error", "error"), ("began_ns", "began_ns"), ("finished_ns", "finished_ns"), ("detail", "detail"),
        ]),
    ]
    .into_iter()
    .chain([("rebalances", "cause, trace_id, started_ns, ended_ns, outcome, moves, done")].map(|(table, rest)| {
        format!("INSERT INTO {table} (term, number, {rest}) SELECT 5, n, {rest} FROM (SELECT * FROM {table} LIMIT 1) AS one \
                 CROSS JOIN {numbers} WHERE n < 20000")
    }))
    .chain([format!(
        "INSERT INTO moves (id, term, number, data) SELECT id + n, 5, n, data FROM (SELECT * FROM moves LIMIT 1) AS one CROSS \
         JOIN {numbers} WHERE n < 20000"
    )])
    .collect()
}

/// Tables whose whole contents a statement may not read unless its entry says so. The others have few rows.
const LARGE: [&str; 8] = ["appliances", "statuses", "progress", "requests", "events", "runs", "rebalances", "moves"];

/// What a plan does that takes as long as there are rows: empty when it finds them through an index.
async fn scans(db: &DatabaseConnection, statement: &Statement) -> Vec<String> {
    let backend = db.get_database_backend();
    let explain = if backend == DbBackend::Sqlite { "EXPLAIN QUERY PLAN" } else { "EXPLAIN" };
    let sql = format!("{explain} {statement}");
    let rows = db.query_all_raw(Statement::from_string(backend, sql.clone())).await;
    let rows = rows.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let column = |row: &sea_orm::QueryResult, name: &str| -> String {
        row.try_get::<Option<String>>("", name).ok().flatten().unwrap_or_default()
    };
    let is_large = |text: &str| {
        LARGE.iter().any(|table| text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == *table))
    };
    let lines: Vec<String> = match backend {
        DbBackend::Postgres => rows.iter().map(|row| column(row, "QUERY PLAN")).collect(),
        DbBackend::MySql => rows
            .iter()
            .map(|row| {
                format!(
                    "{} {} key={} {}",
                    column(row, "type"),
                    column(row, "table"),
                    column(row, "key"),
                    column(row, "Extra")
                )
            })
            .collect(),
        _ => rows.iter().map(|row| column(row, "detail")).collect(),
    };
    // In the order of an index or of the rows themselves it ends with the limit.
    let limited = statement.sql.contains("LIMIT");
    lines
        .into_iter()
        .filter(|line| {
            let scan = match backend {
                DbBackend::Postgres => line.contains("Seq Scan on") || line.contains("SubPlan"),
                DbBackend::MySql => line.starts_with("ALL ") || (line.starts_with("index ") && !limited),
                _ => line.starts_with("SCAN ") && !limited,
            };
            scan && (is_large(line) || line.contains("SubPlan"))
        })
        .collect()
}

async fn every_statement_finds_its_rows(database: DatabaseKind) {
    let rows: u64 = std::env::var("RUG_PLAN_ROWS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let mut home = Home::new(database).await;
    home.config.snapshot_after = 500;
    home.config.keep_rebalances = 3;
    home.config.keep_events = 3;
    home.config.keep_runs = 3;
    home.config.statement_timeout = Duration::from_secs(120);
    exercise(&home).await;
    let executed = home.faults.executed.lock().expect("no panic under it").clone();
    for (begins, _) in STATEMENTS.iter().filter(|(begins, _)| !begins.contains("LOCK")) {
        assert!(
            executed.keys().any(|shape| access(shape) == access(begins) && shape.starts_with(begins)),
            "not executed: {begins}"
        );
    }
    let db = home.raw().await;
    let backend = db.get_database_backend();
    let started = std::time::Instant::now();
    for sql in fill(backend, rows) {
        db.execute_unprepared(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
    let analyze: &[&str] = match backend {
        DbBackend::MySql => {
            &["ANALYZE TABLE appliances, statuses, progress, requests, events, runs, rebalances, moves, grants"]
        }
        DbBackend::Postgres => &["ANALYZE"],
        _ => &["ANALYZE"],
    };
    for sql in analyze {
        db.query_all_raw(Statement::from_string(backend, *sql)).await.expect("analysed");
    }
    println!("{database:?}: {rows} rows in {:.1?}", started.elapsed());
    let mut wrong = Vec::new();
    // MariaDB calls the table that rows are added to a scan of all.
    for (shape, statement) in executed.iter().filter(|(shape, _)| !shape.starts_with("INSERT")) {
        let found = scans(&db, statement).await;
        match access(shape).expect("noted") {
            Index if !found.is_empty() => wrong.push(format!("{shape}\n    {}", found.join("\n    "))),
            // Once for each row of another table.
            Scan(reason)
                if found.iter().any(|line| {
                    let inner = ["ALL appliances", "SCAN appliances"].iter().any(|scan| line.starts_with(scan));
                    line.contains("SubPlan") || (shape.starts_with("DELETE") && inner)
                }) =>
            {
                wrong.push(format!("{shape} ({reason}): {found:?}"));
            }
            Index | Scan(_) => {}
        }
    }
    assert!(wrong.is_empty(), "with {rows} rows these read whole tables:\n{}", wrong.join("\n"));
    db.close().await.expect("nothing is under way");
    let started = std::time::Instant::now();
    let (store, _, loaded) = home.lead().await;
    println!("{database:?}: a term with {} appliances began in {:.1?}", loaded.records.len(), started.elapsed());
    assert!(loaded.records.len() as u64 >= rows);
    store.close().await;
}

on_every_database!(every_statement_finds_its_rows);
