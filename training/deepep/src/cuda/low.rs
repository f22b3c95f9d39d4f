//! The low-latency mode.

use super::normal::{bits, halves, values};
use super::places::Area;
use super::ranks::{FP8, Launch, POWERS, Ranks, Turn};
use crate::expand::Values;
use crate::layout::Shape;
use crate::low::Cast;
use crate::places::BLOCK;
use crate::tokens::{Tokens, check_chosen, check_weights};
use crate::{Result, demand};
use ember_deepgemm::ScaleFormat;
use half::bf16;
use std::time::Duration;

/// All ranks of a group, on one GPU, for few tokens: as
/// [`Group::low_latency_dispatch`](crate::Group::low_latency_dispatch), in one launch for both halves.
pub struct CudaLow {
    ranks: Ranks,
}

/// What all ranks have received. It stays on the GPU until two more dispatches have been made.
#[derive(Clone, Debug)]
pub struct CudaLowDispatched {
    turn: Turn,
    fp8: bool,
    tokens: Vec<usize>,
    seconds: f64,
}

/// What a rank has received; as [`LowDispatched`](crate::LowDispatched).
#[derive(Clone, PartialEq, Debug)]
pub struct CudaLowReceived {
    /// `[experts of this rank, ranks * tokens, hidden]`; zeros behind the rows that count.
    pub values: Values,
    /// Rows of each expert that count.
    pub counts: Vec<u32>,
    /// `[experts of this rank, ranks]`: where among an expert's rows those of each rank begin, and how many they are.
    pub ranges: Vec<(u32, u32)>,
    /// For each expert, where its rows come from: rank, and token there.
    pub sources: Vec<Vec<(u32, u32)>>,
}

/// What a rank's experts have made of what it received, and its own weights.
#[derive(Clone, Copy, Debug)]
pub struct LowBack<'a> {
    /// `[experts of this rank, ranks * tokens, hidden]`; those behind the rows that count may be anything.
    pub rows: &'a [bf16],
    /// `[tokens, topk]`.
    pub weights: &'a [f32],
}

impl CudaLowDispatched {
    /// Seconds on the GPU, without copies from and to the host.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }
}

impl CudaLow {
    /// As [`CudaGroup::new`](super::CudaGroup::new). Each expert has room for all tokens of all ranks.
    ///
    /// # Errors
    /// If the numbers don't fit, there is no such GPU or no compiler, or too little memory.
    pub fn new(shape: Shape, blocks: usize, limit: Duration) -> Result<Self> {
        shape.check()?;
        let numbers = (shape.experts as u128) * (shape.tokens as u128) * (shape.hidden as u128);
        demand(numbers < 1 << 40, "tokens", || {
            format!("{} tokens of each rank for each expert are more than memory can hold", shape.tokens)
        })?;
        Ok(Self { ranks: Ranks::on_gpu(shape, blocks, true, limit)? })
    }
    #[cfg(test)]
    pub(super) fn on(ranks: Ranks) -> Self {
        Self { ranks }
    }

    /// Sends each token of each rank, `(x, chosen)`, to the ranks of its experts; the GPU turns it into FP8 if asked.
    ///
    /// # Errors
    /// If the numbers don't fit or can't be turned into FP8, or a rank doesn't do its part in time.
    pub fn dispatch(&mut self, of: &[(&[bf16], &[i64])], cast: Cast) -> Result<CudaLowDispatched> {
        self.ranks.check_ranks("of", of.len())?;
        let (shape, mut tokens) = (self.ranks.shape, Vec::with_capacity(of.len()));
        for (x, chosen) in of {
            let count = Tokens::Bf16(x).check(&shape)?;
            check_chosen(&shape, count, chosen)?;
            let bad = x.iter().position(|x| !x.is_finite()).filter(|_| cast != Cast::Bf16);
            demand(bad.is_none(), "x", || {
                let at = bad.unwrap_or(0);
                let (row, column) = (at / shape.hidden, at % shape.hidden);
                format!("{} in row {row}, column {column} can't be quantised", x[at])
            })?;
            tokens.push(count);
        }
        self.ranks.check_alive()?;
        let turn = self.ranks.next();
        for (rank, (x, chosen)) in of.iter().enumerate() {
            self.ranks.write(rank, Area::X, turn, bits(x))?;
            self.ranks.write_chosen(rank, turn, chosen)?;
        }
        let mode = match cast {
            Cast::Bf16 => 0,
            Cast::Fp8(ScaleFormat::F32) => FP8,
            Cast::Fp8(ScaleFormat::Ue8m0) => FP8 | POWERS,
        };
        let launch = Launch { turn, old: turn, mode, biases: 0, tokens: &tokens };
        let (_, seconds) = self.ranks.run(&super::low_dispatch(), &launch)?;
        Ok(CudaLowDispatched { turn, fp8: mode & FP8 != 0, tokens, seconds })
    }

    /// What a rank has received, copied to the host.
    ///
    /// # Errors
    /// If there is no such rank, or `of` is older than the last two dispatches.
    pub fn received(&self, of: &CudaLowDispatched, rank: usize) -> Result<CudaLowReceived> {
        let (ranks, turn) = (&self.ranks, of.turn);
        ranks.check_alive()?;
        ranks.check_turn(turn)?;
        ranks.check_rank(rank)?;
        let (hidden, local) = (ranks.shape.hidden, ranks.shape.local_experts());
        let rows_each = ranks.shape.ranks * ranks.shape.tokens;
        let found: Vec<u32> = ranks.read(rank, Area::Ranges, turn, 0, 2 * local * ranks.shape.ranks)?;
        let ranges: Vec<(u32, u32)> = found.chunks(2).map(|range| (range[0], range[1])).collect();
        let mut out = CudaLowReceived {
            values: Values::zeros(of.fp8, local * rows_each, hidden),
            counts: ranges.chunks(ranks.shape.ranks).map(|of| of.iter().map(|range| range.1).sum()).collect(),
            ranges,
            sources: Vec::new(),
        };
        for (expert, count) in out.counts.iter().enumerate() {
            let (first, count) = (expert * rows_each, *count as usize);
            let sources: Vec<u32> = ranks.read(rank, Area::Sources, turn, 4 * first, 4 * count)?;
            out.sources.push(sources.chunks(4).map(|source| (source[0], source[1])).collect());
            let part = values(ranks, rank, turn, of.fp8, [first, count])?;
            match (&mut out.values, part) {
                (Values::Bf16(all), Values::Bf16(part)) => {
                    all[first * hidden..][..part.len()].copy_from_slice(&part);
                }
                (Values::Fp8 { values, scales }, Values::Fp8 { values: part, scales: its }) => {
                    values[first * hidden..][..part.len()].copy_from_slice(&part);
                    scales[first * hidden.div_ceil(BLOCK)..][..its.len()].copy_from_slice(&its);
                }
                _ => demand(false, "of", || "rows are of two kinds".into())?,
            }
        }
        Ok(out)
    }

    /// Sends the experts' results back: for each rank the sums of those of its tokens times its weights, and the
    /// seconds that the GPU took. As [`Group::low_latency_combine`](crate::Group::low_latency_combine).
    ///
    /// # Errors
    /// If the numbers don't fit, `of` is older than the last two dispatches, or a rank doesn't do its part in time.
    pub fn combine(&mut self, back: &[LowBack<'_>], of: &CudaLowDispatched) -> Result<(Vec<Vec<bf16>>, f64)> {
        self.ranks.check_turn(of.turn)?;
        self.ranks.check_ranks("back", back.len())?;
        let (shape, local) = (self.ranks.shape, self.ranks.shape.local_experts());
        let rows_each = shape.ranks * shape.tokens;
        let needed = local * rows_each * shape.hidden;
        for (back, tokens) in back.iter().zip(&of.tokens) {
            let length = back.rows.len();
            demand(length == needed, "rows", || {
                format!("has {length} numbers, not the {needed} of {local} experts with {rows_each} rows")
            })?;
            check_weights(&shape, *tokens, back.weights)?;
        }
        self.ranks.check_alive()?;
        for (rank, back) in back.iter().enumerate() {
            self.ranks.write(rank, Area::Y, of.turn, bits(back.rows))?;
            self.ranks.write(rank, Area::XWeights, of.turn, back.weights)?;
        }
        let launch = Launch { turn: of.turn, old: of.turn, mode: 0, biases: 0, tokens: &of.tokens };
        let (_, seconds) = self.ranks.run(&super::low_combine(), &launch)?;
        let sums = |rank: usize| {
            let count = of.tokens[rank] * shape.hidden;
            Ok(halves(&self.ranks.read(rank, Area::Out, of.turn, 0, count)?))
        };
        Ok(((0..back.len()).map(sums).collect::<Result<_>>()?, seconds))
    }
}
