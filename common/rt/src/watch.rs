//! A value that many watch: readers see the newest one and can wait for the next. Wakes in order of arrival
//! (tokio's own `watch` wakes in random order, which a simulator can't have).

use crate::sync::Notify;
use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

struct Shared<T> {
    value: RefCell<T>,
    version: Cell<u64>,
    closed: Cell<bool>,
    changed: Notify,
}

/// Publishes values. When it is dropped, waiting receivers are told.
pub struct Sender<T>(Rc<Shared<T>>);
/// Sees the newest value.
pub struct Receiver<T> {
    shared: Rc<Shared<T>>,
    seen: u64,
}

/// The sender is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed;

/// A watched value and its first receiver, which has seen `value`.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let shared = Rc::new(Shared {
        value: RefCell::new(value),
        version: Cell::new(0),
        closed: Cell::new(false),
        changed: Notify::new(),
    });
    (Sender(shared.clone()), Receiver { shared, seen: 0 })
}

impl<T> Sender<T> {
    /// Replaces the value and wakes everybody who waits.
    pub fn send(&self, value: T) {
        self.modify(|own| *own = value);
    }
    /// Changes the value in place and wakes everybody who waits.
    pub fn modify(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.0.value.borrow_mut());
        self.0.version.set(self.0.version.get() + 1);
        self.0.changed.notify_waiters();
    }
    /// The newest value. Don't hold it across an await.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.0.value.borrow()
    }
    /// Another receiver, which has seen the newest value.
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { shared: self.0.clone(), seen: self.0.version.get() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.closed.set(true);
        self.0.changed.notify_waiters();
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    /// The newest value. Don't hold it across an await.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.borrow()
    }
    /// Whether a value came that this receiver hasn't waited for.
    pub fn has_changed(&self) -> bool {
        self.seen != self.shared.version.get()
    }
    /// Waits for a value newer than the last one waited for.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let notified = self.shared.changed.notified();
            let version = self.shared.version.get();
            if self.seen != version {
                self.seen = version;
                return Ok(());
            }
            if self.shared.closed.get() {
                return Err(Closed);
            }
            notified.await;
        }
    }
}
