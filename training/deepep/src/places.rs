//! What lies where in a heap, and what ranks tell each other.

use crate::layout::Shape;

/// Numbers that have one scale.
pub(crate) const BLOCK: usize = 128;
/// Calls of either kind whose results may be on their way, or in shared memory, at once.
pub(crate) const BUFFERS: usize = 2;

/// What ranks tell each other; each from each rank.
#[derive(Clone, Copy)]
pub(crate) enum Signal {
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

/// How many kinds there are.
pub(crate) const SIGNALS: usize = 3 + 2 * BUFFERS;

impl Signal {
    pub(crate) fn kind(self) -> usize {
        match self {
            Self::Counts => 0,
            Self::Tokens => 1,
            Self::Back => 2,
            Self::TokensDone(buffer) => 3 + buffer,
            Self::BackDone(buffer) => 3 + BUFFERS + buffer,
        }
    }
}

/// Numbers at the end of a rank's counts: kind of dispatch, and whose places.
pub(crate) const COUNTS_MORE: usize = 2;
/// Numbers that go with what comes back: which dispatch, how many rows, how they lie, whether weights come too.
pub(crate) const BACK_COUNTS: usize = 4;

/// Where things lie in a heap.
#[derive(Clone, Copy, Default)]
pub(crate) struct Places {
    /// Rows of a lane of what comes back.
    pub(crate) lane: usize,
    /// By buffer and sender: tokens of each node to each rank here, and more.
    pub(crate) counts: [usize; BUFFERS],
    pub(crate) values: [usize; BUFFERS],
    pub(crate) scales: [usize; BUFFERS],
    pub(crate) chosen: [usize; BUFFERS],
    pub(crate) weights: [usize; BUFFERS],
    pub(crate) sources: [usize; BUFFERS],
    /// By buffer and sender.
    pub(crate) back_counts: [usize; BUFFERS],
    /// By buffer: lanes, each for the rows of a rank, or of the k-th choices.
    pub(crate) back: [usize; BUFFERS],
    pub(crate) back_weights: [usize; BUFFERS],
    pub(crate) bytes: usize,
}

impl Places {
    /// For `here` ranks that share memory, with so many lanes for rows that come back.
    pub(crate) fn new(shape: &Shape, here: usize, lanes: usize) -> Self {
        let mut end = 0;
        let mut take = |bytes: usize| {
            let at = end;
            end = (end + bytes).next_multiple_of(64);
            at
        };
        let mut places = Self { lane: shape.ranks / here * shape.tokens, ..Self::default() };
        let rows = shape.ranks * shape.tokens;
        for buffer in 0..BUFFERS {
            places.counts[buffer] = take(4 * here * (shape.ranks + COUNTS_MORE));
            places.values[buffer] = take(2 * rows * shape.hidden);
            places.scales[buffer] = take(4 * rows * shape.hidden.div_ceil(BLOCK));
            places.chosen[buffer] = take(4 * rows * shape.topk);
            places.weights[buffer] = take(4 * rows * shape.topk);
            places.sources[buffer] = take(4 * rows);
            places.back_counts[buffer] = take(4 * BACK_COUNTS * here);
            places.back[buffer] = take(2 * lanes * places.lane * shape.hidden);
            places.back_weights[buffer] = take(4 * rows * shape.topk);
        }
        places.bytes = end;
        places
    }
}
