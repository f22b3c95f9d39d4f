//! The sides that are compared, and one run of one of them.

use super::machine::{Meter, Reading};
use anyhow::{Context, Result};
use ember_cluster_tests::{TestCluster, drop_caches, run as run_program};
use serde_json::Value;
use std::path::PathBuf;

/// Name of the file that is read, in the root directory of the mount.
const READ: &str = "read.data";
/// Name of the file that the native client writes.
const WRITE: &str = "write.data";
/// Name of the file that is written through the mount.
const MOUNT_WRITE: &str = "mount-write.data";

/// When written bytes must be durable, in fio's words. The native client's are with each answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sync {
    None,
    DataEvery16,
    Each,
}

/// What a row does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    pub(super) name: &'static str,
    /// Bytes of a request.
    pub(super) block: u64,
    pub(super) depth: u32,
    pub(super) random: bool,
    pub(super) write: bool,
    pub(super) sync: Sync,
    /// On the mount it is one program that writes one block after the other, without O_DIRECT.
    pub(super) stream: bool,
}

/// Who does it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// fio on a file of the disk.
    Disk,
    /// The native client.
    Native,
    /// fio on a file of the mount.
    Mount,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Native => "native client",
            Self::Mount => "mount",
        }
    }
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    pub(super) bytes: u64,
    pub(super) operations: u64,
    pub(super) seconds: f64,
    /// Bytes that the disk read or wrote meanwhile.
    pub(super) disk_bytes: u64,
    /// Processor time of the whole machine meanwhile.
    pub(super) cpu_seconds: f64,
}

impl Figure {
    pub(super) fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.seconds.max(1e-9)
    }
    pub(super) fn cpu_per_gib(&self) -> f64 {
        self.cpu_seconds / (self.bytes as f64 / f64::from(1 << 30)).max(1e-9)
    }
    pub(super) fn cpu_us_per_operation(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.operations.max(1) as f64
    }
    /// Share of the bytes that came from or went to the disk; more than 1 with several replicas.
    pub(super) fn disk_share(&self) -> f64 {
        self.disk_bytes as f64 / self.bytes.max(1) as f64
    }
}

/// Files and a cluster on one disk.
pub(super) struct Bench<'a> {
    pub(super) cluster: &'a TestCluster,
    pub(super) meter: Meter,
    /// Bytes of each file.
    pub(super) size: u64,
    pub(super) seconds: u64,
}

impl Bench<'_> {
    fn disk_file(&self) -> PathBuf {
        self.cluster.root().join("fio.data")
    }

    /// Writes the files that are read and written over.
    pub(super) fn prepare(&self) -> Result<()> {
        let size = self.size.to_string();
        let whole = Pattern {
            name: "",
            block: 1 << 20,
            depth: 16,
            random: false,
            write: true,
            sync: Sync::None,
            stream: false,
        };
        run_fio(&self.fio_args(whole, &self.disk_file(), None)?)?;
        for file in [READ, WRITE] {
            let words = ["bench", "write", "--file", file, "--block", "1048576", "--depth", "16"];
            self.cluster.ember_ok(&[&words[..], &["--size", &size, "--seconds", "3600"]].concat())?;
        }
        run_fio(&self.fio_args(whole, &self.cluster.mount().join(MOUNT_WRITE), None)?)?;
        Ok(())
    }

    /// One run with cold caches.
    pub(super) fn measure(&self, pattern: Pattern, side: Side) -> Result<Figure> {
        drop_caches()?;
        let before = self.meter.read()?;
        let (bytes, operations, seconds) = match side {
            Side::Disk => self.fio(Pattern { stream: false, ..pattern }, self.disk_file())?,
            Side::Mount if pattern.write => self.fio(pattern, self.cluster.mount().join(MOUNT_WRITE))?,
            Side::Mount => self.fio(pattern, self.cluster.mount().join(READ))?,
            Side::Native => self.native(pattern)?,
        };
        let after = self.meter.read()?;
        let moved = |pick: fn(&Reading) -> u64| pick(&after).saturating_sub(pick(&before));
        let disk_bytes = if pattern.write { moved(|r| r.written) } else { moved(|r| r.read) };
        let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        Ok(Figure { bytes, operations, seconds, disk_bytes, cpu_seconds })
    }

    fn fio_args(
        &self,
        pattern: Pattern,
        file: &std::path::Path,
        seconds: Option<u64>,
    ) -> Result<Vec<String>> {
        let direction = match (pattern.write, pattern.random) {
            (false, false) => "read",
            (false, true) => "randread",
            (true, false) => "write",
            (true, true) => "randwrite",
        };
        let file = file.to_str().context("path that is not UTF-8")?;
        let mut args = vec![
            "--name=perf".to_owned(),
            format!("--filename={file}"),
            format!("--rw={direction}"),
            format!("--bs={}", pattern.block),
            format!("--size={}", self.size),
            "--fallocate=none".into(),
            "--norandommap".into(),
            "--randrepeat=0".into(),
            "--output-format=json".into(),
        ];
        match pattern.stream {
            true => args.extend(["--ioengine=psync".into(), "--direct=0".into()]),
            false => args.extend([
                "--ioengine=io_uring".into(),
                "--direct=1".into(),
                format!("--iodepth={}", pattern.depth),
            ]),
        }
        match pattern.sync {
            Sync::None => {}
            Sync::DataEvery16 => args.push("--fdatasync=16".into()),
            Sync::Each => args.push("--sync=dsync".into()),
        }
        if let Some(seconds) = seconds {
            args.extend(["--time_based".into(), format!("--runtime={seconds}")]);
        }
        Ok(args)
    }

    fn fio(&self, pattern: Pattern, file: PathBuf) -> Result<(u64, u64, f64)> {
        let report = run_fio(&self.fio_args(pattern, &file, Some(self.seconds))?)?;
        let part = &report["jobs"][0][if pattern.write { "write" } else { "read" }];
        let number = |field: &str| part[field].as_u64().with_context(|| format!("{field} in fio's report"));
        Ok((number("io_bytes")?, number("total_ios")?, number("runtime")? as f64 / 1000.0))
    }

    fn native(&self, pattern: Pattern) -> Result<(u64, u64, f64)> {
        let kind = if pattern.write { "write" } else { "read" };
        let file = if pattern.write && !pattern.random { WRITE } else { READ };
        let (block, depth) = (pattern.block.to_string(), pattern.depth.to_string());
        let (size, seconds) = (self.size.to_string(), self.seconds.to_string());
        let mut args = vec!["bench", kind, "--file", file, "--block", &block, "--depth", &depth];
        args.extend(["--size", &size, "--seconds", &seconds]);
        if pattern.random {
            args.push("--random");
        }
        let printed = self.cluster.ember_ok(&args)?;
        let report: Value = serde_json::from_str(printed.trim()).context("what `ember bench` prints")?;
        let number = |field: &str| report[field].as_u64().with_context(|| field.to_owned());
        let seconds = report["seconds"].as_f64().context("seconds")?;
        Ok((number("bytes")?, number("operations")?, seconds))
    }
}

pub(super) fn run_fio(args: &[String]) -> Result<Value> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let text = run_program("fio", &args)?;
    // Notes may stand before the report.
    let json = text.find('{').map_or("", |at| &text[at..]);
    serde_json::from_str(json).with_context(|| format!("fio's report: {text}"))
}
