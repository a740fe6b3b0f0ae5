//! The schema and its migrations. A released migration is never edited; changes are new migrations.
//!
//! One process migrates at a time, under a lock that is waited for in bounded time, so that two coordinators may start
//! at once. SQLite and PostgreSQL migrate in one transaction. MariaDB commits at each statement that changes the
//! schema; an interrupted migration is continued there, so every statement must be repeatable. On MariaDB byte strings
//! and long texts get the types that hold more than 64 KiB, and names compare byte by byte as on the others.

mod budgets;
mod orders;
mod rollouts;
mod runs;

use std::time::Duration;

use sea_orm::{DatabaseConnection, DbBackend, EntityTrait, Set};
use sea_orm_migration::prelude::*;

use super::dialect::{self, DatabaseTarget};
use super::entities::{clusters, leadership};
use super::error::Error;

/// Deadline of all migrations of one start.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(300);

/// Every migration, oldest first.
pub(super) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(First),
            Box::new(WrittenTerm),
            Box::new(ManagedBy),
            Box::new(Pauses),
            Box::new(ClusterId),
            Box::new(LastEnd),
            Box::new(DebugModes),
            Box::new(orders::Orders),
            Box::new(rollouts::Rollouts),
            Box::new(runs::Runs),
            Box::new(budgets::Budgets),
        ]
    }
}

/// The tables of the first complete version.
struct First;

impl MigrationName for First {
    fn name(&self) -> &'static str {
        "m0001_first"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for First {
    fn use_transaction(&self) -> Option<bool> {
        // All of them run in the transaction of `migrate`; a nested one would be lost on MariaDB.
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        for table in tables(backend) {
            manager.create_table(table).await?;
        }
        if backend != DbBackend::MySql {
            for (_, index) in indexes() {
                manager.create_index(index).await?;
            }
        }
        let row = leadership::ActiveModel {
            id: Set(leadership::ROW),
            term: Set(0),
            batch: Set(0),
            coordinator: Set(String::new()),
            since_ns: Set(0),
        };
        let db = manager.get_connection();
        if leadership::Entity::find_by_id(leadership::ROW).one(db).await?.is_none() {
            leadership::Entity::insert(row).exec_without_returning(db).await?;
        }
        Ok(())
    }
}

/// The term each appliance's generation was written in; 0 where that is not known.
struct WrittenTerm;

impl MigrationName for WrittenTerm {
    fn name(&self) -> &'static str {
        "m0002_written_term"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for WrittenTerm {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut column = ColumnDef::new_with_type(Alias::new("written_term"), ColumnType::BigInteger);
        column.not_null().default(0);
        add_column(manager, "appliances", "written_term", column).await
    }
}

/// The source that manages each appliance; empty where clients do.
struct ManagedBy;

impl MigrationName for ManagedBy {
    fn name(&self) -> &'static str {
        "m0003_managed_by"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for ManagedBy {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mut column = ColumnDef::new_with_type(Alias::new("managed_by"), ColumnType::string(Some(128)));
        column.not_null().default("");
        add_column(manager, "appliances", "managed_by", column).await
    }
}

/// An operator's stop of all planning outlives the term.
struct Pauses;

impl MigrationName for Pauses {
    fn name(&self) -> &'static str {
        "m0004_pauses"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Pauses {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let long = || if backend == DbBackend::MySql { ColumnType::custom("longtext") } else { ColumnType::Text };
        let columns =
            [("id", ColumnType::Integer), ("reason", long()), ("actor", long()), ("since_ns", ColumnType::BigInteger)];
        let (_, mut pauses) = table("pauses", &["id"], columns);
        if backend == DbBackend::MySql {
            mysql_options(&mut pauses);
        }
        manager.create_table(pauses).await
    }
}

/// The id of the cluster, made here, once.
struct ClusterId;

impl MigrationName for ClusterId {
    fn name(&self) -> &'static str {
        "m0005_cluster_id"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for ClusterId {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let columns = [("id", ColumnType::Integer), ("cluster", ColumnType::Uuid)];
        let (_, mut statement) = table("clusters", &["id"], columns);
        if backend == DbBackend::MySql {
            mysql_options(&mut statement);
        }
        manager.create_table(statement).await?;
        let db = manager.get_connection();
        // On MariaDB the table may be left of a migration that was interrupted.
        if clusters::Entity::find_by_id(clusters::ROW).one(db).await?.is_none() {
            let row = clusters::ActiveModel { id: Set(clusters::ROW), cluster: Set(uuid::Uuid::new_v4()) };
            clusters::Entity::insert(row).exec_without_returning(db).await?;
        }
        Ok(())
    }
}

/// How the last instance of each appliance ended that did so by itself.
struct LastEnd;

impl MigrationName for LastEnd {
    fn name(&self) -> &'static str {
        "m0006_last_end"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for LastEnd {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mysql = manager.get_database_backend() == DbBackend::MySql;
        let long = if mysql { ColumnType::custom("longtext") } else { ColumnType::Text };
        let column = ColumnDef::new_with_type(Alias::new("last_end"), long);
        add_column(manager, "statuses", "last_end", column).await
    }
}

/// Rules of debug modes.
struct DebugModes;

impl MigrationName for DebugModes {
    fn name(&self) -> &'static str {
        "m0007_debug_modes"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for DebugModes {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mysql = manager.get_database_backend() == DbBackend::MySql;
        let long = if mysql { ColumnType::custom("longtext") } else { ColumnType::Text };
        let columns = [("id", ColumnType::string(Some(32))), ("rule", long)];
        let (_, mut modes) = table("debug_modes", &["id"], columns);
        if mysql {
            mysql_options(&mut modes);
        }
        manager.create_table(modes).await
    }
}

fn mysql_options(statement: &mut TableCreateStatement) {
    statement.engine("InnoDB").character_set("utf8mb4").collate("utf8mb4_bin");
}

async fn add_column(
    manager: &SchemaManager<'_>,
    table: &'static str,
    name: &str,
    column: ColumnDef,
) -> Result<(), DbErr> {
    // MySQL, unlike the others, has no syntax for adding a column only if it is missing.
    if manager.has_column(table, name).await? {
        return Ok(());
    }
    manager.alter_table(Table::alter().table(Alias::new(table)).add_column(column).to_owned()).await
}

/// Migrates the schema, unless a later version of Rug has changed it.
///
/// # Errors
/// [`Error::Open`] when the database cannot be used or is migrated by another process for too long,
/// [`Error::SchemaTooNew`], [`Error::Database`].
pub(super) async fn migrate(db: &DatabaseConnection, target: &DatabaseTarget) -> Result<(), Error> {
    let failed = |e: DbErr| match dialect::cause(&e) {
        Some(cause) => Error::Open { path: target.name().to_owned(), cause },
        None => Error::Database { doing: "bring the schema of the store up to date", reason: e.to_string() },
    };
    let tx = target.begin(db, target.limits(MIGRATION_TIMEOUT)).await.map_err(failed)?;
    dialect::lock_migrations(&tx, target).await.map_err(failed)?;
    let work = async {
        Migrator::install(&tx.inner).await.map_err(failed)?;
        let known = Migrator::migrations();
        let applied = Migrator::get_migration_models(&tx.inner).await.map_err(failed)?;
        if let Some(unknown) = applied.into_iter().find(|a| known.iter().all(|k| k.name() != a.version)) {
            return Err(Error::SchemaTooNew { path: target.name().to_owned(), migration: unknown.version });
        }
        Migrator::up(&tx.inner, None).await.map_err(failed)
    };
    let result = tokio::time::timeout(MIGRATION_TIMEOUT, work).await;
    match result.unwrap_or_else(|_| Err(failed(super::timed::out_of_time()))) {
        Ok(()) => {
            dialect::unlock_migrations(&tx, target).await.map_err(failed)?;
            dialect::commit(tx).await.map_err(failed)
        }
        Err(error) => {
            // The caller closes the connection; this only frees the lock sooner.
            let _ = dialect::unlock_migrations(&tx, target).await;
            let _ = dialect::rollback(tx).await;
            Err(error)
        }
    }
}

fn tables(backend: DbBackend) -> Vec<TableCreateStatement> {
    let bytes = || if backend == DbBackend::MySql { ColumnType::custom("longblob") } else { ColumnType::Blob };
    let long = || if backend == DbBackend::MySql { ColumnType::custom("longtext") } else { ColumnType::Text };
    let name = || ColumnType::string(Some(128));
    let mut tables = vec![
        table(
            "leadership",
            &["id"],
            [
                ("id", ColumnType::Integer),
                ("term", ColumnType::BigInteger),
                ("batch", ColumnType::BigInteger),
                ("coordinator", name()),
                ("since_ns", ColumnType::BigInteger),
            ],
        ),
        table(
            "appliances",
            &["id"],
            [
                ("id", ColumnType::Uuid),
                ("tenant", name()),
                ("name", name()),
                ("driver", name()),
                ("placement_key", long()),
                ("labels", long()),
                ("spec", long()),
                ("generation", ColumnType::BigInteger),
                ("revision", ColumnType::BigInteger),
                ("deleting", ColumnType::Boolean),
                ("created_ns", ColumnType::BigInteger),
                ("updated_ns", ColumnType::BigInteger),
            ],
        ),
        table(
            "statuses",
            &["appliance"],
            [
                ("appliance", ColumnType::Uuid),
                ("phase", name()),
                ("observed_generation", ColumnType::BigInteger),
                ("failed_boots", ColumnType::BigInteger),
                ("instances", long()),
                ("last_error", long()),
                ("time_ns", ColumnType::BigInteger),
            ],
        ),
        table(
            "progress",
            &["appliance"],
            [("appliance", ColumnType::Uuid), ("progress", long()), ("hold_ns", ColumnType::BigInteger)],
        ),
        table(
            "grants",
            &["term", "batch", "part"],
            [
                ("term", ColumnType::BigInteger),
                ("batch", ColumnType::BigInteger),
                ("part", ColumnType::Integer),
                ("format", ColumnType::Integer),
                ("data", bytes()),
            ],
        ),
        table(
            "members",
            &["worker", "incarnation"],
            [("worker", name()), ("incarnation", ColumnType::string(Some(32))), ("profile", long())],
        ),
        table("workers", &["worker"], [("worker", name()), ("seen_ns", ColumnType::BigInteger)]),
        table(
            "rebalances",
            &["term", "number"],
            [
                ("term", ColumnType::BigInteger),
                ("number", ColumnType::BigInteger),
                ("cause", long()),
                ("trace_id", name()),
                ("started_ns", ColumnType::BigInteger),
                ("ended_ns", ColumnType::BigInteger),
                ("outcome", name()),
                ("moves", ColumnType::BigInteger),
                ("done", ColumnType::BigInteger),
            ],
        ),
        table(
            "moves",
            &[],
            [
                ("id", ColumnType::BigInteger),
                ("term", ColumnType::BigInteger),
                ("number", ColumnType::BigInteger),
                ("data", bytes()),
            ],
        ),
        table(
            "events",
            &[],
            [
                ("id", ColumnType::BigInteger),
                ("time_ns", ColumnType::BigInteger),
                ("actor", long()),
                ("action", long()),
                ("subject", long()),
                ("detail", long()),
            ],
        ),
        table(
            "requests",
            &["id"],
            [
                ("id", ColumnType::Uuid),
                ("digest", bytes()),
                ("appliance", ColumnType::Uuid),
                ("time_ns", ColumnType::BigInteger),
            ],
        ),
    ];
    if backend == DbBackend::MySql {
        for (table, statement) in &mut tables {
            mysql_options(statement);
            // MySQL cannot create an index only if it is missing, but it can create it with its table.
            for (_, mut index) in indexes().into_iter().filter(|(of, _)| of == table) {
                statement.index(&mut index);
            }
        }
    }
    tables.into_iter().map(|(_, statement)| statement).collect()
}

/// Columns that may be NULL.
const NULLABLE: [&str; 2] = ["last_error", "ended_ns"];

/// A table. Without a `key`, its column `id` is an automatic row number.
fn table<const N: usize>(
    name: &'static str,
    key: &[&'static str],
    columns: [(&'static str, ColumnType); N],
) -> (&'static str, TableCreateStatement) {
    let mut table = Table::create();
    table.table(Alias::new(name)).if_not_exists();
    for (column, kind) in columns {
        let mut definition = ColumnDef::new_with_type(Alias::new(column), kind);
        if !NULLABLE.contains(&column) {
            definition.not_null();
        }
        if key.is_empty() && column == "id" {
            definition.auto_increment().primary_key();
        }
        table.col(&mut definition);
    }
    if !key.is_empty() {
        let mut index = Index::create();
        for column in key {
            index.col(Alias::new(*column));
        }
        table.primary_key(&mut index);
    }
    (name, table)
}

/// Indexes, with the table of each.
fn indexes() -> Vec<(&'static str, IndexCreateStatement)> {
    let index = |name: &'static str, table: &'static str, columns: &[&'static str]| {
        let mut index = Index::create();
        index.name(name).table(Alias::new(table));
        for column in columns {
            index.col(Alias::new(*column));
        }
        index
    };
    let mut names = index("appliances_tenant_name", "appliances", &["tenant", "name"]);
    names.unique();
    vec![
        ("appliances", names),
        ("moves", index("moves_rebalance", "moves", &["term", "number"])),
        ("requests", index("requests_time", "requests", &["time_ns"])),
    ]
}
