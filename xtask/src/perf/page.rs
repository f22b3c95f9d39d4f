//! The table, and the page that keeps it.

use super::sides::{Figure, Pattern, Side};
use super::{FROM_DISK_MIN, PerfArgs, machine};
use crate::process::root;
use anyhow::{Context, Result};
use std::fmt::Write;

/// One row: a side beside fio.
#[derive(Clone, Copy)]
pub(super) struct Line {
    pub(super) pattern: Pattern,
    pub(super) side: Side,
    pub(super) fio: Figure,
    pub(super) own: Figure,
}

impl Line {
    pub(super) fn ratio(&self) -> f64 {
        self.own.mib_per_s() / self.fio.mib_per_s().max(1e-9)
    }
    /// Whether a cache answered.
    pub(super) fn is_void(&self) -> bool {
        self.own.disk_share() < FROM_DISK_MIN || self.fio.disk_share() < FROM_DISK_MIN
    }
}

/// All rows as a Markdown table.
pub(super) fn table(lines: &[Line]) -> String {
    let mut text = String::from(
        "| what | by | fio on the disk | it | ratio | CPU s/GiB, fio | CPU s/GiB | CPU µs per request, fio \
         | CPU µs per request | bytes of the disk per byte |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for line in lines {
        let speed = |figure: &Figure| {
            if line.pattern.block < 64 << 10 {
                format!("{:.0} IOPS", figure.operations as f64 / figure.seconds)
            } else {
                format!("{:.0} MiB/s", figure.mib_per_s())
            }
        };
        let ratio = if line.is_void() { "void".to_owned() } else { format!("{:.2}", line.ratio()) };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {ratio} | {:.2} | {:.2} | {:.1} | {:.1} | {:.2} |",
            line.pattern.name,
            line.side.name(),
            speed(&line.fio),
            speed(&line.own),
            line.fio.cpu_per_gib(),
            line.own.cpu_per_gib(),
            line.fio.cpu_us_per_operation(),
            line.own.cpu_us_per_operation(),
            line.own.disk_share(),
        );
    }
    text
}

/// Writes `docs/performance/one-machine.md`.
pub(super) fn write(table: &str, args: &PerfArgs) -> Result<()> {
    let path = root().join("docs/performance/one-machine.md");
    let folder = args.extent.folder();
    let text = format!(
        "# Speed on one machine\n\n\
         Written by `cargo xtask perf`; figures of other machines and days differ, ratios less so.\n\n\
         - Machine: {}.\n\
         - Cluster: {} storage processes, {} replicas of every chunk, all on one disk; the yardstick is fio\n  \
         (io_uring, O_DIRECT) on a file of the same file system.\n\
         - Data set: {} GiB a side. Medians of {} runs of {} s, fio and the others in turn, caches dropped\n  \
         before each.\n\
         - \"mount\" is fio with the same options on a file of the mount. \"native client\" is `ember bench`: one\n  \
         thread; a write is durable on every replica when it is answered.\n\
         - 1 MiB writes: fio and the mount with `--fdatasync=16`. One stream: on the mount `--ioengine=psync\n  \
         --direct=0`, against the same yardstick. 4 KiB overwrites: fio with `--sync=dsync`.\n\
         - CPU is that of the whole machine during the run: client, daemons, kernel.\n\
         - A row is void if less than {FROM_DISK_MIN} of its bytes came from or went to the disk\n  \
         (`/proc/diskstats`).\n\n\
         {table}",
        machine::describe(&folder),
        args.replicas,
        args.replicas,
        args.extent.gib,
        args.extent.runs,
        args.extent.seconds,
    );
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("written to docs/performance/one-machine.md");
    Ok(())
}
