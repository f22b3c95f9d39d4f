//! Which chain holds which bytes of a file. This arithmetic is a format: golden tests pin it for ever.

use crate::id::{ChainId, ChainTableId, ChainTableVersion, ChunkId, DataId};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Smallest chunk size, 64 KiB.
pub const CHUNK_SIZE_MIN: u32 = 64 << 10;
/// Largest chunk size, 64 MiB.
pub const CHUNK_SIZE_MAX: u32 = 64 << 20;
/// Chunk size of a file whose directory names none, 1 MiB.
pub const CHUNK_SIZE_DEFAULT: u32 = 1 << 20;
/// Most chains that a file is striped over.
pub const STRIPE_MAX: u32 = 4096;

/// Where a file's chunks lie. A value of this type is valid: [`Layout::new`] and decoders refuse others.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Layout {
    #[n(0)]
    table: ChainTableId,
    #[n(1)]
    table_version: ChainTableVersion,
    #[n(2)]
    chunk_size: u32,
    #[n(3)]
    stripe: u32,
    #[n(4)]
    base: u32,
    #[n(5)]
    seed: u64,
}

/// What stands in the bytes of a layout, unchecked.
#[derive(Decode, Deserialize)]
struct Fields {
    #[n(0)]
    table: ChainTableId,
    #[n(1)]
    table_version: ChainTableVersion,
    #[n(2)]
    chunk_size: u32,
    #[n(3)]
    stripe: u32,
    #[n(4)]
    base: u32,
    #[n(5)]
    seed: u64,
}

impl TryFrom<Fields> for Layout {
    type Error = &'static str;
    fn try_from(f: Fields) -> Result<Self, Self::Error> {
        Self::new(f.table, f.table_version, f.chunk_size, f.stripe, f.base, f.seed)
            .ok_or("chunk size or stripe of a layout is out of range")
    }
}

impl<'b, C> Decode<'b, C> for Layout {
    fn decode(d: &mut minicbor::Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::try_from(Fields::decode(d, ctx)?).map_err(minicbor::decode::Error::message)
    }
}

impl Layout {
    /// Builds a layout. `None` if `chunk_size` is not a power of two from 64 KiB to 64 MiB or `stripe` is not
    /// in `1..=4096`.
    pub fn new(
        table: ChainTableId,
        table_version: ChainTableVersion,
        chunk_size: u32,
        stripe: u32,
        base: u32,
        seed: u64,
    ) -> Option<Self> {
        let size_ok = chunk_size.is_power_of_two() && (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&chunk_size);
        let layout = Self { table, table_version, chunk_size, stripe, base, seed };
        (size_ok && (1..=STRIPE_MAX).contains(&stripe)).then_some(layout)
    }
    /// Whether it obeys the limits of [`Layout::new`].
    pub fn is_valid(&self) -> bool {
        Self::new(self.table, self.table_version, self.chunk_size, self.stripe, self.base, self.seed)
            .is_some()
    }
    /// The chain table.
    pub fn table(&self) -> ChainTableId {
        self.table
    }
    /// The version of the chain table.
    pub fn table_version(&self) -> ChainTableVersion {
        self.table_version
    }
    /// Bytes per chunk.
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }
    /// Number of chains the file is striped over (before the table's length limits it).
    pub fn stripe(&self) -> u32 {
        self.stripe
    }
    /// The file's chains in stripe order, taken from `table`'s chains. Empty only if `table` is.
    pub fn chains(&self, table: &[ChainId]) -> Vec<ChainId> {
        let count = (self.stripe as usize).min(table.len());
        let mut chains: Vec<ChainId> =
            (0..count).map(|i| table[(self.base as usize + i) % table.len()]).collect();
        let mut random = SplitMix64(self.seed);
        for i in (1..chains.len()).rev() {
            let swap = (u128::from(random.next()) * (i as u128 + 1)) >> 64;
            chains.swap(i, swap as usize);
        }
        chains
    }
    /// Splits the byte range `[offset, offset + length)` of a file into pieces of one chunk each.
    pub fn pieces(&self, data: DataId, offset: u64, length: u64) -> impl Iterator<Item = Piece> + use<> {
        let size = u64::from(self.chunk_size);
        let end = offset.saturating_add(length);
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let index = u32::try_from(at / size).ok()?;
            let within = (at % size) as u32;
            let len = (size - u64::from(within)).min(end - at) as u32;
            let piece =
                Piece { chunk: ChunkId::new(data, index), offset: within, length: len, file_offset: at };
            at += u64::from(len);
            Some(piece)
        })
    }
    /// Largest file that chunk indices can name, in bytes (also below `i64::MAX`).
    pub fn max_file_length(&self) -> u64 {
        (u64::from(self.chunk_size) << 32).min(i64::MAX as u64)
    }
}

/// A byte range within one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte within the chunk.
    pub offset: u32,
    /// Number of bytes; never 0.
    pub length: u32,
    /// First byte within the file.
    pub file_offset: u64,
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct SplitMix64(pub u64);

impl SplitMix64 {
    /// The next 64 bits.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `bound` (0 if `bound` is 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(stripe: u32, base: u32, seed: u64) -> Layout {
        Layout::new(ChainTableId(1), ChainTableVersion(1), CHUNK_SIZE_MIN, stripe, base, seed).unwrap()
    }

    #[test]
    fn splitmix_known_answers() {
        let mut random = SplitMix64(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn golden_chains() {
        let table: Vec<ChainId> = (100..108).map(ChainId).collect();
        let ids = |l: Layout| l.chains(&table).iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(ids(layout(1, 3, 9)), [103]);
        assert_eq!(ids(layout(4, 6, 42)), GOLDEN_4_6_42);
        assert_eq!(ids(layout(100, 1, 7)), GOLDEN_100_1_7);
        assert!(layout(3, 0, 0).chains(&[]).is_empty());
    }
    const GOLDEN_4_6_42: [u32; 4] = [107, 101, 106, 100];
    const GOLDEN_100_1_7: [u32; 8] = [100, 105, 107, 102, 103, 106, 101, 104];

    /// Clients of 3FS that different compilers had built shuffled a file's chains differently, and so read and wrote
    /// others. These numbers come from another program after the same description, in another language.
    #[test]
    fn regression_3fs_368_every_build_has_the_same_chains() {
        let chains = |n: u32, stripe, base, seed| {
            let table: Vec<ChainId> = (1..=n).map(ChainId).collect();
            layout(stripe, base, seed).chains(&table).iter().map(|c| c.0).collect::<Vec<_>>()
        };
        assert_eq!(chains(16, 8, 0, 1), [1, 4, 8, 2, 3, 7, 6, 5]);
        let all = [15, 14, 1, 16, 5, 2, 7, 4, 12, 9, 13, 8, 11, 6, 3, 10];
        assert_eq!(chains(16, 16, 5, 0xdead_beef), all);
        assert_eq!(chains(200, 6, 197, u64::MAX), [1, 200, 199, 198, 2, 3]);
        assert_eq!(chains(3, 3, 2, 0), [1, 3, 2]);
        // A thousand more as one number (FNV-1a over the chains).
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        for n in 1..40 {
            for i in 0..25_u32 {
                let seed = u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                for chain in chains(n, 1 + i % 12, i * 7, seed) {
                    digest = (digest ^ u64::from(chain)).wrapping_mul(0x100_0000_01b3);
                }
            }
        }
        assert_eq!(digest, 0x29f9_f56a_003b_d5db);
    }

    #[test]
    fn pieces_cover_the_range_once() {
        let size = u64::from(CHUNK_SIZE_MIN);
        let pieces: Vec<_> = layout(2, 0, 0).pieces(DataId(5), size - 10, size + 20).collect();
        let got: Vec<_> = pieces.iter().map(|p| (p.chunk.index, p.offset, p.length, p.file_offset)).collect();
        assert_eq!(got, [(0, 65526, 10, size - 10), (1, 0, 65536, size), (2, 0, 10, 2 * size)]);
        assert_eq!(layout(2, 0, 0).pieces(DataId(5), 7, 0).count(), 0);
    }

    #[test]
    fn bytes_of_a_bad_layout_are_refused() {
        let good = minicbor::to_vec(layout(2, 0, 0)).unwrap();
        assert_eq!(minicbor::decode::<Layout>(&good).unwrap(), layout(2, 0, 0));
        // A chunk size of 0 would be divided by; one that is no power of two names other chunks.
        for chunk_size in [0, 3, CHUNK_SIZE_MIN + 1, CHUNK_SIZE_MAX * 2] {
            let bad = Layout { chunk_size, ..layout(2, 0, 0) };
            assert!(minicbor::decode::<Layout>(&minicbor::to_vec(bad).unwrap()).is_err(), "{chunk_size}");
        }
        let bad = Layout { stripe: STRIPE_MAX + 1, ..layout(2, 0, 0) };
        assert!(minicbor::decode::<Layout>(&minicbor::to_vec(bad).unwrap()).is_err());
    }

    #[test]
    fn bad_layouts_are_refused() {
        let new = |chunk, stripe| Layout::new(ChainTableId(1), ChainTableVersion(1), chunk, stripe, 0, 0);
        assert!(new(CHUNK_SIZE_MIN / 2, 1).is_none());
        assert!(new(CHUNK_SIZE_MAX * 2, 1).is_none());
        assert!(new(CHUNK_SIZE_MIN + 1, 1).is_none());
        assert!(new(CHUNK_SIZE_MIN, 0).is_none());
        assert!(new(CHUNK_SIZE_MIN, STRIPE_MAX + 1).is_none());
    }
}
