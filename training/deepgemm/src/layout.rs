//! Scales in the order that the tensor memory accelerator of a Hopper GPU loads: along M or N first, each column
//! beginning at a multiple of 16 bytes.

use crate::ue8m0;

/// Scales of `f32`, or packed ones, that a column takes.
pub fn aligned(mn: usize) -> usize {
    mn.next_multiple_of(4)
}

/// `scales[mn, k]`, row-major, as `[k, aligned(mn)]`; zeros between.
///
/// # Panics
/// If there are fewer scales than that.
pub fn mn_major(scales: &[f32], [mn, k]: [usize; 2]) -> Vec<f32> {
    let stride = aligned(mn);
    let mut out = vec![0.0; stride * k];
    for i in 0..mn {
        for j in 0..k {
            out[j * stride + i] = scales[i * k + j];
        }
    }
    out
}

/// The exponents of four scales that follow each other along K in a number, the first in the lowest byte:
/// `[ceil(k / 4), aligned(mn)]`, zeros between. The scales are powers of two, `[mn, k]`, row-major.
///
/// # Panics
/// If there are fewer scales than that.
pub fn packed_mn_major(scales: &[f32], [mn, k]: [usize; 2]) -> Vec<u32> {
    let stride = aligned(mn);
    let mut out = vec![0; stride * k.div_ceil(4)];
    for i in 0..mn {
        for j in 0..k {
            out[j / 4 * stride + i] |= u32::from(ue8m0::exponent(scales[i * k + j])) << (j % 4 * 8);
        }
    }
    out
}
