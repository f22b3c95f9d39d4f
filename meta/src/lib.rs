//! The metadata service: answers every metadata request of clients by transactions of `ember-meta-store`, mints
//! capabilities, lays out new files, and carries out what transactions have ordered: collecting garbage, cutting
//! truncated files, settling the lengths of dead writers.
//!
//! It is not the namespace (that is `meta/store`) and keeps no state that a restart would miss: queues, ids in
//! hand and cached totals may be lost at any moment. Any number of servers may run over one store.
//! Invariants:
//! - It serves only while it knows cluster time, that is, under a lease of the present mgmtd (R8, R20).
//! - Storage is told to remove or cut only what a durable transaction ordered (R3), with capabilities that end
//!   with the claim, and each claim is carried out by one server at a time (R19).
//! - Changing requests happen once; their answer is committed with their effect.
//! - Everything that waits is bounded: requests, batches, attempts, collections at once.
#![forbid(unsafe_code)]

mod collect;
mod config;
mod cut;
mod database;
mod error;
mod execute;
mod ids;
mod queue;
mod run;
mod seam;
mod service;
mod storage;
mod sweep;
mod totals;

pub use config::MetaConfig;
pub use error::MetaError;
pub use run::{Parts, run};
pub use seam::{Cluster, Place, StorageOps};
pub use service::{Door, Service};
pub use storage::StorageClient;

#[cfg(test)]
mod tests;
