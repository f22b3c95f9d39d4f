//! Ids in hand, from ranges that were reserved durably before (R3).

use crate::database::{Database, Times};
use crate::error::MetaError;
use ember_meta_store::NewIds;
use ember_meta_store::ids::IdRange;
use ember_rt::sync::Semaphore;
use ember_types::{DataId, InodeId, Status};
use std::cell::RefCell;

pub(crate) struct Ids {
    range: RefCell<IdRange>,
    refill: Semaphore,
    step: u64,
}

impl Ids {
    /// Reserves `step` ids at once.
    pub(crate) fn new(step: u64) -> Self {
        Self { range: RefCell::default(), refill: Semaphore::new(1), step: step.clamp(16, 1 << 32) }
    }

    /// Two ids that nobody has had.
    pub(crate) async fn take(
        &self,
        database: &Database,
        times: impl Fn() -> Result<Times, MetaError>,
    ) -> Result<NewIds, MetaError> {
        loop {
            if let Some(ids) = self.pair() {
                return Ok(ids);
            }
            let Ok(_permit) = self.refill.acquire().await else {
                return Err(MetaError::not_now(Status::Unavailable, "the service is ending"));
            };
            if self.range.borrow().left() >= 2 {
                continue;
            }
            let step = self.step;
            let range =
                database.write(&times, false, async move |space, _| space.reserve_ids(step).await).await?;
            *self.range.borrow_mut() = range;
        }
    }

    fn pair(&self) -> Option<NewIds> {
        let mut range = self.range.borrow_mut();
        if range.left() < 2 {
            return None;
        }
        Some(NewIds { inode: range.inode()?, data: range.data()? })
    }
}

/// Ids of an operation that makes nothing.
pub(crate) const NONE: NewIds = NewIds { inode: InodeId(0), data: DataId(0) };
