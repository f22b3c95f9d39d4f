//! Memory that the ranks of a group share: a heap for each, all laid out alike, in one file.
//!
//! Unsafe code is here alone. A heap is written by other processes, so its bytes are reached through raw pointers into
//! the mapping, within its bounds. What is handed out as a slice is memory that nobody writes at that time: a rank
//! writes into another's heap only between that rank's signal that the place is free and its own that it is done,
//! and a slice is taken after the latter and given up before the next of the former. Signals are atomic, with release
//! and acquire, which orders the bytes around them. A process that breaks these rules can only spoil numbers: no bit
//! pattern is invalid for what is read.
#![allow(unsafe_code)]

use crate::{EpError, Result};
use memmap2::MmapRaw;
use rustix::thread::futex;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Bytes between two signals: one for each line of a processor's cache.
const SIGNAL_STRIDE: usize = 64;
/// Looks at a signal before this rank sleeps.
const LOOKS: u32 = 200;
/// Longest sleep between two looks at the time.
const NAP: Duration = Duration::from_millis(50);
/// Longer limits are none.
const LIMIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// A heap begins at a multiple of this.
const PAGE: usize = 4096;

pub(crate) struct Heap {
    map: MmapRaw,
    path: PathBuf,
    inode: u64,
    rank: usize,
    /// Bytes of each rank's heap.
    bytes: usize,
    limit: Duration,
}

#[expect(clippy::disallowed_methods, reason = "ranks of a training job run outside the file system's seam")]
fn now() -> Instant {
    Instant::now()
}

/// The file, with all its space: it appears whole, so that nobody sees it shorter.
fn shared(path: &Path, rank: usize, bytes: u64) -> std::io::Result<File> {
    let opened = || File::options().read(true).write(true).open(path);
    match opened() {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}-{rank}", std::process::id()));
    let made = PathBuf::from(name);
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&made)?;
    let placed = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
        .map_err(std::io::Error::from)
        .and_then(|()| std::fs::hard_link(&made, path));
    std::fs::remove_file(&made)?;
    match placed {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => opened(),
        other => other.map(|()| file),
    }
}

impl Heap {
    /// Maps the file at `path`, which is made by whoever comes first. It has `bytes` for each rank.
    pub(crate) fn open(
        path: &Path,
        rank: usize,
        ranks: usize,
        bytes: usize,
        limit: Duration,
    ) -> Result<Self> {
        let bytes = bytes.next_multiple_of(PAGE);
        let failed = |why: String| EpError::File { path: path.display().to_string(), why };
        let all = (bytes * ranks) as u64;
        let file =
            shared(path, rank, all).map_err(|error| failed(format!("{error} (it takes {all} bytes)")))?;
        let there = file.metadata().map_err(|error| failed(error.to_string()))?.len();
        if there != all {
            let why = format!(
                "it has {there} bytes, and this rank's numbers need {all}: start all ranks with the same"
            );
            return Err(failed(why));
        }
        let inode = file.metadata().map_err(|error| failed(error.to_string()))?.ino();
        let map = MmapRaw::map_raw(&file).map_err(|error| failed(error.to_string()))?;
        Ok(Self { map, path: path.to_owned(), inode, rank, bytes, limit: limit.min(LIMIT_MAX) })
    }

    /// Takes the name away once nobody needs it, unless it is that of another attempt's file.
    pub(crate) fn unlink(&self) {
        if std::fs::metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn at(&self, rank: usize, offset: usize, length: usize) -> *mut u8 {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.bytes), "outside of a heap");
        let offset = rank.checked_mul(self.bytes).and_then(|from| from.checked_add(offset));
        let offset = offset.filter(|from| from + length <= self.map.len()).expect("there is such a rank");
        // SAFETY: within the mapping, as was just seen.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    /// Writes into the heap of a rank, at a place that it has said is free.
    pub(crate) fn put(&self, rank: usize, offset: usize, bytes: &[u8]) {
        let to = self.at(rank, offset, bytes.len());
        // SAFETY: `to` has room for the bytes, and the caller's slice is no part of what nobody may write.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }
    /// Bytes of the own heap that others have said they have written.
    pub(crate) fn own(&self, offset: usize, length: usize) -> &[u8] {
        // SAFETY: within the mapping, and written by nobody now (see above).
        unsafe { std::slice::from_raw_parts(self.at(self.rank, offset, length), length) }
    }
    /// Bytes of any rank's heap that it has said it has written.
    pub(crate) fn of(&self, rank: usize, offset: usize, length: usize) -> &[u8] {
        // SAFETY: within the mapping, and written by nobody now (see above).
        unsafe { std::slice::from_raw_parts(self.at(rank, offset, length), length) }
    }

    fn signal_of(&self, rank: usize, offset: usize) -> &AtomicU32 {
        let at = self.at(rank, offset, size_of::<AtomicU32>());
        assert!(offset.is_multiple_of(align_of::<AtomicU32>()));
        // SAFETY: within the mapping, aligned, and only ever reached as an atomic.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }

    /// Tells a rank; what was written before is seen by whoever sees this.
    pub(crate) fn tell(&self, rank: usize, signal: usize, value: u32) {
        let place = self.signal_of(rank, signal * SIGNAL_STRIDE);
        place.store(value, Ordering::Release);
        let _ = futex::wake(place, futex::Flags::empty(), u32::MAX);
    }
    /// What this rank was told last.
    pub(crate) fn told(&self, signal: usize) -> u32 {
        self.signal_of(self.rank, signal * SIGNAL_STRIDE).load(Ordering::Acquire)
    }
    /// Waits until this rank was told at least `value`, counted round. `false`: in vain.
    pub(crate) fn wait(&self, signal: usize, value: u32) -> bool {
        let place = self.signal_of(self.rank, signal * SIGNAL_STRIDE);
        let reached = |now: u32| now.wrapping_sub(value).cast_signed() >= 0;
        let mut until = None;
        loop {
            for _ in 0..LOOKS {
                if reached(place.load(Ordering::Acquire)) {
                    return true;
                }
                std::hint::spin_loop();
            }
            let until = *until.get_or_insert_with(|| now() + self.limit);
            let left = until.saturating_duration_since(now()).min(NAP);
            if left.is_zero() {
                return false;
            }
            let seen = place.load(Ordering::Acquire);
            if !reached(seen) {
                let left = futex::Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
                let _ = futex::wait(place, futex::Flags::empty(), seen, Some(&left));
            }
        }
    }
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }
    /// Bytes that so many signals take at the beginning of a heap.
    pub(crate) fn signals(count: usize) -> usize {
        count * SIGNAL_STRIDE
    }
}
