//! Rows by expert, and their sums, as one process makes them.

use super::Input;
use ember_deepep::{Expanded, Reduction, Shape, Values};
use half::bf16;

pub fn bf16_rows(of: &Expanded) -> &[bf16] {
    match &of.values {
        Values::Bf16(rows) => rows,
        Values::Fp8 { .. } => panic!("these were sent in BF16"),
    }
}

/// All rows of an expanded dispatch, padding spoilt.
pub fn computed_rows(of: &Expanded, rank: usize, shape: &Shape) -> Vec<bf16> {
    let rows = bf16_rows(of).chunks(shape.hidden).zip(&of.groups);
    let row = |(row, group): (&[bf16], &i32)| match usize::try_from(*group) {
        Ok(expert) => super::expert(row, rank * shape.local_experts() + expert),
        Err(_) => vec![bf16::NAN; shape.hidden],
    };
    rows.flat_map(row).collect()
}

/// Sums of groups of numbers, each in the order of its last member.
fn by_last(of: &[(usize, f32)]) -> Vec<(usize, f32)> {
    let is_last = |i: &usize| of[i + 1..].iter().all(|(group, _)| *group != of[*i].0);
    let sum = |i: usize| {
        let members = of.iter().filter(|(group, _)| *group == of[i].0);
        (of[i].0, members.fold(0.0f32, |sum, (_, x)| sum + x))
    };
    (0..of.len()).filter(is_last).map(sum).collect()
}

fn rounded(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// Combined in one process; on several nodes if they have so many ranks.
pub fn alone(
    shape: &Shape,
    own: &Input,
    biases: &[&[bf16]],
    reduction: Reduction,
    ranks_of_node: Option<usize>,
) -> Vec<bf16> {
    let (hidden, local) = (shape.hidden, shape.local_experts());
    let mut out = Vec::new();
    for (token, chosen) in own.chosen.chunks(shape.topk).enumerate() {
        let row = &own.tokens[token * hidden..][..hidden];
        let chosen = chosen.iter().filter(|id| **id >= 0).map(|id| *id as usize);
        let results: Vec<_> = chosen.map(|id| (id / local, super::expert(row, id))).collect();
        for i in 0..hidden {
            let mut parts: Vec<(usize, f32)> =
                results.iter().map(|(rank, row)| (*rank, row[i].to_f32())).collect();
            if reduction == Reduction::PerRank {
                parts = by_last(&parts).into_iter().map(|(rank, x)| (rank, rounded(x))).collect();
                if let Some(ranks) = ranks_of_node {
                    parts.iter_mut().for_each(|(rank, _)| *rank /= ranks);
                    parts = by_last(&parts).into_iter().map(|(node, x)| (node, rounded(x))).collect();
                }
            }
            let bias = biases.iter().fold(0.0f32, |sum, bias| sum + bias[token * hidden + i].to_f32());
            out.push(bf16::from_f32(parts.into_iter().fold(bias, |sum, (_, x)| sum + x)));
        }
    }
    out
}
