//! What a replica holds of a chunk, and what may be done to it.

use ember_types::{ChunkId, ChunkVersion, WriterRecord};

/// Committed content of a chunk, without the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Content {
    /// Its version; [`ChunkVersion::NONE`] if the chunk was never written or is forgotten.
    pub version: ChunkVersion,
    /// Whether the version is a removal (tombstone).
    pub removed: bool,
    /// Length in bytes.
    pub length: u32,
    /// CRC32C of the whole content.
    pub checksum: u32,
}

impl Content {
    /// Whether there is nothing to read.
    pub fn is_absent(&self) -> bool {
        self.version.is_none() || self.removed
    }
}

/// A version that is durable but not committed. Its base is the committed content beside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pending {
    /// What the chunk becomes.
    pub content: Content,
    /// Whose update it is; its `version` and `length` are those of `content`.
    pub record: WriterRecord,
    /// Largest length that the chunk may have, in bytes.
    pub chunk_size: u32,
}

/// Everything that a replica holds of a chunk, without the bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ChunkState {
    /// The committed content.
    pub committed: Content,
    /// The pending version, if any.
    pub pending: Option<Pending>,
    /// Records of the chunk's writers up to the committed version (R12).
    pub writers: Vec<WriterRecord>,
}

/// The store's own memory of its chunks: what is durable (or logged, for commits) now.
pub trait View {
    /// State of `chunk`; the default one if the store has nothing of it.
    fn chunk(&self, chunk: ChunkId) -> ChunkState;
}

/// What an update does to a chunk. Bytes travel beside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// Puts `length` bytes at `offset`; the chunk grows if needed.
    Write {
        /// First byte within the chunk.
        offset: u32,
        /// Number of bytes.
        length: u32,
    },
    /// Cuts or extends to `length` bytes.
    Truncate {
        /// Length afterwards.
        length: u32,
    },
    /// Cuts to `length` bytes if the chunk is there and longer; passed on as a truncation.
    Cut {
        /// Most bytes that stay.
        length: u32,
    },
    /// Removes the chunk, leaving a tombstone.
    Remove,
    /// Replaces the whole content: how a successor gets a chunk whose base it may lack.
    Whole {
        /// Length afterwards.
        length: u32,
    },
}

impl Change {
    /// Length of the chunk afterwards, or `None` if it exceeds `chunk_size`.
    pub fn result_length(self, base: u32, chunk_size: u32) -> Option<u32> {
        let length = match self {
            Self::Write { offset, length } => offset.checked_add(length)?.max(base),
            Self::Truncate { length } | Self::Whole { length } => length,
            Self::Cut { length } => length.min(base),
            Self::Remove => 0,
        };
        (length <= chunk_size).then_some(length)
    }
    /// Whether it needs no bytes of the base.
    pub fn replaces_all(self) -> bool {
        matches!(self, Self::Whole { .. } | Self::Remove)
    }
    /// Whether it takes no space.
    pub fn only_frees(self) -> bool {
        matches!(self, Self::Remove | Self::Cut { .. })
    }
}

/// What a listing says of a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Summary {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its committed content.
    pub content: Content,
    /// Whether it has a pending version.
    pub pending: bool,
    /// Whether the content is only known, its bytes are not here.
    pub lost: bool,
}
