//! deepep: the normal mode.

use crate::{Input, Output, bf16s, failed, late, out, out_bf16, slice, wrong};
use ember_deepep::{EpError, Group, Handle, Shape, Tokens};
use half::slice::HalfFloatSliceExt;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

#[pyclass(name = "Group", frozen)]
struct Joined(Mutex<Group>);

#[pyclass(name = "Handle", frozen)]
struct Held(Handle);

#[pymethods]
impl Held {
    #[getter]
    fn rows(&self) -> usize {
        self.0.rows()
    }
}

/// Tokens in BF16, or in FP8 with scales.
#[derive(FromPyObject)]
enum Sent<'py> {
    Bf16(Input<'py, u16>),
    Fp8((Input<'py, u8>, Input<'py, f32>)),
}

impl Sent<'_> {
    fn tokens(&self) -> PyResult<Tokens<'_>> {
        Ok(match self {
            Self::Bf16(x) => Tokens::Bf16(bf16s(x)?),
            Self::Fp8((values, scales)) => Tokens::Fp8 { values: slice(values)?, scales: slice(scales)? },
        })
    }
}

/// What has come: numbers in BF16, or in FP8 and their scales; experts, weights, sources, rows of each expert, handle.
struct Got {
    bf16: Option<Vec<u16>>,
    fp8: Option<(Vec<u8>, Vec<f32>)>,
    chosen: Vec<i64>,
    weights: Vec<f32>,
    sources: Vec<u32>,
    per_expert: Vec<u32>,
    handle: Handle,
}

impl Got {
    fn of(got: &ember_deepep::Dispatched<'_>) -> Self {
        Self {
            bf16: got.bf16().map(|rows| rows.reinterpret_cast().to_vec()),
            fp8: got.fp8().map(|(values, scales)| (values.to_vec(), scales.to_vec())),
            chosen: got.chosen.clone(),
            weights: got.weights.clone(),
            sources: got.sources.iter().flat_map(|(rank, token)| [*rank, *token]).collect(),
            per_expert: got.per_expert.clone(),
            handle: got.handle().clone(),
        }
    }
}

type Received<'py> = (
    (Option<Output<'py, u16>>, Option<(Output<'py, u8>, Output<'py, f32>)>),
    (Output<'py, i64>, Output<'py, f32>, Output<'py, u32>, Output<'py, u32>),
    Held,
);

fn received(py: Python<'_>, got: Got) -> Received<'_> {
    let fp8 = got.fp8.map(|(values, scales)| (out(py, values), out(py, scales)));
    let rows = (got.bf16.map(|rows| out(py, rows)), fp8);
    let about = (out(py, got.chosen), out(py, got.weights), out(py, got.sources), out(py, got.per_expert));
    (rows, about, Held(got.handle))
}

fn error(error: EpError) -> PyErr {
    match error {
        EpError::Argument { .. } => wrong(error),
        EpError::Late { .. } => late(error),
        _ => failed(error),
    }
}

impl Joined {
    fn group(&self) -> MutexGuard<'_, Group> {
        // A group whose call has panicked refuses by itself.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[pymethods]
impl Joined {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, rank: usize, shape: [usize; 5], limit_s: f64) -> PyResult<Self> {
        let [ranks, experts, hidden, topk, tokens] = shape;
        let limit = Duration::try_from_secs_f64(limit_s).map_err(|error| wrong(format!("limit: {error}")))?;
        let shape = Shape { ranks, experts, hidden, topk, tokens };
        let joined = py.detach(|| Group::join(&path, rank, shape, limit)).map_err(error)?;
        Ok(Self(Mutex::new(joined)))
    }
    fn dispatch<'py>(
        &self,
        py: Python<'py>,
        x: Sent<'py>,
        chosen: Input<'py, i64>,
        weights: Input<'py, f32>,
    ) -> PyResult<Received<'py>> {
        let (tokens, chosen, weights) = (x.tokens()?, slice(&chosen)?, slice(&weights)?);
        let got = py.detach(|| self.group().dispatch(tokens, chosen, weights).map(|got| Got::of(&got)));
        Ok(received(py, got.map_err(error)?))
    }
    fn dispatch_again<'py>(&self, py: Python<'py>, x: Sent<'py>, handle: &Held) -> PyResult<Received<'py>> {
        let tokens = x.tokens()?;
        let got = py.detach(|| self.group().dispatch_again(tokens, &handle.0).map(|got| Got::of(&got)));
        Ok(received(py, got.map_err(error)?))
    }
    fn combine<'py>(
        &self,
        py: Python<'py>,
        rows: Input<'py, u16>,
        weights: Option<Input<'py, f32>>,
        handle: &Held,
        biases: Vec<Input<'py, u16>>,
    ) -> PyResult<(Output<'py, u16>, Option<Output<'py, f32>>)> {
        let (rows, weights) = (bf16s(&rows)?, crate::optional(&weights)?);
        let biases = biases.iter().map(bf16s).collect::<PyResult<Vec<_>>>()?;
        let combined =
            py.detach(|| self.group().combine(rows, weights, &handle.0, &biases)).map_err(error)?;
        Ok((out_bf16(py, combined.tokens), combined.weights.map(|weights| out(py, weights))))
    }
}

/// Tokens for each rank, and for each expert.
#[pyfunction]
fn deepep_layout<'py>(
    py: Python<'py>,
    chosen: Input<'py, i64>,
    shape: [usize; 5],
) -> PyResult<(Output<'py, u32>, Output<'py, u32>)> {
    let [ranks, experts, hidden, topk, tokens] = shape;
    let shape = Shape { ranks, experts, hidden, topk, tokens };
    let found = ember_deepep::layout(slice(&chosen)?, &shape).map_err(error)?;
    Ok((out(py, found.per_rank()), out(py, found.per_expert)))
}

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(deepep_layout, module)?)?;
    module.add_class::<Held>()?;
    module.add_class::<Joined>()
}
