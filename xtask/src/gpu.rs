//! `cargo xtask gpu`: where there is a Hopper GPU, compares every kernel with the CPU and measures it beside what the
//! GPU can do at most, in one run. Ends with exit code 3 if there is none.

mod ranks;

use crate::process::{output, root};
use anyhow::{Context, Result, ensure};
use ember_cuda::{Backend, Program};
use ember_deepgemm::cuda::{self, Config, Cuda, Kind, Numbers, Output, Problem};
use ember_deepgemm::{
    Cpu, Indexer, Quantised, Recipe, ScaleFormat, Scaled, View, ViewMut, per_block, per_token,
};
use half::bf16;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

/// The exit code without a GPU.
const NO_GPU: i32 = 3;
/// Multiprocessors of the GPU that caches are made for: an H100 or H200 as a card.
const PROCESSORS: u32 = 132;
/// Products, beyond which a result isn't computed on the CPU too.
const COMPARED_MAX: usize = 1 << 37;
/// A number may differ by this share of itself and of the root of the mean square, all by this share of a square.
const NUMBER_MAX: f64 = 0.02;
const ALL_MAX: f64 = 1e-4;
/// What stands in the result before, and must stay where nothing is written.
const BEFORE: f32 = 7.0;

/// Where the page goes.
#[derive(clap::Args)]
pub(crate) struct GpuArgs {
    /// File to write instead of docs/performance/gpu.md.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The commit to name, if git can't be asked.
    #[arg(long)]
    commit: Option<String>,
}

/// A product: kind, numbers, rows of a group, columns, K, groups, f32 results, something added.
struct Case(Kind, Numbers, usize, usize, usize, usize, bool, bool);

const CASES: &[Case] = &[
    Case(Kind::Plain, Numbers::Fp8Blocks, 1, 64, 128, 1, false, false),
    Case(Kind::Plain, Numbers::Fp8Blocks, 129, 584, 1040, 1, false, false),
    Case(Kind::Plain, Numbers::Fp8Blocks, 64, 2112, 7168, 1, false, false),
    Case(Kind::Plain, Numbers::Fp8Blocks, 257, 1536, 512, 1, true, true),
    Case(Kind::Plain, Numbers::Fp8Rows, 300, 584, 1040, 1, true, true),
    Case(Kind::Plain, Numbers::Fp8Rows, 300, 584, 1040, 1, false, false),
    Case(Kind::Plain, Numbers::Bf16, 129, 584, 1032, 1, false, false),
    Case(Kind::Plain, Numbers::Bf16, 300, 584, 1032, 1, true, true),
    Case(Kind::Contiguous, Numbers::Fp8Blocks, 256, 576, 1024, 5, false, false),
    Case(Kind::Masked, Numbers::Fp8Blocks, 200, 576, 1024, 5, false, false),
    Case(Kind::KGrouped, Numbers::Fp8Rows, 200, 576, 512, 4, true, true),
    Case(Kind::Plain, Numbers::Fp8Blocks, 4096, 2112, 7168, 1, false, false),
    Case(Kind::Plain, Numbers::Fp8Blocks, 4096, 7168, 2048, 1, false, false),
    Case(Kind::Plain, Numbers::Fp8Blocks, 4096, 4096, 7168, 1, false, false),
    Case(Kind::Plain, Numbers::Fp8Blocks, 4096, 7168, 16384, 1, false, false),
    Case(Kind::Plain, Numbers::Fp8Rows, 4096, 4096, 7168, 1, true, true),
    Case(Kind::Plain, Numbers::Bf16, 4096, 4096, 7168, 1, false, false),
    Case(Kind::Plain, Numbers::Bf16, 8192, 8192, 8192, 1, false, false),
    Case(Kind::Contiguous, Numbers::Fp8Blocks, 8192, 4096, 7168, 4, false, false),
    Case(Kind::Masked, Numbers::Fp8Blocks, 1024, 4096, 7168, 4, false, false),
    Case(Kind::KGrouped, Numbers::Fp8Rows, 4096, 7168, 4096, 4, true, true),
];

/// Queries, heads, keys, numbers of a head.
const INDEXERS: &[[usize; 4]] =
    &[[5, 32, 300, 128], [130, 64, 1000, 64], [256, 32, 4096, 128], [4096, 64, 16384, 128]];
/// Rows and columns that are quantised.
const QUANTISED: &[[usize; 2]] = &[[3, 144], [129, 1040], [4096, 7168]];

impl Case {
    fn problem(&self) -> Problem {
        let &Case(kind, numbers, rows, n, k, groups, out_f32, with_c) = self;
        let (m, groups) = if kind == Kind::Contiguous { (rows * groups, 1) } else { (rows, groups) };
        let k = if kind == Kind::KGrouped { 0 } else { k };
        let [m, n, k, groups] = [m, n, k, groups].map(|x| x as u32);
        Problem { kind, numbers, out_f32, with_c, m, n, k, groups }
    }
    fn recipe(&self) -> Recipe {
        if self.1 == Numbers::Fp8Blocks { Recipe::Blocks } else { Recipe::Rows }
    }
    /// Rows of group `g` that count.
    fn rows(&self, g: usize) -> usize {
        match self.0 {
            Kind::Plain | Kind::KGrouped => self.2,
            Kind::Contiguous => self.2 - 37,
            Kind::Masked => self.2 - 37 * g.min(self.2 / 37),
        }
    }
    /// Columns of group `g`.
    fn k(&self, g: usize) -> usize {
        if self.0 == Kind::KGrouped && g == 1 { 0 } else { self.4 }
    }
    fn name(&self) -> String {
        let Case(kind, numbers, m, n, k, groups, out_f32, with_c) = self;
        let out = if *out_f32 { "f32" } else { "bf16" };
        let c = if *with_c { " + c" } else { "" };
        format!("{numbers:?} {kind:?}, {groups} × {m} × {n} × {k}, {out}{c}")
    }
}

/// Everything that runs, for a GPU of [`PROCESSORS`].
pub(crate) fn programs() -> Vec<Program> {
    let others = cuda::programs().into_iter();
    let others = others.filter(|p| ["logits", "per-token"].iter().any(|part| p.name.contains(part)));
    let mut all: Vec<Program> =
        CASES.iter().map(|case| Config::choose(&case.problem(), PROCESSORS).program()).collect();
    all.extend(others);
    all.extend([true, false].map(ember_cuda::ceiling));
    all.extend(ember_deepep::cuda::programs());
    all.extend(ember_flashmla::cuda::programs());
    all
}

/// Numbers from -1 to 1, the same for the same seed.
pub(crate) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// What was found: how far from the CPU, if compared, and how fast.
pub(crate) struct Found {
    pub(crate) difference: Option<f64>,
    pub(crate) seconds: f64,
    pub(crate) operations: f64,
    pub(crate) bytes: f64,
}

/// An error if a number is wrong; else 1 - 2<x, y> / (<x, x> + <y, y>).
fn compare(what: &str, found: &[f32], expected: &[f32]) -> Result<f64> {
    ensure!(found.len() == expected.len(), "{what}: {} numbers, not {}", found.len(), expected.len());
    let finite = || expected.iter().map(|&y| f64::from(y)).filter(|y| y.is_finite());
    let square = finite().map(|y| y * y).sum::<f64>();
    let root = (square / finite().count().max(1) as f64).sqrt();
    let (mut product, mut squares) = (0.0, 0.0);
    for (i, (&x, &y)) in found.iter().zip(expected).enumerate() {
        if x.to_bits() == y.to_bits() && !y.is_finite() {
            continue;
        }
        let (x, y) = (f64::from(x), f64::from(y));
        ensure!((x - y).abs() <= NUMBER_MAX * (root + y.abs()), "{what}: number {i} is {x}, not {y}");
        product += x * y;
        squares += x * x + y * y;
    }
    let difference = if squares == 0.0 { 0.0 } else { 1.0 - 2.0 * product / squares };
    ensure!(difference <= ALL_MAX, "{what}: differs by {difference:e}");
    Ok(difference)
}

/// Factors of a group, quantised on the CPU.
fn factors(case: &Case, g: usize) -> Result<(Quantised, Quantised)> {
    let (m, n, k) = (case.2, case.3, case.k(g));
    let (a, b) = (numbers(m * k, 1 + g as u64), numbers(n * k, 1001 + g as u64));
    let (a, b) = (View::new(&a, [m, k])?, View::new(&b, [n, k])?);
    let of_b = match case.recipe() {
        Recipe::Blocks => per_block(&b, ScaleFormat::F32)?,
        Recipe::Rows => per_token(&b, ScaleFormat::F32)?,
    };
    Ok((per_token(&a, ScaleFormat::F32)?, of_b))
}

fn fp8(gpu: &Cuda, case: &Case) -> Result<Found> {
    let &Case(kind, _, m, n, _, groups, out_f32, with_c) = case;
    let made: Vec<_> = (0..groups).map(|g| factors(case, g)).collect::<Result<_>>()?;
    let scaled = |of: &'static str, g: usize| match of {
        "a" => made[g].0.scaled([m, case.k(g)]),
        _ => made[g].1.scaled([n, case.k(g)]),
    };
    let a: Vec<Scaled<'_>> = (0..groups).map(|g| scaled("a", g)).collect::<Result<_, _>>()?;
    let b: Vec<Scaled<'_>> = (0..groups).map(|g| scaled("b", g)).collect::<Result<_, _>>()?;
    let old = if with_c { numbers(groups * m * n, 9) } else { vec![BEFORE; groups * m * n] };
    let shape = if kind == Kind::Contiguous { (1, [groups * m, n]) } else { (groups, [m, n]) };
    let output = |shape: (usize, [usize; 2])| match out_f32 {
        true => gpu.f32_output(shape.0, shape.1),
        false => gpu.bf16_output(shape.0, shape.1),
    };
    let (mut c, mut d) = (output(shape)?, output(shape)?);
    c.upload(&old)?;
    d.upload(&vec![BEFORE; groups * m * n])?;
    let seconds = launch_fp8(gpu, case, &a, &b, with_c.then_some(&c), &mut d)?;
    let products: usize = (0..groups).map(|g| case.rows(g) * n * case.k(g)).sum();
    let mut difference = None;
    if products <= COMPARED_MAX {
        let mut expected = vec![BEFORE; groups * m * n];
        for g in 0..groups {
            let (rows, range) = (case.rows(g), g * m * n..g * m * n + case.rows(g) * n);
            let part = made[g].0.values.get(..rows * case.k(g)).context("rows")?;
            let of_a = Quantised { values: part.to_vec(), ..made[g].0.clone() };
            let blocks = of_a.scale_shape[1];
            let of_a = Quantised {
                scales: of_a.scales[..rows * blocks].to_vec(),
                scale_shape: [rows, blocks],
                values: of_a.values,
            };
            let c = with_c.then(|| View::new(&old[range.clone()], [rows, n])).transpose()?;
            let to = ViewMut::new(&mut expected[range.clone()], [rows, n])?;
            Cpu::new().fp8_gemm_nt(of_a.scaled([rows, case.k(g)])?, b[g], c, to, case.recipe())?;
        }
        difference = Some(compare(&case.name(), &d.download()?, &expected)?);
    }
    let size = if out_f32 { 4 } else { 2 };
    let read: usize = (0..groups).map(|g| (case.rows(g) + n) * case.k(g) + case.rows(g) * n * size).sum();
    Ok(Found { difference, seconds, operations: 2.0 * products as f64, bytes: read as f64 })
}

fn launch_fp8(
    gpu: &Cuda,
    case: &Case,
    a: &[Scaled<'_>],
    b: &[Scaled<'_>],
    c: Option<&Output>,
    d: &mut Output,
) -> Result<f64> {
    let (recipe, groups, m) = (case.recipe(), case.5, case.2);
    let device = gpu.device();
    if case.0 == Kind::KGrouped {
        let each = |x: &[Scaled<'_>]| -> Result<Vec<_>> {
            Ok(x.iter().map(|x| gpu.fp8(&[*x], Recipe::Rows)).collect::<Result<_, _>>()?)
        };
        let (a, b, c) = (each(a)?, each(b)?, c.context("gradients are added")?);
        return Ok(device.best(|| gpu.fp8_gemm_nt_k_grouped(&a, &b, c, d))?);
    }
    let of_b = gpu.fp8(b, recipe)?;
    Ok(match case.0 {
        Kind::Plain => {
            let of_a = gpu.fp8(a, Recipe::Rows)?;
            device.best(|| gpu.fp8_gemm_nt(&of_a, &of_b, c, d, recipe))?
        }
        Kind::Masked => {
            let of_a = gpu.fp8(a, Recipe::Rows)?;
            let rows: Vec<i32> = (0..groups).map(|g| case.rows(g) as i32).collect();
            let rows = gpu.rows(&rows)?;
            device.best(|| gpu.fp8_gemm_nt_masked(&of_a, &of_b, d, &rows, recipe))?
        }
        _ => {
            let whole = Quantised {
                values: (0..groups)
                    .flat_map(|g| (0..m).flat_map(move |i| a[g].values.row(i).to_vec()))
                    .collect(),
                scales: (0..groups)
                    .flat_map(|g| {
                        (0..m).flat_map(move |i| {
                            (0..a[g].scales.shape()[1]).map(move |j| a[g].scales.get(i, j))
                        })
                    })
                    .collect(),
                scale_shape: [groups * m, a[0].scales.shape()[1]],
            };
            let of_a = gpu.fp8(&[whole.scaled([groups * m, case.4])?], Recipe::Rows)?;
            let group = |i: usize| if i % m < case.rows(i / m) { (i / m) as i32 } else { -1 };
            let of_rows: Vec<i32> = (0..groups * m).map(group).collect();
            let of_rows = gpu.groups(&of_rows, groups)?;
            device.best(|| gpu.fp8_gemm_nt_contiguous(&of_a, &of_b, d, &of_rows, recipe))?
        }
    })
}

fn bf16(gpu: &Cuda, case: &Case) -> Result<Found> {
    let &Case(_, _, m, n, k, _, out_f32, with_c) = case;
    let make = |len, seed| numbers(len, seed).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (a, b, old) = (make(m * k, 1), make(n * k, 2), numbers(m * n, 3));
    let (a, b) = (View::new(&a, [m, k])?, View::new(&b, [n, k])?);
    let (of_a, of_b) = (gpu.bf16(&a)?, gpu.bf16(&b)?);
    let output = || if out_f32 { gpu.f32_output(1, [m, n]) } else { gpu.bf16_output(1, [m, n]) };
    let (mut c, mut d) = (output()?, output()?);
    c.upload(&old)?;
    let of_c = with_c.then_some(&c);
    let seconds = gpu.device().best(|| gpu.bf16_gemm_nt(&of_a, &of_b, of_c, &mut d))?;
    let mut difference = None;
    if m * n * k <= COMPARED_MAX {
        let mut expected = vec![0.0; m * n];
        let c = with_c.then(|| View::new(&old, [m, n])).transpose()?;
        Cpu::new().bf16_gemm_nt(a, b, c, ViewMut::new(&mut expected, [m, n])?)?;
        difference = Some(compare(&case.name(), &d.download()?, &expected)?);
    }
    let bytes = (2 * (m + n) * k + m * n * if out_f32 { 4 } else { 2 }) as f64;
    Ok(Found { difference, seconds, operations: 2.0 * (m * n * k) as f64, bytes })
}

fn logits(gpu: &Cuda, [queries, heads, keys, width]: [usize; 4]) -> Result<Found> {
    let (q, k) = (numbers(queries * heads * width, 1), numbers(keys * width, 2));
    let q = per_token(&View::new(&q, [queries * heads, width])?, ScaleFormat::F32)?;
    let k = per_token(&View::new(&k, [keys, width])?, ScaleFormat::F32)?;
    let weights = numbers(queries * heads, 3);
    // A causal window whose begin moves too; the first query sees nothing.
    let seen: Vec<(u32, u32)> =
        (0..queries).map(|i| ((i * keys / queries / 2) as u32, (i * keys / queries) as u32)).collect();
    let of = Indexer {
        queries: q.scaled([queries * heads, width])?.values,
        keys: k.scaled([keys, width])?.values,
        key_scales: &k.scales,
        weights: View::new(&weights, [queries, heads])?,
        seen: &seen,
    };
    let (indexed, mut d) = (gpu.indexed(&of)?, gpu.f32_output(1, [queries, keys])?);
    let seconds = gpu.device().best(|| gpu.fp8_mqa_logits(&indexed, &mut d))?;
    let products: usize = seen.iter().map(|(from, to)| (to - from) as usize * heads * width).sum();
    let mut difference = None;
    if queries * heads * keys * width <= COMPARED_MAX {
        let mut expected = vec![0.0; queries * keys];
        Cpu::new().fp8_mqa_logits(&of, ViewMut::new(&mut expected, [queries, keys])?)?;
        let name = format!("logits of {queries} × {heads} × {keys} × {width}");
        difference = Some(compare(&name, &d.download()?, &expected)?);
    }
    let bytes = ((queries * heads + keys) * width + queries * keys * 4) as f64;
    Ok(Found { difference, seconds, operations: 2.0 * products as f64, bytes })
}

/// All bits must be the CPU's.
fn quantise(gpu: &Cuda, shape: [usize; 2], format: ScaleFormat) -> Result<Found> {
    let x: Vec<bf16> = numbers(shape[0] * shape[1], 5).into_iter().map(bf16::from_f32).collect();
    let x = View::new(&x, shape)?;
    let of = gpu.bf16(&x)?;
    let (values, scales) = gpu.per_token(&of, format)?.download()?;
    let expected = per_token(&x, format)?;
    ensure!(
        values == expected.values && scales == expected.scales,
        "quantised {shape:?}: other bits than the CPU's"
    );
    let seconds = gpu.device().best(|| gpu.per_token(&of, format).map(drop))?;
    Ok(Found { difference: Some(0.0), seconds, operations: 0.0, bytes: (3 * shape[0] * shape[1]) as f64 })
}

/// Of all cases: name, what was found, and the ceiling of its instructions.
fn rows(gpu: &Cuda, fp8_most: f64, bf16_most: f64) -> Vec<(String, Result<Found>, f64)> {
    let mut rows = Vec::new();
    for case in CASES {
        let found = if case.1 == Numbers::Bf16 { bf16(gpu, case) } else { fp8(gpu, case) };
        rows.push((case.name(), found, if case.1 == Numbers::Bf16 { bf16_most } else { fp8_most }));
    }
    for &shape in INDEXERS {
        rows.push((format!("logits {shape:?}"), logits(gpu, shape), fp8_most));
    }
    for &shape in QUANTISED {
        for format in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
            rows.push((format!("per_token {shape:?} {format:?}"), quantise(gpu, shape, format), fp8_most));
        }
    }
    rows.extend(ranks::all().into_iter().map(|(name, found)| (name, found, fp8_most)));
    rows
}

/// Compares, measures, prints, and writes the page.
pub(crate) fn run(args: &GpuArgs) -> Result<()> {
    let gpu = match Cuda::new() {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("gpu: {error}; nothing was run. ({})", Backend::detect());
            std::process::exit(NO_GPU);
        }
    };
    let copy = gpu.device().measure_copy()?;
    let [fp8_most, bf16_most] = [gpu.measure_products(true)?, gpu.measure_products(false)?];
    let mut rows = rows(&gpu, fp8_most, bf16_most);
    rows.extend(crate::gpu_attention::rows(bf16_most)?);
    let mut table = String::from(
        "| kernel | differs from the CPU | time | TFLOP/s | of the ceiling | GB/s | of the copy |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let mut wrong = 0;
    for (name, found, most) in rows {
        match found {
            Err(error) => {
                wrong += 1;
                let _ = writeln!(table, "| {name} | WRONG: {error:#} | | | | | |");
            }
            Ok(Found { difference, seconds, operations, bytes }) => {
                let difference = difference.map_or("not compared".to_owned(), |d| format!("{d:.1e}"));
                let (speed, moved) = (operations / seconds / 1e12, bytes / seconds / 1e9);
                let _ = writeln!(
                    table,
                    "| {name} | {difference} | {:.1} µs | {speed:.1} | {:.0} % | {moved:.0} | {:.0} % |",
                    seconds * 1e6,
                    speed / most * 100.0,
                    moved / copy * 100.0
                );
            }
        }
    }
    let commit = args.commit.clone().map_or_else(git_commit, Ok)?;
    let info = gpu.info();
    let page = format!(
        "# Kernels on a GPU\n\nWritten by `cargo xtask gpu` at commit {commit}.\n\n\
         - GPU: {} with {} multiprocessors, driver for CUDA {}.{}.\n\
         - Ceilings in the same run: {copy:.0} GB/s copied within its memory, read and written; matrix instructions\n  \
         alone {fp8_most:.0} TFLOP/s with FP8 and {bf16_most:.0} with BF16.\n\
         - Times are of launches queued ten at a time, the best of five; where the host is slower than the GPU,\n  \
         its own.\n\
         - Ranks of deepep are parts of this GPU: what they move goes through its memory (HBM), not over NVLink;\n  \
         their times are of single launches, the best of five.\n\n{table}",
        info.name,
        info.processors,
        info.driver / 1000,
        info.driver % 1000 / 10
    );
    println!("{page}");
    let file = args.out.clone().unwrap_or_else(|| root().join("docs/performance/gpu.md"));
    std::fs::write(&file, page).with_context(|| file.display().to_string())?;
    ensure!(wrong == 0, "{wrong} kernels are wrong");
    Ok(())
}

fn git_commit() -> Result<String> {
    let mut git = Command::new("git");
    git.args(["rev-parse", "--short", "HEAD"]).current_dir(root());
    Ok(output(git).context("name it with --commit")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_number_is_found() {
        let expected = numbers(10_000, 1);
        let mut found: Vec<f32> = expected.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert!(compare("x", &found, &expected).is_ok());
        found[77] += 0.1;
        assert!(compare("x", &found, &expected).unwrap_err().to_string().contains("number 77"));
        found[77] = f32::NAN;
        assert!(compare("x", &found, &expected).is_err());
        let nothing = [f32::NEG_INFINITY, 1.0];
        assert!(compare("x", &nothing, &nothing).is_ok());
        assert!(compare("x", &[0.0, 1.0], &nothing).is_err());
    }

    #[test]
    fn every_program_of_a_run_is_known_before() {
        assert!(programs().len() > CASES.len());
        assert!(CASES.iter().all(|case| case.0 != Kind::Contiguous || case.2.is_multiple_of(128)));
    }
}
