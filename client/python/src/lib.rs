//! `emberfs.train._native`: the training libraries for Python, on flat arrays. Shapes and types are checked by the
//! Python side, everything else by the libraries. The interpreter's lock is let go while they work.
#![forbid(unsafe_code)]

mod deepep;
mod deepgemm;
mod dualpipe;
mod eplb;
mod flashmla;

use half::bf16;
use half::slice::HalfBitsSliceExt;
use half::vec::HalfFloatVecExt;
use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;

/// A flat array from Python.
type Input<'py, T> = PyReadonlyArray1<'py, T>;
/// A flat array for Python.
type Output<'py, T> = Bound<'py, PyArray1<T>>;

/// The numbers of an array, which the Python side has made contiguous.
fn slice<'a, T: Element>(array: &'a Input<'_, T>) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|error| PyValueError::new_err(error.to_string()))
}

fn bf16s<'a>(array: &'a Input<'_, u16>) -> PyResult<&'a [bf16]> {
    Ok(slice(array)?.reinterpret_cast())
}

fn optional<'a, T: Element>(array: &'a Option<Input<'_, T>>) -> PyResult<Option<&'a [T]>> {
    array.as_ref().map(slice).transpose()
}

fn out<T: Element>(py: Python<'_>, numbers: Vec<T>) -> Output<'_, T> {
    numbers.into_pyarray(py)
}

fn out_bf16(py: Python<'_>, numbers: Vec<bf16>) -> Output<'_, u16> {
    out(py, numbers.reinterpret_into())
}

/// What is wrong with an argument.
fn wrong(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// What has gone wrong otherwise.
fn failed(error: impl std::fmt::Display) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

/// What was waited for in vain.
fn late(error: impl std::fmt::Display) -> PyErr {
    PyTimeoutError::new_err(error.to_string())
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    eplb::add(module)?;
    dualpipe::add(module)?;
    deepgemm::add(module)?;
    deepep::add(module)?;
    flashmla::add(module)
}
