//! Structs that the server sends.

use std::time::Duration;

use super::{FileLock, abi_structs};

abi_structs! {
    /// Start of every answer (`error` is 0 or a negative errno) and notification (`unique` is 0).
    OutHeader = 16 { len: u32, error: i32, unique: u64 }
    /// Attributes of an inode. `size` in bytes, `blocks` of 512 bytes, times in seconds and nanoseconds.
    Attr = 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// Answer to LOOKUP and everything that makes a name. Node id 0 caches that the name is missing.
    EntryOut = 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    /// Answer to GETATTR and SETATTR.
    AttrOut = 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// Answer to OPEN and OPENDIR, second half of the answer to CREATE; flags in [`super::fopen`].
    OpenOut = 16 { fh: u64, open_flags: u32, backing_id: i32 }
    /// Answer to WRITE: bytes taken.
    WriteOut = 8 { size: u32, padding: u32 }
    /// Answer to STATFS.
    Kstatfs = 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    /// Answer to GETXATTR and LISTXATTR with size 0.
    GetxattrOut = 8 { size: u32, padding: u32 }
    /// Answer to GETLK.
    LkOut = 24 { lk: FileLock }
    /// Answer to INIT.
    InitOut = 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16,
        flags2: u32, max_stack_depth: u32, request_timeout: u16, unused: [u16; 11],
    }
    /// Answer to BMAP.
    BmapOut = 8 { block: u64 }
    /// Answer to IOCTL, before the data.
    IoctlOut = 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// Answer to POLL.
    PollOut = 8 { revents: u32, padding: u32 }
    /// Answer to LSEEK.
    LseekOut = 8 { offset: u64 }
    /// Answer to COPY_FILE_RANGE_64.
    CopyFileRangeOut = 8 { bytes_copied: u64 }
    /// A time in [`Statx`].
    SxTime = 16 { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    /// Attributes as statx(2) returns them.
    Statx = 256 {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16,
        ino: u64, size: u64, blocks: u64, attributes_mask: u64, atime: SxTime, btime: SxTime, ctime: SxTime,
        mtime: SxTime, rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    /// Answer to STATX.
    StatxOut = 288 { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx }
    /// Start of a directory entry; the name follows, padded to 8 bytes. `off` is the cookie after it.
    Dirent = 24 { ino: u64, off: u64, namelen: u32, r#type: u32 }
    /// Start of a READDIRPLUS entry.
    Direntplus = 152 { entry_out: EntryOut, dirent: Dirent }
    /// Notification: POLL.
    NotifyPollWakeupOut = 8 { kh: u64 }
    /// Notification: INVAL_INODE. Negative `off` drops attributes only; `len` 0 or less means to the end.
    NotifyInvalInodeOut = 24 { ino: u64, off: i64, len: i64 }
    /// Notification: INVAL_ENTRY, before the name.
    NotifyInvalEntryOut = 16 { parent: u64, namelen: u32, flags: u32 }
    /// Notification: DELETE, before the name.
    NotifyDeleteOut = 24 { parent: u64, child: u64, namelen: u32, padding: u32 }
    /// Notification: STORE, before the data.
    NotifyStoreOut = 24 { nodeid: u64, offset: u64, size: u32, padding: u32 }
}

impl EntryOut {
    /// An entry whose name stays valid for `entry_ttl` and whose attributes stay valid for `attr_ttl`.
    pub fn new(generation: u64, attr: Attr, entry_ttl: Duration, attr_ttl: Duration) -> Self {
        Self {
            nodeid: attr.ino,
            generation,
            entry_valid: entry_ttl.as_secs(),
            attr_valid: attr_ttl.as_secs(),
            entry_valid_nsec: entry_ttl.subsec_nanos(),
            attr_valid_nsec: attr_ttl.subsec_nanos(),
            attr,
        }
    }

    /// The answer "no such name", kept by the kernel for `ttl` (0 is the same as the error ENOENT).
    pub fn negative(ttl: Duration) -> Self {
        Self { entry_valid: ttl.as_secs(), entry_valid_nsec: ttl.subsec_nanos(), ..Self::default() }
    }
}

impl AttrOut {
    /// Attributes that stay valid for `ttl`.
    pub fn new(attr: Attr, ttl: Duration) -> Self {
        Self { attr_valid: ttl.as_secs(), attr_valid_nsec: ttl.subsec_nanos(), dummy: 0, attr }
    }
}
