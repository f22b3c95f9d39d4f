//! A store around another one that delays its operations and makes outcomes unknown, as the caller decides.
//!
//! Nothing here is random: a [`Faults`] object decides each time, and waits end when the caller lets them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::api::{
    BoxFuture, Committed, Durability, KeyRange, KeyValue, Kv, RangeOptions, ReadMode, Tx, Watch,
};
use crate::error::KvError;
use crate::oneshot;

/// Ends the wait of its [`Hold`]; so does dropping it.
pub struct Release(oneshot::Sender<()>);

impl Release {
    /// Ends the wait.
    pub fn release(self) {
        self.0.send(());
    }
}

/// A wait that lasts until its [`Release`] says so. `Send`, so that a clock that is not can still end it.
pub struct Hold(oneshot::Receiver<()>);

/// A wait and what ends it.
pub fn hold() -> (Release, Hold) {
    let (sender, receiver) = oneshot::channel();
    (Release(sender), Hold(receiver))
}

impl Future for Hold {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}

/// How a commit ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Outcome {
    /// As the store says.
    #[default]
    Normal,
    /// The caller gets `CommitUnknown`; if the store accepts the commit, it happened.
    UnknownApplied,
    /// The caller gets `CommitUnknown`; it did not happen.
    UnknownNotApplied,
}

/// What happens to one commit.
#[derive(Default)]
pub struct CommitPlan {
    /// Awaited before the store sees the commit.
    pub before: Option<Hold>,
    /// How it ends.
    pub outcome: Outcome,
    /// Awaited between the commit and its answer.
    pub after: Option<Hold>,
}

/// Decides the faults of a [`FaultyKv`].
pub trait Faults: Send + Sync {
    /// Called once for each read; the read waits for it.
    fn on_read(&self) -> Option<Hold> {
        None
    }

    /// Called once for each commit, when it is first polled.
    fn on_commit(&self, durability: Durability) -> CommitPlan {
        let _ = durability;
        CommitPlan::default()
    }
}

/// A store with faults.
#[derive(Clone)]
pub struct FaultyKv {
    inner: Arc<dyn Kv>,
    faults: Arc<dyn Faults>,
}

impl FaultyKv {
    /// `inner`, with the faults that `faults` decides.
    pub fn new(inner: Arc<dyn Kv>, faults: Arc<dyn Faults>) -> Self {
        Self { inner, faults }
    }
}

impl Kv for FaultyKv {
    fn begin(&self) -> Box<dyn Tx> {
        let faults = self.faults.clone();
        Box::new(FaultyTx { inner: self.inner.begin(), faults, durability: Durability::default() })
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn sync(&self) -> BoxFuture<'static, Result<(), KvError>> {
        self.inner.sync()
    }
}

struct FaultyTx {
    inner: Box<dyn Tx>,
    faults: Arc<dyn Faults>,
    durability: Durability,
}

async fn wait(hold: Option<Hold>) {
    if let Some(hold) = hold {
        hold.await;
    }
}

impl Tx for FaultyTx {
    fn get<'a>(
        &'a mut self,
        key: &'a [u8],
        mode: ReadMode,
    ) -> BoxFuture<'a, Result<Option<Vec<u8>>, KvError>> {
        Box::pin(async move {
            wait(self.faults.on_read()).await;
            self.inner.get(key, mode).await
        })
    }

    fn get_range<'a>(
        &'a mut self,
        range: KeyRange,
        opts: RangeOptions,
    ) -> BoxFuture<'a, Result<Vec<KeyValue>, KvError>> {
        Box::pin(async move {
            wait(self.faults.on_read()).await;
            self.inner.get_range(range, opts).await
        })
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.inner.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.inner.clear(key);
    }

    fn clear_range(&mut self, range: KeyRange) {
        self.inner.clear_range(range);
    }

    fn atomic_add(&mut self, key: &[u8], delta: i64) {
        self.inner.atomic_add(key, delta);
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        self.inner.set_versionstamped_key(key, offset, value);
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        self.inner.set_versionstamped_value(key, value, offset);
    }

    fn add_read_conflict(&mut self, range: KeyRange) {
        self.inner.add_read_conflict(range);
    }

    fn add_write_conflict(&mut self, range: KeyRange) {
        self.inner.add_write_conflict(range);
    }

    fn watch(&mut self, key: &[u8]) -> Watch {
        self.inner.watch(key)
    }

    fn set_durability(&mut self, durability: Durability) {
        self.durability = durability;
        self.inner.set_durability(durability);
    }

    fn get_read_version(&mut self) -> BoxFuture<'_, Result<u64, KvError>> {
        Box::pin(async move {
            wait(self.faults.on_read()).await;
            self.inner.get_read_version().await
        })
    }

    fn set_read_version(&mut self, version: u64) {
        self.inner.set_read_version(version);
    }

    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<Committed, KvError>> {
        Box::pin(async move {
            let plan = self.faults.on_commit(self.durability);
            wait(plan.before).await;
            let result = match plan.outcome {
                Outcome::Normal => self.inner.commit().await,
                Outcome::UnknownNotApplied => Err(KvError::CommitUnknown),
                Outcome::UnknownApplied => self.inner.commit().await.and(Err(KvError::CommitUnknown)),
            };
            wait(plan.after).await;
            result
        })
    }
}
