//! Results of the original, and what must hold for any lengths.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ember_flashmla::{
    Dense, PAGE, Prefill, SparseDecode, VALUE_WIDTH, WIDTH, dense_decode, dequantise, quantise, schedule,
    sparse_decode, sparse_prefill,
};
use half::bf16;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    dense: DenseCase,
    schedules: Vec<Scheduled>,
    prefill: PrefillCase,
    cache: CacheCase,
}

#[derive(Deserialize)]
struct DenseCase {
    cache_seqlens: Vec<i32>,
    block_table: Vec<Vec<i32>>,
    pages: usize,
    q: Tensor,
    tokens: Tensor,
    out_f32: Tensor,
    lse: Tensor,
}

#[derive(Deserialize)]
struct Scheduled {
    cache_seqlens: Vec<usize>,
    num_sm_parts: usize,
    parts: Vec<[i64; 7]>,
    num_splits: Vec<usize>,
}

#[derive(Deserialize)]
struct PrefillCase {
    sm_scale: f32,
    q: Tensor,
    kv: Tensor,
    indices: Vec<Vec<Vec<i32>>>,
    out_f32: Tensor,
    max_logits: Tensor,
    lse: Tensor,
}

#[derive(Deserialize)]
struct CacheCase {
    k: Tensor,
    bytes: Tensor,
    dequant: Tensor,
}

#[derive(Deserialize)]
struct Tensor {
    b64: String,
}

impl Tensor {
    fn bytes(&self) -> Vec<u8> {
        STANDARD.decode(&self.b64).unwrap()
    }
    fn f32(&self) -> Vec<f32> {
        self.bytes().chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    }
    fn bf16(&self) -> Vec<bf16> {
        self.bytes().chunks(2).map(|x| bf16::from_le_bytes(x.try_into().unwrap())).collect()
    }
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("data/references.json")).unwrap()
}

/// Outputs within 8e-4 or 2.01/128 of the expected ones, and 5e-6 of them as a whole.
fn check_out(found: &[bf16], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let (mut both, mut squares) = (0.0, 0.0);
    for (x, y) in found.iter().zip(expected) {
        let (x, y) = (x.to_f64(), f64::from(*y));
        assert!((x - y).abs() <= (2.01 / 128.0 * y.abs()).max(8e-4), "{x} instead of {y}");
        both += x * y;
        squares += x * x + y * y;
    }
    assert!(squares == 0.0 || 1.0 - 2.0 * both / squares < 5e-6);
}

/// Logarithms within 1e-6 or 8.01/65536 of the expected ones; infinite ones equal.
fn check_lse(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (x, y) in found.iter().zip(expected) {
        let near = (x - y).abs() <= (8.01 / 65536.0 * y.abs()).max(1e-6);
        assert!(x == y || (y.is_finite() && near), "{x} instead of {y}");
    }
}

#[test]
fn schedules_are_those_of_the_original() {
    for case in reference().schedules {
        let found = schedule(&case.cache_seqlens, case.num_sm_parts).unwrap();
        assert_eq!(found.pieces, case.num_splits);
        let row = |part: &ember_flashmla::Part| {
            [
                part.begin as i64,
                part.begin_page as i64,
                part.begin_piece as i64,
                i64::from(part.begin_is_split),
                part.end as i64,
                part.end_page as i64,
                i64::from(part.end_is_split),
            ]
        };
        assert_eq!(found.parts.iter().map(row).collect::<Vec<_>>(), case.parts);
    }
}

#[test]
fn dense_decoding_gives_what_the_original_gives() {
    let case = reference().dense;
    let mut cache = vec![bf16::NAN; case.pages * PAGE * WIDTH];
    let tokens = case.tokens.bf16();
    let mut tokens = tokens.chunks(WIDTH);
    for (length, table) in case.cache_seqlens.iter().zip(&case.block_table) {
        for token in 0..*length as usize {
            let at = table[token / PAGE] as usize * PAGE + token % PAGE;
            cache[at * WIDTH..][..WIDTH].copy_from_slice(tokens.next().unwrap());
        }
    }
    let (q, table) = (case.q.bf16(), case.block_table.concat());
    let of = Dense {
        batch: 2,
        queries: 1,
        heads: 4,
        kv_heads: 1,
        q: &q,
        cache: &cache,
        block_table: &table,
        lengths: &case.cache_seqlens,
        causal: false,
        scale: None,
    };
    for parts in [1, 2, 132] {
        let found = dense_decode(&of, parts).unwrap();
        check_out(&found.out, &case.out_f32.f32());
        check_lse(&found.lse, &case.lse.f32());
    }
}

#[test]
fn sparse_prefill_gives_what_the_original_gives() {
    let case = reference().prefill;
    let (q, kv, indices) = (case.q.bf16(), case.kv.bf16(), case.indices.concat().concat());
    let of = Prefill {
        queries: 3,
        heads: 4,
        width: WIDTH,
        q: &q,
        kv: &kv,
        indices: &indices,
        chosen: None,
        sink: None,
        scale: Some(case.sm_scale),
    };
    let found = sparse_prefill(&of).unwrap();
    check_out(&found.out, &case.out_f32.f32());
    check_lse(&found.lse, &case.lse.f32());
    check_lse(&found.max_logits, &case.max_logits.f32());
}

#[test]
fn cached_bytes_are_those_of_the_original() {
    let case = reference().cache;
    let bytes = quantise(&case.k.bf16()).unwrap();
    assert_eq!(bytes, case.bytes.bytes());
    let bits = |x: &[bf16]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&dequantise(&bytes).unwrap()), bits(&case.dequant.bf16()));
}

fn noise(seed: u64, count: usize) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| bf16::from_f32(next())).collect()
}

/// Softmax in `f64` over some tokens: output and logarithm.
fn exact(q: &[bf16], keys: &[&[bf16]], scale: f64, sink: Option<f32>) -> (Vec<f32>, f32) {
    if keys.is_empty() {
        return (vec![0.0; VALUE_WIDTH], f32::INFINITY);
    }
    let logit = |key: &&[bf16]| q.iter().zip(*key).map(|(x, y)| x.to_f64() * y.to_f64()).sum::<f64>() * scale;
    let logits: Vec<f64> = keys.iter().map(logit).collect();
    let greatest = logits.iter().copied().fold(f64::MIN, f64::max);
    let shares: Vec<f64> = logits.iter().map(|logit| (logit - greatest).exp()).collect();
    let sum: f64 = shares.iter().sum();
    let whole = sum + sink.map_or(0.0, |sink| (f64::from(sink) - greatest).exp());
    let number =
        |i: usize| (keys.iter().zip(&shares).map(|(k, s)| k[i].to_f64() * s).sum::<f64>() / whole) as f32;
    ((0..VALUE_WIDTH).map(number).collect(), (greatest + sum.ln()) as f32)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_lengths_in_any_parts(
        lengths in prop::collection::vec(0usize..300, 1..4),
        (queries, kv_heads, group, causal) in (1usize..4, 1usize..3, 1usize..3, any::<bool>()),
        parts in 1usize..12,
        seed in any::<u32>(),
    ) {
        let (batch, heads) = (lengths.len(), kv_heads * group);
        let columns = lengths.iter().max().unwrap().div_ceil(PAGE) + 1;
        // Pages from the last to the first; what is never read holds no numbers and no pages.
        let mut table = vec![i32::MIN; batch * columns];
        let mut pages = 0;
        for (request, length) in lengths.iter().enumerate() {
            for page in 0..length.div_ceil(PAGE) {
                table[request * columns + page] = pages;
                pages += 1;
            }
        }
        table.iter_mut().filter(|page| **page >= 0).for_each(|page| *page = pages - 1 - *page);
        let mut cache = noise(seed.into(), pages as usize * PAGE * kv_heads * WIDTH);
        for (request, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let last = table[request * columns + (length - 1) / PAGE] as usize;
            let behind = (last * PAGE + (length - 1) % PAGE + 1) * kv_heads * WIDTH;
            cache[behind..(last + 1) * PAGE * kv_heads * WIDTH].fill(bf16::NAN);
        }
        let q = noise(u64::from(seed) + 1, batch * queries * heads * WIDTH);
        let signed: Vec<i32> = lengths.iter().map(|length| *length as i32).collect();
        let of = Dense {
            batch, queries, heads, kv_heads, q: &q, cache: &cache, block_table: &table, lengths: &signed, causal,
            scale: None,
        };
        let found = dense_decode(&of, parts).unwrap();
        for request in 0..batch {
            for query in 0..queries {
                let behind = if causal { queries - 1 - query } else { 0 };
                let seen = lengths[request].saturating_sub(behind);
                for head in 0..heads {
                    let at = (request * queries + query) * heads + head;
                    let key = |token: usize| {
                        let page = table[request * columns + token / PAGE] as usize;
                        &cache[((page * PAGE + token % PAGE) * kv_heads + head / group) * WIDTH..][..WIDTH]
                    };
                    let keys: Vec<&[bf16]> = (0..seen).map(key).collect();
                    let (out, lse) = exact(&q[at * WIDTH..][..WIDTH], &keys, 1.0 / 24.0, None);
                    check_out(&found.out[at * VALUE_WIDTH..][..VALUE_WIDTH], &out);
                    check_lse(&[found.lse[(request * heads + head) * queries + query]], &[lse]);
                }
            }
        }
    }
}

#[test]
fn sparse_decoding_sees_what_is_chosen_and_the_sink() {
    let (batch, queries, heads, columns) = (2, 2, 3, 9);
    let tokens = noise(4, 2 * PAGE * WIDTH);
    let bytes = quantise(&tokens).unwrap();
    let tokens = dequantise(&bytes).unwrap();
    let q = noise(5, batch * queries * heads * WIDTH);
    let mut indices: Vec<i32> = (0..batch * queries * columns).map(|i| (i * 37 % 128) as i32).collect();
    indices[3] = -1;
    indices[columns..2 * columns].fill(-1);
    let chosen = [9, 4];
    let sink = [0.5, f32::NEG_INFINITY, f32::INFINITY];
    let of = SparseDecode {
        batch,
        queries,
        heads,
        q: &q,
        cache: &bytes,
        indices: &indices,
        chosen: Some(&chosen),
        sink: Some(&sink),
        scale: Some(0.05),
    };
    let found = sparse_decode(&of).unwrap();
    for row in 0..batch * queries {
        let counted = &indices[row * columns..][..chosen[row / queries] as usize];
        let keys: Vec<&[bf16]> =
            counted.iter().filter(|i| **i >= 0).map(|i| &tokens[*i as usize * WIDTH..][..WIDTH]).collect();
        for (head, &sink) in sink.iter().enumerate() {
            let at = row * heads + head;
            let (out, lse) = exact(&q[at * WIDTH..][..WIDTH], &keys, 0.05, Some(sink));
            check_out(&found.out[at * VALUE_WIDTH..][..VALUE_WIDTH], &out);
            check_lse(&[found.lse[(row / queries * heads + head) * queries + row % queries]], &[lse]);
        }
    }
    assert!(sparse_decode(&SparseDecode { cache: &bytes[1..], ..of }).is_err_and(|e| e.argument == "cache"));
    let mut wrong = indices.clone();
    wrong[0] = 128;
    let error = sparse_decode(&SparseDecode { indices: &wrong, ..of }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "indices: 128 of request 0, query 0, is none of 128 tokens, nor -1 for none"
    );
    let error = sparse_decode(&SparseDecode { chosen: Some(&[9, 10]), ..of }).unwrap_err();
    assert_eq!(error.to_string(), "chosen: row 1 says 10 of 9 indices");
}

#[test]
fn wrong_arguments_are_named() {
    let (q, cache) = (noise(1, 2 * WIDTH), noise(2, 2 * PAGE * WIDTH));
    let of = Dense {
        batch: 1,
        queries: 1,
        heads: 2,
        kv_heads: 1,
        q: &q,
        cache: &cache,
        block_table: &[0, 1],
        lengths: &[70],
        causal: true,
        scale: None,
    };
    assert!(dense_decode(&of, 3).is_ok());
    let argument = |of: Dense<'_>, parts: usize| dense_decode(&of, parts).unwrap_err().argument;
    assert_eq!(argument(of, 0), "parts");
    assert_eq!(argument(Dense { q: &q[1..], ..of }, 1), "q");
    assert_eq!(argument(Dense { kv_heads: 0, ..of }, 1), "heads");
    assert_eq!(argument(Dense { heads: 3, kv_heads: 2, ..of }, 1), "heads");
    assert_eq!(argument(Dense { cache: &cache[1..], ..of }, 1), "cache");
    assert_eq!(argument(Dense { lengths: &[129], ..of }, 1), "lengths");
    assert_eq!(argument(Dense { lengths: &[-1], ..of }, 1), "lengths");
    assert_eq!(argument(Dense { lengths: &[], ..of }, 1), "lengths");
    assert_eq!(argument(Dense { block_table: &[0, 2], ..of }, 1), "block_table");
    assert_eq!(argument(Dense { block_table: &[-1, 0], ..of }, 1), "block_table");
    assert_eq!(argument(Dense { scale: Some(f32::NAN), ..of }, 1), "scale");
    let of = Prefill {
        queries: 1,
        heads: 2,
        width: WIDTH,
        q: &q,
        kv: &cache,
        indices: &[0, 500],
        chosen: None,
        sink: None,
        scale: None,
    };
    assert!(sparse_prefill(&of).is_ok());
    let argument = |of: Prefill<'_>| sparse_prefill(&of).unwrap_err().argument;
    assert_eq!(argument(Prefill { width: 500, ..of }), "width");
    assert_eq!(argument(Prefill { kv: &cache[1..], ..of }), "kv");
    assert_eq!(argument(Prefill { chosen: Some(&[3]), ..of }), "chosen");
    assert_eq!(argument(Prefill { sink: Some(&[0.0]), ..of }), "sink");
    assert_eq!(quantise(&q[1..]).unwrap_err().argument, "tokens");
    assert_eq!(quantise(&vec![bf16::INFINITY; WIDTH]).unwrap_err().argument, "tokens");
    assert_eq!(dequantise(&[0; 655]).unwrap_err().argument, "bytes");
}
