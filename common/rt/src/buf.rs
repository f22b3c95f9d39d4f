//! Page-aligned buffers for O_DIRECT and for payloads: what the disk filled is what the network sends.

use memmap2::{Advice, MmapMut};
use std::cell::RefCell;
use std::ops::{Deref, Range, RangeInclusive};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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

/// Classes of buffers, 4 KiB to 64 MiB, that are cut from slabs of huge pages: the device gets few long segments
/// where scattered pages make hundreds, and a driver can register the slabs with the kernel once and for all.
const SLAB_CLASSES: RangeInclusive<usize> = 0..=14;
/// Bytes of a slab, unless one buffer is larger: a huge page.
const SLAB_BYTES: usize = 2 << 20;
/// Bytes of all slabs of a process; they are kept for good. Beyond, buffers are plain memory.
const SLABS_BYTES_MAX: usize = 256 << 20;

/// Slabs of a process at most.
pub const SLABS_MAX: usize = SLABS_BYTES_MAX / SLAB_BYTES;

static SLABS_BYTES: AtomicUsize = AtomicUsize::new(0);
/// The addresses of each slab.
static SLABS: Mutex<Vec<Range<usize>>> = Mutex::new(Vec::new());
/// Parts of slabs that no thread's pool holds, with the number of their slab.
static SPARE: Mutex<[Vec<Part>; CLASSES]> = Mutex::new([const { Vec::new() }; CLASSES]);

/// A buffer's part of a slab, and the slab's number.
type Part = (&'static mut [Page], u16);

/// The addresses of the slabs from number `from` on, in order of their numbers. They are mapped for as long as the
/// process lives; what is in them belongs to the buffers.
pub fn slabs(from: usize) -> Vec<Range<usize>> {
    SLABS.lock().unwrap_or_else(PoisonError::into_inner).get(from..).unwrap_or_default().to_vec()
}

const CLASSES: usize = 16;

enum Memory {
    Own(Box<[Page]>),
    /// With the number of the slab.
    Slab(&'static mut [Page], u16),
}

impl Memory {
    fn new(class: usize) -> Self {
        if SLAB_CLASSES.contains(&class) {
            let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
            if spare[class].is_empty() {
                spare[class].extend(slab(class));
            }
            if let Some((pages, number)) = spare[class].pop() {
                return Self::Slab(pages, number);
            }
        }
        Self::Own(<[Page]>::new_box_zeroed_with_elems(1 << class).expect("memory for an I/O buffer"))
    }
    fn pages(&self) -> &[Page] {
        match self {
            Self::Own(pages) => pages,
            Self::Slab(pages, _) => pages,
        }
    }
    fn pages_mut(&mut self) -> &mut [Page] {
        match self {
            Self::Own(pages) => pages,
            Self::Slab(pages, _) => pages,
        }
    }
    /// Nobody needs it at the moment.
    fn free(self) {
        if let Self::Slab(pages, number) = self {
            let class = class_of(pages.len());
            SPARE.lock().unwrap_or_else(PoisonError::into_inner)[class].push((pages, number));
        }
    }
}

/// The buffers of a new slab; none if there are enough of them, or no memory.
fn slab(class: usize) -> impl Iterator<Item = Part> {
    let bytes = SLAB_BYTES.max(PAGE_SIZE << class);
    let more = |all: usize| Some(all + bytes).filter(|all| *all <= SLABS_BYTES_MAX);
    let pages = SLABS_BYTES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().and_then(|_| {
        let map = MmapMut::map_anon(bytes).ok()?;
        // Where there are no huge pages, small ones do.
        let _ = map.advise(Advice::HugePage);
        let map: &'static mut MmapMut = Box::leak(Box::new(map));
        <[Page]>::mut_from_bytes(&mut map[..]).ok()
    });
    let pages = pages.unwrap_or_default();
    let mut slabs = SLABS.lock().unwrap_or_else(PoisonError::into_inner);
    let number = slabs.len() as u16;
    if !pages.is_empty() {
        let start = pages.as_ptr().addr();
        slabs.push(start..start + bytes);
    }
    pages.chunks_exact_mut(1 << class).map(move |part| (part, number))
}

struct Pool {
    by_class: [Vec<Memory>; CLASSES],
    bytes: usize,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.by_class.iter_mut().flat_map(std::mem::take).for_each(Memory::free);
    }
}

thread_local! {
    static POOL: RefCell<Pool> =
        const { RefCell::new(Pool { by_class: [const { Vec::new() }; CLASSES], bytes: 0 }) };
}

/// Class `c` holds buffers of `2^c` pages.
fn class_of(pages: usize) -> usize {
    pages.max(1).next_power_of_two().trailing_zeros() as usize
}

/// An owned, page-aligned run of bytes with a length. Its contents start as zeros or as what an earlier user
/// of the memory left: [`Buf::zeroed`] says zeros, [`Buf::scratch`] leaves them.
pub struct Buf {
    memory: Memory,
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
            if let Some(memory) = &found {
                pool.bytes -= memory.pages().len() * PAGE_SIZE;
            }
            found
        });
        Self { memory: reused.unwrap_or_else(|| Memory::new(class)), len }
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
        self.memory.pages().len() * PAGE_SIZE
    }
    /// Changes the number of bytes in use; bytes beyond the old length are arbitrary.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.len = len;
    }
    /// The number of the slab that it is part of (see [`slabs`]), if it is.
    pub fn slab(&self) -> Option<u16> {
        match self.memory {
            Memory::Slab(_, number) => Some(number),
            Memory::Own(_) => None,
        }
    }
    /// The bytes in use.
    pub fn bytes(&self) -> &[u8] {
        &self.memory.pages().as_bytes()[..self.len]
    }
    /// The bytes in use.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory.pages_mut().as_mut_bytes()[..self.len]
    }
    /// All bytes, used or not: for drivers that fill a buffer before its length is known.
    pub fn whole_mut(&mut self) -> &mut [u8] {
        self.memory.pages_mut().as_mut_bytes()
    }
    /// All bytes, used or not.
    pub fn whole(&self) -> &[u8] {
        self.memory.pages().as_bytes()
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Own(Box::default()));
        let bytes = memory.pages().len() * PAGE_SIZE;
        if bytes == 0 || bytes > POOLED_BUF_MAX {
            return;
        }
        let mut left = Some(memory);
        // During thread exit the pool is gone already.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.bytes + bytes <= POOL_BYTES_MAX {
                let class = class_of(bytes / PAGE_SIZE);
                pool.by_class[class].extend(left.take());
                pool.bytes += bytes;
            }
        });
        if let Some(memory) = left {
            memory.free();
        }
    }
}

impl Default for Buf {
    /// An empty buffer without memory.
    fn default() -> Self {
        Self { memory: Memory::Own(Box::default()), len: 0 }
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
    /// The number of the slab that it is part of (see [`slabs`]), if it is.
    pub fn slab(&self) -> Option<u16> {
        self.buf.slab()
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

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the pool of a thread that ends")]
    fn large_buffers_come_from_slabs_and_go_back_from_every_thread() {
        let at = |buf: &Buf| buf.whole().as_ptr() as usize;
        // A class that no other test uses.
        let two = || (Buf::scratch(32 << 20), Buf::scratch(32 << 20));
        let lent = std::thread::spawn(move || {
            let (mut a, b) = two();
            a.bytes_mut().fill(7);
            assert!(b.iter().all(|&byte| byte == 0));
            assert!(matches!(a.memory, Memory::Slab(..)) && at(&a) % PAGE_SIZE == 0);
            let slab = slabs(a.slab().unwrap().into()).remove(0);
            assert!(slab.contains(&at(&a)) && at(&a) + a.capacity() <= slab.end);
            [at(&a), at(&b)]
        });
        let lent = lent.join().unwrap();
        let (a, b) = two();
        assert!(lent.contains(&at(&a)) && lent.contains(&at(&b)) && at(&a) != at(&b));
        // What is too much is plain memory.
        let many: Vec<Buf> = (0..12).map(|_| Buf::scratch(32 << 20)).collect();
        assert!(matches!(many[11].memory, Memory::Own(_)));
        assert!(SLABS_BYTES.load(Ordering::Relaxed) <= SLABS_BYTES_MAX);
    }
}
