//! Writing: a range of a file to the heads of its chunks' chains, each piece exactly once.

use crate::channels::Channel;
use crate::error::{ClientError, Result};
use crate::open::OpenFile;
use crate::rpc::Backoff;
use crate::{Client, Inner};
use ember_rt::SharedBuf;
use ember_rt::select::join_all;
use ember_types::layout::Piece;
use ember_types::{Capability, ChainId, ChunkId, Instant, NodeInfo, RoutingInfo, Status, block_checksums};
use ember_wire::method::UpdateChunk;
use ember_wire::storage::{Address, UpdateKind, UpdateRequest, UpdateResponse};
use std::time::Duration;

/// A change of one chunk, wherever its chain's head may move meanwhile.
pub struct ChunkUpdate {
    /// The chain that holds the chunk.
    pub chain: ChainId,
    /// The chunk.
    pub chunk: ChunkId,
    /// What to do.
    pub kind: UpdateKind,
    /// The layout's chunk size, in bytes.
    pub chunk_size: u32,
    /// Data of a write.
    pub payload: SharedBuf,
}

impl Client {
    /// Writes all of `data` at `offset`. When it returns the bytes are durable on every serving replica.
    pub async fn write(&self, file: &OpenFile, offset: u64, data: SharedBuf) -> Result<()> {
        let state = file.state();
        let end = offset.saturating_add(data.len() as u64);
        self.settle_bytes(state, offset..end).await;
        let truncate_version = self.store(file, offset, data).await?;
        state.wrote(end, truncate_version, self.0.rt.unix_now());
        Ok(())
    }

    /// Brings bytes to the chunks' chains; returns the file's truncate version that it began under.
    pub(crate) async fn store(&self, file: &OpenFile, offset: u64, data: SharedBuf) -> Result<u64> {
        let inner = &*self.0;
        let place = file.state().place_for(offset, data.len() as u64)?;
        let chains = inner.chains(&place.layout).await?;
        let pieces: Vec<Piece> = place.layout.pieces(place.data, offset, data.len() as u64).collect();
        let writes = pieces.iter().map(|piece| {
            let from = (piece.file_offset - offset) as usize;
            let update = ChunkUpdate {
                chain: chains[piece.chunk.index as usize % chains.len()],
                chunk: piece.chunk,
                kind: UpdateKind::Write { offset: piece.offset },
                chunk_size: place.layout.chunk_size(),
                payload: data.slice(from..from + piece.length as usize),
            };
            self.write_piece(file, update)
        });
        for written in join_all(writes).await {
            written?;
        }
        Ok(place.truncate_version)
    }

    async fn write_piece(&self, file: &OpenFile, update: ChunkUpdate) -> Result<()> {
        self.change_chunk(&update, file.capability(), Some(file)).await.map(|_| ())
    }

    /// Changes one chunk, under one tag until the chain answers for good.
    pub async fn update_chunk(&self, update: &ChunkUpdate, capability: Capability) -> Result<UpdateResponse> {
        self.change_chunk(update, capability, None).await
    }

    /// An expired capability of `file` is renewed once. The tag stays: an earlier attempt may have been done.
    async fn change_chunk(
        &self,
        update: &ChunkUpdate,
        capability: Capability,
        file: Option<&OpenFile>,
    ) -> Result<UpdateResponse> {
        let inner = &*self.0;
        let deadline = inner.deadline();
        let Some(channel) = inner.channels.take().await else {
            return Err(ClientError::new(Status::Unavailable, "the client is shutting down"));
        };
        let checksums = block_checksums(&update.payload);
        let mut request = UpdateRequest {
            to: Address::default(),
            chunk: update.chunk,
            kind: update.kind,
            chunk_size: update.chunk_size,
            tag: inner.channels.tag(&channel),
            capability,
            checksums,
        };
        let mut result = inner.drive(update, &mut request, deadline).await;
        if let Some(file) = file
            && result.as_ref().is_err_and(|failure| failure.status == Status::BadCapability)
        {
            self.renew_one(file).await?;
            request.capability = file.capability();
            result = inner.drive(update, &mut request, deadline).await;
        }
        inner.give_back(channel, &result);
        result
    }
}

impl Inner {
    async fn drive(
        &self,
        update: &ChunkUpdate,
        request: &mut UpdateRequest,
        deadline: Instant,
    ) -> Result<UpdateResponse> {
        let mut backoff = Backoff::new();
        loop {
            let failure = match self.head(update.chain) {
                None => Self::nobody(format!("chain {} has no serving head", update.chain)),
                Some((to, node)) => {
                    request.to = to;
                    match self.send(&node, request, update.payload.clone(), deadline).await {
                        Ok(response) => return Ok(response),
                        Err(failure) => failure,
                    }
                }
            };
            if !failure.status.is_retryable() {
                return Err(failure);
            }
            tracing::debug!(chunk = %update.chunk, chain = %update.chain, %failure, "update is tried again");
            backoff.wait(self, deadline, failure).await?;
        }
    }

    async fn send(
        &self,
        node: &NodeInfo,
        request: &UpdateRequest,
        payload: SharedBuf,
        deadline: Instant,
    ) -> Result<UpdateResponse> {
        let until = deadline.min(self.rt.now() + Duration::from_millis(self.config.attempt_ms));
        let to = request.to;
        let head = |view: &RoutingInfo| {
            let head = view.chains.get(&to.chain).and_then(|chain| chain.head());
            head.is_some_and(|head| head.target == to.target && head.generation == to.generation)
        };
        let (response, _) = self.call_while::<UpdateChunk>(node, request, payload, 0, until, head).await?;
        match response.status {
            Status::Ok => Ok(response),
            status => Err(ClientError::new(
                status,
                format!("update of chunk {} at target {}", request.chunk, request.to.target),
            )),
        }
    }

    /// Where the head of a chain is, as far as this client knows.
    fn head(&self, chain: ChainId) -> Option<(Address, NodeInfo)> {
        let view = self.routing.view();
        let chain = view.chains.get(&chain)?;
        let head = chain.head()?;
        let to = Address {
            chain: chain.id,
            chain_version: chain.version,
            target: head.target,
            generation: head.generation,
        };
        Some((to, view.node_of(head.target)?.clone()))
    }

    /// A channel whose request may still be on its way is never used again.
    fn give_back(&self, channel: Channel<'_>, result: &Result<UpdateResponse>) {
        let settled = match result {
            Ok(_) => true,
            Err(failure) => !failure.status.is_retryable(),
        };
        if settled {
            self.channels.done(channel);
        }
    }
}
