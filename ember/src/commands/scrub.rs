//! `ember target scrub`: has targets read and checked at once.

use crate::cluster::Cluster;
use crate::commands::status::bytes;
use crate::daemons::admin_client::AdminClient;
use crate::paths::DataDir;
use crate::report::{line, progress, progress_done};
use crate::usage::{self, Failure};
use anyhow::{Context, Result};
use ember_rt::{Addr, Rt};
use ember_types::{ChainVersion, Status, TargetId};
use ember_wire::admin::{ClusterStatus, TargetStatus};
use ember_wire::method;
use ember_wire::mgmtd::ScrubProgress;
use ember_wire::storage::{Address, ScrubRequest, ScrubResponse};
use serde::Serialize;
use std::time::Duration;

/// Limit of one request.
const LIMIT: Duration = Duration::from_secs(10);
/// How often progress is asked for.
const POLL: Duration = Duration::from_millis(200);

/// One target whose scrub was ordered.
struct Ordered {
    target: TargetId,
    addr: Addr,
    to: Address,
    /// The round to wait for; `None` if it could not be begun.
    round: Option<u64>,
    progress: ScrubProgress,
}

impl Ordered {
    fn is_done(&self) -> bool {
        self.round.is_none_or(|round| self.progress.rounds >= round)
    }
}

/// Orders a round on one target, or on all. With `wait`, exit code 0 if all was found sound or repaired.
pub(crate) fn run(dir: &DataDir, target: Option<u64>, wait: bool) -> Result<u8> {
    let cluster = Cluster::require(dir)?;
    let dir = dir.clone();
    let options = ember_rt_uring::Options::default();
    let ordered = ember_rt_uring::run_reactor(&options, |rt| async move {
        let client = AdminClient::new(&rt, &dir, &cluster)?;
        let status = client.status(LIMIT).await?;
        let wanted = |t: &&TargetStatus| target.is_none_or(|target| t.id == TargetId(target));
        let mut ordered = Vec::new();
        for row in status.targets.iter().filter(wanted) {
            ordered.push(order(&client, &status, row).await?);
        }
        if wait {
            watch(&rt, &client, &mut ordered).await?;
        }
        anyhow::Ok(ordered)
    })??;
    progress_done();
    if let (true, Some(target)) = (ordered.is_empty(), target) {
        return Err(Failure::refused(format!("there is no target {target}: see `ember status`")));
    }
    let mut code = usage::OK;
    for one in &ordered {
        let (text, sound) = verdict(one, wait);
        line(&text);
        if !sound {
            code = usage::WARN;
        }
    }
    Ok(code)
}

async fn order(client: &AdminClient, status: &ClusterStatus, row: &TargetStatus) -> Result<Ordered> {
    let node = status.nodes.iter().find(|n| n.id == row.node).context("node of a target")?;
    let addr: Addr = node.addresses.iter().find_map(|addr| addr.parse().ok()).context("address of a node")?;
    let chain = status.chains.iter().find(|chain| chain.member(row.id).is_some());
    let chain = chain.with_context(|| format!("target {} is in no chain", row.id))?.id;
    let to = Address { chain, chain_version: ChainVersion(0), target: row.id, generation: row.generation };
    let mut ordered = Ordered { target: row.id, addr, to, round: None, progress: ScrubProgress::default() };
    // A node that doesn't answer is no reason to leave the others alone.
    if let Ok(answer) = ask(client, &ordered, true).await
        && answer.status == Status::Ok
    {
        ordered.round = Some(answer.round);
        ordered.progress = answer.progress;
    }
    Ok(ordered)
}

async fn ask(client: &AdminClient, one: &Ordered, start: bool) -> Result<ScrubResponse> {
    let request = ScrubRequest { to: one.to, start };
    Ok(client.ask::<method::ScrubTarget>(&one.addr, &request, LIMIT).await?.0)
}

async fn watch(rt: &Rt, client: &AdminClient, ordered: &mut [Ordered]) -> Result<()> {
    while ordered.iter().any(|one| !one.is_done()) {
        rt.sleep(POLL).await;
        for one in ordered.iter_mut().filter(|one| !one.is_done()) {
            match ask(client, one, false).await {
                Ok(answer) if answer.status == Status::Ok => {
                    // A target that was opened anew has forgotten the order.
                    let forgotten = answer.progress.rounds < one.progress.rounds
                        || !answer.progress.running && Some(answer.progress.rounds) < one.round;
                    one.progress = answer.progress;
                    if forgotten {
                        one.round = None;
                    }
                }
                _ => one.round = None,
            }
        }
        let done: u64 = ordered.iter().map(|one| done_chunks(&one.progress, one.is_done())).sum();
        let total: u64 = ordered.iter().map(|one| total_chunks(&one.progress, one.is_done())).sum();
        let read: u64 = ordered.iter().map(|one| one.progress.bytes_done.max(one.progress.last_bytes)).sum();
        progress(&format!("{done} of {total} chunks, {}", bytes(read)));
    }
    Ok(())
}

fn done_chunks(progress: &ScrubProgress, done: bool) -> u64 {
    if done { progress.last_chunks } else { progress.chunks_done }
}

fn total_chunks(progress: &ScrubProgress, done: bool) -> u64 {
    if done { progress.last_chunks } else { progress.chunks_total }
}

/// A line about a target, and whether all is well as far as known.
fn verdict(one: &Ordered, wait: bool) -> (String, bool) {
    let ScrubProgress { last_chunks, last_bytes, last_found, last_repaired, .. } = one.progress;
    let target = one.target;
    if one.round.is_none() {
        return (format!("target {target}: not scrubbed: it is not in service"), false);
    }
    if !wait {
        return (format!("target {target}: a scrub has begun; `ember status` shows how far it is"), true);
    }
    let read = format!("target {target}: {last_chunks} chunks, {} read", bytes(last_bytes));
    if last_found == 0 {
        return (format!("{read}, nothing damaged"), true);
    }
    if last_found == last_repaired {
        return (format!("{read}, {last_found} damaged, all of them repaired"), true);
    }
    (format!("{read}, {last_found} damaged, only {last_repaired} repaired: no replica has the rest"), false)
}

/// The scrub of a target, as `ember status` shows it.
#[derive(Serialize)]
pub(crate) struct Scrubbed {
    running: bool,
    /// Of the round that is on its way.
    percent: u64,
    chunks_done: u64,
    chunks_total: u64,
    bytes_done: u64,
    last: Option<LastRound>,
    /// Damaged chunks and files found by scrubs since the target was opened.
    found: u64,
    /// Chunks repaired since the target was opened, whoever noticed.
    repaired: u64,
    /// Slots whose bytes were bad: not used again before a restart.
    quarantined_slots: u64,
}

/// The last round that was finished.
#[derive(Serialize)]
struct LastRound {
    ago_s: u64,
    chunks: u64,
    bytes: u64,
    found: u64,
    repaired: u64,
}

impl Scrubbed {
    pub(crate) fn new(progress: &ScrubProgress, now_ms: u64) -> Self {
        let ScrubProgress { chunks_done, chunks_total, .. } = *progress;
        Self {
            running: progress.running,
            percent: (chunks_done * 100).checked_div(chunks_total).unwrap_or(0),
            chunks_done,
            chunks_total,
            bytes_done: progress.bytes_done,
            last: (progress.finished_ms > 0).then(|| LastRound {
                ago_s: now_ms.saturating_sub(progress.finished_ms) / 1000,
                chunks: progress.last_chunks,
                bytes: progress.last_bytes,
                found: progress.last_found,
                repaired: progress.last_repaired,
            }),
            found: progress.found,
            repaired: progress.repaired,
            quarantined_slots: progress.quarantined,
        }
    }

    /// For the table.
    pub(crate) fn cell(&self) -> String {
        let mut parts = Vec::new();
        if self.running {
            parts.push(format!("{} %", self.percent));
        }
        if let Some(last) = &self.last {
            let ago = match last.ago_s {
                s @ ..120 => format!("{s} s"),
                s @ ..7200 => format!("{} min", s / 60),
                s @ ..172_800 => format!("{} h", s / 3600),
                s => format!("{} days", s / 86_400),
            };
            parts.push(format!("done {ago} ago"));
        }
        if self.found > 0 || self.repaired > 0 {
            parts.push(format!("{} found, {} repaired", self.found, self.repaired));
        }
        if self.quarantined_slots > 0 {
            parts.push(format!("{} bad slots", self.quarantined_slots));
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrub_is_told_in_a_few_words() {
        let mut progress =
            ScrubProgress { running: true, chunks_done: 3, chunks_total: 8, ..ScrubProgress::default() };
        assert_eq!(Scrubbed::new(&progress, 9_000).cell(), "37 %");
        progress = ScrubProgress {
            finished_ms: 1,
            found: 2,
            repaired: 5,
            quarantined: 4,
            ..ScrubProgress::default()
        };
        let text = Scrubbed::new(&progress, 7_300_000).cell();
        assert_eq!(text, "done 2 h ago, 2 found, 5 repaired, 4 bad slots");
    }

    #[test]
    fn what_is_not_repaired_or_not_scrubbed_is_not_well() {
        let addr: Addr = "127.0.0.1:1".parse().unwrap();
        let to = Address {
            chain: ember_types::ChainId(1),
            chain_version: ChainVersion(0),
            target: TargetId(7),
            generation: ember_types::Generation(1),
        };
        let mut one =
            Ordered { target: TargetId(7), addr, to, round: Some(1), progress: ScrubProgress::default() };
        (one.progress.rounds, one.progress.last_found, one.progress.last_repaired) = (1, 2, 2);
        assert!(one.is_done() && verdict(&one, true).1);
        one.progress.last_repaired = 1;
        assert!(!verdict(&one, true).1);
        one.round = None;
        assert!(one.is_done() && !verdict(&one, true).1);
    }
}
