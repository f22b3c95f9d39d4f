//! The part of tokio's synchronisation that is deterministic: wakes in order of arrival, no clock, no I/O.

pub use tokio::sync::mpsc;
pub use tokio::sync::oneshot;
pub use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit, TryAcquireError};
