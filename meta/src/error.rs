//! One error, by what the caller can do.

use ember_kv::KvError;
use ember_meta_store::Error as StoreError;
use ember_types::Status;

/// Why the service, or one of its tasks, could not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// A setting can't be used: change it.
    #[error("setting `{name}` of the metadata service: {what}")]
    Config {
        /// Which one.
        name: &'static str,
        /// What is wrong.
        what: String,
    },
    /// It can't listen there: change the address, or stop who uses it.
    #[error("metadata service cannot listen on {address}: {what}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        what: String,
    },
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Storage could not be reached, or refused: the same may succeed later.
    #[error("storage: {what} ({status})")]
    Storage {
        /// Its status.
        status: Status,
        /// What was asked of whom.
        what: String,
    },
    /// Not now: the reason is the status.
    #[error("{what} ({status})")]
    NotNow {
        /// Why.
        status: Status,
        /// For people.
        what: &'static str,
    },
}

impl MetaError {
    /// The status to answer with.
    pub fn status(&self) -> Status {
        match self {
            Self::Config { .. } | Self::Listen { .. } => Status::Internal,
            Self::Store(error) => error.status(),
            Self::Storage { status, .. } if *status == Status::Ok => Status::Internal,
            Self::Storage { status, .. } | Self::NotNow { status, .. } => *status,
        }
    }

    pub(crate) fn not_now(status: Status, what: &'static str) -> Self {
        Self::NotNow { status, what }
    }
}

impl From<KvError> for MetaError {
    fn from(error: KvError) -> Self {
        Self::Store(StoreError::Kv(error))
    }
}
