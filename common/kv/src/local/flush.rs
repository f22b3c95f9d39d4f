//! Makes `Ordered` commits durable a few milliseconds later, beside the committing thread.
//!
//! It flushes the newest journal through a descriptor of its own, because fjall holds its journal's lock
//! during a flush, and commits would wait for it. A journal that is no longer the newest was flushed when
//! the next was made.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::files::{Mark, io};
use super::{Shared, journal};
use crate::error::KvError;
use crate::oneshot::lock;

struct Inner {
    mark: Mark,
    /// The newest version handed to the operating system.
    written: u64,
    stopping: bool,
}

/// How far the store is durable, and the wish for more.
pub(super) struct Flusher {
    inner: Mutex<Inner>,
    changed: Condvar,
    db: PathBuf,
    after: Duration,
}

impl Flusher {
    pub(super) fn new(db: PathBuf, mark: Mark, after: Duration) -> Self {
        let written = mark.version();
        let inner = Mutex::new(Inner { mark, written, stopping: false });
        Self { inner, changed: Condvar::new(), db, after }
    }

    /// Asks for a flush of everything up to `version`.
    pub(super) fn request(&self, version: u64) {
        let mut inner = lock(&self.inner);
        inner.written = inner.written.max(version);
        drop(inner);
        self.changed.notify_one();
    }

    /// Notes that everything up to `version` is durable.
    pub(super) fn durable(&self, version: u64) -> Result<(), KvError> {
        let mut inner = lock(&self.inner);
        inner.written = inner.written.max(version);
        inner.mark.raise(version)
    }

    pub(super) fn stop(&self) {
        lock(&self.inner).stopping = true;
        self.changed.notify_all();
    }

    /// After the last flush: notes that all is durable, unless something failed before.
    pub(super) fn finish(&self, failure: Option<KvError>) -> Result<(), KvError> {
        if let Some(error) = failure {
            return Err(error);
        }
        let mut inner = lock(&self.inner);
        let written = inner.written;
        inner.mark.raise(written)?;
        inner.mark.sync()
    }

    /// Waits until something is to be flushed; false when it is over.
    fn wait(&self) -> bool {
        let idle = |i: &mut Inner| i.written <= i.mark.version() && !i.stopping;
        let waited = self.changed.wait_while(lock(&self.inner), idle);
        if waited.unwrap_or_else(PoisonError::into_inner).stopping {
            return false;
        }
        // More commits join this flush.
        let pause = self.changed.wait_timeout_while(lock(&self.inner), self.after, |i| !i.stopping);
        !pause.unwrap_or_else(PoisonError::into_inner).0.stopping
    }

    fn flush(&self, open: &mut Option<(u64, File)>) -> Result<(), KvError> {
        let written = lock(&self.inner).written;
        let Some((id, path)) = journal::list(&self.db)?.pop() else { return Ok(()) };
        if open.as_ref().is_none_or(|(open_id, _)| *open_id != id) {
            *open = Some((id, File::open(&path).map_err(|e| io(&path, "opening", &e))?));
        }
        if let Some((_, file)) = open {
            file.sync_data().map_err(|e| io(&path, "flush", &e))?;
        }
        lock(&self.inner).mark.raise(written)
    }
}

/// The thread.
pub(super) fn run(shared: &Shared) {
    let mut open = None;
    while shared.flusher.wait() {
        if let Err(error) = shared.flusher.flush(&mut open) {
            tracing::error!(%error, "the key-value store stops: a flush failed");
            shared.queue.fail(&error);
            return;
        }
    }
}
