//! Products on the processors of this machine.

use crate::e4m3::E4m3;
use crate::kernel::{AMX_ROWS, COLUMNS, Join, Order, Path, ROWS, STEP, STRIP, Tiles};
use crate::view::{Scales, View, ViewMut};
use crate::{BLOCK, Result, demand};
use half::bf16;
use std::ops::Range;

/// Words of K that a tile goes through at once: what of B belongs to them stays in the first cache.
const WORDS: usize = 64;
/// Rows whose sums are kept at once.
const ROWS_AT_ONCE: usize = 4 * ROWS * AMX_ROWS / 2;

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
    /// Sums in this order, by the fastest code that this machine has for it.
    pub fn with_order(self, order: Order) -> Self {
        Self { path: Path::with_order(order), ..self }
    }
    /// Code that every processor can run, in the same order: results are the same.
    pub fn portable(self) -> Self {
        Self { path: Path::Portable(self.order()), ..self }
    }
    /// The order of its sums, on which results depend.
    pub fn order(&self) -> Order {
        self.path.order()
    }
    /// What computes, for people: `AMX BF16`, `AVX-512 BF16` or `portable`.
    pub fn name(&self) -> &'static str {
        match self.path {
            Path::Portable(_) => "portable",
            Path::Avx512 => "AVX-512 BF16",
            Path::Amx => "AMX BF16",
        }
    }

    /// `d = c + a bᵀ` for BF16 matrices `a[m, k]` and `b[n, k]`: products are summed in `f32` along K, in the order
    /// of [`Self::order`]; `c`, if there is one, is added to the sum, which is then rounded to `d`'s type.
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
        let words = k.div_ceil(2).next_multiple_of(self.path.granules()[1]);
        let rows = if self.path == Path::Amx { strips_of(a, words) } else { words_of(a, words) };
        let product = Product { path: self.path, a: &rows, words, b, scales, c };
        // Each thread has columns of its own, or, if there are too few, rows of them too.
        let columns = d.rows_by_columns(COLUMNS);
        let parts = self.threads.div_ceil(columns.len().max(1));
        let granule = if self.path == Path::Amx { AMX_ROWS } else { ROWS };
        let each = m.div_ceil(parts).next_multiple_of(granule).max(granule);
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
            let tiles = (self.path == Path::Amx).then(Tiles::new);
            let (mut words, mut packed) = (Vec::new(), None);
            for (panel, from, out) in share {
                if packed.replace(panel) != Some(panel) {
                    product.pack(panel, &mut words);
                }
                product.panel(tiles.as_ref(), panel, &words, from, out);
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

/// The numbers of each row in pairs, zeros behind the last.
fn words_of<F: Factor>(view: &View<'_, F>, words: usize) -> Vec<u32> {
    let rows = view.shape()[0];
    let mut out = vec![0; rows * words];
    for (row, out) in out.chunks_mut(words.max(1)).enumerate() {
        pair_up(view.row(row), out);
    }
    out
}

/// The same in strips of [`AMX_ROWS`] rows, zeros behind the last one, and these in steps of [`STEP`] words: the words
/// that a register takes lie together.
fn strips_of<F: Factor>(view: &View<'_, F>, words: usize) -> Vec<u32> {
    let rows = view.shape()[0];
    let mut out = vec![0; rows.next_multiple_of(AMX_ROWS) * words];
    for (strip, out) in out.chunks_mut((AMX_ROWS * words).max(1)).enumerate() {
        let rows = strip * AMX_ROWS..((strip + 1) * AMX_ROWS).min(rows);
        for (step, out) in out.chunks_mut(STRIP).enumerate() {
            for (row, out) in rows.clone().zip(out.chunks_mut(STEP)) {
                let row = view.row(row);
                pair_up(&row[(step * 2 * STEP).min(row.len())..((step + 1) * 2 * STEP).min(row.len())], out);
            }
        }
    }
    out
}

/// Two numbers in each word, a zero behind the last if they are odd.
fn pair_up<F: Factor>(row: &[F], out: &mut [u32]) {
    let pairs = row.chunks_exact(2);
    if let [last] = *pairs.remainder() {
        out[row.len() / 2] = last.bits().into();
    }
    for (word, pair) in out.iter_mut().zip(pairs) {
        *word = u32::from(pair[1].bits()) << 16 | u32::from(pair[0].bits());
    }
}

struct Product<'a, F, D> {
    path: Path,
    /// Rows of `words` words, or strips of them.
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
        // A few words of each column at a time, so that what is written stays in the first cache.
        let mut some = [0; STEP];
        for (step, out) in out.chunks_mut(STEP).enumerate() {
            for (column, row) in self.columns(panel).enumerate() {
                let row = self.b.row(row);
                let from = (step * 2 * STEP).min(row.len());
                some.fill(0);
                pair_up(&row[from..(from + 2 * STEP).min(row.len())], &mut some);
                for (words, word) in out.iter_mut().zip(some) {
                    words[column] = word;
                }
            }
        }
    }

    /// Columns `panel` of the result's rows from `from` on.
    fn panel(
        &self,
        tiles: Option<&Tiles>,
        panel: usize,
        b: &[[u32; COLUMNS]],
        from: usize,
        mut out: Vec<&mut [D]>,
    ) {
        let granule = self.path.granules()[0];
        let mut sums = vec![[0.0; COLUMNS]; ROWS_AT_ONCE.min(out.len().next_multiple_of(granule))];
        for (i, rows) in out.chunks_mut(ROWS_AT_ONCE).enumerate() {
            let from = from + i * ROWS_AT_ONCE;
            let sums = &mut sums[..rows.len().next_multiple_of(granule)];
            sums.fill([0.0; COLUMNS]);
            self.sum(tiles, panel, b, from, sums);
            for (i, (row, sums)) in rows.iter_mut().zip(sums).enumerate() {
                if let Some(c) = &self.c {
                    let old = &c.row(from + i)[self.columns(panel)];
                    sums.iter_mut().zip(old).for_each(|(sum, old)| *sum += old.to_f32());
                }
                row.iter_mut().zip(sums).for_each(|(number, sum)| *number = D::from_f32(*sum));
            }
        }
    }

    fn sum(
        &self,
        tiles: Option<&Tiles>,
        panel: usize,
        b: &[[u32; COLUMNS]],
        from: usize,
        sums: &mut [[f32; COLUMNS]],
    ) {
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
            match tiles {
                Some(tiles) => self.strips(tiles, block, words, b, from, sums, columns.as_ref()),
                None => self.rows(block, words, b, from, sums, columns.as_ref()),
            }
        }
    }

    /// Adds the products of some words to sums of rows from `from` on.
    fn rows(
        &self,
        block: usize,
        words: Range<usize>,
        b: &[[u32; COLUMNS]],
        from: usize,
        sums: &mut [[f32; COLUMNS]],
        columns: Option<&[f32; COLUMNS]>,
    ) {
        for (i, sums) in sums.chunks_mut(ROWS).enumerate() {
            let first = from + i * ROWS;
            let mut a: [&[u32]; ROWS] = [&[]; ROWS];
            for (i, a) in a[..sums.len()].iter_mut().enumerate() {
                *a = &self.a[(first + i) * self.words..][words.clone()];
            }
            let rows: [f32; ROWS] = self.scales_of(first, block);
            let join = Join::of(&rows[..sums.len()], columns);
            self.path.tile(&a[..sums.len()], &b[words.clone()], sums, join);
        }
    }

    /// The same with AMX.
    #[expect(clippy::too_many_arguments, reason = "those of `rows`, and the registers")]
    fn strips(
        &self,
        tiles: &Tiles,
        block: usize,
        words: Range<usize>,
        b: &[[u32; COLUMNS]],
        from: usize,
        sums: &mut [[f32; COLUMNS]],
        columns: Option<&[f32; COLUMNS]>,
    ) {
        let (strips, _) = sums.as_chunks_mut::<AMX_ROWS>();
        for (i, sums) in strips.iter_mut().enumerate() {
            let first = from + i * AMX_ROWS;
            let a = &self.a[first * self.words..][words.start * AMX_ROWS..words.end * AMX_ROWS];
            let rows: [f32; AMX_ROWS] = self.scales_of(first, block);
            tiles.tile(a, &b[words.clone()], sums, Join::of(&rows, columns));
        }
    }

    /// The scales of rows of A from `first` on, zero for rows that aren't there.
    fn scales_of<const N: usize>(&self, first: usize, block: usize) -> [f32; N] {
        let Some((of_a, ..)) = &self.scales else { return [0.0; N] };
        let rows = of_a.shape()[0];
        std::array::from_fn(|i| if first + i < rows { of_a.get(first + i, block) } else { 0.0 })
    }
}
