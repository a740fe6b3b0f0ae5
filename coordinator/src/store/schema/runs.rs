//! What workers did about appliances.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

use super::{mysql_options, table};

/// The table of runs.
pub(super) struct Runs;

impl MigrationName for Runs {
    fn name(&self) -> &'static str {
        "m0010_runs"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Runs {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mysql = manager.get_database_backend() == DbBackend::MySql;
        let long = || if mysql { ColumnType::custom("longtext") } else { ColumnType::Text };
        let name = || ColumnType::string(Some(128));
        let columns = [
            ("id", ColumnType::BigInteger),
            ("run", ColumnType::Uuid),
            ("appliance", ColumnType::Uuid),
            ("tenant", name()),
            ("name", name()),
            ("generation", ColumnType::BigInteger),
            ("worker", name()),
            ("cause", name()),
            ("outcome", ColumnType::string(Some(32))),
            ("error", long()),
            ("began_ns", ColumnType::BigInteger),
            ("finished_ns", ColumnType::BigInteger),
            ("detail", long()),
        ];
        let (_, mut statement) = table("runs", &[], columns);
        let index = |name: &'static str, column: &'static str| {
            Index::create().name(name).table(Alias::new("runs")).col(Alias::new(column)).to_owned()
        };
        let mut indexes = [index("runs_run", "run"), index("runs_appliance", "appliance")];
        indexes[0].unique();
        if mysql {
            mysql_options(&mut statement);
            // MySQL cannot create an index only if it is missing, but it can create it with its table.
            for index in &mut indexes {
                statement.index(index);
            }
        }
        manager.create_table(statement).await?;
        if !mysql {
            for mut index in indexes {
                manager.create_index(index.if_not_exists().to_owned()).await?;
            }
        }
        Ok(())
    }
}
