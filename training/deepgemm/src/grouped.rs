//! Products of several experts at once.

use crate::gemm::{Cpu, Element, Recipe, Scaled, check_scales_of_rows, check_scales_of_weights};
use crate::view::{View, ViewMut};
use crate::{BLOCK, Result, demand};

/// The rows of each group begin at a multiple of this.
pub const ALIGNMENT: usize = 128;

impl Cpu {
    /// Rows of several groups behind each other: row `i` of `d[m, n]` is row `i` of `a[m, k]` times the transpose of
    /// `b[g][n, k]`, where `g` is `groups[i]`. A group's rows follow each other from a multiple of [`ALIGNMENT`] on;
    /// rows of group -1 are padding, and what `d` has there stays.
    ///
    /// # Errors
    /// If shapes or scales don't fit, a group doesn't exist, comes twice, or begins elsewhere.
    pub fn fp8_gemm_nt_contiguous<D: Element>(
        &self,
        a: Scaled<'_>,
        b: &[Scaled<'_>],
        mut d: ViewMut<'_, D>,
        groups: &[i32],
        recipe: Recipe,
    ) -> Result<()> {
        let [m, k] = a.values.shape();
        demand(groups.len() == m, "groups", || format!("has {} rows, `a` has {m}", groups.len()))?;
        let n = d.shape()[1];
        for (g, b) in b.iter().enumerate() {
            demand(b.values.shape() == [n, k], "b", || {
                format!("group {g} has shape {:?}, not {:?}", b.values.shape(), [n, k])
            })?;
            check_scales_of_weights(b, recipe)?;
        }
        let scales = [m, k.div_ceil(BLOCK)];
        demand(a.scales.shape() == scales, "scales of a", || {
            format!("has shape {:?}, not {scales:?}", a.scales.shape())
        })?;
        demand(d.shape() == [m, n], "d", || format!("has shape {:?}, not {:?}", d.shape(), [m, n]))?;
        let segments = segments(groups, b.len())?;
        // Padding may have any.
        segments.iter().try_for_each(|&(from, to, _)| check_scales_of_rows(&a.rows(from, to)))?;
        for (from, to, group) in segments {
            self.multiply_scaled(a.rows(from, to), b[group], None, d.rows_mut(from, to), recipe);
        }
        Ok(())
    }

    /// Groups of up to `a[g][m, k]` rows each, of which the first `rows[g]` count: those of `d[g][m, n]` are
    /// `a[g] b[g]ᵀ`; what `d` has behind them stays.
    ///
    /// # Errors
    /// If shapes or scales don't fit, or a group has fewer rows than it says.
    pub fn fp8_gemm_nt_masked<D: Element>(
        &self,
        a: &[Scaled<'_>],
        b: &[Scaled<'_>],
        d: Vec<ViewMut<'_, D>>,
        rows: &[i32],
        recipe: Recipe,
    ) -> Result<()> {
        for (argument, count) in [("b", b.len()), ("d", d.len()), ("rows", rows.len())] {
            demand(count == a.len(), argument, || format!("has {count} groups, `a` has {}", a.len()))?;
        }
        let mut parts = Vec::with_capacity(rows.len());
        for (g, &count) in rows.iter().enumerate() {
            let ([m, k], [n, other]) = (a[g].values.shape(), b[g].values.shape());
            let fits = usize::try_from(count).ok().filter(|count| *count <= m);
            demand(fits.is_some(), "rows", || format!("group {g} has {m} rows, not {count}"))?;
            demand(k == other, "b", || format!("group {g} has {other} columns, and `a` has {k}"))?;
            demand(d[g].shape() == [m, n], "d", || {
                format!("group {g} has shape {:?}, not {:?}", d[g].shape(), [m, n])
            })?;
            let scales = [m, k.div_ceil(BLOCK)];
            demand(a[g].scales.shape() == scales, "scales of a", || {
                format!("group {g} has shape {:?}, not {scales:?}", a[g].scales.shape())
            })?;
            // What lies behind may be anything.
            let part = a[g].rows(0, fits.unwrap_or(0));
            check_scales_of_rows(&part)?;
            check_scales_of_weights(&b[g], recipe)?;
            parts.push(part);
        }
        for (g, (mut d, part)) in d.into_iter().zip(parts).enumerate() {
            self.multiply_scaled(part, b[g], None, d.rows_mut(0, part.values.shape()[0]), recipe);
        }
        Ok(())
    }

    /// Weight gradients of several experts: `d[g][m, n]` is `c[g] + a[g] b[g]ᵀ`, where `a[g][m, k]` and `b[g][n, k]`
    /// are the group's `k` rows of activations and gradients, transposed, with a scale for each row and 128 columns.
    /// `k` is a multiple of 128; with 0 `d` is `c`.
    ///
    /// # Errors
    /// If shapes or scales don't fit, or a `k` is no such multiple.
    pub fn fp8_gemm_nt_k_grouped(
        &self,
        a: &[Scaled<'_>],
        b: &[Scaled<'_>],
        c: &[View<'_, f32>],
        d: Vec<ViewMut<'_, f32>>,
    ) -> Result<()> {
        for (argument, count) in [("b", b.len()), ("c", c.len()), ("d", d.len())] {
            demand(count == a.len(), argument, || format!("has {count} groups, `a` has {}", a.len()))?;
        }
        for g in 0..a.len() {
            let ([m, k], [n, other]) = (a[g].values.shape(), b[g].values.shape());
            demand(k.is_multiple_of(BLOCK), "a", || {
                format!("group {g} has {k} columns, no multiple of {BLOCK}")
            })?;
            demand(k == other, "b", || format!("group {g} has {other} columns, and `a` has {k}"))?;
            for (argument, shape) in [("c", c[g].shape()), ("d", d[g].shape())] {
                demand(shape == [m, n], argument, || {
                    format!("group {g} has shape {shape:?}, not {:?}", [m, n])
                })?;
            }
            check_scales_of_rows(&a[g])?;
            check_scales_of_weights(&b[g], Recipe::Rows)?;
        }
        for (g, d) in d.into_iter().enumerate() {
            self.multiply_scaled(a[g], b[g], Some(c[g]), d, Recipe::Rows);
        }
        Ok(())
    }
}

/// From, to, group.
pub(crate) fn segments(groups: &[i32], count: usize) -> Result<Vec<(usize, usize, usize)>> {
    let mut found: Vec<(usize, usize, usize)> = Vec::new();
    for (row, &group) in groups.iter().enumerate() {
        if group == -1 {
            continue;
        }
        let known = usize::try_from(group).ok().filter(|group| *group < count);
        demand(known.is_some(), "groups", || {
            format!("{group} in row {row} is none of {count} groups, nor -1 for padding")
        })?;
        let group = known.unwrap_or(0);
        if let Some((_, to, last)) = found.last_mut()
            && (*to, *last) == (row, group)
        {
            *to += 1;
            continue;
        }
        demand(row.is_multiple_of(ALIGNMENT), "groups", || {
            format!("group {group} begins in row {row}, which is no multiple of {ALIGNMENT}")
        })?;
        demand(found.iter().all(|(.., other)| *other != group), "groups", || {
            format!("group {group} begins again in row {row}: its rows must follow each other")
        })?;
        found.push((row, row + 1, group));
    }
    Ok(found)
}
