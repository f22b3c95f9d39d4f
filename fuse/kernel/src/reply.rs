//! Answers: the fixed part of a reply, to be sent with a payload that is never copied here.

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use crate::abi::*;

/// Longest fixed part of an answer, in bytes (that of STATX).
const FIXED_MAX: usize = size_of::<StatxOut>();

/// The part of an answer that lies between the header and the payload.
///
/// Which constructor fits which request is said at each; [`Reply::data`] and [`Reply::ioctl`] are followed by
/// a payload, which the channel takes as slices.
#[derive(Clone, Debug)]
pub struct Reply {
    error: i32,
    len: usize,
    fixed: [u8; FIXED_MAX],
}

impl Reply {
    fn empty(error: i32) -> Self {
        Self { error, len: 0, fixed: [0; FIXED_MAX] }
    }

    fn with<T: IntoBytes + Immutable>(value: &T) -> Self {
        let mut reply = Self::empty(0);
        reply.push(value);
        reply
    }

    fn push<T: IntoBytes + Immutable>(&mut self, value: &T) {
        let end = self.len + size_of::<T>();
        self.fixed[self.len..end].copy_from_slice(value.as_bytes());
        self.len = end;
    }

    /// The request failed. Any request.
    pub fn error(errno: Errno) -> Self {
        Self::empty(-errno.raw_os_error())
    }

    /// Success without content: UNLINK, RMDIR, RENAME, RELEASE, FLUSH, FSYNC, ACCESS, SETXATTR, …
    pub fn ok() -> Self {
        Self::empty(0)
    }

    /// Success; the content is the payload: READ, READLINK, READDIR, READDIRPLUS, GETXATTR, LISTXATTR.
    pub fn data() -> Self {
        Self::empty(0)
    }

    /// LOOKUP, MKNOD, MKDIR, SYMLINK, LINK.
    pub fn entry(entry: &EntryOut) -> Self {
        Self::with(entry)
    }

    /// GETATTR, SETATTR.
    pub fn attr(attr: &AttrOut) -> Self {
        Self::with(attr)
    }

    /// STATX.
    pub fn statx(statx: &StatxOut) -> Self {
        Self::with(statx)
    }

    /// OPEN, OPENDIR.
    pub fn open(open: &OpenOut) -> Self {
        Self::with(open)
    }

    /// CREATE, TMPFILE.
    pub fn create(entry: &EntryOut, open: &OpenOut) -> Self {
        let mut reply = Self::with(entry);
        reply.push(open);
        reply
    }

    /// WRITE (bytes taken) and COPY_FILE_RANGE (bytes copied).
    pub fn written(bytes: u32) -> Self {
        Self::with(&WriteOut { size: bytes, padding: 0 })
    }

    /// COPY_FILE_RANGE in the form the request has; the narrow form caps at 2 GiB, as the kernel asks at most
    /// that.
    pub fn copied(bytes: u64, wide: bool) -> Self {
        if wide {
            Self::with(&CopyFileRangeOut { bytes_copied: bytes })
        } else {
            Self::written(u32::try_from(bytes).unwrap_or(i32::MAX as u32))
        }
    }

    /// STATFS.
    pub fn statfs(statfs: &Kstatfs) -> Self {
        Self::with(statfs)
    }

    /// GETXATTR, LISTXATTR with size 0: the length in bytes.
    pub fn xattr_len(bytes: u32) -> Self {
        Self::with(&GetxattrOut { size: bytes, padding: 0 })
    }

    /// GETLK.
    pub fn lk(lock: &FileLock) -> Self {
        Self::with(&LkOut { lk: *lock })
    }

    /// LSEEK: the offset found.
    pub fn lseek(offset: u64) -> Self {
        Self::with(&LseekOut { offset })
    }

    /// BMAP.
    pub fn bmap(block: u64) -> Self {
        Self::with(&BmapOut { block })
    }

    /// IOCTL; the data that the ioctl returns are the payload.
    pub fn ioctl(result: i32) -> Self {
        Self::with(&IoctlOut { result, ..IoctlOut::default() })
    }

    /// POLL.
    pub fn poll(revents: u32) -> Self {
        Self::with(&PollOut { revents, padding: 0 })
    }

    /// INIT.
    pub fn init(init: &InitOut) -> Self {
        Self::with(init)
    }

    /// Whether this is an error, and which errno (positive).
    pub fn errno(&self) -> Option<i32> {
        (self.error != 0).then_some(-self.error)
    }

    /// The bytes between header and payload.
    pub fn fixed(&self) -> &[u8] {
        &self.fixed[..self.len]
    }

    /// The header for an answer to `unique` with `payload` more bytes; `None` beyond 4 GiB.
    pub(crate) fn header(&self, unique: u64, payload: usize) -> Option<OutHeader> {
        let len = size_of::<OutHeader>().checked_add(self.len)?.checked_add(payload)?;
        Some(OutHeader { len: u32::try_from(len).ok()?, error: self.error, unique })
    }
}
