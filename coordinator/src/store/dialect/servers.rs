//! PostgreSQL and MariaDB (or MySQL): sessions as the chain needs them, see [`super`], and checks of a server that is
//! about to be trusted.
//!
//! Pools are created here rather than by sea-orm's `Database::connect`, which would write the URL with its password
//! into traces. The writer has one connection, checked with a round trip after it was idle for a while; readers have a
//! few read-only ones. A first connection is opened outside the pool, because a pool hides why it cannot connect.

use std::time::Duration;

use sea_orm::sqlx::mysql::{MySql, MySqlConnectOptions, MySqlPoolOptions};
use sea_orm::sqlx::pool::PoolOptions;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions, Postgres};
use sea_orm::sqlx::{self, AssertSqlSafe, Connection, Executor, Row};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, RuntimeErr, SqlxError, SqlxMySqlConnector,
    SqlxPostgresConnector, Statement,
};

use super::{DatabaseTarget, READERS, Transaction};

/// A connection that was idle for longer is checked before it is used.
const IDLE_CHECK: Duration = Duration::from_secs(1);
/// Timeout of that check, after which a new connection is opened.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Key of PostgreSQL's advisory lock around migrations: "rug" and a number in ASCII.
const MIGRATION_LOCK: i64 = 0x7275_6701;

fn pool<DB: sqlx::Database>(target: &DatabaseTarget, connections: u32) -> PoolOptions<DB> {
    PoolOptions::<DB>::new()
        .max_connections(connections)
        .min_connections(0)
        .acquire_timeout(target.statement_timeout())
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for < IDLE_CHECK {
                    return Ok(true);
                }
                Ok(matches!(tokio::time::timeout(CHECK_TIMEOUT, connection.ping()).await, Ok(Ok(()))))
            })
        })
}

fn connecting(error: SqlxError) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

fn unfit(reason: String) -> DbErr {
    connecting(SqlxError::Configuration(reason.into()))
}

/// Whole seconds, at least one, as these servers want them.
fn seconds(time: Duration) -> u64 {
    time.as_secs().max(1)
}

// ------------------------------------------------------------------------------------------------------- PostgreSQL

fn postgres_session(target: &DatabaseTarget, options: &PgConnectOptions) -> PgConnectOptions {
    let timeout = target.statement_timeout();
    let millis = |time: Duration| time.as_millis().to_string();
    options.clone().options([
        ("default_transaction_isolation", "read committed".to_owned()),
        ("lock_timeout", millis(timeout / 2)),
        ("idle_in_transaction_session_timeout", millis(timeout)),
        // Lets the server detect clients that vanished without closing the connection.
        ("tcp_keepalives_idle", "10".to_owned()),
        ("tcp_keepalives_interval", "5".to_owned()),
        ("tcp_keepalives_count", "3".to_owned()),
    ])
}

pub(super) async fn postgres_writer(
    target: &DatabaseTarget,
    options: &PgConnectOptions,
) -> Result<DatabaseConnection, DbErr> {
    use sqlx::ConnectOptions;

    let options = postgres_session(target, options).disable_statement_logging();
    let mut first = options.connect().await.map_err(connecting)?;
    let row = first
        .fetch_one("SELECT current_setting('server_encoding'), current_setting('synchronous_commit')")
        .await
        .map_err(connecting)?;
    let encoding: String = row.try_get(0).map_err(connecting)?;
    let commits: String = row.try_get(1).map_err(connecting)?;
    let _ = first.close().await;
    if encoding != "UTF8" {
        return Err(unfit(format!("its encoding is {encoding}; the store needs UTF8")));
    }
    // Acknowledged writes have to survive a crash of the server. A stricter setting is kept.
    let options = if commits == "off" { options.options([("synchronous_commit", "on")]) } else { options };
    let pool: PgPoolOptions = pool::<Postgres>(target, 1);
    let pool = pool.connect_with(options).await.map_err(connecting)?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

pub(super) fn postgres_readers(target: &DatabaseTarget, options: &PgConnectOptions) -> DatabaseConnection {
    use sqlx::ConnectOptions;

    let timeout = target.statement_timeout().as_millis().to_string();
    let options = postgres_session(target, options)
        .options([("default_transaction_read_only", "on".to_owned()), ("statement_timeout", timeout)])
        .disable_statement_logging();
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool::<Postgres>(target, READERS).connect_lazy_with(options))
}

pub(super) fn postgres_idle(time: Duration) -> String {
    format!("SET LOCAL idle_in_transaction_session_timeout = {}", time.as_millis())
}

pub(super) async fn postgres_lock_migrations(tx: &Transaction) -> Result<(), DbErr> {
    // Ends with the transaction; waits as long as `lock_timeout` says.
    tx.execute_unprepared(&format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")).await.map(drop)
}

// ---------------------------------------------------------------------------------------------------------- MariaDB

/// `/*M! ... */` is read by MariaDB alone, `/*!80000 ... */` by MySQL alone, which has no limit for idle transactions
/// but one for idle connections.
fn mysql_session(target: &DatabaseTarget) -> [String; 2] {
    let (lock, idle) = (seconds(target.statement_timeout() / 2), seconds(target.statement_timeout()));
    [
        format!(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ENGINE_SUBSTITUTION', \
             SESSION innodb_lock_wait_timeout = {lock}, SESSION lock_wait_timeout = {lock} \
             /*M!100300 , SESSION idle_transaction_timeout = {idle} */ /*!80000 , SESSION wait_timeout = {} */",
            idle.max(60)
        ),
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED".to_owned(),
    ]
}

fn mysql_pool(target: &DatabaseTarget, connections: u32, statements: Vec<String>) -> MySqlPoolOptions {
    let statements = std::sync::Arc::new(statements);
    pool::<MySql>(target, connections).after_connect(move |connection, _| {
        let statements = statements.clone();
        Box::pin(async move {
            for statement in statements.iter() {
                connection.execute(AssertSqlSafe(statement.clone())).await?;
            }
            Ok(())
        })
    })
}

pub(super) async fn mysql_writer(
    target: &DatabaseTarget,
    options: &MySqlConnectOptions,
) -> Result<DatabaseConnection, DbErr> {
    use sqlx::ConnectOptions;

    let options = options.clone().charset("utf8mb4").disable_statement_logging();
    let mut first = options.connect().await.map_err(connecting)?;
    let row = first.fetch_one("SELECT CAST(@@innodb_flush_log_at_trx_commit AS SIGNED)").await.map_err(connecting)?;
    let flush: i64 = row.try_get(0).map_err(connecting)?;
    let _ = first.close().await;
    if flush != 1 {
        tracing::warn!(
            store = %target.name(),
            "innodb_flush_log_at_trx_commit is {flush}: a crash of the server can lose what was acknowledged; set it to 1"
        );
    }
    let pool = mysql_pool(target, 1, mysql_session(target).into());
    let pool = pool.connect_with(options).await.map_err(connecting)?;
    Ok(SqlxMySqlConnector::from_sqlx_mysql_pool(pool))
}

pub(super) fn mysql_readers(target: &DatabaseTarget, options: &MySqlConnectOptions) -> DatabaseConnection {
    use sqlx::ConnectOptions;

    let options = options.clone().charset("utf8mb4").disable_statement_logging();
    let mut statements: Vec<String> = mysql_session(target).into();
    let timeout = seconds(target.statement_timeout());
    statements.push("SET SESSION TRANSACTION READ ONLY".to_owned());
    statements.push(format!(
        "SET SESSION sql_auto_is_null = 0 /*M!100100 , SESSION max_statement_time = {timeout} */ \
         /*!80000 , SESSION max_execution_time = {} */",
        timeout * 1_000
    ));
    let pool = mysql_pool(target, READERS, statements);
    SqlxMySqlConnector::from_sqlx_mysql_pool(pool.connect_lazy_with(options))
}

pub(super) fn mysql_idle(time: Duration) -> String {
    // The first assignment gives MySQL, which reads nothing of the second, something to do.
    format!("SET SESSION sql_auto_is_null = 0 /*M!100300 , SESSION idle_transaction_timeout = {} */", seconds(time))
}

pub(super) async fn mysql_lock_migrations(tx: &Transaction, wait: Duration) -> Result<(), DbErr> {
    let wait = seconds(wait);
    let sql = format!("SELECT CAST(GET_LOCK(CONCAT('rug-', SHA1(DATABASE())), {wait}) AS SIGNED) AS taken");
    let row = tx.query_one_raw(Statement::from_string(DbBackend::MySql, sql)).await?;
    let taken: Option<i64> = row.map(|row| row.try_get("", "taken")).transpose()?.flatten();
    match taken {
        Some(1) => Ok(()),
        _ => Err(super::super::timed::out_of_time()),
    }
}

pub(super) async fn mysql_unlock_migrations(tx: &Transaction) -> Result<(), DbErr> {
    let sql = "SELECT CAST(RELEASE_LOCK(CONCAT('rug-', SHA1(DATABASE()))) AS SIGNED) AS released";
    tx.query_one_raw(Statement::from_string(DbBackend::MySql, sql)).await.map(drop)
}
