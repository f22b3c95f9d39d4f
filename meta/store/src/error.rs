//! One error, by what the caller can do.

use ember_kv::{KvError, WrapsKvError};
use ember_types::Status;

/// Result of an operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation did not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The operation is refused as POSIX says; nothing was written. The status is the caller's answer.
    #[error("refused: {0}")]
    Refused(Status),
    /// The transaction failed; run all of it again if the store's error says so.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// A stored record is not what this version writes or reads. Nothing was changed.
    #[error(
        "metadata record {key} of table {table} is damaged: {what}; restore the newest export with \
         `ember meta import`"
    )]
    Damaged {
        /// Which table.
        table: &'static str,
        /// The key, escaped.
        key: String,
        /// What is wrong.
        what: String,
    },
}

impl Error {
    /// The status to answer with.
    pub fn status(&self) -> Status {
        match self {
            Self::Refused(status) => *status,
            Self::Kv(error) if error.is_retryable() => Status::Conflict,
            Self::Kv(KvError::Closed(_)) => Status::Unavailable,
            Self::Kv(_) => Status::Internal,
            Self::Damaged { .. } => Status::Corrupt,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

impl WrapsKvError for Error {
    fn kv_error(&self) -> Option<&KvError> {
        match self {
            Self::Kv(error) => Some(error),
            _ => None,
        }
    }
}

/// Ends an operation with `status` unless `holds`.
pub(crate) fn ensure(holds: bool, status: Status) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Refused(status)) }
}
