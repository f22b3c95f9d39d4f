//! Gradients, compared with differences of a plain computation of the same loss in `f64`.

use crate::model::matrix::{Math, Precision};
use crate::model::numbers::{Random, dot};
use crate::model::stage::{Part, Tensor};
use crate::model::{Config, LATENT, ROPE, VOCABULARY};
use ember_deepep::{Group, Shape};
use ember_deepgemm::Cpu;
use ember_dualpipe::Stage;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const SEQUENCES: usize = 2;
type Weights = BTreeMap<String, Vec<f64>>;

pub(crate) fn config() -> Config {
    Config { hidden: 128, layers: 2, heads: 2, head: 16, inner: 128, experts: 4, topk: 2, context: 8 }
}

/// The replicas of experts 0 and 1 are in two slots each.
const PLACES: [usize; 6] = [0, 1, 2, 3, 0, 1];

pub(crate) fn part(name: &str, precision: Precision) -> Part {
    let config = config();
    config.check().unwrap();
    let path = std::path::PathBuf::from(format!("/dev/shm/ember-train-{name}-{}", std::process::id()));
    let shape = Shape {
        ranks: 1,
        experts: PLACES.len(),
        hidden: config.hidden,
        topk: config.topk,
        tokens: SEQUENCES * config.context,
    };
    let group = Rc::new(Group::join(&path, 0, shape, Duration::from_secs(10)).unwrap());
    let math = Math { cpu: Cpu::new().with_threads(1), precision };
    let places = vec![PLACES.to_vec(); config.layers];
    let mut part = Part::new(&config, math, &group, 0..config.layers, &places);
    for (name, value, _) in part.parameters() {
        let mut random = Random::named(7, &name);
        let (around, spread) = if name.contains("norm") { (1.0, 0.2) } else { (0.0, 0.08) };
        value.iter_mut().for_each(|x| *x = around + spread * random.normal());
    }
    part.prepare().unwrap();
    part
}

pub(crate) fn text() -> (Vec<u8>, Vec<u8>) {
    let mut random = Random::named(1, "text");
    let all: Vec<u8> = (0..SEQUENCES * config().context + 1).map(|_| random.below(40) as u8).collect();
    (all[..all.len() - 1].to_vec(), all[1..].to_vec())
}

/// Sum of the losses, and its gradient.
fn loss(logits: &[f32], labels: &[u8]) -> (f64, Vec<f32>) {
    let mut sum = 0.0;
    let mut gradient = logits.to_vec();
    for (row, &label) in gradient.chunks_exact_mut(VOCABULARY).zip(labels) {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let all: f32 = row.iter().map(|x| (x - most).exp()).sum();
        sum += f64::from(all.ln() + most - row[usize::from(label)]);
        row.iter_mut().for_each(|x| *x = (*x - most).exp() / all);
        row[usize::from(label)] -= 1.0;
    }
    (sum, gradient)
}

/// The same model, token by token.
struct Plain<'a> {
    config: Config,
    weights: &'a Weights,
    /// Experts of each layer and token, as the part chooses them.
    routes: Vec<Vec<usize>>,
}

fn norm(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x * w / (square + 1e-6).sqrt()).collect()
}
fn times(weight: &[f64], x: &[f64]) -> Vec<f64> {
    weight.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}
fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
fn turned(x: &[f64], position: usize) -> Vec<f64> {
    let turn = |(i, pair): (usize, &[f64])| {
        let angle = position as f64 * 10_000f64.powf(-2.0 * i as f64 / ROPE as f64);
        [pair[0] * angle.cos() - pair[1] * angle.sin(), pair[0] * angle.sin() + pair[1] * angle.cos()]
    };
    x.chunks(2).enumerate().flat_map(turn).collect()
}

impl Plain<'_> {
    fn of(&self, layer: usize, name: &str) -> &[f64] {
        &self.weights[&format!("layers.{layer}.{name}")]
    }

    fn attention(&self, layer: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let Config { heads, head, .. } = self.config;
        let (mut latents, mut turned_keys, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in x.iter().enumerate() {
            let down = times(self.of(layer, "attention.down"), x);
            let latent = norm(&down[..LATENT], self.of(layer, "attention.norm"));
            latents.push(times(self.of(layer, "attention.up"), &latent));
            turned_keys.push(turned(&down[LATENT..], position));
            let query = times(self.of(layer, "attention.query"), x);
            queries.push(
                query
                    .chunks(head + ROPE)
                    .map(|q| [q[..head].to_vec(), turned(&q[head..], position)].concat())
                    .collect::<Vec<_>>(),
            );
        }
        let mut out = Vec::new();
        for (t, query) in queries.iter().enumerate() {
            let mut values = Vec::new();
            for h in 0..heads {
                let logits: Vec<f64> = (0..=t)
                    .map(|j| {
                        let key = [&latents[j][2 * h * head..][..head], &turned_keys[j]].concat();
                        let sum: f64 = query[h].iter().zip(&key).map(|(a, b)| a * b).sum();
                        sum / ((head + ROPE) as f64).sqrt()
                    })
                    .collect();
                let all: f64 = logits.iter().map(|x| x.exp()).sum();
                for i in 0..head {
                    let value = |j: usize| latents[j][(2 * h + 1) * head + i];
                    values.push((0..=t).map(|j| logits[j].exp() / all * value(j)).sum::<f64>());
                }
            }
            out.push(times(self.of(layer, "attention.out"), &values));
        }
        out
    }

    fn expert(&self, layer: usize, name: &str, x: &[f64]) -> Vec<f64> {
        let both = times(self.of(layer, &format!("experts.{name}.into")), x);
        let (gate, input) = both.split_at(self.config.inner);
        let product: Vec<f64> = gate.iter().zip(input).map(|(g, x)| g / (1.0 + (-g).exp()) * x).collect();
        times(self.of(layer, &format!("experts.{name}.out")), &product)
    }

    fn experts(&mut self, layer: usize, token: usize, x: &[f64]) -> Vec<f64> {
        let logits = times(self.of(layer, "experts.gate"), x);
        let scores: Vec<f64> = logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
        if self.routes[layer].len() <= token * self.config.topk {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            self.routes[layer].extend(&order[..self.config.topk]);
        }
        let chosen = self.routes[layer][token * self.config.topk..][..self.config.topk].to_vec();
        let all: f64 = chosen.iter().map(|expert| scores[*expert]).sum();
        let mut sum = self.expert(layer, "shared", x);
        for expert in chosen {
            let y = self.expert(layer, &expert.to_string(), x);
            sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += scores[expert] / all * y);
        }
        sum
    }

    fn loss(&mut self, tokens: &[u8], labels: &[u8]) -> f64 {
        let context = self.config.context;
        let mut total = 0.0;
        for (s, (tokens, labels)) in tokens.chunks(context).zip(labels.chunks(context)).enumerate() {
            let row = |&token: &u8| self.weights["embedding"].chunks(128).nth(token.into()).unwrap().to_vec();
            let mut x: Vec<Vec<f64>> = tokens.iter().map(row).collect();
            for layer in 0..self.config.layers {
                let normed: Vec<_> = x.iter().map(|x| norm(x, self.of(layer, "attention_norm"))).collect();
                let y = self.attention(layer, &normed);
                for (t, (x, y)) in x.iter_mut().zip(y).enumerate() {
                    *x = plus(x, &y);
                    let normed = norm(x, self.of(layer, "experts_norm"));
                    *x = plus(x, &self.experts(layer, s * context + t, &normed));
                }
            }
            for (x, &label) in x.iter().zip(labels) {
                let logits = times(&self.weights["head"], &norm(x, &self.weights["norm"]));
                total += logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[usize::from(label)];
            }
        }
        total
    }
}

fn weights(part: &mut Part) -> Weights {
    let values = part.parameters().into_iter();
    values.map(|(name, value, _)| (name, value.iter().map(|x| f64::from(*x)).collect())).collect()
}

/// Gradients by name, those of replicas added.
fn gradients(part: &mut Part) -> BTreeMap<String, Vec<f32>> {
    let mut all: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, value, gradient) in part.parameters() {
        let sum = all.entry(name).or_insert_with(|| vec![0.0; value.len()]);
        sum.iter_mut().zip(gradient.iter()).for_each(|(sum, x)| *sum += x);
    }
    all
}

fn run(part: &mut Part) -> f64 {
    let (tokens, labels) = text();
    let logits = part.forward(0, Tensor::Tokens(tokens), true).unwrap().numbers().unwrap();
    let (sum, gradient) = loss(&logits, &labels);
    part.backward(0, Tensor::Numbers(gradient)).unwrap();
    sum
}

#[test]
fn gradients_are_those_of_the_loss() {
    let mut part = part("gradients", Precision::F32);
    let before = weights(&mut part);
    let (tokens, labels) = text();
    let sum = run(&mut part);
    let gradients = gradients(&mut part);
    let routes = vec![Vec::new(); config().layers];
    let mut plain = Plain { config: config(), weights: &before, routes };
    let expected = plain.loss(&tokens, &labels);
    assert!((sum / expected - 1.0).abs() < 1e-3, "{sum} {expected}");
    let routes = plain.routes;
    for (name, gradient) in &gradients {
        // Along the gradient itself, the loss grows with its square.
        let length = f64::from(dot(gradient, gradient)).sqrt();
        assert!(length > 1e-4, "{name} has a gradient");
        let step = 1e-3 / length;
        let moved = |sign: f64| {
            let mut weights = before.clone();
            let of = weights.get_mut(name).unwrap();
            of.iter_mut().zip(gradient).for_each(|(w, g)| *w += sign * step * f64::from(*g));
            Plain { config: config(), weights: &weights, routes: routes.clone() }.loss(&tokens, &labels)
        };
        let slope = (moved(1.0) - moved(-1.0)) / 2e-3;
        assert!((slope / length - 1.0).abs() < 0.01, "{name}: {slope}, and the gradient is {length}");
    }
}

#[test]
fn fp8_is_close() {
    let (mut exact, mut fp8) = (part("exact", Precision::F32), part("fp8", Precision::Fp8));
    let (a, b) = (run(&mut exact), run(&mut fp8));
    assert!((a / b - 1.0).abs() < 0.01, "{a} {b}");
    let (a, b) = (gradients(&mut exact), gradients(&mut fp8));
    for (name, a) in &a {
        let b = &b[name];
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(cosine > 0.95, "{name}: {cosine}");
    }
}
