//! flashmla.

use crate::{Input, Output, bf16s, optional, out, out_bf16, slice, wrong};
use ember_flashmla::{Dense, Prefill, SparseDecode};
use pyo3::prelude::*;

/// A part: first request, page and piece, and whether it is split; the same of the last one, without the piece.
type Part = (usize, usize, usize, bool, isize, usize, bool);

#[pyfunction]
fn flashmla_schedule(lengths: Vec<usize>, parts: usize) -> PyResult<(Vec<Part>, Vec<usize>)> {
    let made = ember_flashmla::schedule(&lengths, parts).map_err(wrong)?;
    let part = |of: &ember_flashmla::Part| {
        let begin = (of.begin, of.begin_page, of.begin_piece, of.begin_is_split);
        (begin.0, begin.1, begin.2, begin.3, of.end, of.end_page, of.end_is_split)
    };
    Ok((made.parts.iter().map(part).collect(), made.pieces))
}

/// What comes out, and the logarithms.
type Attended<'py> = (Output<'py, u16>, Output<'py, f32>);

#[pyfunction]
#[pyo3(signature = (q, cache, block_table, lengths, shape, causal, scale, parts))]
#[expect(clippy::too_many_arguments, reason = "as many as the library has")]
fn flashmla_dense<'py>(
    py: Python<'py>,
    q: Input<'py, u16>,
    cache: Input<'py, u16>,
    block_table: Input<'py, i32>,
    lengths: Input<'py, i32>,
    shape: [usize; 4],
    causal: bool,
    scale: Option<f32>,
    parts: usize,
) -> PyResult<Attended<'py>> {
    let [batch, queries, heads, kv_heads] = shape;
    let (q, cache) = (bf16s(&q)?, bf16s(&cache)?);
    let (block_table, lengths) = (slice(&block_table)?, slice(&lengths)?);
    let of = Dense { batch, queries, heads, kv_heads, q, cache, block_table, lengths, causal, scale };
    let attended = py.detach(|| ember_flashmla::dense_decode(&of, parts)).map_err(wrong)?;
    Ok((out_bf16(py, attended.out), out(py, attended.lse)))
}

/// What a query chooses beside its indices.
type Extra<'py> = (Option<Input<'py, i32>>, Option<Input<'py, f32>>, Option<f32>);

#[pyfunction]
fn flashmla_prefill<'py>(
    py: Python<'py>,
    q: Input<'py, u16>,
    kv: Input<'py, u16>,
    indices: Input<'py, i32>,
    shape: [usize; 3],
    extra: Extra<'py>,
) -> PyResult<(Output<'py, u16>, Output<'py, f32>, Output<'py, f32>)> {
    let [queries, heads, width] = shape;
    let (chosen, sink, scale) = (optional(&extra.0)?, optional(&extra.1)?, extra.2);
    let (q, kv, indices) = (bf16s(&q)?, bf16s(&kv)?, slice(&indices)?);
    let of = Prefill { queries, heads, width, q, kv, indices, chosen, sink, scale };
    let done = py.detach(|| ember_flashmla::sparse_prefill(&of)).map_err(wrong)?;
    Ok((out_bf16(py, done.out), out(py, done.max_logits), out(py, done.lse)))
}

#[pyfunction]
fn flashmla_sparse<'py>(
    py: Python<'py>,
    q: Input<'py, u16>,
    cache: Input<'py, u8>,
    indices: Input<'py, i32>,
    shape: [usize; 3],
    extra: Extra<'py>,
) -> PyResult<Attended<'py>> {
    let [batch, queries, heads] = shape;
    let (chosen, sink, scale) = (optional(&extra.0)?, optional(&extra.1)?, extra.2);
    let (q, cache, indices) = (bf16s(&q)?, slice(&cache)?, slice(&indices)?);
    let of = SparseDecode { batch, queries, heads, q, cache, indices, chosen, sink, scale };
    let attended = py.detach(|| ember_flashmla::sparse_decode(&of)).map_err(wrong)?;
    Ok((out_bf16(py, attended.out), out(py, attended.lse)))
}

#[pyfunction]
fn flashmla_quantise<'py>(py: Python<'py>, tokens: Input<'py, u16>) -> PyResult<Output<'py, u8>> {
    Ok(out(py, ember_flashmla::quantise(bf16s(&tokens)?).map_err(wrong)?))
}

#[pyfunction]
fn flashmla_dequantise<'py>(py: Python<'py>, bytes: Input<'py, u8>) -> PyResult<Output<'py, u16>> {
    Ok(out_bf16(py, ember_flashmla::dequantise(slice(&bytes)?).map_err(wrong)?))
}

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(flashmla_schedule, module)?)?;
    module.add_function(wrap_pyfunction!(flashmla_dense, module)?)?;
    module.add_function(wrap_pyfunction!(flashmla_prefill, module)?)?;
    module.add_function(wrap_pyfunction!(flashmla_sparse, module)?)?;
    module.add_function(wrap_pyfunction!(flashmla_quantise, module)?)?;
    module.add_function(wrap_pyfunction!(flashmla_dequantise, module)?)
}
