//! `cargo run --release -p ember-engine --example recovery -- [--chunks N] [--log-mib N] [--dir D]`: makes a
//! target that knows N chunks of 1 MiB without having their data, behind a log as long as it may get, opens it
//! in a process of its own, and writes a checkpoint meanwhile it answers. Prints seconds, bytes of memory per
//! chunk and the longest time that the reactor was kept from other work; exit code 1 beyond 10 s or 200 bytes
//! per chunk. Needs about 60 bytes of disk per chunk in D, a directory that it makes and removes.
#![allow(missing_docs)]
#![expect(clippy::disallowed_methods, reason = "a tool on the developer's machine, outside the seam")]

#[path = "recovery/disk.rs"]
mod disk;

use disk::{FsDisk, Reactor};
use ember_engine::synthetic::{self, Size};
use ember_engine::{Engine, EngineConfig, Identity};
use ember_rt::disk::DiskQueue;
use ember_types::{ClusterId, Generation, TargetId};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The goals.
const SECONDS: f64 = 10.0;
const BYTES_PER_CHUNK: f64 = 200.0;

const IDENTITY: Identity =
    Identity { cluster: ClusterId([1; 16]), target: TargetId(7), generation: Generation(1) };
const TARGET: &str = "target";

struct Args {
    chunks: u64,
    log_mib: u64,
    dir: PathBuf,
    opens: bool,
}

fn args() -> Result<Args, String> {
    let dir = std::env::temp_dir().join(format!("ember-recovery-{}", std::process::id()));
    let mut args = Args { chunks: 10_000_000, log_mib: 64, dir, opens: false };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        if name == "--open" {
            args.opens = true;
            continue;
        }
        let value = given.next().ok_or(format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|error| format!("{name} {value}: {error}"));
        match name.as_str() {
            "--chunks" => args.chunks = number()?.max(1),
            "--log-mib" => args.log_mib = number()?,
            "--dir" => args.dir = PathBuf::from(&value),
            _ => return Err(format!("unknown argument {name}")),
        }
    }
    Ok(args)
}

/// A line of this process' status, in bytes.
fn memory(line: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|l| l.strip_prefix(line));
    let kib =
        found.and_then(|rest| rest.trim_start_matches(':').trim().split(' ').next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) * 1024.0
}

/// Seconds that this thread was on a CPU.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e9
}

/// Opens the target and prints what that took; `false` if a goal is missed.
fn open(args: &Args) -> Result<bool, String> {
    let reactor = Reactor::new();
    let failed = |error: ember_engine::EngineError| error.to_string();
    let disk = FsDisk::new(&args.dir);
    let io = disk.time();
    let queue = DiskQueue::start(reactor.rt(), Box::new(disk), 64);
    let before = memory("VmRSS");
    let (begin, busy) = (Instant::now(), cpu());
    let expected = (IDENTITY.cluster, IDENTITY.target);
    let opened = reactor.run(Engine::open(reactor.rt(), &queue, TARGET, expected, EngineConfig::default()));
    let (engine, recovery) = opened.map_err(failed)?;
    let seconds = begin.elapsed().as_secs_f64();
    let per_chunk = |bytes: f64| (bytes - before) / args.chunks as f64;
    let (now, peak) = (per_chunk(memory("VmRSS")), per_chunk(memory("VmHWM")));
    println!(
        "opened {} chunks in {seconds:.2} s ({:.2} s in reads and writes, {:.2} s of CPU), {} frames of the log",
        engine.len(),
        io.get().as_secs_f64(),
        cpu() - busy,
        recovery.frames
    );
    println!("memory per chunk: {now:.0} bytes, at most {peak:.0} bytes on the way");
    let pages = engine.counters().sum_pages_written;
    println!("checksum pages written by the first checkpoint: {pages}");
    drop(reactor.turns());
    let begin = Instant::now();
    reactor.run(engine.checkpoint()).map_err(failed)?;
    let turns = reactor.turns();
    let of = |share: usize| turns[turns.len().saturating_sub(1 + turns.len() / share)].as_secs_f64() * 1e3;
    println!(
        "another checkpoint: {:.2} s; the reactor was kept from other work for {:.2} ms at most, in 999 of 1000 \
         turns for less than {:.2} ms",
        begin.elapsed().as_secs_f64(),
        of(usize::MAX),
        of(1000)
    );
    let whole = engine.len() as u64 == args.chunks && recovery.dropped.is_empty();
    Ok(whole && seconds <= SECONDS && now.max(peak) <= BYTES_PER_CHUNK)
}

fn make(args: &Args) -> Result<(), String> {
    std::fs::create_dir_all(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let reactor = Reactor::new();
    let queue = DiskQueue::start(reactor.rt(), Box::new(FsDisk::new(&args.dir)), 64);
    let size = Size { chunks: args.chunks, log_bytes: args.log_mib << 20 };
    let made = reactor.run(synthetic::create(reactor.rt(), &queue, TARGET, &IDENTITY, size));
    made.map_err(|error| error.to_string())
}

/// Makes the target and opens it in another process, whose memory holds nothing else.
fn measure(args: &Args) -> Result<bool, String> {
    make(args)?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let chunks = args.chunks.to_string();
    let mut command = Command::new(program);
    command.arg("--open").args(["--chunks", &chunks, "--dir"]).arg(&args.dir);
    let ended = command.status().map_err(|error| error.to_string())?;
    Ok(ended.success())
}

fn main() -> ExitCode {
    let done = args().and_then(|args| {
        if args.opens {
            return open(&args);
        }
        println!("{} chunks, {} MiB of log", args.chunks, args.log_mib);
        let measured = measure(&args);
        let removed = std::fs::remove_dir_all(&args.dir).map_err(|error| error.to_string());
        measured.and_then(|good| removed.map(|()| good))
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("goal missed: {SECONDS} s, {BYTES_PER_CHUNK} bytes per chunk");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("{error}");
            ExitCode::from(2)
        }
    }
}
