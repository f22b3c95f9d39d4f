//! What ranks tell each other beside the pipeline's messages: gradients to those who own a parameter, new values back,
//! and small numbers to all. Everything is added in the order of the ranks, so that results are always the same.

use crate::model::numbers::add;
use crate::model::stage::{Parameter, Tensor};
use crate::ranks::{Holding, Spec};
use anyhow::{Context, Result, ensure};
use ember_dualpipe::{Part, Payload, Tag, Transport};
use std::collections::BTreeMap;

/// All ranks of a job, by their numbers.
pub(crate) struct Everyone {
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    /// Exchanges so far: they are numbered, so that none is taken for another.
    pub(crate) exchanges: usize,
}

/// Numbers by parameter.
pub(crate) type Numbers = BTreeMap<usize, Vec<f32>>;

impl Everyone {
    /// Sends each rank a message, and returns what each has sent. This rank's own is kept.
    fn exchange<X: Transport<Tensor>>(
        &mut self,
        transport: &mut X,
        mut messages: Vec<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>> {
        let tag =
            Tag { payload: Payload::Gradient, part: Part { module: 0, chunk: self.exchanges & 0xffff_ffff } };
        self.exchanges += 1;
        let own = std::mem::take(&mut messages[self.rank]);
        let others: Vec<usize> = (0..self.ranks).filter(|rank| *rank != self.rank).collect();
        let sends = others.iter().map(|&to| (to, tag, Tensor::Numbers(std::mem::take(&mut messages[to]))));
        let receives: Vec<(usize, Tag)> = others.iter().map(|&from| (from, tag)).collect();
        let sends = sends.collect();
        let came = transport.exchange(sends, &receives)?;
        let mut all: Vec<Vec<f32>> = vec![Vec::new(); self.ranks];
        for (from, message) in others.into_iter().zip(came) {
            all[from] = message.numbers()?;
        }
        all[self.rank] = own;
        Ok(all)
    }

    /// What each rank says.
    pub(crate) fn gather<X: Transport<Tensor>>(
        &mut self,
        transport: &mut X,
        numbers: &[f32],
    ) -> Result<Vec<Vec<f32>>> {
        let all = self.exchange(transport, vec![numbers.to_vec(); self.ranks])?;
        for (from, theirs) in all.iter().enumerate() {
            ensure!(theirs.len() == numbers.len(), "rank {from} runs a job with other numbers");
        }
        Ok(all)
    }

    /// Gradients of the parameters that this rank owns, added over all copies; those of the copies become 0.
    pub(crate) fn reduce<X: Transport<Tensor>>(
        &mut self,
        transport: &mut X,
        specs: &[Spec],
        holdings: &[Holding],
        parameters: Vec<Parameter<'_>>,
    ) -> Result<Numbers> {
        let mut copies: BTreeMap<String, Vec<&mut Vec<f32>>> = BTreeMap::new();
        for (name, _, gradient) in parameters {
            copies.entry(name).or_default().push(gradient);
        }
        let mut messages = vec![Vec::new(); self.ranks];
        for (spec, holding) in specs.iter().zip(holdings) {
            for gradient in copies.remove(&spec.name).into_iter().flatten() {
                messages[holding.owner].extend_from_slice(gradient);
                gradient.fill(0.0);
            }
        }
        let came = self.exchange(transport, messages)?;
        let mut next: Vec<&[f32]> = came.iter().map(Vec::as_slice).collect();
        let mut sums = Numbers::new();
        for (i, (spec, holding)) in specs.iter().zip(holdings).enumerate() {
            if holding.owner != self.rank {
                continue;
            }
            let mut sum = vec![0.0; spec.len()];
            for &(from, copies) in &holding.holders {
                for _ in 0..copies {
                    add(&mut sum, take(&mut next[from], spec, from)?);
                }
            }
            sums.insert(i, sum);
        }
        Ok(sums)
    }

    /// New values of the parameters that this rank owns go to all that have copies.
    pub(crate) fn distribute<X: Transport<Tensor>>(
        &mut self,
        transport: &mut X,
        specs: &[Spec],
        holdings: &[Holding],
        owned: &BTreeMap<usize, &[f32]>,
        parameters: Vec<Parameter<'_>>,
    ) -> Result<()> {
        let mut messages = vec![Vec::new(); self.ranks];
        for (i, value) in owned {
            for (to, _) in &holdings[*i].holders {
                messages[*to].extend_from_slice(value);
            }
        }
        let came = self.exchange(transport, messages)?;
        let mut next: Vec<&[f32]> = came.iter().map(Vec::as_slice).collect();
        let mut copies: BTreeMap<String, Vec<&mut Vec<f32>>> = BTreeMap::new();
        for (name, value, _) in parameters {
            copies.entry(name).or_default().push(value);
        }
        for (spec, holding) in specs.iter().zip(holdings) {
            if let Some(copies) = copies.remove(&spec.name) {
                let value = take(&mut next[holding.owner], spec, holding.owner)?;
                copies.into_iter().for_each(|copy| copy.copy_from_slice(value));
            }
        }
        Ok(())
    }
}

/// The next parameter of a message.
fn take<'a>(from: &mut &'a [f32], spec: &Spec, rank: usize) -> Result<&'a [f32]> {
    let taken = from.split_off(..spec.len());
    taken.with_context(|| format!("rank {rank} has not sent {}: it runs a job with other numbers", spec.name))
}
