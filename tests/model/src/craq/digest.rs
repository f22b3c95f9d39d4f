//! One number for a value that many states share, so that it is hashed once.

use std::hash::{Hash, Hasher};

const KEYS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];

/// Multiplies and folds word by word: many times faster than the standard library's hasher, and values here are
/// chosen by nobody.
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value ^ KEYS[0]) * u128::from(KEYS[1]);
        self.0 = (product as u64).rotate_left(23) ^ (product >> 64) as u64;
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    fn finish(&self) -> u64 {
        let mut last = Self(self.0);
        last.write_u64(KEYS[1]);
        last.0
    }
}

pub(super) fn digest(value: &impl Hash) -> u64 {
    let mut mixer = Mixer(KEYS[1]);
    value.hash(&mut mixer);
    mixer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn values_that_differ_a_little_have_different_digests() {
        let mut seen = BTreeSet::new();
        for a in 0..300_u64 {
            for b in 0..300_u32 {
                assert!(seen.insert(digest(&(a, b, Some(1_u8), [0_u32; 4]))), "{a} {b}");
            }
        }
    }
}
