//! `cargo xtask perf engine`: the chunk engine alone, in one lane on a real disk, beside fio on the same file
//! system with the same durability. Its goals bind: the command fails if one is missed.

mod page;
mod sides;

use super::machine::Meter;
use super::{DATA_SET_MIN_GIB, Extent, FROM_DISK_MIN};
use crate::process::{cargo, root};
use anyhow::{Context, Result, bail};
use ember_cluster_tests::missing_program;
use sides::{Bench, Costs, Figure};
use std::path::PathBuf;

/// What to measure, and how long.
#[derive(clap::Args)]
pub(crate) struct EngineArgs {
    #[command(flatten)]
    extent: Extent,
    /// Only these rows.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Leave the data set there, and use the one that is there.
    #[arg(long)]
    keep: bool,
}

/// What a row is compared with.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Goal {
    /// At least this share of fio's speed.
    OfFio(f64),
    /// At least so many operations a second.
    PerSecond(f64),
}

/// A row.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// What the example calls it.
    name: &'static str,
    /// For people.
    title: &'static str,
    /// Bytes of a request; 0 without data.
    block: u64,
    /// Operations of fio in flight.
    depth: u32,
    /// Operations of the engine that are not answered.
    own_depth: u32,
    /// What fio does.
    fio: &'static [&'static str],
    writes: bool,
    goal: Goal,
}

const ROWS: &[Row] = &[
    Row {
        name: "read",
        title: "1 MiB reads in order, depth 16",
        block: 1 << 20,
        depth: 16,
        own_depth: 16,
        fio: &["--rw=read"],
        writes: false,
        goal: Goal::OfFio(0.95),
    },
    Row {
        name: "random-read",
        title: "4 KiB random reads, depth 32",
        block: 4096,
        depth: 32,
        own_depth: 32,
        fio: &["--rw=randread"],
        writes: false,
        goal: Goal::OfFio(0.85),
    },
    Row {
        name: "cold-read",
        title: "the same with no checksum page in memory",
        block: 4096,
        depth: 32,
        own_depth: 32,
        fio: &["--rw=randread"],
        writes: false,
        goal: Goal::OfFio(0.45),
    },
    Row {
        name: "write",
        title: "1 MiB writes in order",
        block: 1 << 20,
        depth: 16,
        // fio has 16 in flight and up to 16 more that are written and not flushed; ours are answered when they are.
        own_depth: 32,
        fio: &["--rw=write", "--fdatasync=16"],
        writes: true,
        goal: Goal::OfFio(0.9),
    },
    Row {
        name: "overwrite",
        title: "4 KiB random overwrites, depth 16",
        block: 4096,
        depth: 16,
        own_depth: 16,
        fio: &["--rw=randwrite", "--sync=dsync"],
        writes: true,
        goal: Goal::OfFio(0.5),
    },
    Row {
        name: "append",
        title: "appends of 64 KiB, depth 16",
        block: 64 << 10,
        depth: 16,
        own_depth: 16,
        fio: &["--rw=write", "--sync=dsync"],
        writes: true,
        goal: Goal::OfFio(0.8),
    },
    Row {
        name: "metadata",
        title: "updates of a chunk's length, 1024 at once",
        block: 0,
        depth: 1024,
        own_depth: 1024,
        fio: &[],
        writes: true,
        goal: Goal::PerSecond(100_000.0),
    },
];

/// What came out of a row.
struct Line {
    row: Row,
    fio: Option<(Figure, Costs)>,
    own: (Figure, Costs),
    /// The engine's speed divided by that of the run of fio beside it, ascending.
    ratios: Vec<f64>,
}

impl Line {
    /// The median of the pairs: a disk whose speed drifts meets both of a pair.
    fn ratio(&self) -> Option<f64> {
        self.ratios.get(self.ratios.len() / 2).copied()
    }
    /// Whether a cache answered.
    fn is_void(&self) -> bool {
        let fio = self.fio.as_ref().map(|(fio, _)| fio);
        fio.into_iter().chain([&self.own.0]).any(|f| f.disk_share(self.row.writes) < FROM_DISK_MIN)
    }
    fn is_met(&self) -> bool {
        let reached = match self.row.goal {
            Goal::OfFio(least) => self.ratio().is_some_and(|ratio| ratio >= least),
            Goal::PerSecond(least) => self.own.0.per_second() >= least,
        };
        reached && !self.is_void()
    }
}

/// Builds the example that drives an engine.
fn example() -> Result<PathBuf> {
    println!("building the example `speed` of ember-engine");
    let status =
        cargo(&["build", "--release", "--quiet", "-p", "ember-engine", "--example", "speed"]).status();
    let status = status.context("cargo build")?;
    anyhow::ensure!(status.success(), "cargo build: {status}");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release/examples/speed"))
}

/// Measures, prints, and writes the page.
pub(crate) fn run(args: &EngineArgs) -> Result<()> {
    if let Some(reason) = missing_program(&["fio"]) {
        bail!("{reason}: `apt-get install fio`");
    }
    let rows: Vec<Row> = ROWS
        .iter()
        .filter(|row| args.rows.is_empty() || args.rows.iter().any(|name| name == row.name))
        .copied()
        .collect();
    anyhow::ensure!(
        !rows.is_empty(),
        "rows are {}",
        ROWS.iter().map(|r| r.name).collect::<Vec<_>>().join(", ")
    );
    let folder = args.extent.folder().join("engine");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let folder = std::fs::canonicalize(folder)?;
    let example = example()?;
    let bench = Bench {
        example,
        meter: Meter::new(&folder)?,
        folder,
        size: args.extent.gib << 30,
        seconds: args.extent.seconds,
    };
    let measured = bench.prepare(args.keep).and_then(|()| {
        rows.iter().map(|row| measure(&bench, *row, args.extent.runs)).collect::<Result<Vec<Line>>>()
    });
    if !args.keep {
        std::fs::remove_dir_all(&bench.folder)?;
    }
    let lines = measured?;
    let text = page::tables(&lines);
    println!("\n{text}");
    if !args.extent.print_only && args.extent.gib >= DATA_SET_MIN_GIB && lines.len() == ROWS.len() {
        page::write(&text, args)?;
    }
    let missed: Vec<&str> = lines.iter().filter(|line| !line.is_met()).map(|line| line.row.title).collect();
    anyhow::ensure!(missed.is_empty(), "goals missed or rows void: {}", missed.join("; "));
    Ok(())
}

/// Runs fio and the engine in turn, the one or the other first.
fn measure(bench: &Bench, row: Row, runs: usize) -> Result<Line> {
    let (mut fio, mut own, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs.max(1) {
        let early = if run % 2 == 1 { Some(bench.engine(&row)?) } else { None };
        let beside = if row.fio.is_empty() { None } else { Some(bench.fio(&row)?) };
        let figure = early.map_or_else(|| bench.engine(&row), Ok)?;
        ratios.extend(beside.as_ref().map(|fio| figure.per_second() / fio.per_second().max(1e-9)));
        fio.extend(beside);
        own.push(figure);
    }
    ratios.sort_by(f64::total_cmp);
    let costs = bench.count_calls(&row)?;
    let fio = if fio.is_empty() { None } else { Some((median(fio), costs.0)) };
    let line = Line { row, fio, own: (median(own), costs.1), ratios };
    let beside = line.fio.as_ref().map_or(String::new(), |(fio, _)| {
        format!(", fio {}, ratio {}", page::speed(&row, fio), page::ratio(&line))
    });
    println!("{}: {}{beside}", row.title, page::speed(&row, &line.own.0));
    Ok(line)
}

/// The run in the middle by speed.
fn median(mut figures: Vec<Figure>) -> Figure {
    figures.sort_by(|a, b| a.per_second().total_cmp(&b.per_second()));
    figures.swap_remove(figures.len() / 2)
}
