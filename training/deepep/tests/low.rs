//! The low-latency mode, beside what one process computes.

mod support;

use ember_deepep::{Cast, EpError, Returns, Shape, Tokens};
use ember_deepgemm::{Cpu, Recipe, ScaleFormat, View, ViewMut, per_block, per_token};
use half::bf16;
use support::low::{CASTS, alone, check_rows, results, round};
use support::{Input, cases, input, ranks_with};

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
