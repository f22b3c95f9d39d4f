//! Source of a kernel, and how it is launched.

use std::fmt::Write;

/// A kernel that can be compiled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Crate, kernel and variant: `deepgemm/fp8-1d2d-128x128`. Names a row of the manifest.
    pub name: String,
    /// The kernel's name in the source.
    pub entry: &'static str,
    /// All of it; there is nothing to include.
    pub source: String,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks of a cluster: 1 or 2.
    pub cluster: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Instructions that its machine code must contain: `QGMMA`, `UTMALDG`.
    pub instructions: &'static [&'static str],
    /// Registers of a thread that it may use.
    pub registers_max: u32,
}

/// How many blocks: a multiple of the cluster's in the first dimension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    /// In the first dimension.
    pub x: u32,
    /// In the second.
    pub y: u32,
}

/// Source of the function `NAME(float (&sums)[columns / 2], u64 a, u64 b, bool keep)`: the warpgroup's product of 64
/// rows by `columns` and 32 bytes of K, of FP8 (E4M3) or BF16 numbers, both in shared memory; without `keep` the sums
/// begin with zero.
///
/// # Panics
/// If `columns` is none of 8, 16, … 256.
pub fn wgmma(name: &str, fp8: bool, columns: u32) -> String {
    let (kind, transposed) = if fp8 { ("k32.f32.e4m3.e4m3", "") } else { ("k16.f32.bf16.bf16", ", 0, 0") };
    instruction(name, kind, transposed, columns)
}

/// As [`wgmma`] for BF16 numbers, with a second factor whose contiguous dimension is its columns, not K.
///
/// # Panics
/// If `columns` is none of 8, 16, … 256.
pub fn wgmma_rows(name: &str, columns: u32) -> String {
    instruction(name, "k16.f32.bf16.bf16", ", 0, 1", columns)
}

fn instruction(name: &str, kind: &str, transposed: &str, columns: u32) -> String {
    assert!(columns.is_multiple_of(8) && (8..=256).contains(&columns), "wgmma has no {columns} columns");
    let sums = columns / 2;
    let mut names = String::new();
    let mut places = String::new();
    for i in 0..sums {
        let comma = if i == 0 { "" } else { ", " };
        let _ = write!(names, "{comma}%{i}");
        let _ = write!(places, "{comma}\"+f\"(sums[{i}])");
    }
    format!(
        "__device__ __forceinline__ void {name}(float (&sums)[{sums}], u64 a, u64 b, bool keep) {{\n\
         asm volatile(\"{{\\n.reg .pred keep;\\nsetp.ne.b32 keep, %{}, 0;\\n\"\n\
         \"wgmma.mma_async.sync.aligned.m64n{columns}{kind} {{{names}}}, %{sums}, %{}, keep, 1, 1{transposed};\\n}}\"\n\
         : {places} : \"l\"(a), \"l\"(b), \"r\"(int(keep)));\n}}\n",
        sums + 2,
        sums + 1,
    )
}

#[cfg(test)]
mod tests {
    use super::{wgmma, wgmma_rows};

    #[test]
    fn operands_are_numbered_behind_the_sums() {
        let text = wgmma("wgmma", true, 16);
        assert!(
            text.contains("m64n16k32.f32.e4m3.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, keep, 1, 1;")
        );
        assert!(text.contains("setp.ne.b32 keep, %10, 0;"));
        assert!(
            wgmma("wgmma", false, 8)
                .contains("m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, keep, 1, 1, 0, 0;")
        );
        assert!(wgmma_rows("wgmma", 8).contains("%4, %5, keep, 1, 1, 0, 1;"));
    }
}
