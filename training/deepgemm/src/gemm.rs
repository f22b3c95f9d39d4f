//! Products on the processors of this machine.

use crate::e4m3::E4m3;
use crate::kernel::{COLUMNS, Join, Path, ROWS};
use crate::view::{Scales, View, ViewMut};
use crate::{BLOCK, Result, demand};
use half::bf16;
use std::ops::Range;

/// Words of K that a tile goes through at once: what of B belongs to them stays in the first cache.
const WORDS: usize = 128;
/// Rows whose sums are kept at once.
const ROWS_AT_ONCE: usize = 64 * ROWS;

/// Numbers of a result.
pub trait Element: Copy + Send + Sync {
    /// Exactly.
    fn to_f32(self) -> f32;
    /// The nearest one.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    fn to_f32(self) -> f32 {
        self.into()
    }
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Numbers that are multiplied: each is a BF16 number too.
pub(crate) trait Factor: Copy + Send + Sync {
    fn bits(self) -> u16;
}

impl Factor for bf16 {
    fn bits(self) -> u16 {
        self.to_bits()
    }
}

impl Factor for E4m3 {
    fn bits(self) -> u16 {
        // Three bits of mantissa are exact in seven.
        (self.to_f32().to_bits() >> 16) as u16
    }
}

/// What the rows of B have scales for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recipe {
    /// A scale for each row of A, and for each 128 rows of B (1D2D).
    Blocks,
    /// A scale for each row of A, and for each row of B (1D1D).
    Rows,
}

/// An FP8 matrix with its scales, those of each 128 columns.
#[derive(Clone, Copy, Debug)]
pub struct Scaled<'a> {
    /// The numbers.
    pub values: View<'a, E4m3>,
    /// Their scales.
    pub scales: Scales<'a>,
}

impl Scaled<'_> {
    /// Rows `[from, to)` of a matrix whose rows have a scale each.
    pub(crate) fn rows(&self, from: usize, to: usize) -> Self {
        Self { values: self.values.rows(from, to), scales: self.scales.rows(from, to) }
    }
}

/// Products on the processors of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    pub(crate) threads: usize,
    path: Path,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// All processors that this process may use, and the fastest code that they have.
    pub fn new() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads, path: Path::detect() }
    }
    /// So many threads, at least one. Results are the same with any number.
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads: threads.max(1), ..self }
    }
    /// Code that every processor can run. Results are the same.
    pub fn portable(self) -> Self {
        Self { path: Path::Portable, ..self }
    }
    /// What computes, for people: `AVX-512 BF16` or `portable`.
    pub fn name(&self) -> &'static str {
        match self.path {
            Path::Portable => "portable",
            Path::Avx512 => "AVX-512 BF16",
        }
    }

    /// `d = c + a bᵀ` for BF16 matrices `a[m, k]` and `b[n, k]`: products are summed in `f32` along K, two at a time,
    /// the second first; `c`, if there is one, is added to the sum, which is then rounded to `d`'s type.
    ///
    /// # Errors
    /// If shapes don't fit.
    pub fn bf16_gemm_nt<D: Element>(
        &self,
        a: View<'_, bf16>,
        b: View<'_, bf16>,
        c: Option<View<'_, D>>,
        d: ViewMut<'_, D>,
    ) -> Result<()> {
        check_shapes(a.shape(), b.shape(), c.as_ref(), &d)?;
        self.multiply(&a, &b, None, c, d);
        Ok(())
    }

    /// `d = c + a bᵀ` for FP8 matrices `a[m, k]` and `b[n, k]`. `a` has scales `[m, ceil(k / 128)]`; `b` has
    /// `[ceil(n / 128), ceil(k / 128)]` or `[n, ceil(k / 128)]`, by `recipe`. The products of each 128 columns are
    /// summed; these sums, times the product of both scales, are added in `f32`, then `c`; that is rounded to `d`'s
    /// type.
    ///
    /// # Errors
    /// If shapes don't fit, or a scale is infinite or no number.
    pub fn fp8_gemm_nt<D: Element>(
        &self,
        a: Scaled<'_>,
        b: Scaled<'_>,
        c: Option<View<'_, D>>,
        d: ViewMut<'_, D>,
        recipe: Recipe,
    ) -> Result<()> {
        check_shapes(a.values.shape(), b.values.shape(), c.as_ref(), &d)?;
        check_scales_of_rows(&a)?;
        check_scales_of_weights(&b, recipe)?;
        self.multiply_scaled(a, b, c, d, recipe);
        Ok(())
    }

    /// A product whose arguments were checked.
    pub(crate) fn multiply_scaled<D: Element>(
        &self,
        a: Scaled<'_>,
        b: Scaled<'_>,
        c: Option<View<'_, D>>,
        d: ViewMut<'_, D>,
        recipe: Recipe,
    ) {
        self.multiply(&a.values, &b.values, Some((a.scales, b.scales, recipe)), c, d);
    }

    pub(crate) fn multiply<F: Factor, D: Element>(
        &self,
        a: &View<'_, F>,
        b: &View<'_, F>,
        scales: Option<(Scales<'_>, Scales<'_>, Recipe)>,
        c: Option<View<'_, D>>,
        d: ViewMut<'_, D>,
    ) {
        let [m, k] = a.shape();
        let words = k.div_ceil(2);
        let rows = words_of(a);
        let product = Product { path: self.path, a: &rows, words, b, scales, c };
        // Each thread has columns of its own, or, if there are too few, rows of them too.
        let columns = d.rows_by_columns(COLUMNS);
        let parts = self.threads.div_ceil(columns.len().max(1));
        let each = m.div_ceil(parts).next_multiple_of(ROWS).max(ROWS);
        let mut tasks = Vec::new();
        for (panel, mut rows) in columns.into_iter().enumerate() {
            for from in (0..m).step_by(each) {
                let rest = rows.split_off(each.min(rows.len()));
                tasks.push((panel, from, std::mem::replace(&mut rows, rest)));
            }
        }
        let share = tasks.len().div_ceil(self.threads).max(1);
        let mut shares = Vec::new();
        while !tasks.is_empty() {
            let rest = tasks.split_off(share.min(tasks.len()));
            shares.push(std::mem::replace(&mut tasks, rest));
        }
        let work = |share: Vec<(usize, usize, Vec<&mut [D]>)>| {
            let (mut words, mut packed) = (Vec::new(), None);
            for (panel, from, out) in share {
                if packed.replace(panel) != Some(panel) {
                    product.pack(panel, &mut words);
                }
                product.panel(panel, &words, from, out);
            }
        };
        let Some(last) = shares.pop() else { return };
        std::thread::scope(|scope| {
            for share in shares {
                scope.spawn(|| work(share));
            }
            work(last);
        });
    }
}

fn check_shapes<D>(
    [m, k]: [usize; 2],
    [n, other]: [usize; 2],
    c: Option<&View<'_, D>>,
    d: &ViewMut<'_, D>,
) -> Result<()> {
    demand(k == other, "b", || format!("has {other} columns, and `a` has {k}: they must be equal"))?;
    demand(d.shape() == [m, n], "d", || format!("has shape {:?}, not {:?}", d.shape(), [m, n]))?;
    let shape = c.map_or([m, n], View::shape);
    demand(shape == [m, n], "c", || format!("has shape {shape:?}, not {:?}", [m, n]))
}

/// Of `a`, whose rows have a scale each.
pub(crate) fn check_scales_of_rows(a: &Scaled<'_>) -> Result<()> {
    let [m, k] = a.values.shape();
    a.scales.check("scales of a", [m, k.div_ceil(BLOCK)])
}

/// Of `b`.
pub(crate) fn check_scales_of_weights(b: &Scaled<'_>, recipe: Recipe) -> Result<()> {
    let [n, k] = b.values.shape();
    let rows = match recipe {
        Recipe::Blocks => n.div_ceil(BLOCK),
        Recipe::Rows => n,
    };
    b.scales.check("scales of b", [rows, k.div_ceil(BLOCK)])
}

/// The numbers of each row in pairs, a zero behind the last if they are odd.
fn words_of<F: Factor>(view: &View<'_, F>) -> Vec<u32> {
    let [rows, columns] = view.shape();
    let mut words = Vec::with_capacity(rows * columns.div_ceil(2));
    for row in 0..rows {
        words.extend(view.row(row).chunks(2).map(word));
    }
    words
}

fn word<F: Factor>(pair: &[F]) -> u32 {
    let second = pair.get(1).map_or(0, |x| x.bits());
    u32::from(second) << 16 | u32::from(pair[0].bits())
}

struct Product<'a, F, D> {
    path: Path,
    /// Rows of `words` words.
    a: &'a [u32],
    words: usize,
    b: &'a View<'a, F>,
    scales: Option<(Scales<'a>, Scales<'a>, Recipe)>,
    c: Option<View<'a, D>>,
}

impl<F: Factor, D: Element> Product<'_, F, D> {
    fn columns(&self, panel: usize) -> Range<usize> {
        panel * COLUMNS..((panel + 1) * COLUMNS).min(self.b.shape()[0])
    }

    /// The rows of B that are columns of the result, a word of each beside the other.
    fn pack(&self, panel: usize, out: &mut Vec<[u32; COLUMNS]>) {
        out.clear();
        out.resize(self.words, [0; COLUMNS]);
        for (column, row) in self.columns(panel).enumerate() {
            for (words, pair) in out.iter_mut().zip(self.b.row(row).chunks(2)) {
                words[column] = word(pair);
            }
        }
    }

    /// Columns `panel` of the result's rows from `from` on.
    fn panel(&self, panel: usize, b: &[[u32; COLUMNS]], from: usize, mut out: Vec<&mut [D]>) {
        let mut sums = vec![[0.0; COLUMNS]; ROWS_AT_ONCE.min(out.len())];
        for (i, rows) in out.chunks_mut(ROWS_AT_ONCE).enumerate() {
            let from = from + i * ROWS_AT_ONCE;
            let sums = &mut sums[..rows.len()];
            sums.fill([0.0; COLUMNS]);
            self.sum(panel, b, from, sums);
            for (i, (row, sums)) in rows.iter_mut().zip(sums).enumerate() {
                let old = self.c.as_ref().map(|c| &c.row(from + i)[self.columns(panel)]);
                for (j, (number, sum)) in row.iter_mut().zip(sums).enumerate() {
                    *number = D::from_f32(old.map_or(*sum, |old| old[j].to_f32() + *sum));
                }
            }
        }
    }

    fn sum(&self, panel: usize, b: &[[u32; COLUMNS]], from: usize, sums: &mut [[f32; COLUMNS]]) {
        let step = if self.scales.is_some() { BLOCK / 2 } else { WORDS };
        for (block, words) in (0..self.words).step_by(step).enumerate() {
            let words = words..(words + step).min(self.words);
            let columns = self.scales.as_ref().map(|(_, of_b, recipe)| {
                let column = |j: usize| match (self.columns(panel).nth(j), recipe) {
                    (None, _) => 0.0,
                    (Some(row), Recipe::Rows) => of_b.get(row, block),
                    (Some(row), Recipe::Blocks) => of_b.get(row / BLOCK, block),
                };
                std::array::from_fn(column)
            });
            for (i, sums) in sums.chunks_mut(ROWS).enumerate() {
                let first = from + i * ROWS;
                let mut a: [&[u32]; ROWS] = [&[]; ROWS];
                let mut rows = [0.0; ROWS];
                for i in 0..sums.len() {
                    a[i] = &self.a[(first + i) * self.words..][words.clone()];
                    rows[i] = self.scales.as_ref().map_or(0.0, |(of_a, ..)| of_a.get(first + i, block));
                }
                let join = match &columns {
                    None => Join::Chain,
                    Some(columns) => Join::Promote { rows: &rows[..sums.len()], columns },
                };
                self.path.tile(&a[..sums.len()], &b[words.clone()], sums, join);
            }
        }
    }
}
