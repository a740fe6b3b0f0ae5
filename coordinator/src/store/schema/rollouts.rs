//! Rollouts, and how far each of their appliances is.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

use super::{mysql_options, table};

/// The tables of rollouts and of their items.
pub(super) struct Rollouts;

impl MigrationName for Rollouts {
    fn name(&self) -> &'static str {
        "m0009_rollouts"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Rollouts {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mysql = manager.get_database_backend() == DbBackend::MySql;
        let long = if mysql { ColumnType::custom("longtext") } else { ColumnType::Text };
        let bytes = if mysql { ColumnType::custom("longblob") } else { ColumnType::Blob };
        let id = || ColumnType::string(Some(32));
        let (_, rollouts) = table("rollouts", &["id"], [("id", id()), ("record", long)]);
        let items = [("rollout", id()), ("part", ColumnType::Integer), ("data", bytes)];
        let (_, items) = table("rollout_items", &["rollout", "part"], items);
        for mut statement in [rollouts, items] {
            if mysql {
                mysql_options(&mut statement);
            }
            manager.create_table(statement).await?;
        }
        Ok(())
    }
}
