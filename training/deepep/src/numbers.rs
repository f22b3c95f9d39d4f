//! Numbers in bytes, and sums of them.

use half::bf16;
use half::slice::HalfBitsSliceExt;
use zerocopy::{FromBytes, Immutable};

/// Numbers that lie in a heap: each kind of them begins at a multiple of 64.
pub(crate) fn viewed<T: FromBytes + Immutable>(bytes: &[u8]) -> &[T] {
    <[T]>::ref_from_bytes(bytes).expect("numbers in a heap are aligned and whole")
}

/// A copy of them.
pub(crate) fn numbers<T: FromBytes + Immutable + Copy>(bytes: &[u8]) -> Vec<T> {
    viewed(bytes).to_vec()
}

/// BF16 numbers that lie in a heap.
pub(crate) fn halves(bytes: &[u8]) -> &[bf16] {
    viewed::<u16>(bytes).reinterpret_cast()
}

fn wide(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// Adds a row to sums, number by number.
pub(crate) fn add(sums: &mut [f32], row: &[bf16]) {
    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += wide(*x));
}

/// Adds a row times a weight: product and sum are rounded each.
pub(crate) fn add_weighted(sums: &mut [f32], row: &[bf16], weight: f32) {
    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * wide(*x));
}

/// Writes sums as BF16.
pub(crate) fn round(sums: &[f32], out: &mut [bf16]) {
    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = rounded(*sum));
}

/// The nearest BF16 number, the even one of two: without a branch, so that many are rounded at once.
fn rounded(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    bf16::from_bits(if x.is_nan() { bits >> 16 | 0x40 } else { nearest } as u16)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    #[test]
    fn numbers_are_rounded_as_the_library_does() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(super::rounded(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
            }
        }
    }
}
