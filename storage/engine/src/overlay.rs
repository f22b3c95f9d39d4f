//! Checksums of blocks that are on no checksum page yet: those of runs since the last checkpoint, which stand
//! in the log too, and those that were found again by reading a whole chunk.

use crate::class::SlotId;
use crate::record::Run;
use crate::sums::{PER_PAGE, Page, PageId, place_of, stretches};
use std::collections::BTreeMap;

/// Bytes of memory that a slot takes here beside its checksums, about.
const PART_BYTES: usize = 96;
/// Most pages that are kept of checksums that were found again.
const FOUND_MAX: usize = 1024;

/// Consecutive blocks of one slot.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Part {
    from: u32,
    sums: Vec<u32>,
}

impl Part {
    fn end(&self) -> u32 {
        self.from + self.sums.len() as u32
    }
    fn get(&self, block: u32) -> Option<u32> {
        self.sums.get(block.checked_sub(self.from)? as usize).copied()
    }
    /// Takes what was written later. A gap would be blocks that nobody wrote.
    fn put(&mut self, from: u32, sums: &[u32]) {
        if from < self.from || from > self.end() {
            *self = Self { from, sums: sums.to_vec() };
        } else {
            self.sums.truncate((from - self.from) as usize);
            self.sums.extend_from_slice(sums);
        }
    }
}

/// Checksums that no page holds. Within the life of a slot a block's checksum never changes (R17).
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Overlay {
    /// Of runs since the last checkpoint began.
    fresh: BTreeMap<SlotId, Part>,
    /// Those that the checkpoint being written puts on pages.
    frozen: BTreeMap<SlotId, Part>,
    /// Those found again: no page has them, nor the log.
    found: BTreeMap<PageId, Page>,
    bytes: usize,
}

impl Overlay {
    /// Bytes of memory that the checksums since the last checkpoint take, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
    /// Takes the checksums of blocks that were written.
    pub(crate) fn put(&mut self, run: &Run) {
        if run.block == 0 {
            self.forget(run.at);
        }
        self.bytes += run.sums.len() * 4;
        match self.fresh.get_mut(&run.at) {
            Some(part) => part.put(run.block, &run.sums),
            None => {
                self.bytes += PART_BYTES;
                self.fresh.insert(run.at, Part { from: run.block, sums: run.sums.clone() });
            }
        }
    }
    /// The slot's life has ended.
    pub(crate) fn forget(&mut self, at: SlotId) {
        if let Some(part) = self.fresh.remove(&at) {
            self.bytes = self.bytes.saturating_sub(PART_BYTES + part.sums.len() * 4);
        }
        self.frozen.remove(&at);
        if self.found.is_empty() {
            return;
        }
        for part in stretches(at, 0, crate::class::slot_blocks(at.class)) {
            if let Some(page) = self.found.get_mut(&part.page) {
                (part.index..part.index + part.blocks).for_each(|index| page.forget(index));
            }
        }
    }
    /// Keeps the slots that `used` names.
    pub(crate) fn retain(&mut self, used: impl Fn(SlotId) -> bool) {
        let gone: Vec<SlotId> = self.fresh.keys().copied().filter(|at| !used(*at)).collect();
        gone.into_iter().for_each(|at| self.forget(at));
    }

    /// Fills in those of blocks `[block, block + out.len())` of a slot that are here.
    pub(crate) fn fill(&self, at: SlotId, block: u32, out: &mut [Option<u32>]) {
        let parts = [self.fresh.get(&at), self.frozen.get(&at)];
        for part in parts.into_iter().flatten() {
            for (i, sum) in out.iter_mut().enumerate().filter(|(_, sum)| sum.is_none()) {
                *sum = part.get(block + i as u32);
            }
        }
        if self.found.is_empty() {
            return;
        }
        let mut i = 0;
        for part in stretches(at, block, out.len() as u32) {
            if let Some(page) = self.found.get(&part.page) {
                for (k, index) in (part.index..part.index + part.blocks).enumerate() {
                    out[i + k] = out[i + k].or(page.get(index));
                }
            }
            i += part.blocks as usize;
        }
    }
    /// The runs of a slot that are here, as the log holds them.
    pub(crate) fn runs(&self, at: SlotId) -> impl Iterator<Item = Run> {
        let parts = [self.frozen.get(&at), self.fresh.get(&at)].into_iter().flatten();
        let run = move |part: &Part| {
            let (block, sums) = (part.from, part.sums.clone());
            Run { at, block, tail: crate::class::BLOCK, sums }
        };
        parts.filter(|part| !part.sums.is_empty()).map(run)
    }

    /// Checksums of blocks of a slot that were found again, its page having been lost.
    pub(crate) fn find(&mut self, at: SlotId, block: u32, sums: &[u32]) {
        let mut sums = sums.iter();
        for part in stretches(at, block, sums.len() as u32) {
            if self.found.len() >= FOUND_MAX && !self.found.contains_key(&part.page) {
                return;
            }
            let page = self.found.entry(part.page).or_default();
            let indices = part.index..part.index + part.blocks;
            indices.zip(&mut sums).for_each(|(index, sum)| page.set(index, *sum));
        }
    }

    /// A page that is in memory but damaged on the disk.
    pub(crate) fn find_page(&mut self, id: PageId, page: &Page) {
        if self.found.len() < FOUND_MAX || self.found.contains_key(&id) {
            let mut page = page.clone();
            if let Some(found) = self.found.get(&id) {
                page.add(found);
            }
            self.found.insert(id, page);
        }
    }

    /// A checkpoint begins: what is here now goes to pages.
    pub(crate) fn freeze(&mut self) {
        self.bytes = 0;
        let fresh = std::mem::take(&mut self.fresh);
        if self.frozen.is_empty() {
            self.frozen = fresh;
            return;
        }
        // The last one failed.
        for (at, part) in fresh {
            match self.frozen.get_mut(&at) {
                Some(frozen) => frozen.put(part.from, &part.sums),
                None => drop(self.frozen.insert(at, part)),
            }
        }
    }
    /// The checkpoint is durable: the pages hold what was frozen, and of what was found what they hold.
    pub(crate) fn thaw(&mut self, written: impl Iterator<Item = PageId>) -> Thawed {
        if !self.found.is_empty() {
            for page in written {
                self.found.remove(&page);
            }
        }
        Thawed(std::mem::take(&mut self.frozen))
    }

    /// The first page from `from` on that a checkpoint has to write.
    pub(crate) fn next_page(&self, from: PageId) -> Option<PageId> {
        let slot = (from.first() >> from.class) as u32;
        let of = |(at, part): (&SlotId, &Part)| {
            let first = PageId::of(*at, part.from);
            let last = PageId::of(*at, part.end().saturating_sub(1).max(part.from));
            (last >= from && !part.sums.is_empty()).then(|| first.max(from))
        };
        let frozen = self.frozen.range(SlotId { class: from.class, slot }..).find_map(of);
        let found = self.found.range(from..).next().map(|(page, _)| *page);
        frozen.into_iter().chain(found).min()
    }
    /// Puts on a page what is to be written on it.
    pub(crate) fn fill_page(&self, id: PageId, page: &mut Page) {
        if let Some(found) = self.found.get(&id) {
            page.add(found);
        }
        let (first, end) = (id.first(), id.first() + u64::from(PER_PAGE));
        let slot = |place: u64| SlotId { class: id.class, slot: (place >> id.class) as u32 };
        for (at, part) in self.frozen.range(slot(first)..=slot(end - 1)) {
            let start = place_of(*at, part.from);
            for (place, sum) in (start..).zip(&part.sums).filter(|(place, _)| (first..end).contains(place)) {
                page.set((place - first) as u32, *sum);
            }
        }
    }
}

/// What was frozen, to be freed bit by bit.
pub(crate) struct Thawed(BTreeMap<SlotId, Part>);

impl Thawed {
    /// Frees up to `limit` slots; `false` when nothing is left.
    pub(crate) fn free(&mut self, limit: usize) -> bool {
        (0..limit).all(|_| self.0.pop_first().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(at: SlotId, block: u32, sums: &[u32]) -> Run {
        Run { at, block, tail: 4096, sums: sums.to_vec() }
    }
    fn get(overlay: &Overlay, at: SlotId, blocks: usize) -> Vec<Option<u32>> {
        let mut out = vec![None; blocks];
        overlay.fill(at, 0, &mut out);
        out
    }

    #[test]
    fn what_is_frozen_reaches_its_pages_and_nothing_else() {
        let (a, b) = (SlotId { class: 8, slot: 3 }, SlotId { class: 8, slot: 4 });
        let mut overlay = Overlay::default();
        overlay.put(&run(a, 0, &[1; 200]));
        overlay.put(&run(b, 0, &[7, 7]));
        overlay.freeze();
        overlay.put(&run(a, 200, &[2; 56]));
        overlay.put(&run(b, 0, &[8]));
        assert_eq!(get(&overlay, b, 2), [Some(8), None]);
        assert_eq!(get(&overlay, a, 256), [vec![Some(1); 200], vec![Some(2); 56]].concat());
        // Slot 3 has blocks 768 to 1023: it reaches over the end of page 0.
        let start = PageId { class: 0, page: 0 };
        let (first, second) = (PageId { class: 8, page: 0 }, PageId { class: 8, page: 1 });
        assert_eq!(overlay.next_page(start), Some(first));
        assert_eq!(overlay.next_page(second), Some(second));
        assert_eq!(overlay.next_page(PageId { class: 8, page: 2 }), None);
        let mut pages = [Page::default(), Page::default()];
        overlay.fill_page(first, &mut pages[0]);
        overlay.fill_page(second, &mut pages[1]);
        assert_eq!((pages[0].get(767), pages[0].get(768), pages[0].get(959)), (None, Some(1), Some(1)));
        assert_eq!((pages[1].get(7), pages[1].get(8), pages[1].get(64)), (Some(1), None, None));
        drop(overlay.thaw([first, second].into_iter()));
        assert_eq!(get(&overlay, a, 256)[199..202], [None, Some(2), Some(2)]);
        overlay.forget(a);
        overlay.forget(b);
        assert_eq!(overlay, Overlay::default());
    }

    #[test]
    fn a_checkpoint_that_failed_is_made_up_for() {
        let at = SlotId { class: 4, slot: 9 };
        let mut overlay = Overlay::default();
        overlay.put(&run(at, 0, &[1, 2]));
        overlay.freeze();
        overlay.put(&run(at, 2, &[3]));
        overlay.freeze();
        assert_eq!(overlay.runs(at).collect::<Vec<_>>(), [run(at, 0, &[1, 2, 3])]);
        assert_eq!(overlay.bytes(), 0);
    }

    #[test]
    fn r17_what_was_found_again_ends_with_its_slot() {
        let at = SlotId { class: 1, slot: 9 };
        let mut overlay = Overlay::default();
        overlay.find(at, 0, &[5, 6]);
        assert_eq!(get(&overlay, at, 2), [Some(5), Some(6)]);
        assert_eq!(overlay.next_page(PageId { class: 0, page: 0 }), Some(PageId { class: 1, page: 0 }));
        overlay.put(&run(at, 0, &[9]));
        assert_eq!(get(&overlay, at, 2), [Some(9), None]);
    }
}
