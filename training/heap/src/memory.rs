//! The mapping, and the locks on its file.
//!
//! Unsafe code is here alone. A heap is written by other processes, so its bytes are reached through raw pointers into
//! the mapping, within its bounds. What is handed out as a slice is memory that nobody writes at that time: a rank
//! writes into another's heap only between that rank's signal that the place is free and its own that it is done,
//! and a slice is taken after the latter and given up before the next of the former. Signals are atomic, with release
//! and acquire, which orders the bytes around them. A process that breaks these rules can only spoil numbers: no bit
//! pattern is invalid for what is read.
#![allow(unsafe_code)]

use memmap2::MmapRaw;
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU32;

/// A file, mapped as a heap for each rank.
pub(crate) struct Memory {
    map: MmapRaw,
    file: File,
    /// Bytes of each rank's heap.
    each: usize,
}

impl Memory {
    pub(crate) fn map(file: File, each: usize) -> Result<Self> {
        Ok(Self { map: MmapRaw::map_raw(&file)?, file, each })
    }

    fn at(&self, rank: usize, offset: usize, length: usize) -> *mut u8 {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.each), "outside of a heap");
        let offset = rank.checked_mul(self.each).and_then(|from| from.checked_add(offset));
        let offset = offset.filter(|from| from + length <= self.map.len()).expect("there is such a rank");
        // SAFETY: within the mapping, as was just seen.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    /// Writes bytes at a place that is free.
    pub(crate) fn put(&self, rank: usize, offset: usize, bytes: &[u8]) {
        let to = self.at(rank, offset, bytes.len());
        // SAFETY: `to` has room for the bytes, and the caller's slice is no part of what nobody may write.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Bytes that nobody writes now.
    pub(crate) fn get(&self, rank: usize, offset: usize, length: usize) -> &[u8] {
        // SAFETY: within the mapping, and written by nobody now (see above).
        unsafe { std::slice::from_raw_parts(self.at(rank, offset, length), length) }
    }

    /// A number that all may reach at any time.
    pub(crate) fn signal(&self, rank: usize, offset: usize) -> &AtomicU32 {
        let at = self.at(rank, offset, size_of::<AtomicU32>());
        assert!(offset.is_multiple_of(align_of::<AtomicU32>()));
        // SAFETY: within the mapping, aligned, and only ever reached as an atomic.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }

    /// Locks a rank's byte for as long as this file is open here. `false`: somebody else has it.
    pub(crate) fn lock(&self, rank: usize) -> Result<bool> {
        let mut lock = byte(rank);
        match self.fcntl(libc::F_OFD_SETLK, &mut lock) {
            Err(error) if [Some(libc::EAGAIN), Some(libc::EACCES)].contains(&error.raw_os_error()) => {
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// Whether somebody else has locked a rank's byte.
    pub(crate) fn is_locked(&self, rank: usize) -> Result<bool> {
        let mut lock = byte(rank);
        self.fcntl(libc::F_OFD_GETLK, &mut lock)?;
        Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
    }

    fn fcntl(&self, command: libc::c_int, lock: &mut libc::flock) -> Result<()> {
        // SAFETY: the file is open, and the struct is the one that these commands read and write.
        match unsafe { libc::fcntl(self.file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
            -1 => Err(Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

fn byte(rank: usize) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: rank as libc::off_t,
        l_len: 1,
        l_pid: 0,
    }
}
