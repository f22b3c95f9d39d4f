//! Numbers, scales and products of the original, and what must hold for any shape.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ember_deepgemm::{
    ALIGNMENT, BLOCK, Cpu, E4m3, Element, Indexer, Order, Quantised, Recipe, ScaleFormat, Scaled, Scales,
    View, ViewMut, layout, per_block, per_channel, per_token, ue8m0,
};
use half::bf16;
use proptest::prelude::*;
use serde::Deserialize;

const ORDERS: [Order; 2] = [Order::InTurn, Order::EvenOdd];

#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
    e4m3_decode_f32: Tensor,
    e4m3_encode: Encode,
    ue8m0_ceil: Pair,
}

#[derive(Deserialize)]
struct Encode {
    x: Tensor,
    y_saturating: Tensor,
}

#[derive(Deserialize)]
struct Pair {
    x: Tensor,
    y: Tensor,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    m: usize,
    n: usize,
    k: usize,
    a: Option<Tensor>,
    b: Option<Tensor>,
    a_q: Tensor,
    sfa: Tensor,
    b_q: Tensor,
    sfb: Tensor,
    gemm_f32: Tensor,
    exact_f64: Tensor,
}

#[derive(Deserialize)]
struct Tensor {
    shape: Vec<usize>,
    b64: String,
}

impl Tensor {
    fn numbers<const N: usize, T>(&self, from: fn([u8; N]) -> T) -> Vec<T> {
        let bytes = STANDARD.decode(&self.b64).unwrap();
        let numbers: Vec<T> = bytes.chunks(N).map(|chunk| from(chunk.try_into().unwrap())).collect();
        assert_eq!(numbers.len(), self.shape.iter().product::<usize>());
        numbers
    }
    fn f32(&self) -> Vec<f32> {
        self.numbers(f32::from_le_bytes)
    }
    fn f64(&self) -> Vec<f64> {
        self.numbers(f64::from_le_bytes)
    }
    fn bf16(&self) -> Vec<bf16> {
        self.numbers(bf16::from_le_bytes)
    }
    fn e4m3(&self) -> Vec<E4m3> {
        self.numbers(|[byte]: [u8; 1]| E4m3(byte))
    }
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("data/numerics.json")).unwrap()
}

/// 1 - 2<x, y> / (<x, x> + <y, y>).
fn difference(x: impl IntoIterator<Item = f64>, y: impl IntoIterator<Item = f64>) -> f64 {
    let (mut both, mut squares) = (0.0, 0.0);
    for (x, y) in x.into_iter().zip(y) {
        both += x * y;
        squares += x * x + y * y;
    }
    if squares == 0.0 { 0.0 } else { 1.0 - 2.0 * both / squares }
}

fn wide(x: &[f32]) -> impl Iterator<Item = f64> {
    x.iter().copied().map(f64::from)
}

#[test]
fn numbers_and_scales_are_those_of_the_original() {
    let reference = reference();
    for (bits, expected) in reference.e4m3_decode_f32.f32().into_iter().enumerate() {
        let found = E4m3(bits as u8).to_f32();
        assert!(found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()), "{bits:#x}");
    }
    let encode = reference.e4m3_encode;
    for (x, expected) in encode.x.f32().into_iter().zip(encode.y_saturating.e4m3()) {
        let found = E4m3::from_f32(x);
        let nan = found.to_f32().is_nan() && expected.to_f32().is_nan();
        assert!(found == expected || nan, "{x}: {found:?} instead of {expected:?}");
    }
    for (x, expected) in reference.ue8m0_ceil.x.f32().into_iter().zip(reference.ue8m0_ceil.y.f32()) {
        assert_eq!(ue8m0::round_up(x), expected, "{x}");
    }
}

/// An FP8 product in BF16 beside the product of what was quantised.
fn check_large([m, n, k]: [usize; 3]) {
    let (a, b) = (noise(m as u64, m * k), noise(n as u64 + 1, n * k));
    let (a, b) = (View::new(&a, [m, k]).unwrap(), View::new(&b, [n, k]).unwrap());
    let mut unquantised = vec![f32::NAN; m * n];
    Cpu::new().bf16_gemm_nt(a, b, None, ViewMut::new(&mut unquantised, [m, n]).unwrap()).unwrap();
    for format in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
        let (x, y) = (per_token(&a, format).unwrap(), per_block(&b, format).unwrap());
        let mut d = vec![bf16::NAN; m * n];
        let out = ViewMut::new(&mut d, [m, n]).unwrap();
        Cpu::new().fp8_gemm_nt(scaled(&x, [m, k]), scaled(&y, [n, k]), None, out, Recipe::Blocks).unwrap();
        let off = difference(d.iter().map(|x| x.to_f64()), wide(&unquantised));
        assert!(off < 1e-3, "{:?}: {off}", [m, n, k]);
    }
}

#[test]
fn products_are_near_those_of_what_was_quantised() {
    for shape in [[1, 2112, 7168], [33, 576, 1536], [128, 512, 2048], [7, 1000, 520]] {
        check_large(shape);
    }
}

/// The matrices of DeepSeek-V3, and some that no size divides.
#[test]
#[ignore = "minutes: `cargo xtask test --full`"]
fn products_of_the_shapes_of_a_large_model_are_near() {
    let matrices = [
        [2112, 7168],
        [576, 7168],
        [24576, 1536],
        [32768, 512],
        [7168, 16384],
        [4096, 7168],
        [7168, 2048],
        [1111, 777],
    ];
    for [n, k] in matrices {
        for m in [1, 64, 129, 1000, 4096] {
            check_large([m, n, k]);
        }
    }
}

/// FP8 product, `f32` result.
fn fp8(
    cpu: Cpu,
    [m, n, k]: [usize; 3],
    a: &Quantised,
    b: &Quantised,
    c: Option<&[f32]>,
    recipe: Recipe,
) -> Vec<f32> {
    let mut d = vec![f32::NAN; m * n];
    let c = c.map(|c| View::new(c, [m, n]).unwrap());
    let out = ViewMut::new(&mut d, [m, n]).unwrap();
    cpu.fp8_gemm_nt(scaled(a, [m, k]), scaled(b, [n, k]), c, out, recipe).unwrap();
    d
}

fn scaled(x: &Quantised, shape: [usize; 2]) -> Scaled<'_> {
    x.scaled(shape).unwrap()
}

#[test]
fn quantised_matrices_and_products_are_those_of_the_original() {
    let cases = reference().cases;
    assert_eq!(cases.len(), 4);
    for case in cases {
        let [m, n, k] = [case.m, case.n, case.k];
        let shape = |tensor: &Tensor| [tensor.shape[0], tensor.shape[1]];
        let a = Quantised { values: case.a_q.e4m3(), scales: case.sfa.f32(), scale_shape: shape(&case.sfa) };
        let b = Quantised { values: case.b_q.e4m3(), scales: case.sfb.f32(), scale_shape: shape(&case.sfb) };
        let mut unquantised = None;
        if let (Some(x), Some(y)) = (&case.a, &case.b) {
            let (x, y) = (x.bf16(), y.bf16());
            let (x, y) = (View::new(&x, [m, k]).unwrap(), View::new(&y, [n, k]).unwrap());
            assert_eq!(per_token(&x, ScaleFormat::F32).unwrap(), a);
            assert_eq!(per_block(&y, ScaleFormat::F32).unwrap(), b);
            unquantised = Some(product(&x, &y));
        }
        let recipe = match case.kind.as_str() {
            "gemm_nt_1d2d" => Recipe::Blocks,
            "gemm_nt_1d1d" => Recipe::Rows,
            other => panic!("no kind {other}"),
        };
        for order in ORDERS {
            let found = fp8(Cpu::new().with_order(order), [m, n, k], &a, &b, None, recipe);
            assert!(difference(wide(&found), wide(&case.gemm_f32.f32())) < 1e-13);
            assert!(difference(wide(&found), case.exact_f64.f64()) < 1e-13);
            if let Some(unquantised) = &unquantised {
                assert!(difference(wide(&found), unquantised.iter().copied()) < 1e-3);
            }
        }
    }
}

fn product<T: Element>(a: &View<'_, T>, b: &View<'_, T>) -> Vec<f64> {
    let [m, n] = [a.shape()[0], b.shape()[0]];
    let sum = |i: usize, j: usize| -> f64 {
        let pairs = a.row(i).iter().zip(b.row(j));
        pairs.map(|(x, y)| f64::from(x.to_f32()) * f64::from(y.to_f32())).sum()
    };
    (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| sum(i, j)).collect()
}

fn noise(seed: u64, count: usize) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    // About normally distributed.
    (0..count).map(|_| bf16::from_f32((0..4).map(|_| next()).sum::<f32>() - 2.0)).collect()
}

/// Values times scales, each of `rows` rows and 128 columns.
fn plain(x: &Quantised, [m, k]: [usize; 2], rows: usize) -> Vec<f32> {
    let number =
        |i: usize, j: usize| x.values[i * k + j].to_f32() * x.scales[i / rows * x.scale_shape[1] + j / BLOCK];
    (0..m).flat_map(|i| (0..k).map(move |j| (i, j))).map(|(i, j)| number(i, j)).collect()
}

fn check_any(shape: [usize; 3], seed: u64) {
    for order in ORDERS {
        check_order(shape, seed, order);
    }
}

fn check_order([m, n, k]: [usize; 3], seed: u64, order: Order) {
    let (a, b) = (noise(seed, m * k), noise(seed + 1, n * k));
    let (a, b) = (View::new(&a, [m, k]).unwrap(), View::new(&b, [n, k]).unwrap());
    let exact = product(&a, &b);
    let cpu = Cpu::new().with_order(order).with_threads(3);
    let paths = [cpu, cpu.portable().with_threads(1)];
    assert_eq!(paths.map(|cpu| cpu.order()), [order; 2]);
    // BF16.
    let c: Vec<f32> = noise(seed + 2, m * n).into_iter().map(f32::from).collect();
    let found = paths.map(|cpu| {
        let mut d = vec![f32::NAN; m * n];
        let c = View::new(&c, [m, n]).unwrap();
        cpu.bf16_gemm_nt(a, b, Some(c), ViewMut::new(&mut d, [m, n]).unwrap()).unwrap();
        d
    });
    assert_eq!(found[0], found[1], "{:?}", [m, n, k]);
    let sums = exact.iter().zip(&c).map(|(sum, c)| sum + f64::from(*c));
    assert!(difference(wide(&found[0]), sums) < 1e-10);
    // FP8, both recipes.
    let quantised = per_token(&a, ScaleFormat::F32).unwrap();
    for (other, recipe) in [
        (per_block(&b, ScaleFormat::F32).unwrap(), Recipe::Blocks),
        (per_token(&b, ScaleFormat::F32).unwrap(), Recipe::Rows),
    ] {
        let found = paths.map(|cpu| fp8(cpu, [m, n, k], &quantised, &other, None, recipe));
        assert_eq!(found[0], found[1], "{:?}", [m, n, k]);
        let rows = if recipe == Recipe::Blocks { BLOCK } else { 1 };
        let (x, y) = (plain(&quantised, [m, k], 1), plain(&other, [n, k], rows));
        let sums = product(&View::new(&x, [m, k]).unwrap(), &View::new(&y, [n, k]).unwrap());
        assert!(difference(wide(&found[0]), sums) < 1e-10, "{:?}", [m, n, k]);
        // Few numbers may happen to cancel each other.
        if k >= BLOCK && m * n >= 256 {
            assert!(difference(wide(&found[0]), exact.iter().copied()) < 1e-3, "{:?}", [m, n, k]);
        }
        let added = fp8(cpu, [m, n, k], &quantised, &other, Some(&c), recipe);
        let expected: Vec<f32> = found[0].iter().zip(&c).map(|(sum, c)| c + sum).collect();
        assert_eq!(added, expected);
    }
}

#[test]
fn products_of_any_shape_are_right_and_the_same_on_both_paths() {
    let shapes = [[1, 1, 1], [7, 65, 129], [13, 64, 128], [400, 8, 256], [3, 200, 300], [64, 130, 1000]];
    for (seed, shape) in shapes.into_iter().enumerate() {
        check_any(shape, seed as u64);
    }
    // Nothing to sum, and nothing at all.
    for shape in [[3, 5, 0], [0, 5, 7], [3, 0, 7]] {
        check_any(shape, 9);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn products_of_random_shapes(shape in [0usize..40, 0usize..150, 0usize..400], seed in any::<u32>()) {
        check_any(shape, seed.into());
    }

    #[test]
    fn scales_are_in_the_right_place(m in 1usize..20, k in 1usize..20) {
        let powers: Vec<f32> = (0..m * k).map(|i| f32::from_bits(((i % 250) as u32 + 1) << 23)).collect();
        let turned = layout::mn_major(&powers, [m, k]);
        let (one, other) =
            (Scales::row_major(&powers, [m, k]).unwrap(), Scales::mn_major(&turned, [m, k]).unwrap());
        let packed = layout::packed_mn_major(&powers, [m, k]);
        prop_assert_eq!(turned.len(), layout::aligned(m) * k);
        prop_assert_eq!(packed.len(), layout::aligned(m) * k.div_ceil(4));
        for i in 0..m {
            for j in 0..k {
                prop_assert_eq!(one.get(i, j), other.get(i, j));
                let word = packed[j / 4 * layout::aligned(m) + i];
                prop_assert_eq!(f32::from_bits((word >> (j % 4 * 8) & 255) << 23), one.get(i, j));
            }
        }
    }
}

#[test]
fn scales_follow_rows_blocks_and_channels() {
    let [m, k] = [130, 200];
    let x: Vec<f32> = (0..m * k).map(|i| (i / k) as f32 - (i % k) as f32 / 7.0).collect();
    let view = View::new(&x, [m, k]).unwrap();
    for format in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
        for (quantised, rows, columns) in [
            (per_token(&view, format).unwrap(), 1, BLOCK),
            (per_block(&view, format).unwrap(), BLOCK, BLOCK),
            (per_channel(&view, format).unwrap(), BLOCK, 1),
        ] {
            assert_eq!(quantised.scale_shape, [m.div_ceil(rows), k.div_ceil(columns)]);
            for i in 0..m {
                for j in 0..k {
                    let scale = quantised.scales[i / rows * quantised.scale_shape[1] + j / columns];
                    let found = quantised.values[i * k + j].to_f32() * scale;
                    let off = (found - x[i * k + j]).abs();
                    assert!(
                        off <= x[i * k + j].abs() / 15.9 + scale / 1000.0,
                        "{} became {found}",
                        x[i * k + j]
                    );
                    assert!(format == ScaleFormat::F32 || scale.to_bits() & 0x7f_ffff == 0);
                }
            }
        }
    }
    let zeros = per_token(&View::new(&[0.0f32; 5], [1, 5]).unwrap(), ScaleFormat::F32).unwrap();
    assert_eq!(zeros.scales, [1e-4 / 448.0]);
}

#[test]
fn groups_are_multiplied_by_their_own_matrices() {
    let [n, k] = [40, 256];
    let (m, real) = (4 * ALIGNMENT, [100, 0, 128, 1]);
    let a = noise(1, m * k);
    let mut a = per_token(&View::new(&a, [m, k]).unwrap(), ScaleFormat::F32).unwrap();
    // Nobody looks at the scales of padding.
    for (g, &rows) in real.iter().enumerate() {
        a.scales[(g * ALIGNMENT + rows) * 2..(g + 1) * ALIGNMENT * 2].fill(f32::NAN);
    }
    let b: Vec<Quantised> = (0..4)
        .map(|g| per_block(&View::new(&noise(10 + g, n * k), [n, k]).unwrap(), ScaleFormat::F32).unwrap())
        .collect();
    let experts: Vec<Scaled<'_>> = b.iter().map(|b| scaled(b, [n, k])).collect();
    let mut groups = vec![-1; m];
    for (g, &rows) in real.iter().enumerate() {
        groups[g * ALIGNMENT..][..rows].fill(g as i32);
    }
    let cpu = Cpu::new();
    let mark = bf16::from_f32(77.0);
    let mut d = vec![mark; m * n];
    let out = ViewMut::new(&mut d, [m, n]).unwrap();
    cpu.fp8_gemm_nt_contiguous(scaled(&a, [m, k]), &experts, out, &groups, Recipe::Blocks).unwrap();
    let mut sound = a.clone();
    sound.scales.iter_mut().filter(|scale| scale.is_nan()).for_each(|scale| *scale = 1.0);
    let whole: Vec<Vec<f32>> =
        b.iter().map(|b| fp8(cpu, [m, n, k], &sound, b, None, Recipe::Blocks)).collect();
    let expected = |row: usize| match groups[row] {
        -1 => vec![mark; n],
        g => whole[g as usize][row * n..][..n].iter().map(|&x| bf16::from_f32(x)).collect(),
    };
    for row in 0..m {
        assert_eq!(d[row * n..][..n], expected(row), "row {row}");
    }
    // The same rows as masked groups.
    let mut masked = vec![mark; m * n];
    let parts: Vec<Scaled<'_>> = (0..4)
        .map(|g| {
            let (from, to) = (g * ALIGNMENT, (g + 1) * ALIGNMENT);
            let all = scaled(&a, [m, k]);
            Scaled { values: all.values.rows(from, to), scales: all.scales.rows(from, to) }
        })
        .collect();
    let outs = masked.chunks_mut(ALIGNMENT * n).map(|d| ViewMut::new(d, [ALIGNMENT, n]).unwrap()).collect();
    let rows = real.map(|rows| rows as i32);
    cpu.fp8_gemm_nt_masked(&parts, &experts, outs, &rows, Recipe::Blocks).unwrap();
    assert_eq!(masked, d);
}

#[test]
fn weight_gradients_of_groups_are_added() {
    let [m, n] = [24, 40];
    let ks = [256, 0, 128];
    let quantised = |seed: u64, rows: usize, k: usize| {
        per_token(&View::new(&noise(seed, rows * k), [rows, k]).unwrap(), ScaleFormat::F32).unwrap()
    };
    let a: Vec<Quantised> = ks.iter().enumerate().map(|(g, &k)| quantised(g as u64, m, k)).collect();
    let b: Vec<Quantised> = ks.iter().enumerate().map(|(g, &k)| quantised(9 + g as u64, n, k)).collect();
    let old: Vec<f32> = noise(7, m * n).into_iter().map(f32::from).collect();
    let left: Vec<Scaled<'_>> = a.iter().zip(ks).map(|(x, k)| scaled(x, [m, k])).collect();
    let right: Vec<Scaled<'_>> = b.iter().zip(ks).map(|(x, k)| scaled(x, [n, k])).collect();
    let c = vec![View::new(&old, [m, n]).unwrap(); 3];
    let mut found = vec![f32::NAN; 3 * m * n];
    let outs = found.chunks_mut(m * n).map(|d| ViewMut::new(d, [m, n]).unwrap()).collect();
    Cpu::new().fp8_gemm_nt_k_grouped(&left, &right, &c, outs).unwrap();
    for (g, k) in ks.into_iter().enumerate() {
        let expected = fp8(Cpu::new(), [m, n, k], &a[g], &b[g], Some(&old), Recipe::Rows);
        assert_eq!(found[g * m * n..][..m * n], expected);
    }
    assert_eq!(found[m * n..][..m * n], old, "nothing to add");
    let odd = quantised(3, m, 100);
    let out = vec![ViewMut::new(&mut found[..m * n], [m, n]).unwrap()];
    let error =
        Cpu::new().fp8_gemm_nt_k_grouped(&[scaled(&odd, [m, 100])], &right[..1], &c[..1], out).unwrap_err();
    assert!(error.to_string().starts_with("a: group 0 has 100 columns"), "{error}");
}

#[test]
fn logits_are_sums_over_heads_of_what_is_seen() {
    let [queries, heads, keys, width] = [37, 32, 300, 128];
    let q = per_token(
        &View::new(&noise(1, queries * heads * width), [queries * heads, width]).unwrap(),
        ScaleFormat::F32,
    )
    .unwrap();
    let k = per_token(&View::new(&noise(2, keys * width), [keys, width]).unwrap(), ScaleFormat::F32).unwrap();
    let weights: Vec<f32> = noise(3, queries * heads).into_iter().map(f32::from).collect();
    let seen: Vec<(u32, u32)> = (0..queries as u32).map(|i| (i, (i * 8).max(i).min(keys as u32))).collect();
    let of = Indexer {
        queries: View::new(&q.values, [queries * heads, width]).unwrap(),
        keys: View::new(&k.values, [keys, width]).unwrap(),
        key_scales: &k.scales,
        weights: View::new(&weights, [queries, heads]).unwrap(),
        seen: &seen,
    };
    let logits = |cpu: Cpu| {
        let mut d = vec![0.0; queries * keys];
        cpu.fp8_mqa_logits(&of, ViewMut::new(&mut d, [queries, keys]).unwrap()).unwrap();
        d
    };
    for cpu in ORDERS.map(|order| Cpu::new().with_order(order)) {
        assert_eq!(logits(cpu), logits(cpu.portable().with_threads(1)));
    }
    let found = logits(Cpu::new());
    let (mut ours, mut exact) = (Vec::new(), Vec::new());
    for i in 0..queries {
        for j in 0..keys {
            let logit = found[i * keys + j];
            if !(seen[i].0 as usize..seen[i].1 as usize).contains(&j) {
                assert_eq!(logit, f32::NEG_INFINITY);
                continue;
            }
            let head = |h: usize| {
                let pairs = of.queries.row(i * heads + h).iter().zip(of.keys.row(j));
                let sum: f64 = pairs.map(|(x, y)| f64::from(x.to_f32()) * f64::from(y.to_f32())).sum();
                (sum * f64::from(k.scales[j])).max(0.0) * f64::from(weights[i * heads + h])
            };
            ours.push(f64::from(logit));
            exact.push((0..heads).map(head).sum::<f64>());
        }
    }
    assert!(difference(ours, exact) < 5e-6);
    let mut d = vec![0.0; queries * keys];
    let mut error = |of: &Indexer<'_>| {
        let done = Cpu::new().fp8_mqa_logits(of, ViewMut::new(&mut d, [queries, keys]).unwrap());
        done.unwrap_err().argument
    };
    let mut beyond = seen.clone();
    beyond[3].1 = keys as u32 + 1;
    assert_eq!(error(&Indexer { seen: &beyond, ..of }), "seen");
    assert_eq!(error(&Indexer { key_scales: &k.scales[1..], ..of }), "key_scales");
    assert_eq!(error(&Indexer { queries: of.queries.rows(0, 5), ..of }), "queries");
    let mut spoilt = weights.clone();
    spoilt[40] = f32::NAN;
    assert_eq!(error(&Indexer { weights: View::new(&spoilt, [queries, heads]).unwrap(), ..of }), "weights");
}

#[test]
fn wrong_arguments_are_named() {
    let x = noise(1, 256 * 64);
    let view = |shape| View::new(&x, shape).unwrap();
    let (a, b) = (
        per_token(&view([4, 256]), ScaleFormat::F32).unwrap(),
        per_block(&view([8, 256]), ScaleFormat::F32).unwrap(),
    );
    let mut d = vec![0.0f32; 64];
    let mut run = |a: Scaled<'_>, b: Scaled<'_>, shape| {
        let out = ViewMut::new(&mut d, shape).unwrap();
        Cpu::new().fp8_gemm_nt(a, b, None, out, Recipe::Blocks).unwrap_err().argument
    };
    let (good, other) = (scaled(&a, [4, 256]), scaled(&b, [8, 256]));
    assert_eq!(run(good, other, [4, 7]), "d");
    assert_eq!(run(Scaled { values: good.values.rows(0, 3), ..good }, other, [3, 8]), "scales of a");
    assert_eq!(run(good, Scaled { scales: good.scales, ..other }, [4, 8]), "scales of b");
    let wrong = [1.0, f32::INFINITY];
    let scales = Scales::row_major(&wrong, [1, 2]).unwrap();
    assert_eq!(run(good, Scaled { scales, ..other }, [4, 8]), "scales of b");
    let narrow = noise(2, 8 * 100);
    let narrow = per_block(&View::new(&narrow, [8, 100]).unwrap(), ScaleFormat::F32).unwrap();
    assert_eq!(run(good, scaled(&narrow, [8, 100]), [4, 8]), "b");
    assert_eq!(View::new(&[0.0f32; 5], [2, 3]).unwrap_err().argument, "data");
    assert_eq!(View::strided(&[0.0f32; 9], [2, 3], 2).unwrap_err().argument, "stride");
    assert_eq!(Scales::row_major(&[1.0], [2, 1]).unwrap_err().argument, "data");
    let spoilt = [1.0, f32::NAN];
    assert_eq!(per_token(&View::new(&spoilt, [1, 2]).unwrap(), ScaleFormat::F32).unwrap_err().argument, "x");

    let rows = noise(3, 256 * 8);
    let many = per_token(&View::new(&rows, [256, 8]).unwrap(), ScaleFormat::F32).unwrap();
    let one = per_block(&View::new(&rows[..64], [8, 8]).unwrap(), ScaleFormat::F32).unwrap();
    let mut d = vec![0.0f32; 256 * 8];
    let mut contiguous = |groups: &[i32]| {
        let out = ViewMut::new(&mut d, [256, 8]).unwrap();
        let experts = [scaled(&one, [8, 8]), scaled(&one, [8, 8])];
        let done =
            Cpu::new().fp8_gemm_nt_contiguous(scaled(&many, [256, 8]), &experts, out, groups, Recipe::Blocks);
        done.map_err(|error| error.to_string())
    };
    let mut groups = vec![0; 256];
    assert_eq!(contiguous(&groups), Ok(()));
    assert!(contiguous(&groups[..255]).unwrap_err().starts_with("groups: has 255 rows"));
    groups[100..].fill(1);
    assert!(contiguous(&groups).unwrap_err().contains("begins in row 100"));
    groups[100..128].fill(-1);
    assert_eq!(contiguous(&groups), Ok(()));
    groups[128..].fill(0);
    assert!(contiguous(&groups).unwrap_err().contains("begins again in row 128"));
    groups[128..].fill(2);
    assert!(contiguous(&groups).unwrap_err().contains("none of 2 groups"));
    let outs = || vec![];
    let done = Cpu::new().fp8_gemm_nt_masked::<f32>(&[], &[], outs(), &[1], Recipe::Blocks);
    assert_eq!(done.unwrap_err().argument, "rows");
}
