//! Distributed clusters of real processes: ZooKeeper, PostgreSQL or MariaDB, coordinators, workers. One file per subject.

mod drill;
mod example;
mod failover;
mod lease;
mod membership;
mod observed;
mod partition;
mod python;
mod security;
mod store;
mod tooz;
mod traces;
mod upgrade;
mod zookeeper;
