//! The low-latency mode, beside what one process computes.

mod support;

use ember_deepep::{Cast, EpError, Group, LowDispatched, Returns, Shape, Tokens, Values};
use ember_deepgemm::{Cpu, Recipe, ScaleFormat, View, ViewMut, per_block, per_token};
use half::bf16;
use support::{Input, cases, input, ranks_with};

/// What an expert makes of a row.
fn computed(row: &[bf16], expert: usize) -> Vec<bf16> {
    row.iter().map(|x| bf16::from_f32(x.to_f32() * (expert as f32 * 0.3 + 0.7) - 0.1)).collect()
}

/// What the tokens are when they arrive.
fn arriving(input: &Input, hidden: usize, cast: Cast) -> Values {
    let Cast::Fp8(format) = cast else { return Values::Bf16(input.tokens.clone()) };
    let shape = [input.tokens.len() / hidden, hidden];
    let cast = per_token(&View::new(&input.tokens, shape).unwrap(), format).unwrap();
    Values::Fp8 { values: cast.values, scales: cast.scales }
}

/// A row as numbers.
fn row(of: &Values, at: usize, hidden: usize) -> Vec<f32> {
    match of {
        Values::Bf16(values) => values[at * hidden..][..hidden].iter().map(|x| x.to_f32()).collect(),
        Values::Fp8 { values, scales } => {
            let scales = &scales[at * hidden.div_ceil(128)..];
            let values = values[at * hidden..][..hidden].iter();
            values.enumerate().map(|(i, x)| x.to_f32() * scales[i / 128]).collect()
        }
    }
}

fn check_rows(got: &LowDispatched, shape: &Shape, inputs: &[Input], me: usize, cast: Cast) {
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
fn results(got: &LowDispatched, shape: &Shape, me: usize) -> Vec<bf16> {
    let rows_each = shape.ranks * shape.tokens;
    let mut out = vec![bf16::NAN; shape.local_experts() * rows_each * shape.hidden];
    for (expert, count) in got.counts.iter().enumerate() {
        for at in expert * rows_each..expert * rows_each + *count as usize {
            let x: Vec<bf16> = row(&got.values, at, shape.hidden).into_iter().map(bf16::from_f32).collect();
            let y = computed(&x, me * shape.local_experts() + expert);
            out[at * shape.hidden..][..shape.hidden].copy_from_slice(&y);
        }
    }
    out
}

/// Combined in one process.
fn alone(shape: &Shape, own: &Input, cast: Cast) -> Vec<bf16> {
    let sent = arriving(own, shape.hidden, cast);
    let mut out = Vec::new();
    for token in 0..own.tokens.len() / shape.hidden {
        let x: Vec<bf16> = row(&sent, token, shape.hidden).into_iter().map(bf16::from_f32).collect();
        let mut sums = vec![0.0f32; shape.hidden];
        for k in 0..shape.topk {
            let at = token * shape.topk + k;
            if own.chosen[at] >= 0 {
                let y = computed(&x, own.chosen[at] as usize);
                sums.iter_mut().zip(&y).for_each(|(sum, y)| *sum += own.weights[at] * y.to_f32());
            }
        }
        out.extend(sums.into_iter().map(bf16::from_f32));
    }
    out
}

fn round(group: &Group, inputs: &[Input], cast: Cast) {
    let (shape, me) = (*group.shape(), group.rank());
    let own = &inputs[me];
    let got = group.low_latency_dispatch(&own.tokens, &own.chosen, cast).unwrap().receive().unwrap();
    check_rows(&got, &shape, inputs, me, cast);
    let rows = results(&got, &shape, me);
    let combined = group.low_latency_combine(&rows, &own.weights, &got).unwrap().receive().unwrap();
    assert_eq!(combined, alone(&shape, own, cast));
}

const CASTS: [Cast; 3] = [Cast::Bf16, Cast::Fp8(ScaleFormat::F32), Cast::Fp8(ScaleFormat::Ue8m0)];

#[test]
fn one_to_eight_ranks_exchange_what_one_process_would() {
    for ranks in 1..=8 {
        let shape = Shape { ranks, experts: 3 * ranks, hidden: 200, topk: 3, tokens: 9 };
        let inputs = |round| (0..ranks).map(|rank| input(&shape, rank, round)).collect::<Vec<Input>>();
        let inputs: Vec<Vec<Input>> = (0..6).map(inputs).collect();
        ranks_with(shape, Returns::ByExpert, |group| {
            for (at, inputs) in inputs.iter().enumerate() {
                round(group, inputs, CASTS[at % 3]);
                // The other modes use the same memory.
                let own = &inputs[group.rank()];
                let got = group.dispatch(Tokens::Bf16(&own.tokens), &own.chosen, &own.weights).unwrap();
                let rows = got.bf16().unwrap().to_vec();
                group.combine(&rows, None, got.handle(), &[]).unwrap();
            }
        });
    }
}

#[test]
fn each_expert_gets_the_tokens_that_the_original_gives_it() {
    for case in &cases() {
        ranks_with(case.shape(), Returns::ByExpert, |group| {
            let own = &case.ranks[group.rank()];
            let sent = group.low_latency_dispatch(&own.x.bf16(), &own.topk_idx.concat(), Cast::Bf16).unwrap();
            assert_eq!(sent.receive().unwrap().sources, case.low_latency_expected[group.rank()]);
        });
    }
}

#[test]
fn both_halves_leave_time_between_them() {
    let shape = Shape { ranks: 4, experts: 8, hidden: 128, topk: 2, tokens: 6 };
    let inputs = |round| (0..4).map(|rank| input(&shape, rank, round)).collect::<Vec<Input>>();
    let (first, second) = (inputs(1), inputs(2));
    let cast = Cast::Fp8(ScaleFormat::Ue8m0);
    ranks_with(shape, Returns::ByExpert, |group| {
        let me = group.rank();
        let send = |of: &[Input]| group.low_latency_dispatch(&of[me].tokens, &of[me].chosen, cast).unwrap();
        for _ in 0..5 {
            // Nobody has received anything when the calls come back: they don't wait for each other.
            let (a, b) = (send(&first), send(&second));
            let (own, text) = (&first[me], |error: EpError| error.to_string());
            let third = group.low_latency_dispatch(&own.tokens, &own.chosen, cast);
            assert!(text(third.err().unwrap()).contains("2 earlier ones are on their way"));
            let other = group.dispatch(Tokens::Bf16(&own.tokens), &own.chosen, &own.weights);
            assert!(text(other.err().unwrap()).contains("are on their way"));
            let (a, b) = (a.receive().unwrap(), b.receive().unwrap());
            check_rows(&a, &shape, &first, me, cast);
            check_rows(&b, &shape, &second, me, cast);
            let (x, y) = (results(&a, &shape, me), results(&b, &shape, me));
            let x = group.low_latency_combine(&x, &first[me].weights, &a).unwrap();
            let y = group.low_latency_combine(&y, &second[me].weights, &b).unwrap();
            assert_eq!(x.receive().unwrap(), alone(&shape, &first[me], cast));
            assert_eq!(y.receive().unwrap(), alone(&shape, &second[me], cast));
        }
    });
}

#[test]
fn rows_are_multiplied_as_they_are() {
    let shape = Shape { ranks: 2, experts: 4, hidden: 256, topk: 2, tokens: 12 };
    let inputs: Vec<Input> = (0..2).map(|rank| input(&shape, rank, 4)).collect();
    ranks_with(shape, Returns::ByExpert, |group| {
        let own = &inputs[group.rank()];
        let cast = Cast::Fp8(ScaleFormat::F32);
        let got = group.low_latency_dispatch(&own.tokens, &own.chosen, cast).unwrap().receive().unwrap();
        let a: Vec<_> = (0..2).map(|expert| got.scaled(expert).unwrap().unwrap()).collect();
        let weights: Vec<f32> = (0..8 * 256).map(|i| (i % 37) as f32 / 18.0 - 1.0).collect();
        let b = per_block(&View::new(&weights, [8, 256]).unwrap(), ScaleFormat::F32).unwrap();
        let b = vec![b.scaled([8, 256]).unwrap(); 2];
        let mut d = vec![vec![0.0f32; 24 * 8]; 2];
        let out = d.iter_mut().map(|d| ViewMut::new(d, [24, 8]).unwrap()).collect();
        let counts: Vec<i32> = got.counts.iter().map(|count| *count as i32).collect();
        Cpu::new().fp8_gemm_nt_masked(&a, &b, out, &counts, Recipe::Blocks).unwrap();
        for (expert, sources) in got.sources.iter().enumerate() {
            for (at, &(rank, token)) in sources.iter().enumerate() {
                let sent = &inputs[rank as usize].tokens[token as usize * 256..][..256];
                let sent = per_token(&View::new(sent, [1, 256]).unwrap(), ScaleFormat::F32).unwrap();
                let mut one = vec![0.0f32; 8];
                let out = ViewMut::new(&mut one, [1, 8]).unwrap();
                let sent = sent.scaled([1, 256]).unwrap();
                Cpu::new().fp8_gemm_nt(sent, b[0], None, out, Recipe::Blocks).unwrap();
                assert_eq!(d[expert][at * 8..][..8], one);
            }
        }
    });
}

#[test]
fn wrong_arguments_and_calls_are_named() {
    let shape = Shape { ranks: 1, experts: 4, hidden: 8, topk: 2, tokens: 3 };
    let text = |error: EpError| error.to_string();
    ranks_with(shape, Returns::ByExpert, |group| {
        let x = vec![bf16::ONE; 8];
        let dispatch = |x: &[bf16], chosen: &[i64], cast| {
            text(group.low_latency_dispatch(x, chosen, cast).err().unwrap())
        };
        assert!(dispatch(&x[..7], &[0, 1], Cast::Bf16).starts_with("tokens: "));
        assert!(dispatch(&x, &[0, 4], Cast::Bf16).starts_with("chosen: "));
        assert!(dispatch(&[bf16::INFINITY; 8], &[0, 1], CASTS[1]).starts_with("x: "));
        let got = group.low_latency_dispatch(&x, &[0, 1], Cast::Bf16).unwrap().receive().unwrap();
        assert!(text(got.scaled(4).unwrap_err()).starts_with("expert: "));
        assert!(got.scaled(3).unwrap().is_none());
        let rows = vec![bf16::ONE; 4 * 3 * 8];
        let combine = |rows: &[bf16], weights: &[f32]| {
            text(group.low_latency_combine(rows, weights, &got).err().unwrap())
        };
        assert!(combine(&rows[..8], &[1.0; 2]).starts_with("rows: "));
        assert!(combine(&rows, &[1.0]).starts_with("weights: "));
        drop(group.low_latency_combine(&rows, &[1.0; 2], &got).unwrap());
        assert!(combine(&rows, &[1.0; 2]).contains("dropped without being received"));
    });
    ranks_with(shape, Returns::ByRank, |group| {
        let error = group.low_latency_dispatch(&[bf16::ONE; 8], &[0, 1], Cast::Bf16).err().unwrap();
        assert!(text(error).contains("Returns::ByExpert"));
    });
    // One rank in this mode, one in the other; and one with another cast.
    let shape = Shape { ranks: 2, experts: 4, hidden: 8, topk: 2, tokens: 3 };
    for other in [false, true] {
        let errors = ranks_with(shape, Returns::ByExpert, |group| {
            let x = vec![bf16::ONE; 8];
            let low = |cast| group.low_latency_dispatch(&x, &[0, 3], cast).unwrap().receive().err().unwrap();
            text(match (group.rank(), other) {
                (0, _) => low(Cast::Bf16),
                (_, false) => group.dispatch(Tokens::Bf16(&x), &[0, 3], &[1.0; 2]).err().unwrap(),
                (_, true) => low(CASTS[1]),
            })
        });
        assert!(errors.iter().all(|error| error.contains("kind of dispatch")), "{errors:?}");
    }
}
