//! What ranks send each other, beside what one process computes.

mod support;

use ember_deepep::{Combined, EpError, Group, Shape, Tokens, layout};
use ember_types::layout::SplitMix64;
use half::bf16;
use std::time::Duration;
use support::{Input, LIMIT, Random, cases, input, path, ranks};

/// Rows that a rank gets: rank, token.
fn rows(shape: &Shape, inputs: &[Input], to: usize) -> Vec<(usize, usize)> {
    let mut rows = Vec::new();
    for (from, input) in inputs.iter().enumerate() {
        for (token, chosen) in input.chosen.chunks(shape.topk).enumerate() {
            if chosen.iter().any(|id| *id >= 0 && *id as usize / shape.local_experts() == to) {
                rows.push((from, token));
            }
        }
    }
    rows
}

/// What a rank's experts make of a row.
fn computed(row: &[bf16], rank: usize) -> Vec<bf16> {
    row.iter().map(|x| bf16::from_f32(x.to_f32() * (rank as f32 + 0.7) + 0.1)).collect()
}

fn check(shape: Shape, rounds: u64) {
    let all: Vec<Vec<Input>> =
        (0..rounds).map(|round| (0..shape.ranks).map(|rank| input(&shape, rank, round)).collect()).collect();
    ranks(shape, |group| {
        let (me, local) = (group.rank(), shape.local_experts());
        let mut held = None;
        for (round, inputs) in all.iter().enumerate() {
            let own = &inputs[me];
            if round % 2 == 0 {
                held = None;
            }
            let got = group.dispatch(Tokens::Bf16(&own.tokens), &own.chosen, &own.weights).unwrap();
            let expected = rows(&shape, inputs, me);
            let sources: Vec<(usize, usize)> =
                got.sources.iter().map(|(r, t)| (*r as usize, *t as usize)).collect();
            assert_eq!(sources, expected);
            let token = |&(from, token): &(usize, usize)| {
                &inputs[from].tokens[token * shape.hidden..][..shape.hidden]
            };
            let tokens: Vec<bf16> = expected.iter().flat_map(|row| token(row).to_vec()).collect();
            assert_eq!(got.bf16().unwrap(), tokens);
            assert!(got.fp8().is_none());
            let mut per_expert = vec![0; local];
            for (row, &(from, token)) in expected.iter().enumerate() {
                for k in 0..shape.topk {
                    let (id, weight) = (
                        inputs[from].chosen[token * shape.topk + k],
                        inputs[from].weights[token * shape.topk + k],
                    );
                    let here = id >= 0 && id as usize / local == me;
                    let at = row * shape.topk + k;
                    assert_eq!(got.chosen[at], if here { id - (me * local) as i64 } else { -1 });
                    assert_eq!(got.weights[at], if here { weight } else { 0.0 });
                    per_expert[id.max(0) as usize % local] += u32::from(here);
                }
            }
            assert_eq!(got.per_expert, per_expert);
            let back: Vec<bf16> =
                got.bf16().unwrap().chunks(shape.hidden).flat_map(|row| computed(row, me)).collect();
            let bias = Random(SplitMix64(7 + round as u64)).bf16(own.tokens.len());
            let biases = [&bias[..], &own.tokens[..]];
            let biases = &biases[..round % 3];
            let weights = (round % 2 == 0).then_some(&got.weights[..]);
            let combined = group.combine(&back, weights, got.handle(), biases).unwrap();
            assert_eq!(combined, alone(&shape, own, biases, weights.is_some()));
            // The same places again, and results of two dispatches alive.
            if round % 2 == 1 {
                drop(held.take());
                let again = group.dispatch_again(Tokens::Bf16(&own.tokens), got.handle()).unwrap();
                assert_eq!(again.bf16(), got.bf16());
                assert_eq!((&again.sources, again.chosen.len()), (&got.sources, 0));
            }
            held = Some(got);
        }
    });
}

/// Combined in one process.
fn alone(shape: &Shape, own: &Input, biases: &[&[bf16]], with_weights: bool) -> Combined {
    let mut sums = vec![0.0f32; own.tokens.len()];
    for bias in biases {
        sums.iter_mut().zip(*bias).for_each(|(sum, x)| *sum += x.to_f32());
    }
    let mut weights = vec![0.0f32; own.weights.len()];
    let local = shape.local_experts();
    for rank in 0..shape.ranks {
        for (token, chosen) in own.chosen.chunks(shape.topk).enumerate() {
            let here = |id: &i64| *id >= 0 && *id as usize / local == rank;
            if !chosen.iter().any(here) {
                continue;
            }
            let range = token * shape.hidden..(token + 1) * shape.hidden;
            let row = computed(&own.tokens[range.clone()], rank);
            sums[range].iter_mut().zip(row).for_each(|(sum, x)| *sum += x.to_f32());
            for (k, id) in chosen.iter().enumerate() {
                let at = token * shape.topk + k;
                weights[at] += if here(id) { own.weights[at] } else { 0.0 };
            }
        }
    }
    let tokens = sums.into_iter().map(bf16::from_f32).collect();
    Combined { tokens, weights: with_weights.then_some(weights) }
}

#[test]
fn two_to_eight_ranks_exchange_what_one_process_would() {
    for ranks in 2..=8 {
        let shape = Shape { ranks, experts: 8 * ranks, hidden: 256, topk: 4, tokens: 40 };
        check(shape, 6);
    }
    check(Shape { ranks: 1, experts: 3, hidden: 5, topk: 2, tokens: 3 }, 5);
    check(Shape { ranks: 3, experts: 3, hidden: 1, topk: 3, tokens: 1 }, 9);
}

#[test]
fn fp8_tokens_go_with_their_scales() {
    let shape = Shape { ranks: 3, experts: 6, hidden: 300, topk: 2, tokens: 9 };
    let inputs: Vec<Input> = (0..3).map(|rank| input(&shape, rank, 5)).collect();
    let fp8 = |from: usize, token: usize| {
        let values: Vec<u8> = (0..300).map(|i| (from * 100 + token * 7 + i) as u8).collect();
        let scales: Vec<f32> = (0..3).map(|i| (from * 10 + token) as f32 + i as f32 / 8.0).collect();
        (values, scales)
    };
    ranks(shape, |group| {
        let own = &inputs[group.rank()];
        let count = own.chosen.len() / 2;
        let (values, scales): (Vec<_>, Vec<_>) = (0..count).map(|token| fp8(group.rank(), token)).unzip();
        let (values, scales) = (values.concat(), scales.concat());
        let tokens = Tokens::Fp8 { values: &values, scales: &scales };
        let got = group.dispatch(tokens, &own.chosen, &own.weights).unwrap();
        let expected = rows(&shape, &inputs, group.rank());
        let (values, scales): (Vec<_>, Vec<_>) =
            expected.iter().map(|(from, token)| fp8(*from, *token)).unzip();
        assert_eq!(got.fp8().unwrap(), (&values.concat()[..], &scales.concat()[..]));
        assert!(got.bf16().is_none());
    });
}

#[test]
fn dispatch_gives_what_the_original_gives() {
    for case in &cases() {
        let shape = case.shape();
        ranks(shape, |group| {
            let own = &case.ranks[group.rank()];
            let chosen = own.topk_idx.concat();
            let layout = group.layout(&chosen).unwrap();
            assert_eq!(layout.per_rank(), own.layout.num_tokens_per_rank);
            assert_eq!(layout.per_node(shape.ranks), own.layout.num_tokens_per_rdma_rank);
            assert_eq!(layout.per_expert, own.layout.num_tokens_per_expert);
            for (token, row) in own.layout.is_token_in_rank.iter().enumerate() {
                for (rank, &is) in row.iter().enumerate() {
                    assert_eq!(layout.to_rank[rank].contains(&(token as u32)), is == 1);
                }
            }
            let (x, weights) = (own.x.bf16(), own.topk_weights.f32());
            let got = group.dispatch(Tokens::Bf16(&x), &chosen, &weights).unwrap();
            assert_eq!(got.bf16().unwrap(), own.recv_x.bf16());
            assert_eq!(got.chosen, own.recv_topk_idx.concat());
            // The original keeps the weights of experts elsewhere; here, as in its older form, they count nothing.
            let kept = own.recv_topk_weights.f32().into_iter().zip(&got.chosen);
            let kept: Vec<f32> = kept.map(|(weight, id)| if *id == -1 { 0.0 } else { weight }).collect();
            assert_eq!(got.weights, kept);
            let sources: Vec<usize> = got
                .sources
                .iter()
                .map(|(rank, token)| *rank as usize * shape.tokens + *token as usize)
                .collect();
            assert_eq!(sources, own.recv_src_token_global_idx);
            assert_eq!(got.per_expert, own.num_recv_tokens_per_local_expert);
            let up_to = own.num_recv_tokens_per_rank.iter().scan(0, |sum, n| {
                *sum += n;
                Some(*sum)
            });
            assert_eq!(got.handle().rows_up_to_rank(), up_to.collect::<Vec<_>>());
        });
    }
}

#[test]
fn wrong_arguments_are_named() {
    let shape = Shape { ranks: 1, experts: 4, hidden: 8, topk: 2, tokens: 3 };
    let argument = |error: EpError| match error {
        EpError::Argument { argument, .. } => argument,
        other => panic!("{other}"),
    };
    let of = |chosen: &[i64]| argument(layout(chosen, &shape).unwrap_err());
    assert_eq!(of(&[1]), "chosen");
    assert_eq!(of(&[0, 4]), "chosen");
    assert_eq!(of(&[0, -2]), "chosen");
    assert_eq!(of(&[3, 3]), "chosen");
    assert_eq!(argument(layout(&[], &Shape { ranks: 3, ..shape }).unwrap_err()), "experts");
    let file = path();
    let join = |rank, shape| argument(Group::join(&file, rank, shape, LIMIT).err().unwrap());
    assert_eq!(join(1, shape), "rank");
    assert_eq!(join(0, Shape { topk: 0, ..shape }), "topk");
    assert_eq!(
        join(0, Shape { ranks: 1 << 12, experts: 1 << 12, hidden: 1 << 24, tokens: 1 << 24, topk: 1 }),
        "tokens"
    );
    ranks(shape, |group| {
        let (x, bytes) = (vec![bf16::ONE; 32], vec![0u8; 16]);
        let dispatch = |tokens, chosen: &[i64], weights: &[f32]| {
            argument(group.dispatch(tokens, chosen, weights).err().unwrap())
        };
        assert_eq!(dispatch(Tokens::Bf16(&x[..7]), &[], &[]), "tokens");
        assert_eq!(dispatch(Tokens::Bf16(&x), &[0; 8], &[0.0; 8]), "tokens");
        assert_eq!(dispatch(Tokens::Bf16(&x[..8]), &[0], &[0.0; 2]), "chosen");
        assert_eq!(dispatch(Tokens::Bf16(&x[..8]), &[0, 1], &[0.0]), "weights");
        assert_eq!(
            dispatch(Tokens::Fp8 { values: &bytes, scales: &[1.0] }, &[0, 1, 0, 1], &[0.0; 4]),
            "scales"
        );
        for scale in &[[f32::NAN], [f32::INFINITY]] {
            let tokens = Tokens::Fp8 { values: &bytes[..8], scales: scale };
            assert_eq!(dispatch(tokens, &[0, 1], &[0.0; 2]), "scales");
        }
        let one = group.dispatch(Tokens::Bf16(&x[..8]), &[0, 1], &[0.5; 2]).unwrap();
        let combine = |rows: &[bf16], weights, biases: &[&[bf16]]| {
            argument(group.combine(rows, weights, one.handle(), biases).unwrap_err())
        };
        assert_eq!(combine(&x[..7], None, &[]), "rows");
        assert_eq!(combine(&x[..8], Some(&[1.0][..]), &[]), "weights");
        assert_eq!(combine(&x[..8], None, &[&x[..8], &x[..8], &x[..8]]), "biases");
        assert_eq!(combine(&x[..8], None, &[&x[..7]]), "biases");
        assert_eq!(
            argument(group.dispatch_again(Tokens::Bf16(&x[..16]), one.handle()).err().unwrap()),
            "tokens"
        );
        let two = group.dispatch_again(Tokens::Bf16(&x[..8]), one.handle()).unwrap();
        assert_eq!(
            argument(group.dispatch_again(Tokens::Bf16(&x[..8]), one.handle()).err().unwrap()),
            "results"
        );
        drop(one);
        assert!(group.dispatch_again(Tokens::Bf16(&x[..8]), two.handle()).is_ok());
    });
}

#[test]
fn ranks_that_disagree_are_told() {
    let shape = Shape { ranks: 2, experts: 4, hidden: 64, topk: 2, tokens: 8 };
    let pair = |shapes: [Shape; 2]| {
        let file = path();
        let results: Vec<Option<EpError>> = std::thread::scope(|scope| {
            let join = |rank: usize| {
                let file = &file;
                scope.spawn(move || Group::join(file, rank, shapes[rank], Duration::from_secs(5)).err())
            };
            let threads: Vec<_> = (0..2).map(join).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(!file.exists(), "nothing is left behind");
        results.into_iter().map(|error| error.unwrap().to_string()).collect::<Vec<_>>().join("; ")
    };
    // Of the same size.
    let text = pair([shape, Shape { experts: 6, ..shape }]);
    assert!(
        text.contains("rank 1 has experts 6, this one 4")
            || text.contains("rank 0 has experts 4, this one 6"),
        "{text}"
    );
    let text = pair([shape, Shape { tokens: 9000, ..shape }]);
    assert!(text.contains("start all ranks with the same"), "{text}");
    // Other kinds of call.
    let errors = ranks(shape, |group| {
        let (x, bytes) = ([bf16::ONE; 64], [0u8; 64]);
        let tokens =
            if group.rank() == 0 { Tokens::Bf16(&x) } else { Tokens::Fp8 { values: &bytes, scales: &[1.0] } };
        let error = group.dispatch(tokens, &[0, 3], &[1.0; 2]).err().unwrap().to_string();
        let later = group.dispatch(tokens, &[0, 3], &[1.0; 2]).err().unwrap();
        assert!(matches!(later, EpError::Ended(_)), "{later}");
        error
    });
    assert!(errors.iter().all(|error| error.contains("kind of dispatch")), "{errors:?}");
    let errors = ranks(shape, |group| {
        let x = [bf16::ONE; 64];
        let got = group.dispatch(Tokens::Bf16(&x), &[0, 3], &[1.0; 2]).unwrap();
        let weights = (group.rank() == 0).then_some(&got.weights[..]);
        let rows = got.bf16().unwrap().to_vec();
        group.combine(&rows, weights, got.handle(), &[]).unwrap_err().to_string()
    });
    assert!(errors.iter().all(|error| error.contains(" has weights ")), "{errors:?}");
    // Results in another order, of as many rows.
    let errors = ranks(shape, |group| {
        let x = [bf16::ONE; 64];
        let dispatch = || group.dispatch(Tokens::Bf16(&x), &[0, 3], &[1.0; 2]).unwrap();
        let both = [dispatch(), dispatch()];
        let first = &both[group.rank()];
        group.combine(first.bf16().unwrap(), None, first.handle(), &[]).unwrap_err().to_string()
    });
    assert!(errors.iter().all(|error| error.contains(" has dispatch to combine ")), "{errors:?}");
    let handles = ranks(shape, |group| {
        group.dispatch(Tokens::Bf16(&[bf16::ONE; 64]), &[0, 3], &[1.0; 2]).unwrap().handle().clone()
    });
    ranks(shape, |group| {
        // Of another group, with the same numbers.
        let handle = &handles[group.rank()];
        let x = vec![bf16::ONE; 64 * handle.rows()];
        let error = group.combine(&x, None, handle, &[]).unwrap_err().to_string();
        assert!(error.starts_with("handle: it comes from another group"), "{error}");
        let error = group.dispatch_again(Tokens::Bf16(&x[..64]), handle).err().unwrap().to_string();
        assert!(error.starts_with("handle: it comes from another group"), "{error}");
    });
}
