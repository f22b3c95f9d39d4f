//! Sums of even and odd columns with the instruction TDPBF16PS (AMX).
//!
//! Unsafe code is here alone: a system call that asks the kernel for the tile registers, the instructions on them,
//! which Rust knows only as assembly, and vector code for processors with AVX-512 F. It is sound because a [`Tiles`]
//! exists only on a thread whose registers are shaped, every block of assembly reads and writes within slices whose
//! lengths were compared before, and no other code of this process touches these registers.
#![allow(unsafe_code)]

use super::{COLUMNS, Join, STEP};
use std::marker::PhantomData;

/// Rows of two registers.
pub(crate) const ROWS: usize = 32;
/// Words of A for a step: two registers of 16 rows of 16 words.
pub(crate) const STRIP: usize = ROWS * STEP;

/// The tile registers of this thread, shaped; they are given back at the end.
pub(crate) struct Tiles(PhantomData<*const ()>);

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use super::{COLUMNS, Join, ROWS, STEP, STRIP};
    use core::arch::asm;
    use core::arch::x86_64::{
        __cpuid_count, _mm512_add_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_storeu_ps,
        _xgetbv,
    };

    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    /// The state component of the tile registers' data; that of their shapes is the one before.
    const TILE_DATA: i64 = 18;

    /// Shapes of the eight registers: 16 rows of 64 bytes (palette 1).
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    #[target_feature(enable = "xsave")]
    fn enabled_by_the_system() -> bool {
        // SAFETY: the caller saw OSXSAVE.
        let enabled = unsafe { _xgetbv(0) };
        enabled >> (TILE_DATA - 1) & 3 == 3
    }

    pub(super) fn ask() -> bool {
        if !is_x86_feature_detected!("avx512f") || !is_x86_feature_detected!("xsave") {
            return false;
        }
        let (bf16, tile) = (1 << 22, 1 << 24);
        // Leaf 7 exists: AVX-512 is known from it.
        let has = __cpuid_count(7, 0).edx & (bf16 | tile) == bf16 | tile;
        // SAFETY: AVX-512 is detected only if the system enables XSAVE; the call has two numbers for arguments.
        has && unsafe {
            enabled_by_the_system()
                && libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0
        }
    }

    pub(super) fn shape() {
        let mut shapes = Shapes { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        shapes.bytes[..8].fill(64);
        shapes.rows[..8].fill(16);
        // SAFETY: 64 bytes that are valid for palette 1, on a processor that has it.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) }
    }

    pub(super) fn release() {
        // SAFETY: nothing is in the registers that anybody wants.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }

    /// `sums[32, 64] += a · b` for 32 of the columns, from `first` on; from zero unless `chain`.
    pub(super) fn half(
        a: &[u32],
        b: &[[u32; COLUMNS]],
        sums: &mut [[f32; COLUMNS]; ROWS],
        first: usize,
        chain: bool,
    ) {
        let steps = b.len() / STEP;
        assert!(a.len() == steps * STRIP && b.len().is_multiple_of(STEP) && first + 32 <= COLUMNS);
        let to = (&raw mut *sums).cast::<f32>().wrapping_add(first);
        let row = COLUMNS * 4;
        // SAFETY: registers 0 to 3 are the quarters of 32 rows by 32 columns from `first` on. A step reads 2 KiB of
        // `a` and 128 bytes of each of 16 rows of `b`, for as many steps as both have. The caller has a `Tiles`.
        unsafe {
            asm!(
                "test {chain}, {chain}",
                "jz 4f",
                "tileloadd tmm0, [{to} + {row}]",
                "tileloadd tmm1, [{to} + {row} + 64]",
                "tileloadd tmm2, [{to} + {row} + 4096]",
                "tileloadd tmm3, [{to} + {row} + 4160]",
                "jmp 5f",
                "4:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "5:",
                "test {n}, {n}",
                "jz 3f",
                "2:",
                "tileloadd tmm6, [{b} + {row}]",
                "tileloadd tmm4, [{a} + {line}]",
                "tileloadd tmm5, [{a} + {line} + 1024]",
                "tileloadd tmm7, [{b} + {row} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 2048",
                "add {b}, 4096",
                "dec {n}",
                "jnz 2b",
                "3:",
                "tilestored [{to} + {row}], tmm0",
                "tilestored [{to} + {row} + 64], tmm1",
                "tilestored [{to} + {row} + 4096], tmm2",
                "tilestored [{to} + {row} + 4160], tmm3",
                a = inout(reg) a.as_ptr() => _,
                b = inout(reg) b.as_ptr().cast::<u32>().wrapping_add(first) => _,
                n = inout(reg) steps => _,
                chain = in(reg) usize::from(chain),
                to = in(reg) to,
                row = in(reg) row,
                line = in(reg) 64usize,
                options(nostack),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            );
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn promote(
        part: &[[f32; COLUMNS]; ROWS],
        rows: &[f32; ROWS],
        columns: &[f32; COLUMNS],
        sums: &mut [[f32; COLUMNS]; ROWS],
    ) {
        for i in 0..ROWS {
            let scale = _mm512_set1_ps(rows[i]);
            for j in 0..COLUMNS / 16 {
                // SAFETY: 16 numbers from 16 `j` on are within the 64 of each array.
                unsafe {
                    let scales = _mm512_mul_ps(scale, _mm512_loadu_ps(columns.as_ptr().add(16 * j)));
                    let scaled = _mm512_mul_ps(scales, _mm512_loadu_ps(part[i].as_ptr().add(16 * j)));
                    let sum = sums[i].as_mut_ptr().add(16 * j);
                    _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_loadu_ps(sum), scaled));
                }
            }
        }
    }

    pub(super) fn tile(a: &[u32], b: &[[u32; COLUMNS]], sums: &mut [[f32; COLUMNS]; ROWS], join: Join<'_>) {
        match join {
            Join::Chain => {
                for first in [0, 32] {
                    half(a, b, sums, first, true);
                }
            }
            Join::Promote { rows, columns } => {
                let mut part = [[0.0; COLUMNS]; ROWS];
                for first in [0, 32] {
                    half(a, b, &mut part, first, false);
                }
                let mut all = [0.0; ROWS];
                all[..rows.len()].copy_from_slice(rows);
                // SAFETY: a `Tiles` exists only on processors with AVX-512 F.
                unsafe { promote(&part, &all, columns, sums) }
            }
        }
    }
}

/// Whether this processor can, and the kernel lets this process.
pub(crate) fn is_there() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static ANSWER: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *ANSWER.get_or_init(x86::ask)
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

impl Tiles {
    /// Shapes the registers of this thread.
    pub(crate) fn new() -> Self {
        assert!(is_there(), "this processor has no AMX, or the kernel keeps it");
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        x86::shape();
        Self(PhantomData)
    }

    /// Adds `a · b` to `sums`, in steps of [`STEP`] words: `a` has [`STRIP`] words for each, those of 16 rows behind
    /// each other, then of 16 more.
    pub(crate) fn tile(
        &self,
        a: &[u32],
        b: &[[u32; COLUMNS]],
        sums: &mut [[f32; COLUMNS]; ROWS],
        join: Join<'_>,
    ) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        x86::tile(a, b, sums, join);
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        let _ = (a, b, sums, join);
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        x86::release();
    }
}
