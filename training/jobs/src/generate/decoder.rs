//! The model, a few tokens at a time: attention to latent keys (FlashMLA's), everything in `f32` beside.

use crate::checkpoint::Checkpoint;
use crate::model::attention::{Attention, rotate, rotation};
use crate::model::norm::Norm;
use crate::model::numbers::{add, add_scaled, dot, sigmoid};
use crate::model::{Config, LATENT, ROPE, VOCABULARY};
use crate::ranks::{Spec, specs};
use anyhow::{Context, Result};
use ember_flashmla::{Dense, PAGE, WIDTH, dense_decode};
use half::bf16;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

/// A model and the keys of the tokens before.
pub(crate) struct Decoder {
    config: Config,
    weights: BTreeMap<String, Vec<f32>>,
    /// `[layers][experts]`.
    bias: Vec<Vec<f32>>,
    identity: [u8; 32],
    /// Of each layer `[window, 64, 576]`: page `p` stands at `p % window`.
    keys: Vec<Vec<bf16>>,
    /// Tokens so far.
    position: usize,
}

/// About as many tokens as a sequence had when the model was trained, but one page before the own one at least.
fn window(config: &Config) -> usize {
    config.context.div_ceil(PAGE).max(2)
}

/// `weight[outputs, inputs]` times each row of `x`.
fn times(weight: &[f32], x: &[f32], inputs: usize) -> Vec<f32> {
    x.chunks_exact(inputs).flat_map(|x| weight.chunks_exact(inputs).map(|row| dot(row, x))).collect()
}

fn normed(weight: &[f32], x: &[f32]) -> Vec<f32> {
    Norm { value: weight.to_vec(), gradient: Vec::new() }.forward(x)
}

impl Decoder {
    /// With the weights of a checkpoint, and no token yet.
    pub(crate) fn load(from: &Checkpoint) -> Result<Self> {
        let config = from.state.config.clone();
        let value = |spec: Spec| Ok((spec.name.clone(), from.value(&spec)?));
        let weights = specs(&config).into_iter().map(value).collect::<Result<_>>()?;
        Ok(Self::new(config, weights, from.state.bias.clone()))
    }

    fn new(config: Config, weights: BTreeMap<String, Vec<f32>>, bias: Vec<Vec<f32>>) -> Self {
        let mut hash = Sha256::new();
        weights.values().chain(&bias).for_each(|numbers| hash.update(numbers.as_bytes()));
        let window = window(&config);
        Self {
            keys: vec![vec![bf16::ZERO; window * PAGE * WIDTH]; config.layers],
            config,
            weights,
            bias,
            identity: hash.finalize().into(),
            position: 0,
        }
    }

    /// Which weights these are.
    pub(crate) fn identity(&self) -> [u8; 32] {
        self.identity
    }
    /// Pages that a token sees, its own included.
    pub(crate) fn window(&self) -> usize {
        window(&self.config)
    }
    /// Numbers of a page, over all layers.
    pub(crate) fn page_numbers(&self) -> usize {
        self.config.layers * PAGE * WIDTH
    }
    /// The token that is next has this number.
    pub(crate) fn go_to(&mut self, position: usize) {
        self.position = position;
    }

    fn place(&self, page: usize) -> std::ops::Range<usize> {
        let at = page % self.window() * PAGE * WIDTH;
        at..at + PAGE * WIDTH
    }
    /// Takes over a page that was computed earlier.
    pub(crate) fn take(&mut self, page: usize, numbers: &[bf16]) {
        let place = self.place(page);
        for (keys, numbers) in self.keys.iter_mut().zip(numbers.chunks_exact(PAGE * WIDTH)) {
            keys[place.clone()].copy_from_slice(numbers);
        }
    }
    /// The page that was filled last.
    pub(crate) fn last_page(&self) -> Vec<bf16> {
        let place = self.place(self.position.saturating_sub(1) / PAGE);
        self.keys.iter().flat_map(|keys| &keys[place.clone()]).copied().collect()
    }

    fn weight(&self, name: &str) -> Result<&[f32]> {
        self.weights.get(name).map(Vec::as_slice).with_context(|| format!("the model has no {name}"))
    }

    /// Reads tokens that fit into the page at hand; logits for what follows the last one.
    pub(crate) fn advance(&mut self, tokens: &[u8]) -> Result<Vec<f32>> {
        let hidden = self.config.hidden;
        let table = self.weight("embedding")?;
        let mut x: Vec<f32> = tokens
            .iter()
            .flat_map(|&token| &table[usize::from(token) * hidden..][..hidden])
            .copied()
            .collect();
        for layer in 0..self.config.layers {
            let weight = |what: &str| format!("layers.{layer}.{what}");
            let y = normed(self.weight(&weight("attention_norm"))?, &x);
            add(&mut x, &self.attention(layer, &y)?);
            let y = normed(self.weight(&weight("experts_norm"))?, &x);
            for (x, y) in x.chunks_exact_mut(hidden).zip(y.chunks_exact(hidden)) {
                add(x, &self.experts(layer, y)?);
            }
        }
        self.position += tokens.len();
        let last = normed(self.weight("norm")?, &x[x.len() - hidden..]);
        let logits = times(self.weight("head")?, &last, hidden);
        debug_assert_eq!(logits.len(), VOCABULARY);
        Ok(logits)
    }

    fn attention(&mut self, layer: usize, x: &[f32]) -> Result<Vec<f32>> {
        let Config { hidden, heads, head, .. } = self.config;
        let name = |what: &str| format!("layers.{layer}.attention.{what}");
        let tokens = x.len() / hidden;
        let (page, within) = (self.position / PAGE, self.position % PAGE);
        let down = times(self.weight(&name("down"))?, x, hidden);
        let latent_norm = self.weight(&name("norm"))?.to_vec();
        let place = self.place(page).start + within * WIDTH;
        for (t, down) in down.chunks_exact(LATENT + ROPE).enumerate() {
            let mut key = normed(&latent_norm, &down[..LATENT]);
            key.extend_from_slice(&down[LATENT..]);
            rotate(&mut key[LATENT..], &rotation(self.position + t), false);
            let to = self.keys[layer][place + t * WIDTH..][..WIDTH].iter_mut();
            to.zip(key).for_each(|(to, x)| *to = bf16::from_f32(x));
        }
        let up = self.weight(&name("up"))?;
        let queries = times(self.weight(&name("query"))?, x, hidden);
        let mut q = Vec::with_capacity(tokens * heads * WIDTH);
        for (i, query) in queries.chunks_exact(head + ROPE).enumerate() {
            // The product of a query with an expanded key is that of this one with the latent key.
            let mut latent = vec![0.0; LATENT];
            for (j, factor) in query[..head].iter().enumerate() {
                let row = 2 * (i % heads) * head + j;
                add_scaled(&mut latent, *factor, &up[row * LATENT..][..LATENT]);
            }
            latent.extend_from_slice(&query[head..]);
            rotate(&mut latent[LATENT..], &rotation(self.position + i / heads), false);
            q.extend(latent.into_iter().map(bf16::from_f32));
        }
        let first = (page + 1).saturating_sub(self.window());
        let table: Vec<i32> = (first..=page).map(|page| (page % self.window()) as i32).collect();
        let length = (page - first) * PAGE + within + tokens;
        let attended = dense_decode(
            &Dense {
                batch: 1,
                queries: tokens,
                heads,
                kv_heads: 1,
                q: &q,
                cache: &self.keys[layer],
                block_table: &table,
                lengths: &[length as i32],
                causal: true,
                scale: Some(Attention::scale(&self.config)),
            },
            1,
        )?;
        let mut values = Vec::with_capacity(tokens * heads * head);
        for (i, out) in attended.out.chunks_exact(LATENT).enumerate() {
            let out: Vec<f32> = out.iter().map(|x| x.to_f32()).collect();
            let row = (2 * (i % heads) + 1) * head;
            values.extend(
                up[row * LATENT..(row + head) * LATENT].chunks_exact(LATENT).map(|row| dot(row, &out)),
            );
        }
        Ok(times(self.weight(&name("out"))?, &values, heads * head))
    }

    fn expert(&self, layer: usize, which: &str, x: &[f32]) -> Result<Vec<f32>> {
        let name = |what: &str| format!("layers.{layer}.experts.{which}.{what}");
        let both = times(self.weight(&name("into"))?, x, x.len());
        let (gate, input) = both.split_at(self.config.inner);
        let product: Vec<f32> = gate.iter().zip(input).map(|(g, x)| g * sigmoid(*g) * x).collect();
        Ok(times(self.weight(&name("out"))?, &product, self.config.inner))
    }

    fn experts(&self, layer: usize, x: &[f32]) -> Result<Vec<f32>> {
        let gate = self.weight(&format!("layers.{layer}.experts.gate"))?;
        let scores: Vec<f32> = times(gate, x, x.len()).into_iter().map(sigmoid).collect();
        let chosen = crate::model::experts::chosen(&scores, &self.bias[layer], self.config.topk);
        let all: f32 = chosen.iter().map(|expert| scores[*expert]).sum();
        let mut sum = self.expert(layer, "shared", x)?;
        for expert in chosen {
            add_scaled(&mut sum, scores[expert] / all, &self.expert(layer, &expert.to_string(), x)?);
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::matrix::Precision;
    use crate::model::stage::Tensor;
    use crate::model::tests::{config, part, text};
    use ember_dualpipe::Stage;

    #[test]
    fn logits_are_those_of_training() {
        let mut part = part("decoder", Precision::F32);
        let weights = part.parameters().into_iter().map(|(name, value, _)| (name, value.clone())).collect();
        let config = config();
        let bias = vec![vec![0.0; config.experts]; config.layers];
        let mut decoder = Decoder::new(config.clone(), weights, bias);
        let tokens = text().0;
        let expected = part.forward(0, Tensor::Tokens(tokens.clone()), false).unwrap().numbers().unwrap();
        let mut at = 0;
        for step in [3, 1, 4] {
            let found = decoder.advance(&tokens[at..at + step]).unwrap();
            at += step;
            let expected = &expected[(at - 1) * VOCABULARY..at * VOCABULARY];
            let most = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 0.02 * most, "{found} {expected}");
            }
        }
        assert_eq!(at, config.context);
    }
}
