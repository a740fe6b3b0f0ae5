//! The tables as sea-orm entities, one module each.
//!
//! Limited to what SQLite, PostgreSQL and MariaDB share: 64-bit integers, text, UUIDs and byte strings. Unsigned
//! counters are stored with the same bits as signed ones, times as nanoseconds since the Unix epoch, structured values
//! that no query needs as JSON text, and bulk data as packed rows ([`super::codec`]).

#![allow(unreachable_pub, reason = "sea-orm's derives need the entities to be plainly `pub`")]

/// The leader; one row. `batch` counts the write transactions of `term` and chains them.
pub(super) mod leadership {
    use sea_orm::entity::prelude::*;

    /// Key of the one row.
    pub(in crate::store) const ROW: i32 = 1;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "leadership")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        pub term: i64,
        pub batch: i64,
        pub coordinator: String,
        pub since_ns: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The cluster that the store is of; one row, which never changes.
pub(super) mod clusters {
    use sea_orm::entity::prelude::*;

    /// Key of the one row.
    pub(in crate::store) const ROW: i32 = 1;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "clusters")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        pub cluster: Uuid,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Desired state of appliances.
pub(super) mod appliances {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "appliances")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        pub tenant: String,
        pub name: String,
        pub driver: String,
        #[sea_orm(column_type = "Text")]
        pub placement_key: String,
        #[sea_orm(column_type = "Text")]
        pub labels: String,
        #[sea_orm(column_type = "Text")]
        pub spec: String,
        pub generation: i64,
        pub written_term: i64,
        pub revision: i64,
        pub deleting: bool,
        pub managed_by: String,
        pub created_ns: i64,
        pub updated_ns: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Status last reported by the owner.
pub(super) mod statuses {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "statuses")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub appliance: Uuid,
        pub phase: String,
        pub observed_generation: i64,
        pub failed_boots: i64,
        #[sea_orm(column_type = "Text")]
        pub instances: String,
        #[sea_orm(column_type = "Text", nullable)]
        pub last_error: Option<String>,
        /// How the last instance ended that did so by itself, as JSON.
        #[sea_orm(column_type = "Text", nullable)]
        pub last_end: Option<String>,
        pub time_ns: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Progress and hold that the last owner released the appliance with.
pub(super) mod progress {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "progress")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub appliance: Uuid,
        #[sea_orm(column_type = "Text")]
        pub progress: String,
        pub hold_ns: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The log of ownership: packed batches and snapshots of them, see [`super::ledger`].
pub(super) mod grants {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "grants")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub term: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub batch: i64,
        /// Rows of one batch, from 0: a huge change is split into rows of bounded size.
        #[sea_orm(primary_key, auto_increment = false)]
        pub part: i32,
        /// First byte of `data`, for queries.
        pub format: i32,
        #[sea_orm(column_type = "Blob")]
        pub data: Vec<u8>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The last live members. The incarnation is part of the key: a name may come back before its former incarnation is
/// known to have ended.
pub(super) mod members {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "members")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub worker: String,
        /// 32 hexadecimal digits.
        #[sea_orm(primary_key, auto_increment = false)]
        pub incarnation: String,
        #[sea_orm(column_type = "Text")]
        pub profile: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Data of a worker across its incarnations.
pub(super) mod workers {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "workers")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub worker: String,
        pub seen_ns: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// An operator's stop of all planning: one row while there is one.
pub(super) mod pauses {
    use sea_orm::entity::prelude::*;

    /// Key of the one row.
    pub(in crate::store) const ROW: i32 = 1;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "pauses")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: i32,
        #[sea_orm(column_type = "Text")]
        pub reason: String,
        #[sea_orm(column_type = "Text")]
        pub actor: String,
        pub since_ns: i64,
        /// Of moves alone.
        pub moves_only: bool,
        /// The rebalance that was aborted with it; empty when none was.
        pub aborts: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Rules of debug modes: one row each, while it is in force.
pub(super) mod debug_modes {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "debug_modes")]
    pub struct Model {
        /// 32 hexadecimal digits.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        /// The rule, as JSON.
        #[sea_orm(column_type = "Text")]
        pub rule: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Orders of operators about workers, by what is ordered.
pub(super) mod worker_orders {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "worker_orders")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub worker: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub what: String,
        pub weight: i64,
        #[sea_orm(column_type = "Text")]
        pub reason: String,
        #[sea_orm(column_type = "Text")]
        pub actor: String,
        pub since_ns: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Appliances that belong to one worker by an operator's order.
pub(super) mod pins {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "pins")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub appliance: Uuid,
        pub worker: String,
        pub strict: bool,
        #[sea_orm(column_type = "Text")]
        pub reason: String,
        #[sea_orm(column_type = "Text")]
        pub actor: String,
        pub since_ns: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Budgets of disruption.
pub(super) mod budgets {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "budgets")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub name: String,
        /// The rule as JSON.
        #[sea_orm(column_type = "Text")]
        pub rule: String,
        #[sea_orm(column_type = "Text")]
        pub reason: String,
        #[sea_orm(column_type = "Text")]
        pub actor: String,
        pub since_ns: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Rollouts.
pub(super) mod rollouts {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "rollouts")]
    pub struct Model {
        /// 32 hexadecimal digits.
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: String,
        /// What it is, as JSON.
        #[sea_orm(column_type = "Text")]
        pub record: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// How far the appliances of rollouts are: packed, in parts.
pub(super) mod rollout_items {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "rollout_items")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub rollout: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub part: i32,
        #[sea_orm(column_type = "Blob")]
        pub data: Vec<u8>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Applied plans.
pub(super) mod rebalances {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "rebalances")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub term: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub number: i64,
        #[sea_orm(column_type = "Text")]
        pub cause: String,
        pub trace_id: String,
        pub started_ns: i64,
        pub ended_ns: Option<i64>,
        pub outcome: String,
        pub moves: i64,
        pub done: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Moves of rebalances, packed: one row per rebalance and batch.
pub(super) mod moves {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "moves")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub term: i64,
        pub number: i64,
        #[sea_orm(column_type = "Blob")]
        pub data: Vec<u8>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Who was there when a rebalance began.
pub(super) mod rebalance_members {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "rebalance_members")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub term: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub number: i64,
        /// A list of members as JSON.
        #[sea_orm(column_type = "Text")]
        pub members: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// The audit trail.
pub(super) mod events {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "events")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub time_ns: i64,
        #[sea_orm(column_type = "Text")]
        pub actor: String,
        #[sea_orm(column_type = "Text")]
        pub action: String,
        #[sea_orm(column_type = "Text")]
        pub subject: String,
        #[sea_orm(column_type = "Text")]
        pub detail: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// What workers did about appliances.
pub(super) mod runs {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "runs")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        /// As its worker named it; unique.
        pub run: Uuid,
        pub appliance: Uuid,
        pub tenant: String,
        pub name: String,
        pub generation: i64,
        pub worker: String,
        pub cause: String,
        pub outcome: String,
        #[sea_orm(column_type = "Text")]
        pub error: String,
        pub began_ns: i64,
        pub finished_ns: i64,
        /// Steps and changes of phase, as JSON.
        #[sea_orm(column_type = "Text")]
        pub detail: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Idempotent calls that were executed.
pub(super) mod requests {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "requests")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub id: Uuid,
        /// Sixteen bytes.
        #[sea_orm(column_type = "Blob")]
        pub digest: Vec<u8>,
        pub appliance: Uuid,
        pub time_ns: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}
