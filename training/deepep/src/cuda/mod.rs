//! The same exchanges on a Hopper GPU (compute capability 9.0), whose processors are parted among the ranks: a grid of
//! `ranks * blocks` blocks, all of which run at the same time, and a heap for each rank in the GPU's memory. Not run on
//! a GPU yet: the kernels are compiled and checked without one (`cargo xtask kernels`), and the same source, compiled
//! for processors, gives the bits of [`Group`](crate::Group) (NaN may have others).
//!
//! Blocks write into the heaps of other ranks, set a flag there, and wait for the others' flags, at most as long as the
//! group's limit: then the call ends with an error that names the rank, and the group with it.
//!
//! Not here: several GPUs (NVLink, NCCL's GIN, NVSHMEM), rows per expert ([`Expanded`](crate::Expanded)), halves of the
//! low-latency calls with time between them, and arguments that are in the GPU's memory already: they are copied from
//! the host before a launch, and results are there until they are asked for.

mod low;
mod machine;
mod normal;
mod places;
mod ranks;
#[cfg(test)]
mod tests;

pub use low::{CudaLow, CudaLowDispatched, CudaLowReceived, LowBack};
pub use normal::{Back, CudaCombined, CudaDispatched, CudaGroup, CudaReceived, Sent};

use ember_cuda::Program;

const MACHINE: &str = include_str!("machine.cuh");
const RANKS: &str = include_str!("ranks.cuh");
const DISPATCH: &str = include_str!("dispatch.cu");
const COMBINE: &str = include_str!("combine.cu");
const LOW: &str = include_str!("low.cu");

fn program(entry: &'static str, kernels: &str) -> Program {
    Program {
        name: format!("deepep/{}", entry.replace('_', "-")),
        entry,
        source: format!("{MACHINE}{}{RANKS}{kernels}", places::AREAS),
        threads: 512,
        cluster: 1,
        shared_bytes: 0,
        instructions: &[],
        registers_max: 128,
    }
}

fn dispatch() -> Program {
    program("dispatch", DISPATCH)
}
fn combine() -> Program {
    program("combine", COMBINE)
}
fn low_dispatch() -> Program {
    Program { instructions: &["F2FP"], ..program("low_dispatch", &low_kernel("low_dispatch")) }
}
fn low_combine() -> Program {
    program("low_combine", &low_kernel("low_combine"))
}
/// One of both, so that what is said of its code is said of it alone.
fn low_kernel(entry: &str) -> String {
    format!("#define ONLY_{}\n{LOW}", entry.to_uppercase())
}

/// All programs, to be compiled and checked without a GPU.
pub fn programs() -> Vec<Program> {
    vec![dispatch(), combine(), low_dispatch(), low_combine()]
}
