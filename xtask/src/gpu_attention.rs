//! Attention's part of `cargo xtask gpu`.

use crate::gpu::{Found, numbers};
use anyhow::{Result, ensure};
use ember_flashmla::cuda::{Attention, Cuda};
use ember_flashmla::{
    Attended, CACHE_BYTES, Dense, PAGE, SparseDecode, VALUE_WIDTH, WIDTH, dense_decode, quantise,
    sparse_decode,
};
use half::bf16;

/// Products, beyond which a result isn't computed on the CPU too.
const COMPARED_MAX: usize = 1 << 34;
/// What an output may differ by, absolutely or of itself, and all by this share of a square; then logarithms.
const OUT_MAX: (f64, f64) = (8e-4, 2.01 / 128.0);
const ALL_MAX: f64 = 5e-6;
const LSE_MAX: (f64, f64) = (1e-6, 8.01 / 65_536.0);
/// Logits differ by about 1, and values are small, as where these limits come from.
const QUERIES: f32 = 16.0;
const KEYS: f32 = 0.125;
/// What stands in the table behind a request's pages.
const GARBAGE: i32 = i32::MIN;

/// Paged decoding: queries, heads, heads of the cache, parts or as many as fit, lengths.
struct Paged(usize, usize, usize, Option<usize>, &'static [i32]);

const PAGED: &[Paged] = &[
    Paged(1, 16, 1, None, &[0, 1, 63, 64, 65, 200, 1000]),
    Paged(1, 128, 1, Some(9), &[0, 5000, 64, 1, 777, 0]),
    Paged(2, 128, 1, None, &[4097, 0, 130]),
    // Some queries see nothing.
    Paged(3, 20, 2, Some(7), &[1, 2, 3, 70, 700]),
    Paged(1, 64, 1, None, &[4096; 128]),
    Paged(1, 128, 1, None, &[4096; 128]),
    Paged(2, 128, 1, None, &[4096; 128]),
];

/// Chosen tokens of the FP8 cache: requests, queries, heads, chosen, tokens; with counts, a sink, and some missing.
struct Chosen(usize, usize, usize, usize, usize, bool);

const CHOSEN: &[Chosen] = &[
    Chosen(3, 2, 64, 130, 640, true),
    Chosen(4, 1, 20, 65, 128, true),
    Chosen(2, 1, 128, 2048, 65_536, false),
    Chosen(2, 2, 128, 2048, 65_536, true),
    Chosen(128, 1, 128, 2048, 128 * 4096, false),
];

fn scaled(len: usize, seed: u64, by: f32) -> Vec<bf16> {
    numbers(len, seed).into_iter().map(|x| bf16::from_f32(x * by)).collect()
}

/// An error if an output or logarithm is wrong; else 1 - 2<x, y> / (<x, x> + <y, y>) of the outputs.
fn compare(found: &Attended, expected: &Attended) -> Result<f64> {
    ensure!(found.out.len() == expected.out.len() && found.lse.len() == expected.lse.len(), "other shapes");
    let near = |x: f64, y: f64, (most, share): (f64, f64)| (x - y).abs() <= most.max(share * y.abs());
    for (i, (x, y)) in found.lse.iter().zip(&expected.lse).enumerate() {
        let right = x == y || near(f64::from(*x), f64::from(*y), LSE_MAX);
        ensure!(right && x.is_finite() == y.is_finite(), "logarithm {i} is {x}, not {y}");
    }
    let (mut product, mut squares) = (0.0, 0.0);
    for (i, (x, y)) in found.out.iter().zip(&expected.out).enumerate() {
        let (x, y) = (x.to_f64(), y.to_f64());
        ensure!(near(x, y, OUT_MAX), "output {i} is {x}, not {y}");
        product += x * y;
        squares += x * x + y * y;
    }
    let difference = if squares == 0.0 { 0.0 } else { 1.0 - 2.0 * product / squares };
    ensure!(difference <= ALL_MAX, "outputs differ by {difference:e}");
    Ok(difference)
}

/// Runs, compares with what the CPU gives unless that is too much, and measures.
fn found(
    gpu: &Cuda,
    attention: &Attention,
    products: usize,
    bytes: usize,
    expected: impl FnOnce() -> ember_flashmla::Result<Attended>,
) -> Result<Found> {
    attention.run()?;
    let first = attention.download()?;
    let difference = if products <= COMPARED_MAX { Some(compare(&first, &expected()?)?) } else { None };
    let seconds = gpu.device().best(|| attention.run())?;
    let again = attention.download()?;
    let same = again.out == first.out && again.lse == first.lse;
    ensure!(same, "gives other bits when it runs again");
    Ok(Found { difference, seconds, operations: 2.0 * products as f64, bytes: bytes as f64 })
}

/// Pages in reverse, with nothing but NaN where no request has a token.
fn paged(gpu: &Cuda, &Paged(queries, heads, kv_heads, parts, lengths): &Paged) -> Result<Found> {
    let columns = lengths.iter().map(|length| (*length as usize).div_ceil(PAGE)).max().unwrap_or(0) + 1;
    let pages: usize = lengths.iter().map(|length| (*length as usize).div_ceil(PAGE)).sum();
    let mut cache = scaled((pages + 1) * PAGE * kv_heads * WIDTH, 1, KEYS);
    let token = kv_heads * WIDTH;
    cache[..PAGE * token].fill(bf16::NAN);
    let mut table = vec![GARBAGE; lengths.len() * columns];
    let mut next = pages;
    for (row, &length) in table.chunks_mut(columns).zip(lengths) {
        let length = length as usize;
        for (page, entry) in row[..length.div_ceil(PAGE)].iter_mut().enumerate() {
            let tokens = PAGE.min(length - page * PAGE);
            cache[(next * PAGE + tokens) * token..(next + 1) * PAGE * token].fill(bf16::NAN);
            *entry = next as i32;
            next -= 1;
        }
    }
    let q = scaled(lengths.len() * queries * heads * WIDTH, 2, QUERIES);
    let of = Dense {
        batch: lengths.len(),
        queries,
        heads,
        kv_heads,
        q: &q,
        cache: &cache,
        block_table: &table,
        lengths,
        causal: true,
        scale: None,
    };
    let parts = parts.unwrap_or_else(|| gpu.dense_parts(queries, heads, kv_heads));
    let tokens: usize = lengths.iter().map(|length| *length as usize).sum();
    let products = tokens * queries * heads * (WIDTH + VALUE_WIDTH);
    let rows = lengths.len() * queries * heads;
    let bytes = 2 * (tokens * token + rows * (WIDTH + VALUE_WIDTH));
    found(gpu, &gpu.dense(&of, parts)?, products, bytes, || dense_decode(&of, parts))
}

fn chosen(gpu: &Cuda, &Chosen(batch, queries, heads, columns, tokens, odd): &Chosen) -> Result<Found> {
    let cache = quantise(&scaled(tokens * WIDTH, 3, KEYS))?;
    let q = scaled(batch * queries * heads * WIDTH, 4, QUERIES);
    // Steps of a prime: no token comes twice if there are enough.
    let index = |i: usize| if odd && i % 7 == 3 { -1 } else { (i * 10_007 % tokens) as i32 };
    let indices: Vec<i32> = (0..batch * queries * columns).map(index).collect();
    let counts: Vec<i32> = (0..batch).map(|request| (request * columns / batch) as i32).collect();
    let sink: Vec<f32> = (0..heads)
        .map(|head| match head % 16 {
            0 => f32::INFINITY,
            1 => f32::NEG_INFINITY,
            head => head as f32 - 4.0,
        })
        .collect();
    let of = SparseDecode {
        batch,
        queries,
        heads,
        q: &q,
        cache: &cache,
        indices: &indices,
        chosen: odd.then_some(&counts),
        sink: odd.then_some(&sink),
        scale: None,
    };
    let count = |request: usize| if odd { counts[request] as usize } else { columns };
    let read: usize = queries * (0..batch).map(count).sum::<usize>();
    let products = read * heads * (WIDTH + VALUE_WIDTH);
    let bytes = read * CACHE_BYTES + 2 * batch * queries * heads * (WIDTH + VALUE_WIDTH);
    found(gpu, &gpu.sparse(&of)?, products, bytes, || sparse_decode(&of))
}

/// A row for each case: its name, what came of it, and the ceiling in TFLOP/s.
pub(crate) fn rows(most: f64) -> Result<Vec<(String, Result<Found>, f64)>> {
    let gpu = Cuda::new()?;
    let mut rows = Vec::new();
    for case in PAGED {
        let Paged(queries, heads, kv_heads, _, lengths) = case;
        let tokens: i32 = lengths.iter().sum();
        let requests = lengths.len();
        let name = format!(
            "dense decode, {requests} requests of {tokens} tokens, {queries} × {heads} / {kv_heads} heads"
        );
        rows.push((name, paged(&gpu, case), most));
    }
    for case in CHOSEN {
        let Chosen(batch, queries, heads, columns, tokens, _) = case;
        let name = format!(
            "sparse FP8 decode, {batch} requests, {columns} of {tokens} tokens, {queries} × {heads} heads"
        );
        rows.push((name, chosen(&gpu, case), most));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_outputs_and_logarithms_are_found() {
        let right = Attended { out: scaled(4096, 1, KEYS), lse: vec![1.0, f32::INFINITY] };
        assert!(compare(&right, &right).unwrap() <= 0.0);
        let mut other = right.clone();
        other.out[77] += bf16::from_f32(0.01);
        assert!(compare(&other, &right).unwrap_err().to_string().contains("output 77"));
        other.out[77] = bf16::NAN;
        assert!(compare(&other, &right).is_err());
        for lse in [[1.001, f32::INFINITY], [1.0, 5.0], [f32::NAN, f32::INFINITY], [f32::INFINITY; 2]] {
            let other = Attended { lse: lse.to_vec(), ..right.clone() };
            assert!(compare(&other, &right).unwrap_err().to_string().contains("logarithm"));
        }
    }
}
