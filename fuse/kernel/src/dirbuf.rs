//! Contents of READDIR and READDIRPLUS answers.

use zerocopy::IntoBytes;

use crate::abi::{Dirent, Direntplus, EntryOut, NAME_MAX};
use crate::error::Error;

/// Largest directory answer built here, whatever the kernel offers room for, in bytes.
const LIMIT_MAX: usize = 1 << 20;

/// The place behind an entry, where a later READDIR goes on: telldir's number.
///
/// It must name the same place for as long as the directory exists, whatever is created or removed meanwhile.
/// 0 is the start of the directory, and the kernel keeps it in a signed 64-bit number, hence the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cookie(u64);

impl Cookie {
    /// Accepts 1 to 2^63-1.
    pub fn new(value: u64) -> Option<Self> {
        (1..=i64::MAX as u64).contains(&value).then_some(Self(value))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Whether an entry had room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pushed {
    /// It is in the buffer.
    Added,
    /// No room: send the buffer, the kernel asks again with the last cookie.
    Full,
}

/// Collects entries up to the size that the kernel asked for.
///
/// An answer without entries means the end of the directory, so if the first entry is [`Pushed::Full`] the
/// request must fail with EINVAL.
#[derive(Debug)]
pub struct DirBuf {
    bytes: Vec<u8>,
    limit: usize,
}

impl DirBuf {
    /// A buffer for a request with `size` (of `ReadIn`), in bytes.
    pub fn new(size: u32) -> Self {
        let limit = (size as usize).min(LIMIT_MAX);
        Self { bytes: Vec::with_capacity(limit.min(64 << 10)), limit }
    }

    /// Adds an entry for READDIR. `kind` is a `DT_…` number (`mode >> 12`), `next` the place behind it.
    pub fn push(&mut self, ino: u64, next: Cookie, kind: u32, name: &[u8]) -> Result<Pushed, Error> {
        let dirent = dirent(ino, next, kind, name)?;
        Ok(self.append(dirent.as_bytes(), name))
    }

    /// Adds an entry for READDIRPLUS. An entry with a node id adds one to that node's lookup count, exactly
    /// as LOOKUP does; with node id 0 (as for `.` and `..`) only name and inode number count.
    pub fn push_plus(
        &mut self,
        ino: u64,
        next: Cookie,
        kind: u32,
        name: &[u8],
        entry: &EntryOut,
    ) -> Result<Pushed, Error> {
        let plus = Direntplus { entry_out: *entry, dirent: dirent(ino, next, kind, name)? };
        Ok(self.append(plus.as_bytes(), name))
    }

    fn append(&mut self, head: &[u8], name: &[u8]) -> Pushed {
        let len = (head.len() + name.len()).next_multiple_of(8);
        if self.bytes.len() + len > self.limit {
            return Pushed::Full;
        }
        let end = self.bytes.len() + len;
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        Pushed::Added
    }

    /// Whether no entry was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The payload of the answer.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
}

fn dirent(ino: u64, next: Cookie, kind: u32, name: &[u8]) -> Result<Dirent, Error> {
    check_name(name)?;
    Ok(Dirent { ino, off: next.get(), namelen: name.len() as u32, r#type: kind })
}

/// The kernel ends the whole listing with EIO at a name that no directory can hold.
pub(crate) fn check_name(name: &[u8]) -> Result<(), Error> {
    let bad = name.is_empty() || name.len() > NAME_MAX || name.contains(&b'/') || name.contains(&0);
    if bad { Err(Error::BadName(name.len())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_stop_at_the_limit() {
        let mut dir = DirBuf::new(32 * 2 + 8);
        let cookie = |n| Cookie::new(n).unwrap();
        assert_eq!(dir.push(5, cookie(1), 8, b"a").unwrap(), Pushed::Added);
        assert_eq!(dir.push(6, cookie(2), 4, b"bcdefghi").unwrap(), Pushed::Added);
        assert_eq!(dir.push(7, cookie(3), 8, b"c").unwrap(), Pushed::Full);
        let bytes = dir.as_slice();
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[0..8], 5u64.to_ne_bytes());
        assert_eq!(bytes[8..16], 1u64.to_ne_bytes());
        assert_eq!(bytes[16..20], 1u32.to_ne_bytes());
        assert_eq!(bytes[20..24], 8u32.to_ne_bytes());
        assert_eq!(&bytes[24..32], b"a\0\0\0\0\0\0\0");
        assert_eq!(&bytes[56..64], b"bcdefghi");
    }

    #[test]
    fn plus_entries_start_with_the_entry() {
        let mut dir = DirBuf::new(160);
        let entry = EntryOut { nodeid: 9, ..EntryOut::default() };
        let cookie = Cookie::new(77).unwrap();
        assert_eq!(dir.push_plus(9, cookie, 8, b"name", &entry).unwrap(), Pushed::Added);
        assert_eq!(dir.as_slice().len(), 160);
        assert_eq!(dir.as_slice()[..8], 9u64.to_ne_bytes());
        assert_eq!(dir.as_slice()[136..144], 77u64.to_ne_bytes());
        assert_eq!(dir.push_plus(9, cookie, 8, b"x", &entry).unwrap(), Pushed::Full);
    }

    #[test]
    fn bad_names_and_cookies_are_refused() {
        let mut dir = DirBuf::new(4096);
        for name in [&b""[..], b"a/b", b"a\0", &[b'x'; NAME_MAX + 1]] {
            assert!(matches!(dir.push(1, Cookie(1), 8, name), Err(Error::BadName(_))));
        }
        assert!(dir.is_empty());
        assert!(Cookie::new(0).is_none() && Cookie::new(1 << 63).is_none());
        assert!(Cookie::new(i64::MAX as u64).is_some());
    }

    #[test]
    fn a_huge_size_does_not_allocate_it() {
        let dir = DirBuf::new(u32::MAX);
        assert!(dir.bytes.capacity() <= LIMIT_MAX);
    }
}
