//! Ranks on several nodes, which share memory within a node alone, beside what one process computes.

mod support;

use ember_deepep::{Across, Combined, EpError, Group, Join, Reduction, Returns, Shape, Tokens};
use ember_link::{Link, LinkError, Listener, Tag};
use half::bf16;
use std::time::Duration;
use support::expanded::{alone, bf16_rows, computed_rows};
use support::low::{CASTS, round};
use support::{Input, JOB, KEY, LIMIT, cases, expert, input, path, ranks_across};

/// A row from each rank, as the experts of a rank make it.
fn computed(row: &[bf16], rank: usize) -> Vec<bf16> {
    expert(row, rank)
}

/// The sums of what comes back of rows from each rank: on each node those of its ranks, rounded; then those.
fn combined(shape: &Shape, own: &Input, biases: &[&[bf16]], nodes: usize) -> Combined {
    let (hidden, local, here) = (shape.hidden, shape.local_experts(), shape.ranks / nodes);
    let mut tokens = Vec::new();
    for (token, chosen) in own.chosen.chunks(shape.topk).enumerate() {
        let row = &own.tokens[token * hidden..][..hidden];
        let has = |rank: usize| chosen.iter().any(|id| *id >= 0 && *id as usize / local == rank);
        let results: Vec<_> = (0..shape.ranks).map(|rank| has(rank).then(|| computed(row, rank))).collect();
        for i in 0..hidden {
            let mut sum = biases.iter().fold(0.0f32, |sum, bias| sum + bias[token * hidden + i].to_f32());
            for node in results.chunks(here) {
                let rows: Vec<_> = node.iter().flatten().collect();
                if !rows.is_empty() {
                    sum +=
                        bf16::from_f32(rows.iter().fold(0.0f32, |sum, row| sum + row[i].to_f32())).to_f32();
                }
            }
            tokens.push(bf16::from_f32(sum));
        }
    }
    Combined { tokens, weights: Some(own.weights.clone()) }
}

/// What all modes give, in turn.
fn check(group: &Group, all: &[Vec<Input>], nodes: usize) {
    let (shape, me, here) = (*group.shape(), group.rank(), group.shape().ranks / nodes);
    for (at, inputs) in all.iter().enumerate() {
        let own = &inputs[me];
        let got = group.dispatch(Tokens::Bf16(&own.tokens), &own.chosen, &own.weights).unwrap();
        let mut expected = Vec::new();
        for (rank, input) in inputs.iter().enumerate() {
            for (token, chosen) in input.chosen.chunks(shape.topk).enumerate() {
                if chosen.iter().any(|id| *id >= 0 && *id as usize / shape.local_experts() == me) {
                    expected.push((rank as u32, token as u32));
                }
            }
        }
        assert_eq!(got.sources, expected);
        let row = |(rank, token): &(u32, u32)| {
            &inputs[*rank as usize].tokens[*token as usize * shape.hidden..][..shape.hidden]
        };
        assert_eq!(got.bf16().unwrap(), expected.iter().flat_map(row).copied().collect::<Vec<_>>());
        let of = got.expand(4).unwrap();
        let again = group.dispatch_again(Tokens::Bf16(&own.tokens), got.handle()).unwrap();
        assert_eq!(again.bf16(), got.bf16());
        assert_eq!(bf16_rows(&of.again(&again).unwrap()), bf16_rows(&of));
        let rows: Vec<bf16> =
            got.bf16().unwrap().chunks(shape.hidden).flat_map(|row| computed(row, me)).collect();
        let biases = &[&own.tokens[..], &own.tokens[..]][..at % 3];
        let sums = group.combine(&rows, Some(&got.weights), got.handle(), biases).unwrap();
        assert_eq!(sums, combined(&shape, own, biases, nodes));
        drop((got, again));
        let rows = computed_rows(&of, me, &shape);
        for reduction in [Reduction::Once, Reduction::PerRank] {
            let sums = group.combine_expanded(&rows, Some(&of.weights), &of, biases, reduction).unwrap();
            assert_eq!(sums.tokens, alone(&shape, own, biases, reduction, Some(here)), "{reduction:?}");
            assert_eq!(sums.weights.as_ref(), Some(&own.weights));
        }
        round(group, inputs, CASTS[at % 3]);
    }
}

fn inputs(shape: &Shape, rounds: u64) -> Vec<Vec<Input>> {
    (0..rounds).map(|round| (0..shape.ranks).map(|rank| input(shape, rank, round)).collect()).collect()
}

#[test]
fn nodes_exchange_what_one_process_would() {
    for (nodes, here) in [(2, 1), (2, 2), (2, 4), (4, 2), (3, 1)] {
        let ranks = nodes * here;
        let shape = Shape { ranks, experts: 3 * ranks, hidden: 140, topk: 3.max(ranks - 1), tokens: 9 };
        let all = inputs(&shape, 4);
        ranks_across(shape, nodes, Returns::ByExpert, |group| check(group, &all, nodes));
    }
}

#[test]
fn sums_on_a_node_are_those_of_the_original() {
    for case in &cases() {
        let shape = case.shape();
        ranks_across(shape, 1, Returns::ByRank, |group| {
            let own = &case.ranks[group.rank()];
            let (x, weights) = (own.x.bf16(), own.topk_weights.f32());
            let got = group.dispatch(Tokens::Bf16(&x), &own.topk_idx.concat(), &weights).unwrap();
            let of = got.expand(1).unwrap();
            let mut rows = vec![bf16::ZERO; of.groups.len() * shape.hidden];
            for (at, slot) in of.slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
                let (rank, token) = of.sources[at / shape.topk];
                let y = case.ranks[rank as usize].combine_y.bf16();
                let from = (token as usize * shape.topk + at % shape.topk) * shape.hidden;
                rows[*slot as usize * shape.hidden..][..shape.hidden]
                    .copy_from_slice(&y[from..][..shape.hidden]);
            }
            let biases: Vec<Vec<bf16>> = own.bias.iter().map(support::Tensor::bf16).collect();
            let biases: Vec<&[bf16]> = biases.iter().map(|bias| &bias[..]).collect();
            let sums = group.combine_expanded(&rows, None, &of, &biases, Reduction::PerRank).unwrap();
            assert_eq!(sums.tokens, own.combined.reduce_in_rank_then_scaleup.bf16());
        });
    }
}

#[test]
fn wrong_arguments_and_ranks_that_disagree_are_named() {
    let shape = Shape { ranks: 2, experts: 4, hidden: 8, topk: 2, tokens: 3 };
    let listener = || Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let file = path();
    let join = Join { path: &file, rank: 0, shape, returns: Returns::ByRank, limit: Duration::from_secs(9) };
    let text = |error: EpError| error.to_string();
    for (nodes, count, argument) in [(3, 2, "nodes: "), (0, 2, "nodes: "), (2, 1, "addresses: ")] {
        let own = listener();
        let addresses = vec![own.address().clone(); count];
        let across = Across { listener: own, nodes, addresses: &addresses, job: JOB, key: KEY };
        let error = text(Group::join_across(&join, across).err().unwrap());
        assert!(error.starts_with(argument), "{error}");
    }
    // Other numbers on another node.
    let listeners = [listener(), listener()];
    let addresses = listeners.each_ref().map(|listener| listener.address().clone());
    let errors: Vec<String> = std::thread::scope(|scope| {
        let addresses = &addresses;
        let rank = |(rank, listener)| {
            let path = path();
            scope.spawn(move || {
                let shape = Shape { experts: 4 + 2 * rank, ..shape };
                let join = Join { path: &path, rank, shape, ..join };
                let across = Across { listener, nodes: 2, addresses, job: JOB, key: KEY };
                Group::join_across(&join, across).err().unwrap().to_string()
            })
        };
        let threads: Vec<_> = listeners.into_iter().enumerate().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(errors.iter().any(|error| error.contains(" has experts ")), "{errors:?}");
    // Another kind of call there.
    let errors = ranks_across(shape, 2, Returns::ByExpert, |group| {
        let x = [bf16::ONE; 8];
        text(if group.rank() == 0 {
            group.dispatch(Tokens::Bf16(&x), &[0, 3], &[1.0; 2]).err().unwrap()
        } else {
            group.low_latency_dispatch(&x, &[0, 3], CASTS[0]).unwrap().receive().err().unwrap()
        })
    });
    assert!(errors.iter().any(|error| error.contains("kind of dispatch")), "{errors:?}");
    assert!(errors.iter().all(|error| error.contains("rank 0") || error.contains("rank 1")), "{errors:?}");
}

/// A rank of another node that sends anything; gives what the other rank says.
fn beside_a_liar(shape: Shape, dispatch: &[u8], back: Option<&[u8]>) -> String {
    let listeners = [(), ()].map(|()| Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap());
    let addresses = listeners.each_ref().map(|listener| listener.address().clone());
    let [own, liar] = listeners;
    std::thread::scope(|scope| {
        let addresses = &addresses;
        let right = scope.spawn(move || {
            let file = path();
            let join = Join { path: &file, rank: 0, shape, returns: Returns::ByRank, limit: LIMIT };
            let across = Across { listener: own, nodes: 2, addresses, job: JOB, key: KEY };
            let group = Group::join_across(&join, across).unwrap();
            let x = [bf16::ONE; 8];
            let done = group
                .dispatch(Tokens::Bf16(&x), &[0, 3], &[1.0; 2])
                .and_then(|got| group.combine(got.bf16().unwrap(), None, got.handle(), &[]).map(drop));
            done.map_or_else(|error| error.to_string(), |()| "done".into())
        });
        let join =
            ember_link::Join { rank: 1, addresses, job: JOB, key: KEY, message_max: 1 << 20, limit: LIMIT };
        let link = Link::join(liar, &join).unwrap();
        let receive = |channel, number| {
            link.receive(0, Tag { channel, number }, "sent something", || Ok::<(), LinkError>(()))
        };
        let send = |channel, number, bytes: &[u8]| link.send(0, Tag { channel, number }, bytes.to_vec());
        let numbers = receive(0, 0).unwrap();
        send(0, 0, &numbers).unwrap();
        send(1, 1, dispatch).unwrap();
        if let Some(back) = back {
            receive(2, 1).unwrap();
            send(2, 1, back).unwrap();
        }
        right.join().unwrap()
    })
}

#[test]
fn whatever_another_node_sends_is_an_error_at_most() {
    let shape = Shape { ranks: 2, experts: 4, hidden: 8, topk: 2, tokens: 3 };
    let bytes = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    // Two tokens for this node, with experts, weights and 8 numbers each in BF16.
    let head = [6, 1, 2, 0];
    let right: Vec<u32> = [&head[..], &[0, 2], &[1, 2, 3, 0], &[0; 4], &[0; 8]].concat();
    // Its part of this rank's token: no weights, a row.
    let back: Vec<u32> = [&[1, 0, 0, 1][..], &[0; 4]].concat();
    let dispatch = bytes(&right);
    assert_eq!(beside_a_liar(shape, &dispatch, Some(&bytes(&back))), "done");
    let changed = |of: &[u32], at: usize, to: u32| {
        let mut other = of.to_vec();
        other[at] = to;
        bytes(&other)
    };
    let damaged = "rank 1 has sent what is no message";
    for (at, to, text) in [
        (0, 10, "rank 1 has kind of dispatch 10, this one 6"),
        (1, 9, "rank 1 has dispatch to go after 9, this one 1"),
        (2, 4, damaged),
        (2, u32::MAX, damaged),
        (2, 1, damaged),
        // Tokens: twice the same, and one that can't be; experts: none such, and one twice.
        (4, 2, damaged),
        (5, 3, damaged),
        (6, 4, damaged),
        (6, 1 << 31, damaged),
        (8, 0, damaged),
    ] {
        let said = beside_a_liar(shape, &changed(&right, at, to), None);
        assert!(said.contains(text), "{at} {to}: {said}");
    }
    for length in [0, 3, 16, 40, dispatch.len() - 1] {
        let said = beside_a_liar(shape, &dispatch[..length], None);
        assert!(said.contains("rank 1 has "), "{length}: {said}");
    }
    for (at, to) in [(0, 7), (1, 2), (1, 9), (2, 1), (3, 0), (3, u32::MAX)] {
        let said = beside_a_liar(shape, &dispatch, Some(&changed(&back, at, to)));
        assert!(said.contains("rank 1 has "), "{at} {to}: {said}");
    }
    for length in [0, 16, 31] {
        let said = beside_a_liar(shape, &dispatch, Some(&bytes(&back)[..length]));
        assert!(said.contains("rank 1 has "), "{length}: {said}");
    }
}
