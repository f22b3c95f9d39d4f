//! Each token once to each rank, and back.

use super::places::Area;
use super::ranks::{AGAIN, FP8, Launch, Ranks, Turn, WITH_WEIGHTS};
use crate::combine::{Combined, check_biases, check_rows};
use crate::expand::Values;
use crate::layout::Shape;
use crate::places::BLOCK;
use crate::tokens::{Tokens, check_chosen, check_weights};
use crate::{EpError, Result, demand};
use ember_deepgemm::E4m3;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use std::time::Duration;

/// What a rank sends.
#[derive(Clone, Copy, Debug)]
pub struct Sent<'a> {
    /// Its tokens.
    pub tokens: Tokens<'a>,
    /// `[tokens, topk]`: their experts, -1 for none.
    pub chosen: &'a [i64],
    /// `[tokens, topk]`: their weights.
    pub weights: &'a [f32],
}

/// What a rank sends back, and what it adds the others' to.
#[derive(Clone, Copy, Debug)]
pub struct Back<'a> {
    /// `[rows, hidden]`, weighted already, of the rows that it received.
    pub rows: &'a [bf16],
    /// `[rows, topk]`, to be added up too; of all ranks or of none.
    pub weights: Option<&'a [f32]>,
    /// `[tokens, hidden]` each, at most two; as many on all ranks.
    pub biases: &'a [&'a [bf16]],
}

/// What all ranks have received. It stays on the GPU until two more dispatches have been made.
#[derive(Clone, Debug)]
pub struct CudaDispatched {
    turn: Turn,
    fp8: bool,
    with_experts: bool,
    tokens: Vec<usize>,
    before: Vec<Vec<usize>>,
    per_expert: Vec<Vec<u32>>,
    seconds: f64,
}

/// What a rank has received: rows in the order of rank and token.
#[derive(Clone, PartialEq, Debug)]
pub struct CudaReceived {
    /// `[rows, hidden]`.
    pub values: Values,
    /// `[rows, topk]`: the experts, as numbers of this rank's; -1 for those of others. Empty after `dispatch_again`.
    pub chosen: Vec<i64>,
    /// `[rows, topk]`: their weights; 0 for those of others. Empty after `dispatch_again`.
    pub weights: Vec<f32>,
    /// Where each row comes from: rank, and token there.
    pub sources: Vec<(u32, u32)>,
    /// Rows of each of this rank's experts. Empty after `dispatch_again`.
    pub per_expert: Vec<u32>,
}

/// What came back to all ranks.
#[derive(Clone, PartialEq, Debug)]
pub struct CudaCombined {
    /// Of each rank.
    pub ranks: Vec<Combined>,
    /// Seconds on the GPU, without copies from and to the host.
    pub seconds: f64,
}

/// All ranks of a group, on one GPU.
pub struct CudaGroup {
    ranks: Ranks,
}

impl CudaDispatched {
    /// Rows that a rank has received; 0 if there is no such rank.
    pub fn rows(&self, rank: usize) -> usize {
        self.before.get(rank).and_then(|before| before.last()).copied().unwrap_or(0)
    }
    /// Rows of each expert of a rank. Empty after `dispatch_again`, and if there is no such rank.
    pub fn per_expert(&self, rank: usize) -> &[u32] {
        self.per_expert.get(rank).map_or(&[], Vec::as_slice)
    }
    /// Seconds on the GPU, without copies from and to the host.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }
}

impl CudaGroup {
    /// On the first GPU, with so many of its processors (blocks of threads) for each rank: all together at most as many
    /// as there are. `topk` is at most 32, `experts` at most 4096, `hidden` a multiple of 16. A block waits for the
    /// others `limit` at most.
    ///
    /// # Errors
    /// If the numbers don't fit, there is no such GPU or no compiler, or too little memory.
    pub fn new(shape: Shape, blocks: usize, limit: Duration) -> Result<Self> {
        Ok(Self { ranks: Ranks::on_gpu(shape, blocks, false, limit)? })
    }
    /// The group's numbers.
    pub fn shape(&self) -> &Shape {
        &self.ranks.shape
    }
    #[cfg(test)]
    pub(super) fn on(ranks: Ranks) -> Self {
        Self { ranks }
    }

    /// Sends each token of each rank to the ranks of its experts. As [`Group::dispatch`](crate::Group::dispatch).
    ///
    /// # Errors
    /// If the numbers don't fit, some ranks send FP8 and some BF16, or a rank doesn't do its part in time.
    pub fn dispatch(&mut self, of: &[Sent<'_>]) -> Result<CudaDispatched> {
        self.ranks.check_ranks("of", of.len())?;
        let mut counts = Vec::with_capacity(of.len());
        for sent in of {
            let count = sent.tokens.check(&self.ranks.shape)?;
            check_chosen(&self.ranks.shape, count, sent.chosen)?;
            check_weights(&self.ranks.shape, count, sent.weights)?;
            counts.push(count);
        }
        let tokens: Vec<Tokens<'_>> = of.iter().map(|sent| sent.tokens).collect();
        let fp8 = one_kind(&tokens)?;
        self.ranks.check_alive()?;
        let turn = self.ranks.next();
        for (rank, sent) in of.iter().enumerate() {
            self.ranks.write_chosen(rank, turn, sent.chosen)?;
            self.ranks.write(rank, Area::XWeights, turn, sent.weights)?;
        }
        self.send(&tokens, counts, fp8, turn, None)
    }

    /// Sends each token where one went in `of`, without experts and weights. As
    /// [`Group::dispatch_again`](crate::Group::dispatch_again).
    ///
    /// # Errors
    /// As [`CudaGroup::dispatch`], and if `of` is older than the last two dispatches.
    pub fn dispatch_again(&mut self, tokens: &[Tokens<'_>], of: &CudaDispatched) -> Result<CudaDispatched> {
        self.ranks.check_turn(of.turn)?;
        self.ranks.check_ranks("tokens", tokens.len())?;
        for (tokens, then) in tokens.iter().zip(&of.tokens) {
            let count = tokens.check(&self.ranks.shape)?;
            demand(count == *then, "tokens", || format!("there are {count}, not the {then} of then"))?;
        }
        let fp8 = one_kind(tokens)?;
        self.ranks.check_alive()?;
        let turn = self.ranks.next();
        self.send(tokens, of.tokens.clone(), fp8, turn, Some(of.turn))
    }

    fn send(
        &mut self,
        tokens: &[Tokens<'_>],
        counts: Vec<usize>,
        fp8: bool,
        turn: Turn,
        old: Option<Turn>,
    ) -> Result<CudaDispatched> {
        for (rank, tokens) in tokens.iter().enumerate() {
            self.ranks.write_tokens(rank, turn, *tokens)?;
        }
        let mode = if old.is_some() { AGAIN } else { 0 } | if fp8 { FP8 } else { 0 };
        let launch = Launch { turn, old: old.unwrap_or(turn), mode, biases: 0, tokens: &counts };
        let (summaries, seconds) = self.ranks.run(&super::dispatch(), &launch)?;
        let numbers = |summary: &Vec<u8>, area, count: usize| -> Vec<u32> {
            let at = self.ranks.places.at(area, turn.buffer());
            let words = summary[at..][..4 * count].chunks(4);
            words.map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
        };
        let shape = self.ranks.shape;
        let experts = if old.is_some() { 0 } else { shape.local_experts() };
        let before = summaries.iter().map(|summary| {
            numbers(summary, Area::Before, shape.ranks + 1).into_iter().map(|rows| rows as usize).collect()
        });
        Ok(CudaDispatched {
            turn,
            fp8,
            with_experts: old.is_none(),
            tokens: counts,
            before: before.collect(),
            per_expert: summaries.iter().map(|summary| numbers(summary, Area::PerExpert, experts)).collect(),
            seconds,
        })
    }

    /// What a rank has received, copied to the host.
    ///
    /// # Errors
    /// If there is no such rank, or `of` is older than the last two dispatches.
    pub fn received(&self, of: &CudaDispatched, rank: usize) -> Result<CudaReceived> {
        let (ranks, turn) = (&self.ranks, of.turn);
        ranks.check_alive()?;
        ranks.check_turn(turn)?;
        ranks.check_rank(rank)?;
        let (rows, topk) = (of.rows(rank), ranks.shape.topk);
        let values = values(ranks, rank, turn, of.fp8, [0, rows])?;
        let experts = if of.with_experts { rows * topk } else { 0 };
        let chosen: Vec<i32> = ranks.read(rank, Area::Chosen, turn, 0, experts)?;
        let sources: Vec<u32> = ranks.read(rank, Area::Sources, turn, 0, 2 * rows)?;
        Ok(CudaReceived {
            values,
            chosen: chosen.into_iter().map(i64::from).collect(),
            weights: ranks.read(rank, Area::Weights, turn, 0, experts)?,
            sources: sources.chunks(2).map(|source| (source[0], source[1])).collect(),
            per_expert: of.per_expert[rank].clone(),
        })
    }

    /// Sends what has become of the rows of a dispatch back and adds it. As [`Group::combine`](crate::Group::combine).
    ///
    /// # Errors
    /// If the numbers don't fit, ranks differ in having weights or in the number of biases, `of` is older than the last
    /// two dispatches, or a rank doesn't do its part in time.
    pub fn combine(&mut self, back: &[Back<'_>], of: &CudaDispatched) -> Result<CudaCombined> {
        self.ranks.check_turn(of.turn)?;
        self.ranks.check_ranks("back", back.len())?;
        let Shape { hidden, topk, tokens, .. } = self.ranks.shape;
        let first = back[0];
        for (rank, back) in back.iter().enumerate() {
            check_rows(back.rows, of.rows(rank), hidden)?;
            let needed = of.rows(rank) * topk;
            demand(back.weights.is_none_or(|weights| weights.len() == needed), "weights", || {
                let (length, rows) = (back.weights.map_or(0, <[f32]>::len), of.rows(rank));
                format!("has {length} numbers, not the {needed} of {rows} rows")
            })?;
            check_biases(back.biases, of.tokens[rank] * hidden)?;
            agree(rank, "weights", back.weights.is_some().into(), first.weights.is_some().into())?;
            agree(rank, "biases", back.biases.len() as u64, first.biases.len() as u64)?;
        }
        self.ranks.check_alive()?;
        let with_weights = first.weights.is_some();
        for (rank, back) in back.iter().enumerate() {
            self.ranks.write(rank, Area::Y, of.turn, bits(back.rows))?;
            self.ranks.write(rank, Area::YWeights, of.turn, back.weights.unwrap_or(&[]))?;
            for (i, bias) in back.biases.iter().enumerate() {
                self.ranks.write_at(rank, Area::Biases, of.turn, i * tokens * hidden, bits(bias))?;
            }
        }
        let mode = if with_weights { WITH_WEIGHTS } else { 0 };
        let biases = first.biases.len();
        let launch = Launch { turn: of.turn, old: of.turn, mode, biases, tokens: &of.tokens };
        let (_, seconds) = self.ranks.run(&super::combine(), &launch)?;
        let combined = |rank: usize| {
            let count = of.tokens[rank];
            let weights = || self.ranks.read(rank, Area::OutWeights, of.turn, 0, count * topk);
            Ok(Combined {
                tokens: halves(&self.ranks.read(rank, Area::Out, of.turn, 0, count * hidden)?),
                weights: with_weights.then(weights).transpose()?,
            })
        };
        let ranks = (0..back.len()).map(combined).collect::<Result<_>>()?;
        Ok(CudaCombined { ranks, seconds })
    }
}

/// Rows from `first` on of what a rank has received.
pub(super) fn values(
    ranks: &Ranks,
    rank: usize,
    turn: Turn,
    fp8: bool,
    [first, rows]: [usize; 2],
) -> Result<Values> {
    let (hidden, scales) = (ranks.shape.hidden, ranks.shape.hidden.div_ceil(BLOCK));
    if !fp8 {
        let bits: Vec<u16> = ranks.read(rank, Area::Values, turn, first * hidden, rows * hidden)?;
        return Ok(Values::Bf16(halves(&bits)));
    }
    let bits: Vec<u8> = ranks.read(rank, Area::Values, turn, first * hidden, rows * hidden)?;
    let scales = ranks.read(rank, Area::Scales, turn, first * scales, rows * scales)?;
    Ok(Values::Fp8 { values: bits.into_iter().map(E4m3).collect(), scales })
}

pub(super) fn bits(numbers: &[bf16]) -> &[u16] {
    numbers.reinterpret_cast()
}
pub(super) fn halves(bits: &[u16]) -> Vec<bf16> {
    bits.iter().map(|bits| bf16::from_bits(*bits)).collect()
}

/// An error unless a rank says what rank 0 says.
fn agree(rank: usize, what: &'static str, theirs: u64, ours: u64) -> Result<()> {
    if theirs == ours { Ok(()) } else { Err(EpError::Disagree { rank, what, theirs, ours }) }
}

/// Whether all tokens are FP8.
fn one_kind(tokens: &[Tokens<'_>]) -> Result<bool> {
    let width = |tokens: &Tokens<'_>| tokens.width() as u64;
    let first = tokens.first().map_or(2, width);
    for (rank, tokens) in tokens.iter().enumerate() {
        agree(rank, "kind of dispatch", width(tokens), first)?;
    }
    Ok(first == 1)
}
