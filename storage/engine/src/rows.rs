//! The chunks of a checkpoint, many in a record: small numbers take few bytes, and what repeats is said once.
//!
//! ```text
//! number   7 bits a byte, lowest first, the highest bit says that more follow: 1 to 10 bytes
//! row      flags u8 (1 has pending, 2 has aborted), data id less the last row's, index (less the last row's
//!          less 1 if the data id is the same), committed content, pending content, aborted version
//! version  number, chain version, attempt: numbers
//! content  version, flags and extents: number (1 removed, 2 lost, 4 * extents), length: number,
//!          CRC32C u32, extents
//! extent   first block less the end of the last extent, blocks, first block in the slot, class, slot: numbers
//! ```

use crate::extents::Extents;
use crate::record::{Content, Entry, Extent, Reader};
use ember_types::{ChainVersion, ChunkId, ChunkVersion, DataId};

/// Writes rows one after the other.
#[derive(Default)]
pub(crate) struct Rows {
    bytes: Vec<u8>,
    last: Option<ChunkId>,
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_version(out: &mut Vec<u8>, v: &ChunkVersion) {
    put(out, v.number);
    put(out, v.chain_version.0);
    put(out, v.attempt.into());
}

fn put_content(out: &mut Vec<u8>, c: &Content) {
    put_version(out, &c.version);
    put(out, u64::from(c.removed) | u64::from(c.lost) << 1 | (c.extents.len() as u64) << 2);
    put(out, c.length.into());
    out.extend(c.checksum.to_le_bytes());
    let mut end = 0;
    for e in &c.extents {
        put(out, u64::from(e.first() - end));
        for number in [u32::from(e.blocks), e.block.into(), e.class.into(), e.slot] {
            put(out, number.into());
        }
        end = e.end();
    }
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
    /// Adds a row; chunks come in order.
    pub(crate) fn add(&mut self, chunk: ChunkId, entry: &Entry) {
        let out = &mut self.bytes;
        out.push(u8::from(entry.pending.is_some()) | u8::from(!entry.aborted().is_none()) << 1);
        let same = self.last.filter(|last| last.data == chunk.data);
        put(out, chunk.data.0 - self.last.map_or(0, |last| last.data.0));
        put(out, u64::from(same.map_or(chunk.index, |last| chunk.index - last.index - 1)));
        put_content(out, &entry.committed);
        if let Some(pending) = &entry.pending {
            put_content(out, pending);
        }
        if !entry.aborted().is_none() {
            put_version(out, &entry.aborted());
        }
        self.last = Some(chunk);
    }
    /// The rows so far; begins anew.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.last = None;
        std::mem::take(&mut self.bytes)
    }
}

struct Decoder<'a>(Reader<'a>);

impl Decoder<'_> {
    fn number(&mut self) -> Result<u64, &'static str> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.0.array()?;
            if shift == 63 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("number too large")
    }
    fn small<T: TryFrom<u64>>(&mut self) -> Result<T, &'static str> {
        self.number()?.try_into().map_err(|_| "number too large")
    }
    fn version(&mut self) -> Result<ChunkVersion, &'static str> {
        Ok(ChunkVersion {
            number: self.number()?,
            chain_version: ChainVersion(self.number()?),
            attempt: self.small()?,
        })
    }
    fn content(&mut self) -> Result<Content, &'static str> {
        let (version, flags, length) = (self.version()?, self.number()?, self.small()?);
        let checksum = self.0.u32()?;
        let extents = match flags >> 2 {
            1 => Extents::one(self.extent(0)?),
            count => {
                let mut extents: Vec<Extent> = Vec::new();
                for _ in 0..count {
                    let end = extents.last().map_or(0, |last| last.end());
                    extents.push(self.extent(end)?);
                }
                extents.into()
            }
        };
        let (removed, lost) = (flags & 1 != 0, flags & 2 != 0);
        let content = Content { version, length, checksum, removed, lost, extents };
        content.check().map(|()| content)
    }
    /// The extent behind one that ends at block `end`.
    fn extent(&mut self, end: u32) -> Result<Extent, &'static str> {
        let skipped: u16 = self.small()?;
        let first = u16::try_from(end + u32::from(skipped)).map_err(|_| "extent outside its chunk")?;
        let (blocks, block) = (self.small()?, self.small()?);
        Ok(Extent { first, blocks, block, class: self.small()?, slot: self.small()? })
    }
}

/// Reads rows.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<(ChunkId, Entry)>, &'static str> {
    let mut r = Decoder(Reader(bytes));
    let mut rows = Vec::with_capacity(bytes.len() / 20);
    let mut last: Option<ChunkId> = None;
    while !r.0.0.is_empty() {
        let [flags] = r.0.array()?;
        if flags > 3 {
            return Err("chunk's flags out of range");
        }
        let (more, index): (u64, u32) = (r.number()?, r.small()?);
        let chunk = match last {
            Some(last) if more == 0 => {
                let index = last.index.checked_add(1).and_then(|next| next.checked_add(index));
                ChunkId::new(last.data, index.ok_or("chunk's index out of range")?)
            }
            _ => {
                let data = last.map_or(0, |last| last.data.0).checked_add(more);
                ChunkId::new(DataId(data.ok_or("data id out of range")?), index)
            }
        };
        let committed = r.content()?;
        let pending = if flags & 1 != 0 { Some(Box::new(r.content()?)) } else { None };
        let aborted = if flags & 2 != 0 { r.version()? } else { ChunkVersion::NONE };
        rows.push((chunk, Entry::new(committed, pending, aborted)));
        last = Some(chunk);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::SlotId;

    #[test]
    fn rows_survive_the_disk() {
        let version = |number| ChunkVersion { number, chain_version: ChainVersion(1 << 40), attempt: 3 };
        let at = SlotId { class: 14, slot: u32::MAX };
        let content = |number, extents: &[Extent]| Content {
            version: version(number),
            length: 5 << 12,
            checksum: 77,
            extents: extents.into(),
            ..Content::default()
        };
        let two = content(u64::MAX, &[Extent::new(1, 1, at, 16_383), Extent::new(3, 2, at, 0)]);
        let removed = Content { version: version(2), removed: true, ..Content::default() };
        let all = [
            (ChunkId::new(DataId(0), 0), Entry::new(two.clone(), None, ChunkVersion::NONE)),
            (ChunkId::new(DataId(0), 1), Entry::new(removed, Some(Box::new(two)), version(9))),
            (ChunkId::new(DataId(0), 7), Entry::default()),
            (ChunkId::new(DataId(u64::MAX), u32::MAX), Entry::new(content(1, &[]), None, version(1))),
        ];
        let mut rows = Rows::default();
        all.iter().for_each(|(chunk, entry)| rows.add(*chunk, entry));
        let bytes = rows.take();
        assert_eq!(decode(&bytes).unwrap(), all);
        assert!((1..bytes.len()).filter(|&at| decode(&bytes[..at]).is_ok()).count() < all.len());
        rows.add(all[1].0, &all[1].1);
        assert_eq!(decode(&rows.take()).unwrap(), all[1..2]);
    }
}
