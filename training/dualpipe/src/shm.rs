//! Ranks that are processes of one machine, joined by shared memory.
//!
//! Each rank has a ring in each other's memory, into which a thread of its own writes messages one after the other, as
//! far as there is room; the receiver says how far it has read.

use crate::message::{HEADER, Message, framed, unframed};
use crate::tcp::{JoinError, spawn};
use crate::transport::{Tag, Transport, TransportError};
use ember_heap::{Heap, HeapError, Join};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of a ring at least, and at most: counters of 32 bits must go round in whole rings.
const ROOM: std::ops::RangeInclusive<usize> = 1 << 12..=1 << 30;
const RELEASE: u64 = 1;

/// So many bytes have been written into the ring, counted round.
const WRITTEN: usize = 0;
/// So many have been read.
const TAKEN: usize = 1;
const SIGNALS: usize = 2;

/// Which ranks belong together.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// The file that they share, which must be in memory (`/dev/shm`), must not be there before, and is gone when all
    /// have joined or one has given up.
    pub path: &'a Path,
    /// The number of the own rank.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
    /// Bytes from one rank to another that may be on their way; the rest of what is sent waits in the sender's memory.
    /// Rounded up to a power of two between 4 KiB and 1 GiB.
    pub room: usize,
    /// How long a rank or a message is waited for at most.
    pub limit: Duration,
}

/// Ranks that are processes of one machine.
pub struct ShmTransport<T> {
    heap: Arc<Heap>,
    room: usize,
    peers: Vec<Option<Peer>>,
    message: PhantomData<fn(T) -> T>,
}

struct Peer {
    out: Option<Sender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
    /// Bytes read, counted round.
    taken: u32,
}

impl<T: Message> ShmTransport<T> {
    /// Joins the other ranks; returns when all are there.
    ///
    /// # Errors
    /// [`JoinError`], in bounded time.
    pub fn join(shared: &Shared<'_>) -> Result<Self, JoinError> {
        let Shared { path, rank, ranks, limit, .. } = *shared;
        if rank >= ranks {
            return Err(JoinError::Rank { rank, ranks });
        }
        let room = shared.room.clamp(*ROOM.start(), *ROOM.end()).next_power_of_two();
        let words = [("release", RELEASE), ("ranks", ranks as u64), ("room", room as u64)];
        let bytes = room.saturating_mul(ranks);
        let heap =
            Heap::join(&Join { path, rank, ranks, first: 0, signals: SIGNALS, bytes, words: &words, limit })?;
        let heap = Arc::new(heap);
        let peer = |peer: usize| (peer != rank).then(|| Peer::start(&heap, peer, room));
        let peers = (0..ranks).map(peer).collect();
        Ok(Self { heap, room, peers, message: PhantomData })
    }

    /// The next `length` bytes of a rank, behind others.
    fn read(&mut self, from: usize, tag: Tag, length: u64, into: &mut Vec<u8>) -> Result<(), TransportError> {
        let (heap, room) = (&self.heap, self.room);
        let peer = self.peers.get_mut(from).and_then(Option::as_mut);
        let peer = peer.ok_or(TransportError::NoRank { peer: from })?;
        let mut left = length;
        while left > 0 {
            let waited = heap.wait(from, WRITTEN, peer.taken.wrapping_add(1), "sent a message");
            waited.map_err(|error| failed(error, from, tag))?;
            let there = heap.last(from, WRITTEN).wrapping_sub(peer.taken) as usize;
            if there > room {
                return Err(TransportError::Damaged { peer: from });
            }
            let at = peer.taken as usize % room;
            let now = there.min(room - at).min(usize::try_from(left).unwrap_or(usize::MAX));
            into.extend_from_slice(heap.own(from * room + at, now));
            left -= now as u64;
            peer.taken = peer.taken.wrapping_add(now as u32);
            heap.tell(from, TAKEN, peer.taken);
        }
        Ok(())
    }

    fn receive(&mut self, from: usize, expected: Tag) -> Result<T, TransportError> {
        let mut header = Vec::with_capacity(HEADER);
        self.read(from, expected, HEADER as u64, &mut header)?;
        let header = header.first_chunk().and_then(unframed);
        let (found, length) = header.ok_or(TransportError::Damaged { peer: from })?;
        // Memory grows with what comes, not with what is announced.
        let mut body = Vec::new();
        self.read(from, expected, length, &mut body)?;
        let what = T::decode(&body).ok_or(TransportError::Damaged { peer: from })?;
        if found != expected {
            return Err(TransportError::Order { peer: from, expected, found });
        }
        Ok(what)
    }

    fn exchanged(
        &mut self,
        sends: Vec<(usize, Tag, T)>,
        receives: &[(usize, Tag)],
    ) -> Result<Vec<T>, TransportError> {
        for (to, tag, what) in sends {
            let peer = self.peers.get(to).and_then(Option::as_ref);
            let out = &peer.ok_or(TransportError::NoRank { peer: to })?.out;
            let taken = out.as_ref().is_some_and(|out| out.send(framed(tag, &what)).is_ok());
            if !taken {
                return Err(TransportError::Ended { peer: to, tag });
            }
        }
        receives.iter().map(|&(from, tag)| self.receive(from, tag)).collect()
    }
}

impl Peer {
    fn start(heap: &Arc<Heap>, peer: usize, room: usize) -> Self {
        let (out, messages) = channel::<Vec<u8>>();
        let heap = heap.clone();
        let writer = spawn(move || {
            let mut written = 0u32;
            while let Ok(message) = messages.recv() {
                if write(&heap, peer, room, &mut written, &message).is_err() {
                    return;
                }
            }
        });
        Self { out: Some(out), writer: Some(writer), taken: 0 }
    }
}

/// Writes a message into a rank's ring, part by part as there is room.
fn write(heap: &Heap, to: usize, room: usize, written: &mut u32, message: &[u8]) -> Result<(), HeapError> {
    let mut rest = message;
    while !rest.is_empty() {
        let at = *written as usize % room;
        // Half a ring at most, so that the other half can be read meanwhile.
        let (now, later) = rest.split_at(rest.len().min(room - at).min(room / 2));
        let end = written.wrapping_add(now.len() as u32);
        heap.wait(to, TAKEN, end.wrapping_sub(room as u32), "read what was sent before")?;
        heap.put(to, heap.rank() * room + at, now);
        heap.tell(to, WRITTEN, end);
        (*written, rest) = (end, later);
    }
    Ok(())
}

fn failed(error: HeapError, peer: usize, tag: Tag) -> TransportError {
    match error {
        HeapError::Gone { rank, .. } => TransportError::Ended { peer: rank, tag },
        HeapError::Ended { rank, culprit } => TransportError::GivenUp { peer: rank, culprit },
        HeapError::Late { rank, milliseconds, .. } => TransportError::Late {
            peer: rank,
            tag,
            seconds: u64::try_from(milliseconds / 1000).unwrap_or(u64::MAX),
        },
        HeapError::Disagree { .. } | HeapError::File { .. } => TransportError::Damaged { peer },
    }
}

impl<T: Message> Transport<T> for ShmTransport<T> {
    fn exchange(
        &mut self,
        sends: Vec<(usize, Tag, T)>,
        receives: &[(usize, Tag)],
    ) -> Result<Vec<T>, TransportError> {
        let result = self.exchanged(sends, receives);
        match &result {
            Err(TransportError::GivenUp { culprit, .. }) => self.heap.fail(*culprit),
            Err(
                TransportError::Ended { peer, .. }
                | TransportError::Late { peer, .. }
                | TransportError::Order { peer, .. }
                | TransportError::Damaged { peer },
            ) => self.heap.fail(*peer),
            Err(TransportError::NoRank { .. }) | Ok(_) => {}
        }
        result
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // What was sent is still written, for as long as the limit allows.
        drop(self.out.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
