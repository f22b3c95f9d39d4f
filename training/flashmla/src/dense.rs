//! Decoding: each request's last tokens attend to its cache.

use crate::schedule::{Part, schedule};
use crate::softmax::{Sums, dot, widen};
use crate::threads;
use crate::{Attended, PAGE, Result, VALUE_WIDTH, WIDTH, demand, demand_len, scale_of};
use half::bf16;

/// Queries and a paged cache. What lies in pages behind a request's length, or in its row of the table, is never read.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    /// Number of requests.
    pub batch: usize,
    /// Queries of each.
    pub queries: usize,
    /// Query heads: a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of the cache.
    pub kv_heads: usize,
    /// `[batch, queries, heads, 576]`.
    pub q: &'a [bf16],
    /// `[pages, 64, kv_heads, 576]`.
    pub cache: &'a [bf16],
    /// `[batch, pages of the longest]`: the pages of each request, in order.
    pub block_table: &'a [i32],
    /// Tokens of each request.
    pub lengths: &'a [i32],
    /// Whether a query doesn't see the tokens of those behind it: the last one is at the request's last token.
    pub causal: bool,
    /// What logits are multiplied by; the root of 1/576 if nothing is given.
    pub scale: Option<f32>,
}

impl Dense<'_> {
    /// Checked lengths, and the number of columns of the table.
    pub(crate) fn check(&self) -> Result<(Vec<usize>, usize)> {
        let &Self { batch, queries, heads, kv_heads, .. } = self;
        demand(kv_heads > 0 && heads.is_multiple_of(kv_heads), "heads", || {
            format!("{heads} can't be divided among {kv_heads} heads of the cache")
        })?;
        demand_len(self.q.len(), "q", &[batch, queries, heads, WIDTH])?;
        demand(self.cache.len().is_multiple_of(PAGE * kv_heads * WIDTH), "cache", || {
            format!("{} numbers are no whole number of pages of {PAGE} tokens", self.cache.len())
        })?;
        demand(self.lengths.len() == batch, "lengths", || {
            format!("has {} requests, not {batch}", self.lengths.len())
        })?;
        let columns = self.block_table.len().checked_div(batch).unwrap_or(0);
        demand_len(self.block_table.len(), "block_table", &[batch, columns])?;
        let pages = self.cache.len() / (PAGE * kv_heads * WIDTH);
        let mut lengths = Vec::with_capacity(batch);
        for (request, &length) in self.lengths.iter().enumerate() {
            let fits = usize::try_from(length).ok().filter(|length| length.div_ceil(PAGE) <= columns);
            demand(fits.is_some(), "lengths", || {
                format!("request {request} can't have {length} tokens: the table has {columns} pages for it")
            })?;
            let length = fits.unwrap_or(0);
            let row = &self.block_table[request * columns..][..length.div_ceil(PAGE)];
            let wrong = row.iter().find(|page| usize::try_from(**page).map_or(true, |page| page >= pages));
            demand(wrong.is_none(), "block_table", || {
                format!("request {request} has page {} of {pages}", wrong.copied().unwrap_or(0))
            })?;
            lengths.push(length);
        }
        Ok((lengths, columns))
    }

    /// Sums over pages `[from, to)` of a request, by query and head.
    fn pages(
        &self,
        request: usize,
        length: usize,
        table: &[i32],
        (from, to): (usize, usize),
        scale: f32,
    ) -> Vec<Sums> {
        let &Self { queries, heads, kv_heads, .. } = self;
        let mut sums = vec![Sums::new(); queries * heads];
        let q = widen(&self.q[request * queries * heads * WIDTH..][..queries * heads * WIDTH]);
        for (page, &place) in table.iter().enumerate().take(to).skip(from) {
            let tokens = PAGE.min(length.saturating_sub(page * PAGE));
            if tokens == 0 {
                break;
            }
            let keys = &self.cache[place as usize * PAGE * kv_heads * WIDTH..][..tokens * kv_heads * WIDTH];
            for kv_head in 0..kv_heads {
                let key = |token: usize| &keys[(token * kv_heads + kv_head) * WIDTH..][..WIDTH];
                let keys: Vec<f32> = (0..tokens).flat_map(|token| widen(key(token))).collect();
                let group = heads / kv_heads;
                for query in 0..queries {
                    let seen =
                        if self.causal { (length + query + 1).saturating_sub(queries) } else { length };
                    let tokens = tokens.min(seen.saturating_sub(page * PAGE));
                    for head in kv_head * group..(kv_head + 1) * group {
                        let at = query * heads + head;
                        let q = &q[at * WIDTH..][..WIDTH];
                        let logits: Vec<f32> =
                            (0..tokens).map(|t| dot(q, &keys[t * WIDTH..][..WIDTH]) * scale).collect();
                        sums[at].add(&logits, |token| &keys[token * WIDTH..][..VALUE_WIDTH]);
                    }
                }
            }
        }
        sums
    }
}

/// Attention of each request's queries to its cache. The work is divided into `parts` parts by
/// [`schedule()`], and their sums are put together: the number decides about the last bits of the result, the number
/// of processors doesn't.
///
/// # Errors
/// If shapes don't fit, or a request has more tokens than pages, or pages that aren't there.
pub fn dense_decode(of: &Dense<'_>, parts: usize) -> Result<Attended> {
    let (lengths, columns) = of.check()?;
    let scale = scale_of(of.scale)?;
    let plan = schedule(&lengths, parts)?;
    let rows = of.queries * of.heads;
    let work = |part: usize| -> Vec<(usize, Vec<Sums>)> {
        let Part { begin, begin_page, end, end_page, .. } = plan.parts[part];
        let requests = begin..usize::try_from(end + 1).unwrap_or(0);
        let range = |request: usize| {
            let from = if request == begin { begin_page } else { 0 };
            let to = if request as isize == end { end_page } else { lengths[request].div_ceil(PAGE) };
            (from, to)
        };
        let table = |request: usize| &of.block_table[request * columns..][..columns];
        requests.map(|r| (r, of.pages(r, lengths[r], table(r), range(r), scale))).collect()
    };
    let mut sums = vec![Sums::new(); of.batch * rows];
    for (request, part) in threads::map(parts, work).into_iter().flatten() {
        sums[request * rows..][..rows].iter_mut().zip(&part).for_each(|(sums, part)| sums.join(part));
    }
    let mut done = Attended { out: Vec::with_capacity(sums.len() * VALUE_WIDTH), lse: vec![0.0; sums.len()] };
    for (at, sums) in sums.iter().enumerate() {
        let (out, lse) = sums.finish(None);
        done.out.extend(out);
        let (request, query, head) = (at / rows, at % rows / of.heads, at % of.heads);
        done.lse[(request * of.heads + head) * of.queries + query] = lse;
    }
    Ok(done)
}
