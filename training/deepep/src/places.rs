//! What lies where in a heap, and what ranks tell each other.

use crate::heap::Heap;
use crate::layout::Shape;

/// Numbers that have one scale.
pub(crate) const BLOCK: usize = 128;
/// Results of either kind that may be alive at once.
pub(crate) const BUFFERS: usize = 2;
/// Words that say what a group is.
pub(crate) const WORDS: usize = 8;

/// What ranks tell each other; each from each rank.
#[derive(Clone, Copy)]
pub(crate) enum Signal {
    /// I have mapped the memory, and my words stand there.
    Joined,
    /// I have seen that all have.
    Ready,
    /// My counts of a dispatch stand there.
    Counts,
    /// My tokens of a dispatch stand there.
    Tokens,
    /// The buffer of a dispatch is free again; one for each buffer.
    TokensDone(usize),
    /// What I send back stands there.
    Back,
    /// The buffer of a combine is free again; one for each buffer.
    BackDone(usize),
}

const SIGNALS: usize = 5 + 2 * BUFFERS;

impl Signal {
    pub(crate) fn index(self, ranks: usize, from: usize) -> usize {
        let kind = match self {
            Self::Joined => 0,
            Self::Ready => 1,
            Self::Counts => 2,
            Self::Tokens => 3,
            Self::Back => 4,
            Self::TokensDone(buffer) => 5 + buffer,
            Self::BackDone(buffer) => 5 + BUFFERS + buffer,
        };
        kind * ranks + from
    }
}

/// Where things lie in a heap.
#[derive(Clone, Copy, Default)]
pub(crate) struct Places {
    pub(crate) words: usize,
    /// By buffer and sender: tokens to each rank, what kind of dispatch, and whose places.
    pub(crate) counts: [usize; BUFFERS],
    pub(crate) values: [usize; BUFFERS],
    pub(crate) scales: [usize; BUFFERS],
    pub(crate) chosen: [usize; BUFFERS],
    pub(crate) weights: [usize; BUFFERS],
    pub(crate) sources: [usize; BUFFERS],
    /// By buffer, and from each rank: how many rows, of which dispatch, and whether weights come with them.
    pub(crate) back_counts: [usize; BUFFERS],
    pub(crate) back: [usize; BUFFERS],
    pub(crate) back_weights: [usize; BUFFERS],
    pub(crate) bytes: usize,
}

impl Places {
    pub(crate) fn new(shape: &Shape) -> Self {
        let mut end = Heap::signals(SIGNALS * shape.ranks);
        let mut take = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(64);
            at
        };
        let mut places = Self { words: take(8 * WORDS), ..Self::default() };
        let rows = shape.ranks * shape.tokens;
        for buffer in 0..BUFFERS {
            places.counts[buffer] = take(4 * shape.ranks * (shape.ranks + 2));
            places.values[buffer] = take(2 * rows * shape.hidden);
            places.scales[buffer] = take(4 * rows * shape.hidden.div_ceil(BLOCK));
            places.chosen[buffer] = take(4 * rows * shape.topk);
            places.weights[buffer] = take(4 * rows * shape.topk);
            places.sources[buffer] = take(4 * rows);
            places.back_counts[buffer] = take(12 * shape.ranks);
            places.back[buffer] = take(2 * rows * shape.hidden);
            places.back_weights[buffer] = take(4 * rows * shape.topk);
        }
        places.bytes = end;
        places
    }
}
