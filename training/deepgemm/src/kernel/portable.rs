//! Both orders of the sums in plain code.

use super::{COLUMNS, Join, Order, STEP};

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

/// `sum + x * y`, rounded once. With `EXACT` the product needs no fused operation for that.
fn plus<const EXACT: bool>(sum: f32, x: f32, y: f32) -> f32 {
    if EXACT {
        return flushed(sum + x * y);
    }
    let joined = x.mul_add(y, sum);
    // What rounds up to the least normal number only because denormal ones have fewer bits is denormal.
    let wide = || (f64::from(x) * f64::from(y) + f64::from(sum)).abs();
    let least = f64::from(f32::MIN_POSITIVE);
    if joined.abs() == f32::MIN_POSITIVE && wide() < least - least / f64::from(1 << 25) {
        return 0.0f32.copysign(joined);
    }
    flushed(joined)
}

/// One sum, the second product of a word first.
fn in_turn<const EXACT: bool>(sums: &mut [f32; COLUMNS], row: &[u32], b: &[[u32; COLUMNS]]) {
    for (&word, words) in row.iter().zip(b) {
        let (x, y) = (first(word), second(word));
        for (sum, &other) in sums.iter_mut().zip(words) {
            *sum = plus::<EXACT>(*sum, y, second(other));
            *sum = plus::<EXACT>(*sum, x, first(other));
        }
    }
}

/// The first products of each step's words in a sum, and the second ones in another.
fn even_odd<const EXACT: bool>(sums: &mut [f32; COLUMNS], row: &[u32], b: &[[u32; COLUMNS]]) {
    for (row, b) in row.chunks(STEP).zip(b.chunks(STEP)) {
        let (mut even, mut odd) = ([0.0; COLUMNS], [0.0; COLUMNS]);
        for (&word, words) in row.iter().zip(b) {
            let (x, y) = (first(word), second(word));
            for ((even, odd), &other) in even.iter_mut().zip(&mut odd).zip(words) {
                *even = plus::<EXACT>(*even, x, first(other));
                *odd = plus::<EXACT>(*odd, y, second(other));
            }
        }
        for ((sum, even), odd) in sums.iter_mut().zip(even).zip(odd) {
            *sum = flushed(*sum + flushed(even + odd));
        }
    }
}

pub(super) fn tile(
    order: Order,
    a: &[&[u32]],
    b: &[[u32; COLUMNS]],
    sums: &mut [[f32; COLUMNS]],
    join: Join<'_>,
) {
    let exact = products_are_exact(a, b);
    for (i, (row, sums)) in a.iter().zip(sums).enumerate() {
        let mut part = match join {
            Join::Chain => sums.map(flushed),
            Join::Promote { .. } => [0.0; COLUMNS],
        };
        match (order, exact) {
            (Order::InTurn, true) => in_turn::<true>(&mut part, row, b),
            (Order::InTurn, false) => in_turn::<false>(&mut part, row, b),
            (Order::EvenOdd, true) => even_odd::<true>(&mut part, row, b),
            (Order::EvenOdd, false) => even_odd::<false>(&mut part, row, b),
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
