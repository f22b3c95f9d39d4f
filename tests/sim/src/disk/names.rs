//! The name space of a disk, with the changes that a power loss may forget.

use ember_types::layout::SplitMix64;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Node {
    File(u64),
    Dir,
}

#[derive(Clone, Debug)]
enum Change {
    Set(String, Node),
    Remove(String),
    Rename(String, String),
}

/// All names: now, durably, and the changes between, in order.
#[derive(Default)]
pub(super) struct Names {
    now: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    log: Vec<Change>,
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn apply(names: &mut BTreeMap<String, Node>, change: &Change) {
    match change {
        Change::Set(name, node) => {
            names.insert(name.clone(), *node);
        }
        Change::Remove(name) => {
            names.remove(name);
        }
        Change::Rename(from, to) => {
            let below = format!("{from}/");
            let moved: Vec<String> =
                names.keys().filter(|n| *n == from || n.starts_with(&below)).cloned().collect();
            for name in moved {
                if let Some(node) = names.remove(&name) {
                    names.insert(format!("{to}{}", &name[from.len()..]), node);
                }
            }
        }
    }
}

impl Change {
    fn touches(&self, dir: &str) -> bool {
        match self {
            Self::Set(name, _) | Self::Remove(name) => parent(name) == dir,
            Self::Rename(from, to) => parent(from) == dir || parent(to) == dir,
        }
    }
}

impl Names {
    pub(super) fn get(&self, name: &str) -> Option<Node> {
        if name.is_empty() { Some(Node::Dir) } else { self.now.get(name).copied() }
    }
    /// All files, by name.
    pub(super) fn files(&self) -> Vec<(String, u64)> {
        let file = |(name, node): (&String, &Node)| match node {
            Node::File(inode) => Some((name.clone(), *inode)),
            Node::Dir => None,
        };
        self.now.iter().filter_map(file).collect()
    }
    /// Inodes that have a name, now or after a power loss.
    pub(super) fn inodes(&self) -> BTreeSet<u64> {
        let inode = |node: &Node| match node {
            Node::File(inode) => Some(*inode),
            Node::Dir => None,
        };
        let logged = self.log.iter().filter_map(|c| match c {
            Change::Set(_, node) => inode(node),
            _ => None,
        });
        self.now.values().chain(self.durable.values()).filter_map(inode).chain(logged).collect()
    }
    fn change(&mut self, change: Change) {
        apply(&mut self.now, &change);
        self.log.push(change);
    }
    pub(super) fn create(&mut self, name: &str, node: Node) -> io::Result<()> {
        if self.get(parent(name)) != Some(Node::Dir) {
            return Err(super::error(io::ErrorKind::NotFound, parent(name)));
        }
        self.change(Change::Set(name.to_owned(), node));
        Ok(())
    }
    pub(super) fn create_dirs(&mut self, dir: &str) -> io::Result<()> {
        let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
        for end in ends.collect::<Vec<_>>() {
            let name = &dir[..end];
            match self.get(name) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => return Err(super::error(io::ErrorKind::NotADirectory, name)),
                None => self.change(Change::Set(name.to_owned(), Node::Dir)),
            }
        }
        Ok(())
    }
    pub(super) fn remove(&mut self, name: &str) {
        self.change(Change::Remove(name.to_owned()));
    }
    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        if self.get(from).is_none() {
            return Err(super::error(io::ErrorKind::NotFound, from));
        }
        if self.get(parent(to)) != Some(Node::Dir) {
            return Err(super::error(io::ErrorKind::NotFound, parent(to)));
        }
        self.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }
    pub(super) fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        if self.get(dir) != Some(Node::Dir) {
            return Err(super::error(io::ErrorKind::NotFound, dir));
        }
        let inside = self.now.keys().filter(|name| !name.is_empty() && parent(name) == dir);
        Ok(inside.map(|name| name.rsplit('/').next().unwrap_or(name).to_owned()).collect())
    }
    /// Makes the changes in `dir` durable, and all before them.
    pub(super) fn sync(&mut self, dir: &str) {
        let count = self.log.iter().rposition(|c| c.touches(dir)).map_or(0, |at| at + 1);
        self.sync_first(count);
    }
    pub(super) fn sync_all(&mut self) {
        self.sync_first(self.log.len());
    }
    fn sync_first(&mut self, count: usize) {
        for change in self.log.drain(..count) {
            apply(&mut self.durable, &change);
        }
    }
    /// Forgets the changes that are not durable, but for the first few.
    pub(super) fn lose_power(&mut self, rng: &mut SplitMix64) {
        let kept = rng.below(self.log.len() as u64 + 1) as usize;
        self.sync_first(kept);
        self.log.clear();
        self.now = self.durable.clone();
    }
}
