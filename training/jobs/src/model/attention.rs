//! Attention with latent keys (arXiv 2412.19437, section 2.1.1): keys and values of all heads come from one latent
//! vector of 512 numbers, and a rotated part of 64 that the heads share. While training they are expanded; decoding
//! attends to the latent vectors themselves.

use crate::model::matrix::{Math, Matrix};
use crate::model::norm::Norm;
use crate::model::numbers::{add_product, add_scaled, dot};
use crate::model::{Config, LATENT, ROPE};
use anyhow::Result;
use std::rc::Rc;

/// Weights of a layer's attention.
#[derive(Clone, Debug)]
pub(crate) struct Attention {
    config: Config,
    /// Rotations at the positions of a sequence.
    turns: Rc<[[(f32, f32); ROPE / 2]]>,
    /// Queries: of each head the plain part, then the rotated one.
    pub(crate) query: Matrix,
    /// The latent vector, then the rotated key.
    pub(crate) down: Matrix,
    /// Of the latent vector.
    pub(crate) norm: Norm,
    /// From latent vectors: of each head the key, then the value.
    pub(crate) up: Matrix,
    /// From the values of all heads.
    pub(crate) out: Matrix,
}

/// What a backward pass needs.
pub(crate) struct Saved {
    x: Vec<f32>,
    queries: Vec<f32>,
    raw: Vec<f32>,
    latent: Vec<f32>,
    rotated: Vec<f32>,
    expanded: Vec<f32>,
    /// `[sequences, heads, context, context]`.
    shares: Vec<f32>,
    values: Vec<f32>,
}

/// Factors of weight gradients that are put off: gradients of the outputs, and inputs.
pub(crate) struct Deferred {
    pub(crate) query: (Vec<f32>, Vec<f32>),
    pub(crate) down: (Vec<f32>, Vec<f32>),
    pub(crate) up: (Vec<f32>, Vec<f32>),
    pub(crate) out: (Vec<f32>, Vec<f32>),
}

/// Cosines and sines of the rotations at a position (arXiv 2104.09864): pairs of neighbours turn together.
pub(crate) fn rotation(position: usize) -> [(f32, f32); ROPE / 2] {
    std::array::from_fn(|i| {
        let angle = position as f64 * 10_000f64.powf(-2.0 * i as f64 / ROPE as f64);
        (angle.cos() as f32, angle.sin() as f32)
    })
}

/// Turns by the angles, or back.
pub(crate) fn rotate(x: &mut [f32], by: &[(f32, f32); ROPE / 2], back: bool) {
    for (pair, &(cos, sin)) in x.chunks_exact_mut(2).zip(by) {
        let sin = if back { -sin } else { sin };
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
    }
}

/// Numbers of the columns `[from, from + width)` of each row.
fn columns(x: &[f32], stride: usize, from: usize, width: usize) -> Vec<f32> {
    x.chunks_exact(stride).flat_map(|row| &row[from..from + width]).copied().collect()
}

/// Writes them back.
fn put_columns(x: &mut [f32], stride: usize, from: usize, part: &[f32], width: usize) {
    for (row, part) in x.chunks_exact_mut(stride).zip(part.chunks_exact(width)) {
        row[from..from + width].copy_from_slice(part);
    }
}

impl Attention {
    /// Of zeros.
    pub(crate) fn new(config: &Config) -> Self {
        let Config { hidden, heads, head, .. } = *config;
        Self {
            config: config.clone(),
            turns: (0..config.context).map(rotation).collect(),
            query: Matrix::new([config.queries(), hidden]),
            down: Matrix::new([LATENT + ROPE, hidden]),
            norm: Norm::new(LATENT),
            up: Matrix::new([2 * heads * head, LATENT]),
            out: Matrix::new([hidden, heads * head]),
        }
    }

    /// What is added to a product of query and key to make it a logit.
    pub(crate) fn scale(config: &Config) -> f32 {
        1.0 / ((config.head + ROPE) as f32).sqrt()
    }

    /// Turns the rotated parts of the queries and keys of all tokens.
    fn turn(&self, queries: &mut [f32], keys: &mut [f32], back: bool) {
        let head = self.config.head;
        let rows = queries.chunks_exact_mut(self.config.queries()).zip(keys.chunks_exact_mut(ROPE));
        for ((queries, key), turn) in rows.zip(self.turns.iter().cycle()) {
            queries.chunks_exact_mut(head + ROPE).for_each(|query| rotate(&mut query[head..], turn, back));
            rotate(key, turn, back);
        }
    }

    /// `x[tokens, hidden]`, whole sequences.
    pub(crate) fn forward(&self, math: &Math, x: Vec<f32>) -> Result<(Vec<f32>, Saved)> {
        let mut queries = math.forward(&self.query, &x)?;
        let down = math.forward(&self.down, &x)?;
        let raw = columns(&down, LATENT + ROPE, 0, LATENT);
        let mut rotated = columns(&down, LATENT + ROPE, LATENT, ROPE);
        let latent = self.norm.forward(&raw);
        let expanded = math.forward(&self.up, &latent)?;
        self.turn(&mut queries, &mut rotated, false);
        let mut saved =
            Saved { x, queries, raw, latent, rotated, expanded, shares: Vec::new(), values: Vec::new() };
        self.attend(&mut saved);
        Ok((math.forward(&self.out, &saved.values)?, saved))
    }

    /// A head's queries, keys and values in one sequence, whose first token is `first`.
    fn head(&self, saved: &Saved, first: usize, number: usize) -> [Vec<f32>; 3] {
        let Config { heads, head, context, .. } = self.config;
        let of = |x: &[f32], stride: usize, from, width| {
            columns(&x[first * stride..(first + context) * stride], stride, from, width)
        };
        let queries = of(&saved.queries, self.config.queries(), number * (head + ROPE), head + ROPE);
        let (up, both) = (2 * heads * head, head + ROPE);
        let mut keys = vec![0.0; context * both];
        put_columns(&mut keys, both, 0, &of(&saved.expanded, up, 2 * number * head, head), head);
        put_columns(&mut keys, both, head, &saved.rotated[first * ROPE..(first + context) * ROPE], ROPE);
        [queries, keys, of(&saved.expanded, up, (2 * number + 1) * head, head)]
    }

    fn attend(&self, saved: &mut Saved) {
        let Config { heads, head, context, .. } = self.config;
        let (both, scale) = (head + ROPE, Self::scale(&self.config));
        let tokens = saved.rotated.len() / ROPE;
        let mut values = vec![0.0; tokens * heads * head];
        let mut shares = vec![0.0; tokens * heads * context];
        for (i, shares) in shares.chunks_exact_mut(context * context).enumerate() {
            let (first, number) = (i / heads * context, i % heads);
            let [queries, keys, value] = self.head(saved, first, number);
            for (t, row) in shares.chunks_exact_mut(context).enumerate() {
                let query = &queries[t * both..][..both];
                for (logit, key) in row[..=t].iter_mut().zip(keys.chunks_exact(both)) {
                    *logit = dot(query, key) * scale;
                }
                let most = row[..=t].iter().copied().fold(f32::MIN, f32::max);
                row[..=t].iter_mut().for_each(|x| *x = (*x - most).exp());
                let inverse = 1.0 / row[..=t].iter().sum::<f32>();
                row[..=t].iter_mut().for_each(|x| *x *= inverse);
            }
            let mut out = vec![0.0; context * head];
            add_product(&mut out, shares, &value, [context, context, head]);
            let rows = &mut values[first * heads * head..(first + context) * heads * head];
            put_columns(rows, heads * head, number * head, &out, head);
        }
        (saved.values, saved.shares) = (values, shares);
    }

    /// Gradient of `x`.
    pub(crate) fn backward(
        &mut self,
        math: &Math,
        saved: Saved,
        dy: Vec<f32>,
    ) -> Result<(Vec<f32>, Deferred)> {
        let dvalues = math.backward(&self.out, &dy)?;
        let [mut dqueries, mut drotated, dexpanded] = self.attend_back(&saved, &dvalues);
        self.turn(&mut dqueries, &mut drotated, true);
        let dlatent = math.backward(&self.up, &dexpanded)?;
        let draw = self.norm.backward(&saved.raw, &dlatent);
        let mut ddown = vec![0.0; saved.raw.len() + saved.rotated.len()];
        put_columns(&mut ddown, LATENT + ROPE, 0, &draw, LATENT);
        put_columns(&mut ddown, LATENT + ROPE, LATENT, &drotated, ROPE);
        let mut dx = math.backward(&self.query, &dqueries)?;
        add_scaled(&mut dx, 1.0, &math.backward(&self.down, &ddown)?);
        let deferred = Deferred {
            query: (dqueries, saved.x.clone()),
            down: (ddown, saved.x),
            up: (dexpanded, saved.latent),
            out: (dy, saved.values),
        };
        Ok((dx, deferred))
    }

    /// Gradients of the turned queries, of the turned keys, and of the expanded keys and values.
    fn attend_back(&self, saved: &Saved, dvalues: &[f32]) -> [Vec<f32>; 3] {
        let Config { heads, head, context, .. } = self.config;
        let (both, up, scale) = (head + ROPE, 2 * heads * head, Self::scale(&self.config));
        let mut dqueries = vec![0.0; saved.queries.len()];
        let mut drotated = vec![0.0; saved.rotated.len()];
        let mut dexpanded = vec![0.0; saved.expanded.len()];
        for (i, shares) in saved.shares.chunks_exact(context * context).enumerate() {
            let (first, number) = (i / heads * context, i % heads);
            let [queries, keys, value] = self.head(saved, first, number);
            let rows = &dvalues[first * heads * head..(first + context) * heads * head];
            let dout = columns(rows, heads * head, number * head, head);
            let (mut dquery, mut dkeys) = (vec![0.0; context * both], vec![0.0; context * both]);
            let mut dvalue = vec![0.0; context * head];
            for t in 0..context {
                let (shares, dout) = (&shares[t * context..][..=t], &dout[t * head..][..head]);
                let dshares: Vec<f32> = value.chunks_exact(head).take(t + 1).map(|v| dot(dout, v)).collect();
                let common = dot(shares, &dshares);
                for (j, (share, dshare)) in shares.iter().zip(&dshares).enumerate() {
                    let dlogit = share * (dshare - common) * scale;
                    add_scaled(&mut dquery[t * both..][..both], dlogit, &keys[j * both..][..both]);
                    add_scaled(&mut dkeys[j * both..][..both], dlogit, &queries[t * both..][..both]);
                    add_scaled(&mut dvalue[j * head..][..head], *share, dout);
                }
            }
            let of = |stride: usize| first * stride..(first + context) * stride;
            let wide = self.config.queries();
            put_columns(&mut dqueries[of(wide)], wide, number * both, &dquery, both);
            let dexpanded = &mut dexpanded[of(up)];
            put_columns(dexpanded, up, 2 * number * head, &columns(&dkeys, both, 0, head), head);
            put_columns(dexpanded, up, (2 * number + 1) * head, &dvalue, head);
            add_scaled(&mut drotated[of(ROPE)], 1.0, &columns(&dkeys, both, head, ROPE));
        }
        [dqueries, drotated, dexpanded]
    }

    /// Adds the weight gradients that were put off.
    pub(crate) fn weight_gradients(&mut self, math: &Math, of: &Deferred) -> Result<()> {
        math.gradient(&mut self.query, &of.query.0, &of.query.1)?;
        math.gradient(&mut self.down, &of.down.0, &of.down.1)?;
        math.gradient(&mut self.up, &of.up.0, &of.up.1)?;
        math.gradient(&mut self.out, &of.out.0, &of.out.1)
    }
}
