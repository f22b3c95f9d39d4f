//! What a target says to other replicas and to mgmtd.

use crate::convert::{craq_summary, kind_of, summary_of, to_wire};
use crate::resync::extra_time;
use crate::target::{Bytes, Missing, Target};
use ember_craq::{Address, Answer, Content, Failure, Input, Message, Page, SyncItem};
use ember_engine::{ContentState, EngineError, Install, InstallContent, Which};
use ember_net::CallOptions;
use ember_rt::disk::Priority;
use ember_rt::{Addr, SharedBuf};
use ember_types::checksum::combine_blocks;
use ember_types::{
    ChainTarget, ChainVersion, ChunkId, ChunkVersion, PublicState, Status, TargetId, WriterRecord,
    block_checksums,
};
use ember_wire::handshake::EARLY_FORWARDS;
use ember_wire::method::{
    AbortChunk, ConfirmChain, DurableChunk, ForwardChunk, ListChunks, NoteInUse, QueryVersion, ReadReplica,
    ReportUnresponsive, Rpc, SyncChunk,
};
use ember_wire::mgmtd::{NoteInUseRequest, UnresponsiveRequest};
use ember_wire::storage::{
    AbortRequest, ChunkSummary, ConfirmChainRequest, DurableRequest, ForwardRequest, ListRequest,
    ReadReplicaRequest, SyncRequest, VersionQuery,
};
use std::rc::Rc;
use std::time::Duration;

/// Chunks compared with one page.
const PAGE: u32 = 1024;
/// Limit of one request to mgmtd.
const MGMTD_LIMIT: Duration = Duration::from_secs(2);

fn reply(status: Status, version: ChunkVersion, chain_version: ChainVersion) -> Answer {
    Answer::Reply { status, version, chain_version }
}

impl Target {
    /// Sends a message and waits for the peer's answer. `None`: no answer, the message may still arrive.
    pub(crate) async fn deliver(
        self: &Rc<Self>,
        to: &Address,
        message: Message,
        bytes: Bytes,
    ) -> Option<Answer> {
        let none = SharedBuf::default();
        match message {
            Message::Forward { epoch, forward, .. } => {
                let (data, checksums) = match self.resolve(forward.chunk, bytes).await {
                    Ok(found) => found,
                    Err(Missing::Gone) => return None,
                    // Its predecessors hold the pending version too: nobody but this replica need wait for a
                    // repair, which wants the chunk's place.
                    Err(Missing::Unreadable) => match self.fetch(forward.chunk, &forward.result).await {
                        Some((data, _)) => {
                            let checksums = block_checksums(&data);
                            (data, checksums)
                        }
                        None => return Some(Answer::Unreadable),
                    },
                };
                let request = ForwardRequest {
                    to: to_wire(to),
                    from: self.id,
                    chunk: forward.chunk,
                    kind: kind_of(forward.change),
                    chunk_size: forward.chunk_size,
                    base: forward.base,
                    version: forward.result.version,
                    length: forward.result.length,
                    checksum: forward.result.checksum,
                    tag: forward.tag,
                    checksums,
                    writers: forward.writers,
                    epoch,
                    early: forward.early,
                };
                if forward.early && !self.takes_early(to).await {
                    return Some(Answer::Unreadable);
                }
                let answer = self.call::<ForwardChunk>(to, &request, data, 0).await?.0;
                Some(reply(answer.status, answer.version, answer.chain_version))
            }
            Message::Durable { epoch, chunk, version } => {
                let request = DurableRequest { to: to_wire(to), chunk, version, epoch };
                let answer = self.call::<DurableChunk>(to, &request, none, 0).await?.0;
                Some(reply(answer.status, ChunkVersion::NONE, answer.chain_version))
            }
            Message::Abort { epoch, chunk, version } => {
                let request = AbortRequest { to: to_wire(to), chunk, version, epoch };
                let answer = self.call::<AbortChunk>(to, &request, none, 0).await?.0;
                Some(reply(answer.status, ChunkVersion::NONE, answer.chain_version))
            }
            Message::Query { chunk } => {
                let request = VersionQuery { to: to_wire(to), chunk };
                let answer = self.call::<QueryVersion>(to, &request, none, 0).await?.0;
                Some(reply(answer.status, answer.version, answer.chain_version))
            }
            Message::Confirm { chain } => {
                let request = ConfirmChainRequest { to: to_wire(to), chain };
                let answer = self.call::<ConfirmChain>(to, &request, none, 0).await?.0;
                Some(reply(answer.status, ChunkVersion::NONE, answer.chain_version))
            }
            Message::Sync { epoch, item } => self.send_sync(to, epoch, item).await,
        }
    }

    async fn send_sync(self: &Rc<Self>, to: &Address, epoch: u32, item: SyncItem) -> Option<Answer> {
        let mut request = SyncRequest {
            to: to_wire(to),
            from: self.id,
            state: ChunkSummary {
                chunk: ChunkId::default(),
                committed: ChunkVersion::NONE,
                removed: false,
                length: 0,
                checksum: 0,
                pending: ChunkVersion::NONE,
                lost: false,
            },
            writers: Vec::new(),
            checksums: Vec::new(),
            done: true,
            epoch,
        };
        let mut data = SharedBuf::default();
        let mut turn = None;
        if let SyncItem::Chunk { chunk, content, writers } = item {
            request.done = false;
            request.writers = writers;
            turn = self.use_turn(chunk, content.length as usize).await;
            if !content.is_absent() {
                match self.read_or_repair(chunk, content.version).await {
                    Some(read) => (data, request.checksums) = read,
                    // No replica has the bytes: the target records them as lost, and the sync goes on (R10).
                    None if self.has_committed(chunk, content.version) => request.state.lost = true,
                    None => return None,
                }
            }
            request.state.chunk = chunk;
            request.state.committed = content.version;
            request.state.removed = content.removed;
            request.state.length = content.length;
            request.state.checksum = content.checksum;
        }
        let node = self.node.routing.view().targets.get(&to.target)?.node;
        let _message = self.node.resyncs.message(node).await;
        if self.replica().chain_version() != to.chain_version {
            return None;
        }
        let within = extra_time(data.len());
        let answer = self.call_within::<SyncChunk>(to, &request, data, 0, within).await?.0;
        drop(turn);
        self.heed(&answer);
        Some(reply(answer.status, request.state.committed, answer.chain_version))
    }

    /// The committed content; bad bytes are repaired first, while the caller holds the chunk's place.
    async fn read_or_repair(
        self: &Rc<Self>,
        chunk: ChunkId,
        version: ChunkVersion,
    ) -> Option<(SharedBuf, Vec<u32>)> {
        let which = Which::Exact(version);
        for repaired in [false, true] {
            match self.read_to_send(chunk, which).await {
                Ok(read) => return Some((read.data, read.checksums)),
                Err(error) if repaired || matches!(error, EngineError::NotFound(_)) => return None,
                Err(error) => {
                    tracing::warn!(target = %self.id, %chunk, %error, "bad bytes: repaired before they are sent");
                    self.repair(chunk, version).await;
                }
            }
        }
        None
    }

    fn has_committed(&self, chunk: ChunkId, version: ChunkVersion) -> bool {
        let state = self.engine.state(chunk).and_then(|state| state.committed);
        self.engine.failure().is_none() && state.is_some_and(|committed| committed.version == version)
    }

    fn addresses(&self, to: &Address) -> Option<Vec<Addr>> {
        let view = self.node.routing.view();
        Some(view.node_of(to.target)?.addresses.iter().filter_map(|addr| addr.parse().ok()).collect())
    }

    /// Whether the peer is known to understand early forwards; an older release doesn't.
    async fn takes_early(&self, to: &Address) -> bool {
        let until = self.node.rt.now() + Duration::from_millis(self.node.config.forward_timeout_ms);
        let Some(addrs) = self.addresses(to) else { return false };
        let connection = self.node.pool.get_any(&addrs, until).await;
        connection.is_ok_and(|connection| connection.features() & EARLY_FORWARDS != 0)
    }

    /// One request to another replica. `None`: no answer.
    async fn call<R: Rpc>(
        &self,
        to: &Address,
        request: &R::Request,
        payload: SharedBuf,
        expect: usize,
    ) -> Option<(R::Response, SharedBuf)> {
        self.call_within::<R>(to, request, payload, expect, Duration::ZERO).await
    }

    /// The same with so much more time than usual.
    async fn call_within<R: Rpc>(
        &self,
        to: &Address,
        request: &R::Request,
        payload: SharedBuf,
        expect: usize,
        extra: Duration,
    ) -> Option<(R::Response, SharedBuf)> {
        let view = self.node.routing.view();
        let addrs = self.addresses(to)?;
        let until = self.node.rt.now() + Duration::from_millis(self.node.config.forward_timeout_ms) + extra;
        let chain = view.chains.get(&to.chain);
        let position = chain.and_then(|c| c.targets.iter().position(|t| t.target == to.target)).unwrap_or(0);
        let options = CallOptions { position: u8::try_from(position).unwrap_or(u8::MAX), expect };
        let connection = self.node.pool.get_any(&addrs, until).await;
        let sent = match connection {
            Ok(connection) => connection.call_with::<R>(request, payload, until, options).await,
            Err(error) => Err(error),
        };
        match sent {
            Ok(reply) => Some((reply.body, reply.payload.into())),
            Err(error) => {
                tracing::debug!(from = %self.id, to = %to.target, method = ?R::METHOD, %error, "no answer");
                None
            }
        }
    }

    /// The next page of both sides' chunks for a comparison.
    pub(crate) async fn fetch_page(&self, to: &Address, after: Option<ChunkId>) -> Option<Page> {
        let request = ListRequest { to: to_wire(to), after, limit: PAGE };
        let (answer, _) = self.call::<ListChunks>(to, &request, SharedBuf::default(), 0).await?;
        if answer.status != Status::Ok {
            return None;
        }
        let mut local = self.engine.list(after, PAGE as usize + 1);
        let local_more = local.len() > PAGE as usize;
        local.truncate(PAGE as usize);
        Some(Page {
            local: local.iter().map(|(chunk, state)| craq_summary(&summary_of(*chunk, state))).collect(),
            local_more,
            remote: answer.chunks.iter().map(craq_summary).collect(),
            remote_more: answer.more,
            total: self.engine.len() as u64,
        })
    }

    /// Replaces what is here of a chunk by a committed content.
    pub(crate) async fn install(
        self: &Rc<Self>,
        chunk: ChunkId,
        content: Content,
        writers: Vec<WriterRecord>,
        bytes: Bytes,
    ) -> Input {
        let mut install = Install { committed: None, pending: None, writers };
        if !content.version.is_none() {
            let Ok((mut data, _)) = self.resolve(chunk, bytes).await else {
                return Input::Failed { chunk, failure: Failure::Corrupt };
            };
            let absent = |data: &SharedBuf| data.len() != content.length as usize && !content.removed;
            if absent(&data)
                && let Some(own) = self.own_copy(chunk, &content).await
            {
                tracing::warn!(target = %self.id, %chunk, "this is the only replica with the bytes of a chunk");
                data = own;
            }
            let lost = absent(&data);
            let state = ContentState {
                version: content.version,
                length: content.length,
                checksum: content.checksum,
                removed: content.removed,
                lost,
            };
            install.committed = Some(InstallContent { state, data });
        }
        match self.engine.install(chunk, install).await {
            Ok(()) => Input::Installed { chunk },
            Err(error @ EngineError::NoSpace { .. }) => {
                self.had_no_room();
                Input::Failed { chunk, failure: crate::convert::failure_of(&error) }
            }
            Err(error) => self.failed(chunk, &error),
        }
    }

    /// The bytes of a content that others know only by its checksum, if they are here.
    async fn own_copy(&self, chunk: ChunkId, content: &Content) -> Option<SharedBuf> {
        let which = Which::Exact(content.version);
        let read = self.engine.read(chunk, which, 0, u32::MAX, Priority::Resync).await.ok()?;
        let checksum = combine_blocks(&read.checksums, read.data.len());
        let same = (read.data.len(), checksum) == (content.length as usize, content.checksum);
        same.then_some(read.data)
    }

    /// The bytes of exactly this content from another replica, committed or pending there, and which one it was.
    pub(crate) async fn fetch(
        self: &Rc<Self>,
        chunk: ChunkId,
        content: &Content,
    ) -> Option<(SharedBuf, TargetId)> {
        let chain = self.replica().chain().cloned()?;
        // A member that doesn't serve may have them too: version and checksum say that they are the right ones.
        let others = || chain.targets.iter().filter(|member| member.target != self.id);
        let serving = |member: &&ChainTarget| member.state == PublicState::Serving;
        for member in others().filter(serving).chain(others().filter(|member| !serving(member))) {
            let to = Address {
                chain: chain.id,
                chain_version: ChainVersion(0),
                target: member.target,
                generation: member.generation,
            };
            let request = ReadReplicaRequest { to: to_wire(&to), chunk, version: content.version };
            let expect = content.length as usize;
            let none = SharedBuf::default();
            let Some((answer, data)) = self.call::<ReadReplica>(&to, &request, none, expect).await else {
                continue;
            };
            let checksum = combine_blocks(&block_checksums(&data), data.len());
            if answer.status == Status::Ok && data.len() == expect && checksum == content.checksum {
                return Some((data, member.target));
            }
        }
        None
    }

    /// Asks mgmtd to note that the chain version is in use (R7); the answer comes back as a chain.
    pub(crate) fn note_in_use(self: &Rc<Self>, version: ChainVersion) {
        let target = self.clone();
        self.node.rt.spawn("note in use", async move {
            let chain = target.replica().identity().chain;
            let request = NoteInUseRequest { chain, version, target: target.id };
            match target.node.routing.mgmtd().attempt::<NoteInUse>(&request, MGMTD_LIMIT).await {
                Ok(answer) => {
                    if let Some(chain) = answer.chain {
                        target.node.routing.learn_chains(std::slice::from_ref(&chain));
                        target.learn_chain(&chain);
                    }
                }
                Err(error) => tracing::debug!(target = %target.id, %error, "in-use note is not answered"),
            }
        });
    }

    /// Reports a successor that doesn't answer, or can't store (R10).
    pub(crate) fn accuse(self: &Rc<Self>, accused: TargetId, device_error: bool) {
        let target = self.clone();
        self.node.rt.spawn("accuse", async move {
            let (chain, version) = {
                let replica = target.replica();
                (replica.identity().chain, replica.chain_version())
            };
            let request = UnresponsiveRequest { chain, version, accuser: target.id, accused, device_error };
            let sent = target.node.routing.mgmtd().attempt::<ReportUnresponsive>(&request, MGMTD_LIMIT).await;
            if let Err(error) = sent {
                tracing::debug!(target = %target.id, %error, "a report is not answered");
            }
        });
    }
}
