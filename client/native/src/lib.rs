//! The file system for programs: paths and calls that block, from any thread, without a mount.
//!
//! A [`FileSystem`] runs `ember-client` on a thread of its own; calls go there and wait for their answers, and a call
//! that moves many bytes, or many ranges, has several requests on their way at once. What holds for the client holds
//! here: a write is durable on every replica when it returns, a read is verified, a server that fails is waited for
//! until the operation's time is over. Nothing is cached but routing and open files.
//!
//! Calls may come from any thread, also one that runs an async runtime, which then stands still. When the cluster stops
//! answering, a call ends after the time of an operation ([`Options::operation_timeout`]). Paths are those of the file
//! system: absolute, with `.`, `..` and symbolic links followed as open(2) does.
#![doc = include_str!("../../../docs/operations/native.md")]
#![forbid(unsafe_code)]

mod file;
mod fs;
mod path;
mod place;
mod reactor;
mod tree;

pub use ember_types::Status;
pub use ember_types::file::{Attributes, FileKind};
pub use file::File;
pub use fs::{Entry, FileSystem, Replace};
pub use place::{FORMAT, Place, ROOT_USER, identity, read_secret, socket};

use ember_client::ClientError;
use std::path::PathBuf;
use std::time::Duration;

/// How to connect.
#[derive(Clone, Default, Debug)]
pub struct Options {
    /// What mgmtd lists the client as.
    pub description: String,
    /// Time after which an operation fails if the cluster doesn't answer, instead of `operation_timeout_ms` of the
    /// cluster's settings (5 minutes by default); at least 1 ms.
    pub operation_timeout: Option<Duration>,
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NativeError {
    /// A directory is no cluster's, or what is needed of it can't be read.
    #[error("{path}: {why}")]
    Place {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What is wrong, and what helps.
        why: String,
    },
    /// An operation failed; [`NativeError::status`] says how.
    #[error("{operation} {path}: {error}")]
    Operation {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: String,
        /// How it failed.
        error: ClientError,
    },
    /// The client's thread has ended, or its session: connect again.
    #[error("the client has ended: {0}; connect again")]
    Ended(String),
}

impl NativeError {
    /// How an operation failed.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Operation { error, .. } => Some(error.status),
            Self::Place { .. } | Self::Ended(_) => None,
        }
    }
    /// The errno of Linux that says the same.
    pub fn errno(&self) -> Option<i32> {
        self.status().map(Status::errno)
    }
    /// Whether there is no such file.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(Status::NotFound)
    }
    /// Whether the name is taken.
    pub fn is_exists(&self) -> bool {
        self.status() == Some(Status::Exists)
    }
}

impl From<NativeError> for std::io::Error {
    fn from(error: NativeError) -> Self {
        let kind =
            error.errno().map_or(std::io::ErrorKind::Other, |errno| Self::from_raw_os_error(errno).kind());
        Self::new(kind, error)
    }
}

/// Result with a [`NativeError`].
pub type Result<T> = std::result::Result<T, NativeError>;
