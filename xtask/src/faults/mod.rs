//! `cargo xtask faults`: the release binary with parts of it killed, and what users see of that.

mod bitrot;
mod copy;
mod crash;
mod fio;
mod mixed;
pub(crate) mod pause;
mod power;
mod programs;

use crate::process::{cargo, root};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use ember_cluster_tests::random::fresh_seed;
use ember_cluster_tests::{TestCluster, no_fuse};
use std::path::PathBuf;
use std::time::Duration;

/// How long a cluster may take to be well again.
const WELL: Duration = Duration::from_secs(120);

/// What to do; without a word, all kinds of faults in random order under fio for some minutes.
#[derive(Args)]
pub(crate) struct FaultArgs {
    #[command(subcommand)]
    fault: Option<Fault>,
    /// How long faults go on, without a word.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Folder for clusters and their data; it must have some GiB of room.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Seed of everything random; a fresh one if left out.
    #[arg(long, global = true)]
    seed: Option<u64>,
}

#[derive(Subcommand, Clone, Copy)]
enum Fault {
    /// Storage processes are killed and stopped under a steady writer: the longest gap between completed writes.
    Pause,
    /// A real tree is copied in while a storage process is killed, and compared with each pair of them stopped.
    Copy,
    /// Every process is killed at a random moment; what was fsynced must be whole.
    Crash {
        /// How often.
        #[arg(long, default_value_t = 20)]
        rounds: u32,
    },
    /// Power fails for everything at once, under load, on a file system that forgets what was not flushed.
    Power {
        /// How often.
        #[arg(long, default_value_t = 20)]
        rounds: u32,
    },
    /// The process with mgmtd and meta is killed under load: requests wait.
    Control,
    /// 1,000 bytes all over one target are flipped while it runs; a scrub finds and repairs all of them.
    Bitrot,
    /// All of them.
    All,
}

/// What a run needs.
pub(crate) struct Bench {
    binary: PathBuf,
    folder: PathBuf,
    seed: u64,
}

impl Bench {
    fn cluster(&self, name: &str) -> Result<TestCluster> {
        TestCluster::within(self.binary.clone(), &self.folder, name)
    }
}

/// Builds the product for release; another binary can be named in `EMBER_BIN`.
pub(crate) fn release_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EMBER_BIN") {
        return Ok(path.into());
    }
    println!("building the release binary");
    let status = cargo(&["build", "--release", "--quiet", "-p", "ember"]).status().context("cargo build")?;
    anyhow::ensure!(status.success(), "cargo build: {status}");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release/ember"))
}

/// Runs one kind of fault, or all.
pub(crate) fn run(args: &FaultArgs) -> Result<()> {
    if let Some(reason) = no_fuse() {
        bail!("a cluster can't be mounted here: {reason}");
    }
    let folder = args.dir.clone().unwrap_or_else(|| root().join("target/faults"));
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let folder = std::fs::canonicalize(folder)?;
    let bench = Bench { binary: release_binary()?, folder, seed: args.seed.unwrap_or_else(fresh_seed) };
    println!("seed {}", bench.seed);
    let Some(fault) = args.fault else { return mixed::run(&bench, args.minutes) };
    match fault {
        Fault::Pause => pause::run(&bench),
        Fault::Copy => copy::run(&bench),
        Fault::Crash { rounds } => crash::run(&bench, rounds),
        Fault::Power { rounds } => power::run(&bench, rounds),
        Fault::Control => crash::control(&bench),
        Fault::Bitrot => bitrot::run(&bench),
        Fault::All => all(&bench),
    }
}

fn all(bench: &Bench) -> Result<()> {
    type Run = fn(&Bench) -> Result<()>;
    let runs: [(&str, Run); 7] = [
        ("pause", pause::run),
        ("copy", copy::run),
        ("crash", |b| crash::run(b, 20)),
        ("power", |b| power::run(b, 20)),
        ("control", crash::control),
        ("bitrot", bitrot::run),
        ("mixed", |b| mixed::run(b, 10)),
    ];
    let mut failed = Vec::new();
    for (name, run) in runs {
        println!("== {name}");
        if let Err(error) = run(bench) {
            println!("{name} FAILS: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("seed {}: failed: {}", bench.seed, failed.join(", "));
    }
    Ok(())
}
