//! Transactions: run on threads that may block, tried again after conflicts.

use crate::error::MetaError;
use ember_daemon::metrics::Counter;
use ember_kv::{Durability, Kv, KvError};
use ember_meta_store::{Env, Error as StoreError, Space};
use ember_rt::Rt;
use ember_types::file::Credentials;
use ember_types::{ClusterTime, Status, UnixTime};
use std::sync::Arc;
use std::time::Duration;

const PAUSE_FIRST: Duration = Duration::from_micros(200);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The times that operations of one transaction see; read before it begins (R18).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) now: UnixTime,
    pub(crate) cluster: ClusterTime,
    pub(crate) hold: Duration,
    pub(crate) owner: u64,
    pub(crate) claim: Duration,
}

impl Times {
    /// What an operation of `who` needs to know.
    pub(crate) fn env<'a>(&self, who: &'a Credentials) -> Env<'a> {
        Env {
            who,
            now: self.now,
            cluster: self.cluster,
            hold: self.hold,
            owner: self.owner,
            claim: self.claim,
        }
    }
}

/// The store, reached from the reactor.
pub(crate) struct Database {
    rt: Rt,
    kv: Arc<dyn Kv>,
    durability: Durability,
    attempts_max: u32,
    retries: Counter,
}

impl Database {
    pub(crate) fn new(
        rt: Rt,
        kv: Arc<dyn Kv>,
        durability: Durability,
        attempts_max: u32,
        retries: Counter,
    ) -> Self {
        Self { rt, kv, durability, attempts_max: attempts_max.max(1), retries }
    }

    /// Runs `body` in a transaction that reads one consistent state.
    pub(crate) async fn read<T, B>(&self, body: B) -> Result<T, MetaError>
    where
        T: Send + 'static,
        B: AsyncFn(&mut Space<'_>) -> Result<T, StoreError> + Send + Sync + 'static,
    {
        let body = Arc::new(body);
        self.attempts(|| {
            let (kv, body) = (self.kv.clone(), body.clone());
            self.rt.blocking("meta read", move || async move {
                let mut tx = kv.begin();
                body(&mut Space::read_only(tx.as_mut())).await
            })
        })
        .await
    }

    /// Runs `body` in a transaction and commits it. `times` is asked before each attempt. With `sync` the
    /// answer waits until everything committed so far is durable.
    pub(crate) async fn write<T, B>(
        &self,
        times: impl Fn() -> Result<Times, MetaError>,
        sync: bool,
        body: B,
    ) -> Result<T, MetaError>
    where
        T: Send + 'static,
        B: AsyncFn(&mut Space<'_>, &Times) -> Result<T, StoreError> + Send + Sync + 'static,
    {
        let body = Arc::new(body);
        let durability = self.durability;
        let mut failures = 0;
        loop {
            let (kv, body, now) = (self.kv.clone(), body.clone(), times()?);
            let done = self
                .rt
                .blocking("meta write", move || async move {
                    let mut tx = kv.begin();
                    tx.set_durability(durability);
                    let value = body(&mut Space::new(tx.as_mut()), &now).await?;
                    tx.commit().await?;
                    if sync {
                        kv.sync().await?;
                    }
                    Ok(value)
                })
                .await;
            match done {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => self.again(error, &mut failures).await?,
                Err(_) => return Err(gone()),
            }
        }
    }

    /// Waits until everything committed so far is durable.
    pub(crate) async fn sync(&self) -> Result<(), MetaError> {
        let kv = self.kv.clone();
        match self.rt.blocking("meta sync", move || async move { kv.sync().await }).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(gone()),
        }
    }

    async fn attempts<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, MetaError>
    where
        F: Future<Output = Result<Result<T, StoreError>, ember_rt::Elapsed>>,
    {
        let mut failures = 0;
        loop {
            match attempt().await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => self.again(error, &mut failures).await?,
                Err(_) => return Err(gone()),
            }
        }
    }

    /// Waits before the next attempt, or says why there is none.
    async fn again(&self, error: StoreError, failures: &mut u32) -> Result<(), MetaError> {
        let retryable = matches!(&error, StoreError::Kv(kv) if kv.is_retryable());
        *failures += 1;
        if !retryable || *failures >= self.attempts_max {
            if let StoreError::Kv(KvError::Corrupt { .. }) | StoreError::Damaged { .. } = &error {
                tracing::error!(%error, "metadata are damaged");
            }
            return Err(error.into());
        }
        self.retries.inc();
        let pause = PAUSE_FIRST.saturating_mul(1 << (*failures - 1).min(16)).min(PAUSE_MAX);
        let jitter = Duration::from_nanos(self.rt.random_below(pause.as_nanos() as u64 / 2 + 1));
        self.rt.sleep(pause + jitter).await;
        Ok(())
    }
}

fn gone() -> MetaError {
    MetaError::not_now(Status::Unavailable, "the threads of the metadata service have ended")
}
