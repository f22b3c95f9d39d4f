//! The operations.

use super::reader::{Reader, Reason};
use crate::abi::*;

/// What the kernel asks for. Names are single path components; their length is not limited here.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "fields are named and explained by <linux/fuse.h>")]
pub enum Op<'a> {
    /// Find a name in the directory. Each success adds one to the node's lookup count.
    Lookup {
        name: &'a [u8],
    },
    /// Takes `nlookup` from the node's lookup count. No answer.
    Forget {
        nlookup: u64,
    },
    /// Several [`Op::Forget`] of several nodes. No answer.
    BatchForget(ForgetIter<'a>),
    Getattr(GetattrIn),
    Setattr(SetattrIn),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        args: MknodIn,
        name: &'a [u8],
    },
    Mkdir {
        args: MkdirIn,
        name: &'a [u8],
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    /// RENAME (flags 0) and RENAME2 (flags of renameat2(2)).
    Rename {
        newdir: u64,
        flags: u32,
        name: &'a [u8],
        newname: &'a [u8],
    },
    /// A new name in the directory for `oldnodeid`.
    Link {
        oldnodeid: u64,
        name: &'a [u8],
    },
    Open(OpenIn),
    Read(ReadIn),
    /// `data` has exactly `args.size` bytes.
    Write {
        args: WriteIn,
        data: &'a [u8],
    },
    Statfs,
    Release(ReleaseIn),
    Fsync(FsyncIn),
    /// `flags` are those of setxattr(2).
    Setxattr {
        flags: u32,
        name: &'a [u8],
        value: &'a [u8],
    },
    /// With `size` 0 only the length is wanted.
    Getxattr {
        size: u32,
        name: &'a [u8],
    },
    /// With `size` 0 only the length is wanted.
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    /// A descriptor was closed (others of the same open file may remain).
    Flush(FlushIn),
    /// First request of a mount.
    Init(InitIn),
    Opendir(OpenIn),
    Readdir(ReadIn),
    Readdirplus(ReadIn),
    Releasedir(ReleaseIn),
    Fsyncdir(FsyncIn),
    Getlk(LkIn),
    /// SETLK, and SETLKW if `wait`.
    Setlk {
        args: LkIn,
        wait: bool,
    },
    Access {
        mask: u32,
    },
    Create {
        args: CreateIn,
        name: &'a [u8],
    },
    /// The caller of the request `unique` was interrupted; no answer (EAGAIN asks to hear of it again).
    Interrupt {
        unique: u64,
    },
    Bmap(BmapIn),
    /// The mount is going away.
    Destroy,
    Ioctl {
        args: IoctlIn,
        data: &'a [u8],
    },
    Poll(PollIn),
    /// Answer to a RETRIEVE notification. No answer.
    NotifyReply {
        args: NotifyRetrieveIn,
        data: &'a [u8],
    },
    Fallocate(FallocateIn),
    Lseek(LseekIn),
    /// COPY_FILE_RANGE, and COPY_FILE_RANGE_64 if `wide` (the answers differ).
    CopyFileRange {
        args: CopyFileRangeIn,
        wide: bool,
    },
    Syncfs,
    /// An unnamed file in the directory; `args` as for [`Op::Create`].
    Tmpfile {
        args: CreateIn,
    },
    Statx(StatxIn),
    /// To be answered with ENOSYS.
    Unknown {
        opcode: u32,
    },
}

/// The nodes of a BATCH_FORGET.
#[derive(Clone, Debug)]
pub struct ForgetIter<'a>(&'a [u8]);

impl Iterator for ForgetIter<'_> {
    type Item = ForgetOne;

    fn next(&mut self) -> Option<ForgetOne> {
        let mut reader = Reader::new(self.0);
        let one = reader.fixed().ok()?;
        self.0 = &self.0[size_of::<ForgetOne>()..];
        Some(one)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let n = self.0.len() / size_of::<ForgetOne>();
        (n, Some(n))
    }
}

impl ExactSizeIterator for ForgetIter<'_> {}

/// Whether the kernel waits for an answer to this opcode.
pub(super) fn wants_reply(code: u32) -> bool {
    !matches!(code, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY)
}

/// Parses the arguments of `code`; bytes behind them are ignored, since a newer minor version may add some.
pub(super) fn parse(code: u32, mut r: Reader<'_>) -> Result<Op<'_>, Reason> {
    Ok(match code {
        opcode::LOOKUP => Op::Lookup { name: r.name()? },
        opcode::FORGET => Op::Forget { nlookup: r.fixed::<ForgetIn>()?.nlookup },
        opcode::BATCH_FORGET => batch_forget(r)?,
        opcode::INTERRUPT => Op::Interrupt { unique: r.fixed::<InterruptIn>()?.unique },
        opcode::INIT => Op::Init(init(r)?),
        opcode::DESTROY => Op::Destroy,
        opcode::STATFS => Op::Statfs,
        opcode::SYNCFS => Op::Syncfs,
        opcode::GETATTR => Op::Getattr(r.fixed()?),
        opcode::SETATTR => Op::Setattr(r.fixed()?),
        opcode::STATX => Op::Statx(r.fixed()?),
        opcode::ACCESS => Op::Access { mask: r.fixed::<AccessIn>()?.mask },
        opcode::READLINK => Op::Readlink,
        opcode::SYMLINK
        | opcode::MKNOD
        | opcode::MKDIR
        | opcode::UNLINK
        | opcode::RMDIR
        | opcode::RENAME
        | opcode::RENAME2
        | opcode::LINK
        | opcode::CREATE
        | opcode::TMPFILE => return namespace(code, r),
        opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
            return xattr(code, r);
        }
        _ => return file(code, r),
    })
}

/// Operations that change a directory.
fn namespace(code: u32, mut r: Reader<'_>) -> Result<Op<'_>, Reason> {
    Ok(match code {
        opcode::SYMLINK => Op::Symlink { name: r.name()?, target: r.string()? },
        opcode::MKNOD => Op::Mknod { args: r.fixed()?, name: r.name()? },
        opcode::MKDIR => Op::Mkdir { args: r.fixed()?, name: r.name()? },
        opcode::UNLINK => Op::Unlink { name: r.name()? },
        opcode::RMDIR => Op::Rmdir { name: r.name()? },
        opcode::RENAME => {
            let args: RenameIn = r.fixed()?;
            Op::Rename { newdir: args.newdir, flags: 0, name: r.name()?, newname: r.name()? }
        }
        opcode::RENAME2 => {
            let args: Rename2In = r.fixed()?;
            Op::Rename { newdir: args.newdir, flags: args.flags, name: r.name()?, newname: r.name()? }
        }
        opcode::LINK => Op::Link { oldnodeid: r.fixed::<LinkIn>()?.oldnodeid, name: r.name()? },
        opcode::CREATE => Op::Create { args: r.fixed()?, name: r.name()? },
        // The name that comes with it is not one ("/").
        opcode::TMPFILE => Op::Tmpfile { args: r.fixed()? },
        _ => Op::Unknown { opcode: code },
    })
}

/// Operations on extended attributes. SETXATTR_EXT is never agreed, so the short form is the only one.
fn xattr(code: u32, mut r: Reader<'_>) -> Result<Op<'_>, Reason> {
    Ok(match code {
        opcode::SETXATTR => {
            let args: SetxattrCompatIn = r.fixed()?;
            let name = r.string()?;
            Op::Setxattr { flags: args.flags, name, value: r.bytes(args.size as usize)? }
        }
        opcode::GETXATTR => {
            let args: GetxattrIn = r.fixed()?;
            Op::Getxattr { size: args.size, name: r.string()? }
        }
        opcode::LISTXATTR => Op::Listxattr { size: r.fixed::<GetxattrIn>()?.size },
        opcode::REMOVEXATTR => Op::Removexattr { name: r.string()? },
        _ => Op::Unknown { opcode: code },
    })
}

/// Operations on open files and directories, and all that are unknown.
fn file(code: u32, mut r: Reader<'_>) -> Result<Op<'_>, Reason> {
    Ok(match code {
        opcode::OPEN => Op::Open(r.fixed()?),
        opcode::READ => Op::Read(r.fixed()?),
        opcode::WRITE => {
            let args: WriteIn = r.fixed()?;
            Op::Write { args, data: r.bytes(args.size as usize)? }
        }
        opcode::RELEASE => Op::Release(r.fixed()?),
        opcode::FSYNC => Op::Fsync(r.fixed()?),
        opcode::FLUSH => Op::Flush(r.fixed()?),
        opcode::OPENDIR => Op::Opendir(r.fixed()?),
        opcode::READDIR => Op::Readdir(r.fixed()?),
        opcode::READDIRPLUS => Op::Readdirplus(r.fixed()?),
        opcode::RELEASEDIR => Op::Releasedir(r.fixed()?),
        opcode::FSYNCDIR => Op::Fsyncdir(r.fixed()?),
        opcode::GETLK => Op::Getlk(r.fixed()?),
        opcode::SETLK => Op::Setlk { args: r.fixed()?, wait: false },
        opcode::SETLKW => Op::Setlk { args: r.fixed()?, wait: true },
        opcode::BMAP => Op::Bmap(r.fixed()?),
        opcode::IOCTL => {
            let args: IoctlIn = r.fixed()?;
            Op::Ioctl { args, data: r.bytes(args.in_size as usize)? }
        }
        opcode::POLL => Op::Poll(r.fixed()?),
        opcode::NOTIFY_REPLY => {
            let args: NotifyRetrieveIn = r.fixed()?;
            Op::NotifyReply { args, data: r.bytes(args.size as usize)? }
        }
        opcode::FALLOCATE => Op::Fallocate(r.fixed()?),
        opcode::LSEEK => Op::Lseek(r.fixed()?),
        opcode::COPY_FILE_RANGE => Op::CopyFileRange { args: r.fixed()?, wide: false },
        opcode::COPY_FILE_RANGE_64 => Op::CopyFileRange { args: r.fixed()?, wide: true },
        _ => Op::Unknown { opcode: code },
    })
}

fn batch_forget(mut r: Reader<'_>) -> Result<Op<'_>, Reason> {
    let count = r.fixed::<BatchForgetIn>()?.count as usize;
    let len = count.checked_mul(size_of::<ForgetOne>()).ok_or("the count overflows")?;
    Ok(Op::BatchForget(ForgetIter(r.bytes(len)?)))
}

/// Kernels before 7.36 send only the first four fields.
fn init(mut r: Reader<'_>) -> Result<InitIn, Reason> {
    if r.available() >= size_of::<InitIn>() {
        return r.fixed();
    }
    let old: InitCompatIn = r.fixed()?;
    Ok(InitIn {
        major: old.major,
        minor: old.minor,
        max_readahead: old.max_readahead,
        flags: old.flags,
        ..InitIn::default()
    })
}
