//! Every pipeline computes what one process computes, and ends when a rank fails.

mod support;

use ember_dualpipe::{Feed, Kind, Outcome, Pipeline, Rank, RunError, ThreadTransport, TransportError};
use std::collections::{BTreeMap, VecDeque};
use std::thread::scope;
use std::time::Duration;
use support::{Alone, Layer, Tensor, WIDTH, alone, criterion, feed};

const LIMIT: Duration = Duration::from_secs(60);

type Ended = (Result<Outcome<Tensor, f64>, RunError<String>>, [Layer; 2]);

/// Runs all ranks; rank `r` of the pipeline is thread `mapping[r]`.
fn run(pipeline: &Pipeline, mapping: &[usize], limit: Duration, fails: Option<(usize, usize)>) -> Vec<Ended> {
    let mut transports: BTreeMap<usize, _> =
        ThreadTransport::mesh(pipeline.ranks(), limit).into_iter().enumerate().collect();
    let ranks: Vec<_> = mapping.iter().map(|at| transports.remove(at).unwrap()).enumerate().collect();
    scope(|scope| {
        let work = |(rank, transport): (usize, ThreadTransport<Tensor>)| {
            let mut modules = [0, 1].map(|module| Layer::new(pipeline.stage(rank, module)));
            if let Some((_, chunk)) = fails.filter(|(failing, _)| *failing == rank) {
                modules[0].fails_at = Some(chunk);
            }
            let mut of = Rank { pipeline, rank, mapping, transport };
            let outcome = of.step(&mut modules, feed(pipeline, rank), true, criterion);
            (outcome, modules)
        };
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || work(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// 1 - 2<x, y> / (<x, x> + <y, y>).
fn difference(x: &[f64], y: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    1.0 - 2.0 * dot(x, y) / (dot(x, x) + dot(y, y))
}

fn check(pipeline: &Pipeline, mapping: &[usize]) {
    let ended = run(pipeline, mapping, LIMIT, None);
    let mut stages: Vec<Layer> = (0..pipeline.stages()).map(Layer::new).collect();
    let directions = if pipeline.kind() == Kind::DualPipe { 2 } else { 1 };
    let expected: Vec<Alone> =
        (0..directions).map(|d| alone(&mut stages, d, pipeline.chunks_of_module())).collect();
    let mut gradients = vec![vec![0.0; WIDTH * WIDTH]; pipeline.stages()];
    for (rank, (outcome, modules)) in ended.iter().enumerate() {
        let outcome = outcome.as_ref().unwrap();
        let last = (0..2).find(|&module| pipeline.is_last(rank, module));
        let expected = last.map(|module| &expected[module.min(directions - 1)]);
        assert_eq!(outcome.losses, expected.map_or(&[][..], |alone| &alone.losses), "{pipeline:?}");
        assert_eq!(outcome.outputs, expected.map_or(&[][..], |alone| &alone.outputs), "{pipeline:?}");
        for (module, layer) in modules.iter().enumerate() {
            let sum = &mut gradients[pipeline.stage(rank, module)];
            sum.iter_mut().zip(&layer.gradients).for_each(|(sum, part)| *sum += part);
            assert!(layer.kept.is_empty(), "nothing is kept behind the step");
            assert!(
                layer.weighed.is_sorted() || pipeline.is_forward_only(),
                "{pipeline:?}: {:?}",
                layer.weighed
            );
        }
        let twin = pipeline.twin(rank);
        assert!(twin.is_none_or(|twin| pipeline.stage(twin, 1) == pipeline.stage(rank, 0)));
    }
    for (stage, gradients) in stages.iter().zip(&gradients) {
        match pipeline.is_forward_only() {
            true => assert!(gradients.iter().all(|g| *g == 0.0)),
            false => assert!(difference(&stage.gradients, gradients) < 1e-13, "{pipeline:?}"),
        }
    }
}

#[test]
fn losses_and_gradients_are_those_of_one_process() {
    for kind in [Kind::DualPipe, Kind::DualPipeV] {
        for ranks in 1..=16 {
            let mapping: Vec<usize> = (0..ranks).collect();
            for chunks in 1..=64 {
                if let Ok(pipeline) = Pipeline::new(kind, ranks, chunks, false) {
                    check(&pipeline, &mapping);
                }
            }
        }
    }
}

#[test]
fn a_pass_forward_alone_gives_the_same_losses_and_no_gradients() {
    for (kind, ranks, chunks) in [(Kind::DualPipe, 4, 10), (Kind::DualPipeV, 3, 7), (Kind::DualPipeV, 1, 2)] {
        let mapping: Vec<usize> = (0..ranks).collect();
        check(&Pipeline::new(kind, ranks, chunks, true).unwrap(), &mapping);
    }
}

#[test]
fn ranks_of_the_transport_may_be_others() {
    check(&Pipeline::new(Kind::DualPipe, 4, 8, false).unwrap(), &[2, 0, 3, 1]);
    check(&Pipeline::new(Kind::DualPipeV, 3, 8, false).unwrap(), &[2, 0, 1]);
}

#[test]
fn a_rank_that_fails_ends_all() {
    let pipeline = Pipeline::new(Kind::DualPipe, 4, 12, false).unwrap();
    let ended = run(&pipeline, &[0, 1, 2, 3], LIMIT, Some((2, 3)));
    let errors: VecDeque<RunError<String>> =
        ended.into_iter().map(|(outcome, _)| outcome.unwrap_err()).collect();
    let text = errors[2].to_string();
    assert_eq!(text, "stage 2, micro-batch 3 of module 0: no memory");
    for rank in [0, 1, 3] {
        assert!(
            matches!(errors[rank], RunError::Transport(TransportError::Ended { .. })),
            "{}",
            errors[rank]
        );
    }
}

#[test]
fn a_rank_that_hangs_is_waited_for_in_vain_only_so_long() {
    let pipeline = Pipeline::new(Kind::DualPipeV, 2, 4, false).unwrap();
    let mut transports = ThreadTransport::mesh(2, Duration::from_millis(50));
    // Rank 0 never sends, and does not end.
    let transport = transports.remove(1);
    let mut modules = [Layer::new(1), Layer::new(2)];
    let mut of = Rank { pipeline: &pipeline, rank: 1, mapping: &[0, 1], transport };
    let error = of.step(&mut modules, Feed::default(), false, criterion).unwrap_err();
    assert!(matches!(error, RunError::Transport(TransportError::Late { peer: 0, .. })), "{error}");
}

#[test]
fn ranks_that_disagree_are_told_apart() {
    let programs = [Pipeline::new(Kind::DualPipe, 2, 4, false), Pipeline::new(Kind::DualPipeV, 2, 4, false)];
    let programs = programs.map(Result::unwrap);
    // They may also wait for each other.
    let transports = ThreadTransport::mesh(2, Duration::from_millis(200));
    let ended: Vec<bool> = scope(|scope| {
        let work = |rank: usize, transport: ThreadTransport<Tensor>| {
            let pipeline = &programs[rank];
            let mut modules = [0, 1].map(|module| Layer::new(pipeline.stage(rank, module)));
            let mut of = Rank { pipeline, rank, mapping: &[0, 1], transport };
            of.step(&mut modules, feed(pipeline, rank), false, criterion).is_err()
        };
        let threads: Vec<_> = transports.into_iter().enumerate().collect();
        let threads: Vec<_> = threads.into_iter().map(|(r, t)| scope.spawn(move || work(r, t))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ended, [true, true]);
}

#[test]
fn wrong_feeds_are_named() {
    let pipeline = Pipeline::new(Kind::DualPipeV, 1, 2, false).unwrap();
    let error = |mapping: &[usize], feed| {
        let transport = ThreadTransport::mesh(1, LIMIT).remove(0);
        let mut modules = [Layer::new(0), Layer::new(1)];
        let mut of = Rank { pipeline: &pipeline, rank: 0, mapping, transport };
        of.step(&mut modules, feed, false, criterion).unwrap_err().to_string()
    };
    assert!(error(&[0], Feed::default()).starts_with("inputs: module 0 of rank 0 takes 2"));
    let mut half = feed(&pipeline, 0);
    half.labels[1].pop();
    assert!(error(&[0], half).starts_with("labels: module 1 of rank 0 takes 2 of them, not 1"));
    assert!(error(&[0, 1], feed(&pipeline, 0)).starts_with("mapping: names 2 ranks"));
}
