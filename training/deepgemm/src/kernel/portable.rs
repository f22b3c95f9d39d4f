//! The order of the sums in plain code.

use super::{COLUMNS, Join};

/// A number below the least normal one is zero.
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

fn first(word: u32) -> f32 {
    flushed(f32::from_bits(word << 16))
}

fn second(word: u32) -> f32 {
    flushed(f32::from_bits(word & 0xffff_0000))
}

/// Least and greatest exponent, with its bias, of numbers that are not zero.
fn exponents(words: impl Iterator<Item = u32>) -> (u32, u32) {
    words.flat_map(|word| [word >> 7 & 255, word >> 23]).fold((255, 1), |(least, most), exponent| {
        let exponent = exponent & 255;
        (if exponent == 0 { least } else { least.min(exponent) }, most.max(exponent))
    })
}

/// Whether every product is a normal number, so that it is exact in `f32`. FP8 numbers always are.
fn products_are_exact(a: &[&[u32]], b: &[[u32; COLUMNS]]) -> bool {
    let (a, b) = (exponents(a.iter().copied().flatten().copied()), exponents(b.iter().flatten().copied()));
    // Of two mantissas' product the exponent may be one greater.
    a.0 + b.0 > 127 && a.1 + b.1 + 1 < 255 + 127
}

/// Sums over a row of words.
fn add<const EXACT: bool>(sums: &mut [f32; COLUMNS], row: &[u32], b: &[[u32; COLUMNS]]) {
    // Rounded once: a product that is exact needs no fused operation for that.
    let plus = |sum: f32, x: f32, y: f32| flushed(if EXACT { sum + x * y } else { x.mul_add(y, sum) });
    for (&word, words) in row.iter().zip(b) {
        let (x, y) = (first(word), second(word));
        for (sum, &other) in sums.iter_mut().zip(words) {
            *sum = plus(*sum, y, second(other));
            *sum = plus(*sum, x, first(other));
        }
    }
}

pub(super) fn tile(a: &[&[u32]], b: &[[u32; COLUMNS]], sums: &mut [[f32; COLUMNS]], join: Join<'_>) {
    let exact = products_are_exact(a, b);
    for (i, (row, sums)) in a.iter().zip(sums).enumerate() {
        let mut part = match join {
            Join::Chain => sums.map(flushed),
            Join::Promote { .. } => [0.0; COLUMNS],
        };
        match exact {
            true => add::<true>(&mut part, row, b),
            false => add::<false>(&mut part, row, b),
        }
        match join {
            Join::Chain => *sums = part,
            Join::Promote { rows, columns } => {
                for ((sum, part), column) in sums.iter_mut().zip(part).zip(columns) {
                    *sum += rows[i] * column * part;
                }
            }
        }
    }
}
