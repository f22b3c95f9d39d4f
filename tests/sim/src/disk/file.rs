//! The content of one file: what it reads as now, and what a power loss would leave of it.

use super::PowerCut;
use crate::world::between;
use ember_types::layout::SplitMix64;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

/// Bytes of a page: what is written back as one.
pub(super) const PAGE: usize = 4096;
/// Bytes that a device writes whole or not at all.
pub(super) const SECTOR: usize = 512;

type Page = Rc<[u8; PAGE]>;

/// The content of a page at some time; `None` is zeros. Versions order the contents of one page.
#[derive(Clone)]
struct Content {
    page: Option<Page>,
    version: u64,
}

/// What a flush makes durable: the file as it was when the flush was asked for.
pub(super) struct Snapshot {
    pages: Vec<(u64, Content)>,
    len: (u64, u64),
}

#[derive(Default)]
pub(super) struct FileData {
    pages: BTreeMap<u64, Page>,
    len: u64,
    len_version: u64,
    next_version: u64,
    /// Versions of pages changed since they were last durable, and their durable content.
    dirty: BTreeMap<u64, (u64, Content)>,
    /// Durable length and its version.
    durable_len: (u64, u64),
    /// Pages that can't be read until they are written.
    unreadable: BTreeSet<u64>,
}

fn zeros() -> Page {
    Rc::new([0; PAGE])
}

impl FileData {
    /// A file with durable content.
    pub(super) fn durable(content: &[u8]) -> Self {
        let mut file = Self::default();
        file.write(0, content);
        let all = file.snapshot();
        file.flushed(all);
        file
    }
    pub(super) fn len(&self) -> u64 {
        self.len
    }
    /// Bytes of pages that hold data.
    pub(super) fn stored_bytes(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.durable_len.0 != self.len
    }

    fn touch(&mut self, page: u64) {
        self.unreadable.remove(&page);
        self.next_version += 1;
        let version = self.next_version;
        let before = self.pages.get(&page).cloned();
        self.dirty
            .entry(page)
            .and_modify(|entry| entry.0 = version)
            .or_insert((version, Content { page: before, version: version - 1 }));
    }

    /// Fills `into` from `offset`; the number of bytes there.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let count = self.len.saturating_sub(offset).min(into.len() as u64) as usize;
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let piece = (PAGE - within).min(count - done);
            let target = &mut into[done..done + piece];
            match self.pages.get(&(at / PAGE as u64)) {
                Some(page) => target.copy_from_slice(&page[within..within + piece]),
                None => target.fill(0),
            }
            done += piece;
        }
        count
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let within = (at % PAGE as u64) as usize;
            let piece = (PAGE - within).min(data.len() - done);
            let number = at / PAGE as u64;
            self.touch(number);
            let page = self.pages.entry(number).or_insert_with(zeros);
            Rc::make_mut(page)[within..within + piece].copy_from_slice(&data[done..done + piece]);
            done += piece;
        }
        if offset + data.len() as u64 > self.len {
            self.change_len(offset + data.len() as u64);
        }
    }

    fn change_len(&mut self, len: u64) {
        self.len = len;
        self.next_version += 1;
        self.len_version = self.next_version;
    }

    /// Cuts or extends the file.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        if len != self.len {
            self.change_len(len);
        }
    }

    /// Makes a range read as zeros.
    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let numbers: Vec<u64> =
            self.pages.range(offset / PAGE as u64..end.div_ceil(PAGE as u64)).map(|(&n, _)| n).collect();
        for number in numbers {
            self.touch(number);
            let start = number * PAGE as u64;
            let (from, to) = (offset.max(start) - start, end.min(start + PAGE as u64) - start);
            if from == 0 && to == PAGE as u64 {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                Rc::make_mut(page)[from as usize..to as usize].fill(0);
            }
        }
    }

    /// What a flush that starts now makes durable.
    pub(super) fn snapshot(&self) -> Snapshot {
        let content = |(&number, entry): (&u64, &(u64, Content))| {
            (number, Content { page: self.pages.get(&number).cloned(), version: entry.0 })
        };
        Snapshot { pages: self.dirty.iter().map(content).collect(), len: (self.len, self.len_version) }
    }

    /// A flush has ended.
    pub(super) fn flushed(&mut self, snapshot: Snapshot) {
        for (number, content) in snapshot.pages {
            let Some((newest, durable)) = self.dirty.get_mut(&number) else { continue };
            if *newest == content.version {
                self.dirty.remove(&number);
            } else if content.version > durable.version {
                *durable = content;
            }
        }
        if snapshot.len.1 >= self.durable_len.1 {
            self.durable_len = snapshot.len;
        }
    }

    /// A power loss: of each unsynced page the old content, the new one, or some sectors of each are left.
    pub(super) fn lose_power(&mut self, cut: PowerCut, rng: &mut SplitMix64) {
        for (number, (_, durable)) in std::mem::take(&mut self.dirty) {
            let kind = match cut {
                PowerCut::Any => rng.below(10),
                PowerCut::Lost => 0,
                PowerCut::Torn => 9,
            };
            let left = match kind {
                0..=3 => durable.page,
                4..=7 => self.pages.get(&number).cloned(),
                _ => Some(self.torn(number, &durable, rng)),
            };
            match left {
                Some(page) => self.pages.insert(number, page),
                None => self.pages.remove(&number),
            };
        }
        if self.durable_len.0 != self.len && (cut == PowerCut::Lost || rng.below(2) == 0) {
            self.len = self.durable_len.0;
        }
        let len = self.len;
        self.pages.retain(|&number, _| number * (PAGE as u64) < len);
        self.durable_len = (self.len, self.len_version);
    }

    fn torn(&self, number: u64, durable: &Content, rng: &mut SplitMix64) -> Page {
        let mut page = durable.page.clone().unwrap_or_else(zeros);
        let new = self.pages.get(&number).cloned().unwrap_or_else(zeros);
        let into = Rc::make_mut(&mut page);
        let mask = rng.next();
        for sector in (0..PAGE / SECTOR).filter(|s| mask >> s & 1 == 1) {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            into[range.clone()].copy_from_slice(&new[range]);
        }
        page
    }

    /// Flips one bit of the stored data; where, if there are any.
    pub(super) fn flip_bit(&mut self, rng: &mut SplitMix64) -> Option<u64> {
        let at = rng.below(self.pages.len() as u64) as usize;
        let (&number, page) = self.pages.iter_mut().nth(at)?;
        let bit = between(rng, 0, (PAGE * 8 - 1) as u64) as usize;
        Rc::make_mut(page)[bit / 8] ^= 1 << (bit % 8);
        Some(number * PAGE as u64 + (bit / 8) as u64)
    }

    /// Pages that a power loss may forget.
    pub(super) fn dirty_pages(&self) -> usize {
        self.dirty.len()
    }
    /// Pages that hold anything but zeros.
    pub(super) fn used_pages(&self) -> Vec<u64> {
        self.pages
            .iter()
            .filter(|(_, page)| page.iter().any(|&b| b != 0))
            .map(|(&number, _)| number)
            .collect()
    }
    /// Flips a bit of a stored page; where.
    pub(super) fn flip_in(&mut self, number: u64, rng: &mut SplitMix64) -> Option<u64> {
        let page = self.pages.get_mut(&number)?;
        let bit = between(rng, 0, (PAGE * 8 - 1) as u64) as usize;
        Rc::make_mut(page)[bit / 8] ^= 1 << (bit % 8);
        Some(number * PAGE as u64 + (bit / 8) as u64)
    }
    pub(super) fn make_unreadable(&mut self, pages: Range<u64>) {
        self.unreadable.extend(pages);
    }
    /// Whether none of these bytes lies in a page that can't be read.
    pub(super) fn is_readable(&self, offset: u64, len: usize) -> bool {
        let end = (offset + len as u64).div_ceil(PAGE as u64);
        self.unreadable.is_empty() || self.unreadable.range(offset / PAGE as u64..end).next().is_none()
    }
}
