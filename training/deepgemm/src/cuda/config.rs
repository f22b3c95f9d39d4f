//! How a product is cut into tiles, and the program that computes it.

use ember_cuda::{HOPPER, Program, SHARED_BYTES_MAX, wgmma};
use std::fmt::Write;

/// Which products there are, numbered as in `schedule.cuh`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// One.
    Plain,
    /// Rows of several groups behind each other.
    Contiguous,
    /// A part of each group's rows.
    Masked,
    /// Groups with columns of their own.
    KGrouped,
}

/// What is multiplied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Numbers {
    /// FP8; b has a scale for each 128 rows.
    Fp8Blocks,
    /// FP8; b has a scale for each row.
    Fp8Rows,
    /// BF16.
    Bf16,
}

/// A product, as far as its program depends on it, and what is known of `m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// One product or several.
    pub kind: Kind,
    /// What is multiplied.
    pub numbers: Numbers,
    /// Whether the result is `f32`, not BF16.
    pub out_f32: bool,
    /// Whether something is added.
    pub with_c: bool,
    /// Rows of the result, of a group if they are [`Kind::Masked`] or [`Kind::KGrouped`].
    pub m: u32,
    /// Columns of the result.
    pub n: u32,
    /// Columns of both factors; 0 if k-grouped.
    pub k: u32,
    /// Groups that share the processors.
    pub groups: u32,
}

/// Tiles of a product.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Config {
    kind: Kind,
    numbers: Numbers,
    out_f32: bool,
    with_c: bool,
    n: u32,
    k: u32,
    /// Rows of a tile: 64 for each warpgroup that multiplies.
    pub block_m: u32,
    /// Columns of a tile.
    pub block_n: u32,
    /// Tiles of both factors that are loaded ahead.
    pub stages: u32,
    /// Blocks that load the same rows of `a` together.
    pub cluster: u32,
}

/// Multiplications that a processor's tensor cores do in a cycle, with FP8; half as many with BF16.
const PER_CYCLE: u32 = 4096;
/// Bytes that a processor gets from the second cache in a cycle, and writes to memory: an assumption.
const CACHE_BYTES: u32 = 40;
const MEMORY_BYTES: u32 = 16;
/// Cycles of a block of K in which a warpgroup that is alone adds up and the tensor cores wait, for each column.
const PROMOTION: u32 = 2;
const STAGES_MAX: u32 = 8;
const STAGES_MIN: u32 = 4;
/// A buffer of 64 rows of 128 bytes, two for each warpgroup that multiplies.
const OUT_BYTES: u32 = 2 * 64 * 128;

impl Config {
    /// The tiles that should take least time on so many processors: whole waves of tiles, each as long as its products
    /// or its loads take, whatever is longer. The figures are assumptions; none was measured.
    pub fn choose(of: &Problem, processors: u32) -> Self {
        let columns: &[u32] = match of.numbers {
            // What is added takes registers on its way.
            Numbers::Bf16 if of.with_c => &[128, 96, 64, 32, 16],
            Numbers::Bf16 => &[256, 192, 160, 128, 96, 64, 32, 16],
            Numbers::Fp8Blocks => &[160, 128, 96, 64, 32, 16],
            // Scales of columns take registers too.
            Numbers::Fp8Rows => &[128, 96, 64, 32, 16],
        };
        let tiles = [128, 64].into_iter().flat_map(|m| columns.iter().map(move |&n| (m, n)));
        let best = tiles.min_by_key(|&(m, n)| Self::cycles(of, processors, m, n)).unwrap_or((64, 16));
        Self::with_tiles(of, processors, best)
    }

    /// Tiles of that shape.
    pub(crate) fn with_tiles(of: &Problem, processors: u32, (block_m, block_n): (u32, u32)) -> Self {
        let across = of.n.div_ceil(block_n);
        let shared = block_m == 128 && across.is_multiple_of(2) && processors.is_multiple_of(2);
        let enough = of.groups * of.m.div_ceil(block_m) * across >= processors;
        let mut config = Self {
            kind: of.kind,
            numbers: of.numbers,
            out_f32: of.out_f32,
            with_c: of.with_c,
            n: of.n,
            k: of.k,
            block_m,
            block_n,
            stages: STAGES_MAX,
            cluster: if shared && enough { 2 } else { 1 },
        };
        while config.stages > STAGES_MIN && config.shared_bytes() > SHARED_BYTES_MAX {
            config.stages -= 1;
        }
        config
    }

    fn cycles(of: &Problem, processors: u32, block_m: u32, block_n: u32) -> u64 {
        let wide = |x: u32| u64::from(x);
        let tiles = wide(of.groups) * wide(of.m.div_ceil(block_m)) * wide(of.n.div_ceil(block_n));
        let blocks = wide(if of.kind == Kind::KGrouped { 4096 } else { of.k }.div_ceil(128)).max(1);
        let (bytes, rate) = if of.numbers == Numbers::Bf16 { (2, PER_CYCLE / 2) } else { (1, PER_CYCLE) };
        let alone = if block_m == 64 && of.numbers != Numbers::Bf16 { PROMOTION * block_n } else { 0 };
        let products = wide(block_m * block_n * 128 / rate + alone);
        let loads = wide((block_m + block_n) * 128 * bytes / CACHE_BYTES);
        let store = wide(block_m * block_n * if of.out_f32 { 4 } else { 2 } / MEMORY_BYTES);
        tiles.div_ceil(wide(processors).max(1)) * (blocks * products.max(loads) + store)
    }

    /// Rows of `a` that a block loads at once.
    pub(crate) fn a_rows(&self) -> u32 {
        self.block_m / self.cluster
    }

    fn fp8(&self) -> bool {
        self.numbers != Numbers::Bf16
    }

    /// Dynamic shared memory, with room to begin at a multiple of 1024.
    pub fn shared_bytes(&self) -> u32 {
        let scales_a = if self.fp8() { self.block_m * 4 } else { 0 };
        let scales_b =
            if self.numbers == Numbers::Fp8Rows { (self.block_n * 4).next_multiple_of(128) } else { 0 };
        let stage = (self.block_m + self.block_n) * 128 + scales_a + scales_b + 16;
        1024 + self.block_m / 64 * OUT_BYTES + self.stages * stage
    }

    /// Columns of the result that are stored together, and their bytes.
    pub fn slab(&self) -> (u32, u32) {
        let size = if self.out_f32 { 4 } else { 2 };
        let row = self.block_n * size;
        let bytes =
            if row.is_multiple_of(128) { 128 } else { [64, 32][usize::from(!row.is_multiple_of(64))] };
        (bytes / size, bytes)
    }

    /// Blocks of the launch.
    pub fn blocks(&self, m: u32, groups: u32, processors: u32) -> u32 {
        let tiles = u64::from(groups)
            * u64::from(m.div_ceil(self.block_m))
            * u64::from(self.n.div_ceil(self.block_n).div_ceil(self.cluster));
        let clusters = u64::from((processors / self.cluster).max(1)).min(tiles.max(1));
        clusters as u32 * self.cluster
    }

    /// The kernel.
    pub fn program(&self) -> Program {
        let kind = ["plain", "contiguous", "masked", "k-grouped"][self.kind as usize];
        let numbers = ["fp8-1d2d", "fp8-1d1d", "bf16"][self.numbers as usize];
        let out = if self.out_f32 { "f32" } else { "bf16" };
        let c = if self.with_c { "-c" } else { "" };
        let (m, n) = (self.block_m, self.block_n);
        let name = format!(
            "deepgemm/{numbers}-{kind}-{m}x{n}x{}-cluster{}-{out}{c}-n{}-k{}",
            self.stages, self.cluster, self.n, self.k
        );
        let mut source = format!("{HOPPER}{}", super::SCHEDULE);
        let set: [(&str, u32); 12] = [
            ("KIND", self.kind as u32),
            ("FP8", u32::from(self.fp8())),
            ("ROW_SCALES", u32::from(self.numbers == Numbers::Fp8Rows)),
            ("OUT_F32", u32::from(self.out_f32)),
            ("WITH_C", u32::from(self.with_c)),
            ("BLOCK_M", m),
            ("BLOCK_N", n),
            ("STAGES", self.stages),
            ("CLUSTER", self.cluster),
            ("N", self.n),
            ("K", self.k),
            ("SHARED_BYTES", self.shared_bytes()),
        ];
        for (name, value) in set {
            let _ = writeln!(source, "#define {name} {value}u");
        }
        source.push_str(&wgmma("wgmma", self.fp8(), n));
        source.push_str(include_str!("gemm.cu"));
        let threads = 128 * (1 + m / 64);
        Program {
            name,
            entry: "gemm",
            source,
            threads,
            cluster: self.cluster,
            shared_bytes: self.shared_bytes(),
            instructions: if self.fp8() {
                &["QGMMA", "UTMALDG", "UTMASTG"]
            } else {
                &["HGMMA", "UTMALDG", "UTMASTG"]
            },
            // Of 65536, in eights. Three warpgroups divide them anew when they have begun.
            registers_max: if m == 64 { 255 } else { 168 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems() -> impl Iterator<Item = Problem> {
        let kinds = [Kind::Plain, Kind::Contiguous, Kind::Masked, Kind::KGrouped];
        let numbers = [Numbers::Fp8Blocks, Numbers::Fp8Rows, Numbers::Bf16];
        let sizes = [1, 64, 65, 128, 4096, 100_000];
        kinds.into_iter().flat_map(move |kind| {
            numbers.into_iter().flat_map(move |numbers| {
                sizes.into_iter().flat_map(move |m| {
                    [8, 64, 576, 2112, 7168].map(move |n| Problem {
                        kind,
                        numbers,
                        out_f32: n == 64,
                        with_c: n == 576,
                        m,
                        n,
                        k: 7168,
                        groups: 1 + m % 3,
                    })
                })
            })
        })
    }

    #[test]
    fn every_choice_fits_into_shared_memory_with_four_stages() {
        for of in problems() {
            let config = Config::choose(&of, 132);
            assert!(config.stages >= STAGES_MIN, "{config:?}");
            assert!(config.shared_bytes() <= SHARED_BYTES_MAX, "{config:?}");
            let blocks = config.blocks(of.m, of.groups, 132);
            assert!((1..=132).contains(&blocks) && blocks.is_multiple_of(config.cluster), "{config:?}");
            let (columns, bytes) = config.slab();
            assert!(config.block_n.is_multiple_of(columns) && [32, 64, 128].contains(&bytes));
            if of.numbers == Numbers::Fp8Blocks {
                // A tile has rows of two blocks of scales at most, wherever it begins.
                for from in (0..of.n).step_by(config.block_n as usize) {
                    assert!((from + config.block_n - 1) / 128 - from / 128 <= 1, "{config:?}");
                }
            }
        }
    }

    #[test]
    fn few_rows_take_small_tiles_and_many_take_large_ones() {
        let of = Problem {
            kind: Kind::Plain,
            numbers: Numbers::Fp8Blocks,
            out_f32: false,
            with_c: false,
            m: 64,
            n: 2112,
            k: 7168,
            groups: 1,
        };
        let few = Config::choose(&of, 132);
        assert!(few.block_m == 64 && few.block_n <= 32, "{few:?}");
        let many = Config::choose(&Problem { m: 4096, n: 7168, ..of }, 132);
        assert!(many.block_m == 128 && many.block_n >= 128, "{many:?}");
    }
}
