//! Distributed clusters of real processes: ZooKeeper, PostgreSQL or MariaDB, coordinators, workers. One file per subject.

mod failover;
mod membership;
mod observed;
mod python;
mod tooz;
mod zookeeper;
