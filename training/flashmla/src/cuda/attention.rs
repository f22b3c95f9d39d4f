//! Work that is ready to run on a GPU: its buffers, and the launches.

use super::{Result, check_count, combine_program};
use crate::schedule::{Part, Schedule, schedule};
use crate::{Attended, VALUE_WIDTH, demand};
use ember_cuda::{Arg, Buffer, Grid, Kernel, Program};
use ember_deepgemm::cuda::Cuda;
use half::bf16;
use std::rc::Rc;

/// Most parts: blocks in the second dimension of a launch.
const PARTS_MAX: usize = 65_535;

/// Rows of the result: heads of the queries of all requests.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) batch: usize,
    pub(super) queries: usize,
    pub(super) heads: usize,
}

impl Rows {
    pub(super) fn count(&self) -> usize {
        self.batch.saturating_mul(self.queries).saturating_mul(self.heads)
    }
}

/// Queries, cache and schedule in a GPU's memory, and room for the result.
pub struct Attention {
    plan: Schedule,
    launches: Vec<(Rc<Kernel>, Grid, Vec<Arg>)>,
    parts: Buffer<i32>,
    pieces: Buffer<i32>,
    sink: Option<Buffer<f32>>,
    out: Buffer<u16>,
    lse: Buffer<f32>,
    part_out: Buffer<f32>,
    part_lse: Buffer<f32>,
    numbers: Vec<Buffer<u16>>,
    tables: Vec<Buffer<i32>>,
}

impl Attention {
    /// Runs over so many tokens of each request, in so many parts. The second launch is there already.
    pub(super) fn new(
        gpu: &Cuda,
        rows: Rows,
        lengths: &[usize],
        parts: usize,
        sink: Option<&[f32]>,
    ) -> Result<Self> {
        check_count("q", rows.count())?;
        demand(parts <= PARTS_MAX, "parts", || format!("{parts}: on a GPU at most {PARTS_MAX}"))?;
        let (plan, device) = (schedule(lengths, parts)?, gpu.device());
        let pieces: Vec<i32> = plan.pieces.iter().map(|&piece| piece as i32).collect();
        let of_request = rows.queries.saturating_mul(rows.heads);
        let stored = if is_split(&plan) { plan.pieces.last().copied().unwrap_or(0) * of_request } else { 0 };
        let mut made = Self {
            launches: Vec::new(),
            parts: device.upload(&words(&plan))?,
            pieces: device.upload(&pieces)?,
            sink: sink.map(|sink| device.upload(sink)).transpose()?,
            out: device.zeroed(rows.count().saturating_mul(VALUE_WIDTH))?,
            lse: device.zeroed(rows.count())?,
            part_out: device.zeroed(stored.saturating_mul(VALUE_WIDTH))?,
            part_lse: device.zeroed(stored)?,
            numbers: Vec::new(),
            tables: Vec::new(),
            plan,
        };
        if stored > 0 {
            let mut args = vec![made.part_out.arg(), made.part_lse.arg(), made.pieces.arg(), made.sink_arg()];
            args.extend([made.out.arg(), made.lse.arg()]);
            args.extend([rows.queries, rows.heads].map(|x| Arg::U32(x as u32)));
            let grid = Grid { x: rows.count() as u32, y: 1 };
            made.launches.push((gpu.kernel(&combine_program())?, grid, args));
        }
        Ok(made)
    }

    pub(super) fn plan_args(&self) -> [Arg; 2] {
        [self.parts.arg(), self.pieces.arg()]
    }
    pub(super) fn sink_arg(&self) -> Arg {
        self.sink.as_ref().map_or(Arg::Pointer(0), Buffer::arg)
    }
    pub(super) fn result_args(&self) -> [Arg; 4] {
        [self.out.arg(), self.lse.arg(), self.part_out.arg(), self.part_lse.arg()]
    }
    /// What launches read lives as long as they may be run.
    pub(super) fn keep(&mut self, numbers: [Buffer<u16>; 2], tables: [Buffer<i32>; 2]) {
        self.numbers.extend(numbers);
        self.tables.extend(tables);
    }
    /// What is launched before pieces are put together: so many tiles by all parts.
    pub(super) fn first(&mut self, gpu: &Cuda, of: &Program, tiles: usize, args: Vec<Arg>) -> Result<()> {
        check_count("q", tiles)?;
        let grid = Grid { x: tiles as u32, y: self.plan.parts.len() as u32 };
        self.launches.insert(0, (gpu.kernel(of)?, grid, args));
        Ok(())
    }

    /// Queues the work. It may be queued again: the result is the same, bit for bit.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn run(&self) -> Result<()> {
        self.launches.iter().try_for_each(|(kernel, grid, args)| kernel.launch(*grid, args))
    }

    /// The result of the last run, after all work that was queued.
    ///
    /// # Errors
    /// If that work failed.
    pub fn download(&self) -> Result<Attended> {
        let out = self.out.download()?.into_iter().map(bf16::from_bits).collect();
        Ok(Attended { out, lse: self.lse.download()? })
    }
}

/// Whether a request is in several pieces.
fn is_split(plan: &Schedule) -> bool {
    plan.pieces.windows(2).any(|pair| pair[1] - pair[0] > 1)
}

/// Parts as the kernels read them: eight numbers each.
pub(super) fn words(plan: &Schedule) -> Vec<i32> {
    let words = |part: &Part| {
        [
            part.begin as i32,
            part.begin_page as i32,
            part.begin_piece as i32,
            i32::from(part.begin_is_split),
            part.end as i32,
            part.end_page as i32,
            i32::from(part.end_is_split),
            0,
        ]
    };
    plan.parts.iter().flat_map(words).collect()
}
