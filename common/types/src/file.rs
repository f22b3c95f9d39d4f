//! What a file is to its users: kind, mode, attributes.

use crate::id::{DataId, InodeId};
use crate::layout::Layout;
use crate::time::UnixTime;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Most hard links of one inode.
pub const LINK_MAX: u32 = 65_000;

/// Kind of an inode.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode, Serialize, Deserialize,
)]
#[cbor(index_only)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// Regular file.
    #[n(0)]
    File,
    /// Directory.
    #[n(1)]
    Directory,
    /// Symbolic link.
    #[n(2)]
    Symlink,
    /// Named pipe.
    #[n(3)]
    Fifo,
    /// Socket.
    #[n(4)]
    Socket,
    /// Character device.
    #[n(5)]
    CharDevice,
    /// Block device.
    #[n(6)]
    BlockDevice,
}

/// Attributes of an inode as `stat` shows them, and what a client needs to reach its data.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Attributes {
    /// Which inode.
    #[n(0)]
    pub inode: InodeId,
    /// Kind.
    #[n(1)]
    pub kind: FileKind,
    /// Permission bits with set-id and sticky bits (`0o7777`).
    #[n(2)]
    pub mode: u32,
    /// Number of hard links.
    #[n(3)]
    pub links: u32,
    /// Owner.
    #[n(4)]
    pub uid: u32,
    /// Group.
    #[n(5)]
    pub gid: u32,
    /// Length in bytes; of a symbolic link, of its target.
    #[n(6)]
    pub length: u64,
    /// Last access.
    #[n(7)]
    pub accessed: UnixTime,
    /// Last change of content.
    #[n(8)]
    pub modified: UnixTime,
    /// Last change of the inode.
    #[n(9)]
    pub changed: UnixTime,
    /// Device number of a device file, as `makedev` packs it.
    #[n(10)]
    pub device: u64,
    /// Where the data lie; only of regular files, and of directories whose files inherit it.
    #[n(11)]
    pub layout: Option<Layout>,
    /// The data of a regular file.
    #[n(12)]
    pub data: DataId,
    /// Counts truncations; a length settled under another one is void (R19).
    #[n(13)]
    pub truncate_version: u64,
    /// Grows with every change of content or length that meta has heard of: page caches compare it at open.
    #[n(14)]
    pub content_version: u64,
    /// A truncation that is being carried out: readers see zeros or the end from this length on (R19).
    #[n(15)]
    pub truncating_to: Option<u64>,
}

/// Who asks: checked by meta on every operation.
#[derive(Clone, Default, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Credentials {
    /// User id.
    #[n(0)]
    pub uid: u32,
    /// Primary group.
    #[n(1)]
    pub gid: u32,
    /// Supplementary groups.
    #[n(2)]
    pub groups: Vec<u32>,
}
