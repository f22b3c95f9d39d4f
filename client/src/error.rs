//! How an operation of the client fails.

use ember_types::Status;

/// A failed operation: what the caller can do is told by the status (see [`Status::errno`]), the rest is for
/// people.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text} ({status})")]
pub struct ClientError {
    /// How it failed.
    pub status: Status,
    /// What, where, and what helps.
    pub text: String,
}

impl ClientError {
    /// Builds an error.
    pub fn new(status: Status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }
    /// The errno that a file-system call ends with.
    pub fn errno(&self) -> i32 {
        self.status.errno()
    }
}

/// Result of a client's operation.
pub type Result<T> = std::result::Result<T, ClientError>;
