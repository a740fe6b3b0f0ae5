//! Budgets of disruption, pauses of moves alone, and who was there when rebalances began.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

use super::{add_column, mysql_options, table};

/// The tables of budgets and of members, and what a pause of moves adds to pauses.
pub(super) struct Budgets;

impl MigrationName for Budgets {
    fn name(&self) -> &'static str {
        "m0011_budgets"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Budgets {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mysql = manager.get_database_backend() == DbBackend::MySql;
        let long = || if mysql { ColumnType::custom("longtext") } else { ColumnType::Text };
        let columns = [
            ("name", ColumnType::string(Some(128))),
            ("rule", long()),
            ("reason", long()),
            ("actor", long()),
            ("since_ns", ColumnType::BigInteger),
        ];
        let (_, mut budgets) = table("budgets", &["name"], columns);
        if mysql {
            mysql_options(&mut budgets);
        }
        manager.create_table(budgets).await?;
        let columns = [("term", ColumnType::BigInteger), ("number", ColumnType::BigInteger), ("members", long())];
        let (_, mut members) = table("rebalance_members", &["term", "number"], columns);
        if mysql {
            mysql_options(&mut members);
        }
        manager.create_table(members).await?;
        let mut moves_only = ColumnDef::new_with_type(Alias::new("moves_only"), ColumnType::Boolean);
        moves_only.not_null().default(false);
        add_column(manager, "pauses", "moves_only", moves_only).await?;
        let mut aborts = ColumnDef::new_with_type(Alias::new("aborts"), ColumnType::string(Some(64)));
        aborts.not_null().default("");
        add_column(manager, "pauses", "aborts", aborts).await
    }
}
