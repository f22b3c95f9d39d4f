//! A panic in a task must not vanish: it is kept here and raised again by the reactor's main future.

use std::any::Any;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

pub(crate) type Payload = Box<dyn Any + Send>;

#[derive(Default)]
struct Slot {
    payload: Option<Payload>,
    waiter: Option<Waker>,
}

/// Where the first panic of a reactor's tasks is put.
#[derive(Clone, Default)]
pub(crate) struct Panics(Rc<RefCell<Slot>>);

impl Panics {
    /// Waits for a panic.
    pub(crate) async fn wait(&self) -> Payload {
        poll_fn(|cx| {
            let mut slot = self.0.borrow_mut();
            match slot.payload.take() {
                Some(payload) => Poll::Ready(payload),
                None => {
                    slot.waiter = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn put(&self, payload: Payload) {
        let mut slot = self.0.borrow_mut();
        slot.payload.get_or_insert(payload);
        let waiter = slot.waiter.take();
        drop(slot);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Runs a task; its panic goes into the slot.
    pub(crate) async fn guard(self, name: &'static str, task: impl Future<Output = ()>) {
        if let Err(payload) = catch(task).await {
            tracing::error!(task = name, "task panicked: {}", message(&payload));
            self.put(payload);
        }
    }
}

/// Runs a future and catches its panic.
pub(crate) async fn catch<F: Future>(future: F) -> Result<F::Output, Payload> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
        Err(payload) => Poll::Ready(Err(payload)),
    })
    .await
}

/// What a panic said.
pub(crate) fn message(payload: &Payload) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
