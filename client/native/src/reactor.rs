//! The client's thread, and how calls reach it.

use crate::place::{Place, identity};
use crate::{NativeError, Result};
use ember_client::mgmtd::{Mgmtd, RoutingCache, SessionState, keep_session};
use ember_client::{Client, ClientError, Shared};
use ember_net::Pool;
use ember_rt::sync::{mpsc, oneshot};
use ember_rt::{LocalBoxFuture, Rt, watch};
use ember_rt_uring::{Options, ReactorThread, spawn_reactor};
use ember_types::ClientId;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

/// How long a cluster may take to answer a new client: longer than mgmtd takes to start again.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How long the farewell may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// What the thread does for a caller.
type Call = Box<dyn FnOnce(Client) -> LocalBoxFuture<'static, ()> + Send>;

/// A call that is on its way.
pub(crate) type Answer<T> = oneshot::Receiver<ember_client::Result<T>>;

/// The thread. It ends when this goes.
pub(crate) struct Reactor {
    calls: Option<mpsc::UnboundedSender<Call>>,
    thread: Mutex<Option<ReactorThread<Result<()>>>>,
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.get_mut().ok().and_then(Option::take) {
            // What has ended it was told to its callers.
            let _ = thread.join();
        }
    }
}

impl Reactor {
    /// Returns when the cluster has answered.
    pub(crate) fn start(place: Place, description: &str) -> Result<Self> {
        let (calls, from) = mpsc::unbounded_channel();
        let (ready, told) = oneshot::channel();
        let description = description.to_owned();
        let main = move |rt| serve(rt, place, description, from, ready);
        let thread = spawn_reactor("ember-native", Options::default(), main)
            .map_err(|error| NativeError::Ended(error.to_string()))?;
        if told.blocking_recv().is_ok() {
            return Ok(Self { calls: Some(calls), thread: Mutex::new(Some(thread)) });
        }
        match thread.join() {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) => Err(NativeError::Ended("its thread was stopped".into())),
            Err(error) => Err(NativeError::Ended(error.to_string())),
        }
    }

    /// Begins a call.
    pub(crate) fn begin<T, F>(&self, work: impl FnOnce(Client) -> F + Send + 'static) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = ember_client::Result<T>> + 'static,
    {
        let (answer, told) = oneshot::channel();
        let call: Call = Box::new(move |client| {
            Box::pin(async move {
                let _ = answer.send(work(client).await);
            })
        });
        if let Some(calls) = &self.calls {
            // If the thread has ended, the answer says so.
            let _ = calls.send(call);
        }
        told
    }

    /// Waits for the end of a call.
    pub(crate) fn end<T>(answer: Answer<T>, operation: &'static str, path: &str) -> Result<T> {
        let ended = |_| NativeError::Ended("its thread has ended, or mgmtd its session".into());
        let failed = |error| NativeError::Operation { operation, path: path.to_owned(), error };
        answer.blocking_recv().map_err(ended)?.map_err(failed)
    }

    /// Begins calls with at most `window` on their way and hands their results on, in order. If one fails the others
    /// are waited for, and no more begin.
    pub(crate) fn pipelined<T>(
        &self,
        window: usize,
        mut calls: impl Iterator<Item = Answer<T>>,
        (operation, path): (&'static str, &str),
        mut take: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let mut waiting = VecDeque::with_capacity(window);
        let mut failure = None;
        loop {
            while failure.is_none() && waiting.len() < window {
                let Some(call) = calls.next() else { break };
                waiting.push_back(call);
            }
            let Some(first) = waiting.pop_front() else { break };
            let done = Self::end(first, operation, path).and_then(&mut take);
            failure = failure.or(done.err());
        }
        failure.map_or(Ok(()), Err)
    }
}

/// What the thread runs: until there are no more callers, or mgmtd has ended the session.
async fn serve(
    rt: Rt,
    place: Place,
    description: String,
    mut calls: mpsc::UnboundedReceiver<Call>,
    ready: oneshot::Sender<()>,
) -> Result<()> {
    let shared = Shared::new(ClientId::from_u128(rt.random_u128()));
    let pool =
        Pool::new(&rt, identity(place.cluster, shared.id(), place.token), ember_net::Options::default());
    let routing = RoutingCache::start(&rt, Mgmtd::new(&rt, pool.clone(), vec![place.mgmtd.clone()]));
    let silent = |_| NativeError::Operation {
        operation: "connecting to",
        path: place.mgmtd.to_string(),
        error: ClientError::new(
            ember_types::Status::Timeout,
            format!(
                "no answer for {} s: does the cluster run? `ember up` starts it",
                CONNECT_LIMIT.as_secs()
            ),
        ),
    };
    let until = rt.now() + CONNECT_LIMIT;
    rt.timeout_at(until, routing.ready()).await.map_err(silent)?;
    let (stop, stopped) = watch::channel(false);
    let (mgmtd, clock) = (routing.mgmtd().clone(), routing.clock().clone());
    let mut session = keep_session(&rt, mgmtd, shared.id(), description, clock, stopped);
    let opened =
        async { while *session.borrow() == SessionState::Opening && session.changed().await.is_ok() {} };
    rt.timeout_at(until, opened).await.map_err(silent)?;
    let client = Client::new(rt.clone(), place.config, shared, routing, pool);
    rt.spawn("capabilities", client.clone().keep_capabilities());
    let _ = ready.send(());
    while let Some(call) = calls.recv().await {
        if *session.borrow() == SessionState::Ended {
            break;
        }
        rt.spawn("call", call(client.clone()));
    }
    stop.send(true);
    let farewell = async { while session.changed().await.is_ok() {} };
    let _ = rt.timeout(FAREWELL_LIMIT, farewell).await;
    Ok(())
}
