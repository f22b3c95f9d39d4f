//! Planted protocol bugs. They exist only in builds of the simulator (feature `mutants`); everywhere else
//! [`mutant!`](crate::mutant) is the constant `false` and the binary `ember` refuses to compile with them.

/// Whether this build contains planted bugs.
pub const COMPILED: bool = cfg!(feature = "mutants");

/// Every planted bug: name, and what it breaks. The name starts with the rule of the protocol it violates.
/// A name that no code uses is a defect: the simulator's own tests check that each one is found.
pub const ALL: &[(&str, &str)] = &[
    ("r01_taken_out_under_lease", "a silent node's targets are taken out before its lease has run out"),
    ("r02_version_from_kv_only", "mgmtd ignores a chain version above its own that a target reports"),
    ("r04_drop_pending_on_change", "a serving replica drops its pending versions at a chain change"),
    ("r05_number_alone_identifies", "equal version numbers count as equal content"),
    ("r06_tail_ignores_syncing", "the tail commits before its syncing successor holds the version"),
    ("r07_any_member_is_lastsrv", "any member of the chain may become lastsrv, whatever it missed"),
    ("r08_lease_counts_from_answer", "a node counts its lease from the receipt of the answer"),
    ("r11_resync_acts_on_listing", "resync removes and copies from the listing, outside the chunk's order"),
    ("r12_forget_writers", "a repeated write runs again after another write replaced the record"),
    ("r12_answer_before_successor", "the head answers before its successor's acknowledgement"),
    ("r13_abort_forgets_locally", "the head drops a refused update without telling its successors"),
    ("r18_absent_is_hole_anywhere", "any replica may answer that a chunk is absent"),
    ("r19_settle_without_truncate_version", "settlement of a file's length ignores truncations"),
];

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;
    thread_local!(static ACTIVE: Cell<Option<&'static str>> = const { Cell::new(None) });

    /// Switches one planted bug on for this thread, or all off. `false` if no bug has that name.
    pub fn activate(name: Option<&str>) -> bool {
        let found = name.map(|wanted| super::ALL.iter().map(|&(n, _)| n).find(|&n| n == wanted));
        ACTIVE.set(found.flatten());
        found.is_none_or(|f| f.is_some())
    }

    /// Whether the bug of that name is switched on.
    pub fn active(name: &'static str) -> bool {
        ACTIVE.get() == Some(name)
    }
}
#[cfg(feature = "mutants")]
pub use switch::{activate, active};

/// `mutant!(name)` is whether that planted bug is switched on: constantly `false` outside the simulator.
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutants::active(stringify!($name))
    };
}

/// `mutant!(name)` is whether that planted bug is switched on: constantly `false` outside the simulator.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}
