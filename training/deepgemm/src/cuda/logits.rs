//! Logits of an indexer.

use super::matrix::{Indexed, Output, Written};
use super::{Cuda, Result};
use crate::demand;
use ember_cuda::{Grid, HOPPER, Matrix, Program, Swizzle, TensorMap, wgmma};

/// Heads of the queries that a block multiplies at once.
const COLUMNS: u32 = 128;
/// Keys that are loaded at once, how many times a block does so, and how far ahead.
const KEYS: u32 = 128;
const CHUNK: u32 = 16;
const STAGES: u32 = 4;

/// The kernel for queries of so many heads, 32 or 64, of `width` numbers: 32, 64 or 128.
pub(super) fn program(heads: u32, width: u32) -> Program {
    let shared_bytes = 1024 + 128 * (COLUMNS + STAGES * KEYS) + 16 * STAGES + 8;
    let set = format!(
        "#define HEADS {heads}u\n#define WIDTH {width}u\n#define SPAN {}u\n\
         #define CHUNK {CHUNK}u\n#define STAGES {STAGES}u\n\
         #define SHARED_BYTES {shared_bytes}u\n",
        COLUMNS / heads
    );
    Program {
        name: format!("deepgemm/logits-{heads}x{width}"),
        entry: "logits",
        source: [HOPPER, &set, &wgmma("wgmma", true, COLUMNS), include_str!("logits.cu")].concat(),
        threads: 384,
        cluster: 1,
        shared_bytes,
        instructions: &["QGMMA", "UTMALDG"],
        registers_max: 168,
    }
}

impl Cuda {
    /// `d[query, key]` is the sum over the heads of `max(q · k * scale of k, 0) * weight`; -infinity for keys that the
    /// query doesn't see. `d` is `f32`. Queries have 32 or 64 heads of 32, 64 or 128 numbers.
    ///
    /// # Errors
    /// If shapes don't fit, or the GPU fails.
    pub fn fp8_mqa_logits(&self, of: &Indexed, d: &mut Output) -> Result<()> {
        let [queries, heads, keys, width] = of.shape;
        demand([32, 64].contains(&heads), "weights", || {
            format!("has {heads} heads: on a GPU they are 32 or 64")
        })?;
        demand([32, 64, 128].contains(&width), "keys", || {
            format!("has {width} columns: on a GPU they are 32, 64 or 128")
        })?;
        let expected = [queries, keys];
        demand(d.groups == 1 && d.shape == expected, "d", || {
            format!("has {} groups of shape {:?}, not one of {expected:?}", d.groups, d.shape)
        })?;
        let Written::F32(out) = &d.numbers else {
            demand(false, "d", || "is BF16: logits are f32".to_owned())?;
            return Ok(());
        };
        if queries * keys == 0 {
            return Ok(());
        }
        let matrix = |rows: usize, of_box: u32| Matrix {
            offset: 0,
            shape: [width, rows],
            stride: width,
            box_shape: [128, of_box],
            swizzle: Swizzle::Bytes128,
        };
        let map_q = TensorMap::new(&of.queries, &matrix(queries * heads, COLUMNS))?;
        let map_k = TensorMap::new(&of.keys, &matrix(keys, KEYS))?;
        let kernel = self.kernel(&program(heads as u32, width as u32))?;
        let grid = Grid {
            x: (queries as u32).div_ceil(COLUMNS / heads as u32),
            y: (keys as u32).div_ceil(KEYS * CHUNK),
        };
        use ember_cuda::Arg::{Map, U32};
        let pointers = [of.key_scales.arg(), of.weights.arg(), of.seen.arg(), out.arg()];
        let [scales, weights, seen, to] = pointers;
        let sizes = [U32(queries as u32), U32(keys as u32)];
        kernel.launch(grid, &[Map(map_q), Map(map_k), scales, weights, seen, to, sizes[0], sizes[1]])
    }
}
