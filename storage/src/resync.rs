//! Resyncs of this node: when a chunk's turn comes, how much is under way at once, how far they have come, and
//! targets that wait for room.
//!
//! A chunk's turn comes before its place in the order of updates is taken, so that no update waits for the pace of
//! a resync. What limits it, one after the other: what the target's disk bears, as the target says with each
//! answer; what this node may send (configuration); what the source's disk bears ([`Pace`]); memory. All resyncs
//! of a disk share the last two, and whoever came first goes first, so that each chain gets its part.

use crate::node::{Node, NodeContext};
use crate::pace::{Kind, Pace};
use crate::target::Target;
use ember_craq::{Input, Role, SyncStatus};
use ember_engine::{EngineError, Read, Which};
use ember_rt::disk::Priority;
use ember_rt::sync::{OwnedSemaphorePermit, Semaphore};
use ember_rt::{Buf, Rt};
use ember_types::{ChainVersion, ChunkId, Instant, NodeId, TargetId};
use ember_wire::mgmtd::SyncProgress;
use ember_wire::storage::SyncResponse;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of chunks that the resyncs of one disk hold in memory, or one chunk if it is longer.
const WINDOW_BYTES: usize = 64 << 20;
/// What one permit of the window stands for.
const UNIT: usize = 64 << 10;
/// Messages to one node at once: fewer than the credits of their class, so that comparisons and repairs pass.
const MESSAGES: usize = 48;
/// Bytes that are read at once beside clients; whole blocks.
const PIECE: u32 = 256 << 10;
/// A chunk's message may take longer than others by its length at this speed, in bytes per second.
const SLOWEST: u64 = 4 << 20;
/// Progress is noted so often, and its speed is that of the last while.
const NOTED: Duration = Duration::from_millis(500);
const LATELY: Duration = Duration::from_secs(10);
/// A target whose disk was full tries again after so long if there is room, and after so long in any case.
const ROOM_AGAIN: Duration = Duration::from_secs(5);
const ROOM_ANYWAY: Duration = Duration::from_secs(60);

/// Places things in time so that a rate is kept.
#[derive(Default)]
struct Spacer(Cell<Instant>);

impl Spacer {
    /// When so many bytes may go, at `rate` bytes per second; 0 is no limit.
    fn place(&self, now: Instant, bytes: usize, rate: u64) -> Instant {
        if rate == 0 {
            return now;
        }
        let at = self.0.get().max(now);
        let cost = (bytes as u128 * 1_000_000_000 / u128::from(rate)).min(u128::from(u64::MAX)) as u64;
        self.0.set(at + Duration::from_nanos(cost));
        at
    }
}

/// What the resyncs of one disk share.
struct Gate {
    pace: RefCell<Pace>,
    memory: Arc<Semaphore>,
    turn: Semaphore,
    spacer: Spacer,
}

/// The right to send a chunk, and the memory for it.
pub(crate) struct Turn {
    _memory: OwnedSemaphorePermit,
    _busy: Busy,
}

/// A resync's message is under way on a disk.
pub(crate) struct Busy {
    gate: Rc<Gate>,
    rt: Rt,
}

impl Busy {
    fn begin(gate: &Rc<Gate>, rt: &Rt, bytes: usize) -> Self {
        gate.pace.borrow_mut().begin(rt.now(), bytes);
        Self { gate: gate.clone(), rt: rt.clone() }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.gate.pace.borrow_mut().end(self.rt.now());
    }
}

/// What all resyncs of a node share.
pub(crate) struct Resyncs {
    gates: Vec<Rc<Gate>>,
    peers: RefCell<BTreeMap<NodeId, Arc<Semaphore>>>,
    turn: Semaphore,
    spacer: Spacer,
}

impl Resyncs {
    pub(crate) fn new(disks: usize) -> Self {
        let gate = |_| {
            Rc::new(Gate {
                pace: RefCell::new(Pace::new()),
                memory: Arc::new(Semaphore::new(WINDOW_BYTES / UNIT)),
                turn: Semaphore::new(1),
                spacer: Spacer::default(),
            })
        };
        Self {
            gates: (0..disks).map(gate).collect(),
            peers: RefCell::default(),
            turn: Semaphore::new(1),
            spacer: Spacer::default(),
        }
    }

    fn gate(&self, disk: u32) -> &Rc<Gate> {
        &self.gates[disk as usize]
    }

    /// The permit for one message to a node.
    pub(crate) async fn message(&self, to: NodeId) -> Option<OwnedSemaphorePermit> {
        let peer = {
            let mut peers = self.peers.borrow_mut();
            peers.entry(to).or_insert_with(|| Arc::new(Semaphore::new(MESSAGES))).clone()
        };
        peer.acquire_owned().await.ok()
    }

    /// Memory for a chunk of so many bytes.
    async fn memory(&self, rt: &Rt, disk: u32, bytes: usize) -> Option<Turn> {
        let gate = self.gate(disk);
        let units = bytes.div_ceil(UNIT).clamp(1, WINDOW_BYTES / UNIT) as u32;
        let memory = gate.memory.clone().acquire_many_owned(units).await.ok()?;
        Some(Turn { _memory: memory, _busy: Busy::begin(gate, rt, bytes) })
    }
}

/// Longest time that a message with so many bytes may take beyond the usual.
pub(crate) fn extra_time(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1000 / SLOWEST)
}

/// What a target does for the resync of its successor, and for its own.
#[derive(Default)]
pub(crate) struct Resync {
    /// Chunks whose turn has come, under which chain version.
    turns: RefCell<(ChainVersion, BTreeMap<ChunkId, Turn>)>,
    toward: Toward,
    meter: RefCell<VecDeque<(Instant, u64, u64)>>,
    /// When its disk last had no room for what it lacks.
    refused: Cell<Option<Instant>>,
}

/// What the syncing target asks of its source.
struct Toward {
    turn: Semaphore,
    spacer: Spacer,
    limit: Cell<u64>,
    hold_until: Cell<Instant>,
}

impl Default for Toward {
    fn default() -> Self {
        Self {
            turn: Semaphore::new(1),
            spacer: Spacer::default(),
            limit: Cell::new(0),
            hold_until: Cell::default(),
        }
    }
}

impl Target {
    /// Waits until the chunk may be sent, and says so. Under another chain version nobody waits for it any more.
    pub(crate) async fn resync_turn(self: Rc<Self>, chunk: ChunkId) {
        let version = self.replica().chain_version();
        let turn = self.wait_for_turn(chunk, version).await;
        let Some(turn) = turn.filter(|_| self.replica().chain_version() == version) else { return };
        {
            let mut turns = self.resync.turns.borrow_mut();
            if turns.0 != version {
                *turns = (version, BTreeMap::new());
            }
            turns.1.insert(chunk, turn);
        }
        self.input(Input::SyncTurn { chunk });
    }

    /// `None`: the resync is over, or another one. Chains may change faster than turns come, so that must cost
    /// nothing.
    async fn wait_for_turn(self: &Rc<Self>, chunk: ChunkId, version: ChainVersion) -> Option<Turn> {
        let node: &NodeContext = &self.node;
        let rt = &node.rt;
        let wanted = || {
            let replica = self.replica();
            (replica.chain_version() == version && replica.sync_status().is_some()).then_some(())
        };
        let state = self.engine.state(chunk).and_then(|state| state.committed);
        let bytes = state.map_or(0, |content| content.length as usize);
        let toward = &self.resync.toward;
        {
            let _turn = toward.turn.acquire().await.ok()?;
            wanted()?;
            rt.sleep_until(toward.hold_until.get().max(rt.now())).await;
            rt.sleep_until(toward.spacer.place(rt.now(), bytes, toward.limit.get())).await;
        }
        {
            let _turn = node.resyncs.turn.acquire().await.ok()?;
            wanted()?;
            let at = node.resyncs.spacer.place(rt.now(), bytes, node.config.resync_bytes_per_s);
            rt.sleep_until(at).await;
        }
        let gate = node.resyncs.gate(self.disk);
        {
            let _turn = gate.turn.acquire().await.ok()?;
            loop {
                wanted()?;
                let pause = gate.pace.borrow_mut().pause(rt.now());
                match pause {
                    Some(until) => rt.sleep_until(until).await,
                    None => break,
                }
            }
            let limit = gate.pace.borrow_mut().limit(rt.now()).unwrap_or(0);
            rt.sleep_until(gate.spacer.place(rt.now(), bytes, limit)).await;
        }
        let turn = node.resyncs.memory(rt, self.disk, bytes).await;
        wanted()?;
        turn
    }

    /// The turn of a chunk that is sent now; what is sent once more needs memory alone.
    pub(crate) async fn use_turn(&self, chunk: ChunkId, bytes: usize) -> Option<Turn> {
        let turn = self.resync.turns.borrow_mut().1.remove(&chunk);
        match turn {
            Some(turn) => Some(turn),
            None => self.node.resyncs.memory(&self.node.rt, self.disk, bytes).await,
        }
    }

    /// A whole content; beside clients in pieces, so that none of them waits long for the disk.
    pub(crate) async fn read_to_send(&self, chunk: ChunkId, which: Which) -> Result<Read, EngineError> {
        let gate = self.node.resyncs.gate(self.disk);
        let limited = gate.pace.borrow_mut().limit(self.node.rt.now()).is_some();
        let piece = if limited { PIECE } else { u32::MAX };
        let mut whole = self.engine.read(chunk, which, 0, piece, Priority::Resync).await?;
        if whole.data.len() == whole.chunk_length as usize {
            return Ok(whole);
        }
        let mut buf = Buf::scratch(whole.chunk_length as usize);
        buf.bytes_mut()[..whole.data.len()].copy_from_slice(&whole.data);
        let mut at = whole.data.len();
        while at < buf.len() {
            let read = self.engine.read(chunk, which, at as u32, piece, Priority::Resync).await?;
            if read.data.is_empty() {
                return Err(EngineError::NotFound(chunk));
            }
            buf.bytes_mut()[at..at + read.data.len()].copy_from_slice(&read.data);
            at += read.data.len();
            whole.checksums.extend(read.checksums);
        }
        whole.data = buf.into();
        Ok(whole)
    }

    /// What the syncing target said of its disk.
    pub(crate) fn heed(&self, answer: &SyncResponse) {
        let toward = &self.resync.toward;
        toward.limit.set(answer.limit_bytes_per_s);
        if answer.hold_ms > 0 {
            let until = self.node.rt.now() + Duration::from_millis(answer.hold_ms.into());
            toward.hold_until.set(toward.hold_until.get().max(until));
        }
    }

    /// Something that a client waits for, begun at `since`, is done.
    pub(crate) fn served(&self, kind: Kind, bytes: usize, since: Instant) {
        let now = self.node.rt.now();
        let mut pace = self.node.resyncs.gate(self.disk).pace.borrow_mut();
        pace.foreground(now, kind, bytes, now.since(since));
    }

    /// A resync's message has arrived for this target.
    pub(crate) fn arrived(&self, bytes: usize) -> Busy {
        Busy::begin(self.node.resyncs.gate(self.disk), &self.node.rt, bytes)
    }

    /// To be called every 20 to 100 ms: notes progress, forgets turns of a resync that is over.
    pub(crate) fn look_at_resync(&self) {
        let status = self.replica().sync_status();
        let version = self.replica().chain_version();
        let mut turns = self.resync.turns.borrow_mut();
        if !turns.1.is_empty() && (status.is_none() || turns.0 != version) {
            turns.1.clear();
        }
        let mut meter = self.resync.meter.borrow_mut();
        let Some(status) = status else {
            self.resync.toward.limit.set(0);
            return meter.clear();
        };
        let now = self.node.rt.now();
        if meter.back().is_some_and(|(_, done, _)| *done > status.done) {
            meter.clear();
        }
        if meter.back().is_none_or(|(at, ..)| now.since(*at) >= NOTED) {
            meter.push_back((now, status.done, status.bytes));
        }
        while meter.front().is_some_and(|(at, ..)| now.since(*at) > LATELY) {
            meter.pop_front();
        }
    }

    /// How far the resync of the successor has come, if this is its source.
    pub(crate) fn sync_progress(&self) -> Option<SyncProgress> {
        let status = self.replica().sync_status()?;
        let first = self.resync.meter.borrow().front().copied();
        Some(progress(&status, first, self.node.rt.now()))
    }

    /// The disk had no room for what this target lacks: it isn't to be brought up to date for now.
    pub(crate) fn had_no_room(&self) {
        if self.resync.refused.replace(Some(self.node.rt.now())).is_none() {
            tracing::warn!(target = %self.id, "no space for what it lacks: it waits for room on its disk");
            self.node.nudge();
        }
    }

    /// Whether it waits for room. A serving one doesn't: it holds everything.
    pub(crate) fn has_no_room(&self) -> bool {
        self.resync.refused.get().is_some() && self.replica().role() != Role::Serving
    }

    /// Why it isn't brought up to date, if that is for lack of room.
    pub(crate) fn lacks_room(&self) -> Option<String> {
        self.has_no_room().then(|| "no space for what it lacks: it waits until its disk has room".to_owned())
    }

    /// To be called about every second: `roomy` says that the disk has room for new chunks.
    pub(crate) fn look_for_room(&self, roomy: bool) {
        let Some(at) = self.resync.refused.get() else { return };
        let waited = self.node.rt.now().since(at);
        if (roomy && waited >= ROOM_AGAIN) || waited >= ROOM_ANYWAY {
            self.resync.refused.set(None);
            self.node.nudge();
        }
    }
}

impl Node {
    /// What a source is told with each answer: what the target's disk bears, in bytes per second and as a pause in
    /// milliseconds, 0 for none. The targets that are brought up to date on one disk share it.
    pub(crate) fn resync_advice(&self, target: TargetId) -> (u64, u32) {
        let Some(target) = self.target(target) else { return (0, 0) };
        let now = self.context.rt.now();
        let syncing =
            |other: &Rc<Target>| other.disk == target.disk && other.replica().role() == Role::Syncing;
        let sources = self.running().iter().filter(|other| syncing(other)).count().max(1) as u64;
        let mut pace = self.context.resyncs.gate(target.disk).pace.borrow_mut();
        let hold = pace.pause(now).map_or(0, |until| until.since(now).as_millis() as u32 + 1);
        (pace.limit(now).map_or(0, |limit| (limit / sources).max(1)), hold)
    }
}

fn progress(status: &SyncStatus, first: Option<(Instant, u64, u64)>, now: Instant) -> SyncProgress {
    let (mut bytes_per_s, mut eta_s) = (0, None);
    if let Some((at, done, bytes)) = first {
        let seconds = now.since(at).as_secs_f64();
        if seconds >= NOTED.as_secs_f64() {
            bytes_per_s = (status.bytes.saturating_sub(bytes) as f64 / seconds) as u64;
            let chunks_per_s = status.done.saturating_sub(done) as f64 / seconds;
            let left = status.total.saturating_sub(status.done) as f64;
            eta_s = (chunks_per_s > 0.0).then(|| (left / chunks_per_s).ceil() as u64);
        }
    }
    SyncProgress {
        chunks_done: status.done,
        chunks_total: status.total,
        bytes_sent: status.bytes,
        bytes_per_s,
        eta_s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_by_spacing() {
        let spacer = Spacer::default();
        let now = Instant(5_000_000_000);
        assert_eq!(spacer.place(now, 1 << 30, 0), now, "no limit");
        assert_eq!(spacer.place(now, 1_000, 2_000), now);
        assert_eq!(spacer.place(now, 1_000, 2_000), now + Duration::from_millis(500));
        let later = now + Duration::from_secs(9);
        assert_eq!(spacer.place(later, 1_000, 2_000), later, "idle time is not saved up");
    }

    #[test]
    fn progress_tells_the_speed_of_late_and_the_time_left() {
        let status = SyncStatus { target: TargetId(2), done: 300, total: 1_000, bytes: 900 << 20 };
        let (then, now) = (Instant(0), Instant(4_000_000_000));
        let told = progress(&status, Some((then, 100, 100 << 20)), now);
        assert_eq!((told.bytes_per_s, told.eta_s), (200 << 20, Some(14)));
        let still = progress(&status, Some((then, 300, 900 << 20)), now);
        assert_eq!((still.bytes_per_s, still.eta_s), (0, None));
        assert_eq!(progress(&status, None, now).eta_s, None);
    }
}
