//! The same with the instruction VDPBF16PS.
//!
//! Unsafe code is here alone: vector loads and stores, each of 16 numbers within an array of 64, and the call of code
//! that needs a processor with AVX-512 F and BF16, which is asked for before.
#![allow(unsafe_code)]

use super::{COLUMNS, Join};

#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "iterators aren't compiled for these instructions")]
mod x86 {
    use super::{COLUMNS, Join};
    use core::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    /// Numbers of a register, and registers of a row.
    const LANES: usize = 16;
    const REGISTERS: usize = COLUMNS / LANES;

    // Loops with indices: code of the library's iterators and closures isn't compiled for these instructions.

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pairs(words: __m512i) -> __m512bh {
        // SAFETY: both are 512 bits of plain data.
        unsafe { core::mem::transmute(words) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(from: &[f32; COLUMNS]) -> [__m512; REGISTERS] {
        let mut to = [_mm512_setzero_ps(); REGISTERS];
        for i in 0..REGISTERS {
            // SAFETY: 16 numbers from 16 `i` on are within the 64.
            to[i] = unsafe { _mm512_loadu_ps(from.as_ptr().add(i * LANES)) };
        }
        to
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load_words(from: &[u32; COLUMNS]) -> [__m512bh; REGISTERS] {
        let mut to = [pairs(_mm512_set1_epi32(0)); REGISTERS];
        for i in 0..REGISTERS {
            // SAFETY: 16 words from 16 `i` on are within the 64.
            to[i] = pairs(unsafe { _mm512_loadu_si512(from.as_ptr().add(i * LANES).cast()) });
        }
        to
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(to: &mut [f32; COLUMNS], from: [__m512; REGISTERS]) {
        for i in 0..REGISTERS {
            // SAFETY: 16 numbers from 16 `i` on are within the 64.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr().add(i * LANES), from[i]) }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn tile<const ROWS: usize>(
        a: [&[u32]; ROWS],
        b: &[[u32; COLUMNS]],
        sums: &mut [[f32; COLUMNS]],
        join: Join<'_>,
    ) {
        let mut part = [[_mm512_setzero_ps(); REGISTERS]; ROWS];
        if let Join::Chain = join {
            for i in 0..ROWS {
                part[i] = load(&sums[i]);
            }
        }
        let mut rows: [&[u32]; ROWS] = [&[]; ROWS];
        for i in 0..ROWS {
            rows[i] = &a[i][..b.len()];
        }
        for k in 0..b.len() {
            let words = load_words(&b[k]);
            for i in 0..ROWS {
                let own = pairs(_mm512_set1_epi32(rows[i][k].cast_signed()));
                for j in 0..REGISTERS {
                    part[i][j] = _mm512_dpbf16_ps(part[i][j], own, words[j]);
                }
            }
        }
        for i in 0..ROWS {
            if let Join::Promote { rows, columns } = join {
                let (scale, columns, old) = (_mm512_set1_ps(rows[i]), load(columns), load(&sums[i]));
                for j in 0..REGISTERS {
                    let scaled = _mm512_mul_ps(_mm512_mul_ps(scale, columns[j]), part[i][j]);
                    part[i][j] = _mm512_add_ps(old[j], scaled);
                }
            }
            store(&mut sums[i], part[i]);
        }
    }
}

/// Whether this processor can.
pub(super) fn is_there() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

pub(super) fn tile(a: &[&[u32]], b: &[[u32; COLUMNS]], sums: &mut [[f32; COLUMNS]], join: Join<'_>) {
    assert!(is_there(), "this processor has no AVX-512 BF16");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the processor has what the code needs.
    unsafe {
        match *a {
            [a0] => x86::tile([a0], b, sums, join),
            [a0, a1] => x86::tile([a0, a1], b, sums, join),
            [a0, a1, a2] => x86::tile([a0, a1, a2], b, sums, join),
            [a0, a1, a2, a3] => x86::tile([a0, a1, a2, a3], b, sums, join),
            [a0, a1, a2, a3, a4] => x86::tile([a0, a1, a2, a3, a4], b, sums, join),
            [a0, a1, a2, a3, a4, a5] => x86::tile([a0, a1, a2, a3, a4, a5], b, sums, join),
            _ => {}
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (a, b, sums, join);
}
