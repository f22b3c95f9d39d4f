//! Scales that are powers of two, as an exponent of eight bits (UE8M0 of the OCP Microscaling Formats Specification).

/// The least power of two that is not below `x`: 2⁻¹²⁶ at least, 2¹²⁷ at most. `x` is finite and not negative.
pub fn round_up(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = (bits >> 23 & 255) + u32::from(bits & 0x7f_ffff != 0);
    f32::from_bits(exponent.clamp(1, 254) << 23)
}

/// The exponent of a power of two from [`round_up`].
pub fn exponent(power: f32) -> u8 {
    (power.to_bits() >> 23) as u8
}
