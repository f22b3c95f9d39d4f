//! Decoding on Hopper GPUs (compute capability 9.0). Not run on a GPU yet: the kernels are compiled and checked without
//! one (`cargo xtask kernels`), and `cargo xtask gpu` compares them with the CPU where there is one.
//!
//! Arguments, rules and errors are those of [`dense_decode`](crate::dense_decode()) and
//! [`sparse_decode`](crate::sparse_decode()). A part of the schedule and 64 rows (queries and heads) are a block of
//! threads; pieces of a request are put together by a second kernel. Logits and outputs are products of BF16 numbers
//! summed in `f32` by the tensor cores; weights are rounded to BF16 before they are multiplied (CPU: not), so results
//! differ from the CPU's within what the original allows. A key within a request's length that is infinite or no number
//! spoils all queries of the request, also those that don't see it (CPU: only those that do).

mod attention;
#[cfg(test)]
mod host;
#[cfg(test)]
mod model;

pub use attention::Attention;

use crate::{Attended, CACHE_BYTES, Dense, MlaError, PAGE, SparseDecode, WIDTH, demand, scale_of};
use attention::Rows;
use ember_cuda::{
    Arg, CudaError, Device, DeviceInfo, HOPPER, Matrix, Program, Swizzle, TensorMap, wgmma, wgmma_rows,
};
use half::bf16;

/// Result with a [`CudaError`]; arguments are checked as on the CPU, with the same errors.
pub type Result<T> = std::result::Result<T, CudaError>;

impl From<MlaError> for CudaError {
    fn from(error: MlaError) -> Self {
        Self::Argument { argument: error.argument, rule: error.rule }
    }
}

/// Rows of a tile: queries and heads that a block of threads multiplies with a page.
const TILE: usize = 64;
/// Shared memory of a block: queries and two pages, weights of a page, greatest logits and sums of both halves, which
/// tokens are there, barriers; and room to begin at a multiple of 1024.
const SHARED: u32 = 1024 + 3 * 64 * 576 * 2 + 64 * 64 * 2 + 2 * (2 * 64 * 4) + 16 + 32;

/// Attention on a Hopper GPU.
pub struct Cuda {
    gpu: ember_deepgemm::cuda::Cuda,
}

impl Cuda {
    /// The first GPU.
    ///
    /// # Errors
    /// If there is none, or no compiler, or no place for what it makes.
    pub fn new() -> Result<Self> {
        Ok(Self { gpu: ember_deepgemm::cuda::Cuda::new()? })
    }
    /// Which GPU it is.
    pub fn info(&self) -> &DeviceInfo {
        self.gpu.info()
    }
    /// The GPU, to time work on it.
    pub fn device(&self) -> &Device {
        self.gpu.device()
    }

    /// Parts that keep all processors busy, for `queries` queries of `heads` heads each.
    pub fn dense_parts(&self, queries: usize, heads: usize, kv_heads: usize) -> usize {
        dense_parts(self.info().processors as usize, queries, heads, kv_heads)
    }

    /// [`dense_decode`](crate::dense_decode()): copies everything to the GPU, computes, and copies the result back.
    ///
    /// # Errors
    /// If shapes don't fit, a request has more tokens than pages, or pages that aren't there, or the GPU fails.
    pub fn dense_decode(&self, of: &Dense<'_>, parts: usize) -> Result<Attended> {
        let attention = self.dense(of, parts)?;
        attention.run()?;
        attention.download()
    }

    /// [`sparse_decode`](crate::sparse_decode()): copies everything to the GPU, computes, and copies the result back.
    ///
    /// # Errors
    /// If shapes don't fit, an index is no cached token, or the GPU fails.
    pub fn sparse_decode(&self, of: &SparseDecode<'_>) -> Result<Attended> {
        let attention = self.sparse(of)?;
        attention.run()?;
        attention.download()
    }

    /// Copies everything to the GPU, to be computed there as often as one likes.
    ///
    /// # Errors
    /// As [`Cuda::dense_decode`].
    pub fn dense(&self, of: &Dense<'_>, parts: usize) -> Result<Attention> {
        let (lengths, columns) = of.check()?;
        let scale = scale_of(of.scale)?;
        let &Dense { batch, queries, heads, kv_heads, .. } = of;
        let page = PAGE * kv_heads * WIDTH;
        let shape = [of.cache.len() / page * PAGE, kv_heads * WIDTH];
        check_count("cache", shape[0])?;
        check_count("cache", shape[1])?;
        check_count("block_table", columns)?;
        let tiles = kv_heads * (queries * heads / kv_heads).div_ceil(TILE);
        let rows = Rows { batch, queries, heads };
        let mut made = Attention::new(&self.gpu, rows, &lengths, parts, None)?;
        if rows.count() == 0 {
            return Ok(made);
        }
        let cache = self.device().upload(&bits(of.cache))?;
        let map = match shape[0] {
            // No request has a token, so that it isn't used.
            0 => TensorMap::none(),
            _ => TensorMap::new(&cache, &pages(shape))?,
        };
        let q = self.device().upload(&bits(of.q))?;
        let (table, lengths) = (self.device().upload(of.block_table)?, self.device().upload(of.lengths)?);
        let mut args = vec![Arg::Map(map), q.arg(), table.arg(), lengths.arg()];
        args.extend(made.plan_args());
        args.extend(made.result_args());
        args.extend([queries, heads, kv_heads, columns, usize::from(of.causal)].map(|x| Arg::U32(x as u32)));
        args.push(Arg::U32(scale.to_bits()));
        made.keep([cache, q], [table, lengths]);
        made.first(&self.gpu, &dense_program(), tiles, args)?;
        Ok(made)
    }

    /// Copies everything to the GPU, to be computed there as often as one likes.
    ///
    /// # Errors
    /// As [`Cuda::sparse_decode`].
    pub fn sparse(&self, of: &SparseDecode<'_>) -> Result<Attention> {
        let (counts, columns) = of.check()?;
        let scale = scale_of(of.scale)?;
        let &SparseDecode { batch, queries, heads, .. } = of;
        check_count("indices", columns)?;
        let parts = sparse_parts(self.info().processors as usize, queries, heads);
        let rows = Rows { batch, queries, heads };
        let mut made = Attention::new(&self.gpu, rows, &counts, parts, of.sink)?;
        if rows.count() == 0 {
            return Ok(made);
        }
        let counts: Vec<i32> = counts.iter().map(|&count| count as i32).collect();
        let cache = self.device().upload(&cached(of.cache))?;
        let q = self.device().upload(&bits(of.q))?;
        let (indices, counts) = (self.device().upload(of.indices)?, self.device().upload(&counts)?);
        let mut args = vec![cache.arg(), q.arg(), indices.arg(), counts.arg()];
        args.extend(made.plan_args());
        args.push(made.sink_arg());
        args.extend(made.result_args());
        args.extend([queries, heads, columns].map(|x| Arg::U32(x as u32)));
        args.push(Arg::U32(scale.to_bits()));
        made.keep([cache, q], [indices, counts]);
        made.first(&self.gpu, &sparse_program(), queries * heads.div_ceil(TILE), args)?;
        Ok(made)
    }
}

/// One part for each processor, or as many as leave one for each tile of a part.
fn dense_parts(processors: usize, queries: usize, heads: usize, kv_heads: usize) -> usize {
    let kv_heads = kv_heads.max(1);
    let tiles = (queries * heads / kv_heads).div_ceil(TILE).max(1);
    (processors / kv_heads / tiles).max(1)
}

fn sparse_parts(processors: usize, queries: usize, heads: usize) -> usize {
    (processors / queries.max(1) / heads.div_ceil(TILE).max(1)).max(1)
}

/// The cache as a matrix of tokens, moved in boxes of a page's tokens by 64 columns.
fn pages([tokens, columns]: [usize; 2]) -> Matrix {
    let box_shape = [64, PAGE as u32];
    Matrix { offset: 0, shape: [columns, tokens], stride: columns, box_shape, swizzle: Swizzle::Bytes128 }
}

fn bits(numbers: &[bf16]) -> Vec<u16> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

/// Bytes of the FP8 cache in pairs, as they lie in memory.
fn cached(bytes: &[u8]) -> Vec<u16> {
    const { assert!(CACHE_BYTES.is_multiple_of(2)) };
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// Kernels count in 31 bits.
fn check_count(argument: &'static str, count: usize) -> Result<()> {
    let most = i32::MAX as usize;
    Ok(demand(count <= most, argument, || format!("has {count} rows or columns: on a GPU at most {most}"))?)
}

fn attend_program(name: &str, entry: &'static str, source: &str, load: &'static [&'static str]) -> Program {
    let instructions = include_str!("instructions.cuh");
    let shared = format!("#define SHARED_BYTES {SHARED}u\n");
    let products = wgmma("wgmma_logits", false, 32) + &wgmma_rows("wgmma_values", 256);
    Program {
        name: format!("flashmla/{name}"),
        entry,
        source: [HOPPER, instructions, &shared, &products, include_str!("attend.cuh"), source].concat(),
        threads: 384,
        cluster: 1,
        shared_bytes: SHARED,
        instructions: load,
        registers_max: 168,
    }
}

fn dense_program() -> Program {
    attend_program("dense-decode", "dense", include_str!("dense.cu"), &["HGMMA", "UTMALDG", "USETMAXREG"])
}

fn sparse_program() -> Program {
    attend_program("sparse-fp8-decode", "sparse", include_str!("sparse.cu"), &["HGMMA", "F2FP", "USETMAXREG"])
}

fn combine_program() -> Program {
    Program {
        name: "flashmla/combine".to_owned(),
        entry: "combine",
        source: [HOPPER, include_str!("combine.cu")].concat(),
        threads: 128,
        cluster: 1,
        shared_bytes: 0,
        instructions: &["F2FP"],
        registers_max: 64,
    }
}

/// All of them, to be compiled and checked without a GPU.
pub fn programs() -> Vec<Program> {
    vec![dense_program(), sparse_program(), combine_program()]
}
