//! Why a call failed, by what the caller can do.

use ember_types::Status;

/// The end of a call without a response body.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NetError {
    /// The deadline passed. The request may have been carried out, or may still be.
    #[error("{0}: no answer before the deadline")]
    Timeout(String),
    /// Not connected, or the connection ended. A request that was sent may have been carried out.
    #[error("{0}")]
    Unavailable(String),
    /// The peer, or this side for it, refused the request or the connection: it was not carried out. Trying
    /// again without a change helps only if the status is retryable.
    #[error("{text} ({status})")]
    Refused {
        /// Why.
        status: Status,
        /// For people.
        text: String,
    },
    /// The peer broke the protocol; the connection has been closed.
    #[error("{0}")]
    Protocol(String),
}

impl NetError {
    /// The status that says the same.
    pub fn status(&self) -> Status {
        match self {
            Self::Timeout(_) => Status::Timeout,
            Self::Unavailable(_) => Status::Unavailable,
            Self::Refused { status, .. } => *status,
            Self::Protocol(_) => Status::Internal,
        }
    }

    /// A refusal.
    pub fn refused(status: Status, text: impl Into<String>) -> Self {
        Self::Refused { status, text: text.into() }
    }
}
