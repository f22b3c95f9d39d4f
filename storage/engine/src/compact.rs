//! Compaction: what was overwritten at random lies in many pieces, and is written anew in few, so that it reads fast
//! in order. Version, length and checksum stay: nobody but the disk notices.

use crate::class::{BLOCK, class_for, slot_bytes};
use crate::error::{EngineError, Result};
use crate::inner::{ChunkGuard, Inner, add};
use crate::plan::{Plan, WINDOW, onto, scattered};
use crate::record::{Entry, Record};
use crate::write::{Built, Fresh, Placed};
use ember_rt::disk::Priority;
use ember_types::{ChunkId, mutant};
use std::rc::Rc;

impl Inner {
    /// Writes the scattered parts of the committed version anew, a MiB after the other, so that updates of the chunk
    /// never wait for long. Returns the bytes written.
    pub(crate) async fn compact(self: Rc<Self>, chunk: ChunkId) -> Result<u64> {
        let (mut from, mut bytes) = (0, 0);
        loop {
            let guard = self.lock(chunk).await?;
            let entry = self.index.borrow().get(chunk).cloned().unwrap_or_default();
            // The update that is under way may itself write the scattered part anew.
            if entry.pending.is_some() && !mutant!(r04_compaction_drops_pending) {
                return Ok(bytes);
            }
            // What is absent, removed or lost has no extents.
            let Some(plan) = scattered(&entry.committed, from, self.config.compact_pieces) else {
                return Ok(bytes);
            };
            from = plan.dirty.last().map_or(0, |(_, to)| to.next_multiple_of(WINDOW));
            bytes += self.write_anew(chunk, &entry, plan, guard).await?;
        }
    }

    async fn write_anew(
        self: &Rc<Self>,
        chunk: ChunkId,
        entry: &Entry,
        plan: Plan,
        guard: ChunkGuard,
    ) -> Result<u64> {
        let old = &entry.committed;
        let needed = plan.dirty.iter().map(|(from, to)| slot_bytes(class_for(to - from))).sum();
        // What is set aside is for updates.
        let available = self.available()?.saturating_sub(self.reserved.get());
        if needed > available {
            return Err(EngineError::NoSpace { needed, available });
        }
        let (mut fresh, mut bytes) = (Vec::with_capacity(plan.dirty.len()), 0);
        for &(from, to) in &plan.dirty {
            let (mut data, sums) = self.read_blocks(old, from, to, Priority::Scrub).await?;
            // No checksum covers what is behind the chunk's end: zeros.
            let valid = (to * BLOCK).min(old.length) - from * BLOCK;
            data.bytes_mut()[valid as usize..].fill(0);
            bytes += data.len() as u64;
            fresh.push(Fresh { from, to, data: data.into(), sums });
        }
        let built = Built { content: old.clone(), fresh, plan };
        let (content, Placed { runs, taken, parts }) = self.place(entry, built, Priority::Scrub).await?;
        let entry = Entry::new(onto(old, &content), None, entry.aborted());
        // The writers' records stay as they are.
        let record = Record::Put { chunk, entry, runs, writers: Vec::new() };
        self.apply_durably(vec![record], Some(guard), (taken, parts)).await?;
        add(&self.counters.compacted_bytes, bytes);
        Ok(bytes)
    }
}
