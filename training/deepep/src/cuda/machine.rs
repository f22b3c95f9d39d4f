//! Where the ranks' memory is, and what runs the kernels.

use crate::{Result, demand};
use ember_cuda::{Arg, Buffer, Cache, Compiler, Device, Grid, Kernel, Program};
use std::collections::BTreeMap;

/// Memory of ranks, and processors that reach all of it.
pub(super) trait Machine {
    /// Writes into the heap of a rank.
    fn write(&mut self, rank: usize, at: usize, bytes: &[u8]) -> Result<()>;
    /// Reads from it.
    fn read(&self, rank: usize, at: usize, len: usize) -> Result<Vec<u8>>;
    /// Runs so many blocks at once and waits for them. `call` is what the kernel's `Call` begins with; the addresses of
    /// the heaps and the tokens of each rank come behind it. Returns seconds.
    fn run(&mut self, program: &Program, blocks: usize, call: &[u64], tokens: &[u64]) -> Result<f64>;
}

/// A Hopper GPU.
pub(super) struct Gpu {
    device: Device,
    compiler: Compiler,
    cache: Cache,
    kernels: BTreeMap<String, Kernel>,
    heaps: Vec<Buffer<u8>>,
}

impl Gpu {
    pub(super) fn open() -> Result<Self> {
        let (device, compiler, cache) = (Device::open(0)?, Compiler::find()?, Cache::of_user()?);
        Ok(Self { device, compiler, cache, kernels: BTreeMap::new(), heaps: Vec::new() })
    }
    pub(super) fn processors(&self) -> usize {
        self.device.info().processors as usize
    }
    /// A heap for each rank, of zeros.
    pub(super) fn allocate(&mut self, ranks: usize, bytes: usize) -> Result<()> {
        for _ in 0..ranks {
            self.heaps.push(self.device.zeroed(bytes)?);
        }
        Ok(())
    }
}

impl Machine for Gpu {
    fn write(&mut self, rank: usize, at: usize, bytes: &[u8]) -> Result<()> {
        Ok(self.heaps[rank].upload_at(at, bytes)?)
    }
    fn read(&self, rank: usize, at: usize, len: usize) -> Result<Vec<u8>> {
        Ok(self.heaps[rank].download_part(at, len)?)
    }
    fn run(&mut self, program: &Program, blocks: usize, call: &[u64], tokens: &[u64]) -> Result<f64> {
        if !self.kernels.contains_key(&program.name) {
            let cubin = self.compiler.cubin(program, &self.cache)?;
            self.kernels.insert(program.name.clone(), self.device.load(program, &cubin)?);
        }
        let kernel = &self.kernels[&program.name];
        let mut call = call.to_vec();
        for heap in &self.heaps {
            let Arg::Pointer(at) = heap.arg() else {
                return demand(false, "heap", || "is no address".into()).map(|()| 0.0);
            };
            call.push(at);
        }
        call.extend(tokens);
        let call = self.device.upload(&call)?;
        let grid = Grid { x: blocks as u32, y: 1 };
        Ok(self.device.time(|| kernel.launch_together(grid, &[call.arg()]))?)
    }
}
