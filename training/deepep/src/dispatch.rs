//! Tokens to the ranks of their experts.

use crate::group::{Group, Turn};
use crate::layout::Shape;
use crate::numbers::{halves, numbers, viewed};
use crate::places::{BLOCK, BUFFERS, COUNTS_MORE, Signal};
use crate::tokens::{Tokens, check_chosen, check_weights};
use crate::ways::{Handle, Way, picked, to_nodes};
use crate::{EpError, Result, demand};
use half::bf16;
use zerocopy::IntoBytes;

/// Tokens that a rank has received: those of rank 0 first, each rank's in their order. Two results may be alive at
/// once; the older one must be dropped before the next dispatch, and other ranks wait for that.
pub struct Dispatched<'g> {
    group: &'g Group,
    turn: Turn,
    width: usize,
    pub(crate) handle: Handle,
    /// `[rows, topk]`: the experts that a token chose, as numbers of this rank's; -1 for those of other ranks. Empty
    /// after a dispatch by a handle.
    pub chosen: Vec<i64>,
    /// `[rows, topk]`: their weights; 0 for those of other ranks. Empty after a dispatch by a handle.
    pub weights: Vec<f32>,
    /// Where each row comes from: rank, and token there.
    pub sources: Vec<(u32, u32)>,
    /// Rows of each of this rank's experts. Empty after a dispatch by a handle.
    pub per_expert: Vec<u32>,
}

impl Dispatched<'_> {
    /// What went where.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
    /// The tokens `[rows, hidden]`, if they are in BF16.
    pub fn bf16(&self) -> Option<&[bf16]> {
        let at = self.group.places.values[self.turn.buffer];
        (self.width == 2).then(|| halves(self.group.heap.own(at, 2 * self.numbers())))
    }
    /// The tokens `[rows, hidden]` and their scales `[rows, ceil(hidden / 128)]`, if they are in FP8.
    pub fn fp8(&self) -> Option<(&[u8], &[f32])> {
        if self.width != 1 {
            return None;
        }
        let (group, scales) = (self.group, self.handle.rows() * self.group.shape.hidden.div_ceil(BLOCK));
        let values = group.heap.own(group.places.values[self.turn.buffer], self.numbers());
        let scales = group.heap.own(group.places.scales[self.turn.buffer], 4 * scales);
        Some((values, viewed(scales)))
    }
    /// Rows of each of this rank's experts, rounded up to a multiple of `alignment`: what each would take in
    /// [`Dispatched::expand`].
    ///
    /// # Errors
    /// If `alignment` is not between 1 and 65536.
    pub fn aligned_per_expert(&self, alignment: usize) -> Result<Vec<u32>> {
        crate::expand::check_alignment(alignment)?;
        Ok(self.per_expert.iter().map(|rows| rows.next_multiple_of(alignment as u32)).collect())
    }
    pub(crate) fn shape(&self) -> &Shape {
        &self.group.shape
    }
    fn numbers(&self) -> usize {
        self.handle.rows() * self.group.shape.hidden
    }
}

impl Drop for Dispatched<'_> {
    fn drop(&mut self) {
        self.group.alive.borrow_mut()[self.turn.buffer] = false;
        self.group.tell_all(Signal::TokensDone(self.turn.buffer), self.turn);
    }
}

/// Tokens that are passed on, as rows; those of row `t` lie at `at[t]`, or at `t`.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) values: &'a [u8],
    /// Bytes of a number.
    pub(crate) width: usize,
    pub(crate) scales: &'a [f32],
    /// Whether the numbers of their experts go with the tokens.
    pub(crate) experts: bool,
    /// `[rows, topk]`, if they do too.
    pub(crate) weights: Option<&'a [f32]>,
    pub(crate) at: Option<&'a [u32]>,
}

impl<'a> Load<'a> {
    /// Own tokens on their way.
    pub(crate) fn own(tokens: Tokens<'a>, experts: bool, weights: Option<&'a [f32]>, way: &'a Way) -> Self {
        let (values, width, scales) = (tokens.bytes(), tokens.width(), tokens.scales());
        Self { values, width, scales, experts, weights, at: Some(&way.tokens) }
    }
}

/// What kind of dispatch a rank makes, to be compared.
pub(crate) fn kind(width: usize, with_experts: bool, low_latency: bool) -> u32 {
    (width + 4 * usize::from(with_experts) + 8 * usize::from(low_latency)) as u32
}
/// Bytes of a number in such a dispatch.
pub(crate) fn width(kind: u32) -> usize {
    (kind % 4) as usize
}
/// Whether the numbers of experts go with its tokens.
pub(crate) fn with_experts(kind: u32) -> bool {
    kind & 4 != 0
}

impl Group {
    /// Sends each token to the ranks of the experts `chosen[tokens, topk]`, -1 for none, with their `weights`.
    ///
    /// # Errors
    /// If the numbers don't fit, two results are alive, or a rank doesn't do its part.
    pub fn dispatch(&self, tokens: Tokens<'_>, chosen: &[i64], weights: &[f32]) -> Result<Dispatched<'_>> {
        let count = tokens.check(&self.shape)?;
        check_chosen(&self.shape, count, chosen)?;
        check_weights(&self.shape, count, weights)?;
        self.together(|| self.send(tokens, self.ways(count, chosen), Some(weights)))
    }

    /// Sends each token where an earlier one went, without experts and weights: what the backward pass of
    /// [`Group::combine`] does.
    ///
    /// # Errors
    /// If there are not as many tokens as then, two results are alive, or a rank doesn't do its part.
    pub fn dispatch_again(&self, tokens: Tokens<'_>, handle: &Handle) -> Result<Dispatched<'_>> {
        self.check_handle(handle)?;
        let count = tokens.check(&self.shape)?;
        demand(count == handle.tokens, "tokens", || {
            format!("there are {count}, not the {} of then", handle.tokens)
        })?;
        self.together(|| self.send(tokens, handle.clone(), None))
    }

    /// The beginning of a handle: where own tokens go.
    pub(crate) fn ways(&self, tokens: usize, chosen: &[i64]) -> Handle {
        let (to_node, chosen) = to_nodes(chosen, &self.shape, self.here());
        let own = to_node[self.node()].clone();
        let its = picked(&chosen, self.shape.topk, &own);
        let mut ways = vec![Way::default(); self.nodes()];
        ways[self.node()] = self.way(own, its);
        let of = (self.heap.number(), self.rank());
        Handle { of, id: 0, tokens, to_node, chosen, ways, before: Vec::new() }
    }
    /// Of tokens to the ranks here.
    pub(crate) fn way(&self, tokens: Vec<u32>, chosen: Vec<i32>) -> Way {
        let first = self.global(0) * self.shape.local_experts();
        Way::new(tokens, chosen, &self.shape, self.here(), first)
    }

    /// The buffer of the next dispatch, when it is free.
    pub(crate) fn begin_dispatch(&self, others: usize) -> Result<Turn> {
        let turn = self.dispatches.next(others)?;
        demand(!self.alive.borrow()[turn.buffer], "results", || {
            format!("{BUFFERS} of earlier dispatches are alive: drop the older one before")
        })?;
        self.dispatches.begin(turn);
        self.wait_free(Signal::TokensDone(turn.buffer), turn, "given up an earlier result")?;
        Ok(turn)
    }

    fn send(&self, tokens: Tokens<'_>, handle: Handle, weights: Option<&[f32]>) -> Result<Dispatched<'_>> {
        let (turn, here) = (self.begin_dispatch(0)?, self.here());
        let kind = kind(tokens.width(), weights.is_some(), false);
        let mut handle = handle;
        if weights.is_some() {
            handle.id = turn.epoch;
        }
        self.send_tokens_across(turn, kind, tokens, weights, &handle)?;
        let arrived = self.tokens_from_across(turn, kind, weights.is_some(), &mut handle)?;
        self.tell_counts(turn, &handle, kind);
        let counts = self.counts(turn, kind, handle.id)?;
        for to in 0..here {
            for (node, way) in handle.ways.iter().enumerate() {
                let before = |(n, i): (usize, usize)| counts[i][n * here + to] as usize;
                let earlier = (0..node).flat_map(|n| (0..here).map(move |i| (n, i)));
                let first: usize = earlier.chain((0..self.index()).map(|i| (node, i))).map(before).sum();
                let load = match &arrived[node] {
                    Some(arrived) => arrived.load(),
                    None => Load::own(tokens, weights.is_some(), weights, way),
                };
                self.put_rows(turn, to, first, way, &load);
            }
            self.tell(to, Signal::Tokens, turn);
        }
        self.wait_tokens(turn)?;
        handle.before = self.before(&counts);
        self.dispatches.end(turn);
        self.alive.borrow_mut()[turn.buffer] = true;
        Ok(self.received(turn, tokens.width(), handle, weights.is_some()))
    }

    /// Tells all ranks here how many rows of each node come to each.
    pub(crate) fn tell_counts(&self, turn: Turn, handle: &Handle, kind: u32) {
        let mut counts = vec![0; self.shape.ranks];
        for (counts, way) in counts.chunks_mut(self.here()).zip(&handle.ways) {
            counts.iter_mut().zip(&way.to_rank).for_each(|(count, rows)| *count = rows.len() as u32);
        }
        counts.extend([kind, handle.id]);
        for to in 0..self.here() {
            let at = self.places.counts[turn.buffer] + 4 * self.index() * counts.len();
            self.heap.put(to, at, counts.as_bytes());
            self.tell(to, Signal::Counts, turn);
        }
    }

    /// From each rank here: the rows of each node to each.
    pub(crate) fn counts(&self, turn: Turn, kind: u32, id: u32) -> Result<Vec<Vec<u32>>> {
        let each = self.shape.ranks + COUNTS_MORE;
        let mut all = Vec::with_capacity(self.here());
        for from in 0..self.here() {
            self.wait(from, Signal::Counts, turn, "said how many tokens it sends")?;
            let at = self.places.counts[turn.buffer] + 4 * from * each;
            let mut counts: Vec<u32> = numbers(self.heap.own(at, 4 * each));
            let theirs = counts.split_off(self.shape.ranks);
            let (rank, names) = (self.global(from), ["kind of dispatch", "dispatch to go after"]);
            self.agree(rank, names, &theirs, [kind, id])?;
            // It would lead out of the heap.
            if let Some(&many) = counts.iter().find(|count| **count as usize > self.shape.tokens) {
                let (theirs, ours) = (many.into(), self.shape.tokens as u64);
                return Err(EpError::Disagree { rank, what: "tokens", theirs, ours });
            }
            all.push(counts);
        }
        Ok(all)
    }

    /// Rows that come here from a rank.
    pub(crate) fn count_from(&self, rank: usize, counts: &[Vec<u32>]) -> usize {
        let here = self.here();
        counts[rank % here][rank / here * here + self.index()] as usize
    }
    /// Rows that come here from the ranks below each, and from all.
    pub(crate) fn before(&self, counts: &[Vec<u32>]) -> Vec<usize> {
        let mut before = vec![0];
        for rank in 0..self.shape.ranks {
            before.push(before[rank] + self.count_from(rank, counts));
        }
        before
    }

    /// Writes tokens into a rank's rows from `first` on.
    pub(crate) fn put_rows(&self, turn: Turn, to: usize, first: usize, way: &Way, load: &Load<'_>) {
        let (places, Shape { hidden, topk, .. }) = (&self.places, self.shape);
        let (row, scales, buffer) = (load.width * hidden, hidden.div_ceil(BLOCK), turn.buffer);
        for (i, &t) in way.to_rank[to].iter().enumerate() {
            let put = |at: usize, bytes: &[u8]| self.heap.put(to, at + (first + i) * bytes.len(), bytes);
            let (t, at) = (t as usize, load.at.map_or(t, |at| at[t as usize]) as usize);
            put(places.values[buffer], &load.values[at * row..][..row]);
            if load.width == 1 {
                put(places.scales[buffer], load.scales[at * scales..][..scales].as_bytes());
            }
            if load.experts {
                put(places.chosen[buffer], way.chosen[t * topk..][..topk].as_bytes());
            }
            if let Some(weights) = load.weights {
                put(places.weights[buffer], weights[at * topk..][..topk].as_bytes());
            }
            put(places.sources[buffer], way.tokens[t].as_bytes());
        }
    }

    pub(crate) fn wait_tokens(&self, turn: Turn) -> Result<()> {
        (0..self.here()).try_for_each(|from| self.wait(from, Signal::Tokens, turn, "sent its tokens"))
    }

    fn received(&self, turn: Turn, width: usize, handle: Handle, with_experts: bool) -> Dispatched<'_> {
        let (rows, topk, local) = (handle.rows(), self.shape.topk, self.shape.local_experts());
        let (places, buffer) = (&self.places, turn.buffer);
        let (mut chosen, mut weights) = (Vec::new(), Vec::new());
        let (mut sources, mut per_expert) = (Vec::with_capacity(rows), Vec::new());
        let tokens: &[u32] = viewed(self.heap.own(places.sources[buffer], 4 * rows));
        for (from, ends) in handle.before.windows(2).enumerate() {
            sources.extend(tokens[ends[0]..ends[1]].iter().map(|token| (from as u32, *token)));
        }
        if with_experts {
            let ids: &[i32] = viewed(self.heap.own(places.chosen[buffer], 4 * rows * topk));
            weights = numbers(self.heap.own(places.weights[buffer], 4 * rows * topk));
            per_expert = vec![0; local];
            for (id, weight) in ids.iter().zip(&mut weights) {
                let own = self.own_expert(*id);
                if let Some(expert) = own {
                    per_expert[expert] += 1;
                } else {
                    *weight = 0.0;
                }
                chosen.push(own.map_or(-1, |expert| expert as i64));
            }
        }
        Dispatched { group: self, turn, width, handle, chosen, weights, sources, per_expert }
    }

    /// An expert's number among those of this rank, if it is one.
    pub(crate) fn own_expert(&self, id: i32) -> Option<usize> {
        let (id, local) = (usize::try_from(id).ok()?, self.shape.local_experts());
        id.checked_sub(self.rank() * local).filter(|expert| *expert < local)
    }
}
