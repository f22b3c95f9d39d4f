//! The bytes of one file: what they are now, and what a power loss would leave of them.

use ember_types::layout::SplitMix64;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a page: what is written back as one.
pub(crate) const PAGE: usize = 4096;
/// Bytes that a device writes whole or not at all.
const SECTOR: usize = 512;

/// Pages of zeros are not kept.
type Page = Option<Arc<[u8; PAGE]>>;

/// A file's bytes.
#[derive(Clone, Default)]
pub(crate) struct Content {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
    len: u64,
    /// Pages written since the last flush, and what is durable of them.
    dirty: BTreeMap<u64, Page>,
    durable_len: u64,
}

/// The part of a range that lies in each page: page, range within it, range within the whole.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % PAGE as u64) as usize;
        let piece = (PAGE - within).min(len - done);
        let from = done;
        done += piece;
        (piece > 0).then_some((at / PAGE as u64, within..within + piece, from))
    })
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        self.len
    }
    /// Pages that hold data.
    pub(crate) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }
    /// Pages that a power loss may forget.
    pub(crate) fn unflushed(&self) -> usize {
        self.dirty.len()
    }

    pub(crate) fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        let count = self.len.saturating_sub(offset).min(size as u64) as usize;
        let mut bytes = vec![0; count];
        for (number, within, from) in pieces(offset, count) {
            if let Some(page) = self.pages.get(&number) {
                bytes[from..from + within.len()].copy_from_slice(&page[within]);
            }
        }
        bytes
    }

    fn change(&mut self, number: u64, change: impl FnOnce(&mut [u8; PAGE])) {
        let before = self.pages.remove(&number);
        self.dirty.entry(number).or_insert_with(|| before.clone());
        let mut page = before.unwrap_or_else(|| Arc::new([0; PAGE]));
        change(Arc::make_mut(&mut page));
        self.put(number, Some(page));
    }

    fn put(&mut self, number: u64, page: Page) {
        match page {
            Some(page) if page.iter().any(|&byte| byte != 0) => self.pages.insert(number, page),
            _ => self.pages.remove(&number),
        };
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        for (number, within, from) in pieces(offset, data.len()) {
            let part = &data[from..from + within.len()];
            self.change(number, |page| page[within].copy_from_slice(part));
        }
        self.len = self.len.max(offset + data.len() as u64);
    }

    /// Makes a range read as zeros.
    pub(crate) fn zero(&mut self, offset: u64, len: u64) {
        let (first, end) = (offset / PAGE as u64, offset.saturating_add(len));
        let numbers: Vec<u64> = self.pages.range(first..end.div_ceil(PAGE as u64)).map(|(&n, _)| n).collect();
        for number in numbers {
            let start = number * PAGE as u64;
            let within = (offset.max(start) - start) as usize..(end - start).min(PAGE as u64) as usize;
            self.change(number, |page| page[within].fill(0));
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.len = len;
    }

    /// Everything is durable.
    pub(crate) fn flush(&mut self) {
        self.dirty.clear();
        self.durable_len = self.len;
    }

    /// Power is lost: of each page written since the last flush the old content, the new one, or sectors of both are
    /// left; of the length the old or the new one. Returns the pages that are not what was written.
    pub(crate) fn lose_power(&mut self, rng: &mut SplitMix64) -> u64 {
        let len = if rng.below(2) == 0 { self.len } else { self.durable_len };
        let mut lost = 0;
        for (number, durable) in std::mem::take(&mut self.dirty) {
            // What a cut took away comes back with the length.
            let uncut = len > self.len && (number + 1) * PAGE as u64 > self.len;
            match rng.below(10) {
                0..=3 => {}
                4..=6 if !uncut => continue,
                _ if !uncut => {
                    let mut torn = durable.unwrap_or_else(|| Arc::new([0; PAGE]));
                    let new = self.pages.get(&number).cloned().unwrap_or_else(|| Arc::new([0; PAGE]));
                    let bytes = Arc::make_mut(&mut torn);
                    for at in (0..PAGE).step_by(SECTOR).filter(|_| rng.below(2) == 0) {
                        bytes[at..at + SECTOR].copy_from_slice(&new[at..at + SECTOR]);
                    }
                    self.put(number, Some(torn));
                    lost += 1;
                    continue;
                }
                _ => {}
            }
            self.put(number, durable);
            lost += 1;
        }
        self.len = len;
        self.zero(len, u64::MAX - len);
        self.flush();
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_stays_and_what_was_not_may_go() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let mut rng = SplitMix64(seed);
            let mut file = Content::default();
            file.write(100, &[1; 10_000]);
            file.flush();
            file.write(4096, &[2; 4096]);
            file.write(12_000, &[3; 5000]);
            assert_eq!((file.len(), file.unflushed()), (17_000, 4));
            file.lose_power(&mut rng);
            let found = file.read(0, 20_000);
            assert!(found[100..4096].iter().all(|&byte| byte == 1), "flushed");
            assert!(found.len() == 17_000 || found.len() == 10_100, "{}", found.len());
            let twos = found[4096..8192].iter().filter(|&&byte| byte == 2).count();
            assert!(
                twos.is_multiple_of(SECTOR) && found[4096..8192].iter().all(|byte| [1, 2].contains(byte))
            );
            kinds.insert((found.len(), twos.min(1) + twos / 4096));
            assert_eq!(file.unflushed(), 0);
            let again = file.clone();
            file.lose_power(&mut rng);
            assert_eq!(file.read(0, 20_000), again.read(0, 20_000), "what is left is durable");
        }
        assert_eq!(kinds.len(), 6, "old, torn and new with either length: {kinds:?}");
    }

    #[test]
    fn a_cut_is_undone_whole_or_not_at_all() {
        for seed in 0..50 {
            let mut file = Content::default();
            file.write(0, &[7; 9000]);
            file.flush();
            file.set_len(5000);
            assert_eq!(file.read(0, 9000), [7; 5000]);
            file.lose_power(&mut SplitMix64(seed));
            let found = file.read(0, 9000);
            assert!(found.len() == 9000 && found == [7; 9000] || found.len() == 5000, "{}", found.len());
            assert!(found[..4096].iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn zeros_take_no_pages() {
        let mut file = Content::default();
        file.write(0, &[0; 40_960]);
        assert_eq!((file.len(), file.pages()), (40_960, 0));
        file.write(5, &[1]);
        file.zero(0, 8);
        assert_eq!((file.read(0, 9), file.pages()), (vec![0; 9], 0));
    }
}
