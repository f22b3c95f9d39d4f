//! Hash maps with a fixed hasher: the same insertions iterate in the same order in every run and process.

use std::hash::{BuildHasherDefault, Hasher};

/// FxHash's multiply-and-rotate over words: fast for ids, not for keys an attacker chooses.
#[derive(Clone, Copy, Default, Debug)]
pub struct FixedHasher(u64);

const SEED: u64 = 0x51_7c_c1_b7_27_22_0a_95;

impl FixedHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(SEED);
    }
}

impl Hasher for FixedHasher {
    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.add(u64::from_le_bytes(word));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }
    fn write_usize(&mut self, value: usize) {
        self.add(value as u64);
    }
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

/// Builds [`FixedHasher`]s.
pub type FixedState = BuildHasherDefault<FixedHasher>;
/// A hash map whose order depends on its history alone.
#[allow(clippy::disallowed_types)]
pub type FixedHashMap<K, V> = std::collections::HashMap<K, V, FixedState>;
/// A hash set whose order depends on its history alone.
#[allow(clippy::disallowed_types)]
pub type FixedHashSet<K> = std::collections::HashSet<K, FixedState>;
