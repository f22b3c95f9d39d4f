//! What mgmtd knows of a target when it looks at a chain.

use ember_types::{ChainVersion, Generation, LocalState};

/// What a target's node last said of it, in the node's present boot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Report {
    /// The generation that its disk holds.
    pub generation: Generation,
    /// Its local state. `UpToDate` of a syncing target means that its sync is done, and counts only if
    /// `applied` is the chain's version (R6); of a lastsrv target, that its recovery is complete.
    pub local: LocalState,
    /// The chain version under which the local state holds.
    pub applied: ChainVersion,
    /// The highest chain version that it ever served under (R2).
    pub served: ChainVersion,
}

/// A target as mgmtd sees it now.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Observation {
    /// Its node has a live lease from this primary, in its present boot (R7).
    pub alive: bool,
    /// It may be answering requests: its node's last grant plus the drift bound has not passed, and its node
    /// has neither confirmed that the target stopped nor started anew (R1).
    pub may_serve: bool,
    /// What its node said of it; `None` before the first report.
    pub report: Option<Report>,
    /// The valid generation of its content.
    pub generation: Generation,
    /// It is to be kept out: it is being drained, or was accused and has not been demoted yet, or its disk is too
    /// full for what it lacks (R10).
    pub shunned: bool,
    /// Its sync has made no progress for too long, or can't for lack of room: it yields the place (R10).
    pub stalled: bool,
}

impl Observation {
    /// A target whose node was never heard of and holds no lease.
    pub const fn absent(generation: Generation) -> Self {
        Self { alive: false, may_serve: false, report: None, generation, shunned: false, stalled: false }
    }

    /// The report, if it speaks of the valid generation.
    pub(crate) fn valid_report(&self) -> Option<&Report> {
        self.report.as_ref().filter(|report| report.generation == self.generation)
    }

    /// It can take part: its node lives, the right content is there, and its disk works.
    pub(crate) fn usable(&self) -> bool {
        self.alive && self.valid_report().is_some_and(|report| report.local != LocalState::Offline)
    }

    /// It is usable and its recovery is complete.
    pub(crate) fn complete(&self) -> bool {
        self.usable() && self.valid_report().is_some_and(|report| report.local == LocalState::UpToDate)
    }
}
