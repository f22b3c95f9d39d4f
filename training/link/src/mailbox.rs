//! What has arrived and is not received yet; the reactor puts it in, the rank's thread takes it out.

use crate::{LinkError, MESSAGES_MAX, Tag};
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest sleep between two looks at whatever else a rank waits for.
const NAP: Duration = Duration::from_millis(50);

#[expect(clippy::disallowed_methods, reason = "ranks of a training job run outside the file system's seam")]
fn now() -> Instant {
    Instant::now()
}

/// How a rank has ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// In order.
    Left,
    /// Because of a rank.
    Failed(usize),
    /// The connection has, without a word before.
    Gone(String),
    /// It has sent what is no message.
    Damaged(String),
}

#[derive(Default)]
struct Peer {
    connected: bool,
    messages: BTreeMap<Tag, Message>,
    end: Option<End>,
}

struct Message {
    total: usize,
    bytes: Vec<u8>,
}

/// A part of a message.
pub(crate) struct Part<'a> {
    pub(crate) tag: Tag,
    pub(crate) total: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: &'a [u8],
}

pub(crate) struct Mailbox {
    own: usize,
    message_max: usize,
    peers: Mutex<Vec<Peer>>,
    changed: Condvar,
}

impl Mailbox {
    pub(crate) fn new(own: usize, ranks: usize, message_max: usize) -> Self {
        let peers = Mutex::new((0..ranks).map(|_| Peer::default()).collect());
        Self { own, message_max, peers, changed: Condvar::new() }
    }

    fn peers(&self) -> MutexGuard<'_, Vec<Peer>> {
        // No code panics while it holds the lock, but for want of memory.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a part of a rank's message; an error says which rule it breaks, and is the rank's end.
    pub(crate) fn put(&self, rank: usize, part: &Part<'_>) -> Result<(), String> {
        let mut peers = self.peers();
        let Some(peer) = peers.get_mut(rank).filter(|_| rank != self.own) else {
            return Err(format!("there is no rank {rank}, or it is this one"));
        };
        let taken = peer.take(part, self.message_max);
        if let Err(why) = &taken {
            peer.end.get_or_insert_with(|| End::Damaged(why.clone()));
        }
        self.changed.notify_all();
        taken
    }

    pub(crate) fn connected(&self, rank: usize) {
        self.peers()[rank].connected = true;
        self.changed.notify_all();
    }
    /// The first word about a rank's end counts.
    pub(crate) fn end(&self, rank: usize, end: End) {
        if let Some(peer) = self.peers().get_mut(rank) {
            peer.end.get_or_insert(end);
        }
        self.changed.notify_all();
    }

    pub(crate) fn has_ended(&self, rank: usize) -> bool {
        self.peers().get(rank).is_none_or(|peer| peer.end.is_some())
    }

    /// Waits until this side has a connection to each rank.
    pub(crate) fn wait_connected(&self, limit: Duration) -> Result<(), LinkError> {
        let missing = |peers: &mut Vec<Peer>| {
            let all = peers.iter().enumerate();
            let found = all.filter(|(rank, peer)| *rank != self.own && !peer.connected).map(|(rank, _)| rank);
            found.min().map_or(Some(Ok(())), |rank| trouble(peers, Some(rank), "answered").map(Err))
        };
        self.wait(limit, || Ok(()), missing).unwrap_or_else(|| {
            let peers = self.peers();
            let late = peers.iter().enumerate().find(|(rank, peer)| *rank != self.own && !peer.connected);
            let (rank, milliseconds) = (late.map_or(self.own, |(rank, _)| rank), limit.as_millis());
            Err(LinkError::Late { rank, what: "answered", milliseconds })
        })
    }

    /// Waits for a message. `check` is called now and then, and its error ends the wait.
    pub(crate) fn receive<E: From<LinkError>>(
        &self,
        rank: usize,
        tag: Tag,
        what: &'static str,
        limit: Duration,
        check: impl FnMut() -> Result<(), E>,
    ) -> Result<Vec<u8>, E> {
        let take = |peers: &mut Vec<Peer>| {
            if let Some(peer) = peers.get_mut(rank)
                && peer.messages.get(&tag).is_some_and(|message| message.bytes.len() == message.total)
                && let Some(message) = peer.messages.remove(&tag)
            {
                return Some(Ok(message.bytes));
            }
            trouble(peers, Some(rank), what).map(|error| Err(error.into()))
        };
        let late = LinkError::Late { rank, what, milliseconds: limit.as_millis() };
        self.wait(limit, check, take).unwrap_or(Err(late.into()))
    }

    /// Whether a rank has died or given up.
    pub(crate) fn check(&self) -> Result<(), LinkError> {
        trouble(&self.peers(), None, "ended in order").map_or(Ok(()), Err)
    }

    /// `None` when the limit is over.
    fn wait<T, E>(
        &self,
        limit: Duration,
        mut check: impl FnMut() -> Result<(), E>,
        mut found: impl FnMut(&mut Vec<Peer>) -> Option<Result<T, E>>,
    ) -> Option<Result<T, E>> {
        let until = now() + limit;
        loop {
            let mut peers = self.peers();
            if let Some(found) = found(&mut peers) {
                return Some(found);
            }
            let left = until.saturating_duration_since(now()).min(NAP);
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(peers, left).unwrap_or_else(PoisonError::into_inner);
            drop(waited.0);
            if waited.1.timed_out()
                && let Err(error) = check()
            {
                return Some(Err(error));
            }
        }
    }
}

impl Peer {
    fn take(&mut self, part: &Part<'_>, message_max: usize) -> Result<(), String> {
        let total = usize::try_from(part.total).ok().filter(|total| *total <= message_max);
        let Some(total) = total else {
            return Err(format!("{} bytes are more than the {message_max} of a message", part.total));
        };
        if !self.messages.contains_key(&part.tag) && self.messages.len() >= MESSAGES_MAX {
            return Err(format!("more than {MESSAGES_MAX} messages wait to be received"));
        }
        let new = Message { total, bytes: Vec::new() };
        let message = self.messages.entry(part.tag).or_insert(new);
        let there = message.bytes.len();
        // An empty message has one part; any other has bytes in each.
        let fits = part.bytes.len() <= total - there && (!part.bytes.is_empty() || total == 0);
        if message.total != total || part.offset != there as u64 || !fits {
            return Err(format!(
                "{} bytes of {total} at {} don't follow {there} of {}",
                part.bytes.len(),
                part.offset,
                message.total
            ));
        }
        if there == 0 {
            message.bytes.reserve_exact(total);
        }
        message.bytes.extend_from_slice(part.bytes);
        Ok(())
    }
}

/// What keeps a rank from waiting on: another one has failed, or the awaited one has left.
fn trouble(peers: &[Peer], awaited: Option<usize>, what: &'static str) -> Option<LinkError> {
    let of = |(rank, peer): (usize, &Peer)| match peer.end.clone()? {
        End::Left if awaited != Some(rank) => None,
        End::Left => Some(LinkError::Gone { rank, what, why: "it has left".into() }),
        End::Failed(culprit) => Some(LinkError::Ended { rank, culprit }),
        End::Gone(why) => Some(LinkError::Gone { rank, what, why }),
        End::Damaged(why) => Some(LinkError::Damaged { rank, why }),
    };
    // Who says a reason knows more than a connection that is cut.
    let failed = peers.iter().enumerate().filter(|(_, peer)| matches!(peer.end, Some(End::Failed(_))));
    failed.chain(peers.iter().enumerate()).find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_must_follow_each_other() {
        let mailbox = Mailbox::new(0, 2, 10);
        let tag = |number| Tag { channel: 0, number };
        let put = |number, total, offset, bytes: &[u8]| {
            mailbox.put(1, &Part { tag: tag(number), total, offset, bytes })
        };
        put(1, 5, 0, b"abc").unwrap();
        put(1, 5, 3, b"de").unwrap();
        put(2, 0, 0, b"").unwrap();
        let receive =
            |number| mailbox.receive(1, tag(number), "sent", Duration::ZERO, || Ok::<(), LinkError>(()));
        assert_eq!(receive(1).unwrap(), b"abcde");
        assert_eq!(receive(2).unwrap(), b"");
        // Half a message is none.
        put(3, 5, 0, b"abc").unwrap();
        assert!(matches!(receive(3), Err(LinkError::Late { rank: 1, .. })));
        for (total, offset, bytes) in [
            (11, 0, &b"a"[..]),
            (u64::MAX, 0, b"a"),
            (5, 0, b"a"),
            (5, 4, b"a"),
            (6, 3, b"a"),
            (5, 3, b"abc"),
            (5, 3, b""),
            (5, u64::MAX, b"a"),
        ] {
            put(3, total, offset, bytes).unwrap_err();
        }
        assert!(matches!(receive(3), Err(LinkError::Damaged { rank: 1, .. })));
        let part = |rank| mailbox.put(rank, &Part { tag: tag(9), total: 0, offset: 0, bytes: b"" });
        assert!(part(0).is_err() && part(2).is_err(), "no such ranks");
    }
}
