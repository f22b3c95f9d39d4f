//! The low-latency mode: fixed places instead of counts that go ahead, and calls in two halves.

use crate::combine::{Back, Entry};
use crate::dispatch::{Load, kind};
use crate::expand::Values;
use crate::group::{Group, Turn};
use crate::layout::Shape;
use crate::numbers::{halves, viewed};
use crate::places::{BLOCK, BUFFERS, Signal};
use crate::returned::Order;
use crate::tokens::{Tokens, check_chosen, check_weights};
use crate::ways::Handle;
use crate::{EpError, Result, demand};
use ember_deepgemm::{E4m3, ScaleFormat, Scaled, View, per_token};
use half::bf16;

/// What tokens are turned into before they are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cast {
    /// They stay as they are.
    Bf16,
    /// FP8, with a scale for each 128 numbers, as [`per_token`] makes it.
    Fp8(ScaleFormat),
}

/// Tokens on their way. The call has sent this rank's; what it computes until [`LowDispatch::receive`] runs while the
/// others' arrive. Dropped without that, it ends the group.
#[must_use = "the other ranks' tokens are still to be received"]
pub struct LowDispatch<'g> {
    group: &'g Group,
    turn: Turn,
    kind: u32,
    width: usize,
    handle: Handle,
    received: bool,
}

/// Tokens that a rank has received: each expert has its own rows, `ranks * tokens` of the group's numbers, of which the
/// first count. They are in the order of rank and token. (The original has the ranks in the order of their arrival.)
#[derive(Clone, PartialEq, Debug)]
pub struct LowDispatched {
    /// `[experts of this rank, ranks * tokens, hidden]`; zeros behind the rows that count.
    pub values: Values,
    /// Rows of each expert that count: what [`fp8_gemm_nt_masked`](ember_deepgemm::Cpu::fp8_gemm_nt_masked) takes.
    pub counts: Vec<u32>,
    /// `[experts of this rank, ranks]`: where among an expert's rows those of each rank begin, and how many they are.
    pub ranges: Vec<(u32, u32)>,
    /// For each expert, where its rows come from: rank, and token there.
    pub sources: Vec<Vec<(u32, u32)>>,
    handle: Handle,
    entries: Vec<Entry>,
    hidden: usize,
}

/// Results on their way back; as [`LowDispatch`].
#[must_use = "the other ranks' results are still to be received"]
pub struct LowCombine<'g> {
    group: &'g Group,
    turn: Turn,
    handle: Handle,
    weights: Vec<f32>,
    received: bool,
}

impl Group {
    /// Sends each token to the ranks of the experts `chosen[tokens, topk]`, -1 for none, and returns. Two dispatches
    /// may be on their way at once; they are received in their order.
    ///
    /// # Errors
    /// If the numbers don't fit or can't be turned into FP8, two dispatches are on their way, or a rank has not
    /// received what was sent before.
    pub fn low_latency_dispatch(&self, x: &[bf16], chosen: &[i64], cast: Cast) -> Result<LowDispatch<'_>> {
        let Shape { hidden, tokens, .. } = self.shape;
        self.check_returns()?;
        let count = Tokens::Bf16(x).check(&self.shape)?;
        check_chosen(&self.shape, count, chosen)?;
        let numbers = (self.shape.experts as u128) * (tokens as u128) * (hidden as u128);
        demand(numbers < 1 << 46, "tokens", || {
            format!("{tokens} tokens of each rank for each expert are more than memory can hold")
        })?;
        let (bits, scales);
        let cast = match cast {
            Cast::Bf16 => Tokens::Bf16(x),
            Cast::Fp8(format) => {
                let quantised = View::new(x, [count, hidden]).and_then(|x| per_token(&x, format));
                let quantised = quantised
                    .map_err(|error| EpError::Argument { argument: error.argument, rule: error.rule })?;
                bits = quantised.values.iter().map(|value| value.0).collect::<Vec<u8>>();
                scales = quantised.scales;
                Tokens::Fp8 { values: &bits, scales: &scales }
            }
        };
        self.together(|| self.send_low(cast, self.ways(count, chosen)))
    }

    fn send_low(&self, tokens: Tokens<'_>, mut handle: Handle) -> Result<LowDispatch<'_>> {
        let turn = self.begin_dispatch(BUFFERS - 1)?;
        let (width, kind) = (tokens.width(), kind(tokens.width(), true, true));
        handle.id = turn.epoch;
        let way = &handle.ways[self.node()];
        for to in 0..self.here() {
            let first = self.rank() * self.shape.tokens;
            self.put_rows(turn, to, first, way, &Load::own(tokens, true, None, way));
        }
        self.send_tokens_across(turn, kind, tokens, None, &handle)?;
        if self.nodes() == 1 {
            self.tell_counts(turn, &handle, kind);
            self.tell_all(Signal::Tokens, turn);
        }
        Ok(LowDispatch { group: self, turn, kind, width, handle, received: false })
    }

    /// Passes the tokens of other nodes on.
    fn pass_on(&self, turn: Turn, kind: u32, handle: &mut Handle) -> Result<()> {
        if self.nodes() == 1 {
            return Ok(());
        }
        let arrived = self.tokens_from_across(turn, kind, false, handle)?;
        for (node, arrived) in arrived.iter().enumerate() {
            let first = (node * self.here() + self.index()) * self.shape.tokens;
            if let Some(arrived) = arrived {
                for to in 0..self.here() {
                    self.put_rows(turn, to, first, &handle.ways[node], &arrived.load());
                }
            }
        }
        self.tell_counts(turn, handle, kind);
        self.tell_all(Signal::Tokens, turn);
        Ok(())
    }

    /// Sends what the experts have made of a low-latency dispatch back, and returns; the sums are
    /// [`LowCombine::receive`]'s. `rows` lie as in `of`, those behind the ones that count may be anything; `weights`
    /// are those of this rank's tokens, `[tokens, topk]`.
    ///
    /// # Errors
    /// As [`Group::low_latency_dispatch`].
    pub fn low_latency_combine(
        &self,
        rows: &[bf16],
        weights: &[f32],
        of: &LowDispatched,
    ) -> Result<LowCombine<'_>> {
        self.check_handle(&of.handle)?;
        let needed = of.counts.len() * self.rows_of_expert() * self.shape.hidden;
        demand(rows.len() == needed, "rows", || {
            let (experts, rows_each) = (of.counts.len(), self.rows_of_expert());
            format!("has {} numbers, not the {needed} of {experts} experts with {rows_each} rows", rows.len())
        })?;
        check_weights(&self.shape, of.handle.tokens, weights)?;
        self.together(|| {
            let turn = self.combines.next(BUFFERS - 1)?;
            self.send_back(turn, Back::Choices(rows, &of.entries), None, &of.handle)?;
            let (handle, weights) = (of.handle.clone(), weights.to_vec());
            Ok(LowCombine { group: self, turn, handle, weights, received: false })
        })
    }

    fn rows_of_expert(&self) -> usize {
        self.shape.ranks * self.shape.tokens
    }

    /// Puts what has arrived where the experts want it.
    fn packed(&self, turn: Turn, width: usize, counts: &[Vec<u32>], handle: Handle) -> LowDispatched {
        let Shape { ranks, hidden, topk, tokens, .. } = self.shape;
        let (local, rows_each, places) = (self.shape.local_experts(), self.rows_of_expert(), &self.places);
        let mut out = LowDispatched {
            values: Values::zeros(width == 1, local * rows_each, hidden),
            counts: vec![0; local],
            ranges: vec![(0, 0); local * ranks],
            sources: vec![Vec::new(); local],
            handle,
            entries: Vec::new(),
            hidden,
        };
        for rank in 0..ranks {
            let count = self.count_from(rank, counts);
            let (first, begins) = (rank * tokens, out.counts.clone());
            let chosen = self.heap.own(places.chosen[turn.buffer] + 4 * first * topk, 4 * count * topk);
            let chosen: &[i32] = viewed(chosen);
            let of_rank: &[u32] = viewed(self.heap.own(places.sources[turn.buffer] + 4 * first, 4 * count));
            for (i, experts) in chosen.chunks(topk).enumerate() {
                for (k, id) in experts.iter().enumerate() {
                    let Some(expert) = self.own_expert(*id).filter(|_| !experts[..k].contains(id)) else {
                        continue;
                    };
                    let row = expert * rows_each + out.counts[expert] as usize;
                    out.counts[expert] += 1;
                    out.sources[expert].push((rank as u32, of_rank[i]));
                    let (row_number, rank, token) = (row as u64, rank as u32, of_rank[i]);
                    out.entries.push(Entry { row: row_number, rank, token, choice: k as u32 });
                    self.copy_row(turn, first + i, &mut out.values, row);
                }
            }
            for (expert, begin) in begins.into_iter().enumerate() {
                out.ranges[expert * ranks + rank] = (begin, out.counts[expert] - begin);
            }
        }
        out
    }

    /// Copies a row that has arrived.
    fn copy_row(&self, turn: Turn, from: usize, out: &mut Values, to: usize) {
        let (hidden, places) = (self.shape.hidden, &self.places);
        let blocks = hidden.div_ceil(BLOCK);
        match out {
            Values::Bf16(out) => {
                let row = self.heap.own(places.values[turn.buffer] + 2 * from * hidden, 2 * hidden);
                out[to * hidden..][..hidden].copy_from_slice(halves(row));
            }
            Values::Fp8 { values, scales } => {
                let row = self.heap.own(places.values[turn.buffer] + from * hidden, hidden);
                let to_row = values[to * hidden..][..hidden].iter_mut();
                to_row.zip(row).for_each(|(out, bits)| *out = E4m3(*bits));
                let row = self.heap.own(places.scales[turn.buffer] + 4 * from * blocks, 4 * blocks);
                scales[to * blocks..][..blocks].copy_from_slice(viewed(row));
            }
        }
    }
}

impl LowDispatch<'_> {
    /// Waits for the tokens of all ranks.
    ///
    /// # Errors
    /// If an earlier dispatch has not been received, or a rank doesn't do its part.
    pub fn receive(mut self) -> Result<LowDispatched> {
        let (group, turn) = (self.group, self.turn);
        group.dispatches.demand_oldest(turn)?;
        self.received = true;
        group.together(|| {
            let mut handle = self.handle.clone();
            group.pass_on(turn, self.kind, &mut handle)?;
            let counts = group.counts(turn, self.kind, handle.id)?;
            group.wait_tokens(turn)?;
            handle.before = group.before(&counts);
            let out = group.packed(turn, self.width, &counts, handle);
            group.tell_all(Signal::TokensDone(turn.buffer), turn);
            group.dispatches.end(turn);
            Ok(out)
        })
    }
}

impl LowCombine<'_> {
    /// Waits for what all ranks have made of this one's tokens: `[tokens, hidden]`, the sums of the experts' results
    /// times the weights, in `f32`, in the order of the choices, each product and each sum rounded.
    ///
    /// # Errors
    /// If an earlier combine has not been received, or a rank doesn't do its part.
    pub fn receive(mut self) -> Result<Vec<bf16>> {
        let (group, turn) = (self.group, self.turn);
        group.combines.demand_oldest(turn)?;
        self.received = true;
        let weights = Some(&self.weights[..]);
        let received = || group.receive_back(turn, Order::Choices, false, &self.handle, &[], weights);
        group.together(received).map(|combined| combined.tokens)
    }
}

const DROPPED: &str = "what was sent by a low-latency call was dropped without being received";

impl Drop for LowDispatch<'_> {
    fn drop(&mut self) {
        if !self.received {
            self.group.give_up(DROPPED);
        }
    }
}

impl Drop for LowCombine<'_> {
    fn drop(&mut self) {
        if !self.received {
            self.group.give_up(DROPPED);
        }
    }
}

impl LowDispatched {
    /// The rows of an expert as a matrix `[ranks * tokens, hidden]` to be multiplied, if they are in FP8.
    ///
    /// # Errors
    /// If there is no such expert here.
    pub fn scaled(&self, expert: usize) -> Result<Option<Scaled<'_>>> {
        demand(expert < self.counts.len(), "expert", || {
            format!("{expert} is none of {} experts of this rank", self.counts.len())
        })?;
        let rows = match &self.values {
            Values::Bf16(values) => values.len(),
            Values::Fp8 { values, .. } => values.len(),
        } / (self.hidden * self.counts.len());
        self.values.scaled(expert * rows, rows, self.hidden)
    }
}
