//! Runs a transaction again until it commits: bounded attempts, growing pauses.

use std::future::Future;
use std::time::Duration;

use crate::api::{Committed, Kv, Tx};
use crate::error::KvError;

/// How often and after which pauses a transaction is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// At most so many attempts, at least 1.
    pub max_attempts: u32,
    /// The pause after the first failure; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause.
    pub max_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 32,
            first_pause: Duration::from_micros(200),
            max_pause: Duration::from_millis(100),
        }
    }
}

impl RetryPolicy {
    /// The default with `max_attempts` attempts.
    pub fn attempts(max_attempts: u32) -> Self {
        Self { max_attempts, ..Self::default() }
    }

    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << failures.saturating_sub(1).min(20));
        doubled.min(self.max_pause)
    }
}

/// Which attempt runs, and whether an earlier one may have been committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    /// An earlier attempt ended with `CommitUnknown`: what this one reads may be its effect.
    pub maybe_committed: bool,
}

/// An error that may wrap the store's, so that [`run`] knows whether to try again.
pub trait WrapsKvError: From<KvError> {
    /// The store's error, if that is what it is.
    fn kv_error(&self) -> Option<&KvError>;
}

impl WrapsKvError for KvError {
    fn kv_error(&self) -> Option<&KvError> {
        Some(self)
    }
}

/// Runs `body` in a new transaction and commits it; on a retryable error waits by `sleep` and starts over.
/// `body` must be idempotent: it runs again after `CommitUnknown` too, and then reads its own effect.
/// An error of `body` that is not the store's ends it without a commit.
///
/// ```ignore
/// run(&*kv, |d| rt.sleep(d), RetryPolicy::default(), async |tx| {
///     let old = tx.get(b"k", ReadMode::Serializable).await?;
///     tx.set(b"k", b"v");
///     Ok::<_, KvError>(old)
/// }).await
/// ```
pub async fn run<T, E, S, F, B>(kv: &dyn Kv, sleep: S, policy: RetryPolicy, mut body: B) -> Result<T, E>
where
    E: WrapsKvError,
    S: Fn(Duration) -> F,
    F: Future<Output = ()>,
    B: AsyncFnMut(&mut dyn Tx) -> Result<T, E>,
{
    let done = run_attempts(kv, sleep, policy, async |tx: &mut dyn Tx, _: Attempt| body(tx).await).await;
    done.map(|(value, _)| value)
}

/// As [`run`], but tells `body` which attempt it is, and returns what the commit reported too.
pub async fn run_attempts<T, E, S, F, B>(
    kv: &dyn Kv,
    sleep: S,
    policy: RetryPolicy,
    mut body: B,
) -> Result<(T, Committed), E>
where
    E: WrapsKvError,
    S: Fn(Duration) -> F,
    F: Future<Output = ()>,
    B: AsyncFnMut(&mut dyn Tx, Attempt) -> Result<T, E>,
{
    let mut attempt = Attempt { number: 1, maybe_committed: false };
    loop {
        let mut tx = kv.begin();
        let error = match body(tx.as_mut(), attempt).await {
            Ok(value) => match tx.commit().await {
                Ok(committed) => return Ok((value, committed)),
                Err(error) => E::from(error),
            },
            Err(error) => error,
        };
        let again = error.kv_error().is_some_and(KvError::is_retryable);
        if !again || attempt.number >= policy.max_attempts {
            return Err(error);
        }
        attempt.maybe_committed |= error.kv_error().is_some_and(KvError::maybe_committed);
        sleep(policy.pause(attempt.number)).await;
        attempt.number += 1;
    }
}
