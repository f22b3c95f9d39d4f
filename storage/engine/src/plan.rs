//! What an update does to a chunk's content, as pure arithmetic: which blocks change and must be written
//! anew, and which extents stay. Bytes that a committed version shows are never written over.

use crate::class::{BLOCK, SlotId, blocks_of, class_for, slot_blocks};
use crate::record::{Content, Extent};
use ember_types::mutant;

/// Blocks that are written anew together when they lie in too many pieces: 1 MiB.
pub(crate) const WINDOW: u32 = 256;
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
    /// It gets longer.
    pub(crate) grows: bool,
}

/// Plans `change` on `old`. A window of [`WINDOW`] blocks that it touches and that would lie in more than
/// `extents_max` pieces is written anew.
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
    let covered = || old.extents.within(edge / BLOCK, edge / BLOCK + 1).next().is_some();
    if old.length != length && !edge.is_multiple_of(BLOCK) && covered() {
        dirty.push((edge / BLOCK, edge / BLOCK + 1));
    }
    if let Some((from, to)) = written {
        match dirty.last_mut() {
            Some(last) if last.1 >= from && last.0 <= to => *last = (last.0.min(from), last.1.max(to)),
            _ => dirty.push((from, to)),
        }
    }
    dirty.sort_unstable();
    let blocks = blocks_of(length);
    let mut kept = keep(old, &dirty, blocks);
    let holes = || {
        blocks
            - kept.iter().map(|e| u32::from(e.blocks)).sum::<u32>()
            - dirty.iter().map(|(from, to)| to - from).sum::<u32>()
    };
    let small = blocks <= SMALL_BLOCKS && !dirty.is_empty() && !kept.is_empty() && holes() == 0;
    if small {
        dirty = vec![(0, blocks)];
        kept.clear();
    } else if let Some(wider) = with_windows(&kept, &dirty, blocks, extents_max) {
        dirty = wider;
        kept = keep(old, &dirty, blocks);
    }
    Plan { length, kept, dirty, grows: length > old.length }
}

/// The dirty ranges with the windows that they touch and that lie in too many pieces, if there are any.
fn with_windows(
    kept: &[Extent],
    dirty: &[(u32, u32)],
    blocks: u32,
    extents_max: usize,
) -> Option<Vec<(u32, u32)>> {
    if kept.len() + dirty.len() <= extents_max {
        return None;
    }
    let mut ranges = dirty.to_vec();
    for &(from, to) in dirty {
        for start in (from - from % WINDOW..to).step_by(WINDOW as usize) {
            let end = (start + WINDOW).min(blocks);
            let within = |from: u32, to: u32| from < end && start < to;
            let pieces = kept.iter().filter(|e| within(e.first(), e.end())).count()
                + dirty.iter().filter(|(from, to)| within(*from, *to)).count();
            if pieces > extents_max {
                ranges.push((start, end));
            }
        }
    }
    if ranges.len() == dirty.len() {
        return None;
    }
    ranges.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some(last) if last.1 >= from => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    Some(joined)
}

/// Plans to write anew what lies in more than `pieces_max` pieces: each such run of blocks without a hole in the first
/// window of [`WINDOW`] blocks that has one, from that of block `from` on.
pub(crate) fn scattered(old: &Content, from: u32, pieces_max: usize) -> Option<Plan> {
    let blocks = blocks_of(old.length);
    (from..blocks).step_by(WINDOW as usize).find_map(|start| {
        let pieces: Vec<Extent> = old.extents.within(start, (start + WINDOW).min(blocks)).collect();
        let runs = pieces.chunk_by(|a, b| a.end() == b.first()).filter(|run| run.len() > pieces_max);
        let dirty: Vec<(u32, u32)> = runs.map(|run| (run[0].first(), run[run.len() - 1].end())).collect();
        if dirty.is_empty() {
            return None;
        }
        let kept = keep(old, &dirty, blocks);
        Some(Plan { length: old.length, kept, dirty, grows: false })
    })
}

/// The parts of the old extents that lie before `blocks` and in no dirty range.
fn keep(old: &Content, dirty: &[(u32, u32)], blocks: u32) -> Vec<Extent> {
    let mut kept = Vec::with_capacity(old.extents.len() + dirty.len());
    let mut rest = &old.extents[..];
    let mut from = 0;
    for (start, end) in dirty.iter().copied().chain([(blocks, blocks)]) {
        let stop = start.min(blocks);
        rest = &rest[rest.partition_point(|e| e.end() <= from)..];
        // Only the outer ones can stick out.
        match &rest[..rest.partition_point(|e| e.first() < stop)] {
            [first, within @ .., last] => {
                kept.extend(first.clip(from, stop));
                kept.extend_from_slice(within);
                kept.extend(last.clip(from, stop));
            }
            clean => kept.extend(clean.iter().filter_map(|extent| extent.clip(from, stop))),
        }
        from = end;
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
    let room = if appends && plan.grows && from > 0 && before.is_some() { need.max(from) } else { need };
    Place::NewSlot { class: class_for(room) }
}

/// The content that an update makes of `base`: what it says, and of the extents those of `base` that its own, which
/// are the new ones, don't cover.
pub(crate) fn onto(base: &Content, update: &Content) -> Content {
    let dirty: Vec<(u32, u32)> = update.extents.iter().map(|e| (e.first(), e.end())).collect();
    let mut extents = keep(base, &dirty, blocks_of(update.length));
    for &extent in &update.extents {
        let at = extents.partition_point(|e| e.first < extent.first);
        extents.insert(at, extent);
        join(&mut extents, at + 1);
        join(&mut extents, at);
    }
    Content { extents: extents.into(), ..update.clone() }
}

/// Joins extent number `at` to the one before it if it continues that one.
fn join(extents: &mut Vec<Extent>, at: usize) {
    let Some(&extent) = extents.get(at).filter(|_| at > 0) else { return };
    let before = &mut extents[at - 1];
    if before.end() == extent.first()
        && before.at() == extent.at()
        && before.block_end() == u32::from(extent.block)
    {
        before.blocks += extent.blocks;
        extents.remove(at);
    }
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
    fn a_window_in_too_many_pieces_is_written_anew_and_no_other() {
        let at = |n| slot(0, n);
        let home = slot(10, 0);
        // Of 1000 blocks every second one lies elsewhere.
        let extents: Vec<Extent> = (0..1000)
            .map(|n| match n % 2 {
                0 => Extent::new(n, 1, home, n),
                _ => Extent::new(n, 1, at(n), 0),
            })
            .collect();
        let old = content(4000 * K, &extents);
        let write = |offset, bytes| plan(&old, Change::Write { offset, bytes }, 128);
        assert_eq!(write(4 * K, 4 * K).dirty, [(0, 256)]);
        assert_eq!(write(1020 * K, 8 * K).dirty, [(0, 512)]);
        let last = write(3996 * K, 4 * K);
        assert_eq!(last.dirty, [(768, 1000)]);
        assert_eq!(last.kept, extents[..768]);
        assert_eq!(place(&last, (768, 1000), |_| 1024), Place::NewSlot { class: 8 });
        assert_eq!(plan(&old, Change::Write { offset: 4 * K, bytes: 4 * K }, 256).dirty, [(1, 2)]);
        // One that is written over whole isn't in pieces any more.
        assert_eq!(write(1024 * K, 1024 * K).dirty, [(256, 512)]);
    }

    #[test]
    fn compaction_takes_runs_in_many_pieces_and_leaves_holes() {
        let home = slot(10, 0);
        // Blocks in pieces of one each, so many of every window, then a hole of one, then the rest in one.
        let of_window = |window: u32, pieces: u32, blocks: u32| {
            let from = window * 256;
            let mut extents: Vec<Extent> =
                (from..from + pieces).map(|n| Extent::new(n, 1, slot(0, n), 0)).collect();
            let rest = blocks - pieces - 1;
            extents.push(Extent::new(from + pieces + 1, rest, home, from + pieces + 1));
            extents
        };
        let last = 3 * 256 + 100;
        let all = [of_window(0, 9, 256), of_window(1, 8, 256), of_window(3, 98, 100)].concat();
        let old = content(last * 4 * K - 5, &all);
        let p = scattered(&old, 0, 8).unwrap();
        assert_eq!((p.length, p.grows), (old.length, false));
        assert_eq!((&p.dirty[..], &p.kept[..]), (&[(0, 9)][..], &all[9..]));
        let p = scattered(&old, 256, 8).unwrap();
        assert_eq!(p.dirty, [(768, 866)]);
        assert_eq!(p.kept, [&all[..19], &all[117..]].concat());
        assert_eq!(scattered(&old, 0, 98), None);
        assert_eq!(scattered(&content(100 * K, &[]), 0, 0), None);
        // A last block that is short is one like the others.
        let short =
            content(40 * K + 1, &(0..11).map(|n| Extent::new(n, 1, slot(0, n), 0)).collect::<Vec<_>>());
        let p = scattered(&short, 0, 8).unwrap();
        assert_eq!((p.length, &p.dirty[..], p.kept.len()), (40 * K + 1, &[(0, 11)][..], 0));
    }

    #[test]
    fn compaction_takes_all_runs_of_one_window() {
        let piece = |n| Extent::new(n, 1, slot(0, n), 0);
        let extents: Vec<Extent> = (0..300).filter(|n| *n != 100 && *n != 105).map(piece).collect();
        let p = scattered(&content(1200 * K, &extents), 0, 8).unwrap();
        assert_eq!(p.dirty, [(0, 100), (106, 256)]);
        assert_eq!(p.kept, [&extents[100..104], &extents[254..]].concat());
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
