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

/// CRC32C of `length` bytes from the checksums of their blocks.
pub(crate) fn combine(blocks: &[u32], length: u32) -> u32 {
    assert_eq!(blocks.len() as u32, length.div_ceil(BLOCK), "one checksum per block of {length} bytes");
    let Some((&last, full)) = blocks.split_last() else { return 0 };
    let tables = tables();
    let shift = |crc: u32| {
        let b = crc.to_le_bytes();
        tables[0][usize::from(b[0])]
            ^ tables[1][usize::from(b[1])]
            ^ tables[2][usize::from(b[2])]
            ^ tables[3][usize::from(b[3])]
    };
    let whole = full.iter().fold(0, |crc, block| shift(crc) ^ block);
    match length % BLOCK {
        0 => shift(whole) ^ last,
        tail => crc32c::crc32c_combine(whole, last, tail as usize),
    }
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
    use ember_types::checksum::{block_checksums, combine_blocks};

    #[test]
    fn combining_by_table_equals_the_reference() {
        let data: Vec<u8> = (0..40_000_u32).map(|i| (i * 31 + i / 300) as u8).collect();
        for length in [0, 1, 4095, 4096, 4097, 8192, 32_768, 40_000] {
            let blocks = block_checksums(&data[..length]);
            assert_eq!(combine(&blocks, length as u32), combine_blocks(&blocks, length), "{length}");
        }
        assert_eq!(zeros(4096), crc32c::crc32c(&[0; 4096]));
        assert_eq!(zeros(7), crc32c::crc32c(&[0; 7]));
    }
}
