//! Attention to chosen tokens.

use crate::softmax::{Sums, dot, widen};
use crate::threads;
use crate::{Attended, CACHE_BYTES, Result, VALUE_WIDTH, WIDTH, cache, demand, demand_len, scale_of};
use half::bf16;

/// Queries that attend to chosen tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Prefill<'a> {
    /// Number of queries.
    pub queries: usize,
    /// Query heads.
    pub heads: usize,
    /// Numbers of a key: 576, or 512 without the part that carries the position.
    pub width: usize,
    /// `[queries, heads, width]`.
    pub q: &'a [bf16],
    /// `[tokens, width]`.
    pub kv: &'a [bf16],
    /// `[queries, chosen]`: tokens; those that aren't there, -1 for instance, count as none.
    pub indices: &'a [i32],
    /// For each query, how many of the chosen ones count; all if nothing is given.
    pub chosen: Option<&'a [i32]>,
    /// For each head the logit of a token with a value of zeros that every query attends to.
    pub sink: Option<&'a [f32]>,
    /// What logits are multiplied by; the root of 1/576 if nothing is given.
    pub scale: Option<f32>,
}

/// What came of it, by query and head.
#[derive(Clone, PartialEq, Debug)]
pub struct Prefilled {
    /// `[queries, heads, 512]`; zeros where a query has chosen nothing.
    pub out: Vec<bf16>,
    /// `[queries, heads]`: the greatest logit; -infinity where there is none.
    pub max_logits: Vec<f32>,
    /// `[queries, heads]`: natural logarithm of the sum of the exponentials of the logits, without the sink's;
    /// +infinity where there is none.
    pub lse: Vec<f32>,
}

/// How many of a row of indices count.
fn counts(chosen: Option<&[i32]>, rows: usize, columns: usize) -> Result<Vec<usize>> {
    let Some(chosen) = chosen else { return Ok(vec![columns; rows]) };
    demand(chosen.len() == rows, "chosen", || format!("has {} rows, not {rows}", chosen.len()))?;
    let count = |(row, &count): (usize, &i32)| {
        let fits = usize::try_from(count).ok().filter(|count| *count <= columns);
        demand(fits.is_some(), "chosen", || format!("row {row} says {count} of {columns} indices"))?;
        Ok(fits.unwrap_or(0))
    };
    chosen.iter().enumerate().map(count).collect()
}

fn check_sink(sink: Option<&[f32]>, heads: usize) -> Result<()> {
    let Some(sink) = sink else { return Ok(()) };
    demand(sink.len() == heads, "sink", || format!("has {} heads, not {heads}", sink.len()))?;
    demand(sink.iter().all(|x| !x.is_nan()), "sink", || "holds what is no number".into())
}

/// Sums of a query's heads over tokens; keys are `width` numbers each.
fn attend(q: &[f32], keys: &[f32], width: usize, scale: f32) -> Vec<Sums> {
    let head = |q: &[f32]| {
        let mut sums = Sums::new();
        let logits: Vec<f32> = keys.chunks_exact(width).map(|key| dot(q, key) * scale).collect();
        sums.add(&logits, |token| &keys[token * width..][..VALUE_WIDTH]);
        sums
    };
    q.chunks_exact(width).map(head).collect()
}

/// Attention of each query to the tokens chosen for it.
///
/// # Errors
/// If shapes don't fit.
pub fn sparse_prefill(of: &Prefill<'_>) -> Result<Prefilled> {
    let &Prefill { queries, heads, width, .. } = of;
    demand(width == WIDTH || width == VALUE_WIDTH, "width", || {
        format!("{width} is neither {WIDTH} nor {VALUE_WIDTH}")
    })?;
    demand_len(of.q.len(), "q", &[queries, heads, width])?;
    demand_len(of.kv.len(), "kv", &[of.kv.len() / width, width])?;
    let columns = of.indices.len().checked_div(queries).unwrap_or(0);
    demand_len(of.indices.len(), "indices", &[queries, columns])?;
    let counts = counts(of.chosen, queries, columns)?;
    check_sink(of.sink, heads)?;
    let scale = scale_of(of.scale)?;
    let tokens = of.kv.len() / width;
    let work = |query: usize| {
        let q = widen(&of.q[query * heads * width..][..heads * width]);
        let indices = &of.indices[query * columns..][..counts[query]];
        let there = indices.iter().filter_map(|i| usize::try_from(*i).ok()).filter(|i| *i < tokens);
        let keys: Vec<f32> = there.flat_map(|token| widen(&of.kv[token * width..][..width])).collect();
        attend(&q, &keys, width, scale)
    };
    let mut done = Prefilled { out: Vec::new(), max_logits: Vec::new(), lse: Vec::new() };
    for (at, sums) in threads::map(queries, work).into_iter().flatten().enumerate() {
        let (out, lse) = sums.finish(of.sink.map(|sink| sink[at % heads]));
        done.out.extend(out);
        done.max_logits.push(sums.greatest());
        done.lse.push(lse);
    }
    Ok(done)
}

/// Queries that attend to chosen tokens of the FP8 cache.
#[derive(Clone, Copy, Debug)]
pub struct SparseDecode<'a> {
    /// Number of requests.
    pub batch: usize,
    /// Queries of each.
    pub queries: usize,
    /// Query heads.
    pub heads: usize,
    /// `[batch, queries, heads, 576]`.
    pub q: &'a [bf16],
    /// `[pages * 64, 656]` bytes, from [`quantise`](crate::quantise).
    pub cache: &'a [u8],
    /// `[batch, queries, chosen]`: page * 64 + place in it; -1 for none.
    pub indices: &'a [i32],
    /// For each request, how many of the chosen ones count; all if nothing is given.
    pub chosen: Option<&'a [i32]>,
    /// For each head the logit of a token with a value of zeros that every query attends to.
    pub sink: Option<&'a [f32]>,
    /// What logits are multiplied by; the root of 1/576 if nothing is given.
    pub scale: Option<f32>,
}

impl SparseDecode<'_> {
    /// How many of each request's indices count, and the number of columns of `indices`.
    pub(crate) fn check(&self) -> Result<(Vec<usize>, usize)> {
        let &Self { batch, queries, heads, .. } = self;
        let rows = batch * queries;
        demand_len(self.q.len(), "q", &[batch, queries, heads, WIDTH])?;
        demand(self.cache.len().is_multiple_of(CACHE_BYTES), "cache", || {
            format!("{} bytes are no whole number of tokens of {CACHE_BYTES}", self.cache.len())
        })?;
        let columns = self.indices.len().checked_div(rows).unwrap_or(0);
        demand_len(self.indices.len(), "indices", &[batch, queries, columns])?;
        let counts = counts(self.chosen, batch, columns)?;
        check_sink(self.sink, heads)?;
        let tokens = self.cache.len() / CACHE_BYTES;
        for row in 0..rows {
            let counted = &self.indices[row * columns..][..counts[row / queries]];
            let wrong = counted.iter().find(|i| **i < -1 || usize::try_from(**i).is_ok_and(|i| i >= tokens));
            demand(wrong.is_none(), "indices", || {
                let (request, query) = (row / queries, row % queries);
                let index = wrong.copied().unwrap_or(0);
                format!(
                    "{index} of request {request}, query {query}, is none of {tokens} tokens, nor -1 for none"
                )
            })?;
        }
        Ok((counts, columns))
    }
}

/// Attention of each query to the cached tokens chosen for it.
///
/// # Errors
/// If shapes don't fit, or an index is no cached token.
pub fn sparse_decode(of: &SparseDecode<'_>) -> Result<Attended> {
    let &SparseDecode { batch, queries, heads, .. } = of;
    let rows = batch * queries;
    let (counts, columns) = of.check()?;
    let scale = scale_of(of.scale)?;
    let counted = |row: usize| &of.indices[row * columns..][..counts[row / queries]];
    let work = |row: usize| {
        let q = widen(&of.q[row * heads * WIDTH..][..heads * WIDTH]);
        let there = counted(row).iter().filter_map(|i| usize::try_from(*i).ok());
        let keys: Vec<f32> =
            there.flat_map(|t| widen(&cache::token(&of.cache[t * CACHE_BYTES..][..CACHE_BYTES]))).collect();
        attend(&q, &keys, WIDTH, scale)
    };
    let mut done =
        Attended { out: Vec::with_capacity(rows * heads * VALUE_WIDTH), lse: vec![0.0; rows * heads] };
    for (at, sums) in threads::map(rows, work).into_iter().flatten().enumerate() {
        let (out, lse) = sums.finish(of.sink.map(|sink| sink[at % heads]));
        done.out.extend(out);
        let (row, head) = (at / heads, at % heads);
        done.lse[(row / queries * heads + head) * queries + row % queries] = lse;
    }
    Ok(done)
}
