//! Structs that the kernel sends.

use super::abi_structs;

abi_structs! {
    /// Start of every request; `len` counts itself and all that follows.
    InHeader = 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// FORGET.
    ForgetIn = 8 { nlookup: u64 }
    /// One element of BATCH_FORGET.
    ForgetOne = 16 { nodeid: u64, nlookup: u64 }
    /// Start of BATCH_FORGET.
    BatchForgetIn = 8 { count: u32, dummy: u32 }
    /// GETATTR.
    GetattrIn = 16 { getattr_flags: u32, dummy: u32, fh: u64 }
    /// STATX, since 7.39.
    StatxIn = 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    /// MKNOD, before the name.
    MknodIn = 16 { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// MKDIR, before the name.
    MkdirIn = 8 { mode: u32, umask: u32 }
    /// RENAME, before the two names.
    RenameIn = 8 { newdir: u64 }
    /// RENAME2, before the two names.
    Rename2In = 16 { newdir: u64, flags: u32, padding: u32 }
    /// LINK, before the name.
    LinkIn = 8 { oldnodeid: u64 }
    /// SETATTR; `valid` (see [`super::fattr`]) says which fields count.
    SetattrIn = 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32,
        unused5: u32,
    }
    /// OPEN and OPENDIR; `flags` are those of open(2).
    OpenIn = 8 { flags: u32, open_flags: u32 }
    /// CREATE and TMPFILE, before the name.
    CreateIn = 16 { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// RELEASE and RELEASEDIR.
    ReleaseIn = 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// FLUSH.
    FlushIn = 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// READ, READDIR and READDIRPLUS; offset and size in bytes (offset is a cookie for directories).
    ReadIn = 40 {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// WRITE, before the data.
    WriteIn = 40 {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// FSYNC and FSYNCDIR.
    FsyncIn = 16 { fh: u64, fsync_flags: u32, padding: u32 }
    /// SETXATTR without SETXATTR_EXT, before name and value.
    SetxattrCompatIn = 8 { size: u32, flags: u32 }
    /// SETXATTR with SETXATTR_EXT, before name and value.
    SetxattrIn = 16 { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    /// GETXATTR (before the name) and LISTXATTR.
    GetxattrIn = 8 { size: u32, padding: u32 }
    /// A byte range lock, in requests and answers; `end` is inclusive.
    FileLock = 24 { start: u64, end: u64, r#type: u32, pid: u32 }
    /// GETLK, SETLK and SETLKW.
    LkIn = 48 { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }
    /// ACCESS.
    AccessIn = 8 { mask: u32, padding: u32 }
    /// INIT of kernels before 7.36, and the start of the newer one.
    InitCompatIn = 16 { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// INIT since 7.36.
    InitIn = 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
    /// INTERRUPT.
    InterruptIn = 8 { unique: u64 }
    /// BMAP.
    BmapIn = 16 { block: u64, blocksize: u32, padding: u32 }
    /// IOCTL, before the data.
    IoctlIn = 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// POLL.
    PollIn = 24 { fh: u64, kh: u64, flags: u32, events: u32 }
    /// FALLOCATE.
    FallocateIn = 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// LSEEK.
    LseekIn = 24 { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// COPY_FILE_RANGE and COPY_FILE_RANGE_64.
    CopyFileRangeIn = 56 {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// NOTIFY_REPLY, before the data (same size as [`WriteIn`]).
    NotifyRetrieveIn = 40 { dummy1: u64, offset: u64, size: u32, dummy2: u32, dummy3: u64, dummy4: u64 }
    /// SYNCFS.
    SyncfsIn = 8 { padding: u64 }
    /// Start of each extension at the end of a request; `size` counts this header.
    ExtHeader = 8 { size: u32, r#type: u32 }
}
