//! The 8-bit floating-point format E4M3 (OCP 8-bit Floating Point Specification, "fn" variant: no infinity, one NaN).

/// Sign, four bits of exponent with bias 7, three of mantissa: ±448 at most, 2⁻⁹ at least.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(transparent)]
pub struct E4m3(
    /// The bits.
    pub u8,
);

const NAN: u32 = 0x7f;
const GREATEST: u32 = 0x7e;
/// Bits of 2⁻⁶ and of infinity, as `f32`.
const LEAST_NORMAL: u32 = (127 - 6) << 23;
const INFINITY: u32 = 0x7f80_0000;
/// A unit in the last place of this is 2⁻⁹, the distance of numbers below 2⁻⁶: a sum with it is rounded to that.
const UNITS: f32 = 16384.0;

const VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        values[bits] = value(bits as u8);
        bits += 1;
    }
    values
};

const fn value(bits: u8) -> f32 {
    let (sign, exponent, mantissa) = (bits as u32 >> 7, bits as u32 >> 3 & 15, bits as u32 & 7);
    let above = if bits as u32 & NAN == NAN {
        f32::NAN
    } else if exponent == 0 {
        mantissa as f32 / 512.0
    } else {
        f32::from_bits((exponent + 120) << 23 | mantissa << 20)
    };
    f32::from_bits(above.to_bits() | sign << 31)
}

impl E4m3 {
    /// The greatest number.
    pub const MAX: f32 = 448.0;

    /// The nearest number, of two the one with an even mantissa; what is greater than 448 becomes 448, infinity too.
    #[inline]
    pub fn from_f32(x: f32) -> Self {
        // All three results, and then one of them: without branches many numbers are converted at once.
        let (bits, sign) = (x.to_bits() & 0x7fff_ffff, x.to_bits() >> 24 & 0x80);
        let small = (f32::from_bits(bits) + UNITS).to_bits().wrapping_sub(UNITS.to_bits());
        let even = bits >> 20 & 1;
        // 120 is the difference of the biases; saturation first, so that nothing overflows.
        let eighths = ((bits.min(0x7f00_0000) + 0x7_ffff + even) >> 20).wrapping_sub(120 << 3);
        let finite = if bits < LEAST_NORMAL { small } else { eighths.min(GREATEST) };
        let rounded = if bits > INFINITY { NAN } else { finite };
        Self((rounded | sign) as u8)
    }
    /// Exactly.
    pub fn to_f32(self) -> f32 {
        VALUES[usize::from(self.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::E4m3;

    #[test]
    fn every_number_is_its_own_nearest() {
        for bits in 0..=255u8 {
            let x = E4m3(bits).to_f32();
            let back = E4m3::from_f32(x);
            assert!(back == E4m3(bits) || (x.is_nan() && back.to_f32().is_nan()), "{bits:#x} is {x}");
        }
    }

    #[test]
    fn between_two_numbers_the_nearest_is_taken_and_the_even_one_in_the_middle() {
        for bits in 0..0x7eu8 {
            let (low, high) = (E4m3(bits).to_f32(), E4m3(bits + 1).to_f32());
            let middle = (low + high) / 2.0;
            assert_eq!(E4m3::from_f32(middle).0, bits + (bits & 1), "{middle}");
            assert_eq!(E4m3::from_f32(middle.next_down()).0, bits);
            assert_eq!(E4m3::from_f32(-middle.next_up()).0, (bits + 1) | 0x80);
        }
        for great in [449.0, 1e9, f32::MAX, f32::INFINITY] {
            assert_eq!(E4m3::from_f32(great).to_f32(), 448.0);
            assert_eq!(E4m3::from_f32(-great).to_f32(), -448.0);
        }
    }
}
