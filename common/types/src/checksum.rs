//! CRC32C (Castagnoli, RFC 3720 B.4) per 4 KiB block, and the whole combined from them.

/// Bytes that one block checksum covers; the last block of a chunk may be shorter.
pub const BLOCK_SIZE: usize = 4096;

/// CRC32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// CRC32C of each 4 KiB block of `data`, in order; the last block may be short. Empty data has none.
pub fn block_checksums(data: &[u8]) -> Vec<u32> {
    data.chunks(BLOCK_SIZE).map(crc32c::crc32c).collect()
}

/// CRC32C of `length` bytes from the checksums of their blocks. `blocks` must hold
/// `length.div_ceil(BLOCK_SIZE)` entries.
///
/// # Panics
/// If the number of blocks doesn't fit the length.
pub fn combine_blocks(blocks: &[u32], length: usize) -> u32 {
    assert_eq!(blocks.len(), length.div_ceil(BLOCK_SIZE), "one checksum per block of {length} bytes");
    let mut whole = 0;
    for (i, &block) in blocks.iter().enumerate() {
        let len = BLOCK_SIZE.min(length - i * BLOCK_SIZE);
        whole = crc32c::crc32c_combine(whole, block, len);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combined_blocks_equal_the_whole() {
        let data: Vec<u8> = (0..10_000_u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for len in [0, 1, 4095, 4096, 4097, 8192, 10_000] {
            let piece = &data[..len];
            assert_eq!(combine_blocks(&block_checksums(piece), len), crc32c(piece), "{len}");
        }
    }

    #[test]
    fn known_answer_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
