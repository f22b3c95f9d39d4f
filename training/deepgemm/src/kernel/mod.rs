//! Tiles of a product: a few rows by [`COLUMNS`] columns, over some of K.
//!
//! Numbers are BF16, two of a row in a word, the first in the lower half. In which order they are summed says
//! [`Order`]. Numbers and sums below the least normal one are zero, as the instructions have it.

mod amx;
mod avx512;
mod portable;

pub(crate) use amx::{ROWS as AMX_ROWS, STRIP, Tiles};

/// Columns of a tile.
pub(crate) const COLUMNS: usize = 64;
/// Words of a step of [`Order::EvenOdd`].
pub(crate) const STEP: usize = 16;
/// Most rows of a tile, but for AMX.
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

impl<'a> Join<'a> {
    /// Without scales of columns it goes on.
    pub(crate) fn of(rows: &'a [f32], columns: Option<&'a [f32; COLUMNS]>) -> Self {
        columns.map_or(Self::Chain, |columns| Self::Promote { rows, columns })
    }
}

/// In which order products are summed along K. Results depend on it, in their last bits, and on nothing else: not on
/// the code, nor on the number of threads. Each product and sum is rounded to `f32` together, once, to the nearest;
/// denormal numbers and sums count as zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// One sum. Of each two columns the second's product is added, then the first's: what VDPBF16PS does.
    InTurn,
    /// In steps of 32 columns, the last filled up with zeros. The products of a step's even columns are summed, from
    /// zero on and in turn, and so are those of its odd ones; then both sums are added, and that to what was there:
    /// what TDPBF16PS does.
    EvenOdd,
}

/// Which code computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    /// Any processor, any order.
    Portable(Order),
    /// Processors with AVX-512 F and BF16: in turn.
    Avx512,
    /// Processors with AMX for BF16, if the kernel lets this process: even and odd columns apart.
    Amx,
}

impl Path {
    /// The fastest that this processor has.
    pub(crate) fn detect() -> Self {
        let mut found = [Order::EvenOdd, Order::InTurn].map(Self::with_order).into_iter();
        found.find(|path| !matches!(path, Self::Portable(_))).unwrap_or(Self::Portable(Order::InTurn))
    }
    /// The fastest that this processor has for an order.
    pub(crate) fn with_order(order: Order) -> Self {
        match order {
            Order::InTurn if avx512::is_there() => Self::Avx512,
            Order::EvenOdd if amx::is_there() => Self::Amx,
            _ => Self::Portable(order),
        }
    }
    pub(crate) fn order(self) -> Order {
        match self {
            Self::Portable(order) => order,
            Self::Avx512 => Order::InTurn,
            Self::Amx => Order::EvenOdd,
        }
    }
    /// Rows and words of A of which it takes a multiple.
    pub(crate) fn granules(self) -> [usize; 2] {
        match self {
            Self::Avx512 | Self::Portable(Order::InTurn) => [1, 1],
            Self::Portable(Order::EvenOdd) => [1, STEP],
            Self::Amx => [AMX_ROWS, STEP],
        }
    }

    /// Adds `a[rows, words] · b[words, COLUMNS]` to `sums[rows, COLUMNS]`; rows of `a` are as long as `b` has words.
    /// Not with AMX, which has [`Tiles`].
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
            Self::Portable(order) => portable::tile(order, a, b, sums, join),
            Self::Avx512 => avx512::tile(a, b, sums, join),
            Self::Amx => unreachable!("AMX has tiles of its own"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AMX_ROWS, COLUMNS, Join, Order, Path, ROWS, STEP, Tiles, amx, avx512};
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
        fn row(&mut self, exponents: std::ops::Range<u16>) -> [u32; COLUMNS] {
            std::array::from_fn(|_| self.word(exponents.clone()))
        }
    }

    /// Rows of `words` words times as many rows of columns, by both codes.
    fn check(random: &mut Random, path: Path, [rows, words]: [usize; 2], exponents: std::ops::Range<u16>) {
        let a: Vec<Vec<u32>> =
            (0..rows).map(|_| (0..words).map(|_| random.word(exponents.clone())).collect()).collect();
        let a: Vec<&[u32]> = a.iter().map(Vec::as_slice).collect();
        let b: Vec<[u32; COLUMNS]> = (0..words).map(|_| random.row(exponents.clone())).collect();
        let begin: Vec<[f32; COLUMNS]> =
            (0..rows).map(|_| random.row(exponents.clone()).map(f32::from_bits)).collect();
        let scales: Vec<f32> = (0..rows).map(|_| 1.0 + random.number(100..127) as f32).collect();
        let columns = std::array::from_fn(|_| 0.01 * random.number(100..127) as f32);
        for join in [Join::Chain, Join::Promote { rows: &scales, columns: &columns }] {
            let (mut one, mut other) = (begin.clone(), begin.clone());
            portable(path.order(), &a, &b, &mut one, join);
            match path {
                Path::Amx => by_amx(&a, &b, &mut other, join),
                _ => path.tile(&a, &b, &mut other, join),
            }
            same(&one, &other, &format!("exponents {exponents:?}, {rows} rows, {words} words"));
        }
    }

    fn portable(
        order: Order,
        a: &[&[u32]],
        b: &[[u32; COLUMNS]],
        sums: &mut [[f32; COLUMNS]],
        join: Join<'_>,
    ) {
        for (i, (a, sums)) in a.chunks(ROWS).zip(sums.chunks_mut(ROWS)).enumerate() {
            let join = match join {
                Join::Chain => join,
                Join::Promote { rows, columns } => Join::of(&rows[i * ROWS..][..a.len()], Some(columns)),
            };
            Path::Portable(order).tile(a, b, sums, join);
        }
    }

    fn by_amx(a: &[&[u32]], b: &[[u32; COLUMNS]], sums: &mut [[f32; COLUMNS]], join: Join<'_>) {
        let step = |step: usize| a.iter().flat_map(move |row| row[step * STEP..][..STEP].iter().copied());
        let strip: Vec<u32> = (0..b.len() / STEP).flat_map(step).collect();
        Tiles::new().tile(&strip, b, sums.try_into().unwrap(), join);
    }

    fn same(one: &[[f32; COLUMNS]], other: &[[f32; COLUMNS]], what: &str) {
        for (x, y) in one.as_flattened().iter().zip(other.as_flattened()) {
            let same = x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
            assert!(same, "{what}: {x:e} ({:#x}) and {y:e} ({:#x})", x.to_bits(), y.to_bits());
        }
    }

    /// Ordinary numbers; those whose products vanish, or nearly; denormal ones; great ones; all finite ones; all.
    const EXPONENTS: [std::ops::Range<u16>; 9] =
        [120..134, 60..68, 50..80, 45..60, 0..70, 0..2, 185..195, 0..255, 0..256];

    /// Sums that are a hair below the least normal number, and sums of nothing but zeros of both signs.
    fn check_edges(path: Path) {
        let rows = path.granules()[0].max(1);
        let number = |exponent: u32, sign: u32| exponent << 7 | sign << 15;
        let mut a = vec![vec![0; STEP]; rows];
        for own in [number(52, 1), number(51, 1), number(40, 1), number(0, 1), 0x8000_8000, 0] {
            // The first product is the least normal number, so that a sum from zero on gets near it too.
            a.iter_mut().for_each(|row| row[..2].copy_from_slice(&[number(64, 0), own]));
            let mut b = [[0; COLUMNS]; STEP];
            b[0][..COLUMNS / 2].fill(number(64, 0));
            for (j, word) in b[1].iter_mut().enumerate() {
                *word = number(40 + j as u32 % 32, 0) | 3;
            }
            for begin in [f32::MIN_POSITIVE, -f32::MIN_POSITIVE, f32::MIN_POSITIVE / 2.0, -0.0, 0.0] {
                let a: Vec<&[u32]> = a.iter().map(Vec::as_slice).collect();
                let (mut one, mut other) = (vec![[begin; COLUMNS]; rows], vec![[begin; COLUMNS]; rows]);
                portable(path.order(), &a, &b, &mut one, Join::Chain);
                match path {
                    Path::Amx => by_amx(&a, &b, &mut other, Join::Chain),
                    _ => path.tile(&a, &b, &mut other, Join::Chain),
                }
                same(&one, &other, &format!("{own:#x}, {begin:e}"));
            }
        }
    }

    #[test]
    fn both_paths_give_the_same_bits() {
        if !avx512::is_there() {
            ember_cluster_tests::skip("both_paths_give_the_same_bits", "this processor has no AVX-512 BF16");
            return;
        }
        let mut random = Random(SplitMix64(1));
        for exponents in EXPONENTS {
            for rows in 1..=ROWS {
                for words in [1, 2, 64, 99] {
                    check(&mut random, Path::Avx512, [rows, words], exponents.clone());
                }
            }
        }
        check_edges(Path::Avx512);
    }

    #[test]
    fn amx_gives_the_same_bits() {
        if !amx::is_there() {
            ember_cluster_tests::skip("amx_gives_the_same_bits", "no AMX, or the kernel keeps it");
            return;
        }
        let mut random = Random(SplitMix64(2));
        for exponents in EXPONENTS {
            for steps in [1, 2, 4, 7, 1, 1, 1] {
                check(&mut random, Path::Amx, [AMX_ROWS, steps * STEP], exponents.clone());
            }
        }
        check_edges(Path::Amx);
    }
}
