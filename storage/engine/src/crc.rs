//! Checksums of whole chunks from those of their blocks, fast enough for chunks of thousands of blocks.

use crate::class::BLOCK;
use std::sync::OnceLock;

/// `TABLES[i][b]` is what byte `i` of a CRC, if it is `b`, becomes when a block of bytes follows.
fn tables() -> &'static [[u32; 256]; 4] {
    static TABLES: OnceLock<Box<[[u32; 256]; 4]>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let mut tables = Box::new([[0; 256]; 4]);
        for (i, table) in tables.iter_mut().enumerate() {
            for bit in 0..8 {
                let shifted = crc32c::crc32c_combine(1 << (8 * i + bit), 0, BLOCK as usize);
                for (byte, entry) in table.iter_mut().enumerate() {
                    if byte >> bit & 1 == 1 {
                        *entry ^= shifted;
                    }
                }
            }
        }
        tables
    })
}

/// What a CRC becomes when a block of bytes follows.
fn shift(tables: &[[u32; 256]; 4], crc: u32) -> u32 {
    let b = crc.to_le_bytes();
    tables[0][usize::from(b[0])]
        ^ tables[1][usize::from(b[1])]
        ^ tables[2][usize::from(b[2])]
        ^ tables[3][usize::from(b[3])]
}

/// CRC32C of `length` bytes from the checksums of their blocks.
pub(crate) fn combine(blocks: &[u32], length: u32) -> u32 {
    assert_eq!(blocks.len() as u32, length.div_ceil(BLOCK), "one checksum per block of {length} bytes");
    let Some((&last, full)) = blocks.split_last() else { return 0 };
    let tables = tables();
    let shift = |crc| shift(tables, crc);
    let whole = full.iter().fold(0, |crc, block| shift(crc) ^ block);
    match length % BLOCK {
        0 => shift(whole) ^ last,
        tail => crc32c::crc32c_combine(whole, last, tail as usize),
    }
}

/// CRC32C of bytes with `crc`, and zeros behind them: from `length` bytes to `longer`.
pub(crate) fn extend(crc: u32, length: u32, longer: u32) -> u32 {
    let zero = |crc, bytes: u32| crc32c::crc32c_append(crc, &[0; BLOCK as usize][..bytes as usize]);
    let edge = length.next_multiple_of(BLOCK).min(longer);
    let tables = tables();
    let whole = (edge..longer - longer % BLOCK).step_by(BLOCK as usize);
    let crc = whole.fold(zero(crc, edge - length), |crc, _| shift(tables, crc) ^ zeros(BLOCK));
    zero(crc, (longer % BLOCK).min(longer - edge))
}

/// Blocks from `from` on that change: their checksums, before and after.
pub(crate) struct Changed {
    pub(crate) from: u32,
    pub(crate) before: Vec<u32>,
    pub(crate) after: Vec<u32>,
}

/// CRC32C of `length` bytes that differ in `parts` from those with `crc`: CRCs of equally long bytes are linear.
pub(crate) fn change(crc: u32, length: u32, parts: &[Changed]) -> u32 {
    let tables = tables();
    parts.iter().fold(crc, |crc, part| {
        let end = ((part.from + part.after.len() as u32) * BLOCK).min(length);
        let bytes = end - part.from * BLOCK;
        let differs = combine(&part.before, bytes) ^ combine(&part.after, bytes);
        let behind = length - end;
        let shifted = (0..behind / BLOCK).fold(differs, |crc, _| shift(tables, crc));
        crc ^ match behind % BLOCK {
            0 => shifted,
            rest => crc32c::crc32c_combine(shifted, 0, rest as usize),
        }
    })
}

/// CRC32C of `length` zero bytes, at most a block.
pub(crate) fn zeros(length: u32) -> u32 {
    static FULL: OnceLock<u32> = OnceLock::new();
    match length {
        BLOCK => *FULL.get_or_init(|| crc32c::crc32c(&[0; BLOCK as usize])),
        _ => crc32c::crc32c(&[0; BLOCK as usize][..length as usize]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_in_the_whole() {
        for length in [4096, 5000, 20_480, 40_001_u32] {
            let before: Vec<u8> = (0..length).map(|i| (i * 37 + i / 251) as u8).collect();
            let blocks = length.div_ceil(BLOCK);
            for (from, to) in (0..blocks).flat_map(|from| (from + 1..=blocks).map(move |to| (from, to))) {
                let mut after = before.clone();
                let range = (from * BLOCK) as usize..(to * BLOCK).min(length) as usize;
                after[range.clone()].iter_mut().for_each(|byte| *byte ^= 0x5a);
                let sums = |bytes: &[u8]| block_checksums(&bytes[range.clone()]);
                let part = Changed { from, before: sums(&before), after: sums(&after) };
                assert_eq!(change(crc32c::crc32c(&before), length, &[part]), crc32c::crc32c(&after));
            }
        }
    }
    use ember_types::checksum::{block_checksums, combine_blocks};

    #[test]
    fn combining_by_table_equals_the_reference() {
        let data: Vec<u8> = (0..40_000_u32).map(|i| (i * 31 + i / 300) as u8).collect();
        for length in [0, 1, 4095, 4096, 4097, 8192, 32_768, 40_000] {
            let blocks = block_checksums(&data[..length]);
            assert_eq!(combine(&blocks, length as u32), combine_blocks(&blocks, length), "{length}");
        }
        for (length, longer) in
            [(0, 0), (0, 9000), (5, 5), (5, 4000), (5, 4096), (4096, 8192), (5000, 30_001)]
        {
            let whole = [&data[..length], &vec![0; longer - length]].concat();
            let crc = extend(crc32c::crc32c(&data[..length]), length as u32, longer as u32);
            assert_eq!(crc, crc32c::crc32c(&whole), "{length} to {longer}");
        }
        assert_eq!(zeros(4096), crc32c::crc32c(&[0; 4096]));
        assert_eq!(zeros(7), crc32c::crc32c(&[0; 7]));
    }
}
