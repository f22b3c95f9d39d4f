//! Write-behind: writes that the program doesn't wait for, so that a stream with one write at a time keeps many
//! replicas' disks busy.
//!
//! What is accepted is sent at once. Small writes that continue each other while something of their file is under
//! way go together, up to 1 MiB. Whoever has to know how they ended waits for them: reads and writes of the same
//! bytes; flush, fsync, close and changes of length or times for all of the file. A failure is told once to each
//! open of the file that was there, by its next write, flush, fsync or close, as fsync(2) has it.

use crate::error::{ClientError, Result};
use crate::open::{FileState, OpenFile};
use crate::shared::lock;
use crate::{Client, Inner};
use ember_rt::sync::{Notify, OwnedSemaphorePermit};
use ember_rt::{Buf, SharedBuf};
use ember_types::{Status, UnixTime};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Writes of this length or more are never gathered.
const LARGE: usize = 128 << 10;
/// Open writes of a file at most: the channels of a client are there for all of its files.
const OPEN_MAX: usize = 64;
/// Gathered writes end where the file offset is a multiple of this, in bytes.
const GATHER: u64 = 1 << 20;

/// The accepted writes of one file that have no answer yet.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    writes: Mutex<Writes>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Writes {
    /// Number of the last write that was accepted.
    last: u64,
    /// Bytes of each write without an answer, by number.
    open: BTreeMap<u64, Range<u64>>,
    /// All these bytes.
    bytes: u64,
    /// One of these that has not been sent: others may join it.
    gathered: Option<Piece>,
    failures: u64,
    failure: Option<ClientError>,
}

/// A write on its way, or several that continue each other.
#[derive(Debug)]
struct Piece {
    file: Arc<OpenFile>,
    number: u64,
    offset: u64,
    data: Data,
    accepted: UnixTime,
    /// Of the file, when the write was accepted.
    truncate_version: u64,
    /// Writes that went together.
    writes: usize,
    /// Freed when it has ended.
    room: Vec<OwnedSemaphorePermit>,
    ended: bool,
}

#[derive(Debug)]
enum Data {
    One(SharedBuf),
    Several(Buf),
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::One(data) => data.len(),
            Self::Several(buf) => buf.len(),
        }
    }
    fn append(&mut self, more: &[u8]) {
        let mut buf = match std::mem::replace(self, Self::One(SharedBuf::default())) {
            Self::Several(buf) => buf,
            Self::One(data) => {
                let mut buf = Buf::scratch(GATHER as usize);
                buf.set_len(data.len());
                buf.bytes_mut().copy_from_slice(&data);
                buf
            }
        };
        let before = buf.len();
        buf.set_len(before + more.len());
        buf.bytes_mut()[before..].copy_from_slice(more);
        *self = Self::Several(buf);
    }
    fn take(&mut self) -> SharedBuf {
        match std::mem::replace(self, Self::One(SharedBuf::default())) {
            Self::One(data) => data,
            Self::Several(buf) => buf.into(),
        }
    }
}

impl Piece {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.data.len() as u64
    }
    /// Whether `next` may go with it.
    fn continued_by(&self, next: &Self) -> bool {
        let end = next.range().end;
        Arc::ptr_eq(&self.file, &next.file)
            && self.truncate_version == next.truncate_version
            && self.range().end == next.offset
            && self.offset / GATHER == (end - 1) / GATHER
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if !self.ended {
            let text = "the client ended before the write did";
            self.file.state().ended(self.writes);
            self.file.state().behind().landed(self.number, Some(ClientError::new(Status::Unavailable, text)));
        }
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// What became of a write that was offered.
enum Offered {
    /// These are to be sent now, in this order.
    Taken(Vec<Piece>),
    /// Another write of the same bytes must end first, or any if there is no room; what was gathered is to be sent.
    Wait(Box<Piece>, Option<Box<Piece>>),
}

impl Behind {
    /// Takes a write as long as no more than `room` bytes of the file are open.
    fn offer(&self, mut piece: Piece, room: u64) -> Offered {
        let mut writes = lock(&self.writes);
        let (open, bytes) = (writes.open.len(), writes.bytes + piece.data.len() as u64);
        let full = open >= OPEN_MAX || (open > 0 && bytes > room);
        if full || writes.is_open(&piece.range()) {
            return Offered::Wait(Box::new(piece), writes.gathered.take().map(Box::new));
        }
        if let Some(gathered) = writes.gathered.take() {
            if gathered.continued_by(&piece) {
                return Offered::Taken(writes.join(gathered, piece));
            }
            writes.number(&mut piece);
            let mut sent = vec![gathered];
            sent.extend(writes.gather(piece));
            return Offered::Taken(sent);
        }
        let idle = writes.open.is_empty();
        writes.number(&mut piece);
        Offered::Taken(if idle { vec![piece] } else { writes.gather(piece).into_iter().collect() })
    }

    /// A write has ended.
    fn landed(&self, number: u64, failure: Option<ClientError>) {
        let mut writes = lock(&self.writes);
        let bytes = writes.open.remove(&number).unwrap_or_default();
        writes.bytes -= bytes.end - bytes.start;
        if failure.is_some() {
            writes.failures += 1;
            writes.failure = failure;
        }
        drop(writes);
        self.ended.notify_waiters();
    }

    /// Takes what is gathered, to send it; whether a write up to number `last` of these bytes has no answer yet.
    fn look(&self, last: u64, bytes: &Range<u64>) -> (Option<Piece>, bool) {
        let mut writes = lock(&self.writes);
        let open = writes.open.range(..=last).any(|(_, open)| overlap(open, bytes));
        (if open { writes.gathered.take() } else { None }, open)
    }

    fn last(&self) -> u64 {
        lock(&self.writes).last
    }

    /// What was gathered and has nothing left to wait for.
    fn next(&self) -> Option<Piece> {
        let mut writes = lock(&self.writes);
        if writes.open.len() == 1 { writes.gathered.take() } else { None }
    }

    /// How many writes of this file have failed.
    pub(crate) fn failures(&self) -> u64 {
        lock(&self.writes).failures
    }

    /// The last failure, if there were more than `known`.
    pub(crate) fn failure_since(&self, known: u64) -> Option<(u64, ClientError)> {
        let writes = lock(&self.writes);
        let failure = writes.failure.clone().filter(|_| writes.failures > known)?;
        Some((writes.failures, failure))
    }
}

impl Writes {
    fn is_open(&self, bytes: &Range<u64>) -> bool {
        self.open.values().any(|open| overlap(open, bytes))
    }
    fn number(&mut self, piece: &mut Piece) {
        self.last += 1;
        piece.number = self.last;
        self.bytes += piece.data.len() as u64;
        self.open.insert(piece.number, piece.range());
    }
    /// Keeps a small write for others to join it; a large one is to be sent.
    fn gather(&mut self, piece: Piece) -> Option<Piece> {
        if piece.data.len() >= LARGE {
            return Some(piece);
        }
        self.gathered = Some(piece);
        None
    }
    /// Lets `next` join what is gathered, which is to be sent when it is full.
    fn join(&mut self, mut gathered: Piece, mut next: Piece) -> Vec<Piece> {
        let more = next.data.take();
        gathered.data.append(&more);
        next.ended = true;
        let end = gathered.range().end;
        self.bytes += more.len() as u64;
        self.open.insert(gathered.number, gathered.range());
        gathered.accepted = next.accepted;
        gathered.room.append(&mut next.room);
        gathered.writes += next.writes;
        if end.is_multiple_of(GATHER) {
            return vec![gathered];
        }
        self.gathered = Some(gathered);
        Vec::new()
    }
}

impl Client {
    /// Accepts a write of `data` at `offset` and sends it; it may go on when this returns. Waits for other writes of
    /// the same bytes, and of the file when it has half of `write_behind_kib`; where all of that is taken it waits
    /// for the write itself, as [`Client::write`] does: files never wait for one another. Fails if an earlier write
    /// has failed and this open hasn't been told yet; then nothing is accepted.
    pub async fn write_behind(&self, file: &Arc<OpenFile>, offset: u64, data: SharedBuf) -> Result<()> {
        file.report()?;
        let inner = &*self.0;
        let place = file.state().place_for(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        let kib = u32::try_from(data.len().div_ceil(1024)).unwrap_or(u32::MAX);
        let Ok(room) = inner.behind.clone().try_acquire_many_owned(kib) else {
            return self.write(file, offset, data).await;
        };
        let end = offset + data.len() as u64;
        let accepted = inner.rt.unix_now();
        let mut piece = Piece {
            file: file.clone(),
            number: 0,
            offset,
            data: Data::One(data),
            accepted,
            truncate_version: place.truncate_version,
            writes: 1,
            room: vec![room],
            ended: false,
        };
        file.state().accepted(end, place.truncate_version, accepted);
        let behind = file.state().behind();
        let share = u64::from(inner.config.write_behind_kib) * 1024 / 2;
        loop {
            let ended = behind.ended.notified();
            match behind.offer(piece, share) {
                Offered::Taken(pieces) => {
                    pieces.into_iter().for_each(|piece| self.send_off(piece));
                    return Ok(());
                }
                Offered::Wait(back, gathered) => {
                    piece = *back;
                    gathered.into_iter().for_each(|piece| self.send_off(*piece));
                    ended.await;
                }
            }
        }
    }

    /// Waits until all that [`Client::write_behind`] has accepted has ended, also what this reactor carries for
    /// others. Afterwards it waits for each write here.
    pub async fn end_behind(&self) {
        let Inner { behind, config, shared, .. } = &*self.0;
        for open in shared.opens() {
            self.settle_writes(open.state()).await;
        }
        // The semaphore is never closed.
        if let Ok(all) = behind.acquire_many(config.write_behind_kib).await {
            all.forget();
        }
    }

    /// Waits for the writes of these bytes that were accepted before.
    pub(crate) async fn settle_bytes(&self, state: &FileState, bytes: Range<u64>) {
        let behind = state.behind();
        let last = behind.last();
        loop {
            let ended = behind.ended.notified();
            let (gathered, open) = behind.look(last, &bytes);
            gathered.into_iter().for_each(|piece| self.send_off(piece));
            if !open {
                return;
            }
            ended.await;
        }
    }

    /// Waits for all writes of a file that were accepted before.
    pub(crate) async fn settle_writes(&self, state: &FileState) {
        self.settle_bytes(state, 0..u64::MAX).await;
    }

    fn send_off(&self, piece: Piece) {
        let client = self.clone();
        self.0.rt.spawn("write-behind", async move {
            let mut next = Some(piece);
            while let Some(piece) = next {
                next = client.land(piece).await;
            }
        });
    }

    /// Writes a piece; returns what was gathered meanwhile if nothing else is under way.
    async fn land(&self, mut piece: Piece) -> Option<Piece> {
        let data = piece.data.take();
        let file = piece.file.clone();
        let (state, end) = (file.state(), piece.offset + data.len() as u64);
        let written = self.store(&file, piece.offset, data).await;
        match &written {
            Ok(truncate_version) => state.wrote(end, *truncate_version, piece.accepted),
            Err(error) => tracing::warn!(inode = %state.inode(), %error, "an accepted write has failed"),
        }
        state.ended(piece.writes);
        piece.ended = true;
        let number = piece.number;
        drop(piece);
        state.behind().landed(number, written.err());
        state.behind().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::tests::attributes;
    use crate::open::{Grant, session_of};
    use ember_types::{Capability, ClientId, Instant};
    use ember_wire::meta::OpenFlags;
    use std::time::Duration;

    const KIB: u64 = 1024;
    const ROOM: u64 = 16 << 20;

    fn opened(state: &Arc<FileState>, handle: u64) -> Arc<OpenFile> {
        let grant = Grant::new(Capability::NONE, Instant(0), Duration::from_secs(1));
        let session = session_of(ClientId::from_u128(1), handle);
        Arc::new(OpenFile::new(state.clone(), handle, session, OpenFlags::default(), grant))
    }

    fn file() -> Arc<OpenFile> {
        opened(&Arc::new(FileState::new(&attributes(0, 1))), 1)
    }

    fn piece(file: &Arc<OpenFile>, offset: u64, len: u64) -> Piece {
        let bytes: Vec<u8> = (offset..offset + len).map(|at| (at % 251) as u8).collect();
        Piece {
            file: file.clone(),
            number: 0,
            offset,
            data: Data::One(SharedBuf::from(&bytes[..])),
            accepted: UnixTime::default(),
            truncate_version: 1,
            writes: 0,
            room: Vec::new(),
            ended: false,
        }
    }

    fn sent(offered: Offered) -> Vec<Piece> {
        match offered {
            Offered::Taken(pieces) => pieces,
            Offered::Wait(..) => panic!("the write is taken"),
        }
    }

    fn end(mut piece: Piece, failure: Option<ClientError>) {
        piece.ended = true;
        piece.file.state().behind().landed(piece.number, failure);
    }

    fn failed() -> Option<ClientError> {
        Some(ClientError::new(Status::NoSpace, "full"))
    }

    #[test]
    fn small_writes_that_continue_each_other_go_together_while_one_is_under_way() {
        let file = file();
        let behind = file.state().behind();
        let first = sent(behind.offer(piece(&file, 0, 4 * KIB), ROOM)).pop().expect("the first goes at once");
        for at in 1..5 {
            assert!(sent(behind.offer(piece(&file, at * 4 * KIB, 4 * KIB), ROOM)).is_empty());
        }
        assert!(behind.next().is_none(), "one is under way");
        end(first, None);
        let mut next = behind.next().expect("the others go together");
        assert_eq!(next.range(), 4 * KIB..20 * KIB);
        let data = next.data.take();
        assert!((4 * KIB..20 * KIB).zip(&data[..]).all(|(at, byte)| *byte == (at % 251) as u8));
        end(next, None);
        assert!(behind.last() == 2 && !behind.look(2, &(0..u64::MAX)).1);
    }

    #[test]
    fn a_full_one_goes_and_so_does_one_that_another_does_not_continue() {
        let file = file();
        let behind = file.state().behind();
        let first = sent(behind.offer(piece(&file, 0, 1000 * KIB), ROOM));
        assert_eq!(first.len(), 1);
        assert!(sent(behind.offer(piece(&file, 1000 * KIB, 20 * KIB), ROOM)).is_empty());
        let full = sent(behind.offer(piece(&file, 1020 * KIB, 4 * KIB), ROOM));
        assert_eq!(full[0].range(), 1000 * KIB..1024 * KIB);
        assert!(sent(behind.offer(piece(&file, 1024 * KIB, KIB), ROOM)).is_empty());
        let apart = sent(behind.offer(piece(&file, 9000 * KIB, KIB), ROOM));
        assert_eq!((apart.len(), apart[0].range()), (1, 1024 * KIB..1025 * KIB));
        let large = sent(behind.offer(piece(&file, 9001 * KIB, 500 * KIB), ROOM));
        assert_eq!(large.len(), 2, "what was gathered goes before it");
        for piece in [first, full, apart, large].into_iter().flatten() {
            end(piece, None);
        }
    }

    #[test]
    fn bytes_that_another_write_has_wait_for_it() {
        let file = file();
        let behind = file.state().behind();
        let first = sent(behind.offer(piece(&file, 0, 8 * KIB), ROOM)).pop().expect("sent");
        assert!(sent(behind.offer(piece(&file, 8 * KIB, KIB), ROOM)).is_empty());
        let Offered::Wait(back, gathered) = behind.offer(piece(&file, 8 * KIB, 2 * KIB), ROOM) else {
            panic!("it has to wait");
        };
        let gathered = gathered.expect("what it waits for is sent");
        assert_eq!(gathered.range(), 8 * KIB..9 * KIB);
        assert!(
            behind.look(behind.last(), &(0..1)).1 && !behind.look(behind.last(), &(20 * KIB..30 * KIB)).1
        );
        end(*gathered, None);
        end(first, None);
        let last = sent(behind.offer(*back, ROOM)).pop().expect("nothing is in its way");
        end(last, None);
    }

    #[test]
    fn a_file_has_its_share_of_the_room_and_a_larger_write_all_of_it() {
        let file = file();
        let behind = file.state().behind();
        let first = sent(behind.offer(piece(&file, 0, 8 * KIB), 10 * KIB)).pop().expect("sent");
        let Offered::Wait(back, None) = behind.offer(piece(&file, 20 * KIB, 3 * KIB), 10 * KIB) else {
            panic!("there is no room");
        };
        end(first, None);
        end(sent(behind.offer(*back, 10 * KIB)).pop().expect("sent"), None);
        end(
            sent(behind.offer(piece(&file, 0, 20 * KIB), 10 * KIB)).pop().expect("nothing else is open"),
            None,
        );
        assert_eq!(lock(&behind.writes).bytes, 0);
    }

    #[test]
    fn a_failure_is_told_to_each_open_once_and_to_none_that_came_later() {
        let state = Arc::new(FileState::new(&attributes(0, 1)));
        let (one, two) = (opened(&state, 1), opened(&state, 2));
        let write = sent(state.behind().offer(piece(&one, 0, KIB), ROOM)).pop().expect("sent");
        end(write, failed());
        let later = opened(&state, 3);
        assert_eq!(one.report().map_err(|error| error.status), Err(Status::NoSpace));
        assert_eq!((one.report(), later.report()), (Ok(()), Ok(())));
        let write = sent(state.behind().offer(piece(&one, 0, KIB), ROOM)).pop().expect("sent");
        drop(write);
        assert_eq!(one.report().map_err(|error| error.status), Err(Status::Unavailable), "it was dropped");
        assert!(two.report().is_err() && two.report().is_ok());
    }
}
