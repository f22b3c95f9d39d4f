//! What has come back of tokens, and in which order it is added.

use crate::group::{Group, Turn};
use crate::numbers::{add, add_weighted, halves, viewed};
use crate::ways::Way;
use half::bf16;

/// Which rows come back, and in which order they are added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// One from each rank; the ranks in their order.
    Ranks,
    /// One from each rank; the ranks in the order of the last of a token's choices there.
    LastChoices,
    /// One from each expert, in the order of the choices.
    Choices,
}

/// What has come back of a token.
#[derive(Default)]
pub(crate) struct Came<'s> {
    /// Rows in the order of adding, each with its choice if it is that of an expert.
    pub(crate) rows: Vec<(&'s [bf16], usize)>,
    /// Weights from each rank, in their order.
    pub(crate) weights: Vec<&'s [f32]>,
}

impl Came<'_> {
    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.weights.clear();
    }
    /// Adds the rows, times the weights of their choices if there are any.
    pub(crate) fn add_to(&self, sums: &mut [f32], weights: Option<&[f32]>) {
        for (row, k) in &self.rows {
            match weights {
                Some(weights) => add_weighted(sums, row, weights[*k]),
                None => add(sums, row),
            }
        }
    }
    pub(crate) fn add_weights_to(&self, sums: &mut [f32]) {
        for weights in &self.weights {
            sums.iter_mut().zip(*weights).for_each(|(sum, weight)| *sum += weight);
        }
    }
}

/// Numbers in the order of their last occurrence in `all`.
pub(crate) fn by_last(all: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    for one in all {
        found.retain(|other| *other != one);
        found.push(one);
    }
    found
}

/// Goes through the tokens of a way, of which rows have come back into this rank's memory.
pub(crate) struct Walk<'g> {
    group: &'g Group,
    way: &'g Way,
    buffer: usize,
    node: usize,
    order: Order,
    with_weights: bool,
    /// For each rank here, its next row, and where the rows of this way begin in its lane.
    next: Vec<usize>,
    first: Vec<usize>,
    /// Rows of the ranks that have one of this token.
    at: Vec<Option<usize>>,
}

impl<'g> Walk<'g> {
    /// `ways` are those of all nodes; this is about those of `node`.
    pub(crate) fn new(
        group: &'g Group,
        ways: &'g [Way],
        node: usize,
        turn: Turn,
        order: Order,
        with_weights: bool,
    ) -> Self {
        let lane = |rank: usize| ways[..node].iter().map(|way| way.to_rank[rank].len()).sum();
        Self {
            group,
            way: &ways[node],
            buffer: turn.buffer,
            node,
            order,
            with_weights,
            next: vec![0; group.here()],
            first: (0..group.here()).map(lane).collect(),
            at: vec![None; group.here()],
        }
    }

    /// Adds what has come back of the next token, number `t` of the way.
    pub(crate) fn token(&mut self, t: usize, came: &mut Came<'g>) {
        let (group, topk) = (self.group, self.group.shape.topk);
        for (rank, rows) in self.way.to_rank.iter().enumerate() {
            self.at[rank] = None;
            if rows.get(self.next[rank]) == Some(&(t as u32)) {
                self.at[rank] = Some(self.first[rank] + self.next[rank]);
                self.next[rank] += 1;
            }
        }
        if self.with_weights {
            for (rank, at) in self.at.iter().enumerate() {
                came.weights.extend(at.map(|at| group.back_weights(self.buffer, rank, at)));
            }
        }
        let chosen = &self.way.chosen[t * topk..][..topk];
        let rank = |id: &i32| {
            let rank = usize::try_from(*id).ok().map(|id| id / group.shape.local_experts());
            rank.and_then(|rank| rank.checked_sub(group.global(0))).filter(|rank| *rank < group.here())
        };
        match self.order {
            Order::Ranks => {
                for (rank, at) in self.at.iter().enumerate() {
                    came.rows.extend(at.map(|at| (group.back_row(self.buffer, rank, at), 0)));
                }
            }
            Order::LastChoices => {
                for rank in by_last(chosen.iter().filter_map(rank)) {
                    came.rows.extend(self.at[rank].map(|at| (group.back_row(self.buffer, rank, at), 0)));
                }
            }
            Order::Choices => {
                let at = self.node * group.shape.tokens + self.way.tokens[t] as usize;
                let own = chosen.iter().enumerate().filter(|(_, id)| rank(id).is_some());
                came.rows.extend(own.map(|(k, _)| (group.back_row(self.buffer, k, at), k)));
            }
        }
    }
}

impl Group {
    fn back_row(&self, buffer: usize, lane: usize, at: usize) -> &[bf16] {
        let bytes = 2 * self.shape.hidden;
        halves(self.heap.own(self.places.back[buffer] + (lane * self.places.lane + at) * bytes, bytes))
    }
    fn back_weights(&self, buffer: usize, lane: usize, at: usize) -> &[f32] {
        let bytes = 4 * self.shape.topk;
        let at = (lane * self.places.lane + at) * bytes;
        viewed(self.heap.own(self.places.back_weights[buffer] + at, bytes))
    }
}
