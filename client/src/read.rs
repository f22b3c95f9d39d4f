//! Reading: a range of a file from the replicas of its chunks.

use crate::error::{ClientError, Result};
use crate::open::OpenFile;
use crate::rpc::Backoff;
use crate::{Client, Inner, ZEROS};
use ember_rt::SharedBuf;
use ember_rt::select::join_all;
use ember_types::layout::Piece;
use ember_types::{
    BLOCK_SIZE, Capability, Chain, ChainId, Instant, NodeId, NodeInfo, PublicState, RoutingInfo, Status,
    TargetInfo, block_checksums,
};
use ember_wire::method::ReadChunk;
use ember_wire::storage::{Address, ReadRequest, ReadResponse};
use std::time::Duration;

/// The bytes of a read, in order; holes are shared runs of zeros.
pub type Segments = Vec<SharedBuf>;

/// Who is asked for a piece.
struct Replica {
    to: Address,
    node: NodeInfo,
}

impl Client {
    /// Reads up to `length` bytes at `offset`; fewer at the end of the file. Bytes never written are zeros.
    pub async fn read(&self, file: &OpenFile, offset: u64, length: u64) -> Result<Segments> {
        let inner = &*self.0;
        let state = file.state();
        let end = offset.saturating_add(length).min(state.length());
        if offset >= end {
            return Ok(Vec::new());
        }
        self.settle_bytes(state, offset..end).await;
        let Some(place) = state.place() else { return Ok(Vec::new()) };
        let chains = inner.chains(&place.layout).await?;
        let pieces: Vec<Piece> = place.layout.pieces(place.data, offset, end - offset).collect();
        let deadline = inner.deadline();
        let mut segments = Segments::with_capacity(pieces.len());
        for batch in pieces.chunks(inner.config.reads_per_call_max.max(1)) {
            let reads = batch.iter().map(|piece| {
                let chain = chains[piece.chunk.index as usize % chains.len()];
                self.read_piece(file, chain, piece, deadline)
            });
            for read in join_all(reads).await {
                segments.extend(read?);
            }
        }
        Ok(segments)
    }

    async fn read_piece(
        &self,
        file: &OpenFile,
        chain: ChainId,
        piece: &Piece,
        deadline: Instant,
    ) -> Result<Segments> {
        let mut backoff = Backoff::new();
        let mut tried = Vec::new();
        let mut renewed = false;
        loop {
            let Some(replica) = self.0.choose(chain, piece, &tried) else {
                tried.clear();
                let none = Inner::nobody(format!("chain {chain} has no serving replica"));
                backoff.wait(&self.0, deadline, none).await?;
                continue;
            };
            let failure = match self.0.read_from(&replica, piece, file.capability(), deadline).await {
                Ok(segments) => return Ok(segments),
                Err(failure) => failure,
            };
            if failure.status == Status::BadCapability && !renewed {
                renewed = true;
                self.renew_one(file).await?;
                continue;
            }
            let elsewhere = matches!(failure.status, Status::Corrupt | Status::DataLost);
            if !failure.status.is_retryable() && !elsewhere {
                return Err(failure);
            }
            tracing::debug!(chunk = %piece.chunk, target = %replica.to.target, %failure, "read is tried again");
            tried.push(replica.to.target);
            if self.0.choose(chain, piece, &tried).is_none() {
                tried.clear();
                backoff.wait(&self.0, deadline, failure).await?;
            }
        }
    }

    pub(crate) async fn renew_one(&self, file: &OpenFile) -> Result<()> {
        match self.0.shared.open(file.handle()) {
            Some(open) => self.renew(&[open]).await,
            None => Err(ClientError::new(Status::BadHandle, "the file has been closed")),
        }
    }
}

impl Inner {
    /// The chains of a layout, waiting for routing that knows its table.
    pub(crate) async fn chains(&self, layout: &ember_types::Layout) -> Result<Vec<ChainId>> {
        let deadline = self.deadline();
        let mut backoff = Backoff::new();
        loop {
            match self.routing.view().layout_chains(layout) {
                Some(chains) if !chains.is_empty() => return Ok(chains),
                _ => {}
            }
            let unknown = Self::nobody(format!("chain table {} is not known yet", layout.table()));
            backoff.wait(self, deadline, unknown).await?;
        }
    }

    /// The serving replica with the fewest bytes outstanding among those not tried.
    fn choose(&self, chain: ChainId, piece: &Piece, tried: &[ember_types::TargetId]) -> Option<Replica> {
        let view = self.routing.view();
        let chain = view.chains.get(&chain)?;
        let outstanding = self.outstanding.borrow();
        let serving: Vec<_> = chain.serving().collect();
        let turn = piece.chunk.index as usize;
        let (_, member) = (0..serving.len())
            .map(|i| (i, serving[(i + turn) % serving.len()]))
            .filter(|(_, member)| !tried.contains(&member.target))
            .filter(|(_, member)| view.node_of(member.target).is_some())
            .min_by_key(|(i, member)| {
                let node = view.node_of(member.target).map_or(NodeId(0), |node| node.id);
                (outstanding.get(&node).copied().unwrap_or(0), *i)
            })?;
        replica(chain, view.targets.get(&member.target)?, view.node_of(member.target)?)
    }

    async fn read_from(
        &self,
        replica: &Replica,
        piece: &Piece,
        capability: Capability,
        deadline: Instant,
    ) -> Result<Segments> {
        let request = ReadRequest {
            to: replica.to,
            chunk: piece.chunk,
            offset: piece.offset,
            length: piece.length,
            flags: 0,
            capability,
        };
        let asked = self.rt.now();
        let until = deadline.min(asked + Duration::from_millis(self.config.read_attempt_ms));
        let node = replica.node.id;
        *self.outstanding.borrow_mut().entry(node).or_default() += u64::from(piece.length);
        let expect = piece.length as usize + 2 * BLOCK_SIZE;
        let to = replica.to;
        let serves = |view: &RoutingInfo| {
            let member = view.chains.get(&to.chain).and_then(|chain| chain.member(to.target));
            member.is_some_and(|m| m.state == PublicState::Serving && m.generation == to.generation)
        };
        let none = SharedBuf::default();
        let result = self.call_while::<ReadChunk>(&replica.node, &request, none, expect, until, serves).await;
        if let Some(bytes) = self.outstanding.borrow_mut().get_mut(&node) {
            *bytes -= u64::from(piece.length);
        }
        let (response, payload) = result?;
        match response.status {
            Status::Ok => self.verified(piece, &response, payload),
            Status::NotFound => Ok(self.zeros(piece.length as usize)),
            status => Err(ClientError::new(
                status,
                format!("read of chunk {} at target {}", piece.chunk, replica.to.target),
            )),
        }
    }

    /// Checks the payload and cuts out what was asked for; what the chunk lacks are zeros.
    fn verified(&self, piece: &Piece, response: &ReadResponse, payload: SharedBuf) -> Result<Segments> {
        let mismatch = |what: &str| {
            let text = format!("read of chunk {}: {what}", piece.chunk);
            Err(ClientError::new(Status::ChecksumMismatch, text))
        };
        if block_checksums(&payload) != response.checksums {
            return mismatch("payload fails its checksums");
        }
        let skip = piece.offset as usize % BLOCK_SIZE;
        let wanted = response.chunk_length.saturating_sub(piece.offset).min(piece.length) as usize;
        if wanted > 0 && payload.len() < skip + wanted {
            return mismatch("payload is shorter than the chunk");
        }
        let mut segments = Segments::new();
        if wanted > 0 {
            segments.push(payload.slice(skip..skip + wanted));
        }
        segments.extend(self.zeros(piece.length as usize - wanted));
        Ok(segments)
    }

    fn zeros(&self, length: usize) -> Segments {
        (0..length).step_by(ZEROS).map(|at| self.zeros.slice(0..ZEROS.min(length - at))).collect()
    }
}

fn replica(chain: &Chain, target: &TargetInfo, node: &NodeInfo) -> Option<Replica> {
    let member = chain.member(target.id)?;
    let to = Address {
        chain: chain.id,
        chain_version: chain.version,
        target: target.id,
        generation: member.generation,
    };
    Some(Replica { to, node: node.clone() })
}
