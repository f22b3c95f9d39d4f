//! Whether mgmtd knows that a target has been opened. Pure.
//!
//! A target that failed is opened again within the life of its node's lease, and mgmtd may be about to change its chain
//! because it last heard that the target was offline. So no lease counts for it before a heartbeat that reports it
//! was answered, and what the answer orders was done (R1).

use ember_types::mutant;

/// What mgmtd knows of a target since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Known {
    #[default]
    No,
    /// A heartbeat says so.
    Reported,
    /// That heartbeat was answered, or a later one.
    Heard,
}

impl Known {
    /// A heartbeat reports the target.
    pub(crate) fn reported(self) -> Self {
        if self == Self::No { Self::Reported } else { self }
    }
    /// A heartbeat was answered, and what mgmtd orders was done. It may have set out before the target was opened.
    pub(crate) fn answered(self) -> Self {
        let reported = self == Self::Reported || mutant!(r01_earlier_heartbeat_counts);
        if reported { Self::Heard } else { self }
    }
    /// Whether the node's lease counts for the target.
    pub(crate) fn lease_counts(self) -> bool {
        self == Self::Heard || mutant!(r01_reopened_target_has_the_old_lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r01_no_lease_counts_before_a_heartbeat_that_reports_the_target_was_answered() {
        let mut known = Known::default();
        assert!(!known.lease_counts());
        // The answer to a heartbeat from before.
        known = known.answered();
        assert!(!known.lease_counts());
        known = known.reported();
        assert!(!known.lease_counts());
        // Another one sets out before the first is answered.
        known = known.reported();
        assert!(!known.lease_counts());
        known = known.answered();
        assert!(known.lease_counts());
        for later in [Known::reported, Known::answered] {
            known = later(known);
            assert!(known.lease_counts());
        }
    }
}
