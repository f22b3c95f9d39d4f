//! Ranks that belong together.

use crate::layout::{Layout, Shape, layout};
use crate::nodes::{self, Across};
use crate::places::{BUFFERS, Places, SIGNALS, Signal};
use crate::ways::Handle;
use crate::{EpError, Result, demand};
use ember_heap::{Heap, HeapError};
use ember_link::Link;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::time::Duration;

/// What may come back of a token's experts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Returns {
    /// A row from each rank.
    #[default]
    ByRank,
    /// A row from each expert too: for sums that are rounded once, and the low-latency mode. Takes more memory if a
    /// token chooses more experts than ranks share memory.
    ByExpert,
}

/// What a rank joins.
#[derive(Clone, Copy, Debug)]
pub struct Join<'a> {
    /// The file that the ranks of this machine share, which must be in memory (`/dev/shm`), must not be there before,
    /// and is gone when all have joined or one has given up.
    pub path: &'a Path,
    /// The own number.
    pub rank: usize,
    /// The numbers of the group.
    pub shape: Shape,
    /// What may come back.
    pub returns: Returns,
    /// How long a rank is waited for at most, now and in each later call.
    pub limit: Duration,
}

/// Calls of one kind: how many have begun, and how many have ended.
#[derive(Default)]
pub(crate) struct Turns {
    begun: Cell<u32>,
    done: Cell<u32>,
}

/// A call of all ranks, and the buffer that it uses.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) epoch: u32,
    pub(crate) buffer: usize,
}

impl Turns {
    /// The next one, if at most `others` are on their way.
    pub(crate) fn next(&self, others: usize) -> Result<Turn> {
        let on_their_way = self.begun.get().wrapping_sub(self.done.get()) as usize;
        demand(on_their_way <= others, "calls", || {
            format!("{on_their_way} earlier ones are on their way, {others} may be: receive them before")
        })?;
        let epoch = self.begun.get().wrapping_add(1);
        Ok(Turn { epoch, buffer: epoch as usize % BUFFERS })
    }
    pub(crate) fn begin(&self, turn: Turn) {
        self.begun.set(turn.epoch);
    }
    /// Those that have begun before it must have ended.
    pub(crate) fn demand_oldest(&self, turn: Turn) -> Result<()> {
        demand(self.done.get().wrapping_add(1) == turn.epoch, "calls", || {
            "an earlier one is on its way: receive it before".into()
        })
    }
    pub(crate) fn end(&self, turn: Turn) {
        self.done.set(turn.epoch);
    }
}

/// A rank of a group of processes, or threads, on one machine or several. All ranks make the same calls in the same
/// order.
pub struct Group {
    pub(crate) heap: Heap,
    pub(crate) shape: Shape,
    pub(crate) places: Places,
    pub(crate) returns: Returns,
    pub(crate) dispatches: Turns,
    pub(crate) combines: Turns,
    /// Buffers with the results of a dispatch.
    pub(crate) alive: RefCell<[bool; BUFFERS]>,
    /// To the ranks in this one's place on other nodes, if there may be any.
    pub(crate) link: Option<Link>,
    rank: usize,
    ended: RefCell<Option<String>>,
}

impl Group {
    /// Joins the other ranks on this machine, and returns when all are there; a row comes back from each rank.
    ///
    /// # Errors
    /// As [`Group::join_as`].
    pub fn join(path: &Path, rank: usize, shape: Shape, limit: Duration) -> Result<Self> {
        Self::join_as(&Join { path, rank, shape, returns: Returns::ByRank, limit })
    }

    /// Joins the other ranks on this machine, and returns when all are there.
    ///
    /// # Errors
    /// If the numbers don't fit, the file can't be made, or a rank doesn't come, dies, or has other numbers.
    pub fn join_as(join: &Join<'_>) -> Result<Self> {
        Self::join_with(join, None)
    }

    /// Joins the other ranks on this machine, and those in the same place on other ones; returns when all are there.
    /// `join.path` is this machine's.
    ///
    /// A token goes once to each node that has an expert for it, whose ranks share its memory. Sums are rounded to BF16
    /// on each node before they go back, also on the own one; they don't differ otherwise, and not at all with
    /// [`Reduction::Once`](crate::Reduction::Once) and in the low-latency mode.
    ///
    /// # Errors
    /// As [`Group::join_as`], and if a rank can't be reached.
    pub fn join_across(join: &Join<'_>, across: Across<'_>) -> Result<Self> {
        Self::join_with(join, Some(across))
    }

    fn join_with(join: &Join<'_>, across: Option<Across<'_>>) -> Result<Self> {
        let Join { path, rank, shape, returns, limit } = *join;
        shape.check()?;
        demand(rank < shape.ranks, "rank", || format!("{rank} is none of {} ranks", shape.ranks))?;
        across.as_ref().map_or(Ok(()), |across| across.check(&shape))?;
        let nodes = across.as_ref().map_or(1, |across| across.nodes);
        let here = shape.ranks / nodes;
        let (lanes, rows_back) = match returns {
            Returns::ByRank => (here, 1),
            Returns::ByExpert => (here.max(shape.topk), shape.topk),
        };
        shape.check_lanes(lanes)?;
        let places = Places::new(&shape, here, lanes);
        let words = [
            ("release", RELEASE),
            ("ranks", shape.ranks as u64),
            ("nodes", if across.is_some() { nodes as u64 } else { 0 }),
            ("experts", shape.experts as u64),
            ("hidden", shape.hidden as u64),
            ("topk", shape.topk as u64),
            ("tokens", shape.tokens as u64),
            ("lanes for what comes back", lanes as u64),
        ];
        let heap = Heap::join(&ember_heap::Join {
            path,
            rank: rank % here,
            ranks: here,
            first: rank / here * here,
            signals: SIGNALS,
            bytes: places.bytes,
            words: &words,
            limit,
        });
        let heap = heap.map_err(|error| EpError::from(error).moved(1, rank / here * here))?;
        let link = across.map(|across| nodes::connect(across, &shape, rank, rows_back, &words, limit));
        let link = link.transpose().inspect_err(|error| heap.fail(error.culprit().unwrap_or(rank)))?;
        Ok(Self {
            heap,
            shape,
            places,
            returns,
            dispatches: Turns::default(),
            combines: Turns::default(),
            alive: RefCell::default(),
            link,
            rank,
            ended: RefCell::default(),
        })
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// The group's numbers.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
    /// Where tokens go whose experts are `chosen[tokens, topk]`, -1 for none.
    ///
    /// # Errors
    /// As [`layout()`].
    pub fn layout(&self, chosen: &[i64]) -> Result<Layout> {
        layout(chosen, &self.shape)
    }

    /// Ranks that share this one's memory.
    pub(crate) fn here(&self) -> usize {
        self.heap.ranks()
    }
    /// This rank's number among them.
    pub(crate) fn index(&self) -> usize {
        self.heap.rank()
    }
    /// This rank's node.
    pub(crate) fn node(&self) -> usize {
        self.rank / self.here()
    }
    /// How many nodes there are.
    pub(crate) fn nodes(&self) -> usize {
        self.shape.ranks / self.here()
    }
    /// The number in the group of a rank that shares this one's memory.
    pub(crate) fn global(&self, index: usize) -> usize {
        self.node() * self.here() + index
    }

    pub(crate) fn tell(&self, to: usize, signal: Signal, turn: Turn) {
        self.heap.tell(to, signal.kind(), turn.epoch);
    }
    pub(crate) fn tell_all(&self, signal: Signal, turn: Turn) {
        self.heap.tell_all(signal.kind(), turn.epoch);
    }
    pub(crate) fn wait(&self, from: usize, signal: Signal, turn: Turn, what: &'static str) -> Result<()> {
        let waited = self.heap.wait(from, signal.kind(), turn.epoch, what);
        waited.map_err(|error| self.named(error))
    }
    /// Waits until all ranks here have given up what they had in a buffer.
    pub(crate) fn wait_free(&self, signal: Signal, turn: Turn, what: &'static str) -> Result<()> {
        let earlier = Turn { epoch: turn.epoch.wrapping_sub(BUFFERS as u32), ..turn };
        (0..self.here()).try_for_each(|rank| self.wait(rank, signal, earlier, what))
    }
    /// Looks whether a rank here has died or given up.
    pub(crate) fn check_here(&self) -> Result<()> {
        self.heap.check().map_err(|error| self.named(error))
    }
    fn named(&self, error: HeapError) -> EpError {
        EpError::from(error).moved(1, self.global(0))
    }

    /// Runs a call of all ranks. One that fails half-way leaves the others' memory in an unknown state.
    pub(crate) fn together<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(why) = &*self.ended.borrow() {
            return Err(EpError::Ended(why.clone()));
        }
        // For the case that it panics.
        *self.ended.borrow_mut() = Some("a call has not come to its end".into());
        let result = call();
        *self.ended.borrow_mut() = match &result {
            Ok(_) | Err(EpError::Argument { .. }) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Err(error) = &result
            && let Some(culprit) = error.culprit()
        {
            self.fail(culprit);
        }
        result
    }

    /// Ends the group because of what this rank's user has done.
    pub(crate) fn give_up(&self, why: &str) {
        self.ended.borrow_mut().get_or_insert_with(|| why.into());
        self.fail(self.rank);
    }
    fn fail(&self, culprit: usize) {
        self.heap.fail(culprit);
        self.link.iter().for_each(|link| link.fail(culprit));
    }

    pub(crate) fn check_handle(&self, handle: &Handle) -> Result<()> {
        demand(handle.of == (self.heap.number(), self.rank), "handle", || {
            "it comes from another group, or from another rank".into()
        })
    }

    /// An error unless a rank says the same as this one.
    pub(crate) fn agree<const N: usize>(
        &self,
        rank: usize,
        names: [&'static str; N],
        theirs: &[u32],
        ours: [u32; N],
    ) -> Result<()> {
        for ((what, theirs), ours) in names.into_iter().zip(theirs).zip(ours) {
            if *theirs != ours {
                let (theirs, ours) = ((*theirs).into(), ours.into());
                return Err(EpError::Disagree { rank, what, theirs, ours });
            }
        }
        Ok(())
    }
}

/// Ranks with another one lay their memory out in another way.
const RELEASE: u64 = 2;
