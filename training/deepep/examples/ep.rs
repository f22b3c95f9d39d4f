//! `cargo run --release -p ember-deepep --example ep -- [RANKS] [ROUNDS]`: tokens to experts and back between
//! processes, beside what as many processes copy in memory, in turn. A line of JSON; `cargo xtask perf ep` makes a
//! table of it.
#![allow(missing_docs)]

use ember_deepep::{Group, Shape, Tokens};
use half::bf16;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CHILD: &str = "EMBER_EP_CHILD";
const LIMIT: Duration = Duration::from_secs(120);

type Failure = Box<dyn std::error::Error>;

#[expect(clippy::disallowed_methods, reason = "a tool on the developer's machine, outside the seam")]
fn now() -> Instant {
    Instant::now()
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x.get(x.len() / 2).copied().unwrap_or(0.0)
}

fn shape(ranks: usize) -> Shape {
    Shape { ranks, experts: 64, hidden: 7168, topk: 8, tokens: 4096 }
}

/// Eight different experts for each token.
fn chosen(rank: usize, shape: &Shape) -> Vec<i64> {
    let mut state = rank as u64 + 1;
    let mut next = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut all = Vec::with_capacity(shape.tokens * shape.topk);
    for _ in 0..shape.tokens {
        let mut experts: Vec<i64> = (0..shape.experts as i64).collect();
        for i in 0..shape.topk {
            experts.swap(i, i + next((shape.experts - i) as u64) as usize);
        }
        all.extend(&experts[..shape.topk]);
    }
    all
}

/// Bytes a second: dispatch, combine, memcpy.
fn measure(rank: usize, ranks: usize, rounds: usize, path: &Path) -> Result<[f64; 3], Failure> {
    let shape = shape(ranks);
    let group = Group::join(path, rank, shape, LIMIT)?;
    let tokens: Vec<bf16> =
        (0..shape.tokens * shape.hidden).map(|i| bf16::from_f32((i % 251) as f32 / 100.0)).collect();
    let chosen = chosen(rank, &shape);
    let weights = vec![0.125f32; chosen.len()];
    let together = || group.dispatch(Tokens::Bf16(&[]), &[], &[]).map(drop);
    let mut speeds = [Vec::new(), Vec::new(), Vec::new()];
    let mut to: Vec<bf16> = Vec::new();
    // The first round touches all memory, and counts nothing.
    for round in 0..=rounds {
        together()?;
        let begin = now();
        let got = group.dispatch(Tokens::Bf16(&tokens), &chosen, &weights)?;
        let dispatched = begin.elapsed();
        let rows = got.bf16().ok_or("no BF16 tokens")?.to_vec();
        let bytes = size_of_val(&rows[..]) as f64;
        together()?;
        let begin = now();
        let combined = group.combine(&rows, None, got.handle(), &[])?;
        let taken = begin.elapsed();
        drop((got, combined));
        to.resize(rows.len(), bf16::ZERO);
        together()?;
        let begin = now();
        to.copy_from_slice(&rows);
        let copied = begin.elapsed();
        std::hint::black_box(&mut to);
        if round > 0 {
            for (speeds, took) in speeds.iter_mut().zip([dispatched, taken, copied]) {
                speeds.push(bytes / took.as_secs_f64());
            }
        }
    }
    Ok(speeds.map(median))
}

fn run() -> Result<(), Failure> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let ranks = numbers.next().transpose()?.unwrap_or(2).max(1);
    let rounds = numbers.next().transpose()?.unwrap_or(9).max(1);
    if let Ok(child) = std::env::var(CHILD) {
        let (rank, path) = child.split_once(' ').ok_or("no rank and path")?;
        let [dispatch, combine, memcpy] = measure(rank.parse()?, ranks, rounds, Path::new(path))?;
        println!("{dispatch} {combine} {memcpy}");
        return Ok(());
    }
    let path = format!("/dev/shm/ember-ep-{}", std::process::id());
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([ranks.to_string(), rounds.to_string()]).env(CHILD, format!("{rank} {path}"));
        command.stdout(Stdio::piped()).spawn()
    };
    let children: Vec<_> = (0..ranks).map(start).collect::<std::io::Result<_>>()?;
    let mut sums = [0.0; 3];
    for mut child in children {
        let out = child.stdout.take().ok_or("no output")?;
        let line = BufReader::new(out).lines().next().ok_or("a rank has failed")??;
        for (sum, speed) in sums.iter_mut().zip(line.split(' ')) {
            *sum += speed.parse::<f64>()?;
        }
        let status = child.wait()?;
        if !status.success() {
            return Err(format!("a rank has ended with {status}").into());
        }
    }
    let [dispatch, combine, memcpy] = sums.map(|speed| speed / 1e9);
    println!(
        "{{\"ranks\":{ranks},\"dispatch\":{dispatch:.2},\"combine\":{combine:.2},\"memcpy\":{memcpy:.2}}}"
    );
    Ok(())
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ep: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
