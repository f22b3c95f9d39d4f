//! deepgemm.

use crate::{Input, Output, bf16s, out, out_bf16, slice, wrong};
use ember_deepgemm::{
    Cpu, E4m3, Element, GemmError, Indexer, Order, Quantised, Recipe, ScaleFormat, Scaled, Scales, View,
    ViewMut, per_block, per_channel, per_token,
};
use half::bf16;
use pyo3::prelude::*;

#[pyclass(name = "Cpu", frozen)]
struct Processors(Cpu);

/// FP8 numbers with their scales.
type Fp8<'py> = (Input<'py, u8>, Input<'py, f32>);

fn e4m3(bits: &[u8]) -> Vec<E4m3> {
    bits.iter().map(|bits| E4m3(*bits)).collect()
}

/// A matrix, or several of one shape behind each other, with scales for each `rows`.
struct Operand {
    values: Vec<E4m3>,
    scales: Vec<f32>,
    shape: [usize; 2],
    scale_shape: [usize; 2],
}

impl Operand {
    fn new(of: &Fp8<'_>, shape: [usize; 2], blocks: bool) -> PyResult<Self> {
        let rows = if blocks { shape[0].div_ceil(ember_deepgemm::BLOCK) } else { shape[0] };
        let scale_shape = [rows, shape[1].div_ceil(ember_deepgemm::BLOCK)];
        Ok(Self { values: e4m3(slice(&of.0)?), scales: slice(&of.1)?.to_vec(), shape, scale_shape })
    }
    fn group(&self, group: usize) -> Result<Scaled<'_>, GemmError> {
        let (each, scales) = (self.shape[0] * self.shape[1], self.scale_shape[0] * self.scale_shape[1]);
        let values = self.values.get(group * each..).unwrap_or_default();
        let of = self.scales.get(group * scales..).unwrap_or_default();
        Ok(Scaled {
            values: View::new(values, self.shape)?,
            scales: Scales::row_major(of, self.scale_shape)?,
        })
    }
    fn groups(&self, count: usize) -> Result<Vec<Scaled<'_>>, GemmError> {
        (0..count).map(|group| self.group(group)).collect()
    }
}

fn recipe(blocks: bool) -> Recipe {
    if blocks { Recipe::Blocks } else { Recipe::Rows }
}

fn views<'a, D>(d: &'a mut [D], shape: [usize; 2], count: usize) -> Result<Vec<ViewMut<'a, D>>, GemmError> {
    let each = shape[0] * shape[1];
    if each == 0 {
        return (0..count).map(|_| ViewMut::new(&mut [][..], shape)).collect();
    }
    d.chunks_mut(each).take(count).map(|part| ViewMut::new(part, shape)).collect()
}

/// What a product is given: the results have type `D`.
fn plain<D: Element>(
    cpu: Cpu,
    a: &Operand,
    b: &Operand,
    c: Option<&[D]>,
    blocks: bool,
    zero: D,
) -> Result<Vec<D>, GemmError> {
    let shape = [a.shape[0], b.shape[0]];
    let mut d = vec![zero; shape[0] * shape[1]];
    let c = c.map(|c| View::new(c, shape)).transpose()?;
    cpu.fp8_gemm_nt(a.group(0)?, b.group(0)?, c, ViewMut::new(&mut d, shape)?, recipe(blocks))?;
    Ok(d)
}

#[pymethods]
impl Processors {
    /// `order`: "in_turn", "even_odd", or nothing for that of the fastest code.
    #[new]
    fn new(threads: Option<usize>, order: Option<&str>, portable: bool) -> PyResult<Self> {
        let mut cpu = Cpu::new();
        cpu = match order {
            None => cpu,
            Some("in_turn") => cpu.with_order(Order::InTurn),
            Some("even_odd") => cpu.with_order(Order::EvenOdd),
            Some(other) => return Err(wrong(format!("order: {other:?} is neither in_turn nor even_odd"))),
        };
        cpu = threads.map_or(cpu, |threads| cpu.with_threads(threads));
        Ok(Self(if portable { cpu.portable() } else { cpu }))
    }
    #[getter]
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn fp8_f32<'py>(
        &self,
        py: Python<'py>,
        a: Fp8<'py>,
        b: Fp8<'py>,
        c: Option<Input<'py, f32>>,
        shape: [usize; 3],
        blocks: bool,
    ) -> PyResult<Output<'py, f32>> {
        let [m, n, k] = shape;
        let (a, b) = (Operand::new(&a, [m, k], false)?, Operand::new(&b, [n, k], blocks)?);
        let c = crate::optional(&c)?;
        Ok(out(py, py.detach(|| plain(self.0, &a, &b, c, blocks, 0.0)).map_err(wrong)?))
    }
    fn fp8_bf16<'py>(
        &self,
        py: Python<'py>,
        a: Fp8<'py>,
        b: Fp8<'py>,
        c: Option<Input<'py, u16>>,
        shape: [usize; 3],
        blocks: bool,
    ) -> PyResult<Output<'py, u16>> {
        let [m, n, k] = shape;
        let (a, b) = (Operand::new(&a, [m, k], false)?, Operand::new(&b, [n, k], blocks)?);
        let c = c.as_ref().map(bf16s).transpose()?;
        Ok(out_bf16(py, py.detach(|| plain(self.0, &a, &b, c, blocks, bf16::ZERO)).map_err(wrong)?))
    }
    fn bf16_f32<'py>(
        &self,
        py: Python<'py>,
        a: Input<'py, u16>,
        b: Input<'py, u16>,
        c: Option<Input<'py, f32>>,
        shape: [usize; 3],
    ) -> PyResult<Output<'py, f32>> {
        let [m, n, k] = shape;
        let (a, b, c) = (bf16s(&a)?, bf16s(&b)?, crate::optional(&c)?);
        let multiply = || {
            let mut d = vec![0.0f32; m * n];
            let c = c.map(|c| View::new(c, [m, n])).transpose()?;
            self.0.bf16_gemm_nt(
                View::new(a, [m, k])?,
                View::new(b, [n, k])?,
                c,
                ViewMut::new(&mut d, [m, n])?,
            )?;
            Ok::<_, GemmError>(d)
        };
        Ok(out(py, py.detach(multiply).map_err(wrong)?))
    }

    /// Rows of several groups; those of padding are zeros.
    fn contiguous<'py>(
        &self,
        py: Python<'py>,
        a: Fp8<'py>,
        b: Fp8<'py>,
        groups: Input<'py, i32>,
        shape: [usize; 4],
        blocks: bool,
    ) -> PyResult<Output<'py, u16>> {
        let [m, n, k, count] = shape;
        let (a, b) = (Operand::new(&a, [m, k], false)?, Operand::new(&b, [n, k], blocks)?);
        let groups = slice(&groups)?;
        let multiply = || {
            let mut d = vec![bf16::ZERO; m * n];
            let of_b = b.groups(count)?;
            let to = ViewMut::new(&mut d, [m, n])?;
            self.0.fp8_gemm_nt_contiguous(a.group(0)?, &of_b, to, groups, recipe(blocks))?;
            Ok::<_, GemmError>(d)
        };
        Ok(out_bf16(py, py.detach(multiply).map_err(wrong)?))
    }
    fn masked<'py>(
        &self,
        py: Python<'py>,
        a: Fp8<'py>,
        b: Fp8<'py>,
        rows: Input<'py, i32>,
        shape: [usize; 4],
        blocks: bool,
    ) -> PyResult<Output<'py, u16>> {
        let [m, n, k, count] = shape;
        let (a, b) = (Operand::new(&a, [m, k], false)?, Operand::new(&b, [n, k], blocks)?);
        let rows = slice(&rows)?;
        let multiply = || {
            let mut d = vec![bf16::ZERO; count * m * n];
            let to = views(&mut d, [m, n], count)?;
            self.0.fp8_gemm_nt_masked(&a.groups(count)?, &b.groups(count)?, to, rows, recipe(blocks))?;
            Ok::<_, GemmError>(d)
        };
        Ok(out_bf16(py, py.detach(multiply).map_err(wrong)?))
    }
    fn k_grouped<'py>(
        &self,
        py: Python<'py>,
        a: Vec<Fp8<'py>>,
        b: Vec<Fp8<'py>>,
        c: Input<'py, f32>,
        ks: Vec<usize>,
        shape: [usize; 2],
    ) -> PyResult<Output<'py, f32>> {
        let [m, n] = shape;
        let operands = |of: &[Fp8<'py>], rows| {
            of.iter()
                .zip(&ks)
                .map(|(of, k)| Operand::new(of, [rows, *k], false))
                .collect::<PyResult<Vec<_>>>()
        };
        let (a, b, c) = (operands(&a, m)?, operands(&b, n)?, slice(&c)?);
        let multiply = || {
            let mut d = vec![0.0f32; ks.len() * m * n];
            let of_a = a.iter().map(|of| of.group(0)).collect::<Result<Vec<_>, _>>()?;
            let of_b = b.iter().map(|of| of.group(0)).collect::<Result<Vec<_>, _>>()?;
            let part = |g: usize| View::new(c.get(g * m * n..).unwrap_or_default(), [m, n]);
            let of_c = (0..ks.len()).map(part).collect::<Result<Vec<_>, _>>()?;
            self.0.fp8_gemm_nt_k_grouped(&of_a, &of_b, &of_c, views(&mut d, [m, n], ks.len())?)?;
            Ok::<_, GemmError>(d)
        };
        Ok(out(py, py.detach(multiply).map_err(wrong)?))
    }
    fn logits<'py>(
        &self,
        py: Python<'py>,
        q: Input<'py, u8>,
        keys: Fp8<'py>,
        weights: Input<'py, f32>,
        seen: Vec<(u32, u32)>,
        shape: [usize; 4],
    ) -> PyResult<Output<'py, f32>> {
        let [queries, heads, width, count] = shape;
        let (q, values) = (e4m3(slice(&q)?), e4m3(slice(&keys.0)?));
        let (key_scales, weights) = (slice(&keys.1)?, slice(&weights)?);
        let multiply = || {
            let mut d = vec![0.0f32; queries * count];
            let of = Indexer {
                queries: View::new(&q, [queries * heads, width])?,
                keys: View::new(&values, [count, width])?,
                key_scales,
                weights: View::new(weights, [queries, heads])?,
                seen: &seen,
            };
            self.0.fp8_mqa_logits(&of, ViewMut::new(&mut d, [queries, count])?)?;
            Ok::<_, GemmError>(d)
        };
        Ok(out(py, py.detach(multiply).map_err(wrong)?))
    }
}

/// Numbers in either precision.
#[derive(FromPyObject)]
enum Numbers<'py> {
    F32(Input<'py, f32>),
    Bf16(Input<'py, u16>),
}

fn quantised<T: Copy + Into<f32> + Sync>(
    x: &[T],
    shape: [usize; 2],
    by: &str,
    power_of_two: bool,
) -> Result<Quantised, GemmError> {
    let (x, format) =
        (View::new(x, shape)?, if power_of_two { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 });
    match by {
        "token" => per_token(&x, format),
        "block" => per_block(&x, format),
        _ => per_channel(&x, format),
    }
}

/// FP8 numbers, scales, and the shape of the scales.
type Made<'py> = (Output<'py, u8>, Output<'py, f32>, [usize; 2]);

#[pyfunction]
fn deepgemm_quantise<'py>(
    py: Python<'py>,
    x: Numbers<'py>,
    shape: [usize; 2],
    by: &str,
    power_of_two: bool,
) -> PyResult<Made<'py>> {
    let made = match &x {
        Numbers::F32(x) => {
            let x = slice(x)?;
            py.detach(|| quantised(x, shape, by, power_of_two))
        }
        Numbers::Bf16(x) => {
            let x = bf16s(x)?;
            py.detach(|| quantised(x, shape, by, power_of_two))
        }
    }
    .map_err(wrong)?;
    let values = made.values.iter().map(|value| value.0).collect();
    Ok((out(py, values), out(py, made.scales), made.scale_shape))
}

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(deepgemm_quantise, module)?)?;
    module.add_class::<Processors>()
}
