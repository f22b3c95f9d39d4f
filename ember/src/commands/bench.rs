//! `ember bench`: the native client on one file, for `cargo xtask perf`. One thread, one JSON line.

use crate::cluster::Cluster;
use crate::daemons::admin_client::client_identity;
use crate::daemons::identity;
use crate::paths::DataDir;
use crate::report::line;
use crate::settings::Settings;
use crate::usage::{self, Failure};
use anyhow::{Context, Result};
use ember_client::mgmtd::{SessionState, keep_session};
use ember_client::{Client, MetaOptions, OpenFile, Shared};
use ember_net::Pool;
use ember_rt::select::join_all;
use ember_rt::{Buf, Rt, SharedBuf, watch};
use ember_rt_uring::{Options as RtOptions, run_reactor};
use ember_types::{ClientId, InodeId, Instant};
use ember_wire::meta::{OpenFlags, Operation};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// Most requests at once.
const DEPTH_MAX: usize = 256;

/// What to do.
#[derive(Clone, clap::Args)]
pub(crate) struct BenchArgs {
    /// `read` or `write`.
    #[arg(value_parser = ["read", "write"])]
    kind: String,
    /// Name of the file in the root directory; it is made by `write`, and read up to its end by `read`.
    #[arg(long)]
    file: String,
    /// Bytes of a request.
    #[arg(long)]
    block: u64,
    /// Requests at once.
    #[arg(long)]
    depth: usize,
    /// Bytes of the file that requests go to.
    #[arg(long)]
    size: u64,
    /// Places at random instead of one after the other, over and over.
    #[arg(long)]
    random: bool,
    /// Ends after so many seconds; without `--random` also after `size` bytes.
    #[arg(long)]
    seconds: u64,
}

/// The line that is printed.
#[derive(Serialize)]
struct Outcome {
    operations: u64,
    bytes: u64,
    seconds: f64,
    /// Latencies of requests.
    median_us: f64,
    p99_us: f64,
    max_us: f64,
}

/// The latency below which a share of the requests stayed, in microseconds.
fn percentile(sorted_ns: &[u64], share: f64) -> f64 {
    let at = ((sorted_ns.len() as f64 * share) as usize).min(sorted_ns.len().saturating_sub(1));
    sorted_ns.get(at).map_or(0.0, |&ns| ns as f64 / 1000.0)
}

/// Runs and prints.
pub(crate) fn run(dir: &DataDir, args: &BenchArgs) -> Result<u8> {
    if args.block == 0 || args.block > args.size || args.depth == 0 || args.depth > DEPTH_MAX {
        return Err(Failure::usage(format!("--block is 1 to --size, --depth 1 to {DEPTH_MAX}")));
    }
    let cluster = Cluster::require(dir)?;
    let settings = Settings::load(dir)?;
    let (dir, args) = (dir.clone(), args.clone());
    let outcome = run_reactor(&RtOptions::default(), |rt| async move {
        let shared = Shared::new(ClientId::from_u128(rt.random_u128()));
        let pool = Pool::new(
            &rt,
            client_identity(&dir, cluster.cluster, shared.id())?,
            ember_net::Options::default(),
        );
        let routing = identity::routing(&rt, &dir, &pool)?;
        routing.ready().await;
        let (stop, stopped) = watch::channel(false);
        let (mgmtd, clock) = (routing.mgmtd().clone(), routing.clock().clone());
        let mut session = keep_session(&rt, mgmtd, shared.id(), "ember bench".into(), clock, stopped);
        while *session.borrow() == SessionState::Opening {
            session.changed().await.ok().context("session with mgmtd")?;
        }
        let client = Client::new(rt.clone(), settings.client, shared, routing, pool);
        rt.spawn("capabilities", client.clone().keep_capabilities());
        let outcome = measure(&rt, &client, &args).await;
        stop.send(true);
        outcome
    })??;
    line(&serde_json::to_string(&outcome)?);
    Ok(usage::OK)
}

async fn measure(rt: &Rt, client: &Client, args: &BenchArgs) -> Result<Outcome> {
    let writes = args.kind == "write";
    let root = MetaOptions::root();
    let flags = OpenFlags { read: !writes, write: writes, truncate: false, execute: false };
    let name = args.file.as_bytes();
    let opened = if writes {
        client.create(InodeId::ROOT, name, 0o644, false, flags, &root).await?
    } else {
        let lookup = Operation::Lookup { parent: InodeId::ROOT, name: name.to_vec() };
        let found = client.meta_entry(lookup, &root).await.with_context(|| args.file.clone())?;
        client.open(found.inode, flags, &root).await?
    };
    let mut data = Buf::zeroed(args.block as usize);
    for part in data.bytes_mut().chunks_mut(8) {
        let number = rt.random_u64().to_le_bytes();
        part.copy_from_slice(&number[..part.len()]);
    }
    let job = Job {
        rt,
        client,
        file: &opened.file,
        args,
        data: data.into(),
        next: Cell::new(0),
        done: Cell::new(0),
        bytes: Cell::new(0),
        latencies: RefCell::default(),
        until: rt.now() + Duration::from_secs(args.seconds),
    };
    let begun = rt.now();
    for worker in join_all((0..args.depth).map(|_| job.worker(writes))).await {
        worker?;
    }
    let seconds = rt.now().since(begun).as_secs_f64();
    client.close(opened.file.handle()).await?;
    let mut latencies = job.latencies.take();
    latencies.sort_unstable();
    Ok(Outcome {
        operations: job.done.get(),
        bytes: job.bytes.get(),
        seconds,
        median_us: percentile(&latencies, 0.5),
        p99_us: percentile(&latencies, 0.99),
        max_us: percentile(&latencies, 1.0),
    })
}

struct Job<'a> {
    rt: &'a Rt,
    client: &'a Client,
    file: &'a OpenFile,
    args: &'a BenchArgs,
    data: SharedBuf,
    next: Cell<u64>,
    done: Cell<u64>,
    bytes: Cell<u64>,
    /// Of each request, in nanoseconds.
    latencies: RefCell<Vec<u64>>,
    until: Instant,
}

impl Job<'_> {
    async fn worker(&self, writes: bool) -> Result<()> {
        let blocks = self.args.size / self.args.block;
        while self.rt.now() < self.until {
            let turn = self.next.replace(self.next.get() + 1);
            let block = if self.args.random { self.rt.random_below(blocks) } else { turn };
            if block >= blocks {
                return Ok(());
            }
            let offset = block * self.args.block;
            let begun = self.rt.now();
            if writes {
                self.client.write(self.file, offset, self.data.clone()).await?;
                self.bytes.set(self.bytes.get() + self.args.block);
            } else {
                let read = self.client.read(self.file, offset, self.args.block).await?;
                let got: usize = read.iter().map(|part| part.len()).sum();
                anyhow::ensure!(
                    got as u64 == self.args.block,
                    "{got} bytes at {offset}: the file is too short"
                );
                self.bytes.set(self.bytes.get() + got as u64);
            }
            self.latencies.borrow_mut().push(self.rt.now().since(begun).as_nanos() as u64);
            self.done.set(self.done.get() + 1);
        }
        Ok(())
    }
}
