//! `cargo xtask perf`: fio on a disk, the mount and the native client on the same disk, run in turn. Medians of
//! several runs and their ratios; nothing but ratios is compared, and no goal binds.

mod checkpoint;
mod engine;
mod ep;
mod gemm;
mod machine;
mod page;
mod resync;
mod sides;

use crate::faults::release_binary;
use crate::process::root;
use anyhow::{Context, Result, bail};
use ember_cluster_tests::{TestCluster, missing_program, no_fuse};
use machine::Meter;
use page::Line;
use sides::{Figure, Pattern, Side, Sync};
use std::path::PathBuf;
use std::time::Duration;

/// Least share of a row's bytes that must have come from or gone to the disk.
const FROM_DISK_MIN: f64 = 0.95;
/// A native 1 MiB read below this share of fio means that something is wrong.
const NATIVE_READ_MIN: f64 = 0.3;
/// A mounted 1 MiB read below this share of fio means that something is wrong.
const MOUNT_READ_MIN: f64 = 0.2;
/// Smallest data set of figures that are written down.
const DATA_SET_MIN_GIB: u64 = 4;

/// What to measure, and how long.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct PerfArgs {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    extent: Extent,
    /// Replicas of the cluster.
    #[arg(long, default_value_t = 3)]
    replicas: u32,
}

/// Where, how long and how much: what the measurements against fio have in common.
#[derive(clap::Args)]
struct Extent {
    /// Folder on the disk to measure; it must have room for ten data sets, for the engine alone for three.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Runs of each row and side.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Seconds of each run.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Size of the data set in GiB.
    #[arg(long, default_value_t = DATA_SET_MIN_GIB)]
    gib: u64,
    /// Print only; don't write the page.
    #[arg(long)]
    print_only: bool,
}

impl Extent {
    /// The folder to measure in.
    fn folder(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| root().join("target/perf"))
    }
}

/// A part that is measured alone; without one, the mount and the native client.
#[derive(clap::Subcommand)]
enum Part {
    /// Checkpoints of a training job against plain writes; fails if a goal is missed.
    Checkpoint(checkpoint::CheckpointArgs),
    /// The chunk engine in one lane against fio; fails if a goal is missed.
    Engine(engine::EngineArgs),
    /// Tokens to experts and back against copies in memory; fails if a goal is missed.
    Ep(ep::EpArgs),
    /// Matrix products on one core against the crate `matrixmultiply`; fails if a goal is missed.
    Gemm(gemm::GemmArgs),
    /// Filling an emptied replica again, alone and beside a reader; fails if a goal is missed.
    Resync(resync::ResyncArgs),
}

/// The rows: what is done, and by whom beside fio on the disk.
fn rows() -> Vec<(Pattern, Vec<Side>)> {
    let pattern = |name, block, depth, random, write, sync| Pattern {
        name,
        block,
        depth,
        random,
        write,
        sync,
        stream: false,
    };
    let both = || vec![Side::Native, Side::Mount];
    let sequential = pattern("1 MiB sequential write, depth 16", 1 << 20, 16, false, true, Sync::DataEvery16);
    let stream = Pattern { name: "the same, one stream through the page cache", stream: true, ..sequential };
    vec![
        (pattern("1 MiB sequential read, depth 16", 1 << 20, 16, false, false, Sync::None), both()),
        (pattern("4 KiB random read, depth 32", 4096, 32, true, false, Sync::None), both()),
        (sequential, both()),
        (stream, vec![Side::Mount]),
        (pattern("4 KiB random overwrite, depth 16", 4096, 16, true, true, Sync::Each), vec![Side::Native]),
    ]
}

/// Measures, prints, and writes the page.
pub(crate) fn run(args: &PerfArgs) -> Result<()> {
    match &args.part {
        Some(Part::Checkpoint(args)) => return checkpoint::run(args),
        Some(Part::Engine(args)) => return engine::run(args),
        Some(Part::Ep(args)) => return ep::run(args),
        Some(Part::Gemm(args)) => return gemm::run(args),
        Some(Part::Resync(args)) => return resync::run(args),
        None => {}
    }
    if let Some(reason) = no_fuse().or_else(|| missing_program(&["fio"])) {
        bail!("{reason}; it takes root, /dev/fuse and `apt-get install fio`");
    }
    let folder = args.extent.folder();
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let folder = std::fs::canonicalize(folder)?;
    let cluster = TestCluster::within(release_binary()?, &folder, "perf")?;
    let replicas = args.replicas.to_string();
    cluster.up(&["--storage-nodes", &replicas, "--replicas", &replicas])?;
    cluster.wait_health("OK", Duration::from_secs(120))?;
    let bench = sides::Bench {
        cluster: &cluster,
        meter: Meter::new(&folder)?,
        size: args.extent.gib << 30,
        seconds: args.extent.seconds,
    };
    println!("writing {} GiB for each side", args.extent.gib);
    bench.prepare()?;
    let mut lines = Vec::new();
    for (pattern, sides) in rows() {
        lines.extend(row(&bench, pattern, &sides, args.extent.runs)?);
    }
    println!();
    let table = page::table(&lines);
    println!("{table}");
    for warning in warnings(&lines) {
        println!("!!! {warning}");
    }
    if !args.extent.print_only && args.extent.gib >= DATA_SET_MIN_GIB {
        page::write(&table, args)?;
    }
    Ok(())
}

/// Runs fio and the others in turn, so that what changes on the machine meanwhile meets all of them.
fn row(bench: &sides::Bench, pattern: Pattern, sides: &[Side], runs: usize) -> Result<Vec<Line>> {
    let mut yardstick = Vec::new();
    let mut others: Vec<Vec<Figure>> = vec![Vec::new(); sides.len()];
    for _ in 0..runs.max(1) {
        yardstick.push(bench.measure(pattern, Side::Disk)?);
        for (side, figures) in sides.iter().zip(&mut others) {
            figures.push(bench.measure(pattern, *side)?);
        }
    }
    let fio = median(yardstick);
    println!("{}: fio {:.0} MiB/s", pattern.name, fio.mib_per_s());
    let lines = sides.iter().zip(others).map(|(side, figures)| {
        let own = median(figures);
        println!(
            "  {}: {:.0} MiB/s, ratio {:.2}",
            side.name(),
            own.mib_per_s(),
            own.mib_per_s() / fio.mib_per_s()
        );
        Line { pattern, side: *side, fio, own }
    });
    Ok(lines.collect())
}

/// The run in the middle by speed.
fn median(mut figures: Vec<Figure>) -> Figure {
    figures.sort_by(|a, b| a.mib_per_s().total_cmp(&b.mib_per_s()));
    figures[figures.len() / 2]
}

fn warnings(lines: &[Line]) -> Vec<String> {
    let mut found = Vec::new();
    for line in lines.iter().filter(|line| line.is_void()) {
        found.push(format!("void: {} ({}): not all bytes met the disk", line.pattern.name, line.side.name()));
    }
    for line in lines.iter().filter(|line| !line.pattern.write && !line.pattern.random) {
        let least = if line.side == Side::Native { NATIVE_READ_MIN } else { MOUNT_READ_MIN };
        if line.ratio() < least {
            found.push(format!(
                "SOMETHING IS WRONG: {} ({}) reaches {:.2} of fio, at least {least} is expected",
                line.pattern.name,
                line.side.name(),
                line.ratio()
            ));
        }
    }
    found
}
