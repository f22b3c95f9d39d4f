//! Why mgmtd could not do something, by what the caller can do.

use ember_kv::KvError;

/// Why mgmtd ended, or could not change its store.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// The settings contradict each other or an address is taken.
    #[error("mgmtd: {0}")]
    Config(String),
    /// Another mgmtd is primary by now: ask it.
    #[error("mgmtd: this server is no longer the primary")]
    NotPrimary,
    /// The store failed.
    #[error("mgmtd: {0}")]
    Store(#[from] KvError),
    /// A record of the store can't be read.
    #[error(
        "mgmtd: damaged record {key} in the metadata store: {why}; restore an export with `ember meta import`"
    )]
    Damaged {
        /// The record's key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The threads that reach the store are gone: the process is ending.
    #[error("mgmtd: the process is ending")]
    Ending,
}
