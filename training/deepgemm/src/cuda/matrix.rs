//! Matrices in the memory of a GPU.

use super::{Cuda, Result};
use crate::gemm::{check_scales_of_rows, check_scales_of_weights};
use crate::grouped::segments;
use crate::{BLOCK, E4m3, Indexer, Recipe, Scaled, View, demand, layout};
use ember_cuda::Buffer;
use half::bf16;

/// A BF16 matrix.
pub struct Bf16 {
    pub(super) numbers: Buffer<u16>,
    pub(super) shape: [usize; 2],
}

/// FP8 matrices of equal shape with their scales, one for each group.
pub struct Fp8 {
    pub(super) values: Buffer<u8>,
    /// Of rows: `[groups, ceil(k / 128), aligned(rows)]`; of blocks: `[groups, ceil(rows / 128), ceil(k / 128)]`.
    pub(super) scales: Buffer<f32>,
    pub(super) groups: usize,
    pub(super) shape: [usize; 2],
    pub(super) recipe: Recipe,
}

/// Results: `[groups, m, n]`.
pub struct Output {
    pub(super) numbers: Written,
    pub(super) groups: usize,
    pub(super) shape: [usize; 2],
}

/// What results are.
pub(super) enum Written {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
}

/// The group of each row, or -1 for padding.
pub struct Groups {
    pub(super) numbers: Buffer<i32>,
    count: usize,
}

/// How many rows of each group count.
pub struct Rows {
    pub(super) numbers: Buffer<i32>,
    most: usize,
}

/// What an indexer reads; see [`Indexer`].
pub struct Indexed {
    pub(super) queries: Buffer<u8>,
    pub(super) keys: Buffer<u8>,
    pub(super) key_scales: Buffer<f32>,
    pub(super) weights: Buffer<f32>,
    /// From and to of each query.
    pub(super) seen: Buffer<u32>,
    /// Queries, heads, keys, numbers of a head.
    pub(super) shape: [usize; 4],
}

fn rows_of<T: Copy, U>(view: &View<'_, T>, each: impl Fn(T) -> U) -> Vec<U> {
    (0..view.shape()[0]).flat_map(|row| view.row(row).iter().map(|&x| each(x))).collect()
}

/// Kernels count rows and columns in 31 bits.
fn check_size(argument: &'static str, numbers: [usize; 3]) -> Result<()> {
    let rows = numbers[0].checked_mul(numbers[1]);
    let most = i32::MAX as usize;
    let holds = rows.is_some_and(|rows| rows <= most) && numbers[2] <= most;
    Ok(demand(holds, argument, || format!("{numbers:?} has more than {most} rows or columns"))?)
}

impl Cuda {
    /// A copy of a BF16 matrix.
    ///
    /// # Errors
    /// If there isn't as much memory.
    pub fn bf16(&self, x: &View<'_, bf16>) -> Result<Bf16> {
        let shape = x.shape();
        check_size("x", [1, shape[0], shape[1]])?;
        Ok(Bf16 { numbers: self.device.upload(&rows_of(x, bf16::to_bits))?, shape })
    }

    /// A copy of FP8 matrices, one for each group, all of the shape of the first. Their scales are of rows or, as
    /// `recipe` says, of blocks of 128 rows.
    ///
    /// # Errors
    /// If there is none, shapes differ, a scale is infinite or no number, or there isn't as much memory.
    pub fn fp8(&self, groups: &[Scaled<'_>], recipe: Recipe) -> Result<Fp8> {
        demand(!groups.is_empty(), "groups", || "has no matrix".to_owned())?;
        let shape = groups[0].values.shape();
        check_size("groups", [groups.len(), shape[0], shape[1]])?;
        let (mut values, mut scales) = (Vec::new(), Vec::new());
        for (g, x) in groups.iter().enumerate() {
            demand(x.values.shape() == shape, "groups", || {
                format!("group {g} has shape {:?}, not {shape:?}", x.values.shape())
            })?;
            values.extend(rows_of(&x.values, |x: E4m3| x.0));
            let of = x.scales.shape();
            match recipe {
                Recipe::Rows => check_scales_of_rows(x)?,
                Recipe::Blocks => check_scales_of_weights(x, recipe)?,
            }
            let plain: Vec<f32> =
                (0..of[0]).flat_map(|i| (0..of[1]).map(move |j| x.scales.get(i, j))).collect();
            match recipe {
                Recipe::Rows => scales.extend(layout::mn_major(&plain, of)),
                Recipe::Blocks => scales.extend(plain),
            }
        }
        let (values, scales) = (self.device.upload(&values)?, self.device.upload(&scales)?);
        Ok(Fp8 { values, scales, groups: groups.len(), shape, recipe })
    }

    /// Zeros in `f32`.
    ///
    /// # Errors
    /// If there isn't as much memory.
    pub fn f32_output(&self, groups: usize, shape: [usize; 2]) -> Result<Output> {
        check_size("shape", [groups, shape[0], shape[1]])?;
        let numbers = Written::F32(self.device.zeroed(groups * shape[0] * shape[1])?);
        Ok(Output { numbers, groups, shape })
    }

    /// Zeros in BF16.
    ///
    /// # Errors
    /// If there isn't as much memory.
    pub fn bf16_output(&self, groups: usize, shape: [usize; 2]) -> Result<Output> {
        check_size("shape", [groups, shape[0], shape[1]])?;
        let numbers = Written::Bf16(self.device.zeroed(groups * shape[0] * shape[1])?);
        Ok(Output { numbers, groups, shape })
    }

    /// The group of each row, of `count` groups, or -1 for padding.
    ///
    /// # Errors
    /// If a group doesn't exist, comes twice, or doesn't begin at a multiple of [`ALIGNMENT`](crate::ALIGNMENT).
    pub fn groups(&self, groups: &[i32], count: usize) -> Result<Groups> {
        segments(groups, count)?;
        Ok(Groups { numbers: self.device.upload(groups)?, count })
    }

    /// How many rows of each group count.
    ///
    /// # Errors
    /// If a number is negative.
    pub fn rows(&self, rows: &[i32]) -> Result<Rows> {
        let wrong = rows.iter().position(|&count| count < 0);
        demand(wrong.is_none(), "rows", || {
            let group = wrong.unwrap_or(0);
            format!("group {group} has {} rows", rows[group])
        })?;
        let most = rows.iter().copied().max().unwrap_or(0).unsigned_abs() as usize;
        Ok(Rows { numbers: self.device.upload(rows)?, most })
    }

    /// A copy of what an indexer reads.
    ///
    /// # Errors
    /// If shapes don't fit, a scale or weight is no number, or a query sees keys that aren't there.
    pub fn indexed(&self, of: &Indexer<'_>) -> Result<Indexed> {
        of.check_inputs()?;
        let ([queries, heads], [keys, width]) = (of.weights.shape(), of.keys.shape());
        check_size("queries", [queries, heads, width])?;
        check_size("keys", [1, keys, width])?;
        let seen: Vec<u32> = of.seen.iter().flat_map(|&(from, to)| [from, to]).collect();
        Ok(Indexed {
            queries: self.device.upload(&rows_of(&of.queries, |x: E4m3| x.0))?,
            keys: self.device.upload(&rows_of(&of.keys, |x: E4m3| x.0))?,
            key_scales: self.device.upload(of.key_scales)?,
            weights: self.device.upload(&rows_of(&of.weights, |x| x))?,
            seen: self.device.upload(&seen)?,
            shape: [queries, heads, keys, width],
        })
    }
}

impl Fp8 {
    /// Values and scales, row-major, of all groups behind each other.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn download(&self) -> Result<(Vec<E4m3>, Vec<f32>)> {
        let values = self.values.download()?.into_iter().map(E4m3).collect();
        let stored = self.scales.download()?;
        if self.recipe == Recipe::Blocks {
            return Ok((values, stored));
        }
        let (rows, blocks) = (self.shape[0], self.shape[1].div_ceil(BLOCK));
        let stride = layout::aligned(rows);
        let mut scales = Vec::with_capacity(self.groups * rows * blocks);
        for g in 0..self.groups {
            for row in 0..rows {
                scales.extend((0..blocks).map(|block| stored[(g * blocks + block) * stride + row]));
            }
        }
        Ok((values, scales))
    }
}

impl Output {
    /// Whether results are `f32`, not BF16.
    pub fn is_f32(&self) -> bool {
        matches!(self.numbers, Written::F32(_))
    }
    /// Rows and columns of a group.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
    /// All results in `f32`, after all work that was queued.
    ///
    /// # Errors
    /// If that work failed.
    pub fn download(&self) -> Result<Vec<f32>> {
        match &self.numbers {
            Written::F32(buffer) => buffer.download(),
            Written::Bf16(buffer) => {
                Ok(buffer.download()?.into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect())
            }
        }
    }
    /// Writes all of it: what is to be added, or what padding has.
    ///
    /// # Errors
    /// If there are more or fewer numbers.
    pub fn upload(&mut self, numbers: &[f32]) -> Result<()> {
        match &mut self.numbers {
            Written::F32(buffer) => buffer.upload(numbers),
            Written::Bf16(buffer) => {
                let bits: Vec<u16> = numbers.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
                buffer.upload(&bits)
            }
        }
    }
    /// Queues a copy of all of `from`, or zeros.
    pub(super) fn fill(&mut self, from: Option<&Self>) -> Result<()> {
        match (&mut self.numbers, from.map(|from| &from.numbers)) {
            (Written::F32(to), Some(Written::F32(from))) => to.copy(from),
            (Written::Bf16(to), Some(Written::Bf16(from))) => to.copy(from),
            (Written::F32(to), _) => to.clear(),
            (Written::Bf16(to), _) => to.clear(),
        }
    }
}

impl Groups {
    pub(super) fn rows(&self) -> usize {
        self.numbers.len()
    }
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

impl Rows {
    pub(super) fn count(&self) -> usize {
        self.numbers.len()
    }
    pub(super) fn most(&self) -> usize {
        self.most
    }
}
