//! Operators' orders about placement outlive the term.

use sea_orm::DbBackend;
use sea_orm_migration::prelude::*;

use super::{mysql_options, table};

/// The tables of orders about workers, and of pins.
pub(super) struct Orders;

impl MigrationName for Orders {
    fn name(&self) -> &'static str {
        "m0008_orders"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Orders {
    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }

    #[allow(elided_lifetimes_in_paths, reason = "the trait, as async_trait writes it, elides it too")]
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mysql = manager.get_database_backend() == DbBackend::MySql;
        let long = || if mysql { ColumnType::custom("longtext") } else { ColumnType::Text };
        let name = || ColumnType::string(Some(128));
        let orders = [
            ("worker", name()),
            ("what", ColumnType::string(Some(32))),
            ("weight", ColumnType::BigInteger),
            ("reason", long()),
            ("actor", long()),
            ("since_ns", ColumnType::BigInteger),
        ];
        let pins = [
            ("appliance", ColumnType::Uuid),
            ("worker", name()),
            ("strict", ColumnType::Boolean),
            ("reason", long()),
            ("actor", long()),
            ("since_ns", ColumnType::BigInteger),
        ];
        let (_, orders) = table("worker_orders", &["worker", "what"], orders);
        let (_, pins) = table("pins", &["appliance"], pins);
        for mut statement in [orders, pins] {
            if mysql {
                mysql_options(&mut statement);
            }
            manager.create_table(statement).await?;
        }
        Ok(())
    }
}
