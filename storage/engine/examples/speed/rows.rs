//! What is done to the engine, one worker per operation in flight.

use crate::Failure;
use ember_engine::{Engine, Prepare, Update, Which};
use ember_rt::disk::Priority;
use ember_rt::select::join_all;
use ember_rt::{Buf, Rt, SharedBuf};
use ember_types::layout::SplitMix64;
use ember_types::{ChainVersion, ChunkId, ChunkVersion, DataId, Instant, block_checksums};
use std::cell::{Cell, RefCell};

const CHUNK: u32 = 1 << 20;
const BLOCK: u32 = 4096;
const APPEND: u32 = 64 << 10;
/// Chunks that are grown by appends: 1 GiB of them, removed and grown again.
const APPENDED: u32 = 1024;
/// Different payloads.
const PAYLOADS: u64 = 16;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Row {
    /// Not measured: the data set is written.
    Fill,
    /// Whole chunks in order.
    Read,
    /// One block somewhere.
    RandomRead,
    /// The same, and no checksum page stays in memory.
    ColdRead,
    /// Whole chunks in order.
    Write,
    /// One block somewhere.
    Overwrite,
    /// 64 KiB behind what a chunk has.
    Append,
    /// A chunk's length, without bytes.
    Metadata,
}

impl Row {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "fill" => Self::Fill,
            "read" => Self::Read,
            "random-read" => Self::RandomRead,
            "cold-read" => Self::ColdRead,
            "write" => Self::Write,
            "overwrite" => Self::Overwrite,
            "append" => Self::Append,
            "metadata" => Self::Metadata,
            _ => return None,
        })
    }
    /// Bytes of a request.
    fn bytes(self) -> u32 {
        match self {
            Self::Fill | Self::Read | Self::Write => CHUNK,
            Self::RandomRead | Self::ColdRead | Self::Overwrite => BLOCK,
            Self::Append => APPEND,
            Self::Metadata => 0,
        }
    }
}

pub(crate) struct Work {
    rt: Rt,
    engine: Engine,
    row: Row,
    chunks: u32,
    depth: u32,
    next: Cell<u32>,
    /// Bytes and their checksums.
    payloads: RefCell<Vec<(SharedBuf, Vec<u32>)>>,
}

impl Work {
    pub(crate) fn new(rt: Rt, engine: Engine, row: Row, chunks: u32, depth: u32) -> Self {
        let mut random = SplitMix64(rt.random_u64());
        let mut payload = || {
            let mut buf = Buf::zeroed(row.bytes() as usize);
            buf.bytes_mut().chunks_mut(8).for_each(|part| part.copy_from_slice(&random.next().to_le_bytes()));
            let sums = block_checksums(&buf);
            (SharedBuf::from(buf), sums)
        };
        let payloads = RefCell::new((0..PAYLOADS).map(|_| payload()).collect());
        Self { rt, engine, row, chunks, depth, next: Cell::new(0), payloads }
    }

    fn payload(&self, number: u64) -> (SharedBuf, Vec<u32>) {
        self.payloads.borrow()[(number % PAYLOADS) as usize].clone()
    }

    /// One durable update and its commit, as a chain of one replica does it.
    async fn update(&self, chunk: ChunkId, update: Update) -> Result<(), Failure> {
        let base = self.engine.state(chunk).map_or(ChunkVersion::NONE, |state| state.committed_version());
        let version = ChunkVersion { number: base.number + 1, chain_version: ChainVersion(1), attempt: 0 };
        let priority = Priority::Foreground;
        let request = Prepare { chunk, version, base, update, writer: None, expect: None, priority };
        self.engine.prepare(request).await?;
        Ok(self.engine.commit(chunk, version).await?)
    }

    async fn write(&self, chunk: ChunkId, offset: u32, number: u64) -> Result<(), Failure> {
        let (data, checksums) = self.payload(number);
        self.update(chunk, Update::Write { offset, data, checksums }).await
    }

    /// Writes the data set.
    pub(crate) async fn fill(&self) -> Result<(), Failure> {
        let worker = |worker: u32| async move {
            for index in (worker..self.chunks).step_by(16) {
                self.write(ChunkId::new(DataId(1), index), 0, index.into()).await?;
            }
            Ok::<(), Failure>(())
        };
        join_all((0..16).map(worker)).await.into_iter().collect()
    }

    /// What a row needs beside the data set.
    pub(crate) async fn prepare(&self) -> Result<(), Failure> {
        let first = self.engine.state(ChunkId::new(DataId(1), self.chunks - 1));
        if first.and_then(|state| state.live()).is_none_or(|content| content.length != CHUNK) {
            return Err("the data set is not there: run the row `fill` first".into());
        }
        Ok(())
    }

    /// Works until then; how many operations and bytes it did.
    pub(crate) async fn work(&self, worker: u32, until: Instant) -> Result<(u64, u64), Failure> {
        let mut random = SplitMix64(self.rt.random_u64());
        let (mut operations, mut bytes) = (0, 0);
        while self.rt.now() < until {
            self.step(worker, operations, &mut random).await?;
            operations += 1;
            bytes += u64::from(self.row.bytes());
        }
        Ok((operations, bytes))
    }

    async fn step(&self, worker: u32, number: u64, random: &mut SplitMix64) -> Result<(), Failure> {
        let in_order = || {
            let index = self.next.get();
            self.next.set((index + 1) % self.chunks);
            ChunkId::new(DataId(1), index)
        };
        match self.row {
            Row::Fill => Ok(()),
            Row::Read => self.read(in_order(), 0).await,
            Row::RandomRead | Row::ColdRead => {
                let chunk = ChunkId::new(DataId(1), random.below(self.chunks.into()) as u32);
                self.read(chunk, random.below((CHUNK / BLOCK).into()) as u32 * BLOCK).await
            }
            Row::Write => self.write(in_order(), 0, random.next()).await,
            Row::Overwrite => {
                // Each worker has chunks of its own: updates of one chunk wait for each other.
                let own = (self.chunks / self.depth).max(1);
                let index = random.below(own.into()) as u32 * self.depth + worker;
                let block = random.below((CHUNK / BLOCK).into()) as u32;
                self.write(ChunkId::new(DataId(1), index % self.chunks), block * BLOCK, random.next()).await
            }
            Row::Append => self.append(worker, number).await,
            Row::Metadata => {
                let length = (number % 8 + 1) as u32 * BLOCK;
                self.update(ChunkId::new(DataId(3), worker), Update::Truncate { length }).await
            }
        }
    }

    async fn read(&self, chunk: ChunkId, offset: u32) -> Result<(), Failure> {
        let bytes = self.row.bytes();
        let read = self.engine.read(chunk, Which::Committed, offset, bytes, Priority::Foreground).await?;
        if read.data.len() != bytes as usize || read.start != offset {
            return Err(format!("{} bytes at {} of {chunk}", read.data.len(), read.start).into());
        }
        Ok(())
    }

    /// The worker's chunks grow one after the other; one that is whole is removed before it grows again.
    async fn append(&self, worker: u32, number: u64) -> Result<(), Failure> {
        let (per_chunk, own) = (u64::from(CHUNK / APPEND), u64::from(APPENDED / self.depth).max(1));
        let index = (number / per_chunk % own) as u32 * self.depth + worker;
        let chunk = ChunkId::new(DataId(2), index);
        let offset = (number % per_chunk) as u32 * APPEND;
        if offset == 0 && self.engine.state(chunk).is_some_and(|state| state.live().is_some()) {
            self.update(chunk, Update::Remove).await?;
        }
        self.write(chunk, offset, number).await
    }
}
