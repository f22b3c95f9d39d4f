//! Exchanges between ranks that are parts of one GPU, beside those between threads of this machine.

use super::{Found, numbers};
use anyhow::{Context, Result, ensure};
use ember_deepep::cuda::{Back, CudaDispatched, CudaGroup, CudaLow, LowBack, Sent};
use ember_deepep::{Cast, Combined, Group, Join, LowDispatched, Returns, Shape, Tokens, Values};
use ember_deepgemm::{ScaleFormat, View, per_token};
use half::bf16;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);
/// Launches, the best of which counts.
const LAUNCHES: usize = 5;
/// Numbers of all tokens, beyond which a result isn't computed by threads too.
const COMPARED_MAX: usize = 1 << 24;

/// Shapes, blocks of a rank, and whether for the low-latency mode.
const CASES: &[(Shape, usize, bool)] = &[
    (Shape { ranks: 3, experts: 12, hidden: 272, topk: 4, tokens: 77 }, 5, false),
    (Shape { ranks: 8, experts: 256, hidden: 7168, topk: 8, tokens: 64 }, 16, false),
    (Shape { ranks: 8, experts: 256, hidden: 7168, topk: 8, tokens: 4096 }, 16, false),
    (Shape { ranks: 3, experts: 12, hidden: 272, topk: 4, tokens: 77 }, 5, true),
    (Shape { ranks: 8, experts: 64, hidden: 7168, topk: 8, tokens: 128 }, 16, true),
];

struct Input {
    x: Vec<bf16>,
    bits: Vec<u8>,
    scales: Vec<f32>,
    chosen: Vec<i64>,
    weights: Vec<f32>,
}

impl Input {
    fn new(shape: &Shape, rank: usize) -> Result<Self> {
        let Shape { experts, hidden, topk, tokens, .. } = *shape;
        // Ranks have different numbers of tokens, all of a large shape as many.
        let count = if tokens < 4096 { tokens - rank } else { tokens };
        let x: Vec<bf16> = halves(count * hidden, 11 + rank as u64);
        let cast = per_token(&View::new(&x, [count, hidden])?, ScaleFormat::F32)?;
        // Choices of a token lie apart by the same step, so that all differ; some are none.
        let choice = |i: usize| {
            let (token, k) = (i / topk, i % topk);
            let id = (token * 31 + rank * 7 + k * (experts / topk)) % experts;
            if (token + k) % 17 == 0 { -1 } else { id as i64 }
        };
        Ok(Self {
            bits: cast.values.iter().map(|value| value.0).collect(),
            scales: cast.scales,
            chosen: (0..count * topk).map(choice).collect(),
            weights: numbers(count * topk, 31 + rank as u64),
            x,
        })
    }
    fn tokens(&self, fp8: bool) -> Tokens<'_> {
        if fp8 { Tokens::Fp8 { values: &self.bits, scales: &self.scales } } else { Tokens::Bf16(&self.x) }
    }
}

fn halves(len: usize, seed: u64) -> Vec<bf16> {
    numbers(len, seed).into_iter().map(bf16::from_f32).collect()
}

/// What processes would do, as threads that share memory.
fn threads<T: Send>(shape: Shape, work: impl Fn(&Group) -> Result<T> + Sync) -> Result<Vec<T>> {
    // Not in /dev/shm, which is small in containers: nothing is measured here.
    let path = std::env::temp_dir().join(format!("ember-gpu-{}", std::process::id()));
    let (path, work) = (&path, &work);
    std::thread::scope(|scope| {
        let rank = |rank| {
            let join = Join { path, rank, shape, returns: Returns::ByExpert, limit: LIMIT };
            scope.spawn(move || work(&Group::join_as(&join)?))
        };
        let all: Vec<_> = (0..shape.ranks).map(rank).collect();
        all.into_iter().map(|thread| thread.join().ok().context("a rank has panicked")?).collect()
    })
}

fn compared(shape: &Shape) -> bool {
    shape.ranks * shape.tokens * shape.hidden <= COMPARED_MAX
}

/// All cases, by name.
pub(super) fn all() -> Vec<(String, Result<Found>)> {
    let mut found = Vec::new();
    for &(shape, blocks, low) in CASES {
        let Shape { ranks, tokens, hidden, topk, experts } = shape;
        let of = format!("{ranks} ranks × {blocks} blocks, {tokens} × {hidden}, {topk} of {experts}");
        for fp8 in [false, true] {
            let kind = if fp8 { "fp8" } else { "bf16" };
            let names = ["dispatch", "combine"].map(|call| {
                let mode = if low { "low-latency " } else { "" };
                format!("{mode}{call} in HBM, {of}, {}", if call == "combine" { "bf16" } else { kind })
            });
            let both = if low { low_latency(shape, blocks, fp8) } else { normal(shape, blocks, fp8) };
            match both {
                Ok(both) => found.extend(names.into_iter().zip(both.map(Ok))),
                Err(error) => found.push((names.join("; "), Err(error))),
            }
        }
    }
    found
}

fn found(shape: &Shape, seconds: f64, bytes: usize) -> Found {
    let difference = compared(shape).then_some(0.0);
    Found { difference, seconds, operations: 0.0, bytes: bytes as f64 }
}

fn normal(shape: Shape, blocks: usize, fp8: bool) -> Result<[Found; 2]> {
    let inputs = (0..shape.ranks).map(|rank| Input::new(&shape, rank)).collect::<Result<Vec<_>>>()?;
    let sent: Vec<Sent<'_>> = inputs
        .iter()
        .map(|own| Sent { tokens: own.tokens(fp8), chosen: &own.chosen, weights: &own.weights })
        .collect();
    let mut group = CudaGroup::new(shape, blocks, LIMIT)?;
    let (mut got, mut fastest) = (group.dispatch(&sent)?, f64::INFINITY);
    for _ in 0..LAUNCHES {
        got = group.dispatch(&sent)?;
        fastest = fastest.min(got.seconds());
    }
    let rows: Vec<Vec<bf16>> =
        (0..shape.ranks).map(|rank| halves(got.rows(rank) * shape.hidden, 51 + rank as u64)).collect();
    let biases: Vec<[&[bf16]; 1]> = inputs.iter().map(|own| [&own.x[..]]).collect();
    let back: Vec<Back<'_>> =
        rows.iter().zip(&biases).map(|(rows, biases)| Back { rows, weights: None, biases }).collect();
    let mut combined = group.combine(&back, &got)?;
    for _ in 1..LAUNCHES {
        let again = group.combine(&back, &got)?;
        ensure!(again.ranks == combined.ranks, "combined again, the bits are others");
        combined.seconds = combined.seconds.min(again.seconds);
    }
    if compared(&shape) {
        compare(&group, &got, &combined.ranks, &inputs, &rows, fp8)?;
    }
    let tokens: usize = inputs.iter().map(|own| own.x.len()).sum();
    let received: usize = rows.iter().map(Vec::len).sum();
    let width = if fp8 { 1 } else { 2 };
    // Read and written, on the way back twice; biases and sums too.
    let bytes = [width * (tokens + received), 2 * (3 * received + 2 * tokens)];
    Ok([found(&shape, fastest, bytes[0]), found(&shape, combined.seconds, bytes[1])])
}

/// All bits must be those that threads give.
fn compare(
    group: &CudaGroup,
    got: &CudaDispatched,
    combined: &[Combined],
    inputs: &[Input],
    rows: &[Vec<bf16>],
    fp8: bool,
) -> Result<()> {
    let shape = *group.shape();
    let received = (0..shape.ranks).map(|rank| group.received(got, rank)).collect::<Result<Vec<_>, _>>()?;
    threads(shape, |threads| {
        let (rank, own) = (threads.rank(), &inputs[threads.rank()]);
        let expected = threads.dispatch(own.tokens(fp8), &own.chosen, &own.weights)?;
        let found = &received[rank];
        let same = match &found.values {
            Values::Bf16(values) => expected.bf16() == Some(values),
            Values::Fp8 { values, scales } => expected.fp8().is_some_and(|(bits, its)| {
                values.iter().map(|value| &value.0).eq(bits) && its == scales.as_slice()
            }),
        };
        ensure!(same, "rank {rank} has received other numbers");
        let others = found.chosen != expected.chosen || found.weights != expected.weights;
        ensure!(!others, "rank {rank} has received other experts or weights");
        let others = found.sources != expected.sources || found.per_expert != expected.per_expert;
        ensure!(!others, "rank {rank} has received other tokens");
        let sums = threads.combine(&rows[rank], None, expected.handle(), &[&own.x])?;
        ensure!(combined[rank] == sums, "rank {rank} has other sums");
        Ok(())
    })
    .map(drop)
}

fn low_latency(shape: Shape, blocks: usize, fp8: bool) -> Result<[Found; 2]> {
    let inputs = (0..shape.ranks).map(|rank| Input::new(&shape, rank)).collect::<Result<Vec<_>>>()?;
    let cast = if fp8 { Cast::Fp8(ScaleFormat::F32) } else { Cast::Bf16 };
    let sent: Vec<(&[bf16], &[i64])> = inputs.iter().map(|own| (&own.x[..], &own.chosen[..])).collect();
    let mut group = CudaLow::new(shape, blocks, LIMIT)?;
    let (mut got, mut fastest) = (group.dispatch(&sent, cast)?, f64::INFINITY);
    for _ in 0..LAUNCHES {
        got = group.dispatch(&sent, cast)?;
        fastest = fastest.min(got.seconds());
    }
    let length = shape.local_experts() * shape.ranks * shape.tokens * shape.hidden;
    let rows: Vec<Vec<bf16>> = (0..shape.ranks).map(|rank| halves(length, 71 + rank as u64)).collect();
    let back = rows.iter().zip(&inputs).map(|(rows, own)| LowBack { rows, weights: &own.weights });
    let back: Vec<LowBack<'_>> = back.collect();
    let (sums, mut seconds) = group.combine(&back, &got)?;
    for _ in 1..LAUNCHES {
        let (again, took) = group.combine(&back, &got)?;
        ensure!(again == sums, "combined again, the bits are others");
        seconds = seconds.min(took);
    }
    if compared(&shape) {
        let received: Vec<_> =
            (0..shape.ranks).map(|rank| group.received(&got, rank)).collect::<Result<_, _>>()?;
        threads(shape, |threads| {
            let (rank, own) = (threads.rank(), &inputs[threads.rank()]);
            let expected: LowDispatched =
                threads.low_latency_dispatch(&own.x, &own.chosen, cast)?.receive()?;
            let found = &received[rank];
            let same = found.values == expected.values && found.sources == expected.sources;
            ensure!(same && found.ranges == expected.ranges, "rank {rank} has received other rows");
            let expected = threads.low_latency_combine(&rows[rank], &own.weights, &expected)?.receive()?;
            ensure!(sums[rank] == expected, "rank {rank} has other sums");
            Ok(())
        })?;
    }
    let tokens: usize = inputs.iter().map(|own| own.x.len()).sum();
    let messages = inputs.iter().flat_map(|own| &own.chosen).filter(|id| **id >= 0).count() * shape.hidden;
    let width = if fp8 { 1 } else { 2 };
    // A message is written, read and written again; what comes back is read, written, and read.
    let bytes = [2 * tokens + 3 * width * messages, 2 * (3 * messages + tokens)];
    Ok([found(&shape, fastest, bytes[0]), found(&shape, seconds, bytes[1])])
}
