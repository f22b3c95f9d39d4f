//! Kernels for Hopper GPUs (compute capability 9.0): found, compiled, cached and launched.
//!
//! A [`Program`] is CUDA C++ source and how it is launched. [`Compiler`] is NVIDIA's NVRTC, loaded when it is needed;
//! [`Cache`] keeps what it made; [`Device`] is a GPU with its memory, and [`Kernel`] a program loaded on it. Everything
//! builds without CUDA: [`Backend::detect`] says what is missing. [`report`] reads what the compiler and the
//! disassembler say of a kernel, which needs no GPU. Nothing here has been run on a GPU yet.
#![deny(unsafe_code)]

mod cache;
mod ceiling;
mod compile;
mod ffi;
mod program;
pub mod report;

pub use cache::Cache;
pub use ceiling::ceiling;
pub use compile::{Compiled, Compiler, candidates};
pub use ffi::{Arg, Buffer, Device, Element, Kernel, Matrix, Plain, Swizzle, TensorMap};
pub use program::{Grid, Program, wgmma};

/// Wrappers of Hopper's instructions, to be put before a kernel's source.
pub const HOPPER: &str = include_str!("hopper.cuh");
/// Most shared memory of a block, in bytes.
pub const SHARED_BYTES_MAX: u32 = 232_448;
/// What kernels are compiled for. Code for it runs on compute capability 9.0 and nowhere else.
pub const ARCHITECTURE: &str = "sm_90a";

/// What can go wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver's library can't be loaded.
    #[error("no driver: libcuda.so.1 not found")]
    NoDriver,
    /// The driver has no GPU, or doesn't work.
    #[error("no GPU: {0}")]
    NoDevice(String),
    /// The GPU or the driver is another one than the kernels need.
    #[error("{0}")]
    Unsupported(String),
    /// NVRTC can't be loaded.
    #[error("no compiler: {0}; set EMBER_NVRTC to the path of libnvrtc.so.13")]
    NoCompiler(String),
    /// A kernel that doesn't compile.
    #[error("kernel {kernel} doesn't compile:\n{log}")]
    Compile {
        /// The program's name.
        kernel: String,
        /// What the compiler says.
        log: String,
    },
    /// A call that failed.
    #[error("{what}: {why}")]
    Call {
        /// Which.
        what: &'static str,
        /// What the driver says.
        why: String,
    },
    /// A file of the cache.
    #[error("cache of kernels: {0}")]
    Cache(String),
    /// An argument that breaks a rule. Nothing has been launched.
    #[error("{argument}: {rule}")]
    Argument {
        /// Its name.
        argument: &'static str,
        /// The rule, with the numbers.
        rule: String,
    },
}

/// Result with a [`CudaError`].
pub type Result<T> = std::result::Result<T, CudaError>;

/// An error unless `holds`.
fn demand(holds: bool, argument: &'static str, rule: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(CudaError::Argument { argument, rule: rule() }) }
}

/// A GPU that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// As the driver calls it.
    pub name: String,
    /// Streaming multiprocessors.
    pub processors: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// CUDA version of the driver: 13000 is 13.0.
    pub driver: u32,
}

/// What computes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Backend {
    /// A Hopper GPU.
    Cuda(DeviceInfo),
    /// The processors, because there is no such GPU.
    Cpu {
        /// Why not.
        why: CudaError,
    },
}

impl Backend {
    /// The first GPU, if it can run the kernels and NVRTC is there to compile them.
    pub fn detect() -> Self {
        let found = ffi::probe(0).and_then(|info| Compiler::find().map(|_| info));
        found.map_or_else(|why| Self::Cpu { why }, Self::Cuda)
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cuda(info) => write!(f, "CUDA on {} ({} processors)", info.name, info.processors),
            Self::Cpu { why } => write!(f, "CPU, not CUDA: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backend_says_why_it_is_not_cuda() {
        let cpu = Backend::Cpu { why: CudaError::NoDriver };
        assert_eq!(cpu.to_string(), "CPU, not CUDA: no driver: libcuda.so.1 not found");
        // Whatever this machine has, asking for it is no panic.
        assert!(!Backend::detect().to_string().is_empty());
    }
}
