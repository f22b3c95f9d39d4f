//! Mixture of experts (arXiv 2412.19437, section 2.1.2): each token goes to a few experts, which may be on other ranks,
//! and to one that all share. Which ones is decided by a sigmoid gate, and by biases that even out the load without a
//! loss of their own.

use crate::model::Config;
use crate::model::matrix::{Math, Matrix, Precision, Segments};
use crate::model::numbers::{add, add_product, add_scaled, dot, rounded, sigmoid, transposed};
use anyhow::{Context, Result};
use ember_deepep::{Dispatched, Group, Handle, Tokens};
use ember_deepgemm::{E4m3, Quantised, ScaleFormat, View, per_token};
use half::bf16;
use std::rc::Rc;

/// Numbers that have one scale.
const BLOCK: usize = ember_deepgemm::BLOCK;

/// An expert's weights: gate and input of the inner numbers beside each other, and the way out.
#[derive(Clone, Debug)]
pub(crate) struct Expert {
    pub(crate) into: Matrix,
    pub(crate) out: Matrix,
}

impl Expert {
    fn new(config: &Config) -> Self {
        let Config { hidden, inner, .. } = *config;
        Self { into: Matrix::new([2 * inner, hidden]), out: Matrix::new([hidden, inner]) }
    }
}

/// A layer's experts, as far as this rank has them.
pub(crate) struct Experts {
    config: Config,
    group: Rc<Group>,
    /// `[experts, hidden]`.
    pub(crate) gate: Matrix,
    pub(crate) shared: Expert,
    /// Which expert is in each of this rank's slots.
    pub(crate) held: Vec<usize>,
    /// One for each slot.
    pub(crate) slots: Vec<Expert>,
    /// The slots of each expert, on all ranks.
    replicas: Vec<Vec<usize>>,
    /// Added to scores when experts are chosen.
    pub(crate) bias: Vec<f32>,
    /// Tokens of this rank that have gone to each expert.
    pub(crate) counts: Vec<u64>,
}

/// What a backward pass needs.
pub(crate) struct Saved {
    x: Vec<f32>,
    routes: Routes,
    shared: Inner,
    handle: Handle,
    rows: Rows,
    inner: Inner,
    /// What the experts made of the rows.
    y: Vec<f32>,
}

/// Where tokens go.
struct Routes {
    /// `[tokens, topk]`: experts.
    experts: Vec<usize>,
    /// `[tokens, topk]`: the slots taken.
    slots: Vec<i64>,
    /// `[tokens, topk]`: what the gate says, before the sum is made 1, and after.
    scores: Vec<f32>,
    weights: Vec<f32>,
}

/// Inner numbers of an expert: gate and input, and what they make together.
struct Inner {
    both: Vec<f32>,
    product: Vec<f32>,
}

/// Tokens that have come to this rank's experts.
struct Rows {
    segments: Segments,
    /// `[rows, topk]`: where the row stands among those of the slot, if it is for one of this rank's.
    places: Vec<Option<usize>>,
    weights: Vec<f32>,
    /// `[padded, hidden]`.
    x: Vec<f32>,
    quantised: Option<Quantised>,
}

/// Factors of weight gradients that are put off.
pub(crate) struct Deferred {
    shared_into: (Vec<f32>, Vec<f32>),
    shared_out: (Vec<f32>, Vec<f32>),
    into: (Vec<f32>, Vec<f32>),
    out: (Vec<f32>, Vec<f32>),
    segments: Segments,
}

/// SwiGLU (arXiv 2002.05202): `[rows, 2 inner]` to `[rows, inner]`.
fn gated(both: Vec<f32>, inner: usize) -> Inner {
    let mut product = Vec::with_capacity(both.len() / 2);
    for row in both.chunks_exact(2 * inner) {
        let (gate, input) = row.split_at(inner);
        product.extend(gate.iter().zip(input).map(|(g, x)| g * sigmoid(*g) * x));
    }
    Inner { both, product }
}

/// Gradient of what goes into [`gated`].
fn gated_back(both: &[f32], dproduct: &[f32], inner: usize) -> Vec<f32> {
    let mut out = vec![0.0; both.len()];
    let rows = both.chunks_exact(2 * inner).zip(dproduct.chunks_exact(inner));
    for (out, (both, dy)) in out.chunks_exact_mut(2 * inner).zip(rows) {
        let ((gate, input), (dgate, dinput)) = (both.split_at(inner), out.split_at_mut(inner));
        for i in 0..inner {
            let s = sigmoid(gate[i]);
            dgate[i] = dy[i] * input[i] * s * (1.0 + gate[i] * (1.0 - s));
            dinput[i] = dy[i] * gate[i] * s;
        }
    }
    out
}

/// The experts with the greatest scores, biases added: of equal ones the first.
pub(crate) fn chosen(scores: &[f32], bias: &[f32], topk: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let rank = |expert: &usize| scores[*expert] + bias[*expert];
    order.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
    order.truncate(topk);
    order
}

impl Experts {
    /// Of zeros. `slots` says which expert is in each slot of all ranks.
    pub(crate) fn new(config: &Config, group: Rc<Group>, slots: &[usize]) -> Self {
        let mut new = Self {
            config: config.clone(),
            group,
            gate: Matrix::new([config.experts, config.hidden]),
            shared: Expert::new(config),
            held: Vec::new(),
            slots: Vec::new(),
            replicas: Vec::new(),
            bias: vec![0.0; config.experts],
            counts: vec![0; config.experts],
        };
        new.place(slots);
        new
    }

    /// Gives the slots of all ranks other experts; the weights of this rank's come later.
    pub(crate) fn place(&mut self, slots: &[usize]) {
        self.replicas = vec![Vec::new(); self.config.experts];
        slots.iter().enumerate().for_each(|(slot, expert)| self.replicas[*expert].push(slot));
        let local = self.group.shape().local_experts();
        self.held = slots[self.group.rank() * local..][..local].to_vec();
        self.slots.resize_with(local, || Expert::new(&self.config));
    }

    fn route(&mut self, x: &[f32]) -> Routes {
        let Config { hidden, topk, .. } = self.config;
        let tokens = x.len() / hidden;
        let (mut experts, mut slots) = (Vec::with_capacity(tokens * topk), Vec::with_capacity(tokens * topk));
        let (mut scores, mut weights) = (Vec::new(), Vec::new());
        for (t, x) in x.chunks_exact(hidden).enumerate() {
            let all: Vec<f32> =
                self.gate.value.chunks_exact(hidden).map(|gate| sigmoid(dot(x, gate))).collect();
            let order = chosen(&all, &self.bias, topk);
            let sum: f32 = order.iter().map(|expert| all[*expert]).sum();
            for expert in order {
                let replicas = &self.replicas[expert];
                self.counts[expert] += 1;
                experts.push(expert);
                slots.push(replicas[(t + self.group.rank()) % replicas.len()] as i64);
                scores.push(all[expert]);
                weights.push(all[expert] / sum);
            }
        }
        Routes { experts, slots, scores, weights }
    }

    /// `x[tokens, hidden]`.
    pub(crate) fn forward(&mut self, math: &Math, x: Vec<f32>) -> Result<(Vec<f32>, Saved)> {
        let Config { hidden, inner, .. } = self.config;
        let routes = self.route(&x);
        let (rows, handle) = self.dispatch(math, &x, &routes)?;
        let into: Vec<&Matrix> = self.slots.iter().map(|slot| &slot.into).collect();
        let both = match &rows.quantised {
            Some(x) => math.grouped_quantised(&into, x, &rows.segments)?,
            None => math.grouped(&into, &rows.x, &rows.segments, false)?,
        };
        let within = gated(both, inner);
        let out: Vec<&Matrix> = self.slots.iter().map(|slot| &slot.out).collect();
        let y = math.grouped(&out, &within.product, &rows.segments, false)?;
        let back = self.collected(&rows, |sum, place, weight| {
            add_scaled(sum, weight, &y[place * hidden..][..hidden]);
        });
        let combined = self.group.combine(&back, None, &handle, &[])?;
        let shared = gated(math.forward(&self.shared.into, &x)?, inner);
        let mut sum = math.forward(&self.shared.out, &shared.product)?;
        sum.iter_mut().zip(&combined.tokens).for_each(|(sum, x)| *sum += x.to_f32());
        Ok((sum, Saved { x, routes, shared, handle, rows, inner: within, y }))
    }

    fn dispatch(&self, math: &Math, x: &[f32], routes: &Routes) -> Result<(Rows, Handle)> {
        let hidden = self.config.hidden;
        if math.precision == Precision::F32 {
            let got = self.group.dispatch(Tokens::Bf16(&rounded(x)), &routes.slots, &routes.weights)?;
            return Ok((self.gather(&got)?, got.handle().clone()));
        }
        let tokens = x.len() / hidden;
        let quantised = per_token(&View::new(x, [tokens, hidden])?, ScaleFormat::F32)?;
        let values: Vec<u8> = quantised.values.iter().map(|value| value.0).collect();
        let fp8 = Tokens::Fp8 { values: &values, scales: &quantised.scales };
        let got = self.group.dispatch(fp8, &routes.slots, &routes.weights)?;
        Ok((self.gather(&got)?, got.handle().clone()))
    }

    /// Puts the rows of each slot behind each other.
    fn gather(&self, got: &Dispatched<'_>) -> Result<Rows> {
        let Config { hidden, topk, .. } = self.config;
        let segments = Segments::new(got.per_expert.iter().map(|count| *count as usize).collect());
        let mut next = segments.starts().to_vec();
        let mut place = |slot: &i64| {
            let next = next.get_mut(usize::try_from(*slot).ok()?)?;
            *next += 1;
            Some(*next - 1)
        };
        let places: Vec<Option<usize>> = got.chosen.iter().map(&mut place).collect();
        let mut x = vec![0.0; segments.padded() * hidden];
        let placed = places.iter().enumerate().filter_map(|(i, place)| Some((i / topk, (*place)?)));
        let mut quantised = None;
        if let Some(rows) = got.bf16() {
            for (row, place) in placed {
                let to = x[place * hidden..][..hidden].iter_mut();
                to.zip(&rows[row * hidden..]).for_each(|(to, x)| *to = x.to_f32());
            }
        } else {
            let (values, scales) = got.fp8().context("rows are BF16 or FP8")?;
            let each = hidden / BLOCK;
            let mut all = Quantised {
                values: vec![E4m3::default(); x.len()],
                // Padding has zeros, with any scale.
                scales: vec![1.0; segments.padded() * each],
                scale_shape: [segments.padded(), each],
            };
            for (row, place) in placed {
                let values = &values[row * hidden..][..hidden];
                let scales = &scales[row * each..][..each];
                all.scales[place * each..][..each].copy_from_slice(scales);
                for (i, value) in values.iter().enumerate() {
                    all.values[place * hidden + i] = E4m3(*value);
                    x[place * hidden + i] = E4m3(*value).to_f32() * scales[i / BLOCK];
                }
            }
            quantised = Some(all);
        }
        Ok(Rows { segments, places, weights: got.weights.clone(), x, quantised })
    }

    /// For each row that has come, the sum of what `add` gives for the places that it has.
    fn collected(&self, rows: &Rows, add: impl Fn(&mut [f32], usize, f32)) -> Vec<bf16> {
        let Config { hidden, topk, .. } = self.config;
        let mut out = Vec::with_capacity(rows.places.len() / topk * hidden);
        for (places, weights) in rows.places.chunks_exact(topk).zip(rows.weights.chunks_exact(topk)) {
            let mut sum = vec![0.0; hidden];
            for (place, weight) in places.iter().zip(weights) {
                if let Some(place) = place {
                    add(&mut sum, *place, *weight);
                }
            }
            out.extend(rounded(&sum));
        }
        out
    }

    /// Gradient of `x`; the gate's is added.
    pub(crate) fn backward(
        &mut self,
        math: &Math,
        saved: Saved,
        dy: Vec<f32>,
    ) -> Result<(Vec<f32>, Deferred)> {
        let Config { hidden, inner, .. } = self.config;
        let Saved { x, routes, shared, handle, rows, inner: within, y } = saved;
        let dproduct = math.backward(&self.shared.out, &dy)?;
        let dshared = gated_back(&shared.both, &dproduct, inner);
        let mut dx = math.backward(&self.shared.into, &dshared)?;

        let (drows, dweights) = self.split(&rows, &y, &dy, &handle)?;
        let out: Vec<&Matrix> = self.slots.iter().map(|slot| &slot.out).collect();
        let dproduct = math.grouped(&out, &drows, &rows.segments, true)?;
        let dboth = gated_back(&within.both, &dproduct, inner);
        let into: Vec<&Matrix> = self.slots.iter().map(|slot| &slot.into).collect();
        let dplaced = math.grouped(&into, &dboth, &rows.segments, true)?;
        let back = self.collected(&rows, |sum, place, _| add(sum, &dplaced[place * hidden..][..hidden]));
        let combined = self.group.combine(&back, Some(&dweights), &handle, &[])?;
        dx.iter_mut().zip(&combined.tokens).for_each(|(dx, x)| *dx += x.to_f32());
        let dweights = combined.weights.context("weights were sent back")?;
        self.gate_back(&x, &routes, &dweights, &mut dx);
        let deferred = Deferred {
            shared_into: (dshared, x),
            shared_out: (dy, shared.product),
            into: (dboth, rows.x),
            out: (drows, within.product),
            segments: rows.segments,
        };
        Ok((dx, deferred))
    }

    /// Gradients of what the experts gave `[padded, hidden]`, and of the weights `[rows, topk]`.
    fn split(&self, rows: &Rows, y: &[f32], dy: &[f32], handle: &Handle) -> Result<(Vec<f32>, Vec<f32>)> {
        let Config { hidden, topk, .. } = self.config;
        let dy = rounded(dy);
        let got = self.group.dispatch_again(Tokens::Bf16(&dy), handle)?;
        let came = got.bf16().context("rows of a gradient are BF16")?;
        let (mut placed, mut dweights) = (vec![0.0; y.len()], vec![0.0; rows.places.len()]);
        for (i, place) in rows.places.iter().enumerate() {
            let Some(place) = place else { continue };
            let row: Vec<f32> = came[i / topk * hidden..][..hidden].iter().map(|x| x.to_f32()).collect();
            dweights[i] = dot(&row, &y[place * hidden..][..hidden]);
            add_scaled(&mut placed[place * hidden..][..hidden], rows.weights[i], &row);
        }
        Ok((placed, dweights))
    }

    fn gate_back(&mut self, x: &[f32], routes: &Routes, dweights: &[f32], dx: &mut [f32]) {
        let Config { hidden, topk, experts, .. } = self.config;
        let tokens = x.len() / hidden;
        let mut dlogits = vec![0.0; tokens * experts];
        for t in 0..tokens {
            let of = t * topk..(t + 1) * topk;
            let (scores, weights) = (&routes.scores[of.clone()], &routes.weights[of.clone()]);
            let (dweights, experts_of) = (&dweights[of.clone()], &routes.experts[of]);
            let (sum, common) = (scores.iter().sum::<f32>(), dot(weights, dweights));
            for (k, &expert) in experts_of.iter().enumerate() {
                let dscore = (dweights[k] - common) / sum;
                dlogits[t * experts + expert] = dscore * scores[k] * (1.0 - scores[k]);
            }
        }
        add_product(dx, &dlogits, &self.gate.value, [tokens, experts, hidden]);
        let left = transposed(&dlogits, [tokens, experts]);
        add_product(&mut self.gate.gradient, &left, x, [experts, tokens, hidden]);
    }

    /// Adds the weight gradients that were put off.
    pub(crate) fn weight_gradients(&mut self, math: &Math, of: &Deferred) -> Result<()> {
        math.gradient(&mut self.shared.into, &of.shared_into.0, &of.shared_into.1)?;
        math.gradient(&mut self.shared.out, &of.shared_out.0, &of.shared_out.1)?;
        let mut into: Vec<&mut Matrix> = self.slots.iter_mut().map(|slot| &mut slot.into).collect();
        math.grouped_gradient(&mut into, &of.into.0, &of.into.1, &of.segments)?;
        let mut out: Vec<&mut Matrix> = self.slots.iter_mut().map(|slot| &mut slot.out).collect();
        math.grouped_gradient(&mut out, &of.out.0, &of.out.1, &of.segments)
    }
}
