//! eplb.

use crate::{Input, Output, out, slice, wrong};
use ember_eplb::{LoadAverage, Placement, Shape};
use pyo3::prelude::*;

/// The tables of a placement, and the most replicas that an expert has.
type Tables<'py> = (Output<'py, i64>, Output<'py, i64>, Output<'py, i64>, usize);

fn tables<'py>(py: Python<'py>, of: &Placement) -> Tables<'py> {
    let table = |numbers: &[i64]| out(py, numbers.to_vec());
    (table(of.phy2log()), table(of.log2phy()), table(of.logcnt()), of.replicas_max())
}

fn placement(slots: &[i64], layers: usize, experts: usize) -> PyResult<Placement> {
    let each = slots.len().checked_div(layers).unwrap_or(0);
    let number = |&slot: &i64| usize::try_from(slot).unwrap_or(usize::MAX);
    let rows: Vec<Vec<usize>> =
        slots.chunks(each.max(1)).map(|row| row.iter().map(number).collect()).collect();
    Placement::from_slots(experts, &rows).map_err(wrong)
}

#[pyfunction]
fn eplb_rebalance<'py>(py: Python<'py>, weight: Input<'py, f32>, shape: [usize; 5]) -> PyResult<Tables<'py>> {
    let [experts, replicas, groups, nodes, gpus] = shape;
    let shape = Shape { experts, replicas, groups, nodes, gpus };
    let weight = slice(&weight)?;
    let placed = py.detach(|| ember_eplb::rebalance_experts(weight, &shape)).map_err(wrong)?;
    Ok(tables(py, &placed))
}

#[pyfunction]
fn eplb_count<'py>(py: Python<'py>, chosen: Input<'py, i64>, experts: usize) -> PyResult<Output<'py, u64>> {
    Ok(out(py, ember_eplb::count_tokens(slice(&chosen)?, experts).map_err(wrong)?))
}

/// Layer, expert, slot to copy from, slot to copy to.
type Copied = (usize, usize, usize, usize);

#[pyfunction]
fn eplb_moves(old: Input<'_, i64>, new: Input<'_, i64>, shape: [usize; 3]) -> PyResult<Vec<Copied>> {
    let [layers, experts, gpus] = shape;
    let (old, new) = (placement(slice(&old)?, layers, experts)?, placement(slice(&new)?, layers, experts)?);
    let moves = ember_eplb::moves(&old, &new, gpus).map_err(wrong)?;
    Ok(moves.into_iter().map(|of| (of.layer, of.expert, of.from, of.to)).collect())
}

#[pyfunction]
fn eplb_keep<'py>(
    py: Python<'py>,
    old: Input<'py, i64>,
    new: Input<'py, i64>,
    shape: [usize; 3],
) -> PyResult<Tables<'py>> {
    let [layers, experts, gpus] = shape;
    let (old, new) = (placement(slice(&old)?, layers, experts)?, placement(slice(&new)?, layers, experts)?);
    Ok(tables(py, &ember_eplb::keep_in_place(&old, &new, gpus).map_err(wrong)?))
}

#[pyclass(name = "LoadAverage")]
struct Average(LoadAverage);

#[pymethods]
impl Average {
    #[new]
    fn new(layers: usize, experts: usize, half_life: f64) -> PyResult<Self> {
        Ok(Self(LoadAverage::new(layers, experts, half_life).map_err(wrong)?))
    }
    fn observe(&mut self, counts: Input<'_, u64>) -> PyResult<()> {
        self.0.observe(slice(&counts)?).map_err(wrong)
    }
    fn loads<'py>(&self, py: Python<'py>) -> Output<'py, f32> {
        out(py, self.0.loads())
    }
}

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(eplb_rebalance, module)?)?;
    module.add_function(wrap_pyfunction!(eplb_count, module)?)?;
    module.add_function(wrap_pyfunction!(eplb_moves, module)?)?;
    module.add_function(wrap_pyfunction!(eplb_keep, module)?)?;
    module.add_class::<Average>()
}
