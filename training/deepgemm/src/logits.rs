//! Logits of a multi-query indexer: which keys a query attends to.

use crate::e4m3::E4m3;
use crate::gemm::Cpu;
use crate::view::{View, ViewMut};
use crate::{Result, demand};

/// Products that are kept at once.
const PRODUCTS: usize = 1 << 20;

/// Queries of `heads` heads, and keys that all heads share.
#[derive(Clone, Copy, Debug)]
pub struct Indexer<'a> {
    /// `[queries * heads, width]`: the heads of a query follow each other.
    pub queries: View<'a, E4m3>,
    /// `[keys, width]`.
    pub keys: View<'a, E4m3>,
    /// A scale for each key.
    pub key_scales: &'a [f32],
    /// `[queries, heads]`: what each head counts.
    pub weights: View<'a, f32>,
    /// For each query, the first key that it sees, and the one behind the last.
    pub seen: &'a [(u32, u32)],
}

impl Indexer<'_> {
    /// All but the result.
    pub(crate) fn check_inputs(&self) -> Result<()> {
        let ([queries, heads], [keys, width]) = (self.weights.shape(), self.keys.shape());
        demand(self.queries.shape() == [queries * heads, width], "queries", || {
            let expected = [queries * heads, width];
            format!(
                "has shape {:?}, not {expected:?} for {queries} queries of {heads} heads",
                self.queries.shape()
            )
        })?;
        demand(self.key_scales.len() == keys, "key_scales", || {
            format!("has {} numbers for {keys} keys", self.key_scales.len())
        })?;
        let wrong = self.key_scales.iter().position(|scale| !scale.is_finite());
        demand(wrong.is_none(), "key_scales", || {
            format!("{} of key {} is no scale", self.key_scales[wrong.unwrap_or(0)], wrong.unwrap_or(0))
        })?;
        for query in 0..queries {
            let wrong = self.weights.row(query).iter().find(|weight| !weight.is_finite());
            demand(wrong.is_none(), "weights", || format!("query {query} has a weight that is no number"))?;
        }
        demand(self.seen.len() == queries, "seen", || {
            format!("has {} rows for {queries} queries", self.seen.len())
        })?;
        let outside = self.seen.iter().position(|(from, to)| from > to || *to as usize > keys);
        demand(outside.is_none(), "seen", || {
            let query = outside.unwrap_or(0);
            format!("query {query} sees keys {:?} of {keys}", self.seen[query])
        })
    }

    fn check(&self, d: &ViewMut<'_, f32>) -> Result<()> {
        self.check_inputs()?;
        let (queries, keys) = (self.weights.shape()[0], self.keys.shape()[0]);
        demand(d.shape() == [queries, keys], "d", || {
            format!("has shape {:?}, not {:?}", d.shape(), [queries, keys])
        })
    }
}

impl Cpu {
    /// `d[query, key]` is the sum over the heads of `max(q · k * scale of k, 0) * weight`, the heads in order;
    /// -infinity for keys that the query doesn't see.
    ///
    /// # Errors
    /// If shapes don't fit, a scale or weight is no number, or a query sees keys that aren't there.
    pub fn fp8_mqa_logits(&self, of: &Indexer<'_>, mut d: ViewMut<'_, f32>) -> Result<()> {
        of.check(&d)?;
        let ([queries, heads], keys) = (of.weights.shape(), of.keys.shape()[0]);
        let at_once = (PRODUCTS / (heads * keys).max(1)).max(1);
        let mut products = vec![0.0f32; at_once.min(queries) * heads * keys];
        for first in (0..queries).step_by(at_once) {
            let count = at_once.min(queries - first);
            let rows = of.queries.rows(first * heads, (first + count) * heads);
            let out = ViewMut::new(&mut products, [count * heads, keys])?;
            self.multiply(&rows, &of.keys, None, None, out);
            for i in 0..count {
                let (query, row) = (first + i, d.row_mut(first + i));
                let (from, to) = (of.seen[query].0 as usize, of.seen[query].1 as usize);
                row.fill(f32::NEG_INFINITY);
                row[from..to].fill(0.0);
                for (head, weight) in of.weights.row(query).iter().enumerate() {
                    let products = &products[(i * heads + head) * keys..][..keys];
                    for key in from..to {
                        row[key] += (products[key] * of.key_scales[key]).max(0.0) * weight;
                    }
                }
            }
        }
        Ok(())
    }
}
