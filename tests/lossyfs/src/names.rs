//! The name space, with the changes that a power loss may forget: a directory's entries are durable after a flush of
//! that directory, in order with all that was changed before.

use ember_types::layout::SplitMix64;
use std::collections::{BTreeMap, BTreeSet};

/// A directory's inode and a name in it.
pub(crate) type Key = (u64, Vec<u8>);

/// One atomic change of the name space: names with what they stand for from then on.
type Change = Vec<(Key, Option<u64>)>;

/// All names: now, durably, and the changes between, in order.
#[derive(Default)]
pub(crate) struct Names {
    now: BTreeMap<Key, u64>,
    durable: BTreeMap<Key, u64>,
    log: Vec<Change>,
}

fn apply(names: &mut BTreeMap<Key, u64>, change: &Change) {
    for (key, inode) in change {
        match inode {
            Some(inode) => names.insert(key.clone(), *inode),
            None => names.remove(key),
        };
    }
}

impl Names {
    pub(crate) fn get(&self, dir: u64, name: &[u8]) -> Option<u64> {
        self.now.get(&(dir, name.to_vec())).copied()
    }
    /// Entries of a directory, by name.
    pub(crate) fn list(&self, dir: u64) -> impl Iterator<Item = (&[u8], u64)> {
        self.now.range((dir, Vec::new())..(dir + 1, Vec::new())).map(|((_, name), &inode)| (&name[..], inode))
    }
    /// Changes names, all at once.
    pub(crate) fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.log.push(change);
    }
    /// Makes the changes of a directory durable, and all before them.
    pub(crate) fn flush(&mut self, dir: u64) {
        let touches = |change: &Change| change.iter().any(|((own, _), _)| *own == dir);
        let count = self.log.iter().rposition(touches).map_or(0, |at| at + 1);
        self.keep_first(count);
    }
    fn keep_first(&mut self, count: usize) {
        for change in self.log.drain(..count) {
            apply(&mut self.durable, &change);
        }
    }
    /// Power is lost: some of the latest changes are forgotten. Returns how many.
    pub(crate) fn lose_power(&mut self, rng: &mut SplitMix64) -> u64 {
        let kept = rng.below(self.log.len() as u64 + 1) as usize;
        self.keep_first(kept);
        let lost = self.log.len() as u64;
        self.log.clear();
        self.now = self.durable.clone();
        lost
    }
    /// Inodes that have a name, now or after a power loss.
    pub(crate) fn inodes(&self) -> BTreeSet<u64> {
        let logged = self.log.iter().flatten().filter_map(|(_, inode)| *inode);
        self.now.values().chain(self.durable.values()).copied().chain(logged).collect()
    }
    /// Whether an inode has a name now.
    pub(crate) fn is_named(&self, inode: u64) -> bool {
        self.now.values().any(|&own| own == inode)
    }
    /// The path of an inode below the root; empty for one without a name.
    pub(crate) fn path(&self, inode: u64) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut at = inode;
        while let Some(((dir, name), _)) = self.now.iter().find(|(_, own)| **own == at) {
            parts.push(String::from_utf8_lossy(name).into_owned());
            at = *dir;
        }
        parts.reverse();
        parts.join("/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_durable_in_order() {
        let key = |dir: u64, name: &str| (dir, name.as_bytes().to_vec());
        let mut left = BTreeSet::new();
        for seed in 0..100 {
            let mut names = Names::default();
            names.change(vec![(key(1, "a"), Some(2))]);
            names.flush(1);
            names.change(vec![(key(1, "b"), Some(3))]);
            names.change(vec![(key(2, "c"), Some(4)), (key(1, "b"), None)]);
            names.change(vec![(key(1, "d"), Some(5))]);
            assert_eq!(names.path(4), "a/c");
            names.lose_power(&mut SplitMix64(seed));
            assert_eq!(names.get(1, b"a"), Some(2));
            let found = [names.get(1, b"b"), names.get(2, b"c"), names.get(1, b"d")];
            left.insert(found.map(|inode| inode.unwrap_or(0)));
        }
        let expected = [[0, 0, 0], [3, 0, 0], [0, 4, 0], [0, 4, 5]];
        assert_eq!(left.into_iter().collect::<Vec<_>>().len(), expected.len());
        let mut names = Names::default();
        names.change(vec![(key(1, "b"), Some(3))]);
        names.change(vec![(key(2, "c"), Some(4))]);
        names.flush(2);
        names.lose_power(&mut SplitMix64(1));
        assert_eq!((names.get(1, b"b"), names.get(2, b"c")), (Some(3), Some(4)), "older changes come along");
    }
}
