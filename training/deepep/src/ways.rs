//! Which way tokens have gone: what a rank keeps of a dispatch for the way back.

use crate::layout::Shape;

/// Tokens of one rank that go to the ranks of one node by way of this rank.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Way {
    /// Their numbers on the rank that they come from, ascending.
    pub(crate) tokens: Vec<u32>,
    /// `[tokens, topk]`: the experts that they chose.
    pub(crate) chosen: Vec<i32>,
    /// For each rank of the node, which of them go there.
    pub(crate) to_rank: Vec<Vec<u32>>,
}

impl Way {
    /// To the ranks of a node, `first` being the first expert there.
    pub(crate) fn new(tokens: Vec<u32>, chosen: Vec<i32>, shape: &Shape, here: usize, first: usize) -> Self {
        let mut to_rank = vec![Vec::new(); here];
        let local = shape.local_experts();
        for (row, experts) in chosen.chunks(shape.topk).enumerate() {
            for &id in experts {
                let expert = usize::try_from(id).ok().and_then(|id| id.checked_sub(first));
                let Some(rows) = expert.and_then(|expert| to_rank.get_mut(expert / local)) else { continue };
                if rows.last() != Some(&(row as u32)) {
                    rows.push(row as u32);
                }
            }
        }
        Self { tokens, chosen, to_rank }
    }
}

/// What went where in a dispatch: for the way back, and for another dispatch to the same places. It is of use only to
/// the rank that dispatched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handle {
    /// Whose it is: group and rank.
    pub(crate) of: (u64, usize),
    /// The dispatch that it comes from.
    pub(crate) id: u32,
    /// Tokens of this rank.
    pub(crate) tokens: usize,
    /// For each node, the tokens that went there.
    pub(crate) to_node: Vec<Vec<u32>>,
    /// `[tokens, topk]`: the experts that this rank's tokens chose.
    pub(crate) chosen: Vec<i32>,
    /// For each node, its tokens that this rank has passed on to the ranks of its own node.
    pub(crate) ways: Vec<Way>,
    /// Rows received from ranks below each, and from all.
    pub(crate) before: Vec<usize>,
}

impl Handle {
    /// Rows that were received.
    pub fn rows(&self) -> usize {
        self.before.last().copied().unwrap_or(0)
    }
    /// Rows that were received from ranks up to each, itself included.
    pub fn rows_up_to_rank(&self) -> &[usize] {
        self.before.get(1..).unwrap_or(&[])
    }
}

/// The tokens that go to each node, and their experts as they are kept.
pub(crate) fn to_nodes(chosen: &[i64], shape: &Shape, here: usize) -> (Vec<Vec<u32>>, Vec<i32>) {
    let experts = here * shape.local_experts();
    let mut nodes: Vec<Vec<u32>> = vec![Vec::new(); shape.ranks / here];
    for (token, chosen) in chosen.chunks(shape.topk).enumerate() {
        for id in chosen {
            let node = usize::try_from(*id).ok().and_then(|id| nodes.get_mut(id / experts));
            if let Some(tokens) = node
                && tokens.last() != Some(&(token as u32))
            {
                tokens.push(token as u32);
            }
        }
    }
    // An expert's number has fewer than 25 bits.
    (nodes, chosen.iter().map(|id| *id as i32).collect())
}

/// Rows of so many numbers each, those of some tokens.
pub(crate) fn picked<T: Copy>(from: &[T], each: usize, tokens: &[u32]) -> Vec<T> {
    tokens.iter().flat_map(|token| &from[*token as usize * each..][..each]).copied().collect()
}
