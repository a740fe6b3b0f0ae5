//! What the Helm chart has done in pods beside the programs themselves.
//!
//! | module | for |
//! |---|---|
//! | [`folder`] | an init container of coordinators: a state folder of their own on a volume |
//! | [`awaiting`] | an init container of workers: coordinators are upgraded first |
//! | [`certificates`] | a job and a cron job: certificates of the release, made and renewed |
//!
//! It is a program of its own so that coordinators and workers need neither these rights nor this code.

pub mod awaiting;
pub mod certificates;
pub mod folder;
