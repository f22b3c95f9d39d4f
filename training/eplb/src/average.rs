//! What the loads are.

use crate::{Result, demand};

/// Counts how many tokens chose each expert. `chosen` are the experts of all tokens (any shape), -1 for none.
///
/// # Errors
/// If an id is not an expert.
pub fn count_tokens(chosen: &[i64], experts: usize) -> Result<Vec<u64>> {
    let mut counts = vec![0; experts];
    for (at, &id) in chosen.iter().enumerate() {
        match usize::try_from(id).ok().and_then(|expert| counts.get_mut(expert)) {
            Some(count) => *count += 1,
            None => demand(id == -1, "chosen", || {
                format!("{id} at position {at} is none of {experts} experts, nor -1 for none")
            })?,
        }
    }
    Ok(counts)
}

/// Moving average of the loads of `layers × experts`: a step weighs half as much as one `half_life` steps later.
#[derive(Clone, PartialEq, Debug)]
pub struct LoadAverage {
    experts: usize,
    keep: f64,
    /// Sums of weighted counts, row-major.
    sums: Vec<f64>,
    /// Sum of the weights.
    weight: f64,
}

impl LoadAverage {
    /// Of nothing yet.
    ///
    /// # Errors
    /// If `half_life`, in steps, is not a positive number.
    pub fn new(layers: usize, experts: usize, half_life: f64) -> Result<Self> {
        demand(half_life > 0.0 && half_life.is_finite(), "half_life", || {
            format!("{half_life} is no number of steps above 0")
        })?;
        let keep = 0.5f64.powf(1.0 / half_life);
        Ok(Self { experts, keep, sums: vec![0.0; layers * experts], weight: 0.0 })
    }

    /// Adds a step: tokens of each expert, `counts[layers, experts]`, over all ranks.
    ///
    /// # Errors
    /// If `counts` has another shape.
    pub fn observe(&mut self, counts: &[u64]) -> Result<()> {
        demand(counts.len() == self.sums.len(), "counts", || {
            let layers = self.sums.len().checked_div(self.experts).unwrap_or(0);
            format!("has {} values for {layers} layers of {} experts", counts.len(), self.experts)
        })?;
        for (sum, &count) in self.sums.iter_mut().zip(counts) {
            *sum = *sum * self.keep + count as f64;
        }
        self.weight = self.weight * self.keep + 1.0;
        Ok(())
    }

    /// Tokens of each expert in a step, `[layers, experts]`; zeros before the first step.
    pub fn loads(&self) -> Vec<f32> {
        let weight = if self.weight > 0.0 { self.weight } else { 1.0 };
        self.sums.iter().map(|sum| (sum / weight) as f32).collect()
    }
}
