//! The file system for programs: paths and calls that block, from any thread, without a mount.
//!
//! A [`FileSystem`] runs `ember-client` on a thread of its own; calls go there and wait for their answers, and a call
//! that moves many bytes, or many ranges, has several requests on their way at once. What holds for the client holds
//! here: a write is durable on every replica when it returns, a read is verified, a server that fails is waited for
//! until the operation's time is over. Nothing is cached but routing and open files.
//!
//! A process acts as its user, with its groups and umask. Paths are those of the file system: absolute, with `.`, `..`
//! and symbolic links followed as open(2) does.
//!
//! ```no_run
//! use ember_native::{FileSystem, Replace};
//!
//! # fn main() -> Result<(), ember_native::NativeError> {
//! let fs = FileSystem::connect("/srv/ember".as_ref(), "example")?;
//! fs.make_directories("/results.part")?;
//! let file = fs.create("/results.part/sums")?;
//! file.write_at(0, b"42\n")?;
//! file.sync()?;
//! file.close()?;
//! fs.rename("/results.part", "/results", Replace::Refuse)?; // all of it, or nothing
//! fs.sync_directory("/")?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod file;
mod fs;
mod path;
mod place;
mod reactor;

pub use ember_types::Status;
pub use ember_types::file::{Attributes, FileKind};
pub use file::File;
pub use fs::{Entry, FileSystem, Replace};
pub use place::{Place, ROOT_USER, identity, read_secret, socket};

use ember_client::ClientError;
use std::path::PathBuf;

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
        let kind = error
            .status()
            .map_or(std::io::ErrorKind::Other, |status| Self::from_raw_os_error(status.errno()).kind());
        Self::new(kind, error)
    }
}

/// Result with a [`NativeError`].
pub type Result<T> = std::result::Result<T, NativeError>;
