//! Values. Every one is a format byte and a CBOR map; `docs/design/meta.md` lists the fields. Field numbers
//! never change meaning.

use ember_types::file::FileKind;
use ember_types::{ClientId, ClusterTime, DataId, InodeId, Layout, UnixTime};
use minicbor::{Decode, Encode};

pub use crate::codec::{decode, encode};

/// An inode.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Inode {
    /// Kind.
    #[n(0)]
    pub kind: FileKind,
    /// Permission, set-id and sticky bits (`0o7777`).
    #[n(1)]
    pub mode: u32,
    /// Owner.
    #[n(2)]
    pub uid: u32,
    /// Group.
    #[n(3)]
    pub gid: u32,
    /// Names of a file; of a directory 1, or 0 once it was removed.
    #[n(4)]
    pub links: u32,
    /// Settled length in bytes; of a symbolic link, of its target.
    #[n(5)]
    pub length: u64,
    /// Last access.
    #[n(6)]
    pub accessed: UnixTime,
    /// Last change of content; a directory's is in its own record.
    #[n(7)]
    pub modified: UnixTime,
    /// Last change of the inode; a directory's is in its own record.
    #[n(8)]
    pub changed: UnixTime,
    /// Device number.
    #[n(9)]
    pub device: u64,
    /// Layout of a file's data; of a directory, the template for its files.
    #[n(10)]
    pub layout: Option<Layout>,
    /// The data of a regular file.
    #[n(11)]
    pub data: DataId,
    /// Counts truncations (R19).
    #[n(12)]
    pub truncate_version: u64,
    /// Counts changes of content that meta has heard of.
    #[n(13)]
    pub content_version: u64,
    /// A truncation is being carried out: what lies beyond is void (R19).
    #[n(14)]
    pub truncating_to: Option<u64>,
    /// Parent of a directory.
    #[n(15)]
    pub parent: InodeId,
    /// Target of a symbolic link.
    #[cbor(n(16), with = "minicbor::bytes")]
    pub target: Vec<u8>,
    /// No byte of the data lies beyond, unless a session is open that has not reported yet.
    #[n(17)]
    pub extent: u64,
    /// Its data are being removed: it can't be opened any more (R18).
    #[n(18)]
    pub collecting: bool,
}

impl Inode {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == FileKind::File
    }
}

/// When a directory was changed: apart from its inode, so that operations in it never conflict there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Encode, Decode)]
#[cbor(map)]
pub struct DirTimes {
    /// Last change of its entries.
    #[n(0)]
    pub modified: UnixTime,
    /// Last change of the directory.
    #[n(1)]
    pub changed: UnixTime,
}

/// An entry of a directory. `inode` 0 is a vacant place: its name went while others with the same hash
/// stayed (see [`crate::position_of`]).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Dentry {
    /// The name.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub name: Vec<u8>,
    /// What it names.
    #[n(1)]
    pub inode: InodeId,
    /// Its kind.
    #[n(2)]
    pub kind: FileKind,
    /// First place of a hash alone: other places of the same hash may be taken.
    #[n(3)]
    pub crowded: bool,
}

/// A file open for writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Session {
    /// Whose.
    #[n(0)]
    pub client: ClientId,
    /// Its last capability ends then.
    #[n(1)]
    pub until: ClusterTime,
    /// Whether reads are allowed too.
    #[n(2)]
    pub read: bool,
}

/// Data, and perhaps the inode, that go when the last capability has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Garbage {
    /// Whether the inode goes too; otherwise it has got other data.
    #[n(0)]
    pub with_inode: bool,
    /// Layout of the data; absent if there are none.
    #[n(1)]
    pub layout: Option<Layout>,
    /// No byte lies beyond; absent if unknown.
    #[n(2)]
    pub extent: Option<u64>,
}

/// A truncation that was promised and is being carried out (R19).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Intent {
    /// The data to cut.
    #[n(0)]
    pub data: DataId,
    /// Where they lie.
    #[n(1)]
    pub layout: Layout,
    /// Every byte from here on goes.
    #[n(2)]
    pub cut_from: u64,
    /// Length afterwards.
    #[n(3)]
    pub length: u64,
    /// The truncate version that it made.
    #[n(4)]
    pub truncate_version: u64,
    /// No byte lies beyond; absent if unknown.
    #[n(5)]
    pub extent: Option<u64>,
    /// Boot id of the server that cuts.
    #[n(6)]
    pub owner: u64,
    /// Its rights to cut end then; another takes over only after this and the bound.
    #[n(7)]
    pub until: ClusterTime,
}

/// The answer to a client's changing request.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct RequestRecord {
    /// Number of the request.
    #[n(0)]
    pub sequence: u64,
    /// When it was answered, in cluster time.
    #[n(1)]
    pub at: ClusterTime,
    /// The answer, as the service encodes it.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub answer: Vec<u8>,
}
