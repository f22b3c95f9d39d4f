//! A part of the model that one module of a rank holds: some layers, before the first the embedding, behind the last
//! the head.

use crate::model::attention::{self, Attention};
use crate::model::experts::{self, Experts};
use crate::model::matrix::{Math, Matrix};
use crate::model::norm::Norm;
use crate::model::numbers::{add, rounded, transposed};
use crate::model::{Config, VOCABULARY};
use anyhow::{Context, Result, ensure};
use ember_deepep::Group;
use ember_deepgemm::{View, ViewMut};
use ember_dualpipe::{Message, Stage};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// What goes between stages.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Tensor {
    /// Into the first one.
    Tokens(Vec<u8>),
    /// `[tokens, hidden]`, at the end `[tokens, 256]`; and whatever else ranks tell each other.
    Numbers(Vec<f32>),
}

impl Tensor {
    /// The numbers, if it is no text.
    pub(crate) fn numbers(self) -> Result<Vec<f32>> {
        match self {
            Self::Numbers(numbers) => Ok(numbers),
            Self::Tokens(_) => anyhow::bail!("text came where numbers were expected"),
        }
    }
}

impl Message for Tensor {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Tokens(tokens) => {
                out.push(0);
                out.extend(tokens);
            }
            Self::Numbers(numbers) => {
                out.push(1);
                out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
            }
        }
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (0, tokens) => Some(Self::Tokens(tokens.to_vec())),
            (1, numbers) => {
                let (numbers, []) = numbers.as_chunks() else { return None };
                Some(Self::Numbers(numbers.iter().map(|x| f32::from_le_bytes(*x)).collect()))
            }
            _ => None,
        }
    }
}

/// A layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: Norm,
    pub(crate) attention: Attention,
    pub(crate) experts_norm: Norm,
    pub(crate) experts: Experts,
}

struct SavedLayer {
    x: Vec<f32>,
    attention: attention::Saved,
    between: Vec<f32>,
    experts: experts::Saved,
}

/// Between the passes of a micro-batch.
struct Saved {
    tokens: Vec<u8>,
    layers: Vec<SavedLayer>,
    last: Last,
}

/// What goes into the last norm, and what comes from it.
type Last = (Vec<f32>, Vec<f32>);

/// Layers of a model.
pub(crate) struct Part {
    config: Config,
    math: Math,
    /// Which layers.
    pub(crate) layers: Range<usize>,
    pub(crate) embedding: Option<Matrix>,
    pub(crate) held: Vec<Layer>,
    pub(crate) head: Option<(Norm, Matrix)>,
    saved: BTreeMap<usize, Saved>,
}

/// Weight gradients that are put off: those of the layers, and of the head.
pub(crate) struct Deferred {
    layers: Vec<(attention::Deferred, experts::Deferred)>,
    head: Option<(Vec<f32>, Vec<f32>)>,
}

/// A parameter: its name, which all its copies share, its value, and the sum of its gradients.
pub(crate) type Parameter<'a> = (String, &'a mut Vec<f32>, &'a mut Vec<f32>);

/// `a[m, k] b[n, k]ᵀ` with factors rounded to BF16.
fn product(math: &Math, a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) -> Result<Vec<f32>> {
    let mut d = vec![0.0f32; m * n];
    let (a, b) = (rounded(a), rounded(b));
    let to = ViewMut::new(&mut d, [m, n])?;
    math.cpu.bf16_gemm_nt(View::new(&a, [m, k])?, View::new(&b, [n, k])?, None, to)?;
    Ok(d)
}

impl Part {
    /// Layers `of` with all weights 0. `places` says of each of them which expert each slot holds.
    pub(crate) fn new(
        config: &Config,
        math: Math,
        group: &Rc<Group>,
        of: Range<usize>,
        places: &[Vec<usize>],
    ) -> Self {
        let layer = |number: usize| Layer {
            attention_norm: Norm::new(config.hidden),
            attention: Attention::new(config),
            experts_norm: Norm::new(config.hidden),
            experts: Experts::new(config, group.clone(), &places[number]),
        };
        let ends = [of.start == 0, of.end == config.layers];
        Self {
            config: config.clone(),
            math,
            embedding: ends[0].then(|| Matrix::new([VOCABULARY, config.hidden])),
            held: of.clone().map(layer).collect(),
            head: ends[1].then(|| (Norm::new(config.hidden), Matrix::new([VOCABULARY, config.hidden]))),
            layers: of,
            saved: BTreeMap::new(),
        }
    }

    /// All parameters, in an order of their own. A replica of an expert has the expert's name.
    pub(crate) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        fn matrix(name: String, of: &mut Matrix) -> Parameter<'_> {
            (name, &mut of.value, &mut of.gradient)
        }
        fn norm(name: String, of: &mut Norm) -> Parameter<'_> {
            (name, &mut of.value, &mut of.gradient)
        }
        let mut all = Vec::new();
        all.extend(self.embedding.as_mut().map(|embedding| matrix("embedding".into(), embedding)));
        for (number, layer) in self.layers.clone().zip(&mut self.held) {
            let name = |what: &str| format!("layers.{number}.{what}");
            let Layer { attention_norm, attention, experts_norm, experts } = layer;
            all.push(norm(name("attention_norm"), attention_norm));
            all.push(matrix(name("attention.query"), &mut attention.query));
            all.push(matrix(name("attention.down"), &mut attention.down));
            all.push(norm(name("attention.norm"), &mut attention.norm));
            all.push(matrix(name("attention.up"), &mut attention.up));
            all.push(matrix(name("attention.out"), &mut attention.out));
            all.push(norm(name("experts_norm"), experts_norm));
            all.push(matrix(name("experts.gate"), &mut experts.gate));
            all.push(matrix(name("experts.shared.into"), &mut experts.shared.into));
            all.push(matrix(name("experts.shared.out"), &mut experts.shared.out));
            for (expert, slot) in experts.held.iter().zip(&mut experts.slots) {
                all.push(matrix(name(&format!("experts.{expert}.into")), &mut slot.into));
                all.push(matrix(name(&format!("experts.{expert}.out")), &mut slot.out));
            }
        }
        if let Some((last, head)) = &mut self.head {
            all.push(norm("norm".into(), last));
            all.push(matrix("head".into(), head));
        }
        all
    }

    /// Makes the weights ready for products after they have changed.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        let math = self.math;
        for layer in &mut self.held {
            let Layer { attention, experts, .. } = layer;
            let shared = [&mut experts.shared.into, &mut experts.shared.out];
            let slots = experts.slots.iter_mut().flat_map(|slot| [&mut slot.into, &mut slot.out]);
            let own = [&mut attention.query, &mut attention.down, &mut attention.up, &mut attention.out];
            own.into_iter().chain(shared).chain(slots).try_for_each(|matrix| matrix.prepare(&math))?;
        }
        Ok(())
    }

    fn embed(&self, tokens: &[u8]) -> Result<Vec<f32>> {
        let table = &self.embedding.as_ref().context("text goes into the first stage only")?.value;
        let hidden = self.config.hidden;
        Ok(tokens
            .iter()
            .flat_map(|&token| &table[usize::from(token) * hidden..][..hidden])
            .copied()
            .collect())
    }

    fn forward_layers(&mut self, mut x: Vec<f32>, keep: bool) -> Result<(Vec<f32>, Vec<SavedLayer>)> {
        let mut saved = Vec::new();
        for layer in &mut self.held {
            let (y, attention) = layer.attention.forward(&self.math, layer.attention_norm.forward(&x))?;
            let mut between = y;
            add(&mut between, &x);
            let (y, experts) = layer.experts.forward(&self.math, layer.experts_norm.forward(&between))?;
            let mut next = y;
            add(&mut next, &between);
            if keep {
                saved.push(SavedLayer { x, attention, between, experts });
            }
            x = next;
        }
        Ok((x, saved))
    }

    /// Logits, and what the backward pass of the head needs.
    fn head_forward(&self, x: Vec<f32>) -> Result<(Vec<f32>, Last)> {
        let Some((norm, head)) = &self.head else { return Ok((x, Default::default())) };
        let normed = norm.forward(&x);
        let hidden = self.config.hidden;
        let logits = product(&self.math, &normed, &head.value, [x.len() / hidden, hidden, VOCABULARY])?;
        Ok((logits, (x, normed)))
    }

    /// Gradient of what goes into the head.
    fn head_backward(&mut self, x: &[f32], dlogits: &[f32]) -> Result<Vec<f32>> {
        let Some((norm, head)) = &mut self.head else { return Ok(dlogits.to_vec()) };
        let hidden = self.config.hidden;
        let back = transposed(&head.value, [VOCABULARY, hidden]);
        let dnormed = product(&self.math, dlogits, &back, [x.len() / hidden, VOCABULARY, hidden])?;
        Ok(norm.backward(x, &dnormed))
    }
}

impl Stage for Part {
    type Tensor = Tensor;
    type Deferred = Deferred;
    type Error = anyhow::Error;

    fn forward(&mut self, chunk: usize, input: Tensor, keep: bool) -> Result<Tensor> {
        let (tokens, x) = match input {
            Tensor::Tokens(tokens) => {
                let x = self.embed(&tokens)?;
                (tokens, x)
            }
            Tensor::Numbers(x) => (Vec::new(), x),
        };
        let row = self.config.hidden * self.config.context;
        ensure!(x.len().is_multiple_of(row), "{} numbers are no whole sequences of {row}", x.len());
        let (x, layers) = self.forward_layers(x, keep)?;
        let (x, last) = self.head_forward(x)?;
        if keep {
            self.saved.insert(chunk, Saved { tokens, layers, last });
        }
        Ok(Tensor::Numbers(x))
    }

    fn backward_input(&mut self, chunk: usize, gradient: Tensor) -> Result<(Tensor, Deferred)> {
        let saved = self.saved.remove(&chunk).context("a backward pass follows a forward pass")?;
        let gradient = gradient.numbers()?;
        let mut dx = self.head_backward(&saved.last.0, &gradient)?;
        let head = self.head.is_some().then_some((gradient, saved.last.1));
        let mut layers = Vec::with_capacity(saved.layers.len());
        for (layer, saved) in self.held.iter_mut().zip(saved.layers).rev() {
            let (dnormed, experts) = layer.experts.backward(&self.math, saved.experts, dx.clone())?;
            add(&mut dx, &layer.experts_norm.backward(&saved.between, &dnormed));
            let (dnormed, attention) = layer.attention.backward(&self.math, saved.attention, dx.clone())?;
            add(&mut dx, &layer.attention_norm.backward(&saved.x, &dnormed));
            layers.push((attention, experts));
        }
        if let Some(embedding) = &mut self.embedding {
            let hidden = self.config.hidden;
            for (&token, dx) in saved.tokens.iter().zip(dx.chunks_exact(hidden)) {
                add(&mut embedding.gradient[usize::from(token) * hidden..][..hidden], dx);
            }
        }
        layers.reverse();
        Ok((Tensor::Numbers(dx), Deferred { layers, head }))
    }

    fn weight_gradients(&mut self, deferred: Deferred) -> Result<()> {
        for (layer, (attention, experts)) in self.held.iter_mut().zip(&deferred.layers) {
            layer.attention.weight_gradients(&self.math, attention)?;
            layer.experts.weight_gradients(&self.math, experts)?;
        }
        if let (Some((_, head)), Some((dlogits, x))) = (&mut self.head, deferred.head) {
            let (hidden, tokens) = (self.config.hidden, dlogits.len() / VOCABULARY);
            let (left, right) =
                (transposed(&dlogits, [tokens, VOCABULARY]), transposed(&x, [tokens, hidden]));
            add(&mut head.gradient, &product(&self.math, &left, &right, [VOCABULARY, tokens, hidden])?);
        }
        Ok(())
    }
}
