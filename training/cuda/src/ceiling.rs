//! What a GPU can do at most, to measure kernels by.

use crate::{Cache, Compiler, Device, Grid, HOPPER, Program, Result, wgmma};

/// Times that each warpgroup multiplies 64 by 256 numbers and 128 bytes of K.
const ROUNDS: u32 = 20_000;
/// Runs; the first warm up.
const RUNS: usize = 5;
const WARM: usize = 2;
/// Launches that are queued and timed together, so that the host's work is hidden behind the GPU's where it is less.
const BATCH: usize = 10;

/// The kernel that multiplies FP8 or BF16 numbers and loads nothing.
pub fn ceiling(fp8: bool) -> Program {
    let set = format!("#define ROUNDS {ROUNDS}u\n");
    let parts = [HOPPER, &set, &wgmma("wgmma", fp8, 256), include_str!("ceiling.cu")];
    Program {
        name: format!("cuda/ceiling-{}", if fp8 { "fp8" } else { "bf16" }),
        entry: "ceiling",
        source: parts.concat(),
        threads: 256,
        cluster: 1,
        shared_bytes: 1024 + (128 + 256) * 128,
        instructions: if fp8 { &["QGMMA"] } else { &["HGMMA"] },
        registers_max: 255,
    }
}

impl Device {
    /// TFLOP/s of the tensor cores alone, the best of a few runs.
    ///
    /// # Errors
    /// If the kernel can't be had or fails.
    pub fn measure_products(&self, fp8: bool, compiler: &Compiler, cache: &Cache) -> Result<f64> {
        let program = ceiling(fp8);
        let kernel = self.load(&program, &compiler.cubin(&program, cache)?)?;
        let blocks = self.info().processors;
        let out = self.zeroed::<f32>(blocks as usize * 256)?;
        let k = if fp8 { 128.0 } else { 64.0 };
        let operations = 2.0 * 128.0 * 256.0 * k * f64::from(ROUNDS) * f64::from(blocks);
        let seconds = self.best(|| kernel.launch(Grid { x: blocks, y: 1 }, &[out.arg()]))?;
        Ok(operations / seconds / 1e12)
    }

    /// Bytes read and written in a second by copies within the GPU's memory, in GB/s, the best of a few runs.
    ///
    /// # Errors
    /// If there isn't as much memory, or it fails.
    pub fn measure_copy(&self) -> Result<f64> {
        let len = 1usize << 30;
        let (from, mut to) = (self.zeroed::<u8>(len)?, self.zeroed::<u8>(len)?);
        let seconds = self.best(|| to.copy(&from))?;
        Ok(2.0 * len as f64 / seconds / 1e9)
    }

    /// Seconds of the work, which is queued ten times in each of a few runs: of the fastest, after others that warm up.
    ///
    /// # Errors
    /// If the work fails.
    pub fn best(&self, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
        let mut least = f64::INFINITY;
        for run in 0..WARM + RUNS {
            let seconds = self.time(|| (0..BATCH).try_for_each(|_| work()))? / BATCH as f64;
            least = if run < WARM { least } else { least.min(seconds) };
        }
        Ok(least)
    }
}
