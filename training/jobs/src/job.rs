//! A training job: what all its processes know, and what they report.

use crate::model::Config;
use crate::model::matrix::Precision;
use crate::optimizer::Pace;
use crate::ranks::Ranks;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to train, and how.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Data directory of the cluster, as given to `ember up`.
    #[arg(long, value_name = "DIR")]
    pub(crate) cluster: PathBuf,
    /// Dataset in EmberFS, made by `ember-train prepare`.
    #[arg(long, value_name = "PATH")]
    pub(crate) dataset: String,
    /// Directory in EmberFS for checkpoints; training goes on from the newest one there.
    #[arg(long, value_name = "PATH")]
    pub(crate) checkpoints: String,
    #[command(flatten)]
    pub(crate) config: Config,
    #[command(flatten)]
    pub(crate) ranks: Ranks,
    #[command(flatten)]
    pub(crate) pace: Pace,
    /// What products of weights are computed in.
    #[arg(long, value_enum, default_value_t = Precision::Fp8)]
    pub(crate) precision: Precision,
    /// Steps in all, those of earlier runs included.
    #[arg(long, default_value_t = 300)]
    pub(crate) steps: u64,
    /// Where weights and the order of the text begin.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Steps between two placements of the experts' replicas.
    #[arg(long, default_value_t = 25)]
    pub(crate) rebalance: u64,
    /// Change of a gate's bias in a step.
    #[arg(long, default_value_t = 0.001)]
    pub(crate) bias_step: f32,
    /// Steps between two checkpoints.
    #[arg(long, default_value_t = 50)]
    pub(crate) checkpoint_every: u64,
    /// Checkpoints that are kept.
    #[arg(long, default_value_t = 3)]
    pub(crate) keep: usize,
    /// Steps between two looks at the held-out text.
    #[arg(long, default_value_t = 50)]
    pub(crate) evaluate_every: u64,
    /// Micro-batches of a look at the held-out text.
    #[arg(long, default_value_t = 16)]
    pub(crate) evaluate: usize,
    /// Seconds that a rank is waited for: longer than the file system may take to recover.
    #[arg(long, default_value_t = 120)]
    pub(crate) limit: u64,
}

impl Settings {
    /// That the numbers fit together.
    pub(crate) fn check(&self) -> Result<()> {
        self.ranks.check(&self.config)?;
        self.ranks.schedule(self.evaluate, true)?;
        crate::data::check_path("--dataset", &self.dataset)?;
        crate::data::check_path("--checkpoints", &self.checkpoints)?;
        let least = [
            ("steps", self.steps),
            ("rebalance", self.rebalance),
            ("checkpoint-every", self.checkpoint_every),
            ("evaluate-every", self.evaluate_every),
            ("keep", self.keep as u64),
            ("limit", self.limit),
        ];
        for (name, number) in least {
            ensure!(number > 0, "--{name} is at least 1");
        }
        for (name, number) in [("rate", self.pace.rate), ("clip", self.pace.clip)] {
            ensure!(number > 0.0 && number.is_finite(), "--{name}: {number} is no number above 0");
        }
        for (name, number) in [("decay", self.pace.decay), ("bias-step", self.bias_step)] {
            ensure!(number >= 0.0 && number.is_finite(), "--{name}: {number} is no number from 0 on");
        }
        Ok(())
    }
    /// Sequences of a look at the held-out text, over all ranks.
    pub(crate) fn evaluated(&self) -> usize {
        self.evaluate * self.ranks.sequences * self.ranks.expert
    }
}

/// What a rank gets when it starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) settings: Settings,
    pub(crate) rank: usize,
    /// A number that no other job has.
    pub(crate) job: u64,
    /// The checkpoint to go on from.
    pub(crate) from: Option<u64>,
}

/// A line from rank 0.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// A step is done.
    Step {
        /// Its number, from 1 on.
        step: u64,
        /// Mean loss of its text, in nats a byte.
        loss: f64,
        /// Length of the gradient.
        norm: f64,
    },
    /// The replicas of the experts have moved.
    Placed {
        /// After which step.
        step: u64,
        /// Copies that were needed.
        moves: usize,
        /// Greatest load of a rank over the mean, before and after, by the counts since the last time.
        imbalance: (f64, f64),
    },
    /// A look at the held-out text.
    HeldOut {
        /// After which step.
        step: u64,
        /// Mean loss, in nats a byte.
        loss: f64,
    },
    /// A checkpoint is there.
    Checkpoint {
        /// Of which step.
        step: u64,
    },
}
