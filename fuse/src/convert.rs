//! Between the kernel's numbers and the house's types.

use ember_client::ClientError;
use ember_fuse_kernel::Errno;
use ember_fuse_kernel::abi::{Attr, Kstatfs, SetattrIn, fattr};
use ember_types::file::{Attributes, FileKind, NAME_MAX};
use ember_types::{SessionId, UnixTime};
use ember_wire::meta::{OpenFlags, SetAttributes, SetTime, Totals};
use rustix::fs::OFlags;

const TYPE_MASK: u32 = 0o170_000;
const PERMISSIONS: u32 = 0o7777;
const ACCESS_MODE: u32 = 0o3;
const WRITE_ONLY: u32 = 0o1;
const READ_WRITE: u32 = 0o2;
/// The kernel's own flag of an open for execve(2).
const FOR_EXECUTION: u32 = 0o40;
pub(crate) const O_EXCL: u32 = OFlags::EXCL.bits();
pub(crate) const O_TRUNC: u32 = OFlags::TRUNC.bits();
pub(crate) const O_APPEND: u32 = OFlags::APPEND.bits();
pub(crate) const O_DIRECT: u32 = OFlags::DIRECT.bits();
/// Set with O_SYNC as well.
pub(crate) const O_DSYNC: u32 = OFlags::DSYNC.bits();

/// What stat(2) recommends for a read or write, in bytes: programs that buffer by it (stdio) make fewer requests.
const IO_SIZE: u32 = 64 << 10;
/// The unit of statfs(2), in bytes.
const BLOCK: u32 = 4096;

fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Fifo => 0o010_000,
        FileKind::CharDevice => 0o020_000,
        FileKind::Directory => 0o040_000,
        FileKind::BlockDevice => 0o060_000,
        FileKind::File => 0o100_000,
        FileKind::Symlink => 0o120_000,
        FileKind::Socket => 0o140_000,
    }
}

/// The `DT_…` number of a directory entry.
pub(crate) fn entry_type(kind: FileKind) -> u32 {
    type_bits(kind) >> 12
}

/// What mknod(2) is to make. `None` for a kind that it can't.
pub(crate) fn node_kind(mode: u32) -> Option<FileKind> {
    match mode & TYPE_MASK {
        0 | 0o100_000 => Some(FileKind::File),
        0o010_000 => Some(FileKind::Fifo),
        0o020_000 => Some(FileKind::CharDevice),
        0o060_000 => Some(FileKind::BlockDevice),
        0o140_000 => Some(FileKind::Socket),
        _ => None,
    }
}

/// The permission bits of a new inode.
pub(crate) fn new_mode(mode: u32, umask: u32) -> u32 {
    mode & PERMISSIONS & !umask
}

/// Attributes as the kernel takes them.
pub(crate) fn attr(attributes: &Attributes) -> Attr {
    let cut = attributes.truncating_to.unwrap_or(u64::MAX);
    let size = attributes.length.min(cut);
    Attr {
        ino: attributes.inode.0,
        size,
        blocks: size.div_ceil(512),
        // Two's complement: the kernel reads seconds as signed.
        atime: attributes.accessed.seconds as u64,
        mtime: attributes.modified.seconds as u64,
        ctime: attributes.changed.seconds as u64,
        atimensec: attributes.accessed.nanos,
        mtimensec: attributes.modified.nanos,
        ctimensec: attributes.changed.nanos,
        mode: type_bits(attributes.kind) | (attributes.mode & PERMISSIONS),
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        // The kernel's packing of device numbers is the low half of makedev's.
        rdev: attributes.device as u32,
        blksize: IO_SIZE,
        flags: 0,
    }
}

/// How to open, from the flags of open(2).
pub(crate) fn open_flags(flags: u32) -> OpenFlags {
    let mode = flags & ACCESS_MODE;
    OpenFlags {
        read: mode != WRITE_ONLY,
        write: mode == WRITE_ONLY || mode == READ_WRITE,
        truncate: flags & O_TRUNC != 0,
        execute: flags & FOR_EXECUTION != 0,
    }
}

/// What a SETATTR asks for. `session` is the open that it came through, if any.
pub(crate) fn set_attributes(args: &SetattrIn, session: Option<SessionId>) -> SetAttributes {
    let has = |bit| args.valid & bit != 0;
    let time = |set, now, seconds: u64, nanos| match (has(now), has(set)) {
        (true, _) => Some(SetTime::Now),
        (false, true) => Some(SetTime::At(UnixTime { seconds: seconds as i64, nanos })),
        (false, false) => None,
    };
    let length = has(fattr::SIZE).then_some(args.size);
    SetAttributes {
        mode: has(fattr::MODE).then_some(args.mode & PERMISSIONS),
        uid: has(fattr::UID).then_some(args.uid),
        gid: has(fattr::GID).then_some(args.gid),
        length,
        accessed: time(fattr::ATIME, fattr::ATIME_NOW, args.atime, args.atimensec),
        modified: time(fattr::MTIME, fattr::MTIME_NOW, args.mtime, args.mtimensec),
        session: length.and(session),
        clear_set_id: has(fattr::KILL_SUIDGID),
    }
}

/// Totals as statfs(2) shows them. Inodes have no limit of their own: as many are shown free as blocks are.
pub(crate) fn statfs(totals: &Totals) -> Kstatfs {
    let free = totals.bytes_free / u64::from(BLOCK);
    Kstatfs {
        blocks: totals.bytes_total / u64::from(BLOCK),
        bfree: free,
        bavail: free,
        files: totals.inodes.saturating_add(free),
        ffree: free,
        bsize: BLOCK,
        namelen: NAME_MAX as u32,
        frsize: BLOCK,
        ..Kstatfs::default()
    }
}

/// What a program is told of a failure.
pub(crate) fn errno(error: &ClientError) -> Errno {
    // A cluster that stayed away until the deadline: EAGAIN would mean a non-blocking descriptor.
    let errno = match Errno::from_raw_os_error(error.errno()) {
        Errno::AGAIN => Errno::TIMEDOUT,
        errno => errno,
    };
    if matches!(errno, Errno::IO | Errno::TIMEDOUT) {
        tracing::warn!(%error, %errno, "request failed");
    } else {
        tracing::debug!(%error, %errno, "request failed");
    }
    errno
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_types::Status;

    #[test]
    fn open_flags_are_understood() {
        let flags = |f| {
            let o = open_flags(f);
            (o.read, o.write, o.truncate, o.execute)
        };
        assert_eq!(flags(0), (true, false, false, false));
        assert_eq!(flags(0o1 | O_TRUNC), (false, true, true, false));
        assert_eq!(flags(0o2 | O_APPEND), (true, true, false, false));
        assert_eq!(flags(FOR_EXECUTION), (true, false, false, true));
    }

    #[test]
    fn setattr_takes_what_is_valid() {
        let all = SetattrIn {
            size: 5,
            mode: 0o104_755,
            uid: 1,
            gid: 2,
            atime: -3_i64 as u64,
            atimensec: 4,
            mtime: 6,
            ..SetattrIn::default()
        };
        let session = Some(SessionId::from_u128(9));
        let none = set_attributes(&SetattrIn { valid: fattr::CTIME | fattr::LOCKOWNER, ..all }, session);
        assert_eq!(none, SetAttributes::default());
        let valid = fattr::SIZE | fattr::MODE | fattr::ATIME | fattr::MTIME | fattr::MTIME_NOW | fattr::UID;
        let set = set_attributes(&SetattrIn { valid: valid | fattr::KILL_SUIDGID, ..all }, session);
        assert_eq!((set.mode, set.uid, set.gid, set.length), (Some(0o4755), Some(1), None, Some(5)));
        assert_eq!(set.accessed, Some(SetTime::At(UnixTime { seconds: -3, nanos: 4 })));
        assert_eq!(set.modified, Some(SetTime::Now));
        assert_eq!((set.session, set.clear_set_id), (session, true));
        let times = set_attributes(&SetattrIn { valid: fattr::ATIME_NOW, ..all }, session);
        assert_eq!((times.accessed, times.session), (Some(SetTime::Now), None));
    }

    #[test]
    fn kinds_of_nodes() {
        assert_eq!(node_kind(0o644), Some(FileKind::File));
        assert_eq!(node_kind(0o140_777), Some(FileKind::Socket));
        assert_eq!(node_kind(0o040_755), None);
        assert_eq!(entry_type(FileKind::Directory), 4);
        assert_eq!(new_mode(0o101_777, 0o022), 0o1755);
    }

    #[test]
    fn a_cluster_that_is_away_is_a_timeout() {
        let of = |status| errno(&ClientError::new(status, "x"));
        assert_eq!(of(Status::Unavailable), Errno::TIMEDOUT);
        assert_eq!(of(Status::Stale), Errno::STALE);
        assert_eq!(of(Status::Corrupt), Errno::IO);
    }
}
