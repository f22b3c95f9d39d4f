//! The kernels' source, compiled for processors, beside [`Group`].

mod host;

use super::{Back, CudaGroup, CudaLow, LowBack, Sent};
use crate::{Cast, Combined, EpError, Group, Join, Returns, Shape, Tokens, Values};
use ember_deepgemm::{ScaleFormat, View, per_token};
use ember_types::layout::SplitMix64;
use half::bf16;
use host::ranks;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A path that nobody else uses.
fn path() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    folder.join(format!("ember-deepep-cuda-{}-{number}", std::process::id()))
}

struct Input {
    x: Vec<bf16>,
    bits: Vec<u8>,
    scales: Vec<f32>,
    chosen: Vec<i64>,
    weights: Vec<f32>,
    biases: [Vec<bf16>; 2],
}

fn number(random: &mut SplitMix64) -> f32 {
    (random.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}
fn bf16s(random: &mut SplitMix64, count: usize) -> Vec<bf16> {
    // Great numbers among small ones, so that the order of a sum shows.
    (0..count).map(|i| bf16::from_f32(number(random) * if i % 5 == 0 { 1e9 } else { 1.0 })).collect()
}

fn inputs(shape: &Shape, seed: u64) -> Vec<Input> {
    let of_rank = |rank: usize| {
        let mut random = SplitMix64(seed * 1000 + rank as u64);
        let count = match rank {
            1 => 0,
            2 => shape.tokens,
            _ => random.below(shape.tokens as u64 + 1) as usize,
        };
        let mut chosen: Vec<i64> = Vec::new();
        for _ in 0..count {
            let from = chosen.len();
            while chosen.len() < from + shape.topk {
                let id = (random.below(shape.experts as u64 + 2) as i64 - 2).max(-1);
                if id == -1 || !chosen[from..].contains(&id) {
                    chosen.push(id);
                }
            }
        }
        let x = bf16s(&mut random, count * shape.hidden);
        let cast = per_token(&View::new(&x, [count, shape.hidden]).unwrap(), ScaleFormat::F32).unwrap();
        Input {
            bits: cast.values.iter().map(|value| value.0).collect(),
            scales: cast.scales,
            weights: chosen.iter().map(|_| number(&mut random)).collect(),
            biases: [(); 2].map(|()| bf16s(&mut random, x.len())),
            x,
            chosen,
        }
    };
    (0..shape.ranks).map(of_rank).collect()
}

impl Input {
    fn tokens(&self, fp8: bool) -> Tokens<'_> {
        if fp8 { Tokens::Fp8 { values: &self.bits, scales: &self.scales } } else { Tokens::Bf16(&self.x) }
    }
}

/// What processes would do, as threads.
fn processes<T: Send>(shape: Shape, work: impl Fn(&Group) -> T + Sync) -> Vec<T> {
    let (path, work) = (path(), &work);
    std::thread::scope(|scope| {
        let rank = |rank| {
            let path = path.clone();
            scope.spawn(move || {
                let join = Join { path: &path, rank, shape, returns: Returns::ByExpert, limit: LIMIT };
                work(&Group::join_as(&join).unwrap())
            })
        };
        let threads: Vec<_> = (0..shape.ranks).map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// What a rank makes of rows.
fn computed(rows: usize, rank: usize, shape: &Shape) -> Vec<bf16> {
    bf16s(&mut SplitMix64(77 + rank as u64), rows * shape.hidden)
}

#[test]
fn kernels_give_the_bits_of_processes() {
    let name = "kernels_give_the_bits_of_processes";
    // Ranks; blocks of a rank, lanes of a warp, warps of a block; numbers of a token, tokens.
    let cases = [
        (1, [1, 4, 2], 16, 3),
        (2, [2, 32, 1], 272, 37),
        (3, [1, 4, 2], 128, 14),
        (4, [3, 4, 2], 144, 13),
        (8, [1, 4, 2], 64, 21),
    ];
    for (number, threads, hidden, tokens) in cases {
        let shape = Shape { ranks: number, experts: 3 * number, hidden, topk: 3, tokens };
        let Some(machine) = ranks(name, shape, threads, false, None) else { return };
        let mut group = CudaGroup::on(machine);
        for round in 0..4 {
            check_normal(&mut group, shape, round);
        }
    }
}

fn check_normal(group: &mut CudaGroup, shape: Shape, round: u64) {
    let (inputs, fp8, with_weights) = (inputs(&shape, round), round % 2 == 1, round % 3 != 1);
    let biases: Vec<Vec<&[bf16]>> = inputs
        .iter()
        .map(|own| own.biases.iter().take(round as usize % 3).map(|bias| &bias[..]).collect())
        .collect();
    let expected = processes(shape, |group| {
        let own = &inputs[group.rank()];
        let got = group.dispatch(own.tokens(fp8), &own.chosen, &own.weights).unwrap();
        let values = values(got.bf16(), got.fp8());
        let rows = computed(got.sources.len(), group.rank(), &shape);
        let weights = with_weights.then_some(&got.weights[..]);
        let combined = group.combine(&rows, weights, got.handle(), &biases[group.rank()]).unwrap();
        (
            values,
            got.chosen.clone(),
            got.weights.clone(),
            got.sources.clone(),
            got.per_expert.clone(),
            combined,
        )
    });
    let sent: Vec<Sent<'_>> = inputs
        .iter()
        .map(|own| Sent { tokens: own.tokens(fp8), chosen: &own.chosen, weights: &own.weights })
        .collect();
    let got = group.dispatch(&sent).unwrap();
    let mut rows = Vec::new();
    for (rank, expected) in expected.iter().enumerate() {
        let received = group.received(&got, rank).unwrap();
        assert_eq!(received.values, expected.0);
        assert_eq!((&received.chosen, &received.weights), (&expected.1, &expected.2));
        assert_eq!((&received.sources, &received.per_expert), (&expected.3, &expected.4));
        assert_eq!((got.rows(rank), got.per_expert(rank)), (expected.3.len(), &expected.4[..]));
        rows.push(computed(got.rows(rank), rank, &shape));
    }
    // The same tokens again: into the other buffer, and into the one of the first result.
    let tokens: Vec<Tokens<'_>> = inputs.iter().map(|own| own.tokens(fp8)).collect();
    let again = group.dispatch_again(&tokens, &got).unwrap();
    let third = group.dispatch_again(&tokens, &got).unwrap();
    assert!(group.received(&got, 0).unwrap_err().to_string().starts_with("of: 2 dispatches"));
    for (rank, expected) in expected.iter().enumerate() {
        for by in [&again, &third] {
            let received = group.received(by, rank).unwrap();
            assert_eq!((&received.values, &received.sources), (&expected.0, &expected.3));
            let more = (received.chosen.len(), received.weights.len(), received.per_expert.len());
            assert_eq!(more, (0, 0, 0));
        }
    }
    let back: Vec<Back<'_>> = (0..shape.ranks)
        .map(|rank| Back {
            rows: &rows[rank],
            weights: with_weights.then_some(&expected[rank].2[..]),
            biases: &biases[rank],
        })
        .collect();
    for by in [&again, &third] {
        let combined = group.combine(&back, by).unwrap();
        let expected: Vec<&Combined> = expected.iter().map(|expected| &expected.5).collect();
        assert_eq!(combined.ranks.iter().collect::<Vec<_>>(), expected);
    }
}

fn values(halves: Option<&[bf16]>, eighths: Option<(&[u8], &[f32])>) -> Values {
    match (halves, eighths) {
        (Some(halves), _) => Values::Bf16(halves.to_vec()),
        (None, Some((bits, scales))) => {
            let values = bits.iter().map(|bits| ember_deepgemm::E4m3(*bits)).collect();
            Values::Fp8 { values, scales: scales.to_vec() }
        }
        (None, None) => unreachable!("tokens are of one kind"),
    }
}

#[test]
fn low_latency_kernels_give_the_bits_of_processes() {
    let name = "low_latency_kernels_give_the_bits_of_processes";
    let cases =
        [(1, [2, 4, 2], 16, 3), (2, [2, 32, 1], 272, 37), (3, [1, 4, 2], 128, 9), (8, [1, 4, 2], 144, 7)];
    for (number, threads, hidden, tokens) in cases {
        let shape = Shape { ranks: number, experts: 3 * number, hidden, topk: 3, tokens };
        let Some(machine) = ranks(name, shape, threads, true, None) else { return };
        let mut group = CudaLow::on(machine);
        for (round, cast) in
            [Cast::Bf16, Cast::Fp8(ScaleFormat::F32), Cast::Fp8(ScaleFormat::Ue8m0), Cast::Bf16]
                .iter()
                .enumerate()
        {
            check_low(&mut group, shape, round as u64, *cast);
        }
    }
}

fn check_low(group: &mut CudaLow, shape: Shape, round: u64, cast: Cast) {
    let inputs = inputs(&shape, 50 + round);
    let rows_of = |rank| computed(shape.local_experts() * shape.ranks * shape.tokens, rank, &shape);
    let expected = processes(shape, |group| {
        let own = &inputs[group.rank()];
        let got = group.low_latency_dispatch(&own.x, &own.chosen, cast).unwrap().receive().unwrap();
        let rows = rows_of(group.rank());
        let sums = group.low_latency_combine(&rows, &own.weights, &got).unwrap().receive().unwrap();
        (got, sums)
    });
    let sent: Vec<(&[bf16], &[i64])> = inputs.iter().map(|own| (&own.x[..], &own.chosen[..])).collect();
    let got = group.dispatch(&sent, cast).unwrap();
    let rows: Vec<Vec<bf16>> = (0..shape.ranks).map(rows_of).collect();
    for (rank, (expected, _)) in expected.iter().enumerate() {
        let received = group.received(&got, rank).unwrap();
        assert_eq!((&received.counts, &received.ranges), (&expected.counts, &expected.ranges));
        assert_eq!(received.sources, expected.sources);
        assert_eq!(received.values, expected.values);
    }
    // Another dispatch may come between.
    group.dispatch(&sent, Cast::Bf16).unwrap();
    let back = inputs.iter().zip(&rows).map(|(own, rows)| LowBack { rows, weights: &own.weights });
    let (sums, _) = group.combine(&back.collect::<Vec<_>>(), &got).unwrap();
    let expected: Vec<&Vec<bf16>> = expected.iter().map(|(_, sums)| sums).collect();
    assert_eq!(sums.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_rank_that_does_not_run_is_named() {
    let shape = Shape { ranks: 3, experts: 6, hidden: 16, topk: 2, tokens: 4 };
    let inputs = inputs(&shape, 1);
    let sent: Vec<Sent<'_>> = inputs
        .iter()
        .map(|own| Sent { tokens: own.tokens(false), chosen: &own.chosen, weights: &own.weights })
        .collect();
    let Some(machine) = ranks("a_rank_that_does_not_run_is_named", shape, [2, 4, 2], false, Some(1)) else {
        return;
    };
    let mut group = CudaGroup::on(machine);
    let error = group.dispatch(&sent).unwrap_err();
    assert!(matches!(error, EpError::Late { rank: 1, .. }), "{error}");
    assert!(error.to_string().contains("said how many tokens it sends"), "{error}");
    assert!(matches!(group.dispatch(&sent).unwrap_err(), EpError::Ended(_)));
    let Some(machine) = ranks("a_rank_that_does_not_run_is_named", shape, [2, 4, 2], true, Some(2)) else {
        return;
    };
    let mut group = CudaLow::on(machine);
    let sent: Vec<(&[bf16], &[i64])> = inputs.iter().map(|own| (&own.x[..], &own.chosen[..])).collect();
    let error = group.dispatch(&sent, Cast::Bf16).unwrap_err();
    assert!(matches!(error, EpError::Late { rank: 2, .. }), "{error}");
}

#[test]
fn wrong_arguments_are_named() {
    let shape = Shape { ranks: 2, experts: 4, hidden: 16, topk: 2, tokens: 3 };
    let Some(machine) = ranks("wrong_arguments_are_named", shape, [1, 4, 2], false, None) else { return };
    let mut group = CudaGroup::on(machine);
    let (x, chosen, weights, scale) = (vec![bf16::ONE; 16], [0i64, 3], [1.0f32; 2], [1.0f32]);
    let good = Sent { tokens: Tokens::Bf16(&x), chosen: &chosen, weights: &weights };
    let text = |error: EpError| error.to_string();
    let mut dispatch = |of: &[Sent<'_>]| text(group.dispatch(of).unwrap_err());
    assert!(dispatch(&[good]).starts_with("of: there are 1"));
    assert!(dispatch(&[good, Sent { tokens: Tokens::Bf16(&x[..15]), ..good }]).starts_with("tokens: "));
    assert!(dispatch(&[good, Sent { chosen: &[0, 4], ..good }]).starts_with("chosen: 4 of token 0"));
    assert!(dispatch(&[good, Sent { weights: &[1.0], ..good }]).starts_with("weights: "));
    let eighths = Tokens::Fp8 { values: &[0; 16], scales: &scale };
    assert!(dispatch(&[good, Sent { tokens: eighths, ..good }]).contains("rank 1 has kind of dispatch 1"));
    let got = group.dispatch(&[good, good]).unwrap();
    let rows = vec![bf16::ONE; 2 * 16];
    let good_back = Back { rows: &rows, weights: None, biases: &[] };
    let mut combine = |back: &[Back<'_>]| text(group.combine(back, &got).unwrap_err());
    assert!(combine(&[good_back, Back { rows: &x, ..good_back }]).starts_with("rows: "));
    assert!(combine(&[good_back, Back { weights: Some(&[1.0; 3]), ..good_back }]).starts_with("weights: "));
    assert!(
        combine(&[good_back, Back { weights: Some(&[1.0; 4]), ..good_back }]).contains("rank 1 has weights")
    );
    assert!(combine(&[good_back, Back { biases: &[&x[..1]], ..good_back }]).starts_with("biases: "));
    assert!(combine(&[good_back, Back { biases: &[&x], ..good_back }]).contains("rank 1 has biases"));
    assert!(text(group.received(&got, 2).unwrap_err()).starts_with("rank: "));
    group.dispatch(&[good, good]).unwrap();
    group.dispatch(&[good, good]).unwrap();
    assert!(text(group.received(&got, 0).unwrap_err()).starts_with("of: 2 dispatches"));
    let check = |shape: Shape, blocks| text(super::ranks::check(&shape, blocks, 132).unwrap_err());
    assert!(check(shape, 67).starts_with("blocks: "));
    assert!(check(shape, 0).starts_with("blocks: "));
    assert!(check(Shape { hidden: 24, ..shape }, 1).starts_with("hidden: "));
    assert!(check(Shape { topk: 33, ..shape }, 1).starts_with("topk: "));
    assert!(check(Shape { experts: 4098, ..shape }, 1).starts_with("experts: "));
    assert!(check(Shape { tokens: 1 << 24, topk: 32, ranks: 4, ..shape }, 1).starts_with("tokens: "));
}

#[test]
fn a_machine_without_a_gpu_says_so() {
    let shape = Shape { ranks: 2, experts: 4, hidden: 16, topk: 2, tokens: 3 };
    if let Err(error) = CudaGroup::new(shape, 2, LIMIT) {
        assert!(matches!(error, EpError::Cuda(_)), "{error}");
    }
}
