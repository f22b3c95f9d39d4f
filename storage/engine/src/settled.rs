//! Which blocks of the data files may be written over without any change that the file system would have to make
//! durable: they were written before, and a flush of their file ended since. Writes to others (reserved space that
//! was never written, space that was given back) take a flush of their own file, whatever the device promises.
//!
//! Known per slot as a number of blocks from its start, in memory alone; after a start the file system is asked
//! (recovery has flushed every data file by then).

use crate::class::{BLOCK, CLASSES, SlotId, slot_bytes};
use crate::error::Result;
use ember_types::mutant;
use std::ops::Range;

/// Questions to the file system about one file after a start; what they don't tell takes flushes once more.
const QUESTIONS_MAX: usize = 10_000;

/// Blocks `[from, end)` of a slot were written.
struct Span {
    slot: u32,
    from: u16,
    end: u16,
}

#[derive(Default)]
struct Class {
    /// Settled blocks from the start of each slot.
    blocks: Vec<u16>,
    /// Written since the last flush of the file began.
    written: Vec<Span>,
    /// Written before the flush that goes on.
    flushing: Vec<Span>,
}

/// What is settled.
pub(crate) struct Settled {
    classes: Vec<Class>,
}

impl Settled {
    pub(crate) fn new() -> Self {
        Self { classes: (0..CLASSES).map(|_| Class::default()).collect() }
    }
    fn class(&mut self, class: u8) -> &mut Class {
        &mut self.classes[usize::from(class)]
    }

    /// Whether the first `end` blocks of a slot are settled.
    pub(crate) fn covers(&self, at: SlotId, end: u32) -> bool {
        let blocks = self.classes[usize::from(at.class)].blocks.get(at.slot as usize);
        blocks.is_some_and(|&blocks| u32::from(blocks) >= end) || mutant!(r17_unwritten_space_is_settled)
    }
    /// Asks which ranges of a class' file, at or behind an offset, were written. They have been flushed.
    pub(crate) fn find(&mut self, class: u8, written: impl Fn(u64) -> Result<Vec<Range<u64>>>) -> Result<()> {
        let mut from = 0;
        for _ in 0..QUESTIONS_MAX {
            let ranges = written(from)?;
            let Some(last) = ranges.last() else { return Ok(()) };
            from = last.end;
            ranges.iter().for_each(|range| self.found(class, range));
        }
        Ok(())
    }
    fn found(&mut self, class: u8, range: &Range<u64>) {
        let bytes = slot_bytes(class);
        for slot in range.start / bytes..range.end.div_ceil(bytes) {
            let (start, block) = (slot * bytes, u64::from(BLOCK));
            let from = range.start.saturating_sub(start).div_ceil(block) as u16;
            let end = ((range.end.min(start + bytes) - start) / block) as u16;
            if let Ok(slot) = u32::try_from(slot)
                && from < end
            {
                self.class(class).settle(&Span { slot, from, end });
            }
        }
    }
    /// Blocks `[from, end)` were written.
    pub(crate) fn written(&mut self, at: SlotId, from: u32, end: u32) {
        self.class(at.class).written.push(Span { slot: at.slot, from: from as u16, end: end as u16 });
    }
    /// The slot's space is given back.
    pub(crate) fn punched(&mut self, at: SlotId) {
        let class = self.class(at.class);
        if let Some(blocks) = class.blocks.get_mut(at.slot as usize)
            && !mutant!(r17_space_given_back_stays_settled)
        {
            *blocks = 0;
        }
        class.written.retain(|span| span.slot != at.slot);
        class.flushing.retain(|span| span.slot != at.slot);
    }
    /// A flush of the class' file begins.
    pub(crate) fn flush_begins(&mut self, class: u8) {
        let class = self.class(class);
        class.flushing.append(&mut class.written);
    }
    /// It ended well.
    pub(crate) fn flush_ended(&mut self, class: u8) {
        let class = self.class(class);
        for span in std::mem::take(&mut class.flushing) {
            class.settle(&span);
        }
    }
}

impl Class {
    fn settle(&mut self, span: &Span) {
        let at = span.slot as usize;
        if self.blocks.len() <= at {
            self.blocks.resize(at + 1, 0);
        }
        if span.from <= self.blocks[at] {
            self.blocks[at] = self.blocks[at].max(span.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_settled_by_a_flush_that_began_behind_their_write() {
        let mut settled = Settled::new();
        let at = SlotId { class: 3, slot: 5 };
        settled.written(at, 0, 4);
        assert!(!settled.covers(at, 1));
        settled.flush_begins(3);
        settled.written(at, 4, 6);
        settled.flush_ended(3);
        assert!(settled.covers(at, 4) && !settled.covers(at, 5));
        settled.flush_begins(3);
        settled.flush_ended(3);
        assert!(settled.covers(at, 6) && !settled.covers(SlotId { class: 3, slot: 4 }, 1));
        // What lies behind a gap isn't known.
        settled.written(at, 7, 8);
        settled.flush_begins(3);
        settled.flush_ended(3);
        assert!(settled.covers(at, 6) && !settled.covers(at, 8));
    }

    #[test]
    fn what_the_file_system_has_noted_is_settled_from_the_start_of_a_slot_on() {
        let mut settled = Settled::new();
        let ranges = [0..12_288, 16_384..24_576];
        let find = |from| Ok(ranges.iter().filter(|range| range.start >= from).take(1).cloned().collect());
        settled.find(1, find).unwrap();
        let blocks = |slot| (0..=2).rev().find(|&n| settled.covers(SlotId { class: 1, slot }, n));
        assert_eq!([0, 1, 2, 3].map(blocks), [Some(2), Some(1), Some(2), None]);
    }

    #[test]
    fn space_that_is_given_back_is_not_settled_by_a_flush_that_goes_on() {
        let mut settled = Settled::new();
        let at = SlotId { class: 0, slot: 0 };
        let find = |from| Ok((from == 0).then_some(0..4096).into_iter().collect());
        settled.find(0, find).unwrap();
        assert!(settled.covers(at, 1));
        settled.written(at, 0, 1);
        settled.flush_begins(0);
        settled.written(at, 0, 1);
        settled.punched(at);
        settled.flush_ended(0);
        settled.flush_begins(0);
        settled.flush_ended(0);
        assert!(!settled.covers(at, 1));
    }
}
