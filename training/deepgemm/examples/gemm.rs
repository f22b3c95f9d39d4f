//! `cargo run --release -p ember-deepgemm --example gemm -- [RUNS]`: products on one core, those of the crate
//! `matrixmultiply` beside them, in turn. A line of JSON for each shape; `cargo xtask perf gemm` makes a table of them.
#![allow(missing_docs)]

use ember_deepgemm::{Cpu, Recipe, ScaleFormat, View, ViewMut, per_block, per_token};
use half::bf16;
use std::time::Instant;

const SHAPES: [[usize; 3]; 2] = [[1024, 1024, 1024], [4096, 2048, 7168]];

#[expect(clippy::disallowed_methods, reason = "a tool on the developer's machine, outside the seam")]
fn seconds(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_secs_f64()
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

fn noise(seed: u64, count: usize) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| bf16::from_f32(next())).collect()
}

fn main() {
    let runs = std::env::args().nth(1).and_then(|runs| runs.parse().ok()).unwrap_or(5usize).max(1);
    let cpu = Cpu::new().with_threads(1);
    for [m, n, k] in SHAPES {
        let (a, b) = (noise(1, m * k), noise(2, n * k));
        let plain = |x: &[bf16]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let (wide_a, wide_b) = (plain(&a), plain(&b));
        let (a, b) = (View::new(&a, [m, k]).unwrap(), View::new(&b, [n, k]).unwrap());
        let (qa, qb) = (per_token(&a, ScaleFormat::F32).unwrap(), per_block(&b, ScaleFormat::F32).unwrap());
        let (scaled_a, scaled_b) = (qa.scaled([m, k]).unwrap(), qb.scaled([n, k]).unwrap());
        let (mut out, mut other) = (vec![0.0f32; m * n], vec![0.0f32; m * n]);
        let (mut yardstick, mut bf, mut fp) = (Vec::new(), Vec::new(), Vec::new());
        let operations = 2.0 * (m * n * k) as f64 / 1e9;
        for _ in 0..runs {
            let took = seconds(|| {
                // SAFETY: the slices hold m * k, k * n and m * n numbers in these strides.
                unsafe {
                    matrixmultiply::sgemm(
                        m,
                        k,
                        n,
                        1.0,
                        wide_a.as_ptr(),
                        k as isize,
                        1,
                        wide_b.as_ptr(),
                        1,
                        k as isize,
                        0.0,
                        other.as_mut_ptr(),
                        n as isize,
                        1,
                    );
                }
            });
            yardstick.push(operations / took);
            let d = ViewMut::new(&mut out, [m, n]).unwrap();
            bf.push(operations / seconds(|| cpu.bf16_gemm_nt(a, b, None, d).unwrap()));
            let worst = out.iter().zip(&other).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(worst < 0.01, "products differ by {worst}");
            let d = ViewMut::new(&mut out, [m, n]).unwrap();
            fp.push(
                operations
                    / seconds(|| cpu.fp8_gemm_nt(scaled_a, scaled_b, None, d, Recipe::Blocks).unwrap()),
            );
        }
        println!(
            "{{\"m\":{m},\"n\":{n},\"k\":{k},\"path\":\"{}\",\"matrixmultiply\":{:.1},\"bf16\":{:.1},\"fp8\":{:.1}}}",
            cpu.name(),
            median(yardstick),
            median(bf),
            median(fp)
        );
    }
}
