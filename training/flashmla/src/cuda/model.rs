//! Where numbers lie in shared memory, and what the parts of a schedule are to the kernels.

use crate::schedule::schedule;
use crate::{PAGE, VALUE_WIDTH, WIDTH};

const CHUNK: usize = 64 * 128;

/// The 128-byte swizzle: which 16 bytes of 128 depends on the row of 128 bytes, eight of which repeat.
fn swizzled(offset: usize) -> usize {
    offset ^ (((offset >> 7) & 7) << 4)
}

/// `unit_at` in attend.cuh, and where TMA puts them, whose boxes are chunks.
fn unit_at(row: usize, unit: usize) -> usize {
    unit / 8 * CHUNK + swizzled(row * 128 + unit % 8 * 16)
}

/// What an instruction reads by `matrix_descriptor`: row and column of K, of 16.
fn by_rows(start: usize, row: usize, k: usize) -> usize {
    swizzled(start + row / 8 * 1024 + row % 8 * 128 + k * 2)
}

/// What an instruction reads by `values_descriptor`: column of the result and row of K, of 16.
fn by_columns(start: usize, column: usize, k: usize) -> usize {
    swizzled(start + column / 64 * CHUNK + k / 8 * 1024 + k % 8 * 128 + column % 64 * 2)
}

#[test]
fn descriptors_read_what_was_put_there() {
    for row in 0..64 {
        for column in 0..WIDTH {
            let at = unit_at(row, column / 8) + column % 8 * 2;
            let step = column / 64 * CHUNK + column % 64 / 16 * 32;
            assert_eq!(at, by_rows(step, row, column % 16));
            if column < VALUE_WIDTH {
                let start = column / 256 * 4 * CHUNK + row / 16 * 16 * 128;
                assert_eq!(at, by_columns(start, column % 256, row % 16));
            }
        }
    }
}

#[test]
fn parts_have_every_page_once_and_whole_requests_are_written_by_one() {
    let mut state = 1u32;
    let mut next = |most: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % (most + 1)
    };
    for _ in 0..2000 {
        let lengths: Vec<usize> = (0..1 + next(12)).map(|_| (next(3) * next(700)) as usize).collect();
        let plan = schedule(&lengths, 1 + next(40) as usize).unwrap();
        assert_eq!(plan.pieces.len(), lengths.len() + 1);
        let mut pages: Vec<Vec<usize>> = lengths.iter().map(|_| Vec::new()).collect();
        let mut visits = vec![Vec::new(); lengths.len()];
        for part in super::attention::words(&plan).chunks(8) {
            // As `range_of` in attend.cuh.
            for request in part[0]..=part[4] {
                let (first, last) = (request == part[0], request == part[4]);
                let at = request as usize;
                let from = if first { part[1] as usize } else { 0 };
                let to = if last { part[5] as usize } else { lengths[at].div_ceil(PAGE) };
                let piece = plan.pieces[at] + if first { part[2] as usize } else { 0 };
                let split = (first && part[3] != 0) || (last && part[6] != 0);
                pages[at].extend(from..to);
                visits[at].push((piece, split));
            }
        }
        for (at, length) in lengths.iter().enumerate() {
            assert_eq!(pages[at], (0..length.div_ceil(PAGE)).collect::<Vec<_>>());
            let pieces = plan.pieces[at]..plan.pieces[at + 1];
            let expected: Vec<_> = pieces.clone().map(|piece| (piece, pieces.len() > 1)).collect();
            assert_eq!(visits[at], expected, "{lengths:?}");
        }
    }
}
