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

/// Ranks that are threads of one process.
pub struct ThreadTransport<T> {
    to: Vec<Option<Sender<(Tag, T)>>>,
    from: Vec<Option<Receiver<(Tag, T)>>>,
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
            to.send((tag, what)).map_err(|_| TransportError::Ended { peer, tag })?;
        }
        let receive = |&(peer, expected): &(usize, Tag)| {
            let from = self.from.get(peer).and_then(Option::as_ref).ok_or(TransportError::NoRank { peer })?;
            match from.recv_timeout(self.limit) {
                Ok((found, what)) if found == expected => Ok(what),
                Ok((found, _)) => Err(TransportError::Order { peer, expected, found }),
                Err(RecvTimeoutError::Disconnected) => Err(TransportError::Ended { peer, tag: expected }),
                Err(RecvTimeoutError::Timeout) => {
                    Err(TransportError::Late { peer, tag: expected, seconds: self.limit.as_secs() })
                }
            }
        };
        receives.iter().map(receive).collect()
    }
}
