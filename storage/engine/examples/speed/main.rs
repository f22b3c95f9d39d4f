//! `cargo run --release -p ember-engine --example speed -- --dir D --row ROW [...]`: one engine in one lane on a
//! real disk, without network or replicas. `cargo xtask perf engine` runs it beside fio.
//!
//! It opens the target in `D`, says `ready` and waits for a line; then it works for the given time, prints a line
//! of JSON and waits for the end of its input, so that whoever started it can read counters in between.
#![allow(missing_docs)]

mod rows;

use ember_engine::{Counters, Engine, EngineConfig, Identity};
use ember_rt::Rt;
use ember_rt::disk::DiskQueue;
use ember_rt::sync::oneshot;
use ember_rt_uring::{Options, run_reactor};
use ember_types::{ClusterId, Generation, TargetId};
use rows::{Row, Work};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TARGET: &str = "target";
const IDENTITY: Identity =
    Identity { cluster: ClusterId([7; 16]), target: TargetId(1), generation: Generation(1) };

pub(crate) type Failure = Box<dyn std::error::Error>;

struct Args {
    dir: PathBuf,
    row: Row,
    seconds: u64,
    depth: u32,
    /// Chunks of 1 MiB of the data set.
    chunks: u32,
    config: EngineConfig,
}

fn args() -> Result<Args, Failure> {
    let mut args = Args {
        dir: PathBuf::new(),
        row: Row::Fill,
        seconds: 10,
        depth: 16,
        chunks: 4096,
        config: EngineConfig::default(),
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let value = given.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--dir" => args.dir = value.into(),
            "--row" => args.row = Row::named(&value).ok_or_else(|| format!("no row {value}"))?,
            "--seconds" => args.seconds = value.parse()?,
            "--depth" => args.depth = value.parse::<u32>()?.max(1),
            "--mib" => args.chunks = value.parse::<u32>()?.max(1),
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    if args.row == Row::ColdRead {
        args.config.checksum_cache_bytes = 0;
    }
    Ok(args)
}

/// Processor time of this process and its threads so far, in ticks.
fn cpu_ticks() -> Result<u64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Ok(field(11) + field(12))
}

fn wait_for_line() -> Result<(), Failure> {
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

async fn open(rt: &Rt, args: &Args) -> Result<Engine, Failure> {
    let queue = DiskQueue::start(rt, rt.disks().open(&args.dir)?, 1024);
    if Engine::exists(&queue, TARGET)? {
        let expected = (IDENTITY.cluster, IDENTITY.target);
        return Ok(Engine::open(rt, &queue, TARGET, expected, args.config).await?.0);
    }
    Ok(Engine::create(rt, &queue, TARGET, &IDENTITY, args.config).await?)
}

async fn run(rt: Rt, args: Args) -> Result<(), Failure> {
    let engine = open(&rt, &args).await?;
    let work = Rc::new(Work::new(rt.clone(), engine.clone(), args.row, args.chunks, args.depth));
    if args.row == Row::Fill {
        work.fill().await?;
        engine.close().await?;
        return Ok(());
    }
    work.prepare().await?;
    println!("ready");
    wait_for_line()?;
    let (ticks, before) = (cpu_ticks()?, engine.counters());
    let begin = rt.now();
    let until = begin + std::time::Duration::from_secs(args.seconds);
    let mut answers = Vec::new();
    for worker in 0..args.depth {
        let (answer, ended) = oneshot::channel();
        let work = work.clone();
        rt.spawn("speed", async move {
            let _ = answer.send(work.work(worker, until).await.map_err(|error| error.to_string()));
        });
        answers.push(ended);
    }
    let (mut operations, mut bytes) = (0, 0);
    for ended in answers {
        let (more, moved) = ended.await??;
        operations += more;
        bytes += moved;
    }
    let seconds = rt.now().since(begin).as_secs_f64();
    report(operations, bytes, seconds, cpu_ticks()? - ticks, before, engine.counters());
    wait_for_line()?;
    engine.flush().await?;
    Ok(())
}

fn report(operations: u64, bytes: u64, seconds: f64, cpu_ticks: u64, before: Counters, after: Counters) {
    let d = |pick: fn(&Counters) -> u64| pick(&after) - pick(&before);
    println!(
        "{{\"operations\":{operations},\"bytes\":{bytes},\"seconds\":{seconds},\"cpu_ticks\":{cpu_ticks},\
         \"flushes\":{},\"batches\":{},\"log_bytes\":{},\"data_bytes\":{},\"read_bytes\":{},\"merged_bytes\":{},\
         \"checkpoints\":{}}}",
        d(|c| c.flushes),
        d(|c| c.batches),
        d(|c| c.log_bytes),
        d(|c| c.data_bytes),
        d(|c| c.read_bytes),
        d(|c| c.merged_bytes),
        d(|c| c.checkpoints),
    );
}

fn main() -> ExitCode {
    let ended = args().and_then(|args| run_reactor(&Options::default(), |rt| run(rt, args))?);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("speed: {error}");
            ExitCode::FAILURE
        }
    }
}
