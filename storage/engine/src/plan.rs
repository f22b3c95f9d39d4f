//! What an update does to a chunk's content, as pure arithmetic: which blocks change and must be written
//! anew, and which extents stay. Bytes that a committed version shows are never written over.

use crate::class::{BLOCK, SlotId, blocks_of, class_for, slot_blocks};
use crate::extents::Extents;
use crate::record::{Content, Extent};
use ember_types::mutant;

/// Chunks of up to this many blocks are always rewritten whole: they stay in one smallest slot.
const SMALL_BLOCKS: u32 = 8;

/// An update, without its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// Bytes `[offset, offset + bytes)` are replaced; `bytes` > 0.
    Write { offset: u32, bytes: u32 },
    /// The length becomes this; an extension reads as zeros.
    Truncate { length: u32 },
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    /// Length afterwards, in bytes.
    pub(crate) length: u32,
    /// Extents that stay.
    pub(crate) kept: Vec<Extent>,
    /// Ranges of blocks `[from, to)` to write, sorted, apart from each other.
    pub(crate) dirty: Vec<(u32, u32)>,
}

/// Plans `change` on `old`. With more than `extents_max` extents afterwards, the chunk is rewritten whole.
pub(crate) fn plan(old: &Content, change: Change, extents_max: usize) -> Plan {
    let (length, written) = match change {
        Change::Write { offset, bytes } => {
            let end = offset + bytes;
            (old.length.max(end), Some((offset / BLOCK, blocks_of(end))))
        }
        Change::Truncate { length } => (length, None),
    };
    let mut dirty: Vec<(u32, u32)> = Vec::new();
    // The block at which the shorter of the two lengths ends covers other bytes now: another checksum.
    let edge = old.length.min(length);
    let covered = old.extents.iter().any(|e| e.first() <= edge / BLOCK && edge / BLOCK < e.end());
    if old.length != length && !edge.is_multiple_of(BLOCK) && covered {
        dirty.push((edge / BLOCK, edge / BLOCK + 1));
    }
    if let Some((from, to)) = written {
        match dirty.last_mut() {
            Some(last) if last.1 >= from && last.0 <= to => *last = (last.0.min(from), last.1.max(to)),
            _ => dirty.push((from, to)),
        }
    }
    dirty.sort_unstable();
    let kept = keep(old, &dirty, blocks_of(length));
    let blocks = blocks_of(length);
    let holes = blocks
        - kept.iter().map(|e| u32::from(e.blocks)).sum::<u32>()
        - dirty.iter().map(|(from, to)| to - from).sum::<u32>();
    let small = blocks <= SMALL_BLOCKS && holes == 0 && !dirty.is_empty() && !kept.is_empty();
    if small || (kept.len() + dirty.len() > extents_max && !dirty.is_empty()) {
        return Plan { length, kept: Vec::new(), dirty: vec![(0, blocks)] };
    }
    Plan { length, kept, dirty }
}

/// The parts of the old extents that lie before `blocks` and in no dirty range.
fn keep(old: &Content, dirty: &[(u32, u32)], blocks: u32) -> Vec<Extent> {
    let mut clean = Vec::new();
    let mut from = 0;
    for &(start, end) in dirty {
        clean.push((from, start));
        from = end;
    }
    clean.push((from, blocks));
    let mut kept = Vec::new();
    for extent in &old.extents {
        kept.extend(clean.iter().filter_map(|&(from, to)| extent.clip(from, to.min(blocks))));
    }
    kept
}

/// Where blocks go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Behind the highest block ever written in a slot of this chunk.
    InPlace {
        /// The slot.
        at: SlotId,
        /// First block within it.
        block: u32,
    },
    /// Into a new slot of this class.
    NewSlot {
        /// The class.
        class: u8,
    },
}

/// Chooses the place of the dirty range `[from, to)`. `high` tells the blocks ever written in a slot.
pub(crate) fn place(plan: &Plan, (from, to): (u32, u32), high: impl Fn(SlotId) -> u32) -> Place {
    let need = to - from;
    let before = plan.kept.iter().rev().find(|e| e.end() <= from);
    let appends = to == blocks_of(plan.length) && plan.kept.iter().all(|e| e.end() <= from);
    if let Some(last) = before.filter(|last| appends && last.end() == from) {
        let fits = last.block_end() + need <= slot_blocks(last.class);
        let unwritten = last.block_end() == high(last.at());
        if fits && (unwritten || mutant!(r17_append_over_written)) {
            return Place::InPlace { at: last.at(), block: last.block_end() };
        }
    }
    // A chunk that grows by appends gets slots that double, so that it has few extents.
    let room = if appends && from > 0 && before.is_some() { need.max(from) } else { need };
    Place::NewSlot { class: class_for(room) }
}

/// The content that an update makes of `base`: what it says, and of the extents those of `base` that its own, which
/// are the new ones, don't cover.
pub(crate) fn onto(base: &Content, update: &Content) -> Content {
    let dirty: Vec<(u32, u32)> = update.extents.iter().map(|e| (e.first(), e.end())).collect();
    let mut extents = keep(base, &dirty, blocks_of(update.length));
    extents.extend(update.extents.iter());
    Content { extents: merge(extents), ..update.clone() }
}

/// Puts the new extents between the kept ones; joins those that continue each other.
pub(crate) fn merge(mut extents: Vec<Extent>) -> Extents {
    extents.sort_unstable_by_key(|e| e.first);
    let mut merged: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match merged.last_mut() {
            Some(last)
                if last.end() == extent.first()
                    && last.at() == extent.at()
                    && last.block_end() == u32::from(extent.block) =>
            {
                last.blocks += extent.blocks;
            }
            _ => merged.push(extent),
        }
    }
    merged.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u32 = 1024;

    fn content(length: u32, extents: &[Extent]) -> Content {
        Content { length, extents: extents.into(), ..Content::default() }
    }
    fn slot(class: u8, slot: u32) -> SlotId {
        SlotId { class, slot }
    }

    #[test]
    fn appends_go_in_place_and_slots_double() {
        let at = slot(5, 0);
        let old = content(64 * K, &[Extent::new(0, 16, at, 0)]);
        let p = plan(&old, Change::Write { offset: 64 * K, bytes: 64 * K }, 64);
        assert_eq!(p.dirty, [(16, 32)]);
        assert_eq!(place(&p, (16, 32), |_| 16), Place::InPlace { at, block: 16 });
        // R17: somebody wrote there before.
        assert_eq!(place(&p, (16, 32), |_| 17), Place::NewSlot { class: 4 });
        let full = content(128 * K, &[Extent::new(0, 32, at, 0)]);
        let p = plan(&full, Change::Write { offset: 128 * K, bytes: 4 * K }, 64);
        assert_eq!(place(&p, (32, 33), |_| 32), Place::NewSlot { class: 5 });
    }

    #[test]
    fn r17_a_partial_tail_block_is_redirected() {
        let at = slot(8, 0);
        let old = content(400 * K + 5, &[Extent::new(0, 101, at, 0)]);
        let p = plan(&old, Change::Write { offset: 400 * K + 5, bytes: 10 * K }, 64);
        assert_eq!((p.length, &p.dirty[..]), (410 * K + 5, &[(100, 103)][..]));
        assert_eq!(p.kept, [Extent::new(0, 100, at, 0)]);
        assert!(matches!(place(&p, (100, 103), |_| 101), Place::NewSlot { .. }));
    }

    #[test]
    fn overwrites_never_touch_what_is_kept() {
        let at = slot(8, 0);
        let old = content(1024 * K, &[Extent::new(0, 256, at, 0)]);
        let p = plan(&old, Change::Write { offset: 40 * K, bytes: 8 * K }, 64);
        assert_eq!(p.dirty, [(10, 12)]);
        assert_eq!(p.kept, [Extent::new(0, 10, at, 0), Extent::new(12, 244, at, 12)]);
        assert_eq!(place(&p, (10, 12), |_| 256), Place::NewSlot { class: 1 });
        assert_eq!(plan(&old, Change::Write { offset: 40 * K, bytes: 8 * K }, 2).dirty, [(0, 256)]);
    }

    #[test]
    fn gaps_stay_holes_and_cuts_redirect_their_edge() {
        let at = slot(4, 0);
        let old = content(40 * K + 9, &[Extent::new(0, 11, at, 0)]);
        let p = plan(&old, Change::Write { offset: 400 * K, bytes: 1 }, 64);
        assert_eq!(p.dirty, [(10, 11), (100, 101)]);
        let p = plan(&old, Change::Truncate { length: 37 * K }, 64);
        assert_eq!((p.dirty.as_slice(), p.length), ([(9, 10)].as_slice(), 37 * K));
        let p = plan(&old, Change::Truncate { length: 36 * K }, 64);
        assert_eq!((p.dirty.len(), p.kept.len()), (0, 1));
        let p = plan(&content(5, &[]), Change::Truncate { length: 70 * K }, 64);
        assert_eq!((p.dirty.len(), p.kept.len()), (0, 0));
    }

    #[test]
    fn small_chunks_stay_in_one_slot() {
        let old = content(4 * K + 1, &[Extent::new(0, 2, slot(1, 0), 0)]);
        let p = plan(&old, Change::Write { offset: 5 * K, bytes: 10 }, 64);
        assert_eq!((p.dirty, p.kept.len()), (vec![(0, 2)], 0));
    }
}
