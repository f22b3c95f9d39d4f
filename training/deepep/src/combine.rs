//! What becomes of tokens, back to where they come from.

use crate::expand::Expanded;
use crate::group::{Group, Returns, Turn};
use crate::layout::Shape;
use crate::numbers::{add, numbers, round};
use crate::places::{BACK_COUNTS, Signal};
use crate::returned::{Came, Order, Walk};
use crate::ways::Handle;
use crate::{Result, demand};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use zerocopy::IntoBytes;

/// What came back.
#[derive(Clone, PartialEq, Debug)]
pub struct Combined {
    /// `[tokens, hidden]`: the sums, on top of the biases.
    pub tokens: Vec<bf16>,
    /// `[tokens, topk]`: sums of the weights, if they were sent.
    pub weights: Option<Vec<f32>>,
}

/// How the results of a token's experts are added, always in `f32` and on top of the biases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reduction {
    /// All of them one after the other, in the order of the token's choices, and rounded to BF16 once. Each result
    /// travels: the group must have been joined with [`Returns::ByExpert`].
    Once,
    /// On each rank those of its experts, in the order of the choices, rounded to BF16; then the ranks' sums, in the
    /// order of the last choice on each.
    PerRank,
}

/// A row that goes back, and whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) row: u64,
    pub(crate) rank: u32,
    pub(crate) token: u32,
    pub(crate) choice: u32,
}

/// Rows that go back.
#[derive(Clone, Copy)]
pub(crate) enum Back<'a> {
    /// One for each that was received, in that order.
    Received(&'a [bf16], Order),
    /// One for each expert of each.
    Choices(&'a [bf16], &'a [Entry]),
}

impl Back<'_> {
    fn order(&self) -> Order {
        match self {
            Self::Received(_, order) => *order,
            Self::Choices(..) => Order::Choices,
        }
    }
}

pub(crate) fn check_rows(rows: &[bf16], count: usize, hidden: usize) -> Result<()> {
    demand(rows.len() == count * hidden, "rows", || {
        format!("has {} numbers, not the {} of {count} rows", rows.len(), count * hidden)
    })
}
/// Biases of `needed` numbers each.
pub(crate) fn check_biases(biases: &[&[bf16]], needed: usize) -> Result<()> {
    demand(biases.len() <= 2, "biases", || format!("{} are more than two", biases.len()))?;
    biases.iter().try_for_each(|bias| {
        demand(bias.len() == needed, "biases", || {
            format!("one has {} numbers, not the {needed} of the tokens", bias.len())
        })
    })
}

impl Group {
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
        check_rows(rows, handle.rows(), self.shape.hidden)?;
        let length = weights.map_or(handle.rows() * self.shape.topk, <[f32]>::len);
        demand(length == handle.rows() * self.shape.topk, "weights", || {
            let (needed, rows) = (handle.rows() * self.shape.topk, handle.rows());
            format!("has {length} numbers, not the {needed} of {rows} rows")
        })?;
        check_biases(biases, handle.tokens * self.shape.hidden)?;
        self.together(|| self.return_all(Back::Received(rows, Order::Ranks), weights, handle, biases))
    }

    /// Sends what the experts have made of the rows of an expanded dispatch back, and adds it as `reduction` says.
    /// `rows` are as many as there, padding included, which counts nothing; `weights`, one for each, are sent too if
    /// given. All ranks reduce alike, and send weights, or none.
    ///
    /// # Errors
    /// If the numbers don't fit, there are more than two biases, or a rank doesn't do its part.
    pub fn combine_expanded(
        &self,
        rows: &[bf16],
        weights: Option<&[f32]>,
        of: &Expanded,
        biases: &[&[bf16]],
        reduction: Reduction,
    ) -> Result<Combined> {
        self.check_handle(&of.handle)?;
        check_rows(rows, of.groups.len(), self.shape.hidden)?;
        let count = of.groups.len();
        demand(weights.is_none_or(|weights| weights.len() == count), "weights", || {
            format!("has {} numbers, not one for each of {count} rows", weights.map_or(0, <[f32]>::len))
        })?;
        check_biases(biases, of.handle.tokens * self.shape.hidden)?;
        if reduction == Reduction::Once {
            self.check_returns()?;
        }
        let weight = |slot: &i32| usize::try_from(*slot).ok().zip(weights).map_or(0.0, |(at, all)| all[at]);
        let weights = weights.map(|_| of.slots.iter().map(weight).collect::<Vec<f32>>());
        let reduced = (reduction == Reduction::PerRank).then(|| of.reduced(rows, &self.shape));
        let entries = of.entries(&self.shape);
        let back = match &reduced {
            Some(reduced) => Back::Received(reduced, Order::LastChoices),
            None => Back::Choices(rows, &entries),
        };
        self.together(|| self.return_all(back, weights.as_deref(), &of.handle, biases))
    }

    pub(crate) fn check_returns(&self) -> Result<()> {
        demand(self.returns == Returns::ByExpert, "group", || {
            "it was joined without room for a row from each expert: join it with `Returns::ByExpert`".into()
        })
    }

    fn return_all(
        &self,
        back: Back<'_>,
        weights: Option<&[f32]>,
        handle: &Handle,
        biases: &[&[bf16]],
    ) -> Result<Combined> {
        let turn = self.combines.next(0)?;
        self.send_back(turn, back, weights, handle)?;
        self.receive_back(turn, back.order(), weights.is_some(), handle, biases, None)
    }

    /// Writes rows, and weights, into the memory of those ranks here that pass them on.
    pub(crate) fn send_back(
        &self,
        turn: Turn,
        back: Back<'_>,
        weights: Option<&[f32]>,
        handle: &Handle,
    ) -> Result<()> {
        let (here, me, places) = (self.here(), self.index(), &self.places);
        let Shape { hidden, topk, tokens, .. } = self.shape;
        let (lanes, lanes_of_weights) = (places.back[turn.buffer], places.back_weights[turn.buffer]);
        self.combines.begin(turn);
        self.wait_free(Signal::BackDone(turn.buffer), turn, "finished an earlier combine")?;
        let mut sent = vec![0u32; here];
        if let Back::Choices(rows, entries) = back {
            for entry in entries {
                let (node, to) = (entry.rank as usize / here, entry.rank as usize % here);
                let at = entry.choice as usize * places.lane + node * tokens + entry.token as usize;
                let row = &rows[entry.row as usize * hidden..][..hidden];
                self.heap.put(to, lanes + 2 * hidden * at, row.reinterpret_cast().as_bytes());
                sent[to] += 1;
            }
        }
        for (to, sent) in sent.iter_mut().enumerate() {
            let mut at = me * places.lane;
            for rank in (to..self.shape.ranks).step_by(here) {
                let ends = handle.before[rank]..handle.before[rank + 1];
                if let Back::Received(rows, _) = back {
                    let part = &rows[ends.start * hidden..ends.end * hidden];
                    self.heap.put(to, lanes + 2 * hidden * at, part.reinterpret_cast().as_bytes());
                    *sent += ends.len() as u32;
                }
                if let Some(weights) = weights {
                    let part = &weights[ends.start * topk..ends.end * topk];
                    self.heap.put(to, lanes_of_weights + 4 * topk * at, part.as_bytes());
                }
                at += ends.len();
            }
            let counts = [handle.id, *sent, back.order() as u32, weights.is_some().into()];
            self.heap.put(to, places.back_counts[turn.buffer] + 4 * BACK_COUNTS * me, counts.as_bytes());
            self.tell(to, Signal::Back, turn);
        }
        Ok(())
    }

    /// Waits for the rows, and adds them: times `choices[tokens, topk]`, if given.
    pub(crate) fn receive_back(
        &self,
        turn: Turn,
        order: Order,
        with_weights: bool,
        handle: &Handle,
        biases: &[&[bf16]],
        choices: Option<&[f32]>,
    ) -> Result<Combined> {
        self.wait_back(turn, order, with_weights, handle)?;
        let free = || self.tell_all(Signal::BackDone(turn.buffer), turn);
        let combined = if self.link.is_some() {
            let back = self.gather(turn, order, with_weights, handle, free)?;
            let mut next = back.next();
            let Shape { hidden, topk, .. } = self.shape;
            self.added(handle, biases, with_weights, choices, |token, came| {
                back.token(&mut next, hidden, &handle.chosen[token * topk..][..topk], came);
            })
        } else {
            let mut walk = Walk::new(self, &handle.ways, 0, turn, order, with_weights);
            let (mut t, tokens) = (0, &handle.ways[0].tokens);
            let combined = self.added(handle, biases, with_weights, choices, |token, came| {
                if tokens.get(t) == Some(&(token as u32)) {
                    walk.token(t, came);
                    t += 1;
                }
            });
            free();
            combined
        };
        self.combines.end(turn);
        Ok(combined)
    }

    /// Waits for what all ranks here send back by way of this one.
    fn wait_back(&self, turn: Turn, order: Order, with_weights: bool, handle: &Handle) -> Result<()> {
        let mut expected = vec![0u32; self.here()];
        for way in &handle.ways {
            for (count, rows) in expected.iter_mut().zip(&way.to_rank) {
                *count += rows.len() as u32;
            }
        }
        if order == Order::Choices {
            expected.fill(0);
            for id in handle.ways.iter().flat_map(|way| &way.chosen) {
                let rank = usize::try_from(*id).ok().map(|id| id / self.shape.local_experts());
                let rank = rank.and_then(|rank| rank.checked_sub(self.global(0)));
                if let Some(count) = rank.and_then(|rank| expected.get_mut(rank)) {
                    *count += 1;
                }
            }
        }
        for (from, count) in expected.into_iter().enumerate() {
            self.wait(from, Signal::Back, turn, "sent what it has computed")?;
            let at = self.places.back_counts[turn.buffer] + 4 * BACK_COUNTS * from;
            let theirs: Vec<u32> = numbers(self.heap.own(at, 4 * BACK_COUNTS));
            let names = ["dispatch to combine", "rows to send back", "way to reduce", "weights"];
            let ours = [handle.id, count, order as u32, with_weights.into()];
            // The way to reduce first: with another, there are other rows.
            for i in [0, 2, 3, 1] {
                self.agree(self.global(from), [names[i]], &theirs[i..], [ours[i]])?;
            }
        }
        Ok(())
    }

    /// The sums, token by token; `find` says what has come back of each.
    pub(crate) fn added<'s>(
        &self,
        handle: &Handle,
        biases: &[&[bf16]],
        with_weights: bool,
        choices: Option<&[f32]>,
        mut find: impl FnMut(usize, &mut Came<'s>),
    ) -> Combined {
        let Shape { hidden, topk, .. } = self.shape;
        let mut combined = vec![bf16::ZERO; handle.tokens * hidden];
        let mut weights = with_weights.then(|| vec![0.0f32; handle.tokens * topk]);
        let (mut sums, mut came) = (vec![0.0f32; hidden], Came::default());
        for (token, out) in combined.chunks_mut(hidden).enumerate() {
            sums.fill(0.0);
            for bias in biases {
                add(&mut sums, &bias[token * hidden..][..hidden]);
            }
            came.clear();
            find(token, &mut came);
            came.add_to(&mut sums, choices.map(|weights| &weights[token * topk..][..topk]));
            if let Some(weights) = &mut weights {
                came.add_weights_to(&mut weights[token * topk..][..topk]);
            }
            round(&sums, out);
        }
        Combined { tokens: combined, weights }
    }
}

impl Expanded {
    /// Where each row goes back to.
    fn entries(&self, shape: &Shape) -> Vec<Entry> {
        let entry = |(at, slot): (usize, &i32)| {
            let (rank, token) = self.sources[at / shape.topk];
            Some(Entry { row: u64::try_from(*slot).ok()?, rank, token, choice: (at % shape.topk) as u32 })
        };
        self.slots.iter().enumerate().filter_map(entry).collect()
    }

    /// A row for each received one: the sum of those of its experts here, in the order of the choices.
    fn reduced(&self, rows: &[bf16], shape: &Shape) -> Vec<bf16> {
        let hidden = shape.hidden;
        let mut out = vec![bf16::ZERO; self.handle.rows() * hidden];
        let mut sums = vec![0.0; hidden];
        for (out, slots) in out.chunks_mut(hidden).zip(self.slots.chunks(shape.topk)) {
            sums.fill(0.0);
            for at in slots.iter().filter_map(|slot| usize::try_from(*slot).ok()) {
                add(&mut sums, &rows[at * hidden..][..hidden]);
            }
            round(&sums, out);
        }
        out
    }
}
