//! A mutator with a seed: what CI changes the stored inputs by.

use ember_types::layout::SplitMix64;

/// Longest input that it makes, in bytes.
pub const INPUT_MAX: usize = 16 << 10;
/// Numbers at which decoders tend to be wrong.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// Changes inputs; the same seed and inputs give the same changes.
#[derive(Clone, Debug)]
pub struct Mutator(SplitMix64);

impl Mutator {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(SplitMix64(seed))
    }

    /// An input made of one of `corpus`, and parts of others, by a few changes.
    pub fn next(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.one(corpus).to_vec();
        for _ in 0..=self.below(4) {
            self.change(&mut input, corpus);
        }
        input.truncate(INPUT_MAX);
        input
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    fn one<'a>(&mut self, corpus: &'a [Vec<u8>]) -> &'a [u8] {
        corpus.get(self.below(corpus.len())).map_or(&[], Vec::as_slice)
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len());
        match self.below(10) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = self.0.next() as u8,
            2 if !input.is_empty() => {
                input[at] = input[at].wrapping_add(self.below(33) as u8).wrapping_sub(16)
            }
            3 => input.truncate(at),
            4 => self.number(input, at),
            5 => {
                // Take some bytes out, or double them.
                let end = (at + self.below(32)).min(input.len());
                let part: Vec<u8> = input[at..end].to_vec();
                let twice = self.below(2) == 0;
                input.splice(at..end, if twice { [part.clone(), part].concat() } else { Vec::new() });
            }
            6 => {
                let other = self.one(corpus);
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            7 => {
                let other = self.one(corpus);
                let from = self.below(other.len());
                let end = (from + self.below(64)).min(other.len());
                input.splice(at..at, other[from..end].iter().copied());
            }
            8 => self.decimal(input, at),
            _ => {
                let bytes = (0..self.below(16)).map(|_| self.0.next() as u8).collect::<Vec<_>>();
                input.splice(at..at, bytes);
            }
        }
    }

    /// Puts a number in place of the next one that stands in text.
    fn decimal(&mut self, input: &mut Vec<u8>, at: usize) {
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        let Some(start) = input[at..].iter().position(is_digit).map(|skip| at + skip) else { return };
        let end = start + input[start..].iter().take_while(|byte| is_digit(byte)).count();
        let text = NUMBERS[self.below(NUMBERS.len())].to_string();
        input.splice(start..end, text.into_bytes());
    }

    /// Writes a number where a length may stand: little- or big-endian, of one to eight bytes.
    fn number(&mut self, input: &mut [u8], at: usize) {
        let width = 1 << self.below(4);
        let Some(place) = input.get_mut(at..at + width) else { return };
        let number = match self.below(3) {
            0 => self.0.below(1 << 17),
            _ => NUMBERS[self.below(NUMBERS.len())],
        };
        let little = number.to_le_bytes();
        place.copy_from_slice(&little[..width]);
        if self.below(2) == 0 {
            place.reverse();
        }
    }
}
