//! `ember-train rank`: a process of a job, started by `ember-train run`.
//!
//! Its first line of input is what to do ([`Start`]); it answers with the address where it listens, reads those of all
//! ranks, and rank 0 prints a line for each [`Report`](crate::job::Report). When its input ends, its parent is gone,
//! and it ends too.

use crate::job::Start;
use crate::model::stage::Tensor;
use crate::worker::Worker;
use anyhow::{Context, Result};
use ember_dualpipe::{Mesh, TcpTransport};
use std::io::{BufRead, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Exit code of a rank whose parent is gone.
const ORPHANED: i32 = 1;

fn line<T: serde::de::DeserializeOwned>() -> Result<T> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    serde_json::from_str(&line).context("a rank is started by `ember-train run` and hears from it")
}

fn print(what: &impl serde::Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(what)?)?;
    Ok(out.flush()?)
}

pub(crate) fn run() -> Result<()> {
    let start: Start = line()?;
    train(&start).with_context(|| format!("rank {}", start.rank))
}

fn train(start: &Start) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a port of this machine")?;
    print(&listener.local_addr()?)?;
    let addresses: Vec<SocketAddr> = line()?;
    std::thread::Builder::new().name("parent".into()).spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        std::process::exit(ORPHANED);
    })?;
    let (settings, ranks) = (&start.settings, &start.settings.ranks);
    let limit = Duration::from_secs(settings.limit);
    let mesh = Mesh { rank: start.rank, addresses, job: start.job, limit };
    let transport = TcpTransport::<Tensor>::join(&mesh, &listener)?;
    let pipelines = [ranks.schedule(ranks.chunks, false)?, ranks.schedule(settings.evaluate, true)?];
    let mapping = ranks.mapping(start.rank % ranks.expert);
    let mut worker = Worker::join(start, transport, &pipelines, &mapping)?;
    let mut report = |what| if start.rank == 0 { print(&what) } else { Ok(()) };
    worker.run(&mut report)
}
