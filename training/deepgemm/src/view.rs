//! Matrices and scales that belong to somebody else.

use crate::{Result, demand};

/// A matrix whose rows are contiguous: element (`i`, `j`) is `data[i * stride + j]`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    data: &'a [T],
    shape: [usize; 2],
    stride: usize,
}

/// The same, to be written.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    data: &'a mut [T],
    shape: [usize; 2],
    stride: usize,
}

fn check<T>(data: &[T], [rows, columns]: [usize; 2], stride: usize) -> Result<()> {
    demand(stride >= columns, "stride", || format!("{stride} is less than the {columns} columns of a row"))?;
    let needed =
        if rows == 0 || columns == 0 { 0 } else { (rows - 1).saturating_mul(stride).saturating_add(columns) };
    demand(data.len() >= needed, "data", || {
        format!("{rows} rows of {columns}, {stride} apart, need {needed} elements; there are {}", data.len())
    })
}

impl<'a, T> View<'a, T> {
    /// Rows that follow each other.
    ///
    /// # Errors
    /// If `data` is too short.
    pub fn new(data: &'a [T], shape: [usize; 2]) -> Result<Self> {
        Self::strided(data, shape, shape[1])
    }
    /// Rows that begin `stride` elements apart.
    ///
    /// # Errors
    /// If `data` is too short, or rows overlap.
    pub fn strided(data: &'a [T], shape: [usize; 2], stride: usize) -> Result<Self> {
        check(data, shape, stride)?;
        Ok(Self { data, shape, stride })
    }
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
    /// A row.
    pub fn row(&self, row: usize) -> &'a [T] {
        &self.data[row * self.stride..][..self.shape[1]]
    }
    /// Rows `[from, to)`.
    pub fn rows(&self, from: usize, to: usize) -> Self {
        let shape = [to - from, self.shape[1]];
        let empty = shape[0] == 0 || shape[1] == 0;
        Self { data: if empty { &[] } else { &self.data[from * self.stride..] }, shape, stride: self.stride }
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// Rows that follow each other.
    ///
    /// # Errors
    /// If `data` is too short.
    pub fn new(data: &'a mut [T], shape: [usize; 2]) -> Result<Self> {
        Self::strided(data, shape, shape[1])
    }
    /// Rows that begin `stride` elements apart.
    ///
    /// # Errors
    /// If `data` is too short, or rows overlap.
    pub fn strided(data: &'a mut [T], shape: [usize; 2], stride: usize) -> Result<Self> {
        check(data, shape, stride)?;
        Ok(Self { data, shape, stride })
    }
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
    /// A row.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.data[row * self.stride..][..self.shape[1]]
    }
    /// Rows `[from, to)`.
    pub fn rows_mut(&mut self, from: usize, to: usize) -> ViewMut<'_, T> {
        let shape = [to - from, self.shape[1]];
        let empty = shape[0] == 0 || shape[1] == 0;
        let data = if empty { &mut [][..] } else { &mut self.data[from * self.stride..] };
        ViewMut { data, shape, stride: self.stride }
    }
    /// The parts of all rows in columns that are `width` wide, from left to right: the last may be narrower.
    pub(crate) fn rows_by_columns(self, width: usize) -> Vec<Vec<&'a mut [T]>> {
        let [rows, columns] = self.shape;
        let mut parts: Vec<Vec<&'a mut [T]>> =
            (0..columns.div_ceil(width)).map(|_| Vec::with_capacity(rows)).collect();
        if columns > 0 {
            for row in self.data.chunks_mut(self.stride).take(rows) {
                row[..columns].chunks_mut(width).zip(&mut parts).for_each(|(piece, part)| part.push(piece));
            }
        }
        parts
    }
}

/// Scales of a matrix: one for each row or block of rows, and each 128 columns. Scale (`i`, `j`) is
/// `data[i * stride_mn + j * stride_k]`.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Scales<'a> {
    /// Row-major: those of a row follow each other.
    ///
    /// # Errors
    /// If there are too few.
    pub fn row_major(data: &'a [f32], shape: [usize; 2]) -> Result<Self> {
        Self::strided(data, shape, [shape[1], 1])
    }
    /// As the tensor memory accelerator of a GPU wants them, from [`mn_major`](crate::layout::mn_major).
    ///
    /// # Errors
    /// If there are too few.
    pub fn mn_major(data: &'a [f32], shape: [usize; 2]) -> Result<Self> {
        Self::strided(data, shape, [1, crate::layout::aligned(shape[0])])
    }
    /// With any strides.
    ///
    /// # Errors
    /// If there are too few.
    pub fn strided(data: &'a [f32], shape: [usize; 2], strides: [usize; 2]) -> Result<Self> {
        let last = |i: usize| (shape[i].max(1) - 1).saturating_mul(strides[i]);
        let needed = if shape.contains(&0) { 0 } else { last(0).saturating_add(last(1)).saturating_add(1) };
        demand(data.len() >= needed, "data", || {
            format!(
                "scales {shape:?} with strides {strides:?} need {needed} numbers; there are {}",
                data.len()
            )
        })?;
        Ok(Self { data, shape, strides })
    }
    /// Number of rows or blocks of rows, and of blocks of columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }
    /// A scale.
    pub fn get(&self, row: usize, block: usize) -> f32 {
        self.data[row * self.strides[0] + block * self.strides[1]]
    }
    /// Those of rows `[from, to)`.
    pub fn rows(&self, from: usize, to: usize) -> Self {
        let shape = [to - from, self.shape[1]];
        let data = if shape.contains(&0) { &[] } else { &self.data[from * self.strides[0]..] };
        Self { data, shape, strides: self.strides }
    }
    /// An error if one is not a number.
    pub(crate) fn check(&self, argument: &'static str, shape: [usize; 2]) -> Result<()> {
        demand(self.shape == shape, argument, || format!("has shape {:?}, not {shape:?}", self.shape))?;
        for row in 0..shape[0] {
            for block in 0..shape[1] {
                let scale = self.get(row, block);
                demand(scale.is_finite(), argument, || {
                    format!("{scale} in row {row}, block {block} is no scale")
                })?;
            }
        }
        Ok(())
    }
}
