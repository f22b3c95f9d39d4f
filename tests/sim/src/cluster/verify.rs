//! What is looked at from outside: chains while the cluster runs, replicas after it has healed.

use crate::world::World;
use ember_chain::invariants;
use ember_client::mgmtd::RoutingCache;
use ember_net::{CallOptions, Pool};
use ember_rt::{Addr, Rt, SharedBuf};
use ember_types::{Chain, ChainId, ChunkVersion, RoutingInfo, Status, TargetId};
use ember_wire::Rpc;
use ember_wire::method::{ListChunks, ReadReplica};
use ember_wire::storage::{Address, ChunkSummary, ListRequest, ReadReplicaRequest};
use std::collections::BTreeMap;
use std::time::Duration;

/// Bytes that a replica's answer may have.
const EXPECT: usize = 1 << 20;
/// Tries of a request, and how long each may take.
const TRIES: usize = 20;
const LIMIT: Duration = Duration::from_secs(3);

/// Whether every member of every chain serves.
pub fn all_serve(view: &RoutingInfo) -> bool {
    !view.chains.is_empty() && view.chains.values().all(|c| c.serving().count() == c.targets.len())
}

/// The chains of which some member doesn't serve, for people.
pub fn not_serving(view: &RoutingInfo) -> String {
    let partial = |c: &&Chain| c.serving().count() < c.targets.len();
    let member = |t: &ember_types::ChainTarget| {
        let node = view.targets.get(&t.target).map_or(0, |t| t.node.0);
        format!("{}@{node} generation {} {:?}", t.target, t.generation, t.state)
    };
    let row = |c: &Chain| {
        let members: Vec<String> = c.targets.iter().map(member).collect();
        format!("\n  chain {} version {}: {}", c.id, c.version, members.join(", "))
    };
    view.chains.values().filter(partial).map(row).collect()
}

/// Checks every chain that is published, and every step from one to the next.
pub async fn watch_chains(world: World, routing: RoutingCache) {
    let mut last: BTreeMap<ChainId, Chain> = BTreeMap::new();
    let mut changes = routing.watch();
    while changes.changed().await.is_ok() {
        let view = routing.view();
        for (&id, chain) in &view.chains {
            let checked = match last.get(&id) {
                None => invariants::check(chain),
                Some(old) if old == chain => continue,
                // Routing may skip versions; a step is one between neighbours.
                Some(old) if chain.version.0 <= old.version.0 + 1 => invariants::check_step(old, chain),
                Some(_) => invariants::check(chain),
            };
            world.trace().count("chain versions seen", 1);
            if let Err(text) = checked {
                world.fail("chain invariants", &text);
            }
            last.insert(id, chain.clone());
        }
    }
}

/// Reads replicas.
pub struct Inspector {
    /// The seam.
    pub rt: Rt,
    /// Connections.
    pub pool: Pool,
    /// Routing.
    pub routing: RoutingCache,
}

/// What a replica holds of a chunk: its summary and the bytes on its disk.
type Held = (ChunkSummary, Vec<u8>);

impl Inspector {
    async fn ask<R: Rpc>(
        &self,
        target: TargetId,
        request: &R::Request,
    ) -> Result<(R::Response, Vec<u8>), String> {
        let mut last = String::new();
        for _ in 0..TRIES {
            let view = self.routing.view();
            let addresses = view.node_of(target).map(|n| n.addresses.clone()).unwrap_or_default();
            let addr: Result<Addr, _> = addresses.first().map_or("", |a| a).parse();
            if let Ok(addr) = addr {
                let until = self.rt.now() + LIMIT;
                let options = CallOptions { expect: EXPECT, ..CallOptions::default() };
                match self.pool.call::<R>(&addr, request, SharedBuf::default(), until, options).await {
                    Ok(reply) => return Ok((reply.body, reply.payload.bytes().to_vec())),
                    Err(error) => last = error.to_string(),
                }
            }
            self.rt.sleep(Duration::from_millis(200)).await;
        }
        Err(format!("target {target} doesn't answer {:?}: {last}", R::METHOD))
    }

    async fn contents(&self, chain: &Chain, target: TargetId) -> Result<Vec<Held>, String> {
        let generation = chain.member(target).map(|m| m.generation).unwrap_or_default();
        let to = Address { chain: chain.id, chain_version: ember_types::ChainVersion(0), target, generation };
        let mut held = Vec::new();
        let mut after = None;
        loop {
            let (page, _) = self.ask::<ListChunks>(target, &ListRequest { to, after, limit: 256 }).await?;
            if page.status != Status::Ok {
                return Err(format!("target {target} doesn't list its chunks: {}", page.status));
            }
            after = page.chunks.last().map(|row| row.chunk);
            for row in page.chunks {
                let absent = row.removed || row.committed.is_none();
                let bytes = if absent { Vec::new() } else { self.bytes(to, target, &row).await? };
                if !(absent && row.pending.is_none()) {
                    held.push((row, bytes));
                }
            }
            if !page.more {
                return Ok(held);
            }
        }
    }

    async fn bytes(&self, to: Address, target: TargetId, row: &ChunkSummary) -> Result<Vec<u8>, String> {
        let request = ReadReplicaRequest { to, chunk: row.chunk, version: ChunkVersion::NONE };
        let (answer, bytes) = self.ask::<ReadReplica>(target, &request).await?;
        match answer.status {
            Status::Ok => Ok(bytes),
            status => Err(format!("chunk {} on target {target} can't be read: {status}", row.chunk)),
        }
    }

    /// Whether every serving replica of every chunk can be read; the error names one that can't.
    pub async fn readable(&self) -> Result<(), String> {
        let view = self.routing.view();
        for chain in view.chains.values() {
            for member in chain.serving() {
                self.contents(chain, member.target).await?;
            }
        }
        Ok(())
    }

    /// Whether all replicas of all chains hold the same; the error says what differs.
    pub async fn compare(&self, world: &World) -> Result<(), String> {
        let view = self.routing.view();
        for chain in view.chains.values() {
            let mut first: Option<(TargetId, Vec<Held>)> = None;
            for member in chain.serving() {
                let held = self.contents(chain, member.target).await?;
                world.trace().count("chunks compared between replicas", held.len() as u64);
                let Some((other, expected)) = &first else {
                    first = Some((member.target, held));
                    continue;
                };
                let key = |(row, bytes): &Held| {
                    (row.chunk, row.committed, row.length, row.checksum, row.pending, bytes.clone())
                };
                let (a, b): (Vec<_>, Vec<_>) =
                    (expected.iter().map(key).collect(), held.iter().map(key).collect());
                if a != b {
                    let differs = a.iter().zip(&b).find(|(a, b)| a != b).map(|(a, b)| {
                        format!("{:?} and {:?}", (a.0, a.1, a.2, a.3, a.4), (b.0, b.1, b.2, b.3, b.4))
                    });
                    let text = differs.unwrap_or_else(|| format!("{} and {} chunks", a.len(), b.len()));
                    return Err(format!("chain {}: targets {other} and {}: {text}", chain.id, member.target));
                }
            }
        }
        Ok(())
    }
}
