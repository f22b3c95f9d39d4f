//! Storage as meta uses it: removing and cutting data, asking where they end, asking for space.

use crate::error::MetaError;
use crate::seam::{Cluster, Place, StorageOps};
use ember_meta_store::truncate::Query;
use ember_net::{CallOptions, Pool};
use ember_rt::select::join_all;
use ember_rt::{Addr, LocalBoxFuture, Rt, SharedBuf};
use ember_types::{
    Capability, CapabilityKey, Chain, ChainId, ChannelId, ChunkId, ClientId, ClusterTime, InodeId, Instant,
    Layout, NodeInfo, NodeKind, Rights, Sequence, Status, TargetId, WriterTag,
};
use ember_wire::Rpc;
use ember_wire::codec::Empty;
use ember_wire::meta::Totals;
use ember_wire::method::{QueryLast, RemoveData, StorageSpace, UpdateChunk};
use ember_wire::storage::{
    Address, DiskSpace, QueryLastRequest, RemoveDataRequest, UpdateKind, UpdateRequest,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Chunks removed by one request.
const REMOVE_LIMIT: u32 = 256;
/// Longest wait for one answer; then the request is sent again under its tag.
const ATTEMPT: Duration = Duration::from_secs(3);
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Asks storage by its wire protocol.
pub struct StorageClient {
    rt: Rt,
    pool: Pool,
    cluster: Rc<dyn Cluster>,
    key: CapabilityKey,
    client: Cell<ClientId>,
    timeout: Duration,
    free: RefCell<Vec<(ChannelId, Sequence)>>,
    next_channel: Cell<u32>,
}

/// One exchange with a replica: the status of the body is the answer's.
struct Reply<T> {
    status: Status,
    body: T,
}

impl StorageClient {
    /// `client` is this service's own identity as a writer; it has a session with mgmtd, or
    /// [`Self::set_client`] follows. `timeout` bounds each step.
    pub fn new(
        rt: Rt,
        pool: Pool,
        cluster: Rc<dyn Cluster>,
        key: CapabilityKey,
        client: ClientId,
        timeout: Duration,
    ) -> Self {
        let (free, next_channel) = (RefCell::default(), Cell::new(1));
        Self { rt, pool, cluster, key, client: Cell::new(client), timeout, free, next_channel }
    }

    /// Goes on under another identity: the session of the present one has ended, and with it storage's memory
    /// of its channels.
    pub fn set_client(&self, client: ClientId) {
        self.client.set(client);
        self.free.borrow_mut().clear();
    }

    fn chains(&self, layout: &Layout) -> Result<Vec<ChainId>, MetaError> {
        match self.cluster.view().layout_chains(layout) {
            Some(chains) if !chains.is_empty() => Ok(chains),
            _ => Err(storage(Status::StaleRouting, format!("chain table of {layout:?} is not known yet"))),
        }
    }

    fn capability(&self, place: &Place, until: ClusterTime) -> Capability {
        let rights = Rights::READ.and(Rights::WRITE).and(Rights::REMOVE);
        let epoch = self.cluster.view().revocation_epoch as u32;
        self.key.mint(place.inode, place.data, self.client.get(), rights, until, epoch)
    }

    fn take_channel(&self) -> WriterTag {
        let free = self.free.borrow_mut().pop();
        let (channel, last) = free.unwrap_or_else(|| {
            let next = self.next_channel.get();
            self.next_channel.set(next + 1);
            (ChannelId(next), Sequence(0))
        });
        WriterTag { client: self.client.get(), channel, sequence: Sequence(last.0 + 1) }
    }

    /// A channel whose request may still be on its way is never used again (R12).
    fn give_back<T>(&self, tag: &WriterTag, result: &Result<T, MetaError>) {
        let settled = match result {
            Ok(_) => true,
            Err(error) => !error.status().is_retryable(),
        };
        if settled && tag.client == self.client.get() {
            self.free.borrow_mut().push((tag.channel, tag.sequence));
        }
    }

    /// Asks a replica of a chain until it answers for good or the time is up. `pick` chooses the replica.
    async fn ask<R, T>(
        &self,
        chain: ChainId,
        pick: impl Fn(&Chain) -> Option<TargetId>,
        request: impl Fn(Address) -> R::Request,
        status: impl Fn(&R::Response) -> Status,
        take: impl Fn(R::Response) -> T,
    ) -> Result<T, MetaError>
    where
        R: Rpc,
    {
        let deadline = self.rt.now() + self.timeout;
        let mut pause = PAUSE_FIRST;
        loop {
            let failure = match self.replica(chain, &pick) {
                None => storage(Status::NotServing, format!("chain {chain} has no serving replica")),
                Some((to, node)) => match self.once::<R>(&node, &request(to), &status, deadline).await {
                    Ok(Reply { status: Status::Ok, body }) => return Ok(take(body)),
                    // Not the session of the client on whose behalf this happens: another one is on its way.
                    Ok(Reply { status: Status::SessionEnded, .. }) => {
                        let what = "the session of this metadata server with storage has ended";
                        return Err(storage(Status::Unavailable, what.to_owned()));
                    }
                    Ok(Reply { status, .. }) => {
                        storage(status, format!("{:?} at target {} of chain {chain}", R::METHOD, to.target))
                    }
                    Err(failure) => failure,
                },
            };
            if !failure.status().is_retryable() || self.rt.now() + pause >= deadline {
                return Err(failure);
            }
            self.rt.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn replica(
        &self,
        chain: ChainId,
        pick: &impl Fn(&Chain) -> Option<TargetId>,
    ) -> Option<(Address, NodeInfo)> {
        let view = self.cluster.view();
        let chain = view.chains.get(&chain)?;
        let target = pick(chain)?;
        let member = chain.member(target)?;
        let (version, generation) = (chain.version, member.generation);
        let to = Address { chain: chain.id, chain_version: version, target, generation };
        Some((to, view.node_of(target)?.clone()))
    }

    async fn once<R: Rpc>(
        &self,
        node: &NodeInfo,
        request: &R::Request,
        status: &impl Fn(&R::Response) -> Status,
        deadline: Instant,
    ) -> Result<Reply<R::Response>, MetaError> {
        let until = deadline.min(self.rt.now() + ATTEMPT);
        let failed = |error: ember_net::NetError| {
            storage(error.status(), format!("{:?} at node {}: {error}", R::METHOD, node.id))
        };
        let addrs: Vec<Addr> = node.addresses.iter().filter_map(|addr| addr.parse().ok()).collect();
        let connection = self.pool.get_any(&addrs, until).await.map_err(failed)?;
        let options = CallOptions::default();
        let reply = connection.call_with::<R>(request, SharedBuf::default(), until, options).await;
        let body = reply.map_err(failed)?.body;
        Ok(Reply { status: status(&body), body })
    }

    async fn remove_chunks(
        &self,
        chain: ChainId,
        place: &Place,
        from_index: u32,
        capability: Capability,
    ) -> Result<(), MetaError> {
        loop {
            let tag = self.take_channel();
            let request = |to| RemoveDataRequest {
                to,
                data: place.data,
                from_index,
                limit: REMOVE_LIMIT,
                capability,
                tag,
            };
            let head = |chain: &Chain| chain.head().map(|t| t.target);
            let more = self.ask::<RemoveData, _>(chain, head, request, |r| r.status, |r| r.more).await;
            self.give_back(&tag, &more);
            if !more? {
                return Ok(());
            }
        }
    }

    async fn cut_chunk(
        &self,
        chain: ChainId,
        place: &Place,
        (index, length): (u32, u32),
        capability: Capability,
    ) -> Result<(), MetaError> {
        let tag = self.take_channel();
        let request = |to| UpdateRequest {
            to,
            chunk: ChunkId::new(place.data, index),
            kind: UpdateKind::Cut { length },
            chunk_size: place.layout.chunk_size(),
            tag,
            capability,
            checksums: Vec::new(),
        };
        let head = |chain: &Chain| chain.head().map(|t| t.target);
        let done = self.ask::<UpdateChunk, _>(chain, head, request, |r| r.status, |_| ()).await;
        self.give_back(&tag, &done);
        done
    }

    async fn cut_all(
        &self,
        place: Place,
        from: u64,
        extent: u64,
        until: ClusterTime,
    ) -> Result<(), MetaError> {
        if from >= extent {
            return Ok(());
        }
        let chains = self.chains(&place.layout)?;
        let size = u64::from(place.layout.chunk_size());
        let (boundary, within) = (from / size, (from % size) as u32);
        let first_gone = boundary + u64::from(within > 0);
        let chunks = extent.div_ceil(size);
        let capability = self.capability(&place, until);
        // Chunk i lies on chain i mod n: chains without a chunk in [first_gone, chunks) have nothing to remove.
        let count = chains.len() as u64;
        let concerned = (0..count).filter(|at| {
            let ahead = (at + count - first_gone % count) % count;
            first_gone.saturating_add(ahead) < chunks
        });
        let from_index = u32::try_from(first_gone).unwrap_or(u32::MAX);
        let removals =
            concerned.map(|at| self.remove_chunks(chains[at as usize], &place, from_index, capability));
        for removed in join_all(removals).await {
            removed?;
        }
        if within > 0 {
            let chain = chains[(boundary % count) as usize];
            let index = u32::try_from(boundary).unwrap_or(u32::MAX);
            self.cut_chunk(chain, &place, (index, within), capability).await?;
        }
        Ok(())
    }

    async fn length_of(&self, inode: InodeId, query: Query) -> Result<u64, MetaError> {
        let chains = self.chains(&query.layout)?;
        let place = Place { inode, data: query.data, layout: query.layout };
        let until = match self.cluster.now() {
            Some(now) => now + self.timeout,
            None => return Err(MetaError::not_now(Status::NoLease, "this metadata server has no lease")),
        };
        let capability = self.capability(&place, until);
        let asked = chains.iter().map(|chain| {
            let request = move |to| QueryLastRequest { to, data: query.data, capability };
            let tail = |chain: &Chain| chain.tail().map(|t| t.target);
            self.ask::<QueryLast, _>(*chain, tail, request, |r| r.status, |r| r.last)
        });
        let size = u64::from(query.layout.chunk_size());
        let mut length = 0;
        for last in join_all(asked).await {
            if let Some((index, bytes)) = last? {
                length = length.max(u64::from(index) * size + u64::from(bytes));
            }
        }
        Ok(length)
    }

    async fn space(&self) -> Result<Totals, MetaError> {
        let view = self.cluster.view();
        let deadline = self.rt.now() + self.timeout.min(ATTEMPT);
        let nodes: Vec<_> =
            view.nodes.values().filter(|n| n.kind == NodeKind::Storage && n.alive).cloned().collect();
        let asked =
            nodes.iter().map(|node| self.once::<StorageSpace>(node, &Empty {}, &|r| r.status, deadline));
        let (mut disks, mut failure) = (Vec::new(), None);
        for answer in join_all(asked).await {
            match answer {
                Ok(reply) if reply.status == Status::Ok => disks.extend(reply.body.disks),
                Ok(reply) => failure = Some(storage(reply.status, "space of a storage node".to_owned())),
                Err(error) => failure = Some(error),
            }
        }
        if disks.is_empty()
            && let Some(error) = failure
        {
            return Err(error);
        }
        Ok(totals(&disks, replicas(&view.chains)))
    }
}

fn storage(status: Status, what: String) -> MetaError {
    MetaError::Storage { status, what }
}

/// Members of the longest chain: each byte is stored as often.
fn replicas(chains: &BTreeMap<ChainId, Chain>) -> u64 {
    chains.values().map(|chain| chain.targets.len() as u64).max().unwrap_or(1).max(1)
}

/// Free bytes count once per file system, used bytes once per disk.
fn totals(disks: &[DiskSpace], replicas: u64) -> Totals {
    let mut free: BTreeMap<u64, u64> = BTreeMap::new();
    let mut used = 0u64;
    for disk in disks {
        let own = free.entry(disk.file_system).or_default();
        *own = (*own).max(disk.available);
        used = used.saturating_add(disk.used);
    }
    let free = free.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    Totals { bytes_total: used.saturating_add(free) / replicas, bytes_free: free / replicas, inodes: 0 }
}

impl StorageOps for StorageClient {
    fn cut(
        &self,
        place: Place,
        from: u64,
        extent: u64,
        until: ClusterTime,
    ) -> LocalBoxFuture<'_, Result<(), MetaError>> {
        Box::pin(async move {
            match self.cut_all(place, from, extent, until).await {
                // So much to remove that its time ran out: what is left goes under the next claim.
                Err(MetaError::Storage { status: Status::BadCapability, what }) => {
                    Err(storage(Status::Timeout, format!("{what}: the rights to cut ended before the work")))
                }
                done => done,
            }
        })
    }

    fn length(&self, inode: InodeId, query: Query) -> LocalBoxFuture<'_, Result<u64, MetaError>> {
        Box::pin(self.length_of(inode, query))
    }

    fn totals(&self) -> LocalBoxFuture<'_, Result<Totals, MetaError>> {
        Box::pin(self.space())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_file_system_counts_once_and_replicas_divide() {
        let disk =
            |file_system, available, used| DiskSpace { disk: 0, file_system, total: 1000, available, used };
        let shared = [disk(1, 600, 30), disk(1, 600, 30), disk(2, 300, 60)];
        let sum = totals(&shared, 3);
        assert_eq!((sum.bytes_total, sum.bytes_free), (340, 300));
        assert_eq!(totals(&[], 3), Totals::default());
    }
}
