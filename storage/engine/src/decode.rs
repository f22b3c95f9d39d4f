//! The decoders of what lies on a disk, as functions of bytes alone: for fuzzing (`tests/fuzz`). Opening a
//! target uses the same code behind [`crate::Engine::open`].

use crate::error::Result;
use crate::frame::{FrameHeader, FrameOf, build};
use crate::index::Index;
use crate::record::Record;
use crate::sums::{Page, PageId};
use crate::superblock;
use crate::used::Used;
use ember_types::ChunkId;

pub use crate::superblock::Identity;

/// Records of a log or checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Records(Vec<Record>);

/// Where a frame belongs: a frame of another place is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The target.
    pub target: u64,
    /// 1 log segment, 2 checkpoint.
    pub kind: u32,
    /// Number of the segment or checkpoint.
    pub file: u64,
}

impl From<Place> for FrameOf {
    fn from(place: Place) -> Self {
        Self { target: place.target, kind: place.kind, file: place.file }
    }
}

/// A record of a whole frame that makes no sense: its offset within the frame, and what is wrong.
pub type BadRecord = (usize, &'static str);

/// Reads a superblock.
pub fn superblock(bytes: &[u8]) -> Result<Identity> {
    superblock::decode("superblock", bytes, superblock::FORMAT)
}

/// The bytes of a superblock.
pub fn superblock_bytes(identity: &Identity) -> Vec<u8> {
    superblock::encode(identity)
}

impl Records {
    /// Reads records that stand one after the other. The error says what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut rest = bytes;
        let mut records = Vec::new();
        while !rest.is_empty() {
            let (record, length) = Record::decode(rest)?;
            records.push(record);
            rest = rest.get(length..).ok_or("record longer than what is there")?;
        }
        Ok(Self(records))
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The bytes of the records.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.0.iter().for_each(|record| record.encode(&mut out));
        out
    }

    /// Replays them as recovery does, checks the result, and makes the records that a checkpoint would hold of
    /// it. The error says why recovery would refuse them.
    pub fn replay(&self) -> Result<Self, String> {
        let mut index = Index::default();
        for record in &self.0 {
            index.replay(record);
        }
        let mut used = Used::default();
        index.after(None).try_for_each(|(chunk, entry)| index.note(chunk, entry, &mut used))?;
        index.keep(&used);
        let chunks: Vec<ChunkId> = index.after(None).map(|(chunk, _)| chunk).collect();
        let put = |chunk: ChunkId| {
            let entry = index.get(chunk)?.clone();
            let end = entry.committed.extents.iter().map(crate::record::Extent::end).max().unwrap_or(0);
            let wanted = index.wanted(&entry.committed, 0, end);
            debug_assert_eq!(wanted.sums.len(), end as usize);
            let (runs, writers) = (index.runs_of(&entry), index.writers_of(chunk));
            Some(Record::Put { chunk, entry, runs, writers })
        };
        let rows = chunks.iter().filter_map(|&chunk| Some((chunk, index.get(chunk)?.clone()))).collect();
        let puts: Vec<Record> = chunks.into_iter().filter_map(put).collect();
        Ok(Self([vec![Record::Rows { rows }], puts].concat()))
    }

    /// A frame that holds them.
    pub fn frame(&self, place: Place, sequence: u64) -> Vec<u8> {
        build(place.into(), sequence, self.0.len() as u32, &self.bytes()).to_vec()
    }
}

/// Reads the frame at the start of `bytes`: its sequence and records. `None` if there is no whole one of that
/// place.
pub fn frame(bytes: &[u8], place: Place) -> Option<Result<(u64, Records), BadRecord>> {
    let header = FrameHeader::parse(bytes, place.into())?;
    let frame = bytes.get(..header.length())?;
    let records = header.verify(frame).then(|| header.records(frame))?;
    Some(records.map(|records| (header.sequence, Records(records))))
}

/// Reads a checksum page of a place: class, page. The error says why it isn't that page.
pub fn page(bytes: &[u8], target: u64, class: u8, page: u32) -> Result<(u32, SumPage), &'static str> {
    Page::decode(bytes, target, PageId { class, page }).map(|(sequence, page)| (sequence, SumPage(page)))
}

/// The checksums on a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SumPage(Page);

impl SumPage {
    /// The checksum of a block, if the page knows it.
    pub fn get(&self, index: u32) -> Option<u32> {
        self.0.get(index)
    }
    /// Its bytes at a place.
    pub fn bytes(&self, target: u64, class: u8, page: u32, sequence: u32) -> Vec<u8> {
        self.0.encode(target, PageId { class, page }, sequence).to_vec()
    }
}
