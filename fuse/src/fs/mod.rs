//! The operations: from a request of the kernel to calls of the client and back.

mod attributes;
mod directories;
mod dispatch;
mod files;
mod names;

use crate::caller::{Caller, GroupCache, Groups};
use crate::config::FuseConfig;
use crate::convert;
use crate::interrupt::Interrupts;
use crate::known::Known;
use ember_client::{Client, ClientError, MetaOptions, Segments};
use ember_fuse_kernel::abi::{AttrOut, EntryOut};
use ember_fuse_kernel::{Channel, Delivery, DevChannel, Errno, Reply};
use ember_rt::Rt;
use ember_rt::select::{Either, select};
use ember_rt::sync::OwnedSemaphorePermit;
use ember_types::Status;
use ember_types::file::Attributes;
use std::future::Future;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;

/// What the threads of a mount share.
pub(crate) struct Common {
    pub(crate) config: FuseConfig,
    pub(crate) known: Known,
    pub(crate) interrupts: Arc<Interrupts>,
    /// For notifications: never one that serves on this thread.
    pub(crate) notify: Arc<DevChannel>,
    pub(crate) metrics: crate::serve::MountMetrics,
}

/// The file system, as one reactor serves it.
pub(crate) struct Fs {
    pub(crate) rt: Rt,
    pub(crate) client: Client,
    pub(crate) channel: Rc<DevChannel>,
    pub(crate) common: Arc<Common>,
    pub(crate) groups: GroupCache,
}

/// What follows the fixed part of an answer.
enum Payload {
    None,
    Segments(Segments),
    Bytes(Vec<u8>),
}

/// A successful answer.
pub(crate) struct Answer {
    reply: Reply,
    payload: Payload,
    /// The open that the answer hands out: closed again if the kernel doesn't want it any more.
    opened: Option<u64>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, payload: Payload::None, opened: None }
    }
}

impl Answer {
    fn bytes(bytes: Vec<u8>) -> Self {
        Self { payload: Payload::Bytes(bytes), ..Reply::data().into() }
    }
    fn segments(segments: Segments) -> Self {
        Self { payload: Payload::Segments(segments), ..Reply::data().into() }
    }
    fn opened(reply: Reply, handle: u64) -> Self {
        Self { opened: Some(handle), ..reply.into() }
    }
}

/// How a request ended.
pub(crate) type Outcome = Result<Answer, Errno>;

impl Fs {
    /// Runs a request as a task of its own and answers it.
    fn go(
        self: &Rc<Self>,
        unique: u64,
        slot: OwnedSemaphorePermit,
        work: impl Future<Output = Outcome> + 'static,
    ) {
        let fs = self.clone();
        self.rt.spawn("fuse request", async move {
            let outcome = work.await;
            fs.answer(unique, outcome).await;
            drop(slot);
        });
    }

    /// As [`Fs::go`], for a request that changes nothing: a killed process is let go.
    fn go_interruptible(
        self: &Rc<Self>,
        (unique, pid): (u64, u32),
        slot: OwnedSemaphorePermit,
        work: impl Future<Output = Outcome> + 'static,
    ) {
        let mut registered = self.common.interrupts.register(unique, pid);
        self.go(unique, slot, async move {
            match select(work, &mut registered.stopped).await {
                Either::Left(outcome) => outcome,
                Either::Right(_) => Err(Errno::INTR),
            }
        });
    }

    /// Answers a request.
    pub(crate) async fn answer(&self, unique: u64, outcome: Outcome) {
        let metrics = &self.common.metrics;
        metrics.in_progress.dec();
        let answer = outcome.unwrap_or_else(|errno| {
            metrics.failures.inc();
            Reply::error(errno).into()
        });
        let sent = match &answer.payload {
            Payload::None => self.channel.reply(unique, &answer.reply, &[]),
            Payload::Bytes(bytes) => self.channel.reply(unique, &answer.reply, &[IoSlice::new(bytes)]),
            Payload::Segments(segments) => {
                let slices: Vec<IoSlice<'_>> = segments.iter().map(|part| IoSlice::new(part)).collect();
                self.channel.reply(unique, &answer.reply, &slices)
            }
        };
        let delivery = sent.unwrap_or_else(|error| {
            // The kernel has ended a request whose answer it didn't take.
            tracing::warn!(%error, unique, "the kernel takes no answer");
            Delivery::Gone
        });
        if let (Delivery::Gone | Delivery::Ended, Some(handle)) = (delivery, answer.opened) {
            self.close(handle).await;
        }
    }

    /// Runs a metadata operation on behalf of a process. `whole_groups`: its supplementary groups matter for
    /// more than whether it is allowed.
    async fn on_behalf<T>(
        &self,
        caller: &Caller,
        whole_groups: bool,
        operation: impl AsyncFn(&MetaOptions) -> ember_client::Result<T>,
    ) -> ember_client::Result<T> {
        let now = self.rt.now();
        let (mut credentials, groups) = self.groups.quick(caller, now);
        if whole_groups && groups == Groups::Partial {
            credentials = self.groups.complete(caller, now);
            return operation(&credentials.into()).await;
        }
        let first = operation(&credentials.clone().into()).await;
        let denied =
            |error: &ClientError| matches!(error.status, Status::PermissionDenied | Status::NotPermitted);
        if groups == Groups::Complete || !first.as_ref().is_err_and(denied) {
            return first;
        }
        let complete = self.groups.complete(caller, self.rt.now());
        if complete == credentials {
            return first;
        }
        operation(&complete.into()).await
    }

    /// Attributes for the kernel, noted as told.
    fn attr_out(&self, attributes: &Attributes) -> AttrOut {
        self.common.known.told(attributes);
        AttrOut::new(convert::attr(attributes), self.common.config.attr_ttl())
    }

    /// An entry for the kernel, noted as told.
    fn entry_out(&self, attributes: &Attributes) -> EntryOut {
        self.common.known.told(attributes);
        self.entry(attributes)
    }

    fn entry(&self, attributes: &Attributes) -> EntryOut {
        let config = &self.common.config;
        EntryOut::new(0, convert::attr(attributes), config.entry_ttl(), config.attr_ttl())
    }
}

/// The client's failure as the program's errno.
fn fail(error: ClientError) -> Errno {
    convert::errno(&error)
}

/// An answer of meta that the operation doesn't have.
fn unexpected() -> Errno {
    tracing::error!("the metadata service gave an answer of another kind than the request has");
    Errno::IO
}
