//! A rank of a training job.

use crate::checkpoint::{self, Checkpoint, Shard, State};
use crate::data::{Sequence, Text};
use crate::exchange::{Everyone, Numbers};
use crate::job::{Report, Settings, Start};
use crate::model::matrix::Math;
use crate::model::numbers::Random;
use crate::model::stage::{Part, Tensor};
use crate::model::{Config, VOCABULARY};
use crate::optimizer::Owned;
use crate::placing;
use crate::ranks::{Holding, Named, Spec, specs};
use anyhow::{Context, Result};
use ember_deepep::{Group, Shape};
use ember_deepgemm::Cpu;
use ember_dualpipe::{Feed, Pipeline, Rank, TcpTransport};
use ember_native::FileSystem;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

type Transport = TcpTransport<Tensor>;

/// A thread that does something beside the steps.
struct Beside<T>(JoinHandle<Result<T>>);

impl<T: Send + 'static> Beside<T> {
    fn start(name: &str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<Self> {
        Ok(Self(std::thread::Builder::new().name(name.into()).spawn(work)?))
    }
    fn end(self) -> Result<T> {
        self.0.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread of this rank panicked")))
    }
}

/// What a rank reads for a pass: of each module the inputs, and the labels.
type Batch = [[Vec<Vec<u8>>; 2]; 2];

/// A rank with its parts of the model.
pub(crate) struct Worker<'a> {
    settings: &'a Settings,
    fs: FileSystem,
    text: Arc<Text>,
    held_out: Text,
    specs: Vec<Spec>,
    holdings: Vec<Holding>,
    state: State,
    owned: BTreeMap<usize, Owned>,
    modules: [Part; 2],
    everyone: Everyone,
    /// For steps and for looks at the held-out text.
    pipelines: &'a [Pipeline; 2],
    of: Rank<'a, Transport>,
    /// Number among the ranks that share experts.
    expert: usize,
    next: Option<(u64, Beside<Batch>)>,
    writing: Option<(u64, Beside<()>)>,
    /// The last checkpoint that this rank has written, and the last that is public.
    written: u64,
    public: u64,
}

/// Loss of logits `[tokens, 256]`, summed over the tokens, and its gradient.
fn criterion(output: &Tensor, labels: Vec<u8>) -> (f64, Tensor) {
    let Tensor::Numbers(logits) = output else { panic!("the last stage gives logits") };
    let mut gradient = logits.clone();
    let mut sum = 0.0;
    for (row, &label) in gradient.chunks_exact_mut(VOCABULARY).zip(&labels) {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let of_label = row[usize::from(label)] - most;
        row.iter_mut().for_each(|x| *x = (*x - most).exp());
        let all: f32 = row.iter().sum();
        sum += f64::from(all.ln() - of_label);
        row.iter_mut().for_each(|x| *x /= all);
        row[usize::from(label)] -= 1.0;
    }
    (sum, Tensor::Numbers(gradient))
}

/// Memory that the ranks at one position of the pipeline share.
fn group(settings: &Settings, job: u64, position: usize, expert: usize) -> Result<Rc<Group>> {
    let path = PathBuf::from(format!("/dev/shm/ember-train-{job:016x}-{position}"));
    let shape = Shape {
        ranks: settings.ranks.expert,
        experts: settings.ranks.slots,
        hidden: settings.config.hidden,
        topk: settings.config.topk,
        tokens: settings.ranks.sequences * settings.config.context,
    };
    Ok(Rc::new(Group::join(&path, expert, shape, Duration::from_secs(settings.limit))?))
}

/// First values of a parameter: norms 1, matrices normally distributed, those that lead back into the sum of all layers
/// less.
fn first_value(spec: &Spec, settings: &Settings) -> Vec<f32> {
    let [_, inputs] = spec.shape[..] else { return vec![1.0; spec.len()] };
    let back = spec.name.ends_with(".out");
    let depth = if back { (2.0 * settings.config.layers as f32).sqrt() } else { 1.0 };
    let spread = if spec.name == "embedding" { 0.5 } else { 1.0 / (inputs as f32).sqrt() / depth };
    let mut random = Random::named(settings.seed, &spec.name);
    (0..spec.len()).map(|_| spread * random.normal()).collect()
}

impl<'a> Worker<'a> {
    /// Joins the others and takes over the newest checkpoint, or begins.
    pub(crate) fn join(
        start: &'a Start,
        transport: Transport,
        pipelines: &'a [Pipeline; 2],
        mapping: &'a [usize],
    ) -> Result<Self> {
        let settings = &start.settings;
        let (config, ranks) = (&settings.config, &settings.ranks);
        let (position, expert) = (start.rank / ranks.expert, start.rank % ranks.expert);
        let group = group(settings, start.job, position, expert)?;
        let fs = FileSystem::connect(&settings.cluster, &format!("ember-train rank {}", start.rank))?;
        let text = Text::open(&fs, &settings.dataset, "train.bin", config.context)?;
        let held_out = Text::open(&fs, &settings.dataset, "held-out.bin", config.context)?;
        let checkpoint = match start.from {
            Some(step) => Some(Checkpoint::open(&fs, &settings.checkpoints, step)?),
            None => None,
        };
        let state = checkpoint.as_ref().map_or_else(|| State::new(config, ranks), |of| of.state.clone());
        let state = placing::fitting(state, settings)?;
        let specs = specs(config);
        let holdings = ranks.holdings(config, &specs, &state.places)?;
        let mut owned = BTreeMap::new();
        for (i, (spec, _)) in
            specs.iter().zip(&holdings).enumerate().filter(|(_, (_, of))| of.owner == start.rank)
        {
            let first = || Ok(Owned::new(first_value(spec, settings)));
            owned.insert(i, checkpoint.as_ref().map_or_else(first, |of| of.owned(spec))?);
        }
        let math = Math { cpu: Cpu::new().with_threads(1), precision: settings.precision };
        let pipeline = &pipelines[0];
        let each = config.layers / pipeline.stages();
        let part = |module: usize| {
            let stage = pipeline.stage(position, module);
            Part::new(config, math, &group, stage * each..(stage + 1) * each, &state.places)
        };
        let step = state.step;
        let mut worker = Self {
            settings,
            fs,
            text: Arc::new(text),
            held_out,
            modules: [part(0), part(1)],
            specs,
            holdings,
            state,
            owned,
            everyone: Everyone { rank: start.rank, ranks: ranks.count(), exchanges: 0 },
            pipelines,
            of: Rank { pipeline, rank: position, mapping, transport },
            expert,
            next: None,
            writing: None,
            written: step,
            public: step,
        };
        worker.take_over()?;
        Ok(worker)
    }

    fn config(&self) -> &Config {
        &self.settings.config
    }

    /// Gets the values of all parameters from their owners.
    fn take_over(&mut self) -> Result<()> {
        let owned = self.owned.iter().map(|(i, owned)| (*i, owned.value.as_slice())).collect();
        let parameters = self.modules.iter_mut().flat_map(Part::parameters).collect();
        let Self { everyone, of, specs, holdings, .. } = self;
        everyone.distribute(&mut of.transport, specs, holdings, &owned, parameters)?;
        for part in &mut self.modules {
            for (number, layer) in part.layers.clone().zip(&mut part.held) {
                layer.experts.bias.clone_from(&self.state.bias[number]);
            }
            part.prepare()?;
        }
        Ok(())
    }

    /// Trains to the last step.
    pub(crate) fn run(&mut self, report: &mut dyn FnMut(Report) -> Result<()>) -> Result<()> {
        let steps = self.settings.steps;
        while self.state.step < steps {
            self.step(report)?;
            let step = self.state.step;
            if step.is_multiple_of(self.settings.evaluate_every) || step == steps {
                let loss = self.evaluate()?;
                report(Report::HeldOut { step, loss })?;
            }
            if step.is_multiple_of(self.settings.checkpoint_every) || step == steps {
                self.checkpoint()?;
            }
        }
        self.written_out()?;
        let finished = self.everyone.gather(&mut self.of.transport, &[self.written as f32])?;
        self.publish(&finished, report)?;
        // Nobody leaves before the last checkpoint is there.
        self.everyone.gather(&mut self.of.transport, &[])?;
        Ok(())
    }

    fn step(&mut self, report: &mut dyn FnMut(Report) -> Result<()>) -> Result<()> {
        let step = self.state.step + 1;
        let batch = self.batch(step)?;
        let losses = self.pass(0, batch)?;
        let parameters = self.modules.iter_mut().flat_map(Part::parameters).collect();
        let Self { everyone, of, specs, holdings, .. } = self;
        let mut gradients = everyone.reduce(&mut of.transport, specs, holdings, parameters)?;
        let tokens = (self.settings.ranks.sequences_of_step() * self.config().context) as f32;
        gradients.values_mut().flatten().for_each(|x| *x /= tokens);
        let told = self.tell(losses, &gradients)?;
        let factor = (self.settings.pace.clip as f64 / told.norm).min(1.0) as f32;
        self.update(&gradients, factor, step);
        self.state.step = step;
        report(Report::Step { step, loss: told.loss / f64::from(tokens), norm: told.norm })?;
        self.publish(&told.written, report)?;
        if step.is_multiple_of(self.settings.rebalance) {
            let moved = placing::place(&mut self.state, self.settings)?;
            for part in &mut self.modules {
                for (number, layer) in part.layers.clone().zip(&mut part.held) {
                    layer.experts.place(&self.state.places[number]);
                }
            }
            self.holdings =
                self.settings.ranks.holdings(&self.settings.config, &self.specs, &self.state.places)?;
            report(moved)?;
        }
        self.take_over()
    }

    /// The text of a step; that of the next one is read meanwhile.
    fn batch(&mut self, step: u64) -> Result<Batch> {
        let prepared = self.next.take().filter(|(of, _)| *of == step);
        let batch = match prepared {
            Some((_, reading)) => reading.end()?,
            None => self.reading(step)?.end()?,
        };
        self.next = Some((step + 1, self.reading(step + 1)?));
        Ok(batch)
    }

    fn reading(&self, step: u64) -> Result<Beside<Batch>> {
        let place = |number| self.text.place(self.settings.seed, step, number);
        let places = self.places(&self.pipelines[0], place);
        let text = self.text.clone();
        Beside::start("reading", move || read(&text, &places))
    }

    /// Where the sequences begin that a rank reads: by module, inputs or labels, and micro-batch.
    fn places(&self, pipeline: &Pipeline, place: impl Fn(usize) -> u64) -> [[Vec<Vec<u64>>; 2]; 2] {
        let (sequences, experts) = (self.settings.ranks.sequences, self.settings.ranks.expert);
        let position = self.of.rank;
        [0, 1].map(|module| {
            // In DualPipeV what goes in by one module comes out of the other.
            let direction = if self.settings.ranks.kind == Named::Dualpipe { module } else { 0 };
            let chunk = |chunk: usize| {
                let number = |sequence| {
                    let chunk = direction * pipeline.chunks_of_module() + chunk;
                    (chunk * experts + self.expert) * sequences + sequence
                };
                (0..sequences).map(|sequence| place(number(sequence))).collect()
            };
            [pipeline.is_first(position, module), pipeline.is_last(position, module)].map(|has| {
                let chunks = if has { pipeline.chunks_of_module() } else { 0 };
                (0..chunks).map(chunk).collect()
            })
        })
    }

    /// A pass through the pipeline; the sum of the losses that this rank sees.
    fn pass(&mut self, which: usize, batch: Batch) -> Result<f64> {
        self.of.pipeline = &self.pipelines[which];
        let [[inputs0, labels0], [inputs1, labels1]] = batch;
        let tokens = |of: Vec<Vec<u8>>| of.into_iter().map(Tensor::Tokens).collect();
        let feed = Feed { inputs: [tokens(inputs0), tokens(inputs1)], labels: [labels0, labels1] };
        let outcome = self.of.step(&mut self.modules, feed, false, criterion)?;
        Ok(outcome.losses.iter().sum())
    }

    /// Loss on the held-out text, with the weights as they are.
    fn evaluate(&mut self) -> Result<f64> {
        let places = self.held_out.spread(self.settings.evaluated())?;
        let places = self.places(&self.pipelines[1], |number| places[number]);
        let batch = read(&self.held_out, &places)?;
        let loss = self.pass(1, batch)?;
        // Only steps count.
        self.modules
            .iter_mut()
            .flat_map(|part| &mut part.held)
            .for_each(|layer| layer.experts.counts.fill(0));
        let all = self.everyone.gather(&mut self.of.transport, &[loss as f32])?;
        let tokens = self.settings.evaluated() * self.config().context;
        Ok(all.iter().map(|of| f64::from(of[0])).sum::<f64>() / tokens as f64)
    }

    /// Tells all ranks what this one has seen in a step, and adds up what they have.
    fn tell(&mut self, losses: f64, gradients: &Numbers) -> Result<Told> {
        let square: f64 = gradients.values().flatten().map(|x| f64::from(*x) * f64::from(*x)).sum();
        self.look_at_writing()?;
        let mut numbers = vec![losses as f32, square as f32, self.written as f32];
        let experts = self.config().experts;
        let mut counts = vec![0.0f32; self.config().layers * experts];
        for part in &mut self.modules {
            for (number, layer) in part.layers.clone().zip(&mut part.held) {
                for (sum, count) in counts[number * experts..].iter_mut().zip(&mut layer.experts.counts) {
                    *sum += std::mem::take(count) as f32;
                }
            }
        }
        numbers.extend(counts);
        let all = self.everyone.gather(&mut self.of.transport, &numbers)?;
        let sum = |i: usize| all.iter().map(|of| f64::from(of[i])).sum::<f64>();
        for layer in 0..self.config().layers {
            let counts: Vec<u64> =
                (0..experts).map(|expert| sum(3 + layer * experts + expert) as u64).collect();
            placing::count(&mut self.state, layer, &counts, self.settings.bias_step);
        }
        let written = all.iter().map(|of| vec![of[2]]).collect();
        Ok(Told { loss: sum(0), norm: sum(1).sqrt(), written })
    }

    fn update(&mut self, gradients: &Numbers, factor: f32, step: u64) {
        let pace = &self.settings.pace;
        let rate = pace.at(step, self.settings.steps);
        for (i, owned) in &mut self.owned {
            let decay = if self.specs[*i].shape.len() > 1 { pace.decay } else { 0.0 };
            owned.update(&gradients[i], factor, rate, decay, step);
        }
    }

    /// Begins to write a checkpoint, which goes on beside the next steps.
    fn checkpoint(&mut self) -> Result<()> {
        self.written_out()?;
        let (rank, step) = (self.everyone.rank, self.state.step);
        let owned = self.owned.iter().map(|(i, owned)| (self.specs[*i].clone(), owned.clone())).collect();
        let state = (rank == 0).then(|| self.state.clone());
        let shard = Shard { rank, owned, state };
        let (fs, root) = (self.fs.clone(), self.settings.checkpoints.clone());
        let writing = Beside::start("checkpoint", move || shard.write(&fs, &root, step))?;
        self.writing = Some((step, writing));
        Ok(())
    }

    /// Waits for the checkpoint that is being written.
    fn written_out(&mut self) -> Result<()> {
        if let Some((step, writing)) = self.writing.take() {
            writing.end().with_context(|| format!("writing the checkpoint of step {step}"))?;
            self.written = step;
        }
        Ok(())
    }
    fn look_at_writing(&mut self) -> Result<()> {
        match &self.writing {
            Some((_, Beside(writing))) if writing.is_finished() => self.written_out(),
            _ => Ok(()),
        }
    }

    /// Gives a checkpoint its name when all have written theirs.
    fn publish(&mut self, written: &[Vec<f32>], report: &mut dyn FnMut(Report) -> Result<()>) -> Result<()> {
        let step = written.iter().map(|of| of[0] as u64).min().unwrap_or(0);
        if step <= self.public {
            return Ok(());
        }
        self.public = step;
        if self.everyone.rank == 0 {
            let root = &self.settings.checkpoints;
            checkpoint::publish(&self.fs, root, step)?;
            checkpoint::tidy(&self.fs, root, self.settings.keep, false)?;
        }
        report(Report::Checkpoint { step })
    }
}

/// What ranks have told each other about a step.
struct Told {
    loss: f64,
    norm: f64,
    written: Vec<Vec<f32>>,
}

/// Reads the sequences that begin at these places.
fn read(text: &Text, places: &[[Vec<Vec<u64>>; 2]; 2]) -> Result<Batch> {
    let all: Vec<u64> = places.iter().flatten().flatten().flatten().copied().collect();
    let mut sequences = text.load(&all)?.into_iter();
    let mut batch = Batch::default();
    for (module, of_module) in places.iter().enumerate() {
        for (which, chunks) in of_module.iter().enumerate() {
            for chunk in chunks {
                let part = |(before, after): Sequence| if which == 0 { before } else { after };
                let tokens = sequences.by_ref().take(chunk.len()).flat_map(part).collect();
                batch[module][which].push(tokens);
            }
        }
    }
    Ok(batch)
}
