//! dualpipe.

use crate::{failed, wrong};
use ember_dualpipe::{
    Compute, Costs, Feed, Kind, Part, Payload, Pipeline, Rank, RunError, Simulation, Stage, Step,
    ThreadTransport, simulate,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

/// By module, inputs and labels of a rank.
type Fed = ([Vec<Py<PyAny>>; 2], [Vec<Py<PyAny>>; 2]);
/// Losses and outputs of a rank.
type Done = (Vec<Py<PyAny>>, Vec<Py<PyAny>>);

#[pyclass(name = "Pipeline", frozen)]
struct Piped(Pipeline);

#[pyclass(name = "Simulation", frozen)]
struct Simulated(Simulation);

fn name(payload: Payload) -> &'static str {
    match payload {
        Payload::Activation => "activation",
        Payload::Gradient => "gradient",
    }
}

fn computed<'py>(py: Python<'py>, compute: Compute) -> PyResult<Bound<'py, PyTuple>> {
    let one = |what: &str, part: Part| (what, part.module, part.chunk).into_pyobject(py);
    match compute {
        Compute::Forward(part) => one("forward", part),
        Compute::Backward(part) => one("backward", part),
        Compute::BackwardInput(part) => one("backward_input", part),
        Compute::Weight(part) => one("weight", part),
        Compute::Overlapped { forward, backward } => {
            let pair = |part: Part| (part.module, part.chunk);
            ("overlapped", pair(forward), pair(backward)).into_pyobject(py)
        }
    }
}

#[pymethods]
impl Piped {
    #[new]
    fn new(kind: &str, ranks: usize, chunks: usize, forward_only: bool) -> PyResult<Self> {
        let kind = match kind {
            "dualpipe" => Kind::DualPipe,
            "dualpipev" => Kind::DualPipeV,
            other => {
                return Err(PyValueError::new_err(format!(
                    "kind: {other:?} is neither dualpipe nor dualpipev"
                )));
            }
        };
        Ok(Self(Pipeline::new(kind, ranks, chunks, forward_only).map_err(wrong)?))
    }
    #[getter]
    fn ranks(&self) -> usize {
        self.0.ranks()
    }
    #[getter]
    fn stages(&self) -> usize {
        self.0.stages()
    }
    #[getter]
    fn chunks_of_module(&self) -> usize {
        self.0.chunks_of_module()
    }
    fn stage(&self, rank: usize, module: usize) -> PyResult<usize> {
        self.known(rank, module)?;
        Ok(self.0.stage(rank, module))
    }
    fn is_first(&self, rank: usize, module: usize) -> PyResult<bool> {
        self.known(rank, module)?;
        Ok(self.0.is_first(rank, module))
    }
    fn is_last(&self, rank: usize, module: usize) -> PyResult<bool> {
        self.known(rank, module)?;
        Ok(self.0.is_last(rank, module))
    }
    fn program<'py>(&self, py: Python<'py>, rank: usize) -> PyResult<Vec<Bound<'py, PyTuple>>> {
        let steps = self.0.program(rank).map_err(wrong)?;
        let step = |step: Step| match step {
            Step::Compute(compute) => computed(py, compute),
            Step::Exchange(transfers) => {
                let one = |of: &ember_dualpipe::Transfer| {
                    let way = if of.sends { "send" } else { "receive" };
                    (way, name(of.payload), of.part.module, of.part.chunk, of.peer)
                };
                ("exchange", transfers.iter().map(one).collect::<Vec<_>>()).into_pyobject(py)
            }
        };
        steps.into_iter().map(step).collect()
    }
    fn simulate(&self, costs: [f64; 4]) -> PyResult<Simulated> {
        let [forward, backward, weight, overlapped] = costs;
        let costs = Costs { forward, backward, weight, overlapped };
        Ok(Simulated(simulate(&self.0, &costs).map_err(wrong)?))
    }

    /// Runs a step with a thread for each rank. Returns for each rank its losses and outputs.
    fn run(
        &self,
        py: Python<'_>,
        stages: Vec<[Py<PyAny>; 2]>,
        feeds: Vec<Fed>,
        criterion: Py<PyAny>,
        limit_s: f64,
    ) -> PyResult<Vec<Done>> {
        let limit = Duration::try_from_secs_f64(limit_s).map_err(|error| wrong(format!("limit: {error}")))?;
        if stages.len() != self.0.ranks() || feeds.len() != self.0.ranks() {
            return Err(wrong(format!("stages and feeds: one for each of {} ranks", self.0.ranks())));
        }
        let (pipeline, criterion) = (&self.0, Arc::new(criterion));
        let ranks: Vec<_> =
            stages.into_iter().zip(feeds).zip(ThreadTransport::mesh(self.0.ranks(), limit)).collect();
        let done = py.detach(|| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = ranks
                    .into_iter()
                    .enumerate()
                    .map(|(rank, ((stages, feed), transport))| {
                        let criterion = criterion.clone();
                        scope.spawn(move || of_rank(pipeline, rank, stages, feed, transport, &criterion))
                    })
                    .collect();
                let end = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                    thread.join().unwrap_or_else(|_| Err(failed("a rank panicked")))
                };
                threads.into_iter().map(end).collect::<Vec<_>>()
            })
        });
        first_cause(py, done)
    }
}

impl Piped {
    fn known(&self, rank: usize, module: usize) -> PyResult<()> {
        if rank < self.0.ranks() && module < 2 {
            return Ok(());
        }
        Err(wrong(format!("rank and module: there is no module {module} of rank {rank}")))
    }
}

/// What stages raised counts, not that others missed a message because of it.
fn first_cause<T>(py: Python<'_>, done: Vec<PyResult<T>>) -> PyResult<Vec<T>> {
    let ours = |error: &PyErr| error.is_instance_of::<pyo3::exceptions::PyRuntimeError>(py);
    let mut results = Vec::with_capacity(done.len());
    let mut failure: Option<PyErr> = None;
    for result in done {
        match result {
            Ok(result) => results.push(result),
            Err(error) if failure.as_ref().is_none_or(|old| ours(old) && !ours(&error)) => {
                failure = Some(error)
            }
            Err(_) => {}
        }
    }
    failure.map_or(Ok(results), Err)
}

/// A tensor is whatever the stages make.
#[derive(Clone)]
struct Object(Arc<Py<PyAny>>);

struct Staged(Py<PyAny>);

impl Stage for Staged {
    type Tensor = Object;
    type Deferred = Py<PyAny>;
    type Error = PyErr;

    fn forward(&mut self, chunk: usize, input: Object, keep: bool) -> PyResult<Object> {
        Python::attach(|py| {
            let output = self.0.call_method1(py, "forward", (chunk, &*input.0, keep))?;
            Ok(Object(Arc::new(output)))
        })
    }
    fn backward_input(&mut self, chunk: usize, gradient: Object) -> PyResult<(Object, Py<PyAny>)> {
        Python::attach(|py| {
            let both = self.0.call_method1(py, "backward_input", (chunk, &*gradient.0))?;
            let (gradient, deferred): (Py<PyAny>, Py<PyAny>) = both.extract(py)?;
            Ok((Object(Arc::new(gradient)), deferred))
        })
    }
    fn weight_gradients(&mut self, deferred: Py<PyAny>) -> PyResult<()> {
        Python::attach(|py| self.0.call_method1(py, "weight_gradients", (deferred,)).map(|_| ()))
    }
}

fn of_rank(
    pipeline: &Pipeline,
    rank: usize,
    stages: [Py<PyAny>; 2],
    (inputs, labels): Fed,
    transport: ThreadTransport<Object>,
    criterion: &Py<PyAny>,
) -> PyResult<Done> {
    let mapping: Vec<usize> = (0..pipeline.ranks()).collect();
    let object = |of: Vec<Py<PyAny>>| of.into_iter().map(|of| Object(Arc::new(of))).collect();
    let feed = Feed { inputs: inputs.map(object), labels };
    let mut modules = stages.map(Staged);
    let raised = RefCell::new(None);
    let loss = |output: &Object, label: Py<PyAny>| {
        Python::attach(|py| {
            let both = criterion.call1(py, (&*output.0, label));
            let both = both.and_then(|both| both.extract::<(Py<PyAny>, Py<PyAny>)>(py));
            both.map(|(loss, gradient)| (loss, Object(Arc::new(gradient)))).unwrap_or_else(|error| {
                raised.borrow_mut().get_or_insert(error);
                (py.None(), Object(Arc::new(py.None())))
            })
        })
    };
    let done = Rank { pipeline, rank, mapping: &mapping, transport }.step(&mut modules, feed, true, loss);
    if let Some(error) = raised.into_inner() {
        return Err(error);
    }
    let outcome = done.map_err(|error| match error {
        RunError::Argument(error) => wrong(error),
        RunError::Stage { error, .. } => error,
        RunError::Transport(error) => failed(error),
    })?;
    let outputs = outcome.outputs.into_iter().map(|of| Python::attach(|py| of.0.clone_ref(py))).collect();
    Ok((outcome.losses, outputs))
}

#[pymethods]
impl Simulated {
    #[getter]
    fn makespan(&self) -> f64 {
        self.0.makespan
    }
    #[getter]
    fn bubbles(&self) -> Vec<f64> {
        self.0.ranks.iter().map(|rank| rank.bubble).collect()
    }
    #[getter]
    fn peak_activations(&self) -> Vec<usize> {
        self.0.ranks.iter().map(|rank| rank.peak_activations).collect()
    }
    fn text(&self) -> String {
        self.0.text()
    }
    fn svg(&self) -> String {
        self.0.svg()
    }
}

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Piped>()?;
    module.add_class::<Simulated>()
}
