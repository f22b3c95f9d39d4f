//! What goes into an engine and comes out of it.

use crate::record::{Content, Entry};
use ember_rt::SharedBuf;
use ember_rt::disk::Priority;
use ember_types::{ChunkId, ChunkVersion, WriterRecord, WriterTag};

/// One version of a chunk, without its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ContentState {
    /// Which version.
    pub version: ChunkVersion,
    /// Length in bytes.
    pub length: u32,
    /// CRC32C of the whole content.
    pub checksum: u32,
    /// A removal: there is no content.
    pub removed: bool,
    /// No replica had the bytes when this was installed (R10): length and checksum are known, nothing else.
    pub lost: bool,
}

impl From<&Content> for ContentState {
    fn from(c: &Content) -> Self {
        Self { version: c.version, length: c.length, checksum: c.checksum, removed: c.removed, lost: c.lost }
    }
}

/// What a target knows of a chunk.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ChunkState {
    /// The committed version; `removed` in it is a tombstone. `None`: nothing was ever committed here.
    pub committed: Option<ContentState>,
    /// The pending version.
    pub pending: Option<ContentState>,
    /// The last version that was aborted since the last commit (R13); `NONE` if none was.
    pub aborted: ChunkVersion,
    /// The last updates of the channels whose last update was on this chunk (R12).
    pub writers: Vec<WriterRecord>,
}

impl ChunkState {
    pub(crate) fn new(entry: &Entry, writers: Vec<WriterRecord>) -> Self {
        Self {
            committed: (!entry.committed.version.is_none()).then(|| (&entry.committed).into()),
            pending: entry.pending.as_deref().map(Into::into),
            aborted: entry.aborted(),
            writers,
        }
    }
    /// The committed version, `NONE` if there is none: what an update's base is compared with.
    pub fn committed_version(&self) -> ChunkVersion {
        self.committed.map_or(ChunkVersion::NONE, |c| c.version)
    }
    /// The committed content, unless it is absent or removed.
    pub fn live(&self) -> Option<ContentState> {
        self.committed.filter(|c| !c.removed)
    }
}

/// What to do with a chunk.
#[derive(Clone, Debug)]
pub enum Update {
    /// Put `data` at `offset`; the chunk grows if needed, and a gap before it reads as zeros.
    Write {
        /// First byte within the chunk.
        offset: u32,
        /// What. Page-aligned data at a multiple of 4096 go to the disk without a copy.
        data: SharedBuf,
        /// CRC32C of each 4 KiB of `data`, counted from its first byte; checked.
        checksums: Vec<u32>,
    },
    /// Cut or extend; an extension reads as zeros.
    Truncate {
        /// Length of the chunk afterwards.
        length: u32,
    },
    /// Cut if the chunk exists and is longer; else its content stays as it is.
    Cut {
        /// Most bytes that stay.
        length: u32,
    },
    /// Remove the chunk, leaving a tombstone.
    Remove,
    /// `data` is the whole content, whatever was here before.
    Whole {
        /// What.
        data: SharedBuf,
        /// CRC32C of each 4 KiB of `data`; checked.
        checksums: Vec<u32>,
        /// Records of the chunk's other writers.
        writers: Vec<WriterRecord>,
    },
}

/// An update to make durable as pending.
#[derive(Clone, Debug)]
pub struct Prepare {
    /// The chunk.
    pub chunk: ChunkId,
    /// The version that the update makes.
    pub version: ChunkVersion,
    /// The committed version that it applies to (R5); of no meaning with [`Update::Whole`].
    pub base: ChunkVersion,
    /// What to do.
    pub update: Update,
    /// Whose update it is (R12).
    pub writer: Option<WriterTag>,
    /// Length and CRC32C of the result at the head: if they differ here, nothing is done (R14).
    pub expect: Option<(u32, u32)>,
    /// How urgent.
    pub priority: Priority,
}

/// A durable pending version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prepared {
    /// The version.
    pub version: ChunkVersion,
    /// Length of the chunk after it, in bytes.
    pub length: u32,
    /// CRC32C of the whole chunk after it.
    pub checksum: u32,
}

/// One version of a chunk with its bytes, for [`crate::Engine::install`].
#[derive(Clone, Debug)]
pub struct InstallContent {
    /// What it is; `length` and `checksum` are checked against `data`.
    pub state: ContentState,
    /// The bytes; empty for a removal or lost content.
    pub data: SharedBuf,
}

/// The whole state of a chunk, as resync brings it (R11).
#[derive(Clone, Default, Debug)]
pub struct Install {
    /// The committed version. `None`: the target must hold no committed version.
    pub committed: Option<InstallContent>,
    /// The pending version.
    pub pending: Option<InstallContent>,
    /// Records of the chunk's writers (R12).
    pub writers: Vec<WriterRecord>,
}

/// Which version to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// The committed one.
    Committed,
    /// The pending one if there is one, else the committed one.
    Newest,
    /// Exactly this one, be it committed or pending.
    Exact(ChunkVersion),
}

/// Bytes that were read and verified.
#[derive(Clone, Debug)]
pub struct Read {
    /// The version they are of.
    pub version: ChunkVersion,
    /// Length of the whole chunk in that version, in bytes.
    pub chunk_length: u32,
    /// Where `data` starts within the chunk: the start of a block.
    pub start: u32,
    /// Whole blocks, up to the end of a block or of the chunk. Empty if the offset is not before the chunk's
    /// end.
    pub data: SharedBuf,
    /// CRC32C of each block of `data`; the last block may be short.
    pub checksums: Vec<u32>,
}

/// Space of a target, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TargetSpace {
    /// Size of the file system.
    pub total: u64,
    /// What updates may still take: free space above the reserve and reservations, and free slots.
    pub available: u64,
    /// Occupied by chunks, rounded up to their slots.
    pub used: u64,
}
