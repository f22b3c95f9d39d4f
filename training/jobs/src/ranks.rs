//! Which process does what: positions in the pipeline times ranks that share experts. Rank `g` is number `g / expert`
//! in the pipeline and number `g % expert` among those that share the experts of its layers.

use crate::model::{Config, LATENT, ROPE, VOCABULARY};
use anyhow::{Result, ensure};
use ember_dualpipe::{Kind, Pipeline};
use serde::{Deserialize, Serialize};

/// How stages are spread over ranks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Named {
    /// As many stages as ranks, each on two ranks.
    Dualpipe,
    /// Twice as many stages as ranks.
    Dualpipev,
}

impl From<Named> for Kind {
    fn from(named: Named) -> Self {
        match named {
            Named::Dualpipe => Self::DualPipe,
            Named::Dualpipev => Self::DualPipeV,
        }
    }
}

/// The processes of a job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ranks {
    /// How stages are spread over the pipeline's ranks.
    #[arg(long, value_enum, default_value_t = Named::Dualpipe)]
    pub(crate) kind: Named,
    /// Ranks of the pipeline; with dualpipe an even number.
    #[arg(long, default_value_t = 2)]
    pub(crate) pipeline: usize,
    /// Ranks that share the experts of a layer, each with sequences of its own.
    #[arg(long, default_value_t = 2)]
    pub(crate) expert: usize,
    /// Places for replicas of a layer's experts, over all ranks that share them.
    #[arg(long, default_value_t = 12)]
    pub(crate) slots: usize,
    /// Micro-batches of a step: at least twice the pipeline's ranks; with dualpipe an even number.
    #[arg(long, default_value_t = 8)]
    pub(crate) chunks: usize,
    /// Sequences of a micro-batch, on each rank.
    #[arg(long, default_value_t = 2)]
    pub(crate) sequences: usize,
}

/// A parameter of the model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    layer: usize,
    expert: Option<usize>,
}

impl Spec {
    /// Numbers.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Who has a parameter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Holding {
    /// The rank that adds gradients and changes the value.
    pub(crate) owner: usize,
    /// Ranks that compute with it, in order, with their number of copies.
    pub(crate) holders: Vec<(usize, usize)>,
}

/// All parameters, in order.
pub(crate) fn specs(config: &Config) -> Vec<Spec> {
    let Config { hidden, layers, heads, head, inner, experts, .. } = *config;
    let spec =
        |name: String, shape: &[usize], layer, expert| Spec { name, shape: shape.into(), layer, expert };
    let mut all = vec![spec("embedding".into(), &[VOCABULARY, hidden], 0, None)];
    for layer in 0..layers {
        let mut add = |what: &str, shape: &[usize]| {
            all.push(spec(format!("layers.{layer}.{what}"), shape, layer, None));
        };
        add("attention_norm", &[hidden]);
        add("attention.query", &[config.queries(), hidden]);
        add("attention.down", &[LATENT + ROPE, hidden]);
        add("attention.norm", &[LATENT]);
        add("attention.up", &[2 * heads * head, LATENT]);
        add("attention.out", &[hidden, heads * head]);
        add("experts_norm", &[hidden]);
        add("experts.gate", &[experts, hidden]);
        add("experts.shared.into", &[2 * inner, hidden]);
        add("experts.shared.out", &[hidden, inner]);
        for expert in 0..experts {
            let name = |what: &str| format!("layers.{layer}.experts.{expert}.{what}");
            all.push(spec(name("into"), &[2 * inner, hidden], layer, Some(expert)));
            all.push(spec(name("out"), &[hidden, inner], layer, Some(expert)));
        }
    }
    all.push(spec("norm".into(), &[hidden], layers - 1, None));
    all.push(spec("head".into(), &[VOCABULARY, hidden], layers - 1, None));
    all
}

impl Ranks {
    /// All processes.
    pub(crate) fn count(&self) -> usize {
        self.pipeline * self.expert
    }
    /// The schedule of a step, or of a forward pass over `chunks`.
    pub(crate) fn schedule(&self, chunks: usize, forward_only: bool) -> Result<Pipeline> {
        Ok(Pipeline::new(self.kind.into(), self.pipeline, chunks, forward_only)?)
    }
    /// That the numbers fit the model.
    pub(crate) fn check(&self, config: &Config) -> Result<()> {
        config.check()?;
        let stages = self.schedule(self.chunks, false)?.stages();
        let (layers, slots) = (config.layers, self.slots);
        ensure!(layers.is_multiple_of(stages), "--layers: {layers} can't be divided among {stages} stages");
        ensure!(self.expert > 0 && self.sequences > 0, "--expert and --sequences are at least 1");
        ensure!(
            slots.is_multiple_of(self.expert),
            "--slots: {slots} can't be divided among {} ranks",
            self.expert
        );
        ensure!(config.experts <= slots, "--slots: {slots} are too few for {} experts", config.experts);
        Ok(())
    }
    /// Numbers of the pipeline's ranks in the job, for those that are number `expert` among those that share experts.
    pub(crate) fn mapping(&self, expert: usize) -> Vec<usize> {
        (0..self.pipeline).map(|position| position * self.expert + expert).collect()
    }
    /// Sequences of a step, over all ranks.
    pub(crate) fn sequences_of_step(&self) -> usize {
        self.chunks * self.sequences * self.expert
    }

    /// Who has each of the parameters, if `places` says for each layer which expert each slot holds. The owners are the
    /// same for all places.
    pub(crate) fn holdings(
        &self,
        config: &Config,
        specs: &[Spec],
        places: &[Vec<usize>],
    ) -> Result<Vec<Holding>> {
        let pipeline = self.schedule(self.chunks, false)?;
        let layers_of_stage = config.layers / pipeline.stages();
        let each = self.slots / self.expert;
        let mut owned = vec![0; self.count()];
        let mut all = Vec::with_capacity(specs.len());
        for spec in specs {
            let stage = spec.layer / layers_of_stage;
            let has = |position: &usize| (0..2).any(|module| pipeline.stage(*position, module) == stage);
            let mut candidates = Vec::new();
            let mut holders = Vec::new();
            for position in (0..self.pipeline).filter(has) {
                for number in 0..self.expert {
                    let rank = position * self.expert + number;
                    candidates.push(rank);
                    let copies = spec.expert.map_or(1, |expert| {
                        let slots = &places[spec.layer][number * each..(number + 1) * each];
                        slots.iter().filter(|slot| **slot == expert).count()
                    });
                    if copies > 0 {
                        holders.push((rank, copies));
                    }
                }
            }
            let owner = candidates.into_iter().min_by_key(|rank| owned[*rank]);
            let owner = owner.expect("each stage is on some rank");
            owned[owner] += spec.len();
            all.push(Holding { owner, holders });
        }
        Ok(all)
    }
}
