//! Ids from durably reserved ranges (R3).

use crate::codec::counter;
use crate::error::{Result, ensure};
use crate::space::Space;
use crate::table;
use ember_types::{DataId, InodeId, Status, mutant};
use std::ops::Range;

/// The first id that is handed out: 1 is the root directory.
const FIRST: u64 = 16;
/// Ids stay below, so that they are positive in every language.
const END: u64 = 1 << 62;
const NEXT: &str = "next id";

/// Ids that this server may hand out. What is left of them at its end is skipped.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct IdRange(Range<u64>);

impl IdRange {
    /// The ids `range`.
    pub fn new(range: Range<u64>) -> Self {
        Self(range)
    }
    /// The next id; `None` if the range is used up.
    pub fn take(&mut self) -> Option<u64> {
        self.0.next()
    }
    /// The next id, for an inode.
    pub fn inode(&mut self) -> Option<InodeId> {
        self.take().map(InodeId)
    }
    /// The next id, for data.
    pub fn data(&mut self) -> Option<DataId> {
        self.take().map(DataId)
    }
    /// How many are left.
    pub fn left(&self) -> u64 {
        self.0.end - self.0.start
    }
}

impl Space<'_> {
    /// Reserves the next `count` ids. The commit is durable; use none before.
    pub async fn reserve_ids(&mut self, count: u64) -> Result<IdRange> {
        let key = table::counter(NEXT);
        let value = self.value(&key).await?;
        let start = counter(table::COUNTER.name, &key, value.as_deref())?.max(FIRST);
        let end = start.saturating_add(count);
        ensure(end < END, Status::NoSpace)?;
        self.tx.set(&key, &end.to_le_bytes());
        if !mutant!(r03_id_range_not_durable) {
            self.require_durable();
        }
        Ok(IdRange(start..end))
    }
}
