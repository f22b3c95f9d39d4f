//! What the machine counts: bytes of a disk, processor time; and what it is.

use anyhow::{Context, Result};
use ember_cluster_tests::run as run_program;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a sector in `/proc/diskstats`, whatever the disk's are.
const SECTOR: u64 = 512;
/// The column of `/proc/diskstats` that counts flushes.
const FLUSHES: usize = 18;

/// Reads the counters of one disk.
pub(super) struct Meter {
    major: u32,
    minor: u32,
    ticks_per_s: f64,
}

/// Counters at one moment.
pub(super) struct Reading {
    /// Bytes read from the disk since boot.
    pub(super) read: u64,
    /// Bytes written to it since boot.
    pub(super) written: u64,
    /// Flushes that it has done since boot; 0 if the kernel doesn't count them.
    pub(super) flushes: u64,
    /// Processor time of all programs and the kernel since boot.
    pub(super) cpu_seconds: f64,
}

impl Meter {
    /// The disk that a folder lies on.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let device = std::fs::metadata(folder)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let ticks_per_s = run_program("getconf", &["CLK_TCK"])?.trim().parse().context("CLK_TCK")?;
        let meter = Self { major, minor, ticks_per_s };
        meter.read().context("choose a --dir on a local disk")?;
        Ok(meter)
    }

    pub(super) fn ticks_per_s(&self) -> f64 {
        self.ticks_per_s
    }

    pub(super) fn read(&self) -> Result<Reading> {
        let text = std::fs::read_to_string("/proc/diskstats")?;
        let (major, minor) = (self.major.to_string(), self.minor.to_string());
        let row = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = row.into_iter().find(|row| row.len() > 9 && row[0] == major && row[1] == minor);
        let row = row.with_context(|| format!("/proc/diskstats has no device {major}:{minor}"))?;
        let sectors = |column: usize| row[column].parse::<u64>().context("/proc/diskstats");
        Ok(Reading {
            read: sectors(5)? * SECTOR,
            written: sectors(9)? * SECTOR,
            flushes: row.get(FLUSHES).and_then(|count| count.parse().ok()).unwrap_or(0),
            cpu_seconds: busy_ticks(&std::fs::read_to_string("/proc/stat")?)? as f64 / self.ticks_per_s,
        })
    }
}

/// All but idle, waiting for I/O, stolen and guests' (which user has already).
fn busy_ticks(stat: &str) -> Result<u64> {
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let columns: Vec<u64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    anyhow::ensure!(columns.len() >= 7, "/proc/stat: {line}");
    Ok(columns[0] + columns[1] + columns[2] + columns[5] + columns[6])
}

/// Processor, memory, kernel, file system; no names of hosts or folders.
pub(super) fn describe(folder: &Path) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map_or("unknown".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let processor = field(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let gib = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let release = read("/proc/sys/kernel/osrelease");
    let kernel = release.split('-').next().unwrap_or_default().trim();
    let kind = folder.to_str().and_then(|path| run_program("findmnt", &["-no", "FSTYPE", "-T", path]).ok());
    let kind = kind.unwrap_or_default();
    format!(
        "{cores} cores ({processor}), {gib} GiB of memory, Linux {kernel}, {} on a virtual or local disk",
        kind.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_not_work() {
        assert_eq!(busy_ticks("cpu  10 1 5 1000 200 2 3 7 0 0\ncpu0 1").unwrap(), 21);
        assert!(busy_ticks("").is_err());
    }
}
