//! `cargo xtask perf resync`: how fast an emptied replica is filled again, beside fio that reads one file and writes
//! another on the same disk, and what a reader notices of it. Its goals bind: the command fails if one is missed.

mod cluster;
mod page;

use super::machine::Meter;
use super::{FROM_DISK_MIN, sides};
use crate::faults::release_binary;
use crate::process::root;
use anyhow::{Context, Result, bail, ensure};
use cluster::Pair;
use ember_cluster_tests::{drop_caches, missing_program};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Least share of fio's speed.
const SPEED_MIN: f64 = 0.8;
/// The 99th percentile of reads beside a resync may be so many times that without one.
const P99_MAX: f64 = 2.0;
/// Smallest amount whose figures are written down.
const WRITTEN_DOWN_GIB: u64 = 10;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct ResyncArgs {
    /// Folder on the disk to measure; it must have room for two and a half times `--gib`.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// GiB that the replica lacks.
    #[arg(long, default_value_t = WRITTEN_DOWN_GIB)]
    gib: u64,
    /// Runs of fio and of the resync, in turn; and of the reader, without and beside a resync.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Seconds of a run of the reader.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Bytes of each of its reads.
    #[arg(long, default_value_t = 4096)]
    block: u64,
    /// Its reads at once.
    #[arg(long, default_value_t = 8)]
    depth: u32,
    /// Print only; don't write the page.
    #[arg(long)]
    print_only: bool,
}

/// Bytes moved, and what that took.
#[derive(Clone, Copy, Debug)]
struct Copied {
    bytes: u64,
    seconds: f64,
    cpu_seconds: f64,
    disk_read: u64,
    disk_written: u64,
}

impl Copied {
    fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.seconds.max(1e-9)
    }
    fn cpu_per_gib(&self) -> f64 {
        self.cpu_seconds / (self.bytes as f64 / f64::from(1 << 30)).max(1e-9)
    }
    /// Whether a cache answered.
    fn is_void(&self) -> bool {
        (self.disk_read.min(self.disk_written) as f64) < self.bytes as f64 * FROM_DISK_MIN
    }
}

/// One run of the reader.
#[derive(Clone, Copy, Debug)]
struct Reads {
    per_second: f64,
    median_us: f64,
    p99_us: f64,
    /// Speed of the resync beside it.
    resync_mib_per_s: f64,
}

/// Everything that was measured: medians.
struct Outcome {
    fio: Copied,
    resync: Copied,
    quiet: Reads,
    beside: Reads,
}

impl Outcome {
    fn speed(&self) -> f64 {
        self.resync.mib_per_s() / self.fio.mib_per_s()
    }
    fn slowdown(&self) -> f64 {
        self.beside.p99_us / self.quiet.p99_us.max(1e-9)
    }
    fn missed(&self) -> Vec<&'static str> {
        let void = self.fio.is_void() || self.resync.is_void();
        let goals = [
            (void, "not all bytes met the disk"),
            (self.speed() < SPEED_MIN, "speed beside fio"),
            (self.slowdown() > P99_MAX, "99th percentile of reads beside a resync"),
        ];
        goals.into_iter().filter(|(missed, _)| *missed).map(|(_, what)| what).collect()
    }
}

/// Measures, prints, and writes the page; an error if a goal is missed.
pub(super) fn run(args: &ResyncArgs) -> Result<()> {
    if let Some(reason) = missing_program(&["fio"]) {
        bail!("{reason}: `apt-get install fio`");
    }
    let folder = args.dir.clone().unwrap_or_else(|| root().join("target/perf"));
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let folder = std::fs::canonicalize(folder)?;
    let pair = Pair::start(release_binary()?, &folder, args.gib << 30)?;
    let meter = Meter::new(&folder)?;
    let (mut copies, mut resyncs) = (Vec::new(), Vec::new());
    for round in 1..=args.runs.max(1) {
        pair.empty()?;
        copies.push(copy(&pair, &meter, args)?);
        resyncs.push(resync(&pair, &meter)?);
        if let (Some(fio), Some(own)) = (copies.last(), resyncs.last()) {
            println!("{round}: fio {:.0} MiB/s, resync {:.0} MiB/s", fio.mib_per_s(), own.mib_per_s());
        }
    }
    println!("{}", pair.cluster.verify_replicas()?.trim_end());
    pair.empty()?;
    let reader = |beside| reads(&pair, args, beside);
    let quiet = (0..args.runs.max(1)).map(|_| reader(false)).collect::<Result<Vec<Reads>>>()?;
    let begun = pair.begin()?;
    let beside = (0..args.runs.max(1)).map(|_| reader(true)).collect::<Result<Vec<Reads>>>()?;
    begun.leave()?;
    let outcome = Outcome {
        fio: median(copies, Copied::mib_per_s),
        resync: median(resyncs, Copied::mib_per_s),
        quiet: median(quiet, |reads| reads.p99_us),
        beside: median(beside, |reads| reads.p99_us),
    };
    let table = page::table(&outcome, args);
    println!("\n{table}");
    if !args.print_only && args.gib >= WRITTEN_DOWN_GIB {
        page::write(&table, args, &folder)?;
    }
    let missed = outcome.missed();
    ensure!(missed.is_empty(), "missed: {}", missed.join("; "));
    Ok(())
}

/// The one in the middle.
fn median<T: Copy>(mut figures: Vec<T>, by: impl Fn(&T) -> f64) -> T {
    figures.sort_by(|a, b| by(a).total_cmp(&by(b)));
    figures[figures.len() / 2]
}

/// Times work, with what the disk and the processors did meanwhile.
fn metered(meter: &Meter, work: impl FnOnce() -> Result<(u64, f64)>) -> Result<Copied> {
    let before = meter.read()?;
    let (bytes, seconds) = work()?;
    let after = meter.read()?;
    Ok(Copied {
        bytes,
        seconds,
        cpu_seconds: after.cpu_seconds - before.cpu_seconds,
        disk_read: after.read - before.read,
        disk_written: after.written - before.written,
    })
}

/// fio reads the source's largest data file and writes a new file, both at once.
fn copy(pair: &Pair, meter: &Meter, args: &ResyncArgs) -> Result<Copied> {
    let from = pair.largest_file()?;
    let to = pair.cluster.root().join("fio.copy");
    // What every target holds surely; a file's end may be reserved only.
    let bytes = (args.gib << 30) / pair.targets()? / 10 * 9 / (1 << 20) * (1 << 20);
    drop_caches()?;
    let done = metered(meter, || {
        let report = sides::run_fio(&copy_args(&from, &to, bytes)?)?;
        let jobs = report["jobs"].as_array().context("jobs in fio's report")?;
        let runtime = |job: &Value, kind: &str| job[kind]["runtime"].as_u64().context("runtime");
        let (read, write) = (runtime(&jobs[0], "read")?, runtime(&jobs[1], "write")?);
        Ok((bytes, read.max(write) as f64 / 1000.0))
    });
    std::fs::remove_file(&to).with_context(|| to.display().to_string())?;
    done
}

fn copy_args(from: &Path, to: &Path, bytes: u64) -> Result<Vec<String>> {
    let text = |path: &Path| path.to_str().map(str::to_owned).context("path that is not UTF-8");
    let (from, to) = (text(from)?, text(to)?);
    Ok(vec![
        "--ioengine=io_uring".into(),
        "--direct=1".into(),
        "--bs=1M".into(),
        "--iodepth=16".into(),
        format!("--size={bytes}"),
        "--output-format=json".into(),
        "--name=read".into(),
        "--rw=read".into(),
        format!("--filename={from}"),
        "--name=write".into(),
        "--rw=write".into(),
        "--fdatasync=16".into(),
        format!("--filename={to}"),
    ])
}

/// From the moment at which the emptied targets begin to sync until all serve.
fn resync(pair: &Pair, meter: &Meter) -> Result<Copied> {
    drop_caches()?;
    let begun = pair.begin()?;
    metered(meter, || {
        let seconds = begun.end()?;
        Ok((pair.bytes, seconds))
    })
}

/// One run of random reads; `beside` a resync that must still be on its way at the end.
fn reads(pair: &Pair, args: &ResyncArgs, beside: bool) -> Result<Reads> {
    let before = pair.bytes_sent()?;
    let printed = pair.read(args.block, args.depth, args.seconds)?;
    let after = pair.bytes_sent()?;
    let sent = match (beside, before, after) {
        (false, ..) => 0,
        (true, Some(before), Some(after)) => after.saturating_sub(before),
        (true, ..) => bail!("the resync is over before the reader is: give more --gib or fewer --seconds"),
    };
    let report: Value = serde_json::from_str(printed.trim()).context("what `ember bench` prints")?;
    let number = |field: &str| report[field].as_f64().with_context(|| field.to_owned());
    let seconds = number("seconds")?.max(1e-9);
    let reads = Reads {
        per_second: number("operations")? / seconds,
        median_us: number("median_us")?,
        p99_us: number("p99_us")?,
        resync_mib_per_s: sent as f64 / f64::from(1 << 20) / seconds,
    };
    println!(
        "reader{}: {:.0} reads/s, median {:.0} µs, 99th percentile {:.0} µs",
        if beside {
            format!(" beside a resync of {:.0} MiB/s", reads.resync_mib_per_s)
        } else {
            String::new()
        },
        reads.per_second,
        reads.median_us,
        reads.p99_us
    );
    Ok(reads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missed_is_named() {
        let copied = |seconds| Copied {
            bytes: 1 << 30,
            seconds,
            cpu_seconds: 1.0,
            disk_read: 1 << 30,
            disk_written: 1 << 30,
        };
        let reads = |p99_us| Reads { per_second: 1.0, median_us: 1.0, p99_us, resync_mib_per_s: 0.0 };
        let mut outcome =
            Outcome { fio: copied(8.0), resync: copied(9.0), quiet: reads(100.0), beside: reads(199.0) };
        assert!(outcome.missed().is_empty());
        outcome.resync.disk_written /= 2;
        outcome.resync.seconds = 11.0;
        outcome.beside.p99_us = 201.0;
        assert_eq!(outcome.missed().len(), 3);
        assert_eq!(median(vec![3.0, 1.0, 2.0], |x| *x), 2.0);
    }
}
