//! Which bytes of a file were written, as the file system has noted it (FIEMAP).
//!
//! Why `unsafe`: the kernel fills a structure by address. It is a local variable of the layout that
//! `linux/fiemap.h` gives, and says itself for how many extents it has room.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
/// The file is flushed first.
const SYNC: u32 = 1;
const LAST: u32 = 1;
/// The extent stands for several: no statement about its bytes.
const MERGED: u32 = 0x1000;
const ROOM: usize = 64;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
struct Map {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [Extent; ROOM],
}

/// Some of the ranges at or behind `from` that were written, in order; none if there are no more. Reserved space,
/// holes and what is shared with another file don't count.
pub(super) fn written(fd: &OwnedFd, mut from: u64) -> io::Result<Vec<Range<u64>>> {
    loop {
        let (length, room) = (u64::MAX - from, ROOM as u32);
        let extents = [Extent::default(); ROOM];
        let mut map = Map { start: from, length, flags: SYNC, mapped: 0, room, reserved: 0, extents };
        // SAFETY: `map` has the layout that this request asks for and room for `room` extents.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let extents = &map.extents[..(map.mapped as usize).min(ROOM)];
        let plain = extents.iter().filter(|e| e.flags & !(LAST | MERGED) == 0);
        let found: Vec<Range<u64>> = plain.map(|e| e.logical.max(from)..e.logical + e.length).collect();
        let Some(last) = extents.last().filter(|last| found.is_empty() && last.flags & LAST == 0) else {
            return Ok(found);
        };
        from = last.logical + last.length;
    }
}
