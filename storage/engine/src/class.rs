//! Size classes: a data file each, cut into slots of one power of two.

use ember_types::BLOCK_SIZE;

/// Size of a block in bytes: what one checksum covers and the unit of every data I/O.
pub(crate) const BLOCK: u32 = BLOCK_SIZE as u32;
/// Number of size classes: 4 KiB, 8 KiB, ... 64 MiB.
pub(crate) const CLASSES: u8 = 15;
/// Largest length of a chunk, in bytes.
pub const CHUNK_MAX: u32 = 64 << 20;
/// Blocks of the largest chunk.
pub(crate) const BLOCKS_MAX: u32 = CHUNK_MAX / BLOCK;

/// Slots up to this class are filled with zeros when they are made: what is written into them is small, so that
/// the flush would cost more than the zeros.
pub(crate) const ZEROED_MAX: u8 = 4;

const GROUP_MIN: u64 = 1 << 20;
const GROUP_MAX: u64 = 64 << 20;
/// The same for classes up to [`ZEROED_MAX`], whose writers wait for the zeros.
const ZEROED_GROUP_MAX: u64 = 4 << 20;

/// A slot: one of the equal pieces of a class' file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SlotId {
    pub(crate) class: u8,
    pub(crate) slot: u32,
}

impl SlotId {
    /// Offset in the class' file of block `block` of this slot, in bytes.
    pub(crate) fn offset(self, block: u32) -> u64 {
        u64::from(self.slot) * slot_bytes(self.class) + u64::from(block) * u64::from(BLOCK)
    }
}

/// Blocks of a slot of `class`.
pub(crate) fn slot_blocks(class: u8) -> u32 {
    1 << class
}
/// Bytes of a slot of `class`.
pub(crate) fn slot_bytes(class: u8) -> u64 {
    u64::from(BLOCK) << class
}
/// The smallest class whose slots hold `blocks` blocks.
pub(crate) fn class_for(blocks: u32) -> u8 {
    blocks.clamp(1, BLOCKS_MAX).next_power_of_two().trailing_zeros() as u8
}
/// Blocks that hold `bytes` bytes.
pub(crate) fn blocks_of(bytes: u32) -> u32 {
    bytes.div_ceil(BLOCK)
}
/// Slots by which a class grows that has `total` of them: an eighth of it, 1 to 64 MiB, small ones to 4 MiB.
pub(crate) fn growth(class: u8, total: u32) -> u32 {
    let bytes = (u64::from(total) * slot_bytes(class) / 8).max(16 * slot_bytes(class));
    let bytes = bytes.clamp(GROUP_MIN, if class <= ZEROED_MAX { ZEROED_GROUP_MAX } else { GROUP_MAX });
    (bytes / slot_bytes(class)).max(1) as u32
}
/// Name of the class' file.
pub(crate) fn data_name(class: u8) -> String {
    match class {
        0..=7 => format!("data-{}k", 4 << class),
        _ => format!("data-{}m", 1 << (class - 8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_sits_in_the_smallest_slot_that_holds_it() {
        for (bytes, slot) in
            [(1, 4096), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20), (CHUNK_MAX, 64 << 20)]
        {
            assert_eq!(slot_bytes(class_for(blocks_of(bytes))), slot);
        }
        assert_eq!(data_name(0), "data-4k");
        assert_eq!(data_name(7), "data-512k");
        assert_eq!(data_name(8), "data-1m");
        assert_eq!(data_name(CLASSES - 1), "data-64m");
        assert_eq!(growth(0, 0), 256);
        assert_eq!(growth(14, 0), 1);
        assert_eq!(SlotId { class: 1, slot: 3 }.offset(1), 3 * 8192 + 4096);
    }
}
