//! Messages between ranks.

use crate::schedule::{Part, Payload};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// What a message is. Those between two ranks come in the order in which they were sent, and the tag says that the
/// other rank means the same one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag {
    /// Activation or gradient.
    pub payload: Payload,
    /// Module and micro-batch: the same number on both ranks.
    pub part: Part,
}

/// Why a message didn't come or go.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransportError {
    /// The other rank has ended.
    #[error("rank {peer} has ended, and {tag:?} was still to be exchanged with it: see its error")]
    Ended {
        /// The other rank.
        peer: usize,
        /// The message.
        tag: Tag,
    },
    /// The other rank is too slow, or hangs.
    #[error("rank {peer} has not sent {tag:?} for {seconds} s")]
    Late {
        /// The other rank.
        peer: usize,
        /// The message.
        tag: Tag,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// The other rank runs another schedule.
    #[error("rank {peer} has sent {found:?} where {expected:?} was next: both must run the same pipeline")]
    Order {
        /// The other rank.
        peer: usize,
        /// What the program expects.
        expected: Tag,
        /// What came.
        found: Tag,
    },
    /// A rank has given up, because of another one or of itself.
    #[error("rank {peer} has ended because of rank {culprit}: see its error")]
    GivenUp {
        /// Which rank.
        peer: usize,
        /// The one that it names.
        culprit: usize,
    },
    /// What the other rank has sent is no message of this kind.
    #[error(
        "rank {peer} has sent what is no message: all ranks must run the same release and exchange the same type"
    )]
    Damaged {
        /// The other rank.
        peer: usize,
    },
    /// There is no such rank.
    #[error("there is no rank {peer}, or it is this one")]
    NoRank {
        /// Its number.
        peer: usize,
    },
}

/// The way of a rank to the others.
pub trait Transport<T> {
    /// Posts all messages together and waits for those that come; they are returned in the order of `receives`.
    /// Sending doesn't wait for the receiver.
    ///
    /// # Errors
    /// [`TransportError`], in bounded time.
    fn exchange(
        &mut self,
        sends: Vec<(usize, Tag, T)>,
        receives: &[(usize, Tag)],
    ) -> Result<Vec<T>, TransportError>;
}

/// A message from another rank, or what it sent instead.
pub(crate) type Received<T> = Result<(Tag, T), TransportError>;

/// The next message of a rank, which must be the expected one.
pub(crate) fn receive<T>(
    from: &Receiver<Received<T>>,
    peer: usize,
    expected: Tag,
    limit: Duration,
) -> Result<T, TransportError> {
    match from.recv_timeout(limit) {
        Ok(Ok((found, what))) if found == expected => Ok(what),
        Ok(Ok((found, _))) => Err(TransportError::Order { peer, expected, found }),
        Ok(Err(trouble)) => Err(trouble),
        Err(RecvTimeoutError::Disconnected) => Err(TransportError::Ended { peer, tag: expected }),
        Err(RecvTimeoutError::Timeout) => {
            Err(TransportError::Late { peer, tag: expected, seconds: limit.as_secs() })
        }
    }
}

/// Ranks that are threads of one process.
pub struct ThreadTransport<T> {
    to: Vec<Option<Sender<Received<T>>>>,
    from: Vec<Option<Receiver<Received<T>>>>,
    limit: Duration,
}

impl<T> ThreadTransport<T> {
    /// One for each of `ranks` ranks. A message is waited for at most `limit`.
    pub fn mesh(ranks: usize, limit: Duration) -> Vec<Self> {
        let none = || Self { to: Vec::new(), from: Vec::new(), limit };
        let mut all: Vec<Self> = (0..ranks).map(|_| none()).collect();
        for from in 0..ranks {
            for to in 0..ranks {
                let (sender, receiver) = if from == to {
                    (None, None)
                } else {
                    let (sender, receiver) = channel();
                    (Some(sender), Some(receiver))
                };
                all[from].to.push(sender);
                all[to].from.push(receiver);
            }
        }
        all
    }
}

impl<T> Transport<T> for ThreadTransport<T> {
    fn exchange(
        &mut self,
        sends: Vec<(usize, Tag, T)>,
        receives: &[(usize, Tag)],
    ) -> Result<Vec<T>, TransportError> {
        for (peer, tag, what) in sends {
            let to = self.to.get(peer).and_then(Option::as_ref).ok_or(TransportError::NoRank { peer })?;
            to.send(Ok((tag, what))).map_err(|_| TransportError::Ended { peer, tag })?;
        }
        let receive = |&(peer, tag): &(usize, Tag)| {
            let from = self.from.get(peer).and_then(Option::as_ref).ok_or(TransportError::NoRank { peer })?;
            receive(from, peer, tag, self.limit)
        };
        receives.iter().map(receive).collect()
    }
}
