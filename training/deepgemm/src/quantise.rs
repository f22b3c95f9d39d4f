//! From numbers to FP8 with scales.

use crate::e4m3::E4m3;
use crate::gemm::Scaled;
use crate::ue8m0;
use crate::view::{Scales, View};
use crate::{BLOCK, Result, demand};
use std::ops::Range;

/// No scale is that of a lesser greatest number.
const LEAST: f32 = 1e-4;

/// Values and scales.
#[derive(Clone, PartialEq, Debug)]
pub struct Quantised {
    /// As many as there were, row-major.
    pub values: Vec<E4m3>,
    /// Row-major: `x` is about `value * scale`.
    pub scales: Vec<f32>,
    /// Rows and columns of the scales.
    pub scale_shape: [usize; 2],
}

impl Quantised {
    /// The matrix `[rows, columns]` that it is, to be multiplied.
    ///
    /// # Errors
    /// If it has fewer values than that.
    pub fn scaled(&self, shape: [usize; 2]) -> Result<Scaled<'_>> {
        let scales = Scales::row_major(&self.scales, self.scale_shape)?;
        Ok(Scaled { values: View::new(&self.values, shape)?, scales })
    }
}

/// Whether scales are rounded up to powers of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScaleFormat {
    /// Any number.
    F32,
    /// Powers of two.
    Ue8m0,
}

/// A scale for each row and 128 columns: activations. `[m, k]` gives scales `[m, ceil(k / 128)]`.
///
/// # Errors
/// If `x` holds infinity or NaN.
pub fn per_token<T: Copy + Into<f32>>(x: &View<'_, T>, format: ScaleFormat) -> Result<Quantised> {
    blocks(x, [1, BLOCK], format)
}

/// A scale for each 128 rows and 128 columns: weights. `[n, k]` gives scales `[ceil(n / 128), ceil(k / 128)]`.
///
/// # Errors
/// If `x` holds infinity or NaN.
pub fn per_block<T: Copy + Into<f32>>(x: &View<'_, T>, format: ScaleFormat) -> Result<Quantised> {
    blocks(x, [BLOCK, BLOCK], format)
}

/// A scale for each 128 rows and one column: operands of weight gradients. `[k, n]` gives scales
/// `[ceil(k / 128), n]`.
///
/// # Errors
/// If `x` holds infinity or NaN.
pub fn per_channel<T: Copy + Into<f32>>(x: &View<'_, T>, format: ScaleFormat) -> Result<Quantised> {
    blocks(x, [BLOCK, 1], format)
}

fn blocks<T: Copy + Into<f32>>(x: &View<'_, T>, block: [usize; 2], format: ScaleFormat) -> Result<Quantised> {
    let [rows, columns] = x.shape();
    let scale_shape = [rows.div_ceil(block[0]), columns.div_ceil(block[1])];
    let mut out = Quantised {
        values: vec![E4m3::default(); rows * columns],
        scales: Vec::with_capacity(scale_shape[0] * scale_shape[1]),
        scale_shape,
    };
    let part = |i: usize, each: usize, all: usize| i * each..((i + 1) * each).min(all);
    for i in 0..scale_shape[0] {
        for j in 0..scale_shape[1] {
            let (rows, columns) = (part(i, block[0], rows), part(j, block[1], columns));
            let greatest = greatest(x, rows.clone(), columns.clone())?;
            let scale = match format {
                ScaleFormat::F32 => greatest / E4m3::MAX,
                ScaleFormat::Ue8m0 => ue8m0::round_up(greatest / E4m3::MAX),
            };
            let inverse = 1.0 / scale;
            for row in rows {
                let values = &mut out.values[row * x.shape()[1]..][columns.clone()];
                for (value, &number) in values.iter_mut().zip(&x.row(row)[columns.clone()]) {
                    *value = E4m3::from_f32(number.into() * inverse);
                }
            }
            out.scales.push(scale);
        }
    }
    Ok(out)
}

fn greatest<T: Copy + Into<f32>>(x: &View<'_, T>, rows: Range<usize>, columns: Range<usize>) -> Result<f32> {
    // Bits of numbers without their signs are in the order of the numbers, infinity and NaN behind all others.
    let bits = |number: &T| (*number).into().to_bits() & 0x7fff_ffff;
    let of_row = |row: usize| x.row(row)[columns.clone()].iter().map(bits).fold(0, u32::max);
    let greatest = f32::from_bits(rows.clone().map(of_row).fold(0, u32::max));
    if !greatest.is_finite() {
        for (row, column) in rows.flat_map(|row| columns.clone().map(move |column| (row, column))) {
            let number: f32 = x.row(row)[column].into();
            demand(number.is_finite(), "x", || {
                format!("{number} in row {row}, column {column} can't be quantised")
            })?;
        }
    }
    Ok(greatest.max(LEAST))
}
