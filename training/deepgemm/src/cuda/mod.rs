//! The same products on Hopper GPUs (compute capability 9.0). Not run on a GPU yet: the kernels are compiled and
//! checked without one by `cargo xtask kernels`.
//!
//! Arguments and rules are those of [`Cpu`](crate::Cpu), with matrices that [`Cuda`] has put into the GPU's memory.
//! Rows must be multiples of 16 bytes: `k` of 16 for FP8 and of 8 for BF16, `n` of 8.
//!
//! Sums of 128 columns of FP8 numbers come from the tensor cores, which keep fewer bits of them than `f32` has and add
//! in an order of their own: results differ from the CPU's in the last bits, and by more where large products cancel.
//! Such sums are multiplied by both scales and added in `f32`, in the order of K, with one rounding (CPU: two). The
//! tensor cores' sums of BF16 products run over all of K. The quantiser is written to give the CPU's bits.

mod config;
mod launch;
mod logits;
mod matrix;
mod quantise;

pub use config::{Config, Kind, Numbers, Problem};
pub use matrix::{Bf16, Fp8, Groups, Indexed, Output, Rows};

use crate::{Recipe, demand};
use ember_cuda::{Cache, Compiler, CudaError, Device, DeviceInfo, Kernel, Program};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Which tile comes next, for all kernels.
const SCHEDULE: &str = include_str!("schedule.cuh");

/// Result with a [`CudaError`]; arguments are checked as [`Cpu`](crate::Cpu) does, with the same errors.
pub type Result<T> = std::result::Result<T, CudaError>;

impl From<crate::GemmError> for CudaError {
    fn from(error: crate::GemmError) -> Self {
        Self::Argument { argument: error.argument, rule: error.rule }
    }
}

/// Products on a Hopper GPU. Work is queued; [`Output::download`] and [`Cuda::wait`] wait for it.
pub struct Cuda {
    device: Device,
    compiler: Compiler,
    cache: Cache,
    kernels: RefCell<BTreeMap<String, Rc<Kernel>>>,
}

impl Cuda {
    /// The first GPU.
    ///
    /// # Errors
    /// If there is none, or no compiler, or no place for what it makes.
    pub fn new() -> Result<Self> {
        let (device, cache) = (Device::open(0)?, Cache::of_user()?);
        let compiler = Compiler::find_or_cached(&cache)?;
        Ok(Self { device, compiler, cache, kernels: RefCell::default() })
    }
    /// TFLOP/s of the tensor cores with FP8 or BF16 numbers and nothing else to do.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn measure_products(&self, fp8: bool) -> Result<f64> {
        self.device.measure_products(fp8, &self.compiler, &self.cache)
    }
    /// Which GPU it is.
    pub fn info(&self) -> &DeviceInfo {
        self.device.info()
    }
    /// The GPU, to time work on it.
    pub fn device(&self) -> &Device {
        &self.device
    }
    /// Until all work is done.
    ///
    /// # Errors
    /// If some failed.
    pub fn wait(&self) -> Result<()> {
        self.device.wait()
    }

    /// A program, compiled, loaded and kept.
    fn kernel(&self, program: &Program) -> Result<Rc<Kernel>> {
        if let Some(kernel) = self.kernels.borrow().get(&program.name) {
            return Ok(kernel.clone());
        }
        let cubin = self.compiler.cubin(program, &self.cache)?;
        let kernel = Rc::new(self.device.load(program, &cubin)?);
        self.kernels.borrow_mut().insert(program.name.clone(), kernel.clone());
        Ok(kernel)
    }

    /// `d = c + a bᵀ` for BF16 matrices `a[m, k]` and `b[n, k]`, summed in `f32`.
    ///
    /// # Errors
    /// If shapes don't fit, or the GPU fails.
    pub fn bf16_gemm_nt(&self, a: &Bf16, b: &Bf16, c: Option<&Output>, d: &mut Output) -> Result<()> {
        let ([m, k], [n, other]) = (a.shape, b.shape);
        check_plain([m, k], [n, other], c, d)?;
        demand(k.is_multiple_of(8), "a", || format!("has {k} columns: on a GPU they are a multiple of 8"))?;
        self.multiply_bf16(a, b, c, d)
    }

    /// `d = c + a bᵀ` for FP8 matrices `a[m, k]`, with a scale for each row, and `b[n, k]`.
    ///
    /// # Errors
    /// If shapes or scales don't fit, or the GPU fails.
    pub fn fp8_gemm_nt(
        &self,
        a: &Fp8,
        b: &Fp8,
        c: Option<&Output>,
        d: &mut Output,
        recipe: Recipe,
    ) -> Result<()> {
        one_group("a", a.groups)?;
        one_group("b", b.groups)?;
        check_plain(a.shape, b.shape, c, d)?;
        check_factors(a, b, recipe)?;
        self.multiply_fp8(Kind::Plain, a, b, None, c, d)
    }

    /// Rows of several groups behind each other: row `i` of `d[m, n]` is row `i` of `a[m, k]` times the transpose of
    /// `b[g][n, k]`, where `g` is its group. What `d` has in rows of padding stays.
    ///
    /// # Errors
    /// If shapes or scales don't fit, `k` is 0, or the GPU fails.
    pub fn fp8_gemm_nt_contiguous(
        &self,
        a: &Fp8,
        b: &Fp8,
        d: &mut Output,
        groups: &Groups,
        recipe: Recipe,
    ) -> Result<()> {
        one_group("a", a.groups)?;
        let [m, n] = [a.shape[0], b.shape[0]];
        demand(groups.rows() == m, "groups", || format!("has {} rows, `a` has {m}", groups.rows()))?;
        demand(groups.count() == b.groups, "b", || {
            format!("has {} groups, `groups` is of {}", b.groups, groups.count())
        })?;
        one_group("d", d.groups)?;
        demand(d.shape == [m, n], "d", || format!("has shape {:?}, not {:?}", d.shape, [m, n]))?;
        check_factors(a, b, recipe)?;
        self.multiply_fp8(Kind::Contiguous, a, b, Some(&groups.numbers), None, d)
    }

    /// Groups of up to `a[g][m, k]` rows each, of which the first `rows[g]` count: those of `d[g][m, n]` are
    /// `a[g] b[g]ᵀ`; what `d` has behind them stays.
    ///
    /// # Errors
    /// If shapes or scales don't fit, `k` is 0, or the GPU fails.
    pub fn fp8_gemm_nt_masked(
        &self,
        a: &Fp8,
        b: &Fp8,
        d: &mut Output,
        rows: &Rows,
        recipe: Recipe,
    ) -> Result<()> {
        for (argument, count) in [("b", b.groups), ("d", d.groups), ("rows", rows.count())] {
            demand(count == a.groups, argument, || format!("has {count} groups, `a` has {}", a.groups))?;
        }
        let [m, n] = [a.shape[0], b.shape[0]];
        demand(rows.most() <= m, "rows", || format!("a group has {m} rows, not {}", rows.most()))?;
        demand(d.shape == [m, n], "d", || format!("has shape {:?}, not {:?}", d.shape, [m, n]))?;
        check_factors(a, b, recipe)?;
        self.multiply_fp8(Kind::Masked, a, b, Some(&rows.numbers), None, d)
    }

    /// Weight gradients of several experts: `d[g][m, n]` is `c[g] + a[g] b[g]ᵀ`, in `f32`, where `a[g][m, k]` and
    /// `b[g][n, k]` have a scale for each row and 128 columns. `k` is a multiple of 128; with 0 `d` is `c`.
    ///
    /// # Errors
    /// If shapes or scales don't fit, a `k` is no such multiple, or the GPU fails.
    pub fn fp8_gemm_nt_k_grouped(&self, a: &[Fp8], b: &[Fp8], c: &Output, d: &mut Output) -> Result<()> {
        for (argument, count) in [("b", b.len()), ("c", c.groups), ("d", d.groups)] {
            demand(count == a.len(), argument, || format!("has {count} groups, `a` has {}", a.len()))?;
        }
        for (argument, f32s) in [("c", c.is_f32()), ("d", d.is_f32())] {
            demand(f32s, argument, || "is BF16: gradients are f32".to_owned())?;
        }
        for (g, (a, b)) in a.iter().zip(b).enumerate() {
            one_group("a", a.groups)?;
            one_group("b", b.groups)?;
            let k = a.shape[1];
            demand(k.is_multiple_of(crate::BLOCK), "a", || {
                format!("group {g} has {k} columns, no multiple of {}", crate::BLOCK)
            })?;
            demand(b.shape[1] == k, "b", || {
                format!("group {g} has {} columns, and `a` has {k}", b.shape[1])
            })?;
            for (argument, shape) in [("c", c.shape), ("d", d.shape)] {
                let expected = [a.shape[0], b.shape[0]];
                demand(shape == expected, argument, || {
                    format!("group {g} has shape {shape:?}, not {expected:?}")
                })?;
            }
            check_factors(a, b, Recipe::Rows)?;
        }
        self.multiply_k_grouped(a, b, c, d)
    }
}

fn one_group(argument: &'static str, groups: usize) -> Result<()> {
    Ok(demand(groups == 1, argument, || format!("has {groups} groups, not one"))?)
}

fn check_plain([m, k]: [usize; 2], [n, other]: [usize; 2], c: Option<&Output>, d: &Output) -> Result<()> {
    demand(k == other, "b", || format!("has {other} columns, and `a` has {k}: they must be equal"))?;
    one_group("d", d.groups)?;
    demand(d.shape == [m, n], "d", || format!("has shape {:?}, not {:?}", d.shape, [m, n]))?;
    if let Some(c) = c {
        one_group("c", c.groups)?;
        demand(c.shape == [m, n], "c", || format!("has shape {:?}, not {:?}", c.shape, [m, n]))?;
        demand(c.is_f32() == d.is_f32(), "c", || "has numbers of another type than `d`".to_owned())?;
    }
    demand(n.is_multiple_of(8), "b", || format!("has {n} rows: on a GPU they are a multiple of 8"))?;
    Ok(())
}

/// Columns, and what the scales are of.
fn check_factors(a: &Fp8, b: &Fp8, recipe: Recipe) -> Result<()> {
    let ([_, k], [n, other]) = (a.shape, b.shape);
    demand(k == other, "b", || format!("has {other} columns, and `a` has {k}: they must be equal"))?;
    demand(n.is_multiple_of(8), "b", || format!("has {n} rows: on a GPU they are a multiple of 8"))?;
    demand(k.is_multiple_of(16), "a", || format!("has {k} columns: on a GPU they are a multiple of 16"))?;
    demand(a.recipe == Recipe::Rows, "scales of a", || "are of blocks, not of rows".to_owned())?;
    demand(b.recipe == recipe, "scales of b", || format!("are of {:?}, not of {recipe:?}", b.recipe))?;
    Ok(())
}

/// Programs of every kind and shape of tile, to be compiled and checked without a GPU.
pub fn programs() -> Vec<Program> {
    let of = |kind, numbers, out_f32, with_c, k| Problem {
        kind,
        numbers,
        out_f32,
        with_c,
        m: 4096,
        n: 4096,
        k,
        groups: 4,
    };
    let blocks = of(Kind::Plain, Numbers::Fp8Blocks, false, false, 7168);
    let rows = of(Kind::Plain, Numbers::Fp8Rows, true, true, 7168);
    let bf16 = of(Kind::Plain, Numbers::Bf16, false, false, 7168);
    let contiguous = of(Kind::Contiguous, Numbers::Fp8Blocks, false, false, 7168);
    let masked = of(Kind::Masked, Numbers::Fp8Blocks, false, false, 7168);
    let gradients = of(Kind::KGrouped, Numbers::Fp8Rows, true, true, 0);
    let few = |of| Problem { m: 64, ..of };
    let tiles = [
        (blocks, (128, 128)),
        (blocks, (128, 160)),
        (Problem { n: 2112, ..blocks }, (128, 96)),
        (few(blocks), (64, 160)),
        (few(blocks), (64, 32)),
        (few(blocks), (64, 16)),
        (Problem { out_f32: true, with_c: true, ..blocks }, (128, 160)),
        (Problem { with_c: true, ..blocks }, (128, 128)),
        (rows, (128, 128)),
        (few(rows), (64, 128)),
        (Problem { out_f32: false, with_c: false, ..rows }, (128, 96)),
        (bf16, (128, 256)),
        (Problem { out_f32: true, with_c: true, ..bf16 }, (128, 128)),
        (Problem { out_f32: true, ..bf16 }, (128, 192)),
        (few(bf16), (64, 64)),
        (contiguous, (128, 128)),
        (contiguous, (128, 160)),
        (masked, (128, 128)),
        (few(masked), (64, 32)),
        (gradients, (128, 128)),
        (few(gradients), (64, 96)),
    ];
    let mut programs: Vec<Program> =
        tiles.iter().map(|(of, tiles)| Config::with_tiles(of, 132, *tiles).program()).collect();
    for (heads, width) in [(32, 128), (64, 128), (64, 64)] {
        programs.push(logits::program(heads, width));
    }
    programs.extend([crate::ScaleFormat::F32, crate::ScaleFormat::Ue8m0].map(quantise::program));
    programs
}
