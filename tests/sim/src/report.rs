//! The table at the end of a run.

use crate::cluster::matrix;
use crate::runner::Outcome;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Operations that clients asked for.
pub const OPERATIONS: &str = "client operations";
/// Operations that ended without an answer.
pub const UNKNOWN: &str = "client operations of unknown outcome";

/// Kinds of faults: what counts as a fault in the mean per seed. Each happens in a run of many seeds.
pub const FAULTS: &[&str] = &[
    "process killed and restarted",
    "machine lost power",
    "whole chain lost power",
    "process paused",
    "partition, both ways",
    "partition, one way",
    "connection lost",
    "network lost messages",
    "network slow",
    "clock drift",
    "disk replaced by an empty one",
    "bit flipped on disk",
    "disk slow",
    "disk error",
    "client died",
    "commits of unknown outcome",
    "control services and their store lost power",
];

/// Sums over seeds.
#[derive(Clone, Default, Debug)]
pub struct Totals {
    /// Number of seeds.
    pub seeds: u64,
    /// Sum of each counter.
    pub counters: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// Adds what became of a seed.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        for (&name, &count) in &outcome.counters {
            *self.counters.entry(name).or_default() += count;
        }
    }
    fn count(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
    /// Faults of all kinds.
    pub fn faults(&self) -> u64 {
        FAULTS.iter().map(|name| self.count(name)).sum()
    }
    /// The table: what happened, in all and per seed.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, count: u64| {
            let mean = count as f64 / self.seeds.max(1) as f64;
            let _ = writeln!(text, "{name:<44} {count:>14} {mean:>14.2}");
        };
        row("seeds", self.seeds);
        row(OPERATIONS, self.count(OPERATIONS));
        row("faults of all kinds", self.faults());
        let matrix = matrix::table(&self.counters);
        // With a matrix, other kinds of faults are none of the plan.
        for name in FAULTS.iter().filter(|name| matrix.is_none() || self.count(name) > 0) {
            row(&format!("  {name}"), self.count(name));
        }
        for (&name, &count) in &self.counters {
            if name != OPERATIONS && !FAULTS.contains(&name) && !matrix::is_cell(name) {
                row(name, count);
            }
        }
        let matrix = matrix.map(|table| format!("\n{table}")).unwrap_or_default();
        format!("{:<44} {:>14} {:>14}\n{text}{matrix}", "what", "in all", "per seed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_sums_and_means_of_everything_counted() {
        let mut totals = Totals::default();
        for (seed, count) in [(1, 10), (2, 20)] {
            let counters = BTreeMap::from([(OPERATIONS, count), (FAULTS[0], 3), ("messages", 7)]);
            totals.add(&Outcome { seed, hash: 0, failure: None, counters });
        }
        assert_eq!(totals.faults(), 6);
        let table = totals.table();
        let line = |name: &str| table.lines().find(|l| l.trim_start().starts_with(name)).unwrap().to_owned();
        assert!(line(OPERATIONS).ends_with("15.00"));
        assert!(line("messages ").contains("14"));
        assert!(line("machine lost power").contains(" 0 "));
        assert!(table.lines().all(|l| !l.trim().is_empty()));
    }
}
