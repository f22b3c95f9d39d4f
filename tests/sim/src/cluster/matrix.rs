//! The fault matrix of the storage profile: kinds of disk faults by where they strike.

use std::collections::BTreeMap;
use std::fmt::Write;

/// What happens to a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum DiskFault {
    LostWrites,
    TornWrites,
    BitRot,
    LatentError,
    Misdirected,
    Full,
    Slow,
    SlowHundred,
    WriteError,
    LogError,
    FlushError,
    Hang,
    HangForGood,
}

/// All of them, in the order of the table.
pub const FAULTS: [DiskFault; 13] = [
    DiskFault::LostWrites,
    DiskFault::TornWrites,
    DiskFault::BitRot,
    DiskFault::LatentError,
    DiskFault::Misdirected,
    DiskFault::Full,
    DiskFault::Slow,
    DiskFault::SlowHundred,
    DiskFault::WriteError,
    DiskFault::LogError,
    DiskFault::FlushError,
    DiskFault::Hang,
    DiskFault::HangForGood,
];

/// Where a target stands in its chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The first serving one.
    Head,
    /// Neither the first nor the last serving one.
    Middle,
    /// The last serving one: it commits, and is the source of a resync.
    Tail,
}

/// Which target of a chain is struck, and what its chain does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stand {
    /// Every member serves.
    Serving(Role),
    /// Another member is being brought up to date.
    Beside(Role),
    /// It is being brought up to date itself.
    Syncing,
}

/// All of them, in the order of the table.
pub const STANDS: [Stand; 7] = [
    Stand::Serving(Role::Head),
    Stand::Serving(Role::Middle),
    Stand::Serving(Role::Tail),
    Stand::Beside(Role::Head),
    Stand::Beside(Role::Middle),
    Stand::Beside(Role::Tail),
    Stand::Syncing,
];

/// Number of cells.
pub const CELLS: usize = FAULTS.len() * STANDS.len();

/// Counters of the cells are named alike: this, the fault, and where it struck.
const PREFIX: &str = "cell: ";

macro_rules! names {
    ($($fault:literal),*) => {
        [$([
            concat!("cell: ", $fault, ", head, serving"),
            concat!("cell: ", $fault, ", middle, serving"),
            concat!("cell: ", $fault, ", tail, serving"),
            concat!("cell: ", $fault, ", head, beside a syncing one"),
            concat!("cell: ", $fault, ", middle, beside a syncing one"),
            concat!("cell: ", $fault, ", tail, beside a syncing one"),
            concat!("cell: ", $fault, ", syncing itself"),
        ]),*]
    };
}

const NAMES: [[&str; STANDS.len()]; FAULTS.len()] = names![
    "unsynced writes lost",
    "torn write",
    "bit rot",
    "latent read error",
    "misdirected write",
    "disk full",
    "disk slow",
    "disk 100 times slower",
    "write error",
    "log write error",
    "flush error",
    "disk hangs for a while",
    "disk hangs for good"
];

/// A cell of the matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cell {
    /// What happens.
    pub fault: DiskFault,
    /// Where.
    pub stand: Stand,
    name: &'static str,
}

impl Cell {
    /// The cell of a number, which is taken modulo [`CELLS`].
    pub fn of(number: u64) -> Self {
        let number = (number % CELLS as u64) as usize;
        let (row, column) = (number / STANDS.len(), number % STANDS.len());
        Self { fault: FAULTS[row], stand: STANDS[column], name: NAMES[row][column] }
    }
    /// The counter of its hits.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

/// Whether a counter is that of a cell.
pub fn is_cell(counter: &str) -> bool {
    counter.starts_with(PREFIX)
}

/// The matrix as a table, from counters; `None` if no cell was hit.
pub fn table(counters: &BTreeMap<&'static str, u64>) -> Option<String> {
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    if !counters.keys().any(|name| is_cell(name)) {
        return None;
    }
    let mut text = format!("{:<22}|{:^26}|{:^26}|{:>9}\n", "", "every member serves", "one syncs", "the one");
    let _ = writeln!(
        text,
        "{:<22}|{:>8}{:>9}{:>9}|{:>8}{:>9}{:>9}|{:>9}",
        "hits of disk faults", "head", "middle", "tail", "head", "middle", "tail", "syncing"
    );
    for row in NAMES {
        let fault = row[0].trim_start_matches(PREFIX).split(',').next().unwrap_or_default();
        let _ = write!(text, "{fault:<22}");
        for (column, name) in row.into_iter().enumerate() {
            let (bar, width) = if column % 3 == 0 { ("|", 8) } else { ("", 9) };
            let width = if column == 6 { 9 } else { width };
            let _ = write!(text, "{bar}{:>width$}", count(name));
        }
        text.push('\n');
    }
    Some(text)
}

/// Names of the cells that were never hit.
pub fn missed(counters: &BTreeMap<&'static str, u64>) -> Vec<&'static str> {
    let hit = |name: &&str| counters.get(*name).copied().unwrap_or(0) > 0;
    NAMES
        .into_iter()
        .flatten()
        .filter(|name| !hit(name))
        .map(|name| name.trim_start_matches(PREFIX))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_a_number_a_name_of_its_own_and_a_place_in_the_table() {
        let mut counters: BTreeMap<&'static str, u64> = BTreeMap::new();
        assert_eq!(table(&counters), None);
        for number in 0..CELLS as u64 {
            let cell = Cell::of(number);
            assert!(is_cell(cell.name()));
            assert_eq!(counters.insert(cell.name(), 1000 + number), None, "{cell:?}");
            assert_eq!(Cell::of(number + CELLS as u64), cell);
        }
        assert!(missed(&counters).is_empty());
        let text = table(&counters).unwrap();
        assert!((0..CELLS as u64).all(|n| text.contains(&(1000 + n).to_string())), "{text}");
        assert_eq!(text.lines().count(), 2 + FAULTS.len());
        assert!(text.lines().all(|line| line.len() == text.lines().next().unwrap().len()), "{text}");
        counters.insert(Cell::of(9).name(), 0);
        assert_eq!(missed(&counters), ["torn write, tail, serving"]);
    }
}
