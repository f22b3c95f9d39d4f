//! One error, by what the caller can do.

use std::path::PathBuf;

use crate::api::{MAX_KEY_BYTES, MAX_TX_BYTES, MAX_VALUE_BYTES};

/// Why an operation of the key-value store failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// Something the transaction read was changed by another: run it again.
    #[error("the transaction conflicts with another one: run it again")]
    Conflict,
    /// The read version is no longer kept: run it again, in a shorter time.
    #[error("the transaction took too long, its read version is no longer kept: run it again")]
    TooOld,
    /// The read version that was set is not yet known here: run it again a little later.
    #[error("the read version is newer than the newest commit: run the transaction again a little later")]
    FutureVersion,
    /// The commit may or may not have happened: run it again, reading first what it would have changed.
    #[error("the commit's outcome is unknown: read again before repeating it")]
    CommitUnknown,
    /// Too many transactions or watches are waiting: run it again a little later.
    #[error("the key-value store is busy ({0}): try again a little later")]
    Busy(&'static str),
    /// The transaction is larger than 10 MB: split it.
    #[error("the transaction has {bytes} bytes of {MAX_TX_BYTES}: split it")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// A key is longer than 10 kB.
    #[error("a key has {bytes} bytes of at most {MAX_KEY_BYTES}")]
    KeyTooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// A value is longer than 100 kB.
    #[error("a value has {bytes} bytes of at most {MAX_VALUE_BYTES}")]
    ValueTooLarge {
        /// Its size in bytes.
        bytes: usize,
    },
    /// The request itself is wrong: a key from 0xff on, a range with begin > end, an offset outside, or
    /// a read of a key that this transaction gave a versionstamp.
    #[error("wrong use of the key-value store: {0}")]
    Misuse(&'static str),
    /// The watch's transaction did not commit, or the store was closed.
    #[error("the watch was cancelled: its transaction did not commit")]
    Cancelled,
    /// The stored data are damaged; nothing was changed.
    #[error("{}: damaged{}: {what}; restore an export with `ember meta import`", file.display(), at(offset))]
    Corrupt {
        /// The damaged file, or the store's directory if the file is not known.
        file: PathBuf,
        /// Where in the file, in bytes, if known.
        offset: Option<u64>,
        /// What is wrong there.
        what: String,
    },
    /// Another process has the store open.
    #[error("{}: in use by another process; stop it first (`ember down`)", path.display())]
    Locked {
        /// The store's directory.
        path: PathBuf,
    },
    /// The store belongs to another cluster, or was written by another version of the format.
    #[error("{}: {what}", path.display())]
    WrongStore {
        /// The file that says so.
        path: PathBuf,
        /// What differs, and what to do.
        what: String,
    },
    /// An operation of the file system failed.
    #[error("{}: {what}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operation and the system's message.
        what: String,
    },
    /// The store was closed, or an earlier failure of its disk stopped it.
    #[error("the key-value store is closed{}", because(.0))]
    Closed(Option<String>),
}

impl KvError {
    /// Whether running the whole transaction again may succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Conflict | Self::TooOld | Self::FutureVersion | Self::CommitUnknown | Self::Busy(_)
        )
    }

    /// Whether the transaction may have been committed nevertheless.
    pub fn maybe_committed(&self) -> bool {
        matches!(self, Self::CommitUnknown)
    }
}

fn at(offset: &Option<u64>) -> String {
    offset.map_or_else(String::new, |o| format!(" at byte {o}"))
}

fn because(reason: &Option<String>) -> String {
    reason.as_ref().map_or_else(String::new, |r| format!(": {r}"))
}
