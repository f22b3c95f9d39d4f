//! The client's thread, and how calls reach it.

use crate::place::{Place, identity};
use crate::{NativeError, Result};
use ember_client::mgmtd::{Mgmtd, RoutingCache, SessionState, keep_session};
use ember_client::{Client, ClientError, Segments, Shared};
use ember_net::Pool;
use ember_rt::select::{Either, select};
use ember_rt::sync::mpsc;
use ember_rt::{LocalBoxFuture, Rt, watch};
use ember_rt_uring::{Options, ReactorThread, spawn_reactor};
use ember_types::{ClientId, Instant, Status};
use ember_wire::codec::Empty;
use ember_wire::method::ClusterClock;
use std::collections::VecDeque;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long a cluster may take to answer a new client: longer than mgmtd takes to start again.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// One attempt of these.
const ATTEMPT: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);
/// How long the farewell may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// What the thread does for a caller.
type Call = Box<dyn FnOnce(Client) -> LocalBoxFuture<'static, ()> + Send>;

/// A call that is on its way. Not a channel of the runtime: those panic in a thread that runs another one.
pub(crate) type Answer<T> = blocking::Receiver<ember_client::Result<T>>;

/// What callers have read and copied: the thread takes its buffers back, and fills them again.
#[derive(Clone, Default)]
struct Used(Arc<Mutex<Vec<Segments>>>);

impl Used {
    fn put(&self, segments: Segments) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(segments);
    }
    fn take(&self) -> Vec<Segments> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The thread. It ends when this goes.
pub(crate) struct Reactor {
    calls: Option<mpsc::UnboundedSender<Call>>,
    thread: Option<Mutex<ReactorThread<Result<()>>>>,
    /// The process that has the thread: one that was forked from it has not.
    process: u32,
    ended: Arc<OnceLock<String>>,
    used: Used,
}

impl Drop for Reactor {
    fn drop(&mut self) {
        let (calls, thread) = (self.calls.take(), self.thread.take());
        if std::process::id() != self.process {
            // They are the parent's.
            std::mem::forget((calls, thread));
            return;
        }
        drop(calls);
        if let Some(thread) = thread {
            // What has ended it was told to its callers.
            let _ = thread.into_inner().unwrap_or_else(PoisonError::into_inner).join();
        }
    }
}

impl Reactor {
    /// Returns when the cluster has answered.
    pub(crate) fn start(place: Place, description: &str) -> Result<Self> {
        let (calls, from) = mpsc::unbounded_channel();
        let (ready, told) = blocking::sync_channel(1);
        let (ended, used) = (Arc::<OnceLock<String>>::default(), Used::default());
        let thread = {
            let (description, ended, used) = (description.to_owned(), ended.clone(), used.clone());
            let main = async move |rt: Rt| {
                let (client, session) = connect(&rt, place, description).await?;
                let _ = ready.send(());
                let why = serve(&rt, client, session, from, used).await;
                let _ = ended.set(why);
                Ok(())
            };
            spawn_reactor("ember-native", Options::default(), main)
                .map_err(|error| NativeError::Ended(error.to_string()))?
        };
        if told.recv().is_ok() {
            let thread = Some(Mutex::new(thread));
            return Ok(Self { calls: Some(calls), thread, process: std::process::id(), ended, used });
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
        let (answer, told) = blocking::sync_channel(1);
        let call: Call = Box::new(move |client| {
            Box::pin(async move {
                let _ = answer.send(work(client).await);
            })
        });
        if let Some(calls) = &self.calls
            && std::process::id() == self.process
        {
            // If the thread has ended, the answer says so.
            let _ = calls.send(call);
        }
        told
    }

    /// Waits for the end of a call.
    pub(crate) fn end<T>(&self, answer: &Answer<T>, operation: &'static str, path: &str) -> Result<T> {
        let failed = |error| NativeError::Operation { operation, path: path.to_owned(), error };
        answer.recv().map_err(|_| self.why())?.map_err(failed)
    }

    /// Why there are no answers.
    fn why(&self) -> NativeError {
        if std::process::id() != self.process {
            return NativeError::Ended("it belongs to the process that this one was forked from".into());
        }
        NativeError::Ended(self.ended.get().cloned().unwrap_or_else(|| "its thread panicked".into()))
    }

    /// Takes back what was read and isn't needed any more.
    pub(crate) fn used(&self, segments: Segments) {
        self.used.put(segments);
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
            let done = self.end(&first, operation, path).and_then(&mut take);
            failure = failure.or(done.err());
        }
        failure.map_or(Ok(()), Err)
    }
}

/// What keeps a session, and ends it.
struct Session {
    state: watch::Receiver<SessionState>,
    stop: watch::Sender<bool>,
}

/// Waits for the first answer of mgmtd. That it refuses this client ends the wait at once.
async fn greet(rt: &Rt, mgmtd: &Mgmtd, until: Instant) -> ember_client::Result<()> {
    loop {
        let error = match mgmtd.attempt::<ClusterClock>(&Empty {}, ATTEMPT).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        let refused = error.status() == Status::HandshakeRefused;
        if refused || rt.now() + PAUSE >= until {
            return Err(ClientError::new(error.status(), error.to_string()));
        }
        rt.sleep(PAUSE).await;
    }
}

/// A client with a session, once mgmtd and routing are there.
async fn connect(rt: &Rt, place: Place, description: String) -> Result<(Client, Session)> {
    let limit = CONNECT_LIMIT.min(Duration::from_millis(place.config.operation_timeout_ms));
    let until = rt.now() + limit;
    let failed = |error: ClientError| {
        let helps = match error.status {
            Status::HandshakeRefused => "are `token` and `cluster.toml` those of the cluster that runs?",
            _ => "does the cluster run? `ember up --data` starts it",
        };
        let text = format!("{} (within {limit:?}): {helps}", error.text);
        let error = ClientError::new(error.status, text);
        NativeError::Operation { operation: "connecting to", path: place.data.display().to_string(), error }
    };
    let late = |what: &'static str| move |_| failed(ClientError::new(Status::Timeout, what));
    let shared = Shared::new(ClientId::from_u128(rt.random_u128()));
    let identity = identity(place.cluster, shared.id(), place.token);
    let pool = Pool::new(rt, identity, ember_net::Options::default());
    let mgmtd = Mgmtd::new(rt, pool.clone(), vec![place.mgmtd.clone()]);
    greet(rt, &mgmtd, until).await.map_err(failed)?;
    let routing = RoutingCache::start(rt, mgmtd.clone());
    rt.timeout_at(until, routing.ready()).await.map_err(late("mgmtd knows no servers yet"))?;
    let (stop, stopped) = watch::channel(false);
    let clock = routing.clock().clone();
    let mut state = keep_session(rt, mgmtd, shared.id(), description, clock, stopped);
    let opened = async { while *state.borrow() == SessionState::Opening && state.changed().await.is_ok() {} };
    rt.timeout_at(until, opened).await.map_err(late("mgmtd opens no session"))?;
    let client = Client::new(rt.clone(), place.config, shared, routing, pool);
    rt.spawn("capabilities", client.clone().keep_capabilities());
    Ok((client, Session { state, stop }))
}

/// What the thread runs until there are no more callers, or mgmtd has ended the session. Returns why it ends.
async fn serve(
    rt: &Rt,
    client: Client,
    mut session: Session,
    mut calls: mpsc::UnboundedReceiver<Call>,
    used: Used,
) -> String {
    loop {
        // Storage no longer remembers the writes of an ended session: what is on its way must not be tried again.
        if *session.state.borrow() == SessionState::Ended {
            return "mgmtd has ended its session: this process, or the way to the cluster, stood still"
                .into();
        }
        match select(calls.recv(), session.state.changed()).await {
            Either::Left(Some(call)) => rt.spawn("call", call(client.clone())),
            Either::Left(None) => break,
            Either::Right(_) => {}
        }
        drop(used.take());
    }
    session.stop.send(true);
    let farewell = async { while session.state.changed().await.is_ok() {} };
    let _ = rt.timeout(FAREWELL_LIMIT, farewell).await;
    "nobody uses it any more".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_process_and_a_thread_that_ended_give_errors() {
        let (calls, mut from) = mpsc::unbounded_channel();
        let reactor = |process| Reactor {
            calls: Some(calls.clone()),
            thread: None,
            process,
            ended: Arc::default(),
            used: Used::default(),
        };
        let ask = |reactor: &Reactor| {
            let answer = reactor.begin(async |_| Ok(()));
            reactor.end(&answer, "asking", "/").unwrap_err().to_string()
        };
        let forked = ask(&reactor(std::process::id() + 1));
        assert!(forked.contains("forked"), "{forked}");
        assert!(from.try_recv().is_err(), "nothing reaches the parent");
        drop(from);
        let ended = reactor(std::process::id());
        assert!(ask(&ended).contains("panicked"));
        ended.ended.set("because".into()).unwrap();
        assert!(ask(&ended).contains("because; connect again"));
    }
}
