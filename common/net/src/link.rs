//! A stream with frames on it: the reader, the writer's task, and the state that both ends share.

use crate::error::NetError;
use crate::frame::{Decoder, Frame, Limits};
use crate::queue::{Outgoing, SendQueue};
use ember_rt::net::{StreamReader, StreamWriter};
use ember_rt::select::{Either, select};
use ember_rt::sync::Notify;
use ember_rt::{Buf, Rt};
use ember_types::Instant;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Bytes received at once while no long body or payload is missing.
const STAGING: usize = 16 << 10;

/// Frames from a stream.
pub(crate) struct FrameReader {
    reader: Box<dyn StreamReader>,
    decoder: Decoder,
    staging: Buf,
    start: usize,
    end: usize,
}

impl FrameReader {
    pub(crate) fn new(reader: Box<dyn StreamReader>) -> Self {
        let decoder = Decoder::new(Limits::HANDSHAKE);
        Self { reader, decoder, staging: Buf::scratch(STAGING), start: 0, end: 0 }
    }

    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.decoder.set_limits(limits);
    }

    /// The next frame; `None` when the peer has closed between two frames.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, NetError> {
        let bad = |err: crate::frame::FrameError| NetError::Protocol(err.to_string());
        loop {
            if self.start < self.end {
                let (taken, frame) =
                    self.decoder.feed(&self.staging.whole()[self.start..self.end]).map_err(bad)?;
                self.start += taken;
                if frame.is_some() {
                    return Ok(frame);
                }
            }
            if let Some((buf, range)) = self.decoder.lend() {
                let (received, buf) = self.reader.read(buf, range).await;
                let received = self.checked(received)?;
                let frame = self.decoder.give_back(buf, received).map_err(bad)?;
                if received == 0 {
                    return Err(cut());
                }
                if frame.is_some() {
                    return Ok(frame);
                }
                continue;
            }
            let (received, staging) = self.reader.read(std::mem::take(&mut self.staging), 0..STAGING).await;
            self.staging = staging;
            let received = self.checked(received)?;
            (self.start, self.end) = (0, received);
            if received == 0 {
                return if self.decoder.at_boundary() { Ok(None) } else { Err(cut()) };
            }
        }
    }

    fn checked(&self, received: std::io::Result<usize>) -> Result<usize, NetError> {
        received.map_err(|err| NetError::Unavailable(format!("receive: {err}")))
    }
}

fn cut() -> NetError {
    NetError::Unavailable("the peer closed in the middle of a frame".to_owned())
}

/// What the reader, the writer and the users of one connection share.
pub(crate) struct Link {
    pub(crate) rt: Rt,
    /// The other side, for people.
    pub(crate) peer: String,
    queue: RefCell<SendQueue>,
    work: Notify,
    closing: Notify,
    closed: RefCell<Option<NetError>>,
    finishing: Cell<bool>,
    heard: Cell<Instant>,
}

impl Link {
    /// Starts the writer's task.
    pub(crate) fn start(rt: &Rt, peer: String, writer: Box<dyn StreamWriter>) -> Rc<Self> {
        let link = Rc::new(Self {
            rt: rt.clone(),
            peer,
            queue: RefCell::default(),
            work: Notify::new(),
            closing: Notify::new(),
            closed: RefCell::default(),
            finishing: Cell::new(false),
            heard: Cell::new(rt.now()),
        });
        rt.spawn("connection writer", write(link.clone(), writer));
        link
    }

    /// Queues a frame; dropped if the connection is closed.
    pub(crate) fn send(&self, lane: usize, frame: Outgoing) {
        if self.closed.borrow().is_none() {
            self.queue.borrow_mut().push(lane, frame);
            self.work.notify_one();
        }
    }

    /// Takes a request back that is still queued.
    pub(crate) fn take_back(&self, lane: usize, id: u64) -> bool {
        self.queue.borrow_mut().remove(lane, id)
    }

    /// Why the connection ended, if it has.
    pub(crate) fn closed(&self) -> Option<NetError> {
        self.closed.borrow().clone()
    }

    /// Ends the connection at once; the first reason stays.
    pub(crate) fn close(&self, why: NetError) {
        self.closed.borrow_mut().get_or_insert(why);
        self.queue.borrow_mut().clear();
        self.work.notify_one();
        self.closing.notify_waiters();
    }

    /// Ends the connection when everything queued has been sent.
    pub(crate) fn finish(&self) {
        self.finishing.set(true);
        self.work.notify_one();
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) {
        loop {
            let closing = self.closing.notified();
            if self.closed.borrow().is_some() {
                return;
            }
            closing.await;
        }
    }

    /// A frame came.
    pub(crate) fn note_heard(&self) {
        self.heard.set(self.rt.now());
    }

    /// When the last frame came.
    pub(crate) fn heard(&self) -> Instant {
        self.heard.get()
    }
}

async fn write(link: Rc<Link>, mut writer: Box<dyn StreamWriter>) {
    loop {
        let batch = link.queue.borrow_mut().batch();
        if !batch.is_empty() {
            match select(link.ended(), writer.write_all(batch)).await {
                Either::Left(()) => break,
                Either::Right(Ok(())) => continue,
                Either::Right(Err(err)) => {
                    link.close(NetError::Unavailable(format!("{}: send: {err}", link.peer)))
                }
            }
        }
        if link.closed.borrow().is_some() {
            break;
        }
        if link.finishing.get() {
            link.close(NetError::Unavailable(format!("{}: closed by this side", link.peer)));
            break;
        }
        link.work.notified().await;
    }
    // Ends the reader's pending read, and with it the connection.
    writer.shutdown();
}
