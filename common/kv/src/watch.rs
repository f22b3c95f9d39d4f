//! The keys somebody waits for.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::api::Watch;
use crate::error::KvError;
use crate::mutation::Overlay;
use crate::oneshot::{self, Sender, lock};

/// At most so many watches wait at a time, as in FoundationDB.
const MAX_WATCHES: usize = 10_000;

type Outcome = Result<(), KvError>;

/// A watch that its transaction asked for, not yet armed.
pub(crate) struct PendingWatch {
    pub(crate) key: Vec<u8>,
    sender: Sender<Outcome>,
}

/// Makes a watch: the future for the caller and what the commit arms.
pub(crate) fn pending(key: &[u8]) -> (Watch, PendingWatch) {
    let (sender, receiver) = oneshot::channel();
    let watch = Watch::new(async move { receiver.await.unwrap_or(Err(KvError::Cancelled)) });
    (watch, PendingWatch { key: key.to_vec(), sender })
}

struct Armed {
    seen: Option<Vec<u8>>,
    sender: Sender<Outcome>,
}

#[derive(Default)]
struct Inner {
    by_key: BTreeMap<Vec<u8>, Vec<Armed>>,
    count: usize,
    closed: bool,
}

/// All armed watches of a store.
#[derive(Default)]
pub(crate) struct WatchSet(Mutex<Inner>);

impl WatchSet {
    /// Arms a watch whose transaction left `seen` at the key. The caller compares with the newest value
    /// afterwards and calls [`WatchSet::changed`] if it differs, so that no change slips through.
    pub(crate) fn arm(&self, watch: PendingWatch, seen: Option<Vec<u8>>) {
        let mut inner = lock(&self.0);
        if inner.closed {
            return;
        }
        if inner.count >= MAX_WATCHES {
            inner.sweep();
        }
        if inner.count >= MAX_WATCHES {
            drop(inner);
            watch.sender.send(Err(KvError::Busy("too many watches")));
            return;
        }
        inner.count += 1;
        inner.by_key.entry(watch.key).or_default().push(Armed { seen, sender: watch.sender });
    }

    /// Resolves the watches of `key` that saw another value than `value`.
    pub(crate) fn changed(&self, key: &[u8], value: Option<&[u8]>) {
        let mut fire = Vec::new();
        {
            let mut inner = lock(&self.0);
            let Some(armed) = inner.by_key.get_mut(key) else { return };
            let (keep, go): (Vec<_>, Vec<_>) =
                armed.drain(..).partition(|a| a.seen.as_deref() == value && !a.sender.is_closed());
            *armed = keep;
            if armed.is_empty() {
                inner.by_key.remove(key);
            }
            inner.count -= go.len();
            fire.extend(go);
        }
        for armed in fire {
            armed.sender.send(Ok(()));
        }
    }

    /// Resolves the watches of every changed key.
    pub(crate) fn committed(&self, overlay: &Overlay) {
        if lock(&self.0).count == 0 {
            return;
        }
        for (key, value) in overlay {
            self.changed(key, value.as_deref());
        }
    }

    /// Cancels all of them; with `for_ever`, also those armed later.
    pub(crate) fn cancel(&self, for_ever: bool) {
        let cancelled = {
            let mut inner = lock(&self.0);
            inner.closed |= for_ever;
            inner.count = 0;
            std::mem::take(&mut inner.by_key)
        };
        drop(cancelled);
    }
}

impl Inner {
    /// Forgets those whose future was dropped.
    fn sweep(&mut self) {
        self.by_key.retain(|_, armed| {
            armed.retain(|a| !a.sender.is_closed());
            !armed.is_empty()
        });
        self.count = self.by_key.values().map(Vec::len).sum();
    }
}
