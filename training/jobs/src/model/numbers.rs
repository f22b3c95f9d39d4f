//! Loops over `f32` rows, in an order that never changes.

use half::bf16;

/// `c[m, n] += a[m, k] b[k, n]`.
pub(crate) fn add_product(c: &mut [f32], a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) {
    assert!(c.len() == m * n && a.len() == m * k && b.len() == k * n, "shapes of a product");
    if n == 0 || k == 0 {
        return;
    }
    for (c, a) in c.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
        for (&factor, row) in a.iter().zip(b.chunks_exact(n)) {
            if factor != 0.0 {
                add_scaled(c, factor, row);
            }
        }
    }
}

/// `to += factor * from`.
pub(crate) fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to += factor * x);
}

/// `to += from`.
pub(crate) fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to += x);
}

/// The nearest BF16 numbers.
pub(crate) fn rounded(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|x| bf16::from_f32(*x)).collect()
}

/// Sum of products, in eight sums that are added in the end.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// `x[rows, columns]` with rows and columns swapped.
pub(crate) fn transposed(x: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    const TILE: usize = 16;
    assert!(x.len() == rows * columns, "shape of a matrix");
    let mut out = vec![0.0; x.len()];
    for i in (0..rows).step_by(TILE) {
        for j in (0..columns).step_by(TILE) {
            for row in i..(i + TILE).min(rows) {
                for column in j..(j + TILE).min(columns) {
                    out[column * rows + row] = x[row * columns + column];
                }
            }
        }
    }
    out
}

/// 1 / (1 + e⁻ˣ).
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Numbers between 0 and 1, the same for the same words.
pub(crate) struct Random(u64);

impl Random {
    /// A sequence of its own for each seed and name.
    pub(crate) fn named(seed: u64, name: &str) -> Self {
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, hash))
    }
    /// SplitMix64 (Steele, Lea and Flood, 2014).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
    /// From `[0, bound)`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
    /// From `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Normally distributed, with variance 1 (Box and Muller).
    pub(crate) fn normal(&mut self) -> f32 {
        let (a, b) = (1.0 - self.unit(), self.unit());
        ((-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32
    }
}
