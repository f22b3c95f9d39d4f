//! Which tokens go where.

use crate::{Result, demand};

/// Numbers that all ranks of a group agree on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Ranks of the group.
    pub ranks: usize,
    /// Experts of all ranks: as many on each, those of rank 0 first.
    pub experts: usize,
    /// Numbers of a token.
    pub hidden: usize,
    /// Experts that a token chooses.
    pub topk: usize,
    /// Most tokens of a rank.
    pub tokens: usize,
}

impl Shape {
    /// Experts of each rank.
    pub fn local_experts(&self) -> usize {
        self.experts / self.ranks
    }

    pub(crate) fn check(&self) -> Result<()> {
        let Self { ranks, experts, hidden, topk, tokens } = *self;
        for (argument, number) in
            [("ranks", ranks), ("experts", experts), ("hidden", hidden), ("topk", topk), ("tokens", tokens)]
        {
            demand(number > 0 && number <= 1 << 24, argument, || {
                format!("{number} is not between 1 and 2^24")
            })?;
        }
        demand(experts.is_multiple_of(ranks), "experts", || {
            format!("{experts} experts can't be divided among {ranks} ranks")
        })?;
        // More than what the heaps of all ranks take.
        let wide = |number: usize| number as u128;
        let bytes = 64 * wide(ranks) * wide(ranks) * wide(tokens) * (wide(hidden) + wide(topk));
        demand(bytes < 1 << 62, "tokens", || {
            format!("{tokens} tokens of {hidden} numbers on {ranks} ranks are more than memory can hold")
        })
    }

    /// So many lanes for rows that come back.
    pub(crate) fn check_lanes(&self, lanes: usize) -> Result<()> {
        let wide = |number: usize| number as u128;
        let rows = wide(lanes) * wide(self.ranks) * wide(self.tokens);
        demand(8 * rows * wide(self.ranks) * wide(self.hidden) < 1 << 62, "topk", || {
            format!("{lanes} rows of {} numbers for each token are more than memory can hold", self.hidden)
        })
    }
}

/// Where the tokens of a rank go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// For each rank, its tokens in order: one goes to a rank once, however many experts it has there.
    pub to_rank: Vec<Vec<u32>>,
    /// Tokens that each expert gets.
    pub per_expert: Vec<u32>,
}

impl Layout {
    /// Tokens that each rank gets.
    pub fn per_rank(&self) -> Vec<u32> {
        self.to_rank.iter().map(|tokens| tokens.len() as u32).collect()
    }
    /// Tokens that each node of `ranks` ranks gets, each once.
    pub fn per_node(&self, ranks: usize) -> Vec<u32> {
        let count = |node: &[Vec<u32>]| {
            let mut tokens = node.concat();
            tokens.sort_unstable();
            tokens.dedup();
            tokens.len() as u32
        };
        self.to_rank.chunks(ranks.max(1)).map(count).collect()
    }
}

/// Where tokens go whose experts are `chosen[tokens, topk]`, -1 for none.
///
/// # Errors
/// If the numbers don't fit, or an expert doesn't exist or is chosen twice by a token.
pub fn layout(chosen: &[i64], shape: &Shape) -> Result<Layout> {
    shape.check()?;
    demand(chosen.len().is_multiple_of(shape.topk), "chosen", || {
        format!("{} experts are no whole number of tokens with {} each", chosen.len(), shape.topk)
    })?;
    let mut found = Layout { to_rank: vec![Vec::new(); shape.ranks], per_expert: vec![0; shape.experts] };
    for (token, experts) in chosen.chunks(shape.topk).enumerate() {
        for (k, &id) in experts.iter().enumerate().filter(|(_, id)| **id != -1) {
            let expert = usize::try_from(id).ok().filter(|expert| *expert < shape.experts);
            demand(expert.is_some(), "chosen", || {
                format!("{id} of token {token} is none of {} experts, nor -1 for none", shape.experts)
            })?;
            demand(!experts[..k].contains(&id), "chosen", || format!("token {token} has expert {id} twice"))?;
            let expert = expert.unwrap_or(0);
            found.per_expert[expert] += 1;
            let tokens = &mut found.to_rank[expert / shape.local_experts()];
            if tokens.last() != Some(&(token as u32)) {
                tokens.push(token as u32);
            }
        }
    }
    Ok(found)
}
