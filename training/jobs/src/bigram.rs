//! A bigram model, to compare with: how often each byte follows each other one in a text.

use crate::data::Sequence;

/// Added to all counts; the best of these for the text in question is taken, which favours the bigram model.
const ADDED: [f64; 5] = [1.0, 0.3, 0.1, 0.03, 0.01];

/// Counts.
pub(crate) struct Bigrams(Vec<[u64; 256]>);

impl Bigrams {
    /// Of a text.
    pub(crate) fn of(text: &[u8]) -> Self {
        let mut counts = vec![[0; 256]; 256];
        text.windows(2).for_each(|pair| counts[usize::from(pair[0])][usize::from(pair[1])] += 1);
        Self(counts)
    }

    /// Mean loss on sequences, in nats a byte.
    pub(crate) fn loss(&self, on: &[Sequence]) -> f64 {
        ADDED.into_iter().map(|added| self.loss_with(on, added)).fold(f64::INFINITY, f64::min)
    }

    fn loss_with(&self, on: &[Sequence], added: f64) -> f64 {
        let sums: Vec<f64> =
            self.0.iter().map(|row| row.iter().sum::<u64>() as f64 + 256.0 * added).collect();
        let (mut total, mut tokens) = (0.0, 0.0);
        for (before, after) in on.iter().flat_map(|(before, after)| before.iter().zip(after)) {
            let count = self.0[usize::from(*before)][usize::from(*after)] as f64 + added;
            total -= (count / sums[usize::from(*before)]).ln();
            tokens += 1.0;
        }
        total / tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_always_follows_costs_little() {
        let bigrams = Bigrams::of(&b"ab".repeat(1000));
        let sure = bigrams.loss(&[(b"aba".to_vec(), b"bab".to_vec())]);
        assert!(sure < 0.01, "{sure}");
        let never = bigrams.loss(&[(b"x".to_vec(), b"y".to_vec())]);
        assert!((never - 256f64.ln()).abs() < 1e-9, "{never}");
    }
}
