//! A row for each expert of a token, and the sums of what comes back of them, beside what one process computes.

mod support;

use ember_deepep::{Expanded, Group, Reduction, Returns, Shape, Tokens, Values};
use ember_deepgemm::{Cpu, E4m3, Recipe, ScaleFormat, View, ViewMut, per_block};
use half::bf16;
use support::expanded::{alone, bf16_rows, computed_rows};
use support::{Case, Input, cases, input, ranks, ranks_with};

/// Which row is whose, counted anew: expert, rank, token, choice for each row that counts.
fn expected(shape: &Shape, inputs: &[Input], me: usize, alignment: usize) -> Vec<Option<[usize; 4]>> {
    let mut rows = Vec::new();
    for expert in 0..shape.local_experts() {
        rows.resize(rows.len().next_multiple_of(alignment), None);
        for (rank, input) in inputs.iter().enumerate() {
            for (at, id) in input.chosen.iter().enumerate() {
                if *id == (me * shape.local_experts() + expert) as i64 {
                    rows.push(Some([expert, rank, at / shape.topk, at % shape.topk]));
                }
            }
        }
    }
    rows.resize(rows.len().next_multiple_of(alignment), None);
    rows
}

fn check(shape: Shape, alignment: usize, round: u64) {
    let inputs: Vec<Input> = (0..shape.ranks).map(|rank| input(&shape, rank, round)).collect();
    ranks_with(shape, Returns::ByExpert, |group| {
        let (me, own) = (group.rank(), &inputs[group.rank()]);
        let got = group.dispatch(Tokens::Bf16(&own.tokens), &own.chosen, &own.weights).unwrap();
        let of = got.expand(alignment).unwrap();
        check_rows(&of, &shape, &inputs, me, alignment);
        assert_eq!(got.per_expert, of.per_expert);
        let aligned = of.per_expert.iter().map(|rows| rows.next_multiple_of(alignment as u32));
        assert_eq!(got.aligned_per_expert(alignment).unwrap(), aligned.collect::<Vec<_>>());
        let again = group.dispatch_again(Tokens::Bf16(&own.tokens), got.handle()).unwrap();
        assert_eq!(of.again(&again).unwrap().values, of.values);
        drop((got, again));
        let rows = computed_rows(&of, me, &shape);
        for reduction in [Reduction::Once, Reduction::PerRank] {
            for biases in [&[][..], &[&own.tokens[..]], &[&own.tokens[..], &own.tokens[..]]] {
                let weights = (biases.len() < 2).then_some(&of.weights[..]);
                let combined = group.combine_expanded(&rows, weights, &of, biases, reduction).unwrap();
                assert_eq!(combined.tokens, alone(&shape, own, biases, reduction, None), "{reduction:?}");
                assert_eq!(combined.weights.as_ref(), weights.map(|_| &own.weights));
            }
        }
    });
}

fn check_rows(of: &Expanded, shape: &Shape, inputs: &[Input], me: usize, alignment: usize) {
    let expected = expected(shape, inputs, me, alignment);
    assert_eq!(of.groups.len(), expected.len());
    let mut counts = vec![0; shape.local_experts()];
    for (row, whose) in expected.iter().enumerate() {
        let numbers = &bf16_rows(of)[row * shape.hidden..][..shape.hidden];
        let Some([expert, rank, token, choice]) = *whose else {
            assert_eq!((of.groups[row], of.weights[row]), (-1, 0.0));
            assert!(numbers.iter().all(|x| x.to_bits() == 0), "padding is zero");
            continue;
        };
        assert_eq!(of.groups[row], expert as i32);
        assert_eq!(of.weights[row], inputs[rank].weights[token * shape.topk + choice]);
        assert_eq!(numbers, &inputs[rank].tokens[token * shape.hidden..][..shape.hidden]);
        let received = of.sources.iter().position(|source| *source == (rank as u32, token as u32)).unwrap();
        assert_eq!(of.slots[received * shape.topk + choice], row as i32);
        counts[expert] += 1;
        assert!(of.ends[expert] as usize > row);
        assert_eq!((of.ends[expert] - of.per_expert[expert]) as usize % alignment, 0);
    }
    assert_eq!(of.per_expert, counts);
    assert_eq!(of.slots.iter().filter(|slot| **slot >= 0).count(), counts.iter().sum::<u32>() as usize);
}

#[test]
fn one_to_eight_ranks_expand_and_reduce_as_one_process_would() {
    for ranks in 1..=8 {
        let shape = Shape { ranks, experts: 3 * ranks, hidden: 20, topk: 3, tokens: 15 };
        check(shape, [1, 4, 16, 128][ranks % 4], ranks as u64);
    }
    check(Shape { ranks: 5, experts: 15, hidden: 20, topk: 7, tokens: 15 }, 4, 20);
    // More choices than ranks, and experts that nobody chooses.
    check(Shape { ranks: 2, experts: 40, hidden: 7, topk: 9, tokens: 11 }, 8, 3);
}

/// The original's rule for where an expert's rows end: aligned counts of those before it, and its own count.
fn check_case(case: &Case, group: &Group) {
    let (shape, me, alignment) = (case.shape(), group.rank(), 4);
    let own = &case.ranks[me];
    let (x, weights) = (own.x.bf16(), own.topk_weights.f32());
    let got = group.dispatch(Tokens::Bf16(&x), &own.topk_idx.concat(), &weights).unwrap();
    let of = got.expand(alignment).unwrap();
    drop(got);
    let mut end = 0;
    for (expert, &rows) in own.num_recv_tokens_per_local_expert.iter().enumerate() {
        assert_eq!(of.ends[expert], end + rows);
        // Rank and token ascend within an expert.
        let place = |at: usize| of.slots.iter().position(|slot| *slot == at as i32).unwrap() / shape.topk;
        let whose: Vec<_> = (end..end + rows).map(|at| of.sources[place(at as usize)]).collect();
        assert_eq!(whose, case.low_latency_expected[me][expert]);
        end = (end + rows).next_multiple_of(alignment as u32);
    }
    // The rows that the experts send back: the case has them where they come from.
    let mut rows = vec![bf16::ZERO; of.groups.len() * shape.hidden];
    for (at, slot) in of.slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
        let (rank, token) = of.sources[at / shape.topk];
        let y = case.ranks[rank as usize].combine_y.bf16();
        let from = (token as usize * shape.topk + at % shape.topk) * shape.hidden;
        rows[*slot as usize * shape.hidden..][..shape.hidden].copy_from_slice(&y[from..][..shape.hidden]);
    }
    let biases: Vec<Vec<bf16>> = own.bias.iter().map(support::Tensor::bf16).collect();
    let biases: Vec<&[bf16]> = biases.iter().map(|bias| &bias[..]).collect();
    let combined = |reduction| group.combine_expanded(&rows, None, &of, &biases, reduction).unwrap().tokens;
    assert_eq!(combined(Reduction::Once), own.combined.no_pre_reduction.bf16());
    assert_eq!(combined(Reduction::PerRank), own.combined.reduce_in_rank.bf16());
}

#[test]
fn expanded_rows_and_sums_are_those_of_the_original() {
    for case in &cases() {
        ranks_with(case.shape(), Returns::ByExpert, |group| check_case(case, group));
    }
}

#[test]
fn expanded_fp8_rows_are_multiplied_as_they_are() {
    let shape = Shape { ranks: 2, experts: 6, hidden: 256, topk: 2, tokens: 30 };
    let inputs: Vec<Input> = (0..2).map(|rank| input(&shape, rank, 9)).collect();
    ranks(shape, |group| {
        let own = &inputs[group.rank()];
        let count = own.chosen.len() / 2;
        let x = View::new(&own.tokens, [count, 256]).unwrap();
        let x = ember_deepgemm::per_token(&x, ScaleFormat::F32).unwrap();
        let bits: Vec<u8> = x.values.iter().map(|x| x.0).collect();
        let tokens = Tokens::Fp8 { values: &bits, scales: &x.scales };
        let of = group.dispatch(tokens, &own.chosen, &own.weights).unwrap().expand(128).unwrap();
        let rows = of.groups.len();
        let a = of.values.scaled(0, rows, 256).unwrap().unwrap();
        let weights: Vec<f32> = (0..8 * 256).map(|i| (i % 37) as f32 / 18.0 - 1.0).collect();
        let b = per_block(&View::new(&weights, [8, 256]).unwrap(), ScaleFormat::F32).unwrap();
        let b = vec![b.scaled([8, 256]).unwrap(); 3];
        let mut d = vec![0.0f32; rows * 8];
        let out = ViewMut::new(&mut d, [rows, 8]).unwrap();
        Cpu::new().fp8_gemm_nt_contiguous(a, &b, out, &of.groups, Recipe::Blocks).unwrap();
        // Row by row: the tokens of the rank that sent them.
        let Values::Fp8 { values, .. } = &of.values else { panic!("these were sent in FP8") };
        for (at, slot) in of.slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
            let (rank, token) = of.sources[at / 2];
            let sent = &inputs[rank as usize].tokens[token as usize * 256..][..256];
            let sent =
                ember_deepgemm::per_token(&View::new(sent, [1, 256]).unwrap(), ScaleFormat::F32).unwrap();
            assert_eq!(values[*slot as usize * 256..][..256], sent.values);
            let mut one = vec![0.0f32; 8];
            let out = ViewMut::new(&mut one, [1, 8]).unwrap();
            Cpu::new().fp8_gemm_nt(sent.scaled([1, 256]).unwrap(), b[0], None, out, Recipe::Blocks).unwrap();
            assert_eq!(d[*slot as usize * 8..][..8], one);
        }
        assert!(values.chunks(256).zip(&of.groups).all(|(row, group)| *group >= 0 || row == [E4m3(0); 256]));
    });
}

#[test]
fn wrong_arguments_are_named() {
    let shape = Shape { ranks: 1, experts: 4, hidden: 8, topk: 2, tokens: 3 };
    ranks(shape, |group| {
        let x = vec![bf16::ONE; 16];
        let got = group.dispatch(Tokens::Bf16(&x[..8]), &[0, 1], &[0.5; 2]).unwrap();
        let text = |error: ember_deepep::EpError| error.to_string();
        assert!(text(got.expand(0).unwrap_err()).starts_with("alignment: 0 "));
        assert!(text(got.aligned_per_expert(70_000).unwrap_err()).starts_with("alignment: "));
        let of = got.expand(1).unwrap();
        let again = group.dispatch_again(Tokens::Bf16(&x[..8]), got.handle()).unwrap();
        assert!(text(again.expand(1).unwrap_err()).contains("Expanded::again"));
        drop(got);
        let other = group.dispatch(Tokens::Bf16(&x[..8]), &[0, 1], &[0.5; 2]).unwrap();
        assert!(text(of.again(&other).unwrap_err()).starts_with("got: "));
        let combine = |rows: &[bf16], weights, reduction| {
            text(group.combine_expanded(rows, weights, &of, &[], reduction).unwrap_err())
        };
        assert!(combine(&x[..8], None, Reduction::PerRank).starts_with("rows: "));
        assert!(combine(&x, Some(&[1.0][..]), Reduction::PerRank).starts_with("weights: "));
        assert!(combine(&x, None, Reduction::Once).contains("Returns::ByExpert"));
        assert!(group.combine_expanded(&x, None, &of, &[], Reduction::PerRank).is_ok());
    });
}
