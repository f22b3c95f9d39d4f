//! A row for each expert of a token.

use crate::dispatch::Dispatched;
use crate::places::BLOCK;
use crate::ways::Handle;
use crate::{Result, demand};
use ember_deepgemm::{E4m3, Scaled, Scales, View};
use half::bf16;

/// Rows of tokens.
#[derive(Clone, PartialEq, Debug)]
pub enum Values {
    /// In BF16: `[rows, hidden]`.
    Bf16(Vec<bf16>),
    /// In FP8, with a scale for each 128 numbers.
    Fp8 {
        /// `[rows, hidden]`.
        values: Vec<E4m3>,
        /// `[rows, ceil(hidden / 128)]`.
        scales: Vec<f32>,
    },
}

impl Values {
    /// So many rows of zeros.
    pub(crate) fn zeros(fp8: bool, rows: usize, hidden: usize) -> Self {
        if fp8 {
            let scales = vec![0.0; rows * hidden.div_ceil(BLOCK)];
            return Self::Fp8 { values: vec![E4m3::default(); rows * hidden], scales };
        }
        Self::Bf16(vec![bf16::ZERO; rows * hidden])
    }

    /// Rows `[from, from + count)` of `hidden` numbers each as a matrix to be multiplied, if they are in FP8.
    ///
    /// # Errors
    /// If there are not so many rows.
    pub fn scaled(&self, from: usize, count: usize, hidden: usize) -> Result<Option<Scaled<'_>>> {
        let Self::Fp8 { values, scales } = self else { return Ok(None) };
        let blocks = hidden.div_ceil(BLOCK);
        let part = |each: usize| from.checked_mul(each).zip(count.checked_mul(each));
        let part = |each: usize| part(each).and_then(|(at, length)| Some(at..at.checked_add(length)?));
        let values = part(hidden).and_then(|part| values.get(part));
        let scales = part(blocks).and_then(|part| scales.get(part));
        let (Some(values), Some(scales)) = (values, scales) else {
            return demand(false, "rows", || format!("there are no {count} from {from} on")).map(|()| None);
        };
        let matrix = View::new(values, [count, hidden])
            .and_then(|values| Ok(Scaled { values, scales: Scales::row_major(scales, [count, blocks])? }));
        matrix
            .map(Some)
            .map_err(|error| crate::EpError::Argument { argument: error.argument, rule: error.rule })
    }
}

/// A row for each token and expert of this rank, grouped by expert, each expert's rows in the order of rank and token,
/// from a multiple of the alignment on. With an alignment of 128 it is what
/// [`fp8_gemm_nt_contiguous`](ember_deepgemm::Cpu::fp8_gemm_nt_contiguous) takes.
#[derive(Clone, PartialEq, Debug)]
pub struct Expanded {
    /// The rows; zeros in padding.
    pub values: Values,
    /// The expert of each row, as a number of this rank's; -1 in padding.
    pub groups: Vec<i32>,
    /// The weight of each row; 0 in padding. Empty after [`Expanded::again`].
    pub weights: Vec<f32>,
    /// Rows of each expert, without padding.
    pub per_expert: Vec<u32>,
    /// Where the rows of each expert end, without padding: they begin at the end of the expert before, rounded up.
    pub ends: Vec<u32>,
    /// `[received rows, topk]`: which row is that of a token's k-th expert; -1 for experts of other ranks.
    pub slots: Vec<i32>,
    /// Where each received row comes from: rank, and token there.
    pub sources: Vec<(u32, u32)>,
    pub(crate) handle: Handle,
}

pub(crate) fn check_alignment(alignment: usize) -> Result<()> {
    demand((1..=1 << 16).contains(&alignment), "alignment", || {
        format!("{alignment} is not between 1 and 65536")
    })
}

impl Dispatched<'_> {
    /// Gives each expert its own rows. They are a copy: this result may be dropped.
    ///
    /// # Errors
    /// If `alignment` is not between 1 and 65536, there are more than 2^31 rows, or the dispatch went by a handle.
    pub fn expand(&self, alignment: usize) -> Result<Expanded> {
        check_alignment(alignment)?;
        demand(!self.per_expert.is_empty(), "self", || {
            "a dispatch by a handle has no experts: expand it like the one before, by `Expanded::again`"
                .into()
        })?;
        let (mut begins, mut ends, mut end) = (Vec::new(), Vec::new(), 0);
        for rows in &self.per_expert {
            begins.push(end);
            ends.push(end + *rows as usize);
            end = (end + *rows as usize).next_multiple_of(alignment);
        }
        demand(i32::try_from(end).is_ok(), "alignment", || format!("{end} rows are more than 2^31"))?;
        let mut groups = vec![-1; end];
        let mut weights = vec![0.0; end];
        let place = |(id, weight): (&i64, &f32)| {
            let Ok(expert) = usize::try_from(*id) else { return -1 };
            let row = begins[expert];
            begins[expert] += 1;
            groups[row] = expert as i32;
            weights[row] = *weight;
            row as i32
        };
        let slots: Vec<i32> = self.chosen.iter().zip(&self.weights).map(place).collect();
        Ok(Expanded {
            values: self.spread(&slots, end),
            groups,
            weights,
            per_expert: self.per_expert.clone(),
            ends: ends.into_iter().map(|end| end as u32).collect(),
            slots,
            sources: self.sources.clone(),
            handle: self.handle.clone(),
        })
    }

    /// The numbers of each received row, in all its places.
    fn spread(&self, slots: &[i32], rows: usize) -> Values {
        let (hidden, topk) = (self.shape().hidden, self.shape().topk);
        let blocks = hidden.div_ceil(BLOCK);
        let mut out = Values::zeros(self.fp8().is_some(), rows, hidden);
        for (at, slot) in slots.iter().enumerate() {
            let Ok(to) = usize::try_from(*slot) else { continue };
            let from = at / topk;
            match &mut out {
                Values::Bf16(out) => {
                    let values = self.bf16().unwrap_or(&[]);
                    out[to * hidden..][..hidden].copy_from_slice(&values[from * hidden..][..hidden]);
                }
                Values::Fp8 { values: out, scales: to_scales } => {
                    let (values, scales) = self.fp8().unwrap_or_default();
                    let row = out[to * hidden..][..hidden].iter_mut();
                    row.zip(&values[from * hidden..][..hidden]).for_each(|(out, bits)| *out = E4m3(*bits));
                    to_scales[to * blocks..][..blocks].copy_from_slice(&scales[from * blocks..][..blocks]);
                }
            }
        }
        out
    }
}

impl Expanded {
    /// What went where.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The rows of a dispatch by this one's handle, in the same places.
    ///
    /// # Errors
    /// If it went by another handle.
    pub fn again(&self, got: &Dispatched<'_>) -> Result<Self> {
        let (ours, theirs) = (&self.handle, &got.handle);
        demand((ours.of, ours.id) == (theirs.of, theirs.id), "got", || {
            "it went by the handle of another dispatch".into()
        })?;
        Ok(Self {
            values: got.spread(&self.slots, self.groups.len()),
            groups: self.groups.clone(),
            weights: Vec::new(),
            per_expert: self.per_expert.clone(),
            ends: self.ends.clone(),
            slots: self.slots.clone(),
            sources: self.sources.clone(),
            handle: self.handle.clone(),
        })
    }
}
