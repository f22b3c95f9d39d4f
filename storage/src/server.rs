//! What clients, meta and other replicas ask of this node.

use crate::convert::{change_of, forward_of, summary_of, to_craq};
use crate::node::Node;
use crate::pace::Kind;
use crate::target::{Outcome, Target};
use ember_craq::{Content, Input, SyncItem};
use ember_engine::{EngineError, Which};
use ember_net::{Handler, Peer, Request, Response};
use ember_rt::disk::Priority;
use ember_rt::{LocalBoxFuture, SharedBuf};
use ember_types::{Capability, ChainVersion, ChunkVersion, DataId, Instant, Rights, Status};
use ember_wire::Method;
use ember_wire::handshake::Caller;
use ember_wire::method as rpc;
use ember_wire::storage as wire;
use std::rc::Rc;
use std::time::Duration;

/// A read whose chunk moves on while its bytes are fetched starts anew so often.
const READ_TRIES: u32 = 8;
/// Most rows of one listing.
const LIST_MAX: u32 = 4096;
/// Users who may look at replicas one by one.
const ADMIN_USER: &str = "root";

/// The node as a server.
pub(crate) struct Door(pub(crate) Rc<Node>);

impl Handler for Door {
    fn handle(&self, peer: &Peer, request: Request) -> LocalBoxFuture<'static, Response> {
        let (node, peer) = (self.0.clone(), peer.clone());
        Box::pin(async move { node.answer(&peer, request).await.unwrap_or_else(|refused| refused) })
    }
}

type Answered = Result<Response, Response>;

fn nodes_only(peer: &Peer) -> Result<(), Response> {
    match peer.caller {
        Caller::Node(_) => Ok(()),
        Caller::Client(_) => Err(Response::error(Status::PermissionDenied, "for nodes of the cluster only")),
    }
}

fn admins_only(peer: &Peer) -> Result<(), Response> {
    if peer.user == ADMIN_USER { Ok(()) } else { nodes_only(peer) }
}

impl Node {
    async fn answer(&self, peer: &Peer, request: Request) -> Answered {
        match request.method {
            Method::Ping => Ok(Response::ok::<rpc::Ping>(&ember_wire::codec::Empty {})),
            Method::ReadChunk => self.read_chunk(peer, request).await,
            Method::UpdateChunk => self.update_chunk(peer, request).await,
            Method::ForwardChunk => self.forward_chunk(peer, request).await,
            Method::DurableChunk => self.durable_chunk(peer, &request).await,
            Method::AbortChunk => self.abort_chunk(peer, &request).await,
            Method::QueryVersion => self.query_version(peer, &request).await,
            Method::ConfirmChain => self.confirm_chain(peer, &request).await,
            Method::ListChunks => self.list_chunks(peer, &request),
            Method::SyncChunk => self.sync_chunk(peer, request).await,
            Method::QueryLast => self.query_last(peer, &request),
            Method::RemoveData => self.remove_data(peer, &request).await,
            Method::StorageSpace => self.storage_space(&request),
            Method::ReadReplica => self.read_replica(peer, &request).await,
            Method::ScrubTarget => admins_only(peer).and_then(|()| self.scrub_target(&request)),
            method => Err(Response::not_supported(method)),
        }
    }

    /// The end of a capability on this node's clock, if the capability allows what is asked.
    pub(crate) fn check(
        &self,
        peer: &Peer,
        cap: &Capability,
        data: DataId,
        rights: Rights,
        now: Instant,
    ) -> Result<Instant, Status> {
        let holder = match peer.caller {
            Caller::Node(_) => true,
            Caller::Client(client) => client == cap.client(),
        };
        let epoch = self.context.routing.view().revocation_epoch;
        let fits = holder && cap.data() == data && cap.rights().allows(rights);
        if !fits || u64::from(cap.epoch()) < epoch || !self.key.verify(cap) {
            return Err(Status::BadCapability);
        }
        let time = self.context.routing.clock().latest(now).ok_or(Status::NoLease)?;
        match cap.expiry().0.checked_sub(time.0) {
            Some(left) if left > 0 => Ok(now + Duration::from_millis(left)),
            _ => Err(Status::BadCapability),
        }
    }

    async fn read_chunk(&self, peer: &Peer, request: Request) -> Answered {
        let read = request.decode::<rpc::ReadChunk>()?;
        let refuse = |status, chain_version| {
            let body = wire::ReadResponse {
                status,
                chunk_length: 0,
                version: ChunkVersion::NONE,
                chain_version,
                checksums: Vec::new(),
            };
            Ok(Response::ok::<rpc::ReadChunk>(&body))
        };
        if let Err(status) =
            self.check(peer, &read.capability, read.chunk.data, Rights::READ, request.received)
        {
            return refuse(status, ChainVersion(0));
        }
        let Some(target) = self.target(read.to.target) else {
            return refuse(Status::StaleRouting, ChainVersion(0));
        };
        let (to, chunk) = (to_craq(&read.to), read.chunk);
        let relaxed = read.flags & wire::READ_PENDING != 0;
        for _ in 0..READ_TRIES {
            let asked = target.ask(SharedBuf::default(), Vec::new(), |token| Input::Read {
                token,
                to,
                chunk,
                relaxed,
            });
            let content = match asked.await {
                Outcome::Reply { status, .. } => return refuse(status, target.replica().chain_version()),
                Outcome::Read(content) => content,
            };
            match fetch(&target, &read, content).await {
                Ok(Some((body, payload))) => {
                    target.served(Kind::Read, payload.len(), request.received);
                    return Ok(Response::with_payload::<rpc::ReadChunk>(&body, payload));
                }
                Ok(None) => {}
                Err(status) => return refuse(status, target.replica().chain_version()),
            }
        }
        refuse(Status::Busy, target.replica().chain_version())
    }

    async fn update_chunk(&self, peer: &Peer, request: Request) -> Answered {
        let update = request.decode::<rpc::UpdateChunk>()?;
        let answer = |status, version, chunk_length, chain_version| {
            let body = wire::UpdateResponse { status, version, chunk_length, chain_version };
            Ok(Response::ok::<rpc::UpdateChunk>(&body))
        };
        let refuse = |status| answer(status, ChunkVersion::NONE, 0, ChainVersion(0));
        let rights = match update.kind {
            wire::UpdateKind::Write { .. } | wire::UpdateKind::Truncate { .. } => Rights::WRITE,
            wire::UpdateKind::Remove | wire::UpdateKind::Cut { .. } => Rights::REMOVE,
            // How replicas pass content on; clients write.
            wire::UpdateKind::Whole => return refuse(Status::InvalidArgument),
        };
        if matches!(peer.caller, Caller::Client(client) if client != update.tag.client) {
            return refuse(Status::BadCapability);
        }
        let now = request.received;
        let expires = match self.check(peer, &update.capability, update.chunk.data, rights, now) {
            Ok(expires) => expires,
            Err(status) => return refuse(status),
        };
        let payload = SharedBuf::from(request.payload);
        if !Target::payload_is_whole(&payload, &update.checksums) {
            return refuse(Status::ChecksumMismatch);
        }
        let Some(change) = change_of(update.kind, payload.len()) else {
            return refuse(Status::InvalidArgument);
        };
        let Some(target) = self.target(update.to.target) else { return refuse(Status::StaleRouting) };
        let to = to_craq(&update.to);
        let (chunk, chunk_size, tag) = (update.chunk, update.chunk_size, update.tag);
        let asked = target.ask(payload, update.checksums, |token| Input::Update {
            token,
            to,
            chunk,
            change,
            chunk_size,
            tag,
            expires,
        });
        match asked.await {
            Outcome::Reply { status, version, length } => {
                answer(status, version, length, target.replica().chain_version())
            }
            Outcome::Read(_) => refuse(Status::Internal),
        }
    }

    async fn forward_chunk(&self, peer: &Peer, request: Request) -> Answered {
        nodes_only(peer)?;
        let forward = request.decode::<rpc::ForwardChunk>()?;
        let answer = |status, version, chain_version| {
            let body = wire::ForwardResponse { status, version, chain_version };
            Ok(Response::ok::<rpc::ForwardChunk>(&body))
        };
        let payload = SharedBuf::from(request.payload);
        if !Target::payload_is_whole(&payload, &forward.checksums) {
            return answer(Status::ChecksumMismatch, ChunkVersion::NONE, ChainVersion(0));
        }
        let Some(target) = self.target(forward.to.target) else {
            return answer(Status::StaleRouting, ChunkVersion::NONE, ChainVersion(0));
        };
        let Some(craq) = forward_of(&forward, payload.len()) else {
            return answer(Status::InvalidArgument, ChunkVersion::NONE, ChainVersion(0));
        };
        let (to, from, epoch) = (to_craq(&forward.to), forward.from, forward.epoch);
        let asked = target.ask(payload, forward.checksums, |token| Input::Forward {
            token,
            to,
            from,
            epoch,
            forward: craq,
        });
        let (status, version) = reply_of(asked.await);
        answer(status, version, target.replica().chain_version())
    }

    async fn durable_chunk(&self, peer: &Peer, request: &Request) -> Answered {
        nodes_only(peer)?;
        let durable = request.decode::<rpc::DurableChunk>()?;
        let answer = |status, chain_version| {
            Ok(Response::ok::<rpc::DurableChunk>(&wire::DurableResponse { status, chain_version }))
        };
        let Some(target) = self.target(durable.to.target) else {
            return answer(Status::StaleRouting, ChainVersion(0));
        };
        let (to, epoch) = (to_craq(&durable.to), durable.epoch);
        let (chunk, version) = (durable.chunk, durable.version);
        let asked = target.ask(SharedBuf::default(), Vec::new(), |token| Input::Durable {
            token,
            to,
            epoch,
            chunk,
            version,
        });
        let (status, _) = reply_of(asked.await);
        answer(status, target.replica().chain_version())
    }

    async fn abort_chunk(&self, peer: &Peer, request: &Request) -> Answered {
        nodes_only(peer)?;
        let abort = request.decode::<rpc::AbortChunk>()?;
        let Some(target) = self.target(abort.to.target) else {
            let body = wire::AbortResponse { status: Status::StaleRouting, chain_version: ChainVersion(0) };
            return Ok(Response::ok::<rpc::AbortChunk>(&body));
        };
        let (to, epoch, chunk, version) = (to_craq(&abort.to), abort.epoch, abort.chunk, abort.version);
        let asked = target.ask(SharedBuf::default(), Vec::new(), |token| Input::Abort {
            token,
            to,
            epoch,
            chunk,
            version,
        });
        let (status, _) = reply_of(asked.await);
        let chain_version = target.replica().chain_version();
        Ok(Response::ok::<rpc::AbortChunk>(&wire::AbortResponse { status, chain_version }))
    }

    async fn query_version(&self, peer: &Peer, request: &Request) -> Answered {
        nodes_only(peer)?;
        let query = request.decode::<rpc::QueryVersion>()?;
        let Some(target) = self.target(query.to.target) else {
            let (status, version) = (Status::StaleRouting, ChunkVersion::NONE);
            let body = wire::VersionAnswer { status, version, chain_version: ChainVersion(0) };
            return Ok(Response::ok::<rpc::QueryVersion>(&body));
        };
        let (to, chunk) = (to_craq(&query.to), query.chunk);
        let asked = target.ask(SharedBuf::default(), Vec::new(), |token| Input::Query { token, to, chunk });
        let (status, version) = reply_of(asked.await);
        let chain_version = target.replica().chain_version();
        Ok(Response::ok::<rpc::QueryVersion>(&wire::VersionAnswer { status, version, chain_version }))
    }

    async fn confirm_chain(&self, peer: &Peer, request: &Request) -> Answered {
        nodes_only(peer)?;
        let confirm = request.decode::<rpc::ConfirmChain>()?;
        let Some(target) = self.target(confirm.to.target) else {
            let body =
                wire::ConfirmChainResponse { status: Status::StaleRouting, chain_version: ChainVersion(0) };
            return Ok(Response::ok::<rpc::ConfirmChain>(&body));
        };
        self.context.routing.learn_chains(std::slice::from_ref(&confirm.chain));
        let (to, chain) = (to_craq(&confirm.to), confirm.chain);
        let asked = target.ask(SharedBuf::default(), Vec::new(), |token| Input::Confirm { token, to, chain });
        let (status, _) = reply_of(asked.await);
        let chain_version = target.replica().chain_version();
        Ok(Response::ok::<rpc::ConfirmChain>(&wire::ConfirmChainResponse { status, chain_version }))
    }

    fn list_chunks(&self, peer: &Peer, request: &Request) -> Answered {
        admins_only(peer)?;
        let list = request.decode::<rpc::ListChunks>()?;
        let answer = |status, chain_version, chunks, more, total| {
            let body = wire::ListResponse { status, chain_version, chunks, more, total };
            Ok(Response::ok::<rpc::ListChunks>(&body))
        };
        let Some(target) = self.replica(&list.to) else {
            return answer(Status::StaleRouting, ChainVersion(0), Vec::new(), false, 0);
        };
        let limit = list.limit.clamp(1, LIST_MAX) as usize;
        let mut page = target.engine.list(list.after, limit + 1);
        let more = page.len() > limit;
        page.truncate(limit);
        let chunks = page.iter().map(|(chunk, state)| summary_of(*chunk, state)).collect();
        let chain_version = target.replica().chain_version();
        answer(Status::Ok, chain_version, chunks, more, target.engine.len() as u64)
    }

    /// The target, if it is exactly the replica that is asked; chain version 0 asks whatever the version.
    pub(crate) fn replica(&self, to: &wire::Address) -> Option<Rc<Target>> {
        let target = self.target(to.target)?;
        let own = target.replica().identity();
        let version = target.replica().chain_version();
        let exact = own.chain == to.chain && own.generation == to.generation;
        let current = to.chain_version == ChainVersion(0) || to.chain_version == version;
        (exact && current).then_some(target)
    }

    async fn sync_chunk(&self, peer: &Peer, request: Request) -> Answered {
        nodes_only(peer)?;
        let sync = request.decode::<rpc::SyncChunk>()?;
        let answer = |status, chain_version| {
            let (limit_bytes_per_s, hold_ms) = self.resync_advice(sync.to.target);
            let body = wire::SyncResponse { status, chain_version, limit_bytes_per_s, hold_ms };
            Ok(Response::ok::<rpc::SyncChunk>(&body))
        };
        let payload = SharedBuf::from(request.payload);
        if !Target::payload_is_whole(&payload, &sync.checksums) {
            return answer(Status::ChecksumMismatch, ChainVersion(0));
        }
        let Some(target) = self.target(sync.to.target) else {
            return answer(Status::StaleRouting, ChainVersion(0));
        };
        let has_bytes =
            !(sync.done || sync.state.lost || sync.state.removed || sync.state.committed.is_none());
        if has_bytes && payload.len() != sync.state.length as usize {
            return answer(Status::InvalidArgument, ChainVersion(0));
        }
        let item = if sync.done {
            SyncItem::Done
        } else {
            let content = Content {
                version: sync.state.committed,
                removed: sync.state.removed,
                length: sync.state.length,
                checksum: sync.state.checksum,
            };
            SyncItem::Chunk { chunk: sync.state.chunk, content, writers: sync.writers }
        };
        let (to, from, epoch) = (to_craq(&sync.to), sync.from, sync.epoch);
        let _busy = target.arrived(payload.len());
        let asked = target.ask(payload, sync.checksums, |token| Input::Sync { token, to, from, epoch, item });
        let (status, _) = reply_of(asked.await);
        answer(status, target.replica().chain_version())
    }

    fn query_last(&self, peer: &Peer, request: &Request) -> Answered {
        let query = request.decode::<rpc::QueryLast>()?;
        let answer = |status, last, chunks, chain_version| {
            let body = wire::QueryLastResponse { status, last, chunks, chain_version };
            Ok(Response::ok::<rpc::QueryLast>(&body))
        };
        if let Err(status) = self.check(peer, &query.capability, query.data, Rights::READ, request.received) {
            return answer(status, None, 0, ChainVersion(0));
        }
        let Some(target) = self.replica(&query.to).filter(|_| query.to.chain_version != ChainVersion(0))
        else {
            return answer(Status::StaleRouting, None, 0, ChainVersion(0));
        };
        let chain_version = target.replica().chain_version();
        let may = target.replica().may_tell(self.context.rt.now(), &to_craq(&query.to));
        if let Err(status) = may {
            return answer(status, None, 0, chain_version);
        }
        // A pending version may be committed elsewhere already: the asker comes again when it is settled.
        let first = ember_types::ChunkId::new(query.data, 0);
        let before = ember_types::ChunkId::new(DataId(query.data.0.saturating_sub(1)), u32::MAX);
        let pending = target.engine.pending(Some(before), 1);
        if pending.first().is_some_and(|chunk| chunk.data == first.data) {
            return answer(Status::Busy, None, 0, chain_version);
        }
        let (last, chunks) = target.engine.last_of(query.data);
        answer(Status::Ok, last, chunks, chain_version)
    }

    fn storage_space(&self, request: &Request) -> Answered {
        let _ = request.decode::<rpc::StorageSpace>()?;
        let body = wire::SpaceResponse { status: Status::Ok, disks: self.disk_space() };
        Ok(Response::ok::<rpc::StorageSpace>(&body))
    }

    async fn read_replica(&self, peer: &Peer, request: &Request) -> Answered {
        admins_only(peer)?;
        let read = request.decode::<rpc::ReadReplica>()?;
        let answer = |status, version, chain_version, checksums, payload| {
            let body = wire::ReadReplicaResponse { status, version, chain_version, checksums };
            Ok(Response::with_payload::<rpc::ReadReplica>(&body, payload))
        };
        let none = SharedBuf::default();
        let Some(target) = self.replica(&read.to) else {
            return answer(Status::StaleRouting, ChunkVersion::NONE, ChainVersion(0), Vec::new(), none);
        };
        let which = if read.version.is_none() { Which::Committed } else { Which::Exact(read.version) };
        let chain_version = target.replica().chain_version();
        match target.engine.read(read.chunk, which, 0, u32::MAX, Priority::Scrub).await {
            Ok(found) => answer(Status::Ok, found.version, chain_version, found.checksums, found.data),
            Err(error) => {
                let committed = target.engine.state(read.chunk).and_then(|state| state.committed);
                if error.is_bad_bytes()
                    && let Some(committed) = committed
                {
                    target.bad_bytes(read.chunk, committed.version, &error);
                }
                answer(error.status(), ChunkVersion::NONE, chain_version, Vec::new(), none)
            }
        }
    }
}

fn reply_of(outcome: Outcome) -> (Status, ChunkVersion) {
    match outcome {
        Outcome::Reply { status, version, .. } => (status, version),
        Outcome::Read(_) => (Status::Internal, ChunkVersion::NONE),
    }
}

/// The bytes of a content that the replica may show. `Ok(None)`: it has moved on, ask again.
async fn fetch(
    target: &Rc<Target>,
    read: &wire::ReadRequest,
    content: Content,
) -> Result<Option<(wire::ReadResponse, SharedBuf)>, Status> {
    let chain_version = target.replica().chain_version();
    if content.is_absent() {
        return Err(Status::NotFound);
    }
    let which = Which::Exact(content.version);
    let found = target.engine.read(read.chunk, which, read.offset, read.length, Priority::Foreground).await;
    match found {
        Ok(found) => {
            // The clock is read after the bytes were (R8).
            if !target.replica().may_answer(target.node.rt.now()) {
                return Err(Status::NoLease);
            }
            let body = wire::ReadResponse {
                status: Status::Ok,
                chunk_length: found.chunk_length,
                version: found.version,
                chain_version,
                checksums: found.checksums,
            };
            Ok(Some((body, found.data)))
        }
        Err(EngineError::NotFound(_)) => Ok(None),
        Err(error) => {
            if error.is_bad_bytes() {
                target.bad_bytes(read.chunk, content.version, &error);
            }
            Err(error.status())
        }
    }
}
