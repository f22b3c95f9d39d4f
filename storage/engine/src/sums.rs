//! Checksum pages: the checksums of blocks, in files beside the data files. Block `b` of a class' file, counted
//! from the file's start, has its checksum in page `b / 960`. Each page has two places, written in turn: the
//! sequence, which grows by one from write to write, says which.
//!
//! ```text
//! 0   magic "ESUM"       u32     24  class                 u32
//! 4   CRC32C of [8, 4096) u32    28  sequence              u32
//! 8   target id          u64     32  known: bit i % 8 of byte i / 8 for block i, 120 bytes
//! 16  page               u64     152 zeros up to 256
//! 256 CRC32C of each of 960 blocks, u32
//! ```

use crate::class::{CLASSES, SlotId};
use crate::record::Reader;
use ember_rt::Buf;
use ember_types::checksum::crc32c;

const MAGIC: u32 = u32::from_le_bytes(*b"ESUM");
/// Blocks whose checksums are on one page.
pub(crate) const PER_PAGE: u32 = 960;
/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;
const KNOWN_AT: usize = 32;
const SUMS_AT: usize = 256;
const WORDS: usize = PER_PAGE as usize / 64;

/// A page of a class' file of checksums.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct PageId {
    pub(crate) class: u8,
    pub(crate) page: u32,
}

/// Blocks whose checksums lie one after the other on a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    pub(crate) page: PageId,
    /// First one on the page.
    pub(crate) index: u32,
    pub(crate) blocks: u32,
}

/// The place of a block in its class' file, in blocks.
pub(crate) fn place_of(at: SlotId, block: u32) -> u64 {
    (u64::from(at.slot) << at.class) + u64::from(block)
}

impl PageId {
    /// The page with the checksum of a block of a slot.
    pub(crate) fn of(at: SlotId, block: u32) -> Self {
        // No file is so long that this saturates: recovery compares extents with the files' lengths.
        let page = place_of(at, block) / u64::from(PER_PAGE);
        Self { class: at.class, page: u32::try_from(page).unwrap_or(u32::MAX) }
    }
    /// The place of its first block in the class' file, in blocks.
    pub(crate) fn first(self) -> u64 {
        u64::from(self.page) * u64::from(PER_PAGE)
    }
    /// Where in its file it is when it is written with a sequence, in bytes.
    pub(crate) fn offset(self, sequence: u32) -> u64 {
        (u64::from(self.page) * 2 + u64::from(sequence & 1)) * PAGE_BYTES as u64
    }
}

/// The stretches that hold the checksums of blocks `[block, block + blocks)` of a slot, in order.
pub(crate) fn stretches(at: SlotId, block: u32, blocks: u32) -> impl Iterator<Item = Stretch> {
    let (mut next, end) = (block, block + blocks);
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let page = PageId::of(at, next);
        let index = (place_of(at, next) % u64::from(PER_PAGE)) as u32;
        let blocks = (PER_PAGE - index).min(end - next);
        next += blocks;
        Some(Stretch { page, index, blocks })
    })
}

/// Name of the class' file of checksums.
pub(crate) fn sums_name(class: u8) -> String {
    crate::class::data_name(class).replace("data-", "sums-")
}
/// Bytes of a file of checksums for this many blocks.
pub(crate) fn sums_bytes(blocks: u64) -> u64 {
    blocks.div_ceil(u64::from(PER_PAGE)) * 2 * PAGE_BYTES as u64
}

/// The checksums of a page, and which of them are known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Page {
    sums: [u32; PER_PAGE as usize],
    known: [u64; WORDS],
}

impl Default for Page {
    fn default() -> Self {
        Self { sums: [0; PER_PAGE as usize], known: [0; WORDS] }
    }
}

impl Page {
    pub(crate) fn get(&self, index: u32) -> Option<u32> {
        let known = self.known[index as usize / 64] >> (index % 64) & 1 == 1;
        known.then(|| self.sums[index as usize])
    }
    pub(crate) fn set(&mut self, index: u32, sum: u32) {
        self.sums[index as usize] = sum;
        self.known[index as usize / 64] |= 1 << (index % 64);
    }
    pub(crate) fn forget(&mut self, index: u32) {
        self.sums[index as usize] = 0;
        self.known[index as usize / 64] &= !(1 << (index % 64));
    }
    /// Takes what `other` knows.
    pub(crate) fn add(&mut self, other: &Self) {
        (0..PER_PAGE).filter_map(|i| Some((i, other.get(i)?))).for_each(|(i, sum)| self.set(i, sum));
    }

    /// The bytes on the disk.
    pub(crate) fn encode(&self, target: u64, id: PageId, sequence: u32) -> Buf {
        let mut buf = Buf::zeroed(PAGE_BYTES);
        let out = buf.bytes_mut();
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..16].copy_from_slice(&target.to_le_bytes());
        out[16..24].copy_from_slice(&u64::from(id.page).to_le_bytes());
        out[24..28].copy_from_slice(&u32::from(id.class).to_le_bytes());
        out[28..32].copy_from_slice(&sequence.to_le_bytes());
        for (place, word) in out[KNOWN_AT..].chunks_exact_mut(8).zip(self.known) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        for (place, sum) in out[SUMS_AT..].chunks_exact_mut(4).zip(self.sums) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        let checksum = crc32c(&out[8..]);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
        buf
    }

    /// Reads a page: its sequence and content. The error says why it isn't this page.
    pub(crate) fn decode(bytes: &[u8], target: u64, id: PageId) -> Result<(u32, Self), &'static str> {
        if bytes.len() != PAGE_BYTES {
            return Err("the file ends within a checksum page");
        }
        let mut r = Reader(bytes);
        let (magic, checksum) = (r.u32()?, r.u32()?);
        if magic != MAGIC || crc32c(&bytes[8..]) != checksum {
            return Err("checksum page is damaged");
        }
        let (of, page, class, sequence) = (r.u64()?, r.u64()?, r.u32()?, r.u32()?);
        if (of, page, class) != (target, u64::from(id.page), u32::from(id.class)) || id.class >= CLASSES {
            return Err("checksum page belongs elsewhere");
        }
        let mut read = Self::default();
        for (word, place) in read.known.iter_mut().zip(bytes[KNOWN_AT..].chunks_exact(8)) {
            *word = place.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte));
        }
        for (sum, place) in read.sums.iter_mut().zip(bytes[SUMS_AT..].chunks_exact(4)) {
            *sum = u32::from_le_bytes([place[0], place[1], place[2], place[3]]);
        }
        Ok((sequence, read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_whole_and_at_its_place_or_refused() {
        let id = PageId { class: 8, page: 3 };
        let mut page = Page::default();
        page.set(0, 7);
        page.set(959, 9);
        page.set(5, 1);
        page.forget(5);
        let bytes = page.encode(7, id, 12);
        let read = Page::decode(&bytes, 7, id).unwrap();
        assert_eq!(read, (12, page));
        assert_eq!((read.1.get(0), read.1.get(5), read.1.get(959)), (Some(7), None, Some(9)));
        for at in 0..bytes.len() {
            let mut bent = bytes.to_vec();
            bent[at] ^= 1 << (at % 8);
            assert!(Page::decode(&bent, 7, id).is_err(), "byte {at}");
        }
        assert!(Page::decode(&bytes[..4095], 7, id).is_err());
        for (target, other) in [(8, id), (7, PageId { class: 7, ..id }), (7, PageId { page: 4, ..id })] {
            assert!(Page::decode(&bytes, target, other).is_err());
        }
    }

    #[test]
    fn stretches_cover_each_block_once() {
        let at = SlotId { class: 14, slot: 1 };
        let all: Vec<Stretch> = stretches(at, 100, 2000).collect();
        assert_eq!(all.iter().map(|s| s.blocks).sum::<u32>(), 2000);
        assert_eq!((all[0].page.page, all[0].index), ((16384 + 100) / 960, (16384 + 100) % 960));
        assert!(all.windows(2).all(|w| w[1].index == 0 && w[1].page.page == w[0].page.page + 1));
        assert_eq!(PageId { class: 0, page: 2 }.offset(3), 5 * 4096);
        assert_eq!((sums_name(8).as_str(), sums_bytes(961)), ("sums-1m", 16384));
    }
}
