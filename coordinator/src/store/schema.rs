//! The schema and its migrations. A migration that was released is never edited: the next change is the next one.
//!
//! Each runs in a transaction where the database can do that for DDL, so that an interrupted start leaves nothing half
//! made. Byte strings and long texts get the types of MariaDB that hold more than 64 KiB.

use sea_orm::{DbBackend, EntityTrait, Set};
use sea_orm_migration::prelude::*;

use super::entities::leadership;

/// Every migration, oldest first.
pub(super) struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(First)]
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
        Some(true)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        for table in tables(backend) {
            manager.create_table(table).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        let row = leadership::ActiveModel {
            id: Set(leadership::ROW),
            term: Set(0),
            batch: Set(0),
            coordinator: Set(String::new()),
            since_ns: Set(0),
        };
        leadership::Entity::insert(row).exec_without_returning(manager.get_connection()).await?;
        Ok(())
    }
}

fn tables(backend: DbBackend) -> Vec<TableCreateStatement> {
    let bytes = || if backend == DbBackend::MySql { ColumnType::custom("longblob") } else { ColumnType::Blob };
    let long = || if backend == DbBackend::MySql { ColumnType::custom("longtext") } else { ColumnType::Text };
    let name = || ColumnType::string(Some(128));
    vec![
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
    ]
}

/// Columns that may be NULL.
const NULLABLE: [&str; 2] = ["last_error", "ended_ns"];

/// A table. With no `key` named, its column `id` numbers the rows by itself.
fn table<const N: usize>(
    name: &'static str,
    key: &[&'static str],
    columns: [(&'static str, ColumnType); N],
) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(Alias::new(name));
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
    table
}

fn indexes() -> Vec<IndexCreateStatement> {
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
        names,
        index("moves_rebalance", "moves", &["term", "number"]),
        index("requests_time", "requests", &["time_ns"]),
    ]
}
