//! Channels of writes: one request outstanding on each, so that storage can make every write happen once
//! (R12).

use crate::shared::Shared;
use ember_rt::sync::{Semaphore, SemaphorePermit};
use ember_types::{ChannelId, Sequence, WriterTag};
use std::cell::RefCell;
use std::sync::Arc;

/// Channels of one reactor.
pub(crate) struct Channels {
    shared: Arc<Shared>,
    free: RefCell<Vec<(ChannelId, Sequence)>>,
    slots: Semaphore,
}

/// A channel in use for one request. Hand it back with [`Channels::done`]; a dropped one is retired, since its
/// request may still be on its way.
pub(crate) struct Channel<'a> {
    id: ChannelId,
    sequence: Sequence,
    _slot: SemaphorePermit<'a>,
}

impl Channels {
    /// At most `limit` requests at once.
    pub(crate) fn new(shared: Arc<Shared>, limit: usize) -> Self {
        Self { shared, free: RefCell::default(), slots: Semaphore::new(limit) }
    }

    /// Takes a channel, waiting for one if all are in use.
    pub(crate) async fn take(&self) -> Option<Channel<'_>> {
        let slot = self.slots.acquire().await.ok()?;
        let free = self.free.borrow_mut().pop();
        let (id, last) = free.unwrap_or_else(|| (self.shared.new_channel(), Sequence(0)));
        Some(Channel { id, sequence: Sequence(last.0 + 1), _slot: slot })
    }

    /// The request has been answered for good: the channel may carry the next one.
    pub(crate) fn done(&self, channel: Channel<'_>) {
        self.free.borrow_mut().push((channel.id, channel.sequence));
    }

    /// What identifies the request on this channel.
    pub(crate) fn tag(&self, channel: &Channel<'_>) -> WriterTag {
        WriterTag { client: self.shared.id(), channel: channel.id, sequence: channel.sequence }
    }
}
