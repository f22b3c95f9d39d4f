//! Threads that may block, shared by all reactors of the process.
//!
//! The pool starts a thread when work waits and none is idle, up to [`Limits::threads_max`]; idle threads
//! above [`Limits::threads_min`] end after ten seconds. Work beyond [`Limits::queue_max`] is refused: whoever
//! waits for it is told at once.

use crate::reactor::run_task;
use ember_rt::SendTask;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const IDLE: Duration = Duration::from_secs(10);

/// How large the pool may get.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Threads that stay.
    pub threads_min: usize,
    /// Threads at most. Work that never ends keeps one for itself.
    pub threads_max: usize,
    /// Pieces of work that may wait for a thread.
    pub queue_max: usize,
}

impl Limits {
    const DEFAULT: Self = Self { threads_min: 4, threads_max: 16, queue_max: 65_536 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

struct State {
    limits: Limits,
    queue: VecDeque<(&'static str, SendTask)>,
    threads: usize,
    idle: usize,
}

struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

static POOL: Pool = Pool {
    state: Mutex::new(State { limits: Limits::DEFAULT, queue: VecDeque::new(), threads: 0, idle: 0 }),
    work: Condvar::new(),
};

fn lock() -> MutexGuard<'static, State> {
    // No code that can panic runs under the lock; a poisoned one is whole.
    POOL.state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the limits of the process's pool; threads above them end when they are idle.
pub fn configure(limits: Limits) {
    lock().limits = limits;
}

/// Puts work into the queue.
pub(crate) fn submit(name: &'static str, task: SendTask) {
    let mut state = lock();
    if state.queue.len() >= state.limits.queue_max {
        drop(state);
        tracing::warn!(task = name, "too much blocking work waits: refused");
        return;
    }
    state.queue.push_back((name, task));
    if state.queue.len() > state.idle && state.threads < state.limits.threads_max {
        state.threads += 1;
        let started = std::thread::Builder::new().name("ember-block".into()).spawn(work);
        if let Err(err) = started {
            state.threads -= 1;
            // With no thread at all the work would wait for ever: drop it, so that the asker is told.
            let refused = if state.threads == 0 { state.queue.pop_back() } else { None };
            drop(state);
            tracing::warn!("cannot start a thread for blocking work: {err}");
            drop(refused);
            return;
        }
    }
    drop(state);
    POOL.work.notify_one();
}

fn next() -> Option<(&'static str, SendTask)> {
    let mut state = lock();
    loop {
        if let Some(task) = state.queue.pop_front() {
            return Some(task);
        }
        state.idle += 1;
        let (again, waited) = POOL.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
        state = again;
        state.idle -= 1;
        if waited.timed_out() && state.queue.is_empty() && state.threads > state.limits.threads_min {
            return None;
        }
    }
}

/// Counts the thread out however it ends.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        lock().threads -= 1;
    }
}

fn work() {
    let _leave = Leave;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            tracing::error!("cannot start a thread for blocking work: {err}");
            return;
        }
    };
    while let Some((name, task)) = next() {
        run_task(&runtime, name, task);
    }
}
