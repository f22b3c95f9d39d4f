//! Letting killed processes go while they wait for the cluster.
//!
//! The kernel reports every signal of a waiting process. Programs don't expect EINTR from files, so only a
//! process that has been killed is let go, and only from requests that change nothing: a change that was sent
//! can't be taken back, and a later one must not overtake it.

use crate::caller::is_killed;
use ember_rt::sync::oneshot;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct Waiting {
    pid: u32,
    stop: oneshot::Sender<()>,
}

/// Requests in progress that may be given up, shared by the threads of a mount: the report comes through any
/// channel.
#[derive(Debug, Default)]
pub(crate) struct Interrupts(Mutex<BTreeMap<u64, Waiting>>);

/// Takes its request out of the table when it ends.
pub(crate) struct Registered {
    table: Arc<Interrupts>,
    unique: u64,
    /// Ends with `Ok` when the request is to be given up.
    pub(crate) stopped: oneshot::Receiver<()>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.table.lock().remove(&self.unique);
    }
}

impl Interrupts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a request of the thread `pid`.
    pub(crate) fn register(self: &Arc<Self>, unique: u64, pid: u32) -> Registered {
        let (stop, stopped) = oneshot::channel();
        self.lock().insert(unique, Waiting { pid, stop });
        Registered { table: self.clone(), unique, stopped }
    }

    /// The thread that waits for this request got a signal.
    pub(crate) fn interrupted(&self, unique: u64) {
        let pid = self.lock().get(&unique).map(|waiting| waiting.pid);
        if !pid.is_some_and(is_killed) {
            return;
        }
        if let Some(waiting) = self.lock().remove(&unique) {
            // A request that has just ended needs no stop.
            let _ = waiting.stop.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_process_keeps_waiting_and_the_table_empties() {
        let table = Arc::new(Interrupts::default());
        let mut registered = table.register(4, std::process::id());
        table.interrupted(4);
        table.interrupted(5);
        assert!(registered.stopped.try_recv().is_err());
        drop(registered);
        assert!(table.lock().is_empty());
    }
}
