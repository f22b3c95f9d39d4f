//! Page-aligned buffers for O_DIRECT and for payloads: what the disk filled is what the network sends.

use std::cell::RefCell;
use std::ops::{Deref, Range};
use std::sync::Arc;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Alignment of every buffer, in bytes: enough for O_DIRECT on any device with blocks up to 4 KiB.
pub const PAGE_SIZE: usize = 4096;

/// Bytes of idle buffers that a thread keeps for reuse.
const POOL_BYTES_MAX: usize = 256 << 20;
/// Buffers larger than this are not kept.
const POOLED_BUF_MAX: usize = 64 << 20;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_SIZE]);

struct Pool {
    by_class: [Vec<Box<[Page]>>; 16],
    bytes: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { by_class: [const { Vec::new() }; 16], bytes: 0 }) };
}

/// Class `c` holds buffers of `2^c` pages.
fn class_of(pages: usize) -> usize {
    pages.max(1).next_power_of_two().trailing_zeros() as usize
}

/// An owned, page-aligned run of bytes with a length. Its contents start as zeros or as what an earlier user
/// of the memory left: [`Buf::zeroed`] says zeros, [`Buf::scratch`] leaves them.
pub struct Buf {
    pages: Box<[Page]>,
    len: usize,
}

impl Buf {
    /// A buffer of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::scratch(len);
        buf.bytes_mut().fill(0);
        buf
    }

    /// A buffer of `len` bytes with arbitrary contents, to be overwritten. Capacity is rounded up to a power
    /// of two of pages.
    pub fn scratch(len: usize) -> Self {
        let class = class_of(len.div_ceil(PAGE_SIZE));
        let reused = POOL.with_borrow_mut(|pool| {
            let found = pool.by_class.get_mut(class).and_then(Vec::pop);
            if let Some(pages) = &found {
                pool.bytes -= pages.len() * PAGE_SIZE;
            }
            found
        });
        let pages = reused.unwrap_or_else(|| {
            <[Page]>::new_box_zeroed_with_elems(1 << class).expect("memory for an I/O buffer")
        });
        Self { pages, len }
    }

    /// A buffer with a copy of `bytes`.
    pub fn copy_from(bytes: &[u8]) -> Self {
        let mut buf = Self::scratch(bytes.len());
        buf.bytes_mut().copy_from_slice(bytes);
        buf
    }

    /// Number of bytes in use.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Bytes that fit without another allocation.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }
    /// Changes the number of bytes in use; bytes beyond the old length are arbitrary.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = len;
    }
    /// The bytes in use.
    pub fn bytes(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }
    /// The bytes in use.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.len]
    }
    /// All bytes, used or not: for drivers that fill a buffer before its length is known.
    pub fn whole_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_bytes()
    }
    /// All bytes, used or not.
    pub fn whole(&self) -> &[u8] {
        self.pages.as_bytes()
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        let bytes = pages.len() * PAGE_SIZE;
        if bytes == 0 || bytes > POOLED_BUF_MAX {
            return;
        }
        // During thread exit the pool is gone already: the memory is simply freed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.bytes + bytes <= POOL_BYTES_MAX
                && let Some(class) = pool.by_class.get_mut(class_of(pages.len()))
            {
                class.push(pages);
                pool.bytes += bytes;
            }
        });
    }
}

impl Default for Buf {
    /// An empty buffer without memory.
    fn default() -> Self {
        Self { pages: Box::default(), len: 0 }
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} of {} bytes)", self.len, self.capacity())
    }
}

/// A shared, immutable run of bytes within a buffer: what several writers (disk, successor, client) read at
/// once. Cheap to clone.
#[derive(Clone, Default)]
pub struct SharedBuf {
    buf: Arc<Buf>,
    start: usize,
    len: usize,
}

impl SharedBuf {
    /// A part of this run.
    ///
    /// # Panics
    /// If `range` is not within it.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} bytes", self.len);
        Self { buf: self.buf.clone(), start: self.start + range.start, len: range.end - range.start }
    }
    /// Whether the first byte is page-aligned in memory, as O_DIRECT needs.
    pub fn is_aligned(&self) -> bool {
        self.start.is_multiple_of(PAGE_SIZE)
    }
    /// The buffer itself if nobody else shares it and the run is the whole of it; else a copy.
    pub fn into_buf(self) -> Buf {
        if self.start != 0 || self.len != self.buf.len() {
            return Buf::copy_from(&self);
        }
        Arc::try_unwrap(self.buf).unwrap_or_else(|shared| Buf::copy_from(&shared))
    }
}

impl From<Buf> for SharedBuf {
    fn from(buf: Buf) -> Self {
        let len = buf.len();
        Self { buf: Arc::new(buf), start: 0, len }
    }
}

impl From<&[u8]> for SharedBuf {
    fn from(bytes: &[u8]) -> Self {
        Buf::copy_from(bytes).into()
    }
}

impl Deref for SharedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf.whole()[self.start..self.start + self.len]
    }
}

impl std::fmt::Debug for SharedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_reused() {
        let buf = Buf::copy_from(&[1, 2, 3]);
        assert_eq!(buf.bytes().as_ptr() as usize % PAGE_SIZE, 0);
        assert_eq!(&buf[..], [1, 2, 3]);
        let at = buf.whole().as_ptr();
        drop(buf);
        let again = Buf::scratch(4000);
        assert_eq!(again.whole().as_ptr(), at);
        assert!(Buf::zeroed(5000).iter().all(|&b| b == 0));
        assert_eq!(Buf::scratch(4097).capacity(), 8192);
        assert!(Buf::default().is_empty());
    }
}
