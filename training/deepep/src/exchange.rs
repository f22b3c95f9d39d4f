//! Dispatch and combine.

use crate::heap::Heap;
use crate::layout::{Layout, Shape, layout};
use crate::places::{BLOCK, BUFFERS, Places, Signal, WORDS};
use crate::tokens::Tokens;
use crate::{EpError, Result, demand};
use half::bf16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const MAGIC: u64 = u64::from_le_bytes(*b"EMBEREP1");

/// What went where in a dispatch: for the way back, and for another dispatch to the same places. It is of use only to
/// the rank that dispatched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handle {
    /// Whose it is: group and rank.
    of: (u64, usize),
    /// The dispatch that it comes from.
    id: u32,
    to_rank: Vec<Vec<u32>>,
    /// Tokens of this rank.
    tokens: usize,
    /// Rows received from ranks below each, and from all.
    before: Vec<usize>,
}

impl Handle {
    /// Rows that were received.
    pub fn rows(&self) -> usize {
        self.before.last().copied().unwrap_or(0)
    }
    /// Rows that were received from ranks up to each, itself included.
    pub fn rows_up_to_rank(&self) -> &[usize] {
        &self.before[1..]
    }
}

/// Tokens that a rank has received: those of rank 0 first, each rank's in their order. Two results may be alive at
/// once; the older one must be dropped before the next dispatch, and other ranks wait for that.
pub struct Dispatched<'g> {
    group: &'g Group,
    buffer: usize,
    epoch: u32,
    width: usize,
    handle: Handle,
    /// `[rows, topk]`: the experts that a token chose, as numbers of this rank's; -1 for those of other ranks. Empty
    /// after a dispatch by a handle.
    pub chosen: Vec<i64>,
    /// `[rows, topk]`: their weights; 0 for those of other ranks. Empty after a dispatch by a handle.
    pub weights: Vec<f32>,
    /// Where each row comes from: rank, and token there.
    pub sources: Vec<(u32, u32)>,
    /// Rows of each of this rank's experts. Empty after a dispatch by a handle.
    pub per_expert: Vec<u32>,
}

impl Dispatched<'_> {
    /// What went where.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
    /// The tokens `[rows, hidden]`, if they are in BF16.
    pub fn bf16(&self) -> Option<&[bf16]> {
        if self.width != 2 {
            return None;
        }
        let bytes = self.group.heap.own(self.group.places.values[self.buffer], 2 * self.numbers());
        Some(viewed::<u16>(bytes).reinterpret_cast())
    }
    /// The tokens `[rows, hidden]` and their scales `[rows, ceil(hidden / 128)]`, if they are in FP8.
    pub fn fp8(&self) -> Option<(&[u8], &[f32])> {
        if self.width != 1 {
            return None;
        }
        let (group, scales) = (self.group, self.handle.rows() * self.group.shape.hidden.div_ceil(BLOCK));
        let values = group.heap.own(group.places.values[self.buffer], self.numbers());
        let scales = group.heap.own(group.places.scales[self.buffer], 4 * scales);
        Some((values, viewed(scales)))
    }
    fn numbers(&self) -> usize {
        self.handle.rows() * self.group.shape.hidden
    }
}

impl Drop for Dispatched<'_> {
    fn drop(&mut self) {
        let group = self.group;
        group.alive.borrow_mut()[self.buffer] = false;
        (0..group.shape.ranks).for_each(|to| group.tell(to, Signal::TokensDone(self.buffer), self.epoch));
    }
}

/// What came back.
#[derive(Clone, PartialEq, Debug)]
pub struct Combined {
    /// `[tokens, hidden]`: sums over the ranks, in their order, on top of the biases.
    pub tokens: Vec<bf16>,
    /// `[tokens, topk]`: sums of the weights, if they were sent.
    pub weights: Option<Vec<f32>>,
}

/// A rank of a group of processes, or threads, on one machine. All ranks make the same calls in the same order.
pub struct Group {
    heap: Heap,
    shape: Shape,
    places: Places,
    rank: usize,
    /// Tells groups apart.
    number: Cell<u64>,
    dispatches: Cell<u32>,
    combines: Cell<u32>,
    alive: RefCell<[bool; BUFFERS]>,
    ended: RefCell<Option<String>>,
}

impl Group {
    /// Joins the other ranks, and returns when all are there. They share the file at `path`, which must be in memory
    /// (`/dev/shm`), must not be there before, and is gone when all have joined or one has given up. A rank is waited
    /// for at most `limit`, now and in each later call.
    ///
    /// # Errors
    /// If the numbers don't fit, the file can't be made, or a rank doesn't come or has other numbers.
    pub fn join(path: &Path, rank: usize, shape: Shape, limit: Duration) -> Result<Self> {
        shape.check()?;
        demand(rank < shape.ranks, "rank", || format!("{rank} is none of {} ranks", shape.ranks))?;
        let places = Places::new(&shape);
        let heap = Heap::open(path, rank, shape.ranks, places.bytes, limit)?;
        let group = Self {
            heap,
            shape,
            places,
            rank,
            number: Cell::new(RandomState::new().build_hasher().finish()),
            dispatches: Cell::new(0),
            combines: Cell::new(0),
            alive: RefCell::default(),
            ended: RefCell::default(),
        };
        if group.heap.told(Signal::Joined.index(shape.ranks, rank)) != 0 {
            let why =
                format!("rank {rank} has joined already, or an earlier job has left the file: remove it");
            return Err(EpError::File { path: group.heap.path().display().to_string(), why });
        }
        let met = group.meet();
        // Nobody else will need it: all have mapped it, or there will be no group.
        if rank == 0 || met.is_err() {
            group.heap.unlink();
        }
        met.map(|()| group)
    }

    /// Waits until all ranks are there, and says so.
    fn meet(&self) -> Result<()> {
        self.heap.put(self.rank, self.places.words, self.words(self.rank).as_bytes());
        self.tell_all(Signal::Joined, 1);
        for other in 0..self.shape.ranks {
            self.wait(Signal::Joined, other, 1, "joined")?;
            self.compare(other)?;
        }
        self.tell_all(Signal::Ready, 1);
        // The group's number is that of rank 0.
        let number = self.heap.of(0, self.places.words + 8 * (WORDS - 1), 8);
        self.number.set(numbers(number)[0]);
        (0..self.shape.ranks).try_for_each(|other| self.wait(Signal::Ready, other, 1, "joined"))
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.rank
    }
    /// The group's numbers.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    fn words(&self, rank: usize) -> [u64; WORDS] {
        let Shape { ranks, experts, hidden, topk, tokens } = self.shape;
        let shape = [ranks as u64, experts as u64, hidden as u64, topk as u64, tokens as u64];
        let [ranks, experts, hidden, topk, tokens] = shape;
        [MAGIC, ranks, experts, hidden, topk, tokens, rank as u64, self.number.get()]
    }

    fn compare(&self, rank: usize) -> Result<()> {
        let theirs = self.heap.of(rank, self.places.words, 8 * WORDS);
        let names = ["release", "ranks", "experts", "hidden", "topk", "tokens", "rank"];
        for ((what, theirs), ours) in names.into_iter().zip(numbers(theirs)).zip(self.words(rank)) {
            if theirs != ours {
                return Err(EpError::Disagree { rank, what, theirs, ours });
            }
        }
        Ok(())
    }

    fn tell(&self, to: usize, signal: Signal, value: u32) {
        self.heap.tell(to, signal.index(self.shape.ranks, self.rank), value);
    }
    fn tell_all(&self, signal: Signal, value: u32) {
        (0..self.shape.ranks).for_each(|to| self.tell(to, signal, value));
    }
    fn wait(&self, signal: Signal, from: usize, value: u32, what: &'static str) -> Result<()> {
        match self.heap.wait(signal.index(self.shape.ranks, from), value) {
            true => Ok(()),
            false => Err(EpError::Late { rank: from, what, milliseconds: self.heap.limit().as_millis() }),
        }
    }

    /// Runs a call of all ranks. One that fails half-way leaves the others' memory in an unknown state.
    fn together<T>(&self, call: impl FnOnce() -> Result<T>) -> Result<T> {
        if let Some(why) = &*self.ended.borrow() {
            return Err(EpError::Ended(why.clone()));
        }
        // For the case that it panics.
        *self.ended.borrow_mut() = Some("a call has not come to its end".into());
        let result = call();
        *self.ended.borrow_mut() = match &result {
            Err(error @ (EpError::Late { .. } | EpError::Disagree { .. })) => Some(error.to_string()),
            _ => None,
        };
        result
    }

    fn check_handle(&self, handle: &Handle) -> Result<()> {
        demand(handle.of == (self.number.get(), self.rank), "handle", || {
            "it comes from another group, or from another rank".into()
        })
    }

    /// Where tokens go whose experts are `chosen[tokens, topk]`, -1 for none.
    ///
    /// # Errors
    /// As [`layout()`].
    pub fn layout(&self, chosen: &[i64]) -> Result<Layout> {
        layout(chosen, &self.shape)
    }

    /// Sends each token to the ranks of the experts `chosen[tokens, topk]`, -1 for none, with their `weights`.
    ///
    /// # Errors
    /// If the numbers don't fit, two results are alive, or a rank doesn't do its part.
    pub fn dispatch(&self, tokens: Tokens<'_>, chosen: &[i64], weights: &[f32]) -> Result<Dispatched<'_>> {
        let count = tokens.check(&self.shape)?;
        let needed = count * self.shape.topk;
        for (argument, length) in [("chosen", chosen.len()), ("weights", weights.len())] {
            demand(length == needed, argument, || {
                format!(
                    "has {length} numbers, not the {needed} of {count} tokens with {} experts",
                    self.shape.topk
                )
            })?;
        }
        let to_rank = self.layout(chosen)?.to_rank;
        self.together(|| self.send(tokens, count, to_rank, Some((chosen, weights)), None))
    }

    /// Sends each token where an earlier one went, without experts and weights: what the backward pass of
    /// [`Group::combine`] does.
    ///
    /// # Errors
    /// If there are not as many tokens as then, two results are alive, or a rank doesn't do its part.
    pub fn dispatch_again(&self, tokens: Tokens<'_>, handle: &Handle) -> Result<Dispatched<'_>> {
        self.check_handle(handle)?;
        let count = tokens.check(&self.shape)?;
        demand(count == handle.tokens, "tokens", || {
            format!("there are {count}, not the {} of then", handle.tokens)
        })?;
        self.together(|| self.send(tokens, count, handle.to_rank.clone(), None, Some(handle.id)))
    }

    fn send(
        &self,
        tokens: Tokens<'_>,
        count: usize,
        to_rank: Vec<Vec<u32>>,
        experts: Option<(&[i64], &[f32])>,
        id: Option<u32>,
    ) -> Result<Dispatched<'_>> {
        let (places, ranks) = (&self.places, self.shape.ranks);
        let epoch = self.dispatches.get().wrapping_add(1);
        let buffer = epoch as usize % BUFFERS;
        demand(!self.alive.borrow()[buffer], "results", || {
            format!("{BUFFERS} of earlier dispatches are alive: drop the older one before")
        })?;
        self.dispatches.set(epoch);
        let freed = epoch.wrapping_sub(BUFFERS as u32);
        for to in 0..ranks {
            self.wait(Signal::TokensDone(buffer), to, freed, "given up an earlier result")?;
        }
        let kind = (tokens.width() + 2 * usize::from(experts.is_some())) as u32;
        let mut counts: Vec<u32> = to_rank.iter().map(|tokens| tokens.len() as u32).collect();
        let id = id.unwrap_or(epoch);
        counts.extend([kind, id]);
        for to in 0..ranks {
            self.heap.put(to, places.counts[buffer] + 4 * self.rank * (ranks + 2), counts.as_bytes());
            self.tell(to, Signal::Counts, epoch);
        }
        let counts = self.counts(buffer, epoch, [kind, id])?;
        for (to, sent) in to_rank.iter().enumerate() {
            let first: usize = counts[..self.rank].iter().map(|counts| counts[to] as usize).sum();
            self.put_rows(to, first, sent, buffer, tokens, experts);
            self.tell(to, Signal::Tokens, epoch);
        }
        let mut before = vec![0];
        for (from, counts) in counts.iter().enumerate() {
            self.wait(Signal::Tokens, from, epoch, "sent its tokens")?;
            before.push(before[from] + counts[self.rank] as usize);
        }
        self.alive.borrow_mut()[buffer] = true;
        let handle = Handle { of: (self.number.get(), self.rank), id, to_rank, tokens: count, before };
        Ok(self.received(
            Dispatched {
                group: self,
                buffer,
                epoch,
                width: tokens.width(),
                handle,
                chosen: Vec::new(),
                weights: Vec::new(),
                sources: Vec::new(),
                per_expert: Vec::new(),
            },
            experts.is_some(),
        ))
    }

    /// Writes tokens into a rank's rows from `first` on.
    fn put_rows(
        &self,
        to: usize,
        first: usize,
        sent: &[u32],
        buffer: usize,
        tokens: Tokens<'_>,
        experts: Option<(&[i64], &[f32])>,
    ) {
        let (places, Shape { hidden, topk, .. }) = (&self.places, self.shape);
        let (row, scales) = (tokens.width() * hidden, hidden.div_ceil(BLOCK));
        for (i, &token) in sent.iter().enumerate() {
            let put = |at: usize, bytes: &[u8]| self.heap.put(to, at + (first + i) * bytes.len(), bytes);
            let t = token as usize;
            put(places.values[buffer], &tokens.bytes()[t * row..][..row]);
            if tokens.width() == 1 {
                put(places.scales[buffer], tokens.scales()[t * scales..][..scales].as_bytes());
            }
            if let Some((chosen, weights)) = experts {
                let chosen: Vec<i32> = chosen[t * topk..][..topk].iter().map(|id| *id as i32).collect();
                put(places.chosen[buffer], chosen.as_bytes());
                put(places.weights[buffer], weights[t * topk..][..topk].as_bytes());
            }
            put(places.sources[buffer], token.as_bytes());
        }
    }

    /// What each rank sends to each.
    fn counts(&self, buffer: usize, epoch: u32, ours: [u32; 2]) -> Result<Vec<Vec<u32>>> {
        let (shape, ranks) = (&self.shape, self.shape.ranks);
        let mut all = Vec::with_capacity(ranks);
        for from in 0..ranks {
            self.wait(Signal::Counts, from, epoch, "said how many tokens it sends")?;
            let at = self.places.counts[buffer] + 4 * from * (ranks + 2);
            let mut counts: Vec<u32> = numbers(self.heap.own(at, 4 * (ranks + 2)));
            let disagree = |what, theirs: u32, ours: u32| {
                Err(EpError::Disagree { rank: from, what, theirs: theirs.into(), ours: ours.into() })
            };
            let theirs = counts.split_off(ranks);
            for ((what, theirs), ours) in
                ["kind of dispatch", "dispatch to go after"].into_iter().zip(theirs).zip(ours)
            {
                if theirs != ours {
                    return disagree(what, theirs, ours);
                }
            }
            // As a group's number it would lead out of the heap.
            if let Some(&many) = counts.iter().find(|count| **count as usize > shape.tokens) {
                return disagree("tokens", many, shape.tokens as u32);
            }
            all.push(counts);
        }
        Ok(all)
    }

    fn received<'g>(&self, mut of: Dispatched<'g>, with_experts: bool) -> Dispatched<'g> {
        let (rows, topk, local) = (of.handle.rows(), self.shape.topk, self.shape.local_experts());
        let sources: Vec<u32> = numbers(self.heap.own(self.places.sources[of.buffer], 4 * rows));
        for (from, ends) in of.handle.before.windows(2).enumerate() {
            of.sources.extend(sources[ends[0]..ends[1]].iter().map(|token| (from as u32, *token)));
        }
        if !with_experts {
            return of;
        }
        let chosen: Vec<i32> = numbers(self.heap.own(self.places.chosen[of.buffer], 4 * rows * topk));
        of.weights = numbers(self.heap.own(self.places.weights[of.buffer], 4 * rows * topk));
        of.per_expert = vec![0; local];
        let first = (self.rank * local) as i64;
        for (id, weight) in chosen.into_iter().zip(&mut of.weights) {
            let own = usize::try_from(i64::from(id) - first).ok().filter(|expert| *expert < local);
            if let Some(expert) = own {
                of.per_expert[expert] += 1;
            } else {
                *weight = 0.0;
            }
            of.chosen.push(own.map_or(-1, |expert| expert as i64));
        }
        of
    }

    /// Sends what has become of the rows of a dispatch back to where they came from, and adds there what comes from the
    /// ranks, in their order, to the sum of the `biases`, in `f32`. `rows[rows, hidden]` are weighted already;
    /// `weights`, if given, are added up likewise. All ranks send weights, or none.
    ///
    /// # Errors
    /// If the numbers don't fit, there are more than two biases, or a rank doesn't do its part.
    pub fn combine(
        &self,
        rows: &[bf16],
        weights: Option<&[f32]>,
        handle: &Handle,
        biases: &[&[bf16]],
    ) -> Result<Combined> {
        self.check_handle(handle)?;
        let (shape, count) = (&self.shape, handle.rows());
        demand(rows.len() == count * shape.hidden, "rows", || {
            format!("has {} numbers, not the {} of {count} rows", rows.len(), count * shape.hidden)
        })?;
        let length = weights.map_or(count * shape.topk, <[f32]>::len);
        demand(length == count * shape.topk, "weights", || {
            format!("has {length} numbers, not the {} of {count} rows", count * shape.topk)
        })?;
        demand(biases.len() <= 2, "biases", || format!("{} are more than two", biases.len()))?;
        for bias in biases {
            demand(bias.len() == handle.tokens * shape.hidden, "biases", || {
                format!(
                    "one has {} numbers, not the {} of the tokens",
                    bias.len(),
                    handle.tokens * shape.hidden
                )
            })?;
        }
        self.together(|| self.send_back(rows, weights, handle, biases))
    }

    /// Where row `i` from a rank begins among those that come back, of `each` bytes.
    fn place(&self, from: usize, each: usize, i: usize) -> usize {
        (from * self.shape.tokens + i) * each
    }

    fn send_back(
        &self,
        rows: &[bf16],
        weights: Option<&[f32]>,
        handle: &Handle,
        biases: &[&[bf16]],
    ) -> Result<Combined> {
        let Shape { ranks, hidden, topk, .. } = self.shape;
        let epoch = self.combines.get().wrapping_add(1);
        let buffer = epoch as usize % BUFFERS;
        self.combines.set(epoch);
        let freed = epoch.wrapping_sub(BUFFERS as u32);
        let (back, back_weights) = (self.places.back[buffer], self.places.back_weights[buffer]);
        for to in 0..ranks {
            self.wait(Signal::BackDone(buffer), to, freed, "finished an earlier combine")?;
            let ends = handle.before[to]..handle.before[to + 1];
            let part = &rows[ends.start * hidden..ends.end * hidden];
            self.heap.put(
                to,
                back + self.place(self.rank, 2 * hidden, 0),
                part.reinterpret_cast().as_bytes(),
            );
            if let Some(weights) = weights {
                let part = &weights[ends.start * topk..ends.end * topk];
                self.heap.put(to, back_weights + self.place(self.rank, 4 * topk, 0), part.as_bytes());
            }
            let counts = [handle.id, ends.len() as u32, weights.is_some().into()];
            self.heap.put(to, self.places.back_counts[buffer] + 12 * self.rank, counts.as_bytes());
            self.tell(to, Signal::Back, epoch);
        }
        for (from, sent) in handle.to_rank.iter().enumerate() {
            self.wait(Signal::Back, from, epoch, "sent what it has computed")?;
            let theirs: Vec<u32> = numbers(self.heap.own(self.places.back_counts[buffer] + 12 * from, 12));
            let ours = [handle.id, sent.len() as u32, weights.is_some().into()];
            for ((what, theirs), ours) in
                ["dispatch to combine", "rows to send back", "weights"].into_iter().zip(theirs).zip(ours)
            {
                if theirs != ours {
                    return Err(EpError::Disagree {
                        rank: from,
                        what,
                        theirs: theirs.into(),
                        ours: ours.into(),
                    });
                }
            }
        }
        let combined = self.added(buffer, handle, weights.is_some(), biases);
        self.tell_all(Signal::BackDone(buffer), epoch);
        Ok(combined)
    }

    /// The sums of what has come back, token by token.
    fn added(&self, buffer: usize, handle: &Handle, with_weights: bool, biases: &[&[bf16]]) -> Combined {
        let Shape { ranks, hidden, topk, .. } = self.shape;
        let (back, back_weights) = (self.places.back[buffer], self.places.back_weights[buffer]);
        let row = |from: usize, i: usize| {
            viewed::<u16>(self.heap.own(back + self.place(from, 2 * hidden, i), 2 * hidden))
        };
        let mut combined = vec![bf16::ZERO; handle.tokens * hidden];
        let mut weight_sums = with_weights.then(|| vec![0.0f32; handle.tokens * topk]);
        let (mut sums, mut next) = (vec![0.0f32; hidden], vec![0; ranks]);
        for (token, out) in combined.chunks_mut(hidden).enumerate() {
            sums.fill(0.0);
            for bias in biases {
                add(&mut sums, bias[token * hidden..][..hidden].reinterpret_cast());
            }
            for (from, sent) in handle.to_rank.iter().enumerate() {
                let i = next[from];
                if sent.get(i) != Some(&(token as u32)) {
                    continue;
                }
                next[from] += 1;
                add(&mut sums, row(from, i));
                if let Some(sums) = &mut weight_sums {
                    let row = self.heap.own(back_weights + self.place(from, 4 * topk, i), 4 * topk);
                    let sums = &mut sums[token * topk..][..topk];
                    sums.iter_mut().zip(viewed::<f32>(row)).for_each(|(sum, x)| *sum += x);
                }
            }
            out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = rounded(*sum));
        }
        Combined { tokens: combined, weights: weight_sums }
    }
}

/// Adds BF16 numbers, given by their bits.
fn add(sums: &mut [f32], row: &[u16]) {
    sums.iter_mut().zip(row).for_each(|(sum, bits)| *sum += f32::from_bits(u32::from(*bits) << 16));
}

/// The nearest BF16 number, the even one of two: without a branch, so that many are rounded at once.
fn rounded(x: f32) -> bf16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    bf16::from_bits(if x.is_nan() { bits >> 16 | 0x40 } else { nearest } as u16)
}

/// Numbers that lie in a heap: each kind of them begins at a multiple of 64.
fn viewed<T: FromBytes + Immutable>(bytes: &[u8]) -> &[T] {
    <[T]>::ref_from_bytes(bytes).expect("numbers in a heap are aligned and whole")
}

/// A copy of them.
fn numbers<T: FromBytes + Immutable + Copy>(bytes: &[u8]) -> Vec<T> {
    viewed(bytes).to_vec()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    #[test]
    fn numbers_are_rounded_as_the_library_does() {
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                assert_eq!(super::rounded(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
            }
        }
    }
}
