//! From numbers to FP8 with scales.

use super::matrix::{Bf16, Fp8};
use super::{Cuda, Result};
use crate::{BLOCK, Recipe, ScaleFormat, demand, layout};
use ember_cuda::{Arg, Grid, HOPPER, Program};
use half::bf16;

/// Rows of a block of threads.
const ROWS: usize = 8;

/// The kernel.
pub(super) fn program(format: ScaleFormat) -> Program {
    let (name, powers) = match format {
        ScaleFormat::F32 => ("f32", 0),
        ScaleFormat::Ue8m0 => ("ue8m0", 1),
    };
    Program {
        name: format!("deepgemm/per-token-{name}"),
        entry: "per_token",
        source: format!("{HOPPER}#define POWERS {powers}\n{}", include_str!("quantise.cu")),
        threads: 32 * ROWS as u32,
        cluster: 1,
        shared_bytes: 0,
        instructions: &["F2FP"],
        registers_max: 64,
    }
}

impl Cuda {
    /// A scale for each row and 128 columns, with the CPU's bits. Waits for the GPU.
    ///
    /// # Errors
    /// If `x` holds infinity or NaN, or the GPU fails.
    pub fn per_token(&self, x: &Bf16, format: ScaleFormat) -> Result<Fp8> {
        let [rows, columns] = x.shape;
        demand(columns.is_multiple_of(16), "x", || {
            format!("has {columns} columns: on a GPU they are a multiple of 16")
        })?;
        let (blocks, stride) = (columns.div_ceil(BLOCK), layout::aligned(rows));
        demand(blocks < 1 << 16, "x", || format!("has {columns} columns: on a GPU they are less than 2²³"))?;
        let values = self.device.zeroed::<u8>(rows * columns)?;
        let scales = self.device.zeroed::<f32>(blocks * stride)?;
        let out = Fp8 { values, scales, groups: 1, shape: x.shape, recipe: Recipe::Rows };
        if rows * columns == 0 {
            return Ok(out);
        }
        let wrong = self.device.upload(&[u64::MAX])?;
        let kernel = self.kernel(&program(format))?;
        let sizes = [rows, columns, stride].map(|size| Arg::U32(size as u32));
        let pointers = [x.numbers.arg(), out.values.arg(), out.scales.arg(), wrong.arg()];
        let grid = Grid { x: rows.div_ceil(ROWS) as u32, y: blocks as u32 };
        kernel.launch(grid, &[&pointers[..], &sizes].concat())?;
        let found = wrong.download()?[0];
        demand(found == u64::MAX, "x", || {
            let (number, at) = (bf16::from_bits(found as u16).to_f32(), (found >> 16) as usize);
            format!("{number} in row {}, column {} can't be quantised", at / columns, at % columns)
        })?;
        Ok(out)
    }
}
