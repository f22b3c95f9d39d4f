//! `cargo xtask mutants`: every planted bug is found by what `ember_types::mutants` says, and by nothing less.

use crate::process::{cargo, output, root};
use anyhow::{Context, Result, bail};
use ember_types::mutants::{ALL, Finder, Mutant, VARIABLE, WITHOUT, find};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Exit code of nextest when tests ran and some failed.
const TESTS_FAILED: i32 = 100;
/// What the simulator prints when the seed that finds a bug finds nothing without it.
const BY_THE_BUG_ALONE: &str = "the seed passes without it";

/// What to run.
#[derive(clap::Args)]
pub(crate) struct MutantArgs {
    /// Seeds of the simulator for each bug at most.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Only the planted bug of this name; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// How a bug was found.
type Found = Result<String, String>;

/// Runs what is to find each planted bug, with and without it; one that survives is an error.
pub(crate) fn run(args: &MutantArgs) -> Result<()> {
    if let Some(unknown) = args.only.iter().find(|only| find(only).is_none()) {
        bail!("no planted bug is called {unknown:?}");
    }
    let wanted = |m: &&Mutant| args.only.is_empty() || args.only.iter().any(|only| only == m.name);
    let list: Vec<&Mutant> = ALL.iter().filter(wanted).collect();
    let tests: BTreeSet<(&str, &str)> = list.iter().filter_map(|m| test_of(m)).collect();
    let built = if tests.is_empty() { None } else { Some(Built::new()?) };
    if let Some(built) = &built {
        check_without(built, &tests)?;
    }
    let simulated = list.iter().any(|m| m.found_by == Finder::Simulator);
    let simulator = if simulated { build_simulator()? } else { PathBuf::new() };
    let mut survivors = Vec::new();
    println!("{:<36} {:<4} {:>7}  {:<9} by what; what it breaks", "planted bug", "rule", "seconds", "");
    for mutant in &list {
        let begin = now();
        let found = match (test_of(mutant), &built) {
            (Some(test), Some(built)) => by_test(built, mutant, test)?,
            _ => by_simulator(&simulator, mutant, args.seeds)?,
        };
        let seconds = begin.elapsed().as_secs_f64();
        let (state, how) = match &found {
            Ok(how) => ("found", how),
            Err(why) => ("SURVIVES", why),
        };
        println!("{:<36} {:<4} {seconds:>7.1}  {state:<9} {how}", mutant.name, mutant.rule());
        println!("{:<59}{}", "", mutant.what);
        if found.is_err() {
            survivors.push(mutant.name);
        }
    }
    for (rule, why) in WITHOUT.iter().filter(|_| args.only.is_empty()) {
        println!("{:<36} {rule:<4} {:>7}  {why}", "(none)", "");
    }
    let rules: BTreeSet<String> = list.iter().map(|m| m.rule()).collect();
    println!("{} planted bugs of {} rules, {} survive", list.len(), rules.len(), survivors.len());
    if !survivors.is_empty() {
        bail!("planted bugs that survive: {}", survivors.join(", "));
    }
    Ok(())
}

fn test_of(mutant: &Mutant) -> Option<(&'static str, &'static str)> {
    match mutant.found_by {
        Finder::Test { binary, test } => Some((binary, test)),
        Finder::Simulator => None,
    }
}

#[expect(clippy::disallowed_methods, reason = "a tool on the developer's machine, outside the seam")]
fn now() -> Instant {
    Instant::now()
}

/// The tests that find planted bugs, built once, so that all runs are of the same code.
struct Built {
    binaries: PathBuf,
    metadata: PathBuf,
}

impl Built {
    fn new() -> Result<Self> {
        let dir = root().join("target/mutants");
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let built = Self { binaries: dir.join("binaries.json"), metadata: dir.join("metadata.json") };
        let every = ALL.iter().filter_map(test_of).map(|(binary, _)| binary);
        let packages: BTreeSet<&str> =
            every.map(|binary| binary.split_once("::").map_or(binary, |(package, _)| package)).collect();
        let mut list = cargo(&["nextest", "list", "--cargo-quiet", "--features", "ember-types/mutants"]);
        list.args(["--list-type", "binaries-only", "--message-format", "json"]);
        list.args(packages.iter().flat_map(|package| ["-p", package]));
        let metadata = output(cargo(&["metadata", "--format-version", "1"]))?;
        for (file, text) in [(&built.binaries, output(list)?), (&built.metadata, metadata)] {
            std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(built)
    }

    /// nextest over some of them.
    fn nextest(&self, tests: &BTreeSet<(&str, &str)>) -> Command {
        let only = |(binary, test): &(&str, &str)| format!("(binary_id(={binary}) & test(={test}))");
        let filter = tests.iter().map(only).collect::<Vec<_>>().join(" | ");
        let mut command = cargo(&["nextest", "run", "--no-fail-fast", "-E", &filter]);
        command.arg("--binaries-metadata").arg(&self.binaries);
        command.arg("--cargo-metadata").arg(&self.metadata);
        command.env_remove(VARIABLE).env("NEXTEST_COLOR", "never").stdout(Stdio::null());
        command
    }
}

/// What nextest says at the end of a run.
fn summary(text: &str) -> &str {
    text.lines().rev().find(|line| line.contains("Summary [")).unwrap_or("nothing ran")
}

/// Without any bug all tests must pass: else they would find bugs that aren't there.
fn check_without(built: &Built, tests: &BTreeSet<(&str, &str)>) -> Result<()> {
    let done = built.nextest(tests).output().context("starting nextest")?;
    let text = String::from_utf8_lossy(&done.stderr);
    let ran = format!("{} test{} run: {0} passed", tests.len(), if tests.len() == 1 { "" } else { "s" });
    if !done.status.success() || !summary(&text).contains(&ran) {
        print!("{text}");
        bail!("without planted bugs {} tests must run and pass: {}", tests.len(), done.status);
    }
    println!("without planted bugs: {}", summary(&text).trim());
    Ok(())
}

/// Whether exactly that test runs, and fails.
fn by_test(built: &Built, mutant: &Mutant, test: (&str, &str)) -> Result<Found> {
    let mut command = built.nextest(&BTreeSet::from([test]));
    let done = command.env(VARIABLE, mutant.name).output().context("starting nextest")?;
    let text = String::from_utf8_lossy(&done.stderr);
    let failed = summary(&text).contains("1 test run: 0 passed, 1 failed");
    match done.status.code() {
        Some(TESTS_FAILED) if failed => Ok(Ok(format!("{} {}", test.0, test.1))),
        Some(0 | TESTS_FAILED) => Ok(Err(format!("{} {} ({})", test.0, test.1, summary(&text).trim()))),
        _ => bail!("{}: nextest ended with {}: {text}", mutant.name, done.status),
    }
}

/// Builds the simulator and keeps a copy of it, so that all runs are of the same code.
fn build_simulator() -> Result<PathBuf> {
    let messages =
        output(cargo(&["build", "--quiet", "--release", "-p", "ember-sim", "--message-format", "json"]))?;
    let binary = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().filter(|path| path.contains("ember-sim")).map(PathBuf::from)
    });
    let binary = binary.context("cargo names no executable ember-sim")?;
    let dir = root().join("target/mutants");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let copy = dir.join("ember-sim");
    std::fs::copy(&binary, &copy).with_context(|| format!("copying {}", binary.display()))?;
    Ok(copy)
}

/// Whether some seed of the simulator fails with the bug and passes without it.
fn by_simulator(simulator: &Path, mutant: &Mutant, seeds: u64) -> Result<Found> {
    let seeds = seeds.to_string();
    let mut command = Command::new(simulator);
    command.args(["--mutate", mutant.name, "--seeds", &seeds]).env_remove(VARIABLE);
    let done = command.output().with_context(|| format!("starting {}", simulator.display()))?;
    let text = String::from_utf8_lossy(&done.stdout);
    let seed = text.lines().rev().find(|line| line.starts_with("seed "));
    let seed = seed.and_then(|line| line.split_once(':')).map(|(seed, _)| seed.to_owned());
    match (done.status.code(), seed) {
        (Some(1), Some(seed)) if text.contains(BY_THE_BUG_ALONE) => Ok(Ok(format!("simulator, {seed}"))),
        (Some(1), Some(seed)) => Ok(Err(format!("simulator, {seed}, which fails without it too"))),
        (Some(0), _) => Ok(Err(format!("no seed of the simulator up to {seeds} finds it"))),
        _ => bail!("{}: the simulator ended with {}", mutant.name, done.status),
    }
}
