//! `cargo xtask fuzz`: searches for inputs that break a decoder, with libFuzzer's coverage.

use crate::process::{cargo, output, root};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What makes the compiler count which edges an input reaches and what it compares. Stable rustc takes these
/// options; what they do is LLVM's business, so a new compiler may need other ones.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks";
/// A single input may take this long, in seconds.
const INPUT_SECONDS: u32 = 10;

#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Time for the search, in minutes, divided among the targets.
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// Only targets whose names contain this.
    #[arg(long)]
    target: Option<String>,
    /// Seed of libFuzzer. With one core and the same corpus a run repeats another.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Targets that are searched at the same time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

struct Search {
    name: String,
    child: std::process::Child,
    log: PathBuf,
}

/// Searches all targets; the error counts those that broke.
pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    let triple = host()?;
    let program = build(&triple)?;
    let names: Vec<String> = targets()?
        .into_iter()
        .filter(|name| args.target.as_ref().is_none_or(|part| name.contains(part.as_str())))
        .collect();
    if names.is_empty() {
        bail!("no target has that name; the folders of tests/fuzz/corpus are their names");
    }
    let jobs = args.jobs.max(1);
    let seconds = (args.minutes * 60.0 * jobs as f64 / names.len() as f64).max(1.0) as u64;
    println!("fuzz: libFuzzer, {} targets, {seconds} s each, seed {}", names.len(), args.seed);
    let begin = now();
    let mut broken = Vec::new();
    for group in names.chunks(jobs) {
        let searches: Vec<Search> =
            group.iter().map(|name| start(&program, name, seconds, args.seed)).collect::<Result<_>>()?;
        for search in searches {
            let name = search.name.clone();
            if !finish(search)? {
                broken.push(name);
            }
        }
    }
    println!("{} targets, {} broken, {:.0} s", names.len(), broken.len(), begin.elapsed().as_secs_f64());
    if !broken.is_empty() {
        bail!("targets that broke: {}", broken.join(", "));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a tool on the developer's machine, outside the seam")]
fn now() -> Instant {
    Instant::now()
}

fn host() -> Result<String> {
    let mut command = Command::new("rustc");
    command.args(["-vV"]);
    let text = output(command)?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc -vV names no host")?.to_owned())
}

/// Builds `search` with coverage in a folder of its own; naming the triple keeps the flags off build scripts.
fn build(triple: &str) -> Result<PathBuf> {
    let dir = root().join("target/fuzz");
    let package = ["build", "--quiet", "--release", "-p", "ember-fuzz", "--features", "libfuzzer"];
    let mut command = cargo(&package);
    command.args(["--bin", "search", "--target", triple, "--target-dir"]).arg(&dir);
    let status = command.env("RUSTFLAGS", COVERAGE).status().context("starting cargo")?;
    if !status.success() {
        bail!("the fuzzer can't be built: libFuzzer needs a C++ compiler (Debian: apt-get install g++)");
    }
    Ok(dir.join(triple).join("release/search"))
}

fn corpus() -> PathBuf {
    root().join("tests/fuzz/corpus")
}

fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(corpus()).context("tests/fuzz/corpus")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Starts libFuzzer on a target. What it finds interesting grows in `target/fuzz/corpus` from run to run; what
/// breaks lands in `target/fuzz/found`.
fn start(program: &Path, name: &str, seconds: u64, seed: u32) -> Result<Search> {
    let dir = root().join("target/fuzz");
    let (grown, found) = (dir.join("corpus").join(name), dir.join("found"));
    fs::create_dir_all(&grown)?;
    fs::create_dir_all(&found)?;
    let log = dir.join(format!("{name}.log"));
    let child = Command::new(program)
        .arg(&grown)
        .arg(corpus().join(name))
        .arg(format!("-artifact_prefix={}/{name}-", found.display()))
        .args([format!("-max_total_time={seconds}"), format!("-seed={seed}")])
        .args([format!("-timeout={INPUT_SECONDS}"), "-max_len=16384".into(), "-print_final_stats=1".into()])
        .arg("-malloc_limit_mb=512")
        .env("EMBER_FUZZ_TARGET", name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    Ok(Search { name: name.to_owned(), child, log })
}

/// Prints a row for the target; whether nothing broke.
fn finish(mut search: Search) -> Result<bool> {
    let ok = search.child.wait()?.success();
    let text = String::from_utf8_lossy(&fs::read(&search.log)?).into_owned();
    let Figures { runs, new, corpus, edges } = figures(&text);
    println!(
        "{:<20} {:<6} {runs:>12} executions {corpus:>6} inputs kept, {new:>5} of them new {edges:>6} edges",
        search.name,
        if ok { "ok" } else { "BROKEN" }
    );
    if !ok {
        println!("  {}", what_broke(&text));
        println!("  log: {}; put the input into tests/fuzz/corpus/{}", search.log.display(), search.name);
    }
    Ok(ok)
}

/// What libFuzzer printed of a search.
#[derive(PartialEq, Eq, Debug)]
struct Figures {
    runs: String,
    /// Inputs that reach what none before them did.
    new: String,
    /// Inputs that it works with at the end.
    corpus: String,
    /// Edges of the code that were reached.
    edges: String,
}

fn figures(log: &str) -> Figures {
    let stat = |name: &str| log.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let last = |mark: &str, end: char| {
        log.lines().rev().find_map(|line| line.split(mark).nth(1)?.trim_start().split([' ', end]).next())
    };
    let told = |text: Option<&str>| text.unwrap_or("?").to_owned();
    Figures {
        runs: told(stat("stat::number_of_executed_units:")),
        new: told(stat("stat::new_units_added:")),
        corpus: told(last(" corp: ", '/')),
        edges: told(last(" cov: ", ' ')),
    }
}

fn what_broke(log: &str) -> String {
    let panicked = log.lines().skip_while(|line| !line.contains("panicked at")).take(3);
    let written = log.lines().filter(|line| line.contains("Test unit written to") || line.contains("ERROR:"));
    panicked.chain(written).collect::<Vec<_>>().join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_from_the_log() {
        let log = "#2\tINITED cov: 12 ft: 13 corp: 1/1b\n#9\tNEW    cov: 340 ft: 400 corp: 9/9b lim: 4\n\
                   stat::number_of_executed_units: 77\nstat::new_units_added:          8\n";
        let told = |[runs, new, corpus, edges]: [&str; 4]| {
            let [runs, new, corpus, edges] = [runs, new, corpus, edges].map(str::to_owned);
            Figures { runs, new, corpus, edges }
        };
        assert_eq!(figures(log), told(["77", "8", "9", "340"]));
        assert_eq!(figures("nothing"), told(["?"; 4]));
        let log =
            "thread 'x' panicked at a.rs:1:2:\nattempt to add\nnote\nmore\nTest unit written to f-crash\n";
        assert!(what_broke(log).contains("attempt to add") && what_broke(log).ends_with("f-crash"));
    }
}
