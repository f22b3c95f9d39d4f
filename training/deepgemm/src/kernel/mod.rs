//! Tiles of a product: a few rows by [`COLUMNS`] columns, over some of K.
//!
//! Numbers are BF16, two of a row in a word, the first in the lower half. For each word the second product is added,
//! then the first; each product and sum is rounded to `f32` together, once. Numbers and sums below the least normal
//! one are zero. That is what the instruction VDPBF16PS does (Intel 64 and IA-32 Architectures Software Developer's
//! Manual, volume 2).

mod avx512;
mod portable;

/// Columns of a tile.
pub(crate) const COLUMNS: usize = 64;
/// Most rows of a tile.
pub(crate) const ROWS: usize = 6;

/// How the sum over a part of K joins what was there.
#[derive(Clone, Copy)]
pub(crate) enum Join<'a> {
    /// It goes on from it.
    Chain,
    /// It begins with zero, is multiplied by the product of the scales of row and column, and added.
    Promote {
        /// One for each row.
        rows: &'a [f32],
        /// One for each column.
        columns: &'a [f32; COLUMNS],
    },
}

/// Which code computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    /// Any processor.
    Portable,
    /// Processors with AVX-512 F and BF16.
    Avx512,
}

impl Path {
    /// The fastest that this processor has.
    pub(crate) fn detect() -> Self {
        if avx512::is_there() { Self::Avx512 } else { Self::Portable }
    }

    /// Adds `a[rows, words] · b[words, COLUMNS]` to `sums[rows, COLUMNS]`; rows of `a` are as long as `b` has words.
    pub(crate) fn tile(
        self,
        a: &[&[u32]],
        b: &[[u32; COLUMNS]],
        sums: &mut [[f32; COLUMNS]],
        join: Join<'_>,
    ) {
        assert!(a.len() <= ROWS && a.len() == sums.len() && a.iter().all(|row| row.len() == b.len()));
        if let Join::Promote { rows, .. } = join {
            assert_eq!(rows.len(), a.len());
        }
        match self {
            Self::Portable => portable::tile(a, b, sums, join),
            Self::Avx512 => avx512::tile(a, b, sums, join),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS, Join, Path, ROWS};
    use ember_types::layout::SplitMix64;

    struct Random(SplitMix64);

    impl Random {
        /// A BF16 number whose exponent is in a range.
        fn number(&mut self, exponents: std::ops::Range<u16>) -> u16 {
            let exponent = exponents.start + self.0.below((exponents.end - exponents.start).into()) as u16;
            (self.0.next() as u16 & 0x807f) | exponent << 7
        }
        fn word(&mut self, exponents: std::ops::Range<u16>) -> u32 {
            u32::from(self.number(exponents.clone())) << 16 | u32::from(self.number(exponents))
        }
    }

    #[test]
    fn both_paths_give_the_same_bits() {
        if Path::detect() == Path::Portable {
            ember_cluster_tests::skip("both_paths_give_the_same_bits", "this processor has no AVX-512 BF16");
            return;
        }
        let mut random = Random(SplitMix64(1));
        // Ordinary numbers; those whose products vanish; denormal ones; all finite ones.
        for exponents in [120..134, 60..68, 50..80, 0..70, 185..195, 0..255] {
            for rows in 1..=ROWS {
                for words in [1, 2, 64, 99] {
                    let a: Vec<Vec<u32>> = (0..rows)
                        .map(|_| (0..words).map(|_| random.word(exponents.clone())).collect())
                        .collect();
                    let a: Vec<&[u32]> = a.iter().map(Vec::as_slice).collect();
                    let b: Vec<[u32; COLUMNS]> =
                        (0..words).map(|_| std::array::from_fn(|_| random.word(exponents.clone()))).collect();
                    let begin: Vec<[f32; COLUMNS]> = (0..rows)
                        .map(|_| std::array::from_fn(|_| f32::from_bits(random.word(exponents.clone()))))
                        .collect();
                    let scales: Vec<f32> = (0..rows).map(|_| 1.0 + random.number(100..127) as f32).collect();
                    let columns = std::array::from_fn(|_| 0.01 * random.number(100..127) as f32);
                    for join in [Join::Chain, Join::Promote { rows: &scales, columns: &columns }] {
                        let (mut one, mut other) = (begin.clone(), begin.clone());
                        Path::Portable.tile(&a, &b, &mut one, join);
                        Path::Avx512.tile(&a, &b, &mut other, join);
                        let bits = |x: &[[f32; COLUMNS]]| {
                            x.as_flattened().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
                        };
                        let same = bits(&one).iter().zip(bits(&other)).all(|(a, b)| {
                            let nan = |bits: u32| f32::from_bits(bits).is_nan();
                            *a == b || (nan(*a) && nan(b))
                        });
                        assert!(same, "exponents {exponents:?}, {rows} rows, {words} words");
                    }
                }
            }
        }
    }
}
