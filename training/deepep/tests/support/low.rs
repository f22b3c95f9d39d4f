//! The low-latency mode as one process does it.

use super::{Input, expert};
use ember_deepep::{Cast, Group, LowDispatched, Shape, Values};
use ember_deepgemm::{ScaleFormat, View, per_token};
use half::bf16;

/// What the tokens are when they arrive.
pub fn arriving(input: &Input, hidden: usize, cast: Cast) -> Values {
    let Cast::Fp8(format) = cast else { return Values::Bf16(input.tokens.clone()) };
    let shape = [input.tokens.len() / hidden, hidden];
    let cast = per_token(&View::new(&input.tokens, shape).unwrap(), format).unwrap();
    Values::Fp8 { values: cast.values, scales: cast.scales }
}

/// A row as numbers.
pub fn row(of: &Values, at: usize, hidden: usize) -> Vec<f32> {
    match of {
        Values::Bf16(values) => values[at * hidden..][..hidden].iter().map(|x| x.to_f32()).collect(),
        Values::Fp8 { values, scales } => {
            let scales = &scales[at * hidden.div_ceil(128)..];
            let values = values[at * hidden..][..hidden].iter();
            values.enumerate().map(|(i, x)| x.to_f32() * scales[i / 128]).collect()
        }
    }
}

pub fn check_rows(got: &LowDispatched, shape: &Shape, inputs: &[Input], me: usize, cast: Cast) {
    let rows_each = shape.ranks * shape.tokens;
    let sent: Vec<Values> = inputs.iter().map(|input| arriving(input, shape.hidden, cast)).collect();
    for expert in 0..shape.local_experts() {
        let id = (me * shape.local_experts() + expert) as i64;
        let mut at = 0;
        for (rank, input) in inputs.iter().enumerate() {
            let begin = at;
            for (token, chosen) in input.chosen.chunks(shape.topk).enumerate() {
                if !chosen.contains(&id) {
                    continue;
                }
                assert_eq!(got.sources[expert][at], (rank as u32, token as u32));
                let found = row(&got.values, expert * rows_each + at, shape.hidden);
                assert_eq!(found, row(&sent[rank], token, shape.hidden));
                at += 1;
            }
            assert_eq!(got.ranges[expert * shape.ranks + rank], (begin as u32, (at - begin) as u32));
        }
        assert_eq!((got.counts[expert], got.sources[expert].len()), (at as u32, at));
        for behind in at..rows_each {
            assert!(row(&got.values, expert * rows_each + behind, shape.hidden).iter().all(|x| *x == 0.0));
        }
    }
}

/// What the experts here make of all rows; what counts nothing is spoilt.
pub fn results(got: &LowDispatched, shape: &Shape, me: usize) -> Vec<bf16> {
    let rows_each = shape.ranks * shape.tokens;
    let mut out = vec![bf16::NAN; shape.local_experts() * rows_each * shape.hidden];
    for (expert, count) in got.counts.iter().enumerate() {
        for at in expert * rows_each..expert * rows_each + *count as usize {
            let x: Vec<bf16> = row(&got.values, at, shape.hidden).into_iter().map(bf16::from_f32).collect();
            let y = super::expert(&x, me * shape.local_experts() + expert);
            out[at * shape.hidden..][..shape.hidden].copy_from_slice(&y);
        }
    }
    out
}

/// Combined in one process.
pub fn alone(shape: &Shape, own: &Input, cast: Cast) -> Vec<bf16> {
    let sent = arriving(own, shape.hidden, cast);
    let mut out = Vec::new();
    for token in 0..own.tokens.len() / shape.hidden {
        let x: Vec<bf16> = row(&sent, token, shape.hidden).into_iter().map(bf16::from_f32).collect();
        let mut sums = vec![0.0f32; shape.hidden];
        for k in 0..shape.topk {
            let at = token * shape.topk + k;
            if own.chosen[at] >= 0 {
                let y = expert(&x, own.chosen[at] as usize);
                sums.iter_mut().zip(&y).for_each(|(sum, y)| *sum += own.weights[at] * y.to_f32());
            }
        }
        out.extend(sums.into_iter().map(bf16::from_f32));
    }
    out
}

pub fn round(group: &Group, inputs: &[Input], cast: Cast) {
    let (shape, me) = (*group.shape(), group.rank());
    let own = &inputs[me];
    let got = group.low_latency_dispatch(&own.tokens, &own.chosen, cast).unwrap().receive().unwrap();
    check_rows(&got, &shape, inputs, me, cast);
    let rows = results(&got, &shape, me);
    let combined = group.low_latency_combine(&rows, &own.weights, &got).unwrap().receive().unwrap();
    assert_eq!(combined, alone(&shape, own, cast));
}

pub const CASTS: [Cast; 3] = [Cast::Bf16, Cast::Fp8(ScaleFormat::F32), Cast::Fp8(ScaleFormat::Ue8m0)];
