//! Ranks as parts of one grid, and what all their calls have in common.

use super::machine::{Gpu, Machine};
use super::places::{Area, BUFFERS, Places};
use crate::layout::Shape;
use crate::tokens::Tokens;
use crate::{EpError, Result, demand};
use ember_cuda::Program;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Most choices of a token, and most experts.
pub(super) const TOPK_MAX: usize = 32;
pub(super) const EXPERTS_MAX: usize = 4096;
/// Streaming multiprocessors of a Hopper GPU, at most.
const BLOCKS_MAX: usize = 132;

/// What a launch does besides: bits that the kernels know.
pub(super) const AGAIN: u64 = 1;
pub(super) const WITH_WEIGHTS: u64 = 2;
pub(super) const FP8: u64 = 4;
pub(super) const POWERS: u64 = 8;

/// What a rank has been waited for, as the kernels number it.
const WHAT: [&str; 3] = ["said how many tokens it sends", "sent its tokens", "sent what it has computed"];

/// All ranks of a GPU.
pub(super) struct Ranks {
    machine: Box<dyn Machine>,
    pub(super) shape: Shape,
    blocks: usize,
    pub(super) places: Places,
    limit: Duration,
    /// Which group it is, of this process.
    number: u64,
    launches: u32,
    dispatches: u64,
    ended: Option<String>,
}

/// Which dispatch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Turn {
    group: u64,
    number: u64,
}

impl Turn {
    pub(super) fn buffer(self) -> usize {
        self.number as usize % BUFFERS
    }
}

/// Numbers of a launch that are not always the same.
#[derive(Clone, Copy)]
pub(super) struct Launch<'a> {
    pub(super) turn: Turn,
    /// The dispatch whose way tokens go again.
    pub(super) old: Turn,
    pub(super) mode: u64,
    pub(super) biases: usize,
    /// Of each rank.
    pub(super) tokens: &'a [usize],
}

/// So many blocks for each rank, on a GPU of `processors`.
pub(super) fn check(shape: &Shape, blocks: usize, processors: usize) -> Result<()> {
    shape.check()?;
    let Shape { ranks, experts, hidden, topk, tokens } = *shape;
    let most = processors.min(BLOCKS_MAX);
    demand(blocks > 0 && ranks.saturating_mul(blocks) <= most, "blocks", || {
        format!("{blocks} for each of {ranks} ranks: on this GPU there are {most} for all, at least one each")
    })?;
    demand(experts <= EXPERTS_MAX, "experts", || {
        format!("{experts} are more than {EXPERTS_MAX}, the most on a GPU")
    })?;
    demand(topk <= TOPK_MAX, "topk", || format!("{topk} is more than {TOPK_MAX}, the most on a GPU"))?;
    demand(hidden.is_multiple_of(16), "hidden", || format!("{hidden}: on a GPU it is a multiple of 16"))?;
    demand(ranks * tokens * topk.max(ranks) < 1 << 31, "tokens", || {
        format!("{tokens} of each of {ranks} ranks with {topk} choices: on a GPU their product is below 2^31")
    })
}

impl Ranks {
    /// On the first GPU.
    pub(super) fn on_gpu(shape: Shape, blocks: usize, low: bool, limit: Duration) -> Result<Self> {
        shape.check()?;
        let mut gpu = Gpu::open()?;
        check(&shape, blocks, gpu.processors())?;
        gpu.allocate(shape.ranks, Places::new(&shape, blocks, low).bytes)?;
        Ok(Self::on(Box::new(gpu), shape, blocks, low, limit))
    }

    /// On a machine that has a heap for each rank; numbers are checked.
    pub(super) fn on(
        machine: Box<dyn Machine>,
        shape: Shape,
        blocks: usize,
        low: bool,
        limit: Duration,
    ) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let places = Places::new(&shape, blocks, low);
        Self { machine, shape, blocks, places, limit, number, launches: 0, dispatches: 0, ended: None }
    }

    /// An error after one that left the memory in an unknown state.
    pub(super) fn check_alive(&self) -> Result<()> {
        self.ended.as_ref().map_or(Ok(()), |why| Err(EpError::Ended(why.clone())))
    }
    pub(super) fn check_ranks(&self, argument: &'static str, count: usize) -> Result<()> {
        let ranks = self.shape.ranks;
        demand(count == ranks, argument, || format!("there are {count}, not one for each of {ranks} ranks"))
    }
    pub(super) fn check_rank(&self, rank: usize) -> Result<()> {
        demand(rank < self.shape.ranks, "rank", || format!("{rank} is none of {} ranks", self.shape.ranks))
    }
    /// An error unless the result of that dispatch is still there.
    pub(super) fn check_turn(&self, turn: Turn) -> Result<()> {
        demand(turn.group == self.number, "of", || "it comes from another group".into())?;
        let behind = self.dispatches - turn.number;
        demand(behind < BUFFERS as u64, "of", || {
            format!("{behind} dispatches have come after it: the last {BUFFERS} are there")
        })
    }
    pub(super) fn next(&mut self) -> Turn {
        self.dispatches += 1;
        Turn { group: self.number, number: self.dispatches }
    }

    pub(super) fn write<T: IntoBytes + Immutable>(
        &mut self,
        rank: usize,
        area: Area,
        turn: Turn,
        numbers: &[T],
    ) -> Result<()> {
        self.write_at(rank, area, turn, 0, numbers)
    }
    /// From number `first` on.
    pub(super) fn write_at<T: IntoBytes + Immutable>(
        &mut self,
        rank: usize,
        area: Area,
        turn: Turn,
        first: usize,
        numbers: &[T],
    ) -> Result<()> {
        let at = self.places.at(area, turn.buffer()) + first * size_of::<T>();
        self.machine.write(rank, at, numbers.as_bytes())
    }
    /// `count` numbers from number `first` on.
    pub(super) fn read<T: FromBytes + IntoBytes + Clone>(
        &self,
        rank: usize,
        area: Area,
        turn: Turn,
        first: usize,
        count: usize,
    ) -> Result<Vec<T>> {
        let at = self.places.at(area, turn.buffer()) + first * size_of::<T>();
        let mut out = vec![T::new_zeroed(); count];
        let bytes = self.machine.read(rank, at, count * size_of::<T>())?;
        out.as_mut_slice().as_mut_bytes().copy_from_slice(&bytes);
        Ok(out)
    }
    pub(super) fn write_tokens(&mut self, rank: usize, turn: Turn, tokens: Tokens<'_>) -> Result<()> {
        self.write(rank, Area::X, turn, tokens.bytes())?;
        self.write(rank, Area::XScales, turn, tokens.scales())
    }
    pub(super) fn write_chosen(&mut self, rank: usize, turn: Turn, chosen: &[i64]) -> Result<()> {
        // An expert's number has fewer than 13 bits.
        let chosen: Vec<i32> = chosen.iter().map(|id| *id as i32).collect();
        self.write(rank, Area::XChosen, turn, &chosen)
    }

    /// Runs a kernel for all ranks. What it says at the end of each, and the seconds that it took.
    pub(super) fn run(&mut self, program: &Program, launch: &Launch<'_>) -> Result<(Vec<Vec<u8>>, f64)> {
        let result = self.check_alive().and_then(|()| self.launch(program, launch));
        if let Err(error) = &result {
            self.ended.get_or_insert_with(|| error.to_string());
        }
        result
    }

    fn launch(&mut self, program: &Program, launch: &Launch<'_>) -> Result<(Vec<Vec<u8>>, f64)> {
        let Shape { ranks, experts, hidden, topk, tokens } = self.shape;
        let Some(epoch) = self.launches.checked_add(1) else {
            return Err(EpError::Ended("2^32 calls have been made".into()));
        };
        self.launches = epoch;
        let limit_ns = u64::try_from(self.limit.as_nanos()).unwrap_or(u64::MAX);
        let mut call = [ranks, self.blocks, experts, hidden, topk, tokens].map(|n| n as u64).to_vec();
        call.extend([epoch.into(), limit_ns, launch.mode, launch.biases as u64]);
        call.extend(self.places.of_launch(launch.turn.buffer(), launch.old.buffer()));
        let tokens: Vec<u64> = launch.tokens.iter().map(|count| *count as u64).collect();
        let seconds = self.machine.run(program, ranks * self.blocks, &call, &tokens)?;
        let mut summaries = Vec::with_capacity(ranks);
        for rank in 0..ranks {
            summaries.push(self.machine.read(rank, 0, self.places.summary)?);
        }
        let status =
            |summary: &Vec<u8>| summary.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        // The first wait that took too long: who has given up there is missed later.
        match summaries.iter().map(status).filter(|status| *status != 0).min() {
            None => Ok((summaries, seconds)),
            Some(status) => {
                let what = ((status >> 32) as usize).checked_sub(1).and_then(|what| WHAT.get(what));
                let what = what.copied().unwrap_or("done its part");
                let rank = ((status & 0xffff_ffff) as usize).saturating_sub(1);
                Err(EpError::Late { rank, what, milliseconds: self.limit.as_millis() })
            }
        }
    }
}
