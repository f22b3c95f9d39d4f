//! The table, and the page that keeps it.

use super::{Outcome, P99_MAX, ResyncArgs, SPEED_MIN};
use crate::perf::{FROM_DISK_MIN, machine};
use crate::process::root;
use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::Path;

/// Goals and what was measured, as Markdown.
pub(super) fn table(outcome: &Outcome, args: &ResyncArgs) -> String {
    let met = |met: bool| if met { "met" } else { "MISSED" };
    let (fio, own) = (&outcome.fio, &outcome.resync);
    let void = fio.is_void() || own.is_void();
    let speed = if void { "void".to_owned() } else { format!("{:.2}", outcome.speed()) };
    let mut text = String::from("| what | yardstick | it | ratio | goal | |\n|---|---|---|---|---|---|\n");
    let _ = writeln!(
        text,
        "| resync of {} GiB, idle | fio copies: {:.0} MiB/s | {:.0} MiB/s | {speed} | ≥ {SPEED_MIN} | {} |",
        args.gib,
        fio.mib_per_s(),
        own.mib_per_s(),
        met(!void && outcome.speed() >= SPEED_MIN)
    );
    let _ = writeln!(
        text,
        "| 99th percentile of reads ({} bytes, {} at once) beside a resync | without one: {:.0} µs | {:.0} µs \
         | {:.2} | ≤ {P99_MAX} | {} |",
        args.block,
        args.depth,
        outcome.quiet.p99_us,
        outcome.beside.p99_us,
        outcome.slowdown(),
        met(outcome.slowdown() <= P99_MAX)
    );
    text.push_str(
        "\n| by | MiB/s | CPU s/GiB | bytes read from the disk per byte | written per byte |\n\
         |---|---|---|---|---|\n",
    );
    for (by, copied) in [("fio", fio), ("resync", own)] {
        let share = |bytes: u64| bytes as f64 / copied.bytes.max(1) as f64;
        let _ = writeln!(
            text,
            "| {by} | {:.0} | {:.2} | {:.2} | {:.2} |",
            copied.mib_per_s(),
            copied.cpu_per_gib(),
            share(copied.disk_read),
            share(copied.disk_written)
        );
    }
    text.push_str(
        "\n| reader | reads/s | median µs | 99th percentile µs | resync MiB/s |\n|---|---|---|---|---|\n",
    );
    for (by, reads) in [("alone", &outcome.quiet), ("beside a resync", &outcome.beside)] {
        let _ = writeln!(
            text,
            "| {by} | {:.0} | {:.0} | {:.0} | {:.0} |",
            reads.per_second, reads.median_us, reads.p99_us, reads.resync_mib_per_s
        );
    }
    text
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// Writes `docs/performance/resync.md`.
pub(super) fn write(table: &str, args: &ResyncArgs, folder: &Path) -> Result<()> {
    let path = root().join("docs/performance/resync.md");
    let text = format!(
        "# Speed of a resync\n\n\
         Written by `cargo xtask perf resync`; figures of other machines and days differ, ratios less so.\n\n\
         - Machine: {}.\n\
         - Two storage processes, two replicas of every chunk, 1 MiB chunks, both on one disk. The second process\n  \
         is stopped, its targets are emptied (`ember target replace`), and it is started again: everything is read\n  \
         from the first and written to the second. The time is that from the first target that begins to sync\n  \
         until all serve.\n\
         - The yardstick: fio (io_uring, O_DIRECT, 1 MiB, depth 16) reads a data file of the first process and\n  \
         writes a new file with `--fdatasync=16`, both at once, until both are through.\n\
         - Medians of {} runs, fio and the resync in turn, caches dropped before each. Void if less than\n  \
         {FROM_DISK_MIN} of the bytes were read from and written to the disk (`/proc/diskstats`).\n\
         - The reader: `ember bench read`, {} bytes at random places, {} at once, {} runs of {} s without and as\n  \
         many beside the resync; medians.\n\
         - CPU is that of the whole machine: daemons, reader, kernel, and what else runs on it (load average at the\n  \
         end: {}).\n\n\
         {table}",
        machine::describe(folder),
        args.runs,
        args.block,
        args.depth,
        args.runs,
        args.seconds,
        load(),
    );
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("written to docs/performance/resync.md");
    Ok(())
}
