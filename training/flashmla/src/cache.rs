//! The FP8 cache: 512 numbers in E4M3, four scales of 128 each in `f32`, 64 numbers in BF16; all little-endian.

use crate::{CACHE_BYTES, Result, VALUE_WIDTH, WIDTH, demand};
use ember_deepgemm::{BLOCK, E4m3, ScaleFormat, View, per_token};
use half::bf16;

/// Tokens `[n, 576]` as they are cached, `[n, 656]` bytes. Scales are powers of two.
///
/// # Errors
/// If the numbers are no whole number of tokens, or one of the first 512 is infinite or no number.
pub fn quantise(tokens: &[bf16]) -> Result<Vec<u8>> {
    demand(tokens.len().is_multiple_of(WIDTH), "tokens", || {
        format!("{} numbers are no whole number of tokens of {WIDTH}", tokens.len())
    })?;
    let rows = tokens.len() / WIDTH;
    let wrong = |error: ember_deepgemm::GemmError| crate::MlaError { argument: "tokens", rule: error.rule };
    let values = View::strided(tokens, [rows, VALUE_WIDTH], WIDTH).map_err(wrong)?;
    let quantised = per_token(&values, ScaleFormat::Ue8m0).map_err(wrong)?;
    let mut bytes = Vec::with_capacity(rows * CACHE_BYTES);
    for row in 0..rows {
        bytes.extend(quantised.values[row * VALUE_WIDTH..][..VALUE_WIDTH].iter().map(|x| x.0));
        let scales = VALUE_WIDTH / BLOCK;
        bytes.extend(quantised.scales[row * scales..][..scales].iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(tokens[row * WIDTH..][VALUE_WIDTH..WIDTH].iter().flat_map(|x| x.to_le_bytes()));
    }
    Ok(bytes)
}

/// Cached tokens `[n, 656]` as numbers `[n, 576]`.
///
/// # Errors
/// If the bytes are no whole number of tokens.
pub fn dequantise(bytes: &[u8]) -> Result<Vec<bf16>> {
    demand(bytes.len().is_multiple_of(CACHE_BYTES), "bytes", || {
        format!("{} bytes are no whole number of tokens of {CACHE_BYTES}", bytes.len())
    })?;
    Ok(bytes.chunks(CACHE_BYTES).flat_map(token).collect())
}

/// One cached token.
pub(crate) fn token(bytes: &[u8]) -> Vec<bf16> {
    let (values, rest) = bytes.split_at(VALUE_WIDTH);
    let (scales, rope) = rest.split_at(4 * VALUE_WIDTH / BLOCK);
    let scales = scales.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]));
    let values = values.chunks(BLOCK).zip(scales);
    let values =
        values.flat_map(|(x, scale)| x.iter().map(move |x| bf16::from_f32(E4m3(*x).to_f32() * scale)));
    values.chain(rope.chunks_exact(2).map(|x| bf16::from_le_bytes([x[0], x[1]]))).collect()
}
