//! What lies where in the heap of a rank.

use crate::layout::Shape;
use crate::places::BLOCK;

/// Results of dispatches that stay.
pub(super) const BUFFERS: usize = 2;

macro_rules! areas {
    ($($(#[$doc:meta])* $area:ident)*) => {
        /// A part of a heap: the same in Rust and in the kernels.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Area { $($(#[$doc])* $area),* }

        impl Area {
            pub(super) const ALL: &[Area] = &[$(Area::$area),*];
        }

        /// The same for the kernels.
        pub(super) const AREAS: &str = concat!("enum Area { ", $(stringify!($area), ", ",)* "AREAS };\n");
    };
}

areas! {
    /// Of a wait that took too long.
    Status
    /// Rows from the ranks below each, and from all.
    Before
    PerExpert
    /// By block, the number of the last launch in which it told its counts; and so on.
    CountsFlags
    TokensFlags
    BackFlags
    /// What this rank sends.
    X
    XScales
    XChosen
    XWeights
    /// `[tokens, ranks]`: places among the rows of the token's block that go to a rank, or -1.
    Places
    /// `[blocks, ranks]`: rows of every block of every rank to each.
    Counts
    /// `[blocks, experts here]`.
    ExpertCounts
    OldPlaces
    OldCounts
    /// What this rank receives.
    Values
    Scales
    Chosen
    Weights
    Sources
    /// What it sends back.
    Y
    YWeights
    Biases
    /// What comes back, and its sums.
    Back
    BackWeights
    Out
    OutWeights
    /// `[experts here, ranks, tokens]`: launch and choice of a message of the low-latency mode.
    Headers
    Messages
    MessageScales
    /// `[experts here, ranks]`: first row, rows.
    Ranges
}

/// Where areas lie, by buffer.
#[derive(Clone, Debug)]
pub(super) struct Places {
    at: [Vec<usize>; BUFFERS],
    /// Bytes at the beginning that say how a launch ended.
    pub(super) summary: usize,
    pub(super) bytes: usize,
}

impl Places {
    pub(super) fn new(shape: &Shape, blocks: usize, low: bool) -> Self {
        let mut at = [vec![0; Area::ALL.len()], vec![0; Area::ALL.len()]];
        let mut end = 0;
        let mut summary = 0;
        // What says how a launch ended lies in front.
        for summaries in [true, false] {
            for &area in Area::ALL.iter().filter(|area| (**area as usize <= 2) == summaries) {
                let ([each, other], bytes) = (&mut at, bytes(area, shape, blocks, low));
                each[area as usize] = end;
                end = (end + bytes).next_multiple_of(256);
                other[area as usize] = each[area as usize];
                if doubled(area) {
                    other[area as usize] = end;
                    end = (end + bytes).next_multiple_of(256);
                }
            }
            summary = if summaries { end } else { summary };
        }
        Self { at, summary, bytes: end }
    }

    pub(super) fn at(&self, area: Area, buffer: usize) -> usize {
        self.at[buffer][area as usize]
    }

    /// Of all areas for a launch; what an earlier dispatch left is in `old`.
    pub(super) fn of_launch(&self, buffer: usize, old: usize) -> Vec<u64> {
        let at = |area: &Area| match area {
            Area::OldPlaces => self.at(Area::Places, old),
            Area::OldCounts => self.at(Area::Counts, old),
            area => self.at(*area, buffer),
        };
        Area::ALL.iter().map(|area| at(area) as u64).collect()
    }
}

/// What stays for the way back.
fn doubled(area: Area) -> bool {
    use Area::{
        Before, Chosen, Counts, PerExpert, Places, Ranges, Scales, Sources, Values, Weights, XChosen,
    };
    matches!(
        area,
        Before
            | PerExpert
            | XChosen
            | Places
            | Counts
            | Values
            | Scales
            | Chosen
            | Weights
            | Sources
            | Ranges
    )
}

fn bytes(area: Area, shape: &Shape, blocks: usize, low: bool) -> usize {
    let Shape { ranks, hidden, topk, tokens, .. } = *shape;
    let (local, scales, all_blocks) = (shape.local_experts(), hidden.div_ceil(BLOCK), ranks * blocks);
    let rows = if low { local * ranks * tokens } else { ranks * tokens };
    let (normal, low) = (usize::from(!low), usize::from(low));
    match area {
        Area::Status => 8,
        Area::Before => normal * 4 * (ranks + 1),
        Area::PerExpert => normal * 4 * local,
        Area::CountsFlags | Area::TokensFlags | Area::BackFlags => 4 * all_blocks,
        Area::X | Area::Out => 2 * tokens * hidden,
        Area::XScales => normal * 4 * tokens * scales,
        Area::XChosen | Area::XWeights => 4 * tokens * topk,
        Area::Places => normal * 4 * tokens * ranks,
        Area::Counts => normal * 4 * all_blocks * ranks,
        Area::ExpertCounts => normal * 4 * all_blocks * local,
        Area::OldPlaces | Area::OldCounts => 0,
        Area::Values | Area::Y => 2 * rows * hidden,
        Area::Scales => 4 * rows * scales,
        Area::Chosen | Area::Weights | Area::YWeights | Area::BackWeights => normal * 4 * rows * topk,
        Area::Sources => (8 * normal + 16 * low) * rows,
        Area::Biases => normal * 2 * 2 * tokens * hidden,
        Area::Back => 2 * tokens * hidden * (normal * ranks + low * topk),
        Area::OutWeights => normal * 4 * tokens * topk,
        Area::Headers => low * 8 * rows,
        Area::Messages => low * 2 * rows * hidden,
        Area::MessageScales => low * 4 * rows * scales,
        Area::Ranges => low * 8 * local * ranks,
    }
}
