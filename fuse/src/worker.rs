//! One thread of a mount: a reactor that receives requests from its own queue and serves many at once.
//!
//! It waits for the queue so that each request wakes one thread ([`Readable`]), receives what is there, and
//! starts a task for each request. A WRITE is received so that its data begin on a page; large ones stay where
//! they were received until they are stored.

use crate::caller::{Caller, GroupCache};
use crate::error::Error;
use crate::fs::{Common, Fs};
use crate::serve::Connect;
use ember_client::mgmtd::{SessionState, keep_session};
use ember_client::{Client, ClientError};
use ember_fuse_kernel::{DevChannel, Errno, Op, Received, Request, message_window, window_size};
use ember_rt::select::{Either, Either3, select, select3, yield_now};
use ember_rt::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use ember_rt::{Buf, Rt, SharedBuf, watch};
use ember_rt_uring::Readable;
use ember_types::{InodeId, Status};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Data of a WRITE up to this length are copied, so that the large buffer, warm in the cache, is used again.
const COPIED_MAX: usize = 32 << 10;
/// Requests received before others get a turn.
const BURST: u32 = 16;
/// Time for requests in progress and opens left over when the mount has ended.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// Time for the end of the session.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a thread starts with.
pub(crate) struct WorkerParts {
    pub(crate) channel: DevChannel,
    pub(crate) max_write: u32,
    pub(crate) connect: Connect,
    pub(crate) common: Arc<Common>,
    /// Ends the thread although the mount is still there.
    pub(crate) stop: oneshot::Receiver<()>,
    /// The one thread that keeps capabilities alive and closes what is left over.
    pub(crate) first: bool,
}

/// Serves until the mount has ended or `stop` comes.
pub(crate) async fn run(rt: Rt, parts: WorkerParts) -> Result<(), Error> {
    let WorkerParts { channel, max_write, connect, common, mut stop, first } = parts;
    let client = match select(&mut stop, connect(rt.clone())).await {
        Either::Left(_) => return Ok(()),
        Either::Right(client) => client?,
    };
    let session = first.then(|| Session::start(&rt, &client));
    let channel = Rc::new(channel);
    let readable = Readable::new(channel.clone())?;
    let requests_max = common.config.requests_max.max(1);
    let fs = Rc::new(Fs { rt: rt.clone(), client, channel, common, groups: GroupCache::default() });
    let slots = Arc::new(Semaphore::new(requests_max));
    let inbox = Inbox::new(max_write);
    let mut receiver = Receiver { fs: fs.clone(), readable, slots: slots.clone(), inbox };
    let lost = async {
        match &session {
            Some(session) => session.lost().await,
            None => std::future::pending().await,
        }
    };
    let received = match select3(&mut stop, lost, receiver.receive()).await {
        // Stopped: what is in progress fails with the channel.
        Either3::First(_) => {
            end_writes(&fs).await;
            return Ok(());
        }
        Either3::Second(error) => return Err(error.into()),
        Either3::Third(received) => received,
    };
    let whole = slots.acquire_many(u32::try_from(requests_max).unwrap_or(u32::MAX));
    if rt.timeout(CLEAN_UP, whole).await.is_err() {
        tracing::warn!("requests of the ended mount are given up");
    }
    end_writes(&fs).await;
    if let Some(session) = session {
        close_all(&fs).await;
        session.end(&rt).await;
    }
    received
}

/// The client's session with mgmtd, and its capabilities: kept by the first thread of a mount.
struct Session {
    ending: watch::Sender<bool>,
    state: watch::Receiver<SessionState>,
}

impl Session {
    fn start(rt: &Rt, client: &Client) -> Self {
        let (ending, shutdown) = watch::channel(false);
        let routing = client.routing();
        let (mgmtd, clock) = (routing.mgmtd().clone(), routing.clock().clone());
        let description = format!("mount, pid {}", std::process::id());
        let state = keep_session(rt, mgmtd, client.shared().id(), description, clock, shutdown);
        rt.spawn("capabilities", client.clone().keep_capabilities());
        Self { ending, state }
    }

    /// Waits until mgmtd has ended the session: the cluster has forgotten this client's opens, so that the mount
    /// must be made anew.
    async fn lost(&self) -> ClientError {
        let mut state = self.state.clone();
        while *state.borrow() != SessionState::Ended {
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        let text = "mgmtd has ended this client's session, as it was away for too long; mount again";
        ClientError::new(Status::SessionEnded, text)
    }

    /// Says farewell, so that storage need not remember this client any longer.
    async fn end(mut self, rt: &Rt) {
        self.ending.send(true);
        let told = async { while self.state.changed().await.is_ok() {} };
        if rt.timeout(FAREWELL, told).await.is_err() {
            tracing::debug!("mgmtd doesn't answer the farewell: the session expires");
        }
    }
}

/// Waits for the writes that nobody else waits for.
async fn end_writes(fs: &Fs) {
    if fs.rt.timeout(CLEAN_UP, fs.client.end_behind()).await.is_err() {
        tracing::error!("accepted writes are given up: the cluster does not answer");
    }
}

/// Closes what the kernel had no occasion to release.
async fn close_all(fs: &Rc<Fs>) {
    let deadline = fs.rt.now() + CLEAN_UP;
    for open in fs.client.shared().opens() {
        if fs.rt.timeout_at(deadline, fs.close(open.handle())).await.is_err() {
            tracing::warn!("opens of the ended mount are left to expire");
            return;
        }
    }
}

/// The buffer that requests are received into.
struct Inbox {
    buf: Buf,
    max_write: u32,
}

impl Inbox {
    fn new(max_write: u32) -> Self {
        Self { buf: Buf::scratch(window_size(max_write)), max_write }
    }

    /// Receives a message; it lies at the returned place of the buffer.
    fn receive(&mut self, channel: &DevChannel) -> Result<(Received, usize, usize), Error> {
        let whole = self.buf.whole().as_ptr().addr();
        let window = message_window(self.buf.whole_mut(), self.max_write).expect("sized by window_size");
        let start = window.as_ptr().addr() - whole;
        let (received, len) = channel.try_recv_into(window)?;
        Ok((received, start, start + len))
    }

    /// Takes the data at `at` out: by copy if they are few, else with the buffer, which is replaced.
    fn take(&mut self, at: std::ops::Range<usize>) -> SharedBuf {
        if at.len() <= COPIED_MAX {
            return SharedBuf::from(&self.buf.whole()[at]);
        }
        let next = Buf::scratch(window_size(self.max_write));
        SharedBuf::from(std::mem::replace(&mut self.buf, next)).slice(at)
    }
}

struct Receiver {
    fs: Rc<Fs>,
    readable: Readable<Rc<DevChannel>>,
    slots: Arc<Semaphore>,
    inbox: Inbox,
}

impl Receiver {
    /// Receives and starts requests until the mount has ended.
    async fn receive(&mut self) -> Result<(), Error> {
        let mut burst = 0;
        let mut slot = None;
        loop {
            // A thread without a free slot doesn't wait for the queue, so that others get what comes.
            let free = match slot.take() {
                Some(free) => free,
                None => match self.slots.clone().acquire_owned().await {
                    Ok(free) => free,
                    Err(_) => return Ok(()),
                },
            };
            match self.inbox.receive(self.readable.get())? {
                (Received::Request, start, end) => {
                    self.start(start, end, free);
                    burst += 1;
                    if burst % BURST == 0 {
                        yield_now().await;
                    }
                }
                (Received::WouldBlock, ..) => {
                    burst = 0;
                    slot = Some(free);
                    self.readable.ready().await?;
                }
                (Received::Ended, ..) => return Ok(()),
            }
        }
    }

    fn start(&mut self, start: usize, end: usize, slot: OwnedSemaphorePermit) {
        let whole = self.inbox.buf.whole();
        let request = match Request::parse(&whole[start..end]) {
            Ok(request) => request,
            Err(malformed) => {
                tracing::error!(%malformed, "the kernel sent a request that can't be read");
                if let Some(unique) = malformed.wants_reply() {
                    let fs = self.fs.clone();
                    fs.common.metrics.in_progress.inc();
                    self.fs.rt.spawn("fuse request", async move {
                        fs.answer(unique, Err(Errno::IO)).await;
                        drop(slot);
                    });
                }
                return;
            }
        };
        let Op::Write { args, data } = &request.op else { return self.fs.dispatch(&request, slot) };
        let at = data.as_ptr().addr() - whole.as_ptr().addr();
        let (args, data) = (*args, at..at + data.len());
        let who = (request.header.unique, InodeId(request.header.nodeid), Caller::of(&request));
        let data = self.inbox.take(data);
        self.fs.dispatch_write(who, args, data, slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_data_are_not_copied_and_begin_on_a_page() {
        let mut inbox = Inbox::new(1 << 20);
        let start = ember_rt::PAGE_SIZE;
        inbox.buf.whole_mut()[start..start + 3].copy_from_slice(&[1, 2, 3]);
        let before = inbox.buf.whole()[start..].as_ptr();
        let few = inbox.take(start..start + 3);
        assert_eq!(&few[..], [1, 2, 3]);
        assert_eq!(inbox.buf.whole()[start..].as_ptr(), before, "the buffer stays");
        let many = inbox.take(start..start + (1 << 20));
        assert_eq!((many.as_ptr(), many.is_aligned()), (before, true));
        assert_ne!(inbox.buf.whole()[start..].as_ptr(), before, "the buffer went with the data");
    }
}
