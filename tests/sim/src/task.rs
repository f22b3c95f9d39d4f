//! Tasks and their wakers.

use crate::process::ProcessId;
use crate::world::World;
use ember_rt::LocalBoxFuture;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// A task: its slot, and how often the slot was used before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TaskId {
    slot: u32,
    use_count: u32,
}

/// Tasks to be polled, in order of their wake-ups. Wakers are `Send` by their type, hence the mutex; nobody
/// contends for it.
#[derive(Default)]
pub(crate) struct Ready(Mutex<VecDeque<TaskId>>);

impl Ready {
    fn push(&self, id: TaskId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(id);
    }
    pub(crate) fn pop(&self) -> Option<TaskId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.push(self.id);
        }
    }
}

struct Task {
    future: Option<LocalBoxFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
    process: ProcessId,
    incarnation: u32,
    name: &'static str,
}

#[derive(Default)]
struct Slot {
    use_count: u32,
    task: Option<Task>,
}

/// All tasks.
#[derive(Default)]
pub(crate) struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Tasks {
    fn task(&self, id: TaskId) -> Option<&Task> {
        self.slots.get(id.slot as usize).filter(|s| s.use_count == id.use_count)?.task.as_ref()
    }
    fn task_mut(&mut self, id: TaskId) -> Option<&mut Task> {
        self.slots.get_mut(id.slot as usize).filter(|s| s.use_count == id.use_count)?.task.as_mut()
    }
    pub(crate) fn owner(&self, id: TaskId) -> Option<(ProcessId, u32)> {
        self.task(id).map(|t| (t.process, t.incarnation))
    }
    pub(crate) fn name(&self, id: TaskId) -> Option<&'static str> {
        self.task(id).map(|t| t.name)
    }
    /// Takes the future out to poll it; wake-ups from now on count.
    pub(crate) fn take(&mut self, id: TaskId) -> Option<(LocalBoxFuture<'static, ()>, Waker)> {
        let task = self.task_mut(id)?;
        task.waker.queued.store(false, Ordering::Relaxed);
        Some((task.future.take()?, Waker::from(task.waker.clone())))
    }
    /// Gives the future back; it is returned if the task was removed meanwhile.
    pub(crate) fn put_back(
        &mut self,
        id: TaskId,
        future: LocalBoxFuture<'static, ()>,
    ) -> Option<LocalBoxFuture<'static, ()>> {
        match self.task_mut(id) {
            Some(task) => {
                task.future = Some(future);
                None
            }
            None => Some(future),
        }
    }
    /// Frees the slot.
    pub(crate) fn end(&mut self, id: TaskId) -> Option<LocalBoxFuture<'static, ()>> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|s| s.use_count == id.use_count)?;
        let task = slot.task.take()?;
        slot.use_count += 1;
        self.free.push(id.slot);
        task.future
    }
    fn add(
        &mut self,
        ready: &Arc<Ready>,
        (process, incarnation): (ProcessId, u32),
        name: &'static str,
        future: LocalBoxFuture<'static, ()>,
    ) -> TaskId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        let id = TaskId { slot, use_count: entry.use_count };
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(true), ready: ready.clone() });
        entry.task = Some(Task { future: Some(future), waker, process, incarnation, name });
        id
    }
    /// Removes all tasks of a process and returns their futures, oldest slot first, to be dropped by the
    /// caller without any borrow held.
    pub(crate) fn remove_process(&mut self, process: ProcessId) -> Vec<LocalBoxFuture<'static, ()>> {
        let mut futures = Vec::new();
        for at in 0..self.slots.len() {
            let slot = &self.slots[at];
            if slot.task.as_ref().is_some_and(|t| t.process == process) {
                let id = TaskId { slot: at as u32, use_count: slot.use_count };
                futures.extend(self.end(id));
            }
        }
        futures
    }
}

impl World {
    pub(crate) fn spawn_task(
        &self,
        process: ProcessId,
        incarnation: u32,
        name: &'static str,
        future: LocalBoxFuture<'static, ()>,
    ) {
        let id = self.0.tasks.borrow_mut().add(&self.0.ready, (process, incarnation), name, future);
        self.0.ready.push(id);
    }
    /// Starts a task outside any process.
    pub fn spawn_harness(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.spawn_task(ProcessId::HARNESS, 0, name, Box::pin(task));
    }
    pub(crate) fn requeue(&self, id: TaskId) {
        self.0.ready.push(id);
    }
}
