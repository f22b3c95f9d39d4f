//! Reads: exactly the blocks that are asked for, each verified.

use crate::api::{Read, Which};
use crate::class::{BLOCK, blocks_of, data_name};
use crate::error::{EngineError, Result};
use crate::index::valid_bytes;
use crate::inner::{Inner, add};
use crate::record::{Content, Extent};
use ember_rt::disk::Priority;
use ember_rt::select::{join, join_all};
use ember_rt::{Buf, SharedBuf};
use ember_types::checksum::crc32c;
use ember_types::{ChunkId, mutant};
use std::rc::Rc;

impl Inner {
    pub(crate) fn content(&self, chunk: ChunkId, which: Which) -> Result<Content> {
        let index = self.index.borrow();
        let absent = EngineError::NotFound(chunk);
        let Some(entry) = index.get(chunk) else { return Err(absent) };
        let committed = Some(&entry.committed).filter(|c| !c.version.is_none());
        let content = match which {
            Which::Committed => committed,
            Which::Newest => entry.pending.as_deref().or(committed),
            Which::Exact(version) => {
                committed.into_iter().chain(entry.pending.as_deref()).find(|c| c.version == version)
            }
        };
        match content {
            Some(content) if content.lost && !mutant!(r10_lost_reads_as_zeros) => {
                Err(EngineError::Lost(chunk))
            }
            Some(content) if !content.removed => Ok(content.clone()),
            _ => Err(absent),
        }
    }

    pub(crate) async fn read(
        self: &Rc<Self>,
        chunk: ChunkId,
        which: Which,
        offset: u32,
        length: u32,
        priority: Priority,
    ) -> Result<Read> {
        let content = self.content(chunk, which)?;
        let end = offset.saturating_add(length).min(content.length);
        let mut read = Read {
            version: content.version,
            chunk_length: content.length,
            start: offset / BLOCK * BLOCK,
            data: SharedBuf::default(),
            checksums: Vec::new(),
        };
        add(&self.counters.reads, 1);
        if offset < end {
            let (from, to) = (offset / BLOCK, blocks_of(end));
            let (mut buf, sums) = self.read_blocks(&content, from, to, priority).await?;
            buf.set_len((to * BLOCK).min(content.length) as usize - (from * BLOCK) as usize);
            read.data = buf.into();
            read.checksums = sums;
        }
        Ok(read)
    }

    /// Reads blocks `[from, to)` of a content, verified; whole blocks, those beyond its length are zeros or
    /// padding. Also their checksums.
    pub(crate) async fn read_blocks(
        self: &Rc<Self>,
        content: &Content,
        from: u32,
        to: u32,
        priority: Priority,
    ) -> Result<(Buf, Vec<u32>)> {
        let pieces: Vec<Extent> = content.extents.within(from, to).collect();
        let mut wanted = self.index.borrow().wanted(content, from, to);
        let _held = self.hold(pieces.iter().map(Extent::at).collect());
        let data = self.read_pieces(&pieces, (from, to), priority);
        // Data and checksum pages are read side by side.
        let (buf, taken) = match self.take_cached(&mut wanted, priority) {
            Ok(()) if !wanted.missing.is_empty() => join(data, self.take_read(&mut wanted, priority)).await,
            taken => (data.await, taken),
        };
        let buf = buf?;
        let sums = match taken {
            Ok(()) => wanted.sums,
            Err(error) => self.find_sums(content, (from, to), priority, error).await?,
        };
        for piece in &pieces {
            self.verify_extent(content, piece, from, &buf, &sums)?;
        }
        Ok((buf, sums))
    }

    /// Blocks `[from, to)` of a content as they are on the disk.
    pub(crate) async fn read_raw(
        &self,
        content: &Content,
        (from, to): (u32, u32),
        priority: Priority,
    ) -> Result<Buf> {
        let pieces: Vec<Extent> = content.extents.within(from, to).collect();
        self.read_pieces(&pieces, (from, to), priority).await
    }

    async fn read_pieces(
        &self,
        pieces: &[Extent],
        (from, to): (u32, u32),
        priority: Priority,
    ) -> Result<Buf> {
        if let Some(whole) = pieces.first().filter(|e| e.first() == from && e.end() == to) {
            return self.read_extent(whole, priority).await;
        }
        let parts = join_all(pieces.iter().map(|piece| self.read_extent(piece, priority))).await;
        let mut buf = Buf::zeroed(((to - from) * BLOCK) as usize);
        for (piece, part) in pieces.iter().zip(parts) {
            let at = ((piece.first() - from) * BLOCK) as usize;
            let part = part?;
            buf.bytes_mut()[at..at + part.len()].copy_from_slice(&part);
        }
        Ok(buf)
    }

    async fn read_extent(&self, extent: &Extent, priority: Priority) -> Result<Buf> {
        let length = usize::from(extent.blocks) * BLOCK as usize;
        let offset = extent.at().offset(extent.block.into());
        let ends = |at| {
            let path = self.files.path(&data_name(extent.class));
            EngineError::corrupt(path, at, "the file ends within a chunk's data")
        };
        let Some(file) = self.data_file(extent.class) else { return Err(ends(0)) };
        let read = self.files.read(&file, priority, offset, length).await;
        let buf = read.inspect_err(|_| self.slots.borrow_mut().quarantine(extent.at()))?;
        add(&self.counters.read_bytes, buf.len() as u64);
        if buf.len() != length {
            return Err(ends(offset + buf.len() as u64));
        }
        Ok(buf)
    }

    fn verify_extent(
        &self,
        content: &Content,
        extent: &Extent,
        from: u32,
        buf: &Buf,
        sums: &[u32],
    ) -> Result<()> {
        for block in extent.first()..extent.end() {
            let at = ((block - from) * BLOCK) as usize;
            let valid = valid_bytes(content.length, block) as usize;
            let bad = crc32c(&buf[at..at + valid]) != sums[(block - from) as usize];
            if bad && !mutant!(r14_base_not_verified) {
                add(&self.counters.corrupt_blocks, 1);
                self.slots.borrow_mut().quarantine(extent.at());
                let within = u32::from(extent.block) + block - extent.first();
                let path = self.files.path(&data_name(extent.class));
                return Err(EngineError::corrupt(
                    path,
                    extent.at().offset(within),
                    "block fails its checksum",
                ));
            }
        }
        Ok(())
    }

    /// Reads and verifies every block of every version of a chunk; ends early if the chunk is updated.
    pub(crate) async fn verify(self: &Rc<Self>, chunk: ChunkId, priority: Priority) -> Result<()> {
        let entry = self.index.borrow().get(chunk).cloned().unwrap_or_default();
        for content in std::iter::once(&entry.committed).chain(entry.pending.as_deref()) {
            // In pieces, so that memory stays bounded whatever the chunk's length.
            let blocks = blocks_of(content.length);
            let mut from = 0;
            while from < blocks {
                let to = (from + 256).min(blocks);
                if self.index.borrow().get(chunk) != Some(&entry) {
                    return Ok(());
                }
                if content.lost {
                    return Err(EngineError::Lost(chunk));
                }
                self.read_blocks(content, from, to, priority).await?;
                from = to;
            }
        }
        Ok(())
    }
}
