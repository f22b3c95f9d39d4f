//! Removing the data of a file on one chain: ordered by meta, carried out as one update a chunk.

use crate::convert::to_craq;
use crate::node::Node;
use crate::target::{Outcome, Target};
use ember_craq::{Change, Input};
use ember_net::{Peer, Request, Response};
use ember_rt::SharedBuf;
use ember_rt::select::join_all;
use ember_types::layout::CHUNK_SIZE_MAX;
use ember_types::{ChainVersion, ChannelId, ChunkId, Instant, Rights, Sequence, Status, WriterTag};
use ember_wire::method::RemoveData;
use ember_wire::storage::{Address, RemoveDataRequest, RemoveDataResponse};
use std::rc::Rc;

/// Chunks removed at once.
const AT_ONCE: usize = 32;
/// Most chunks removed by one request.
const LIMIT_MAX: u32 = 1024;
/// Channels from here on are this node's own, under the asker's session: a client's count from 1.
const OWN_CHANNELS: u32 = 1 << 31;

impl Node {
    pub(crate) async fn remove_data(&self, peer: &Peer, request: &Request) -> Result<Response, Response> {
        let remove = request.decode::<RemoveData>()?;
        let answer = |status, removed, more, chain_version| {
            let body = RemoveDataResponse { status, removed, more, chain_version };
            Ok(Response::ok::<RemoveData>(&body))
        };
        let now = request.received;
        let expires = match self.check(peer, &remove.capability, remove.data, Rights::REMOVE, now) {
            Ok(expires) => expires,
            Err(status) => return answer(status, 0, false, ChainVersion(0)),
        };
        let Some(target) = self.target(remove.to.target) else {
            return answer(Status::StaleRouting, 0, false, ChainVersion(0));
        };
        let limit = remove.limit.clamp(1, LIMIT_MAX) as usize;
        let mut chunks = target.engine.chunks_of(remove.data, remove.from_index, limit + 1);
        // A chunk that is being written for the first time has nothing committed yet.
        let more = chunks.len() > limit;
        chunks.truncate(limit);
        if chunks.is_empty() {
            let status = if self.is_head(&target, &remove.to) { Status::Ok } else { Status::StaleRouting };
            return answer(status, 0, false, target.replica().chain_version());
        }
        let mut removed = 0;
        for batch in chunks.chunks(AT_ONCE) {
            let removals = batch.iter().map(|chunk| self.remove_one(&target, &remove, *chunk, expires));
            for status in join_all(removals).await {
                if status != Status::Ok {
                    return answer(status, removed, true, target.replica().chain_version());
                }
                removed += 1;
            }
        }
        answer(Status::Ok, removed, more, target.replica().chain_version())
    }

    /// That nothing is left counts only if this is the serving head under the asker's chain version.
    fn is_head(&self, target: &Target, to: &Address) -> bool {
        let replica = target.replica();
        let head = replica.chain().and_then(|chain| chain.head().map(|head| (chain.version, head.target)));
        head == Some((to.chain_version, target.id))
            && replica.identity().generation == to.generation
            && replica.may_answer(self.context.rt.now())
    }

    async fn remove_one(
        &self,
        target: &Rc<Target>,
        remove: &RemoveDataRequest,
        chunk: ChunkId,
        expires: Instant,
    ) -> Status {
        let slot = self.removals.take(self.context.cluster_ms());
        let tag = WriterTag {
            client: remove.tag.client,
            channel: ChannelId(OWN_CHANNELS | slot.0),
            sequence: Sequence(slot.1),
        };
        let to = to_craq(&remove.to);
        let asked = target.ask(SharedBuf::default(), Vec::new(), |token| Input::Update {
            token,
            to,
            chunk,
            change: Change::Remove,
            chunk_size: CHUNK_SIZE_MAX,
            tag,
            expires,
        });
        let Outcome::Reply { status, .. } = asked.await else { return Status::Internal };
        self.removals.give_back(slot);
        status
    }
}

/// The node's own channels. Their sequences follow cluster time, so that they grow from one head of a chain to
/// the next one too.
#[derive(Default)]
pub(crate) struct Removals {
    free: std::cell::RefCell<Vec<(u32, u64)>>,
    next: std::cell::Cell<u32>,
}

impl Removals {
    fn take(&self, cluster_ms: u64) -> (u32, u64) {
        let free = self.free.borrow_mut().pop();
        let (slot, last) = free.unwrap_or_else(|| {
            let slot = self.next.get();
            self.next.set(slot + 1);
            (slot, 0)
        });
        (slot, (last + 1).max(cluster_ms << 16))
    }
    fn give_back(&self, slot: (u32, u64)) {
        self.free.borrow_mut().push(slot);
    }
}
