//! What goes after the last capability has ended (R18), and only from committed records (R3).
//!
//! An item is due when capabilities minted before it was queued have ended. Renewals on an unlinked inode push
//! its `hold` on; claiming an item whose inode is held moves it there. From the claim on the inode can't be
//! opened or renewed, so nobody holds a right to the data that are then removed.

use crate::codec::decode;
use crate::error::Result;
use crate::record::Garbage;
use crate::space::{Env, Space};
use crate::table;
use ember_types::{ClusterTime, DataId, InodeId, Layout, mutant};

/// An item of garbage as it is queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// When it is due.
    pub due: ClusterTime,
    /// The inode.
    pub inode: InodeId,
    /// The data.
    pub data: DataId,
    /// What goes.
    pub garbage: Garbage,
}

/// Data that storage is to remove once the claim is committed (durably, which the claim sees to).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Doomed {
    /// The item.
    pub item: Item,
    /// Where the data lie.
    pub layout: Layout,
    /// No byte lies beyond; `u64::MAX` if unknown.
    pub extent: u64,
}

impl Space<'_> {
    /// The items that are due, oldest first.
    pub async fn due_garbage(&mut self, now: ClusterTime, limit: usize) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        for (key, value) in self.scan(table::garbage_due(now), limit).await? {
            let garbage = decode(table::GARBAGE.name, &key, &value)?;
            if let Some((due, inode, data)) = table::garbage_ids(&key) {
                items.push(Item { due, inode, data, garbage });
            }
        }
        Ok(items)
    }

    /// Claims an item. `Some`: remove these data, then [`Space::finish_garbage`]. `None`: it was put off, or
    /// had no data and is gone already.
    pub async fn claim_garbage(&mut self, env: &Env<'_>, item: &Item) -> Result<Option<Doomed>> {
        let key = table::garbage(item.due, item.inode, item.data);
        if self.value(&key).await?.is_none() || item.due > env.cluster {
            return Ok(None);
        }
        if !mutant!(r03_removal_before_durable) {
            self.require_durable();
        }
        let (layout, extent) = match item.garbage.with_inode {
            false => (item.garbage.layout, item.garbage.extent.unwrap_or(u64::MAX)),
            true => {
                let Some(mut inode) = self.find_inode(item.inode).await? else {
                    self.tx.clear(&key);
                    return Ok(None);
                };
                let hold = self.hold(item.inode).await?;
                if hold > env.cluster && !mutant!(r18_collected_before_hold) {
                    self.tx.clear(&key);
                    self.put(&table::garbage(hold, item.inode, item.data), &item.garbage);
                    return Ok(None);
                }
                let unreported = !self.sessions(item.inode).await?.is_empty();
                let extent = if unreported { u64::MAX } else { inode.extent };
                if !inode.collecting {
                    inode.collecting = true;
                    self.put_inode(item.inode, inode);
                }
                (item.garbage.layout, extent)
            }
        };
        match layout {
            Some(layout) if extent > 0 => Ok(Some(Doomed { item: *item, layout, extent })),
            _ => {
                self.finish_garbage(item).await?;
                Ok(None)
            }
        }
    }

    /// Forgets an item whose data are gone.
    pub async fn finish_garbage(&mut self, item: &Item) -> Result<()> {
        let id = item.inode;
        let key = table::garbage(item.due, id, item.data);
        if self.value(&key).await?.is_none() {
            return Ok(());
        }
        self.tx.clear(&key);
        if !item.garbage.with_inode || self.find_inode(id).await?.is_none() {
            return Ok(());
        }
        self.clear_inode(id);
        self.tx.clear(&table::hold(id));
        self.tx.clear(&table::times(id));
        self.tx.clear(&table::subdirs(id));
        if item.garbage.layout.is_some() {
            self.tx.clear(&table::intent(id));
            self.tx.clear_range(table::sessions(id));
        }
        self.count_inodes(-1);
        Ok(())
    }

    /// Number of items, at most `limit`: for metrics.
    pub async fn garbage_count(&mut self, limit: usize) -> Result<usize> {
        Ok(self.scan(table::GARBAGE.range(), limit).await?.len())
    }
}
