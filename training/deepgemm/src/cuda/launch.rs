//! Launches of the kernel of products.

use super::config::{Config, Kind, Numbers, Problem};
use super::matrix::{Bf16, Fp8, Output, Written};
use super::{Cuda, Result};
use crate::{BLOCK, Recipe, layout};
use ember_cuda::{Arg, Buffer, Grid, Matrix, Swizzle, TensorMap};

/// A factor of `rows` by `columns` elements of `size` bytes, in boxes of so many rows of 128 bytes.
fn factor([rows, columns]: [usize; 2], size: usize, of_box: u32) -> Matrix {
    let box_shape = [128 / size as u32, of_box];
    let shape = [columns, rows];
    Matrix { offset: 0, shape, stride: columns, box_shape, swizzle: Swizzle::Bytes128 }
}

/// Scales of so many rows, one column of blocks after the other.
fn scales_of_rows(of: &Fp8, rows: u32) -> Result<TensorMap> {
    let blocks = of.shape[1].div_ceil(BLOCK) * of.groups;
    let stride = layout::aligned(of.shape[0]);
    let shape = [of.shape[0], blocks];
    TensorMap::new(
        &of.scales,
        &Matrix { offset: 0, shape, stride, box_shape: [rows, 1], swizzle: Swizzle::None },
    )
}

fn written(d: &Output, config: &Config) -> Result<(TensorMap, Arg)> {
    let shape = [d.shape[1], d.groups * d.shape[0]];
    let (columns, bytes) = config.slab();
    let swizzle = match bytes {
        32 => Swizzle::Bytes32,
        64 => Swizzle::Bytes64,
        _ => Swizzle::Bytes128,
    };
    let of = Matrix { offset: 0, shape, stride: shape[0], box_shape: [columns, 64], swizzle };
    Ok(match &d.numbers {
        Written::F32(buffer) => (TensorMap::new(buffer, &of)?, buffer.arg()),
        Written::Bf16(buffer) => (TensorMap::new(buffer, &of)?, buffer.arg()),
    })
}

fn pointer(c: Option<&Output>) -> Arg {
    match c.map(|c| &c.numbers) {
        Some(Written::F32(buffer)) => buffer.arg(),
        Some(Written::Bf16(buffer)) => buffer.arg(),
        None => Arg::Pointer(0),
    }
}

/// Of numbers that may not be there.
fn numbers(numbers: Option<&Buffer<i32>>) -> Arg {
    numbers.map_or(Arg::Pointer(0), Buffer::arg)
}

impl Cuda {
    pub(super) fn multiply_bf16(&self, a: &Bf16, b: &Bf16, c: Option<&Output>, d: &mut Output) -> Result<()> {
        let ([m, k], n) = (a.shape, b.shape[0]);
        if m * n == 0 {
            return Ok(());
        }
        if k == 0 {
            return d.fill(c);
        }
        let problem = self.problem(Kind::Plain, Numbers::Bf16, [m, n, k], 1, c, d);
        let config = Config::choose(&problem, self.info().processors);
        let map_a = TensorMap::new(&a.numbers, &factor(a.shape, 2, config.a_rows()))?;
        let map_b = TensorMap::new(&b.numbers, &factor(b.shape, 2, config.block_n))?;
        let none = TensorMap::none();
        let (map_d, to) = written(d, &config)?;
        let maps = [map_a, map_b, none, none, map_d];
        self.launch(&config, maps, [Arg::Pointer(0), Arg::Pointer(0), Arg::Pointer(0), pointer(c), to], m, 1)
    }

    pub(super) fn multiply_fp8(
        &self,
        kind: Kind,
        a: &Fp8,
        b: &Fp8,
        of: Option<&Buffer<i32>>,
        c: Option<&Output>,
        d: &mut Output,
    ) -> Result<()> {
        let ([m, k], n, groups) = (a.shape, b.shape[0], a.groups);
        if groups * m * n == 0 {
            return Ok(());
        }
        if k == 0 && kind == Kind::Plain {
            return d.fill(c);
        }
        crate::demand(k > 0, "a", || "has no columns".to_owned())?;
        let numbers_of_b = match b.recipe {
            Recipe::Blocks => Numbers::Fp8Blocks,
            Recipe::Rows => Numbers::Fp8Rows,
        };
        let problem = self.problem(kind, numbers_of_b, [m, n, k], groups, c, d);
        let config = Config::choose(&problem, self.info().processors);
        let all = |x: &Fp8| [x.groups * x.shape[0], x.shape[1]];
        let map_a = TensorMap::new(&a.values, &factor(all(a), 1, config.a_rows()))?;
        let map_b = TensorMap::new(&b.values, &factor(all(b), 1, config.block_n))?;
        let scales_a = scales_of_rows(a, config.block_m)?;
        let (scales_b, plain_b) = match b.recipe {
            Recipe::Blocks => (TensorMap::none(), b.scales.arg()),
            Recipe::Rows => (scales_of_rows(b, config.block_n)?, Arg::Pointer(0)),
        };
        let (map_d, to) = written(d, &config)?;
        let maps = [map_a, map_b, scales_a, scales_b, map_d];
        let pointers = [Arg::Pointer(0), plain_b, numbers(of), pointer(c), to];
        self.launch(&config, maps, pointers, m, groups)
    }

    pub(super) fn multiply_k_grouped(&self, a: &[Fp8], b: &[Fp8], c: &Output, d: &mut Output) -> Result<()> {
        let ([m, n], groups) = (d.shape, a.len());
        if groups * m * n == 0 {
            return Ok(());
        }
        let problem = self.problem(Kind::KGrouped, Numbers::Fp8Rows, [m, n, 0], groups, Some(c), d);
        let config = Config::choose(&problem, self.info().processors);
        let (mut words, mut columns) = (Vec::new(), Vec::new());
        for (a, b) in a.iter().zip(b) {
            let k = a.shape[1];
            columns.push(k as i32);
            let maps = if k == 0 {
                // Its columns aren't gone through.
                [TensorMap::none(); 4]
            } else {
                [
                    TensorMap::new(&a.values, &factor(a.shape, 1, config.a_rows()))?,
                    TensorMap::new(&b.values, &factor(b.shape, 1, config.block_n))?,
                    scales_of_rows(a, config.block_m)?,
                    scales_of_rows(b, config.block_n)?,
                ]
            };
            words.extend(maps.iter().flat_map(TensorMap::words));
        }
        let (words, columns) = (self.device.upload(&words)?, self.device.upload(&columns)?);
        let none = TensorMap::none();
        let (map_d, to) = written(d, &config)?;
        let pointers = [words.arg(), Arg::Pointer(0), columns.arg(), pointer(Some(c)), to];
        self.launch(&config, [none, none, none, none, map_d], pointers, m, groups)?;
        // Maps and columns live until the kernel has read them.
        self.wait()
    }

    fn problem(
        &self,
        kind: Kind,
        numbers: Numbers,
        [m, n, k]: [usize; 3],
        groups: usize,
        c: Option<&Output>,
        d: &Output,
    ) -> Problem {
        Problem {
            kind,
            numbers,
            out_f32: d.is_f32(),
            with_c: c.is_some(),
            m: m as u32,
            n: n as u32,
            k: k as u32,
            groups: groups as u32,
        }
    }

    /// Maps of a, b, their scales and d; pointers to the groups' maps, scales of b, groups or rows, c and d.
    fn launch(
        &self,
        config: &Config,
        maps: [TensorMap; 5],
        pointers: [Arg; 5],
        m: usize,
        groups: usize,
    ) -> Result<()> {
        let kernel = self.kernel(&config.program())?;
        let blocks = config.blocks(m as u32, groups as u32, self.info().processors);
        let mut args: Vec<Arg> = maps.into_iter().map(Arg::Map).collect();
        args.extend(pointers);
        args.extend([Arg::U32(m as u32), Arg::U32(groups as u32)]);
        kernel.launch(Grid { x: blocks, y: 1 }, &args)
    }
}
