//! Every pipeline computes what one process computes, and ends when a rank fails.

use ember_dualpipe::{Feed, Kind, Outcome, Pipeline, Rank, RunError, Stage, ThreadTransport, TransportError};
use std::collections::{BTreeMap, VecDeque};
use std::thread::scope;
use std::time::Duration;

/// Numbers of a tensor.
const WIDTH: usize = 3;
const LIMIT: Duration = Duration::from_secs(60);

type Tensor = Vec<f64>;

/// `tanh(W x)`.
#[derive(Clone)]
struct Layer {
    weights: Vec<f64>,
    gradients: Vec<f64>,
    kept: BTreeMap<usize, (Tensor, Tensor)>,
    fails_at: Option<usize>,
    /// Micro-batches in the order of their weight gradients.
    weighed: Vec<usize>,
}

fn noise(seed: usize, count: usize) -> Vec<f64> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

impl Layer {
    fn new(stage: usize) -> Self {
        let weights = noise(1000 + stage, WIDTH * WIDTH).iter().map(|w| 2.0 * w).collect();
        let gradients = vec![0.0; WIDTH * WIDTH];
        Self { weights, gradients, kept: BTreeMap::new(), fails_at: None, weighed: Vec::new() }
    }
}

impl Stage for Layer {
    type Tensor = Tensor;
    type Deferred = (usize, Tensor, Tensor);
    type Error = String;

    fn forward(&mut self, chunk: usize, input: Tensor, keep: bool) -> Result<Tensor, String> {
        if self.fails_at == Some(chunk) {
            return Err("no memory".into());
        }
        let row = |row: &[f64]| row.iter().zip(&input).map(|(w, x)| w * x).sum::<f64>().tanh();
        let output: Tensor = self.weights.chunks(WIDTH).map(row).collect();
        if keep {
            self.kept.insert(chunk, (input, output.clone()));
        }
        Ok(output)
    }
    fn backward_input(&mut self, chunk: usize, gradient: Tensor) -> Result<(Tensor, Self::Deferred), String> {
        let (input, output) = self.kept.remove(&chunk).ok_or("no forward pass before")?;
        let inner: Tensor = gradient.iter().zip(&output).map(|(g, y)| g * (1.0 - y * y)).collect();
        let column = |j: usize| (0..WIDTH).map(|i| self.weights[i * WIDTH + j] * inner[i]).sum();
        Ok(((0..WIDTH).map(column).collect(), (chunk, inner, input)))
    }
    fn weight_gradients(&mut self, (chunk, inner, input): Self::Deferred) -> Result<(), String> {
        self.weighed.push(chunk);
        for (i, g) in inner.iter().enumerate() {
            for (j, x) in input.iter().enumerate() {
                self.gradients[i * WIDTH + j] += g * x;
            }
        }
        Ok(())
    }
}

/// Half the squared distance, and its gradient.
fn criterion(output: &Tensor, label: Tensor) -> (f64, Tensor) {
    let gradient: Tensor = output.iter().zip(&label).map(|(y, l)| y - l).collect();
    (gradient.iter().map(|d| d * d / 2.0).sum(), gradient)
}

/// Inputs and labels of the micro-batches that enter at either end.
fn batch(direction: usize, count: usize) -> (Vec<Tensor>, Vec<Tensor>) {
    let all = |kind: usize| (0..count).map(|i| noise(10 * (100 * direction + i) + kind, WIDTH)).collect();
    (all(1), all(2))
}

fn feed(pipeline: &Pipeline, rank: usize) -> Feed<Tensor, Tensor> {
    let mut feed = Feed::default();
    for module in 0..2 {
        // What goes down in DualPipeV is what went up.
        let direction = if pipeline.kind() == Kind::DualPipe { module } else { 0 };
        let (inputs, labels) = batch(direction, pipeline.chunks_of_module());
        if pipeline.is_first(rank, module) {
            feed.inputs[module] = inputs;
        }
        if pipeline.is_last(rank, module) {
            feed.labels[module] = labels;
        }
    }
    feed
}

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

struct Alone {
    losses: Vec<f64>,
    outputs: Vec<Tensor>,
}

/// All stages in one process, a micro-batch after the other; weight gradients stay in `stages`.
fn alone(stages: &mut [Layer], direction: usize, count: usize) -> Alone {
    let (inputs, labels) = batch(direction, count);
    let mut found = Alone { losses: Vec::new(), outputs: Vec::new() };
    for (chunk, (input, label)) in inputs.into_iter().zip(labels).enumerate() {
        let forward = |x, stage: &mut Layer| stage.forward(chunk, x, true).unwrap();
        let output = stages.iter_mut().fold(input, forward);
        let (loss, gradient) = criterion(&output, label);
        stages.iter_mut().rev().fold(gradient, |g, stage| stage.backward(chunk, g).unwrap());
        found.losses.push(loss);
        found.outputs.push(output);
    }
    found
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
