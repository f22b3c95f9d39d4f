//! `cargo xtask perf gemm`: products of `ember-deepgemm` on one core beside those of the crate `matrixmultiply` in
//! `f32`, in turn in one run. Fails if BF16 misses its goal.

use super::machine;
use crate::process::{cargo, output, root};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::fmt::Write;

/// BF16 beside `f32`, at least.
const GOAL: f64 = 1.8;

/// How long to measure.
#[derive(clap::Args)]
pub(crate) struct GemmArgs {
    /// Runs of each shape; medians count.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Print only; don't write the page.
    #[arg(long)]
    print_only: bool,
}

/// What the example prints for a shape; speeds in GFLOP/s.
#[derive(Deserialize)]
struct Line {
    m: usize,
    n: usize,
    k: usize,
    path: String,
    matrixmultiply: f64,
    bf16: f64,
    fp8: f64,
}

/// Measures, prints, and writes the page.
pub(crate) fn run(args: &GemmArgs) -> Result<()> {
    let runs = args.runs.to_string();
    let example = ["run", "--release", "--quiet", "-p", "ember-deepgemm", "--example", "gemm", "--", &runs];
    let text = output(cargo(&example))?;
    let lines: Vec<Line> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect::<Result<_>>()?;
    let mut table = String::from(
        "| a[m, k] b[n, k]ᵀ | code | matrixmultiply, f32 | BF16 | ratio | FP8 | ratio | goal (BF16) | |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let mut missed = 0;
    for Line { m, n, k, path, matrixmultiply, bf16, fp8 } in &lines {
        let ratio = bf16 / matrixmultiply;
        missed += usize::from(ratio < GOAL);
        let met = if ratio < GOAL { "MISSED" } else { "met" };
        let other = fp8 / matrixmultiply;
        let _ = writeln!(
            table,
            "| {m} × {n} × {k} | {path} | {matrixmultiply:.0} GFLOP/s | {bf16:.0} GFLOP/s | {ratio:.2} | \
             {fp8:.0} GFLOP/s | {other:.2} | ≥ {GOAL} | {met} |"
        );
    }
    println!("{table}");
    if !args.print_only {
        let page = format!(
            "# Speed of matrix products\n\n\
             Written by `cargo xtask perf gemm`; figures of other processors differ, and so do ratios: how many\n\
             BF16 products a processor makes in the time of an `f32` one is its own.\n\n\
             - Machine: {}.\n\
             - One core, medians of {} runs in turn. FP8 has scales for rows and blocks (1D2D), results are\n  \
             `f32`.\n\n{table}",
            machine::describe(&root()),
            args.runs
        );
        let file = root().join("docs/performance/gemm.md");
        std::fs::write(&file, page).with_context(|| file.display().to_string())?;
    }
    anyhow::ensure!(missed == 0, "{missed} of {} goals missed", lines.len());
    Ok(())
}
