//! One connection: two ends, and what is on its way to each.

use crate::process::{Crash, ProcessId};
use crate::trace::{Entry, digest};
use crate::world::{World, between};
use ember_rt::SharedBuf;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::task::Waker;

/// Bytes on their way to or unread at one end, beyond which the other end's writes wait.
const WINDOW_BYTES: usize = 4 << 20;
/// How long a message may be held up before the connection breaks, in nanoseconds.
const STALL_MAX_NS: u64 = 12_000_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EndState {
    Open,
    /// The other side has closed: what arrived may still be read.
    Eof,
    /// The connection broke.
    Reset,
    /// Closed by its own side.
    Closed,
}

enum Message {
    Data(Vec<SharedBuf>),
    Close,
}

/// One side: what arrives at it, and who waits.
struct End {
    process: ProcessId,
    state: EndState,
    /// The process behind it has ended: nobody reads or answers.
    gone: bool,
    arrived: VecDeque<SharedBuf>,
    arrived_at: usize,
    coming: VecDeque<Message>,
    bytes: usize,
    last_arrival: u64,
    stalled: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl End {
    fn new(process: ProcessId) -> Self {
        Self {
            process,
            state: EndState::Open,
            gone: false,
            arrived: VecDeque::new(),
            arrived_at: 0,
            coming: VecDeque::new(),
            bytes: 0,
            last_arrival: 0,
            stalled: false,
            reader: None,
            writer: None,
        }
    }
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
    fn end(&mut self, state: EndState) {
        if matches!(self.state, EndState::Open | EndState::Eof) {
            self.state = state;
        }
        self.wake();
    }
}

/// A connection. Ends are 0 (the caller's) and 1 (the listener's).
pub(crate) struct Conn {
    id: u64,
    world: World,
    ends: [RefCell<End>; 2],
    /// A message was lost: nothing arrives any more.
    lost: std::cell::Cell<bool>,
}

impl Conn {
    pub(crate) fn new(world: &World, id: u64, from: ProcessId, to: ProcessId) -> Rc<Self> {
        let ends = [RefCell::new(End::new(from)), RefCell::new(End::new(to))];
        Rc::new(Self { id, world: world.clone(), ends, lost: std::cell::Cell::new(false) })
    }
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
    pub(crate) fn has_end(&self, process: ProcessId) -> bool {
        self.ends.iter().any(|e| e.borrow().process == process)
    }
    pub(crate) fn is_open(&self) -> bool {
        !self.lost.get() && self.ends.iter().all(|e| e.borrow().state == EndState::Open)
    }

    /// Sends from `end`. Pending (`None`) while the window is full.
    pub(crate) fn send(
        self: &Rc<Self>,
        end: usize,
        parts: &mut Vec<SharedBuf>,
        waker: &Waker,
    ) -> Option<io::Result<()>> {
        match self.ends[end].borrow().state {
            EndState::Open => {}
            EndState::Eof | EndState::Closed => return Some(Err(io::ErrorKind::BrokenPipe.into())),
            EndState::Reset => return Some(Err(io::ErrorKind::ConnectionReset.into())),
        }
        if self.ends[1 - end].borrow().bytes > WINDOW_BYTES {
            self.ends[end].borrow_mut().writer = Some(waker.clone());
            return None;
        }
        let parts = std::mem::take(parts);
        let bytes: usize = parts.iter().map(|p| p.len()).sum();
        let (from, to) = (self.ends[end].borrow().process, self.ends[1 - end].borrow().process);
        let content = parts.iter().fold(0_u64, |sum, part| sum.rotate_left(7) ^ digest(part));
        self.world.record(Entry::Send, &[self.id, end as u64, content]);
        self.world.trace().count("messages", 1);
        self.world.trace().count("message bytes", bytes as u64);
        if self.lost.get() {
            return Some(Ok(()));
        }
        if self.world.message_is_lost() {
            self.world.record(Entry::Fault, &[3, self.id, end as u64]);
            self.world.trace().count("messages lost", 1);
            self.lose(&self.world);
            return Some(Ok(()));
        }
        if self.ends[1 - end].borrow().gone {
            self.answer_for_the_gone(end, from, to);
            return Some(Ok(()));
        }
        self.ends[1 - end].borrow_mut().bytes += bytes;
        self.enqueue(1 - end, Message::Data(parts));
        Some(Ok(()))
    }

    /// The process at the other end has ended: once its machine is up and reachable, it answers by a reset.
    fn answer_for_the_gone(self: &Rc<Self>, end: usize, from: ProcessId, to: ProcessId) {
        let delay = self.world.message_delay() + self.world.message_delay();
        let conn = self.clone();
        self.world.after(delay, move |world| {
            if world.is_powered(to) && !world.is_blocked(from, to) && !world.is_blocked(to, from) {
                conn.ends[end].borrow_mut().end(EndState::Reset);
            }
        });
    }

    fn enqueue(self: &Rc<Self>, to_end: usize, message: Message) {
        let arrival = {
            let mut end = self.ends[to_end].borrow_mut();
            end.coming.push_back(message);
            if end.stalled {
                return;
            }
            let arrival = (self.world.now_ns() + self.world.message_delay()).max(end.last_arrival + 1);
            end.last_arrival = arrival;
            arrival
        };
        let conn = self.clone();
        let delay = arrival - self.world.now_ns();
        self.world.after(delay, move |_| conn.arrive(to_end));
    }

    fn arrive(self: &Rc<Self>, to_end: usize) {
        if self.lost.get() {
            return;
        }
        let from = self.ends[1 - to_end].borrow().process;
        let mut end = self.ends[to_end].borrow_mut();
        if end.stalled {
            return;
        }
        if self.world.is_blocked(from, end.process) {
            end.stalled = true;
            drop(end);
            self.watch_stall();
            return;
        }
        let Some(message) = end.coming.pop_front() else { return };
        self.world.record(Entry::Arrive, &[self.id, to_end as u64]);
        match message {
            Message::Data(parts) => {
                let bytes: usize = parts.iter().map(|p| p.len()).sum();
                if end.gone || end.state != EndState::Open {
                    end.bytes = end.bytes.saturating_sub(bytes);
                    let (to, gone) = (end.process, end.gone);
                    drop(end);
                    if gone {
                        self.answer_for_the_gone(1 - to_end, from, to);
                    }
                    return;
                }
                end.arrived.extend(parts.into_iter().filter(|p| !p.is_empty()));
                if let Some(waker) = end.reader.take() {
                    waker.wake();
                }
            }
            Message::Close => end.end(EndState::Eof),
        }
    }

    /// Breaks the connection if it is still held up after a while.
    fn watch_stall(self: &Rc<Self>) {
        let conn = self.clone();
        self.world.after(STALL_MAX_NS, move |world| {
            if conn.ends.iter().any(|e| e.borrow().stalled) {
                world.record(Entry::Connection, &[3, conn.id]);
                conn.reset_both();
            }
        });
    }

    /// The way between two processes is free again: what was held up arrives late, or the connection breaks.
    pub(crate) fn path_healed(self: &Rc<Self>, world: &World, from: ProcessId, to: ProcessId) {
        for to_end in 0..2 {
            let held = {
                let end = self.ends[to_end].borrow();
                end.stalled && end.process == to && self.ends[1 - to_end].borrow().process == from
            };
            if !held {
                continue;
            }
            self.ends[to_end].borrow_mut().stalled = false;
            if world.net_chance(40) {
                self.lose(world);
                continue;
            }
            let count = self.ends[to_end].borrow().coming.len();
            let mut at = world.now_ns() + between(&mut world.0.net_rng.borrow_mut(), 1_000_000, 300_000_000);
            for _ in 0..count {
                at += 1 + world.message_delay() / 4;
                let conn = self.clone();
                world.after(at - world.now_ns(), move |_| conn.arrive(to_end));
            }
            self.ends[to_end].borrow_mut().last_arrival = at;
        }
    }

    /// Loses what is on its way; both sides notice later, each at a time of its own.
    pub(crate) fn lose(self: &Rc<Self>, world: &World) {
        if self.lost.replace(true) {
            return;
        }
        world.record(Entry::Connection, &[2, self.id]);
        world.trace().count("connections lost", 1);
        for end in 0..2 {
            let delay = between(&mut world.0.net_rng.borrow_mut(), 100_000, 400_000_000);
            let conn = self.clone();
            world.after(delay, move |_| conn.ends[end].borrow_mut().end(EndState::Reset));
        }
    }

    fn reset_both(&self) {
        self.lost.set(true);
        for end in &self.ends {
            end.borrow_mut().end(EndState::Reset);
        }
    }

    /// One side closes: nothing more arrives at it, and the other side learns of it after what was sent.
    pub(crate) fn close(self: &Rc<Self>, end: usize) {
        let was_open = {
            let mut own = self.ends[end].borrow_mut();
            let was = own.state;
            own.end(EndState::Closed);
            own.state = EndState::Closed;
            own.arrived.clear();
            matches!(was, EndState::Open | EndState::Eof)
        };
        if was_open && !self.lost.get() && !self.ends[end].borrow().gone {
            self.enqueue(1 - end, Message::Close);
        }
    }

    /// The process at one or both ends has ended.
    pub(crate) fn process_ended(self: &Rc<Self>, world: &World, process: ProcessId, crash: Crash) {
        for end in 0..2 {
            if self.ends[end].borrow().process != process || self.ends[end].borrow().gone {
                continue;
            }
            let was_open = matches!(self.ends[end].borrow().state, EndState::Open | EndState::Eof);
            {
                let mut own = self.ends[end].borrow_mut();
                own.gone = true;
                own.state = EndState::Closed;
                own.arrived.clear();
                (own.reader, own.writer) = (None, None);
            }
            match crash {
                Crash::Kill if was_open && !self.lost.get() => self.enqueue(1 - end, Message::Close),
                Crash::Kill => {}
                // What was sent may have left the machine or not; the other side hears nothing.
                Crash::PowerLoss => {
                    if world.net_chance(50) {
                        self.ends[1 - end].borrow_mut().coming.clear();
                    }
                }
            }
        }
    }

    /// Takes arrived bytes at `end`; `None` while there are none.
    pub(crate) fn receive(&self, end: usize, into: &mut [u8], waker: &Waker) -> Option<io::Result<usize>> {
        let mut own = self.ends[end].borrow_mut();
        let own = &mut *own;
        let mut filled = 0;
        while filled < into.len() {
            let Some(part) = own.arrived.front() else { break };
            let rest = &part[own.arrived_at..];
            let count = rest.len().min(into.len() - filled);
            into[filled..filled + count].copy_from_slice(&rest[..count]);
            filled += count;
            own.arrived_at += count;
            if own.arrived_at == part.len() {
                own.arrived.pop_front();
                own.arrived_at = 0;
            }
        }
        if filled > 0 || into.is_empty() {
            own.bytes = own.bytes.saturating_sub(filled);
            if own.bytes <= WINDOW_BYTES
                && let Some(waker) = self.ends[1 - end].borrow_mut().writer.take()
            {
                waker.wake();
            }
            return Some(Ok(filled));
        }
        match own.state {
            EndState::Open => {
                own.reader = Some(waker.clone());
                None
            }
            EndState::Eof | EndState::Closed => Some(Ok(0)),
            EndState::Reset => Some(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        World::forget_conn(&self.world.0, self.id);
    }
}
