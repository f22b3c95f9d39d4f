//! The tables, and the page that keeps them.

use super::sides::{Costs, Figure};
use super::{EngineArgs, Goal, Line, Row};
use crate::perf::{FROM_DISK_MIN, machine};
use crate::process::root;
use anyhow::{Context, Result};
use std::fmt::Write;

/// A row's speed in the unit that fits it.
pub(super) fn speed(row: &Row, figure: &Figure) -> String {
    match row.block {
        0 => format!("{:.0} updates/s", figure.per_second()),
        block if block < 64 << 10 => format!("{:.0} IOPS", figure.per_second()),
        block => format!("{:.0} MiB/s", figure.per_second() * block as f64 / f64::from(1 << 20)),
    }
}

/// The median ratio, and the least and the greatest of a pair.
pub(super) fn ratio(line: &Line) -> String {
    match (line.ratio(), line.ratios.first(), line.ratios.last()) {
        (Some(ratio), Some(least), Some(most)) => format!("{ratio:.2} ({least:.2}–{most:.2})"),
        _ => "–".to_owned(),
    }
}

/// Goals and what was measured, then what an operation costs, as Markdown tables.
pub(super) fn tables(lines: &[Line]) -> String {
    let mut text = String::from(
        "| what | fio | speed of fio | speed of the engine | ratio | goal | |\n|---|---|---|---|---|---|---|\n",
    );
    for line in lines {
        let ratio = if line.is_void() { "void".to_owned() } else { ratio(line) };
        let goal = match line.row.goal {
            Goal::OfFio(least) => format!("≥ {least:.2} of fio"),
            Goal::PerSecond(least) => format!("≥ {least:.0}/s"),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {ratio} | {goal} | {} |",
            line.row.title,
            if line.row.fio.is_empty() { "–".to_owned() } else { format!("`{}`", line.row.fio.join(" ")) },
            line.fio.as_ref().map_or("–".to_owned(), |(fio, _)| speed(&line.row, fio)),
            speed(&line.row, &line.own.0),
            if line.is_met() { "met" } else { "MISSED" },
        );
    }
    text.push_str(
        "\nPer operation:\n\n\
         | what | by | CPU µs, process | CPU µs, machine | system calls | flushes asked for | flushes of the disk \
         | bytes written to the disk | of them log | of them data | bytes read from the disk |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for line in lines {
        if let Some((fio, costs)) = &line.fio {
            cost(&mut text, "fio", line, fio, *costs);
        }
        cost(&mut text, "engine", line, &line.own.0, line.own.1);
    }
    text
}

fn cost(text: &mut String, by: &str, line: &Line, figure: &Figure, costs: Costs) {
    let counted = |name: &str| match by {
        "fio" => "–".to_owned(),
        _ if name == "flushes" => format!("{:.3}", figure.each(figure.counter(name))),
        _ => format!("{:.0}", figure.each(figure.counter(name))),
    };
    let micros = |seconds: f64| seconds * 1e6 / figure.operations.max(1) as f64;
    let _ = writeln!(
        text,
        "| {} | {by} | {:.1} | {:.1} | {} | {} | {:.3} | {:.0} | {} | {} | {:.0} |",
        line.row.title,
        micros(figure.cpu_seconds),
        micros(figure.machine_seconds),
        costs.calls.map_or("–".to_owned(), |calls| format!("{calls:.2}")),
        counted("flushes"),
        figure.each(figure.disk_flushes),
        figure.each(figure.disk_written),
        counted("log_bytes"),
        counted("data_bytes"),
        figure.each(figure.disk_read),
    );
}

/// Writes `docs/performance/engine.md`.
pub(super) fn write(tables: &str, args: &EngineArgs) -> Result<()> {
    let path = root().join("docs/performance/engine.md");
    let folder = args.extent.folder();
    let text = format!(
        "# Speed of the chunk engine\n\n\
         Written by `cargo xtask perf engine`; figures of other machines and days differ, ratios less so.\n\n\
         - Machine: {}.\n\
         - One engine in one lane, without network and replicas (`storage/engine/examples/speed`), beside fio\n  \
         (io_uring, O_DIRECT) on a file of the same file system that is written already, at the same depth.\n\
         - 1 MiB writes: fio has 16 in flight, and up to 16 more that are written but not flushed; the engine has\n  \
         32 unanswered, which are durable when they are.\n\
         - Data set: {} GiB a side in chunks of 1 MiB. Medians of {} runs of {} s, fio and the engine in turn,\n  \
         one or the other first, caches dropped before each. A ratio is that of a pair of runs: their median,\n  \
         the least and the greatest.\n\
         - Every read is compared with its checksums, every payload with those that came with it.\n\
         - Every update is durable when it is answered; then it is committed (logged, not flushed), as in a\n  \
         chain of one replica. fio flushes after 16 writes (`--fdatasync=16`), or each (`--sync=dsync`).\n\
         - Appends: 16 chunks at a time grow to 1 MiB; one that was there is removed first. fio writes a file\n  \
         in order that has its space already, which is easier.\n\
         - CPU of the process is that of the engine, or of fio, with its threads in the kernel; CPU of the\n  \
         machine includes the kernel's workers and whatever else runs. System calls are counted by `perf` in\n  \
         runs of their own. Flushes and bytes of the disk are those of `/proc/diskstats`.\n\
         - A row is void if less than {FROM_DISK_MIN} of its bytes came from or went to the disk.\n\n\
         {tables}",
        machine::describe(&folder),
        args.extent.gib,
        args.extent.runs,
        args.extent.seconds,
    );
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("written to docs/performance/engine.md");
    Ok(())
}
