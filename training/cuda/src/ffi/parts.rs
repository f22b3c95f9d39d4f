//! Parts of buffers, and grids whose blocks wait for each other.

use super::{Arg, Buffer, Kernel, Plain, call, cu, driver};
use crate::{Grid, Result, demand};

impl<T: Plain> Buffer<T> {
    /// Numbers from `at` on, `len` of them, after all work that was queued.
    ///
    /// # Errors
    /// If they aren't all there, or that work failed.
    pub fn download_part(&self, at: usize, len: usize) -> Result<Vec<T>> {
        let from = self.place(at, len)?;
        let mut out = vec![T::default(); len];
        if len > 0 {
            // SAFETY: the stream lives. Then: `len` numbers lie at that place, and as many in the vector.
            call("waiting for a GPU", unsafe { driver::stream::synchronize(self.context.stream) })?;
            // SAFETY: as above.
            call("copying from a GPU", unsafe { driver::memcpy_dtoh_sync(&mut out, from) })?;
        }
        Ok(out)
    }
    /// Writes numbers from `at` on, after all work that was queued.
    ///
    /// # Errors
    /// If there is no room for them.
    pub fn upload_at(&mut self, at: usize, numbers: &[T]) -> Result<()> {
        let to = self.place(at, numbers.len())?;
        if !numbers.is_empty() {
            // SAFETY: as many numbers have room at that place; the default stream waits for ours.
            call("copying to a GPU", unsafe { driver::memcpy_htod_sync(to, numbers) })?;
        }
        Ok(())
    }
    /// The address of so many numbers.
    fn place(&self, at: usize, len: usize) -> Result<u64> {
        demand(at.checked_add(len).is_some_and(|end| end <= self.len), "at", || {
            format!("{len} numbers from {at} on are not within the buffer's {}", self.len)
        })?;
        self.context.enter()?;
        Ok(self.at + (at * size_of::<T>()) as u64)
    }
}

impl Kernel {
    /// As [`Kernel::launch`], for blocks that wait for each other: all of them run at the same time, or none does.
    ///
    /// # Errors
    /// If the arguments aren't the kernel's, it has clusters, or the GPU has no room for all blocks at once.
    pub fn launch_together(&self, grid: Grid, args: &[Arg]) -> Result<()> {
        demand(self.program.cluster == 1, "grid", || "blocks in clusters can't wait for each other".into())?;
        self.start(grid, args, cu::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
    }
}
