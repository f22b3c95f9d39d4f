//! `ember target …`.

use crate::cluster::Cluster;
use crate::daemons::admin_client::AdminClient;
use crate::paths::{Daemon, DataDir};
use crate::process;
use crate::report::{line, progress, progress_done};
use crate::usage::{self, Failure};
use anyhow::{Context, Result};
use ember_rt::disk::DiskQueue;
use ember_rt::{Addr, Rt, SharedBuf};
use ember_types::{Chain, ChainVersion, ChunkId, ChunkVersion, Generation, PublicState, Status, TargetId};
use ember_wire::admin::ClusterStatus;
use ember_wire::method;
use ember_wire::mgmtd::ReplaceTargetRequest;
use ember_wire::storage::{Address, ChunkSummary, ListRequest, ReadReplicaRequest};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Limit of one request.
const LIMIT: Duration = Duration::from_secs(30);
/// Chunks compared with one request a replica.
const PAGE: u32 = 1024;
/// How often a chunk that is being written is looked at again before it counts as different.
const LOOKS: u32 = 50;
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// One replica of a chain that is compared.
#[derive(Clone)]
struct Replica {
    target: TargetId,
    addr: Addr,
    to: Address,
}

struct Verifier {
    rt: Rt,
    client: AdminClient,
    chunks: u64,
    bytes: u64,
    differences: Vec<String>,
}

/// Compares all replicas of all chains, bytes included.
pub(crate) fn verify_replicas(dir: &DataDir) -> Result<u8> {
    let cluster = Cluster::require(dir)?;
    let dir = dir.clone();
    let options = ember_rt_uring::Options::default();
    let verifier = ember_rt_uring::run_reactor(&options, |rt| async move {
        let client = AdminClient::new(&rt, &dir, &cluster)?;
        let status = client.status(LIMIT).await?;
        let mut verifier = Verifier { rt, client, chunks: 0, bytes: 0, differences: Vec::new() };
        for chain in &status.chains {
            verifier.chain(&status, chain).await?;
        }
        anyhow::Ok(verifier)
    })??;
    progress_done();
    for difference in &verifier.differences {
        line(difference);
    }
    let (chunks, bytes) = (verifier.chunks, verifier.bytes);
    if verifier.differences.is_empty() {
        line(&format!("all replicas are equal: {chunks} chunks, {bytes} bytes in each replica"));
        return Ok(usage::OK);
    }
    line(&format!("{} differences in {chunks} chunks", verifier.differences.len()));
    Ok(usage::WARN)
}

impl Verifier {
    async fn chain(&mut self, status: &ClusterStatus, chain: &Chain) -> Result<()> {
        let replicas = replicas(status, chain)?;
        let missing = chain.targets.iter().filter(|t| t.state != PublicState::Serving);
        for target in missing {
            let text = format!("chain {}: target {} is {:?}", chain.id, target.target, target.state);
            self.differences.push(text);
        }
        let mut after = None;
        loop {
            let mut rows: BTreeMap<ChunkId, Vec<Option<ChunkSummary>>> = BTreeMap::new();
            let (mut last, mut more) = (None, false);
            for (i, replica) in replicas.iter().enumerate() {
                let (page, further) = self.page(replica, after).await?;
                // Beyond the shortest page nothing is known of the others.
                if further {
                    let end = page.last().map(|row| row.chunk);
                    last = match (last, end) {
                        (None, end) => end,
                        (Some(own), Some(end)) => Some(std::cmp::min::<ChunkId>(own, end)),
                        (own, None) => own,
                    };
                }
                more |= further;
                for row in page {
                    let columns = rows.entry(row.chunk).or_insert_with(|| vec![None; replicas.len()]);
                    columns[i] = Some(row);
                }
            }
            for (chunk, row) in rows.range(..).filter(|(chunk, _)| last.is_none_or(|last| **chunk <= last)) {
                self.chunk(chain, &replicas, *chunk, row).await?;
            }
            progress(&format!("chain {}: {} chunks compared", chain.id, self.chunks));
            if !more {
                return Ok(());
            }
            after = last;
        }
    }

    async fn page(&self, replica: &Replica, after: Option<ChunkId>) -> Result<(Vec<ChunkSummary>, bool)> {
        let request = ListRequest { to: replica.to, after, limit: PAGE };
        let (page, _) = self.client.ask::<method::ListChunks>(&replica.addr, &request, LIMIT).await?;
        anyhow::ensure!(page.status == Status::Ok, "target {} answers {}", replica.target, page.status);
        Ok((page.chunks, page.more))
    }

    /// Compares one chunk; while it is being written it is looked at again.
    async fn chunk(
        &mut self,
        chain: &Chain,
        replicas: &[Replica],
        chunk: ChunkId,
        listed: &[Option<ChunkSummary>],
    ) -> Result<()> {
        let mut verdict = compare(listed);
        for _ in 0..LOOKS {
            if verdict.is_none() {
                let mut versions = listed.iter().flatten().map(|row| row.committed);
                let contents = self.contents(replicas, chunk, versions.next_back()).await?;
                verdict = contents.err();
                if verdict.is_none() {
                    break;
                }
            }
            self.rt.sleep(LOOK_PAUSE).await;
            let mut again = Vec::new();
            for replica in replicas {
                again.push(self.single(replica, chunk).await?);
            }
            verdict = compare(&again);
            if verdict.is_none() {
                let version = again.iter().flatten().map(|row| row.committed).next_back();
                verdict = self.contents(replicas, chunk, version).await?.err();
            }
            if verdict.is_none() {
                break;
            }
        }
        self.chunks += 1;
        if let Some(what) = verdict {
            self.differences.push(format!("chain {} chunk {chunk}: {what}", chain.id));
        }
        Ok(())
    }

    async fn single(&self, replica: &Replica, chunk: ChunkId) -> Result<Option<ChunkSummary>> {
        let before = match chunk.index {
            0 => ChunkId::new(ember_types::DataId(chunk.data.0.saturating_sub(1)), u32::MAX),
            index => ChunkId::new(chunk.data, index - 1),
        };
        let request = ListRequest { to: replica.to, after: Some(before), limit: 1 };
        let (page, _) = self.client.ask::<method::ListChunks>(&replica.addr, &request, LIMIT).await?;
        Ok(page.chunks.into_iter().find(|row| row.chunk == chunk))
    }

    /// Reads the chunk from every replica. The inner result says how they differ.
    async fn contents(
        &mut self,
        replicas: &[Replica],
        chunk: ChunkId,
        version: Option<ChunkVersion>,
    ) -> Result<Result<(), String>> {
        let version = version.unwrap_or(ChunkVersion::NONE);
        if version.is_none() {
            return Ok(Ok(()));
        }
        let mut first: Option<SharedBuf> = None;
        for replica in replicas {
            let request = ReadReplicaRequest { to: replica.to, chunk, version };
            let (answer, bytes) =
                self.client.ask::<method::ReadReplica>(&replica.addr, &request, LIMIT).await?;
            match (answer.status, &first) {
                (Status::Ok, None) => first = Some(bytes),
                (Status::Ok, Some(own)) if own[..] == bytes[..] => {}
                (Status::Ok, Some(_)) => {
                    return Ok(Err(format!("target {} holds other bytes", replica.target)));
                }
                (Status::NotFound, None) => first = Some(SharedBuf::default()),
                (Status::NotFound, Some(own)) if own.is_empty() => {}
                (status, _) => return Ok(Err(format!("target {} answers {status}", replica.target))),
            }
        }
        self.bytes += first.map_or(0, |bytes| bytes.len() as u64);
        Ok(Ok(()))
    }
}

/// How the summaries of one chunk differ; `None` if they are equal and nothing is pending.
fn compare(rows: &[Option<ChunkSummary>]) -> Option<String> {
    // A tombstone that one replica has expired already equals nothing at all.
    let live: Vec<Option<&ChunkSummary>> =
        rows.iter().map(|row| row.as_ref().filter(|row| !row.removed || !row.pending.is_none())).collect();
    let first = live.first()?;
    for row in &live {
        match (first, row) {
            (None, None) => {}
            (Some(a), Some(b)) if !a.pending.is_none() || !b.pending.is_none() => {
                return Some("an update is pending".into());
            }
            (Some(a), Some(b)) => {
                let same = (a.committed, a.length, a.checksum) == (b.committed, b.length, b.checksum);
                if !same {
                    return Some(format!("version {:?} and {:?}", a.committed, b.committed));
                }
            }
            _ => return Some("some replicas lack it".into()),
        }
    }
    None
}

fn replicas(status: &ClusterStatus, chain: &Chain) -> Result<Vec<Replica>> {
    let mut replicas = Vec::new();
    for member in chain.serving() {
        let target = status.targets.iter().find(|t| t.id == member.target).context("target of a chain")?;
        let node = status.nodes.iter().find(|n| n.id == target.node).context("node of a target")?;
        let addr = node.addresses.iter().find_map(|addr| addr.parse().ok()).context("address of a node")?;
        let to = Address {
            chain: chain.id,
            chain_version: ChainVersion(0),
            target: member.target,
            generation: member.generation,
        };
        replicas.push(Replica { target: member.target, addr, to });
    }
    Ok(replicas)
}

/// Gives a target a new generation, so that it is filled anew from the other replicas.
pub(crate) fn replace(dir: &DataDir, target: u64) -> Result<u8> {
    let cluster = Cluster::require(dir)?;
    let dir = dir.clone();
    let options = ember_rt_uring::Options::default();
    let answer = ember_rt_uring::run_reactor(&options, |rt| async move {
        let client = AdminClient::new(&rt, &dir, &cluster)?;
        let request = ReplaceTargetRequest { target: TargetId(target) };
        client.mgmtd::<method::ReplaceTarget>(&request, LIMIT).await
    })??;
    if answer.status != Status::Ok {
        return Err(Failure::refused(format!("target {target} is not replaced: {}", answer.text)));
    }
    let Generation(generation) = answer.generation;
    line(&format!("target {target} has generation {generation} now and is filled by the other replicas"));
    Ok(usage::OK)
}

/// Where this machine has a target: its storage node, the disk, and the newest generation's directory there.
fn locate(dir: &DataDir, target: u64) -> Result<(u32, PathBuf, String)> {
    let cluster = Cluster::require(dir)?;
    let mut found = Vec::new();
    for node in 1..=cluster.storage_nodes {
        let disk = dir.storage(node);
        let Ok(entries) = std::fs::read_dir(&disk) else { continue };
        let prefix = format!("t-{target}-g");
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(&prefix) {
                found.push((node, disk.clone(), name));
            }
        }
    }
    // The newest generation is the valid one.
    found.sort_by_key(|(_, _, name)| name.rsplit("-g").next().and_then(|g| g.parse::<u32>().ok()));
    let none = || Failure::refused(format!("no storage node of this machine holds target {target}"));
    found.pop().ok_or_else(none)
}

/// Checks the files of a target whose process is stopped. Exit code 0 if all is well.
pub(crate) fn fsck(dir: &DataDir, target: u64) -> Result<u8> {
    let (node, disk, name) = locate(dir, target)?;
    let daemon = Daemon::Storage(node);
    if process::find(dir, &daemon).is_some_and(process::is_alive) {
        return Err(Failure::refused(format!(
            "target {target} is in use by {}: stop it first",
            daemon.title()
        )));
    }
    let options = ember_rt_uring::Options::default();
    let report = ember_rt_uring::run_reactor(&options, |rt| async move {
        let queue = DiskQueue::start(&rt, rt.disks().open(&disk)?, 32);
        let report = ember_engine::fsck(&queue, &name).await;
        anyhow::Ok(report?)
    })??;
    for problem in &report.problems {
        line(&format!("{}, offset {}: {}", problem.file, problem.offset, problem.what));
    }
    let checked = format!("{} chunks, {} blocks", report.chunks, report.blocks);
    if report.problems.is_empty() {
        line(&format!("target {target} is in order: {checked}"));
        return Ok(usage::OK);
    }
    let count = report.problems.len();
    line(&format!("{count} problems in {checked}; `ember target replace {target}` fills it anew"));
    Ok(usage::WARN)
}

/// Prints where the bytes of a target's chunks lie: file, offset, length, chunk.
pub(crate) fn map(dir: &DataDir, target: u64) -> Result<u8> {
    let (_, disk, name) = locate(dir, target)?;
    let options = ember_rt_uring::Options::default();
    let root = disk.clone();
    let pieces = ember_rt_uring::run_reactor(&options, |rt| async move {
        let queue = DiskQueue::start(&rt, rt.disks().open(&disk)?, 32);
        let pieces = ember_engine::pieces(&queue, &name).await;
        anyhow::Ok(pieces?)
    })??;
    for piece in &pieces {
        let file = root.join(&piece.file);
        line(&format!("{} {} {} {}", file.display(), piece.offset, piece.length, piece.chunk));
    }
    Ok(usage::OK)
}
