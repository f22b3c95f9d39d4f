//! The content of one chunk as a model: cells that each hold the stamp of the write that filled them.

use super::wgl::{self, Event, Model, Verdict};
use std::collections::BTreeSet;

/// Bytes of a cell: every write covers whole cells.
pub const CELL: usize = 1024;
const RECORD: usize = 16;

/// Names the write that filled a cell; 0 is zeros.
pub type Stamp = u32;

/// Bytes of `cells` cells written by `stamp`, the first of them cell number `first`.
pub fn fill(stamp: Stamp, first: u32, cells: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(cells as usize * CELL);
    for cell in first..first + cells {
        for part in 0..(CELL / RECORD) as u32 {
            bytes.extend(stamp.to_le_bytes());
            bytes.extend(cell.to_le_bytes());
            bytes.extend(part.to_le_bytes());
            bytes.extend((stamp ^ cell.rotate_left(16) ^ !part).to_le_bytes());
        }
    }
    bytes
}

/// The stamps of the cells in `bytes`, which start at cell number `first`; `Err` names the first byte that no
/// write can have left there.
pub fn stamps(bytes: &[u8], first: u32) -> Result<Vec<Stamp>, usize> {
    let mut found = Vec::new();
    for (number, piece) in bytes.chunks(CELL).enumerate() {
        if piece.iter().all(|&b| b == 0) {
            found.push(0);
            continue;
        }
        let head = piece.first_chunk::<4>().ok_or(number * CELL)?;
        let stamp = u32::from_le_bytes(*head);
        let expected = fill(stamp, first + number as u32, 1);
        if let Some(at) = piece.iter().zip(&expected).position(|(a, b)| a != b) {
            return Err(number * CELL + at);
        }
        found.push(stamp);
    }
    Ok(found)
}

/// What was asked of a chunk, and answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChunkOp {
    /// Fills cells `first..first + cells` with its stamp.
    Write {
        /// Which write.
        stamp: Stamp,
        /// First cell.
        first: u32,
        /// Number of cells.
        cells: u32,
    },
    /// Cuts to a number of cells, or extends by zeros.
    Cut {
        /// Cells that stay.
        cells: u32,
    },
    /// Removes the chunk.
    Remove,
    /// Was refused: does nothing.
    Nothing,
    /// Found these stamps from cell `first` on. Cells beyond the end of the chunk read as zeros.
    Read {
        /// First cell.
        first: u32,
        /// What was there.
        found: Vec<Stamp>,
    },
}

/// Stamps of a chunk's cells, without the zeros at the end.
pub struct ChunkModel;

impl Model for ChunkModel {
    type State = Vec<Stamp>;
    type Op = ChunkOp;

    fn step(&self, state: &Vec<Stamp>, op: &ChunkOp) -> Option<Vec<Stamp>> {
        let mut cells = state.clone();
        match op {
            ChunkOp::Write { stamp, first, cells: count } => {
                let end = (first + count) as usize;
                cells.resize(cells.len().max(end), 0);
                cells[*first as usize..end].fill(*stamp);
            }
            ChunkOp::Cut { cells: count } => cells.truncate(*count as usize),
            ChunkOp::Remove => cells.clear(),
            ChunkOp::Nothing => {}
            ChunkOp::Read { first, found } => {
                let own = (*first as usize..).map(|at| cells.get(at).copied().unwrap_or(0));
                return own.zip(found).all(|(own, &seen)| own == seen).then_some(cells);
            }
        }
        let end = cells.iter().rposition(|&stamp| stamp != 0).map_or(0, |at| at + 1);
        cells.truncate(end);
        Some(cells)
    }
}

/// Whether the history of one chunk, absent at first, is linearizable.
pub fn check(history: &[Event<ChunkOp>], steps_max: u64) -> Verdict {
    // Writes of unknown outcome that nobody saw can mostly be left out, which keeps the search short; if that
    // explains everything, so does the whole.
    let mut seen: BTreeSet<Stamp> = BTreeSet::new();
    for event in history {
        if let ChunkOp::Read { found, .. } = &event.op {
            seen.extend(found);
        }
    }
    let matters = |event: &Event<ChunkOp>| match &event.op {
        ChunkOp::Write { stamp, .. } => event.end.is_some() || seen.contains(stamp),
        _ => event.end.is_some(),
    };
    let short: Vec<_> = history.iter().filter(|e| matters(e)).cloned().collect();
    match wgl::check(&ChunkModel, Vec::new(), &short, steps_max) {
        Verdict::Linearizable => Verdict::Linearizable,
        _ => wgl::check(&ChunkModel, Vec::new(), history, steps_max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read_back_and_foreign_bytes_are_noticed() {
        let mut bytes = fill(7, 3, 2);
        bytes.extend(vec![0; CELL]);
        assert_eq!(stamps(&bytes, 3), Ok(vec![7, 7, 0]));
        assert!(stamps(&bytes, 4).is_err(), "bytes of another place");
        bytes[CELL + 99] ^= 1;
        assert_eq!(stamps(&bytes, 3), Err(CELL + 99));
    }

    #[test]
    fn a_chunk_is_a_row_of_cells() {
        let event = |begin, end, op| Event { begin, end: Some(end), op };
        let write = |stamp, first, cells| ChunkOp::Write { stamp, first, cells };
        let read = |found: &[Stamp]| ChunkOp::Read { first: 0, found: found.to_vec() };
        let good = [
            event(1, 2, write(1, 2, 2)),
            event(3, 4, read(&[0, 0, 1, 1, 0])),
            event(5, 6, ChunkOp::Cut { cells: 3 }),
            event(7, 8, read(&[0, 0, 1, 0])),
            event(9, 10, ChunkOp::Remove),
            event(11, 12, read(&[0, 0, 0])),
        ];
        assert_eq!(check(&good, 1000), Verdict::Linearizable);
        let mut bad = good.to_vec();
        bad[3].op = read(&[0, 0, 1, 1]);
        assert_eq!(check(&bad, 1000), Verdict::Violation(3));
    }

    #[test]
    fn an_unseen_cut_of_unknown_outcome_explains_zeros() {
        let history = [
            Event { begin: 1, end: Some(2), op: ChunkOp::Write { stamp: 1, first: 0, cells: 4 } },
            Event { begin: 3, end: None, op: ChunkOp::Cut { cells: 1 } },
            Event { begin: 5, end: Some(6), op: ChunkOp::Read { first: 0, found: vec![1, 0] } },
        ];
        assert_eq!(check(&history, 1000), Verdict::Linearizable);
    }
}
