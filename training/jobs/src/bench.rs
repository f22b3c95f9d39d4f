//! `ember-train bench`: how fast checkpoints are written, for `cargo xtask perf checkpoint`. One JSON line.

use crate::checkpoint::{self, Shard, State};
use crate::clock::seconds_of;
use crate::data::check_path;
use crate::model::Config;
use crate::model::numbers::Random;
use crate::optimizer::Owned;
use crate::ranks::{Ranks, specs};
use crate::run::say;
use anyhow::{Result, anyhow};
use ember_native::FileSystem;
use std::path::PathBuf;

/// `ember-train bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Data directory of the cluster, as given to `ember up`.
    #[arg(long, value_name = "DIR")]
    cluster: PathBuf,
    /// Directory in EmberFS; checkpoints that are there stay.
    #[arg(long, value_name = "PATH")]
    to: String,
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    ranks: Ranks,
}

/// What is printed.
#[derive(serde::Serialize)]
struct Outcome {
    bytes: u64,
    /// From numbers in memory to a checkpoint that has its name.
    seconds: f64,
}

/// Every rank's parameters, with numbers in them.
fn shards(args: &Args) -> Result<Vec<Shard>> {
    let specs = specs(&args.config);
    let state = State::new(&args.config, &args.ranks);
    let holdings = args.ranks.holdings(&args.config, &specs, &state.places)?;
    let mut shards: Vec<Shard> =
        (0..args.ranks.count()).map(|rank| Shard { rank, owned: Vec::new(), state: None }).collect();
    shards[0].state = Some(state);
    for (spec, holding) in specs.into_iter().zip(holdings) {
        let mut random = Random::named(1, &spec.name);
        let value: Vec<f32> = (0..spec.len()).map(|_| f32::from_bits(random.next() as u32 >> 2)).collect();
        let owned = Owned { first: value.clone(), second: value.clone(), value };
        shards[holding.owner].owned.push((spec, owned));
    }
    Ok(shards)
}

pub(crate) fn run(args: &Args) -> Result<()> {
    check_path("--to", &args.to)?;
    args.ranks.check(&args.config)?;
    let shards = shards(args)?;
    let numbers = |shard: &Shard| shard.owned.iter().map(|(spec, _)| 3 * spec.len() as u64).sum::<u64>();
    let bytes = shards.iter().map(|shard| 4 * numbers(shard)).sum();
    let connect = |rank| FileSystem::connect(&args.cluster, &format!("ember-train bench {rank}"));
    let clients = (0..shards.len()).map(connect).collect::<Result<Vec<_>, _>>()?;
    clients[0].make_directories(&args.to)?;
    let step = checkpoint::steps(&clients[0], &args.to)?.last().map_or(1, |last| last + 1);
    let (written, seconds) = seconds_of(|| {
        std::thread::scope(|scope| {
            let write = |(shard, fs): (Shard, &FileSystem)| shard.write(fs, &args.to, step);
            let threads: Vec<_> =
                shards.into_iter().zip(&clients).map(|of| scope.spawn(move || write(of))).collect();
            let end = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                thread.join().unwrap_or_else(|_| Err(anyhow!("a rank panicked")))
            };
            threads.into_iter().try_for_each(end)
        })?;
        checkpoint::publish(&clients[0], &args.to, step)
    });
    written?;
    say(&serde_json::to_string(&Outcome { bytes, seconds })?)
}
