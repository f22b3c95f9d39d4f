//! What goes wrong, by what the caller can do about it.

use ember_types::{ChunkId, ChunkVersion, Status};
use std::io;

/// Result of an engine call.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;

/// What helps where another process has the lock of a target.
pub(crate) const IN_USE: &str = "stop the other process that serves it";

/// Why the engine refuses or fails.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Stored bytes are not what was stored. Heal from another replica.
    #[error("{file}, offset {offset}: {what}")]
    Corrupt {
        /// File, as a path relative to the disk's root.
        file: String,
        /// Where the damage is, in bytes from the file's start.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The directory is not the target that was asked for, or not one that this release can serve.
    #[error("{file}, offset {offset}: {what}; {remedy}")]
    Refused {
        /// File or directory, relative to the disk's root.
        file: String,
        /// Offset of the field that says so, in bytes.
        offset: u64,
        /// What is wrong.
        what: String,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// The device or file system refused an operation.
    #[error("cannot {operation} {file}: {source}")]
    Io {
        /// File, relative to the disk's root.
        file: String,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// An earlier failure left it unknown what is on the disk: reopen the target.
    #[error("target {dir} stopped after a failed write: {why}; its storage node opens it again")]
    Failed {
        /// The target's directory.
        dir: String,
        /// The first failure.
        why: String,
    },
    /// Storing it would leave less free space than the configured reserve.
    #[error("no space: {needed} bytes needed, {available} available above the reserve; free or add space")]
    NoSpace {
        /// Bytes that the update needs.
        needed: u64,
        /// Bytes available above the reserve.
        available: u64,
    },
    /// The chunk, or that version of it, is not here.
    #[error("chunk {0} is not here in that version")]
    NotFound(ChunkId),
    /// The update applies to another committed version than the one that is here (R5).
    #[error("chunk {chunk}: the update applies to {base:?}, committed is {committed:?}")]
    BaseDiffers {
        /// The chunk.
        chunk: ChunkId,
        /// The base that the update names.
        base: ChunkVersion,
        /// The committed version here.
        committed: ChunkVersion,
    },
    /// Another version is pending.
    #[error("chunk {chunk}: version {pending:?} is pending")]
    PendingDiffers {
        /// The chunk.
        chunk: ChunkId,
        /// The version that is pending.
        pending: ChunkVersion,
    },
    /// The version was aborted here before (R13): a late copy.
    #[error("chunk {chunk}: version {version:?} was aborted")]
    Aborted {
        /// The chunk.
        chunk: ChunkId,
        /// The version.
        version: ChunkVersion,
    },
    /// The payload doesn't match its checksums: have it sent again.
    #[error("chunk {chunk}: payload fails the checksum of its block {block}")]
    Payload {
        /// The chunk.
        chunk: ChunkId,
        /// Index of the 4 KiB block within the payload.
        block: usize,
    },
    /// The update's result is not the one that the head computed (R14): the base here is wrong.
    #[error("chunk {chunk}: the update gives length {length}, checksum {checksum:08x}, unlike the head's")]
    ResultDiffers {
        /// The chunk.
        chunk: ChunkId,
        /// Resulting length here, in bytes.
        length: u32,
        /// Resulting CRC32C here.
        checksum: u32,
    },
    /// No replica had the bytes of the content when it was installed here (R10).
    #[error("chunk {0}: no replica had its content when it was copied here")]
    Lost(ChunkId),
    /// The request makes no sense.
    #[error("chunk {chunk}: {what}")]
    Invalid {
        /// The chunk.
        chunk: ChunkId,
        /// What is wrong.
        what: &'static str,
    },
}

impl EngineError {
    pub(crate) fn corrupt(file: impl Into<String>, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { file: file.into(), offset, what: what.into() }
    }

    /// Whether a content's bytes can't be read here while another replica may have them.
    pub fn is_bad_bytes(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Io { .. } | Self::Lost(_))
    }

    /// Whether the directory holds another cluster's or another target's content.
    pub fn is_anothers(&self) -> bool {
        matches!(self, Self::Refused { remedy, .. } if *remedy == crate::superblock::OTHERS)
    }

    /// Whether another process has the lock of the target.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Refused { remedy, .. } if *remedy == IN_USE)
    }

    /// The status that a remote asker is told.
    pub fn status(&self) -> Status {
        match self {
            Self::Corrupt { .. } | Self::ResultDiffers { .. } => Status::Corrupt,
            Self::Refused { .. } | Self::Io { .. } | Self::Failed { .. } => Status::DeviceError,
            Self::NoSpace { .. } => Status::NoSpace,
            Self::NotFound(_) => Status::NotFound,
            Self::BaseDiffers { .. } | Self::PendingDiffers { .. } => Status::Busy,
            Self::Aborted { .. } => Status::Aborted,
            Self::Payload { .. } => Status::ChecksumMismatch,
            Self::Lost(_) => Status::DataLost,
            Self::Invalid { .. } => Status::InvalidArgument,
        }
    }

    /// Whether the target can no longer be served until it is reopened.
    pub fn stops_target(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }
}
