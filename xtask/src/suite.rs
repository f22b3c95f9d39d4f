//! `cargo xtask test`: every check in one run, with a table of what ran and what was skipped.

use crate::process::{cargo, output, root};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Tests that can't run on a machine append `name: reason` to the file that this variable names.
const SKIPS: &str = "EMBER_SKIPS";
/// Skips that CI accepts, one test name a line.
const ALLOWED_SKIPS: &str = ".ci/allowed-skips";

struct Step {
    name: &'static str,
    commands: Vec<Command>,
}

/// Everything, cheapest first. The simulator and the models are built apart from the rest, so that their planted
/// bugs never reach the binary `ember` by feature unification.
fn steps() -> Vec<Step> {
    let apart: &[&str] = &["--workspace", "--exclude", "ember-sim", "--exclude", "ember-model-tests"];
    let planted: &[&str] = &["-p", "ember-sim", "-p", "ember-model-tests"];
    let with_planted = |first: &[&str], rest: &[&str]| cargo(&[first, planted, rest].concat());
    let with = |first: &[&str], rest: &[&str]| cargo(&[first, apart, rest].concat());
    vec![
        Step { name: "format", commands: vec![cargo(&["fmt", "--all", "--check"])] },
        Step {
            name: "clippy",
            commands: vec![
                with(&["clippy"], &["--all-targets", "--quiet", "--", "-D", "warnings"]),
                with_planted(&["clippy"], &["--all-targets", "--quiet", "--", "-D", "warnings"]),
            ],
        },
        Step {
            name: "product",
            commands: vec![cargo(&["build", "--quiet", "-p", "ember", "-p", "ember-train"])],
        },
        Step {
            name: "tests",
            commands: vec![
                with(&["nextest", "run"], &["--no-fail-fast"]),
                with_planted(&["nextest", "run"], &["--no-fail-fast"]),
            ],
        },
        Step { name: "kernels", commands: vec![cargo(&["run", "--quiet", "-p", "xtask", "--", "kernels"])] },
        Step { name: "python", commands: vec![cargo(&["run", "--quiet", "-p", "xtask", "--", "python"])] },
        Step {
            name: "simulator",
            commands: vec![
                simulator(&["--seeds", "100"]),
                simulator(&["--profile", "storage", "--seeds", "20"]),
            ],
        },
    ]
}

/// Tests that take minutes, and so are left out elsewhere.
fn long_tests() -> Step {
    let args =
        ["nextest", "run", "--cargo-profile", "release", "-p", "ember-deepgemm", "--run-ignored", "only"];
    Step { name: "long tests", commands: vec![cargo(&args)] }
}

/// Runs all steps, with `full` those that take long too; the error counts those that failed.
pub(crate) fn run(fail_fast: bool, full: bool) -> Result<()> {
    let skips = root().join("target/skips.txt");
    std::fs::create_dir_all(root().join("target"))?;
    std::fs::write(&skips, "").with_context(|| format!("writing {}", skips.display()))?;
    let mut rows = Vec::new();
    let mut failed = 0_usize;
    for mut step in steps().into_iter().chain(full.then(long_tests)) {
        println!("== {}", step.name);
        let begin = now();
        let ok = step.commands.iter_mut().all(|command| succeeds(command.env(SKIPS, &skips)));
        rows.push((step.name, ok, begin.elapsed()));
        failed += usize::from(!ok);
        if !ok && fail_fast {
            break;
        }
    }
    let begin = now();
    let same = if failed > 0 && fail_fast { Ok(()) } else { equal_hashes(20) };
    if let Err(error) = &same {
        println!("determinism: {error:#}");
    }
    rows.push(("determinism", same.is_ok(), begin.elapsed()));
    failed += usize::from(same.is_err());
    println!();
    for (name, ok, took) in &rows {
        println!("{:<12} {:<6} {:>6.1} s", name, if *ok { "ok" } else { "FAILED" }, took.as_secs_f64());
    }
    failed += report_skips(&skips)?;
    if failed > 0 {
        bail!("{failed} of {} checks failed", rows.len() + 1);
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a tool on the developer's machine, outside the seam")]
fn now() -> Instant {
    Instant::now()
}

fn succeeds(command: &mut Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            println!("{command:?}: {error}");
            false
        }
    }
}

/// Prints what was skipped; in CI a skip that isn't allowed counts as a failure.
fn report_skips(file: &Path) -> Result<usize> {
    let text = std::fs::read_to_string(file)?;
    let skipped: BTreeSet<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let allowed = std::fs::read_to_string(root().join(ALLOWED_SKIPS)).unwrap_or_default();
    let in_ci = std::env::var_os("CI").is_some();
    println!("skipped: {}", skipped.len());
    let mut refused = 0;
    for line in skipped {
        let name = line.split(':').next().unwrap_or(line);
        let accepted = allowed.lines().any(|row| row.trim() == name);
        refused += usize::from(in_ci && !accepted);
        println!("  {line}{}", if in_ci && !accepted { "  (not on the allow-list)" } else { "" });
    }
    Ok(refused)
}

fn simulator(args: &[&str]) -> Command {
    cargo(&[&["run", "--quiet", "--release", "-p", "ember-sim", "--"], args].concat())
}

/// Runs some seeds in two processes each and compares their trace hashes.
fn equal_hashes(seeds: u64) -> Result<()> {
    let mut seen = BTreeSet::new();
    for seed in 1..=seeds {
        let seed = seed.to_string();
        let hash = || -> Result<String> {
            let text = output(simulator(&["--seed", &seed]))?;
            Ok(text.lines().last().unwrap_or_default().to_owned())
        };
        let (first, second) = (hash()?, hash()?);
        if first != second || first.is_empty() {
            bail!("seed {seed}: trace hash {first:?} in one process, {second:?} in another");
        }
        if !seen.insert(first.clone()) {
            bail!("seed {seed}: trace hash {first} is that of another seed");
        }
    }
    Ok(())
}
