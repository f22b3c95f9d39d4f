//! One run of fio, and one of the engine.

use super::Row;
use crate::faults::pause::pause;
use crate::perf::machine::{Meter, Reading};
use anyhow::{Context, Result, ensure};
use ember_cluster_tests::{drop_caches, missing_program, run as run_program};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

/// Seconds of the runs in which system calls are counted.
const COUNTED_S: u64 = 2;
/// What `perf` counts.
const CALLS: &str = "raw_syscalls:sys_enter";
/// How long `perf` may take to attach.
const ATTACH: Duration = Duration::from_millis(500);

/// One run.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) operations: u64,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    /// Processor time of the process.
    pub(super) cpu_seconds: f64,
    /// Processor time of the whole machine.
    pub(super) machine_seconds: f64,
    /// What the disk did meanwhile.
    pub(super) disk_read: u64,
    pub(super) disk_written: u64,
    pub(super) disk_flushes: u64,
    /// The engine's counters.
    pub(super) counters: Value,
}

impl Figure {
    pub(super) fn per_second(&self) -> f64 {
        self.operations as f64 / self.seconds.max(1e-9)
    }
    /// A number per operation.
    pub(super) fn each(&self, number: u64) -> f64 {
        number as f64 / self.operations.max(1) as f64
    }
    pub(super) fn counter(&self, name: &str) -> u64 {
        self.counters[name].as_u64().unwrap_or(0)
    }
    /// Share of the bytes that came from or went to the disk.
    pub(super) fn disk_share(&self, writes: bool) -> f64 {
        let moved = if writes { self.disk_written } else { self.disk_read };
        if self.bytes == 0 { 1.0 } else { moved as f64 / self.bytes as f64 }
    }
}

/// What was counted in a run of its own.
#[derive(Clone, Copy, Default)]
pub(super) struct Costs {
    /// System calls of an operation, if `perf` could count them.
    pub(super) calls: Option<f64>,
}

/// A file for fio and a target for the engine, on one disk.
pub(super) struct Bench {
    pub(super) example: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) meter: Meter,
    /// Bytes of the data set.
    pub(super) size: u64,
    pub(super) seconds: u64,
}

/// The engine at work: ready, and waiting for its start.
struct Ready {
    child: Child,
    start: ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Ready {
    fn line(&mut self) -> Result<String> {
        self.lines.next().context("the engine ended early")?.context("what the engine prints")
    }
    fn go(&mut self) -> Result<Value> {
        self.start.write_all(b"go\n")?;
        serde_json::from_str(&self.line()?).context("what the engine prints")
    }
    fn end(self) -> Result<()> {
        let Self { mut child, start, .. } = self;
        drop(start);
        let status = child.wait()?;
        ensure!(status.success(), "the engine: {status}");
        Ok(())
    }
}

impl Bench {
    fn text(&self, name: &str) -> Result<String> {
        Ok(self.folder.join(name).to_str().context("path that is not UTF-8")?.to_owned())
    }

    /// Writes the file and the target.
    pub(super) fn prepare(&self, keep: bool) -> Result<()> {
        let (file, target) = (self.folder.join("fio.data"), self.folder.join("target"));
        let there = file.metadata().is_ok_and(|meta| meta.len() == self.size) && target.exists();
        if keep && there {
            return Ok(());
        }
        println!("writing {} GiB for each side", self.size >> 30);
        if target.exists() {
            std::fs::remove_dir_all(&target)?;
        }
        self.run_fio(&["--rw=write"], 1 << 20, 16, None)?;
        let mut child = self.start("fill", 16, 0)?.spawn().context("starting the engine")?;
        let status = child.wait()?;
        ensure!(status.success(), "the engine: {status}");
        Ok(())
    }

    fn start(&self, row: &str, depth: u32, seconds: u64) -> Result<Command> {
        let mut command = Command::new(&self.example);
        command.args(["--dir", &self.text("")?, "--row", row, "--depth", &depth.to_string()]);
        command.args(["--mib", &(self.size >> 20).to_string(), "--seconds", &seconds.to_string()]);
        Ok(command)
    }

    fn ready(&self, row: &Row, seconds: u64) -> Result<Ready> {
        let mut command = self.start(row.name, row.own_depth, seconds)?;
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.context("starting the engine")?;
        let (start, out) = (child.stdin.take(), child.stdout.take());
        let (start, out) = (start.context("stdin")?, out.context("stdout")?);
        let mut ready = Ready { child, start, lines: BufReader::new(out).lines() };
        ensure!(ready.line()? == "ready", "the engine doesn't say that it is ready");
        Ok(ready)
    }

    /// One run of the engine with cold caches.
    pub(super) fn engine(&self, row: &Row) -> Result<Figure> {
        drop_caches()?;
        let mut ready = self.ready(row, self.seconds)?;
        let before = self.meter.read()?;
        let report = ready.go()?;
        let after = self.meter.read()?;
        ready.end()?;
        let number = |field: &str| report[field].as_u64().with_context(|| field.to_owned());
        let (operations, bytes) = (number("operations")?, number("bytes")?);
        let seconds = report["seconds"].as_f64().context("seconds")?;
        let cpu_seconds = number("cpu_ticks")? as f64 / self.meter.ticks_per_s();
        Ok(figure((operations, bytes, seconds, cpu_seconds), &before, &after, report))
    }

    /// One run of fio with cold caches.
    pub(super) fn fio(&self, row: &Row) -> Result<Figure> {
        drop_caches()?;
        let before = self.meter.read()?;
        let report = self.run_fio(row.fio, row.block, row.depth, Some(self.seconds))?;
        let after = self.meter.read()?;
        let job = &report["jobs"][0];
        let part = &job[if row.writes { "write" } else { "read" }];
        let number = |field: &str| part[field].as_u64().with_context(|| format!("{field} in fio's report"));
        let share = |field: &str| job[field].as_f64().with_context(|| format!("{field} in fio's report"));
        let seconds = number("runtime")? as f64 / 1000.0;
        let cpu_seconds = (share("usr_cpu")? + share("sys_cpu")?) / 100.0 * seconds;
        let numbers = (number("total_ios")?, number("io_bytes")?, seconds, cpu_seconds);
        Ok(figure(numbers, &before, &after, Value::Null))
    }

    fn fio_args(&self, row: &[&str], block: u64, depth: u32, seconds: Option<u64>) -> Result<Vec<String>> {
        let mut args = vec![
            "--name=perf".to_owned(),
            format!("--filename={}", self.text("fio.data")?),
            format!("--bs={block}"),
            format!("--iodepth={depth}"),
            format!("--size={}", self.size),
        ];
        let fixed = ["--ioengine=io_uring", "--direct=1", "--fallocate=none", "--norandommap"];
        args.extend(fixed.iter().chain(row).map(|&text| text.to_owned()));
        args.extend(["--randrepeat=0", "--output-format=json"].map(str::to_owned));
        if let Some(seconds) = seconds {
            args.extend(["--time_based".to_owned(), format!("--runtime={seconds}")]);
        }
        Ok(args)
    }

    fn run_fio(&self, row: &[&str], block: u64, depth: u32, seconds: Option<u64>) -> Result<Value> {
        let args = self.fio_args(row, block, depth, seconds)?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        json_of(&run_program("fio", &args)?)
    }

    /// Counts the system calls of both sides in short runs of their own, since counting costs time.
    pub(super) fn count_calls(&self, row: &Row) -> Result<(Costs, Costs)> {
        if missing_program(&["perf"]).is_some() {
            return Ok(Default::default());
        }
        let counts = self.folder.join("calls");
        let file = self.text("calls")?;
        let stat = ["stat", "-x,", "-e", CALLS, "-o", &file];
        let mut costs = (Costs::default(), Costs::default());
        if !row.fio.is_empty() {
            let args = self.fio_args(row.fio, row.block, row.depth, Some(COUNTED_S))?;
            let args: Vec<&str> = stat.into_iter().chain(["fio"]).chain(args.iter().map(|a| &**a)).collect();
            if let Ok(text) = run_program("perf", &args) {
                let report = json_of(&text)?;
                let part = &report["jobs"][0][if row.writes { "write" } else { "read" }];
                costs.0.calls = calls_of(&counts, part["total_ios"].as_u64());
            }
        }
        let mut ready = self.ready(row, COUNTED_S)?;
        let pid = ready.child.id().to_string();
        let counting = Command::new("perf").args(stat).args(["-p", &pid]).spawn();
        pause(ATTACH);
        let report = ready.go()?;
        ready.end()?;
        if let Ok(mut counting) = counting
            && counting.wait()?.success()
        {
            costs.1.calls = calls_of(&counts, report["operations"].as_u64());
        }
        Ok(costs)
    }
}

/// What `perf stat` wrote, per operation.
fn calls_of(file: &std::path::Path, operations: Option<u64>) -> Option<f64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.contains(CALLS))?;
    let calls: f64 = line.split(',').next()?.parse().ok()?;
    Some(calls / operations? as f64)
}

/// Notes may stand before fio's report.
fn json_of(text: &str) -> Result<Value> {
    let json = text.find('{').map_or("", |at| &text[at..]);
    serde_json::from_str(json).with_context(|| format!("fio's report: {text}"))
}

fn figure(
    (operations, bytes, seconds, cpu_seconds): (u64, u64, f64, f64),
    before: &Reading,
    after: &Reading,
    counters: Value,
) -> Figure {
    Figure {
        operations,
        bytes,
        seconds,
        cpu_seconds,
        machine_seconds: after.cpu_seconds - before.cpu_seconds,
        disk_read: after.read.saturating_sub(before.read),
        disk_written: after.written.saturating_sub(before.written),
        disk_flushes: after.flushes.saturating_sub(before.flushes),
        counters,
    }
}
