//! The name space as a model: directories of names, files with link counts.

use super::wgl::Model;
use std::collections::{BTreeMap, BTreeSet};

/// An inode as clients see it.
pub type Ino = u64;
/// A name, numbered.
pub type Name = u8;

/// An inode in the model: one whose number was seen, or the one that operation made and nobody has seen yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Node {
    /// Its number.
    Known(Ino),
    /// Made by this operation of the history.
    MadeBy(u32),
}

/// Why an operation was refused, as far as the model cares.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Refusal {
    /// No such name, or the directory is gone.
    NotFound,
    /// The name is taken.
    Exists,
    /// The directory holds something.
    NotEmpty,
    /// It is a directory.
    IsDirectory,
    /// It is none.
    NotDirectory,
    /// The inode is gone.
    Stale,
    /// A directory would move below itself.
    Loop,
}

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Make a regular file; an existing one is found unless `exclusive`.
    Create {
        /// Directory.
        dir: Ino,
        /// Name in it.
        name: Name,
        /// Refuse an existing one.
        exclusive: bool,
    },
    /// Make a directory.
    MakeDirectory {
        /// Directory.
        dir: Ino,
        /// Name in it.
        name: Name,
    },
    /// Make another name of a file.
    Link {
        /// The file.
        inode: Ino,
        /// Directory.
        dir: Ino,
        /// Name in it.
        name: Name,
    },
    /// Remove a file's name.
    Unlink {
        /// Directory.
        dir: Ino,
        /// Name in it.
        name: Name,
    },
    /// Remove an empty directory.
    RemoveDirectory {
        /// Directory.
        dir: Ino,
        /// Name in it.
        name: Name,
    },
    /// Move a name, replacing what is there unless told not to.
    Rename {
        /// Directory.
        dir: Ino,
        /// Name in it.
        name: Name,
        /// Directory of the new name.
        new_dir: Ino,
        /// New name.
        new_name: Name,
        /// Refuse if the new name is taken.
        no_replace: bool,
    },
    /// Find a name.
    Lookup {
        /// Directory.
        dir: Ino,
        /// Name in it.
        name: Name,
    },
    /// List a directory.
    List {
        /// Directory.
        dir: Ino,
    },
    /// Ask for the number of names of a file.
    Links {
        /// The file.
        inode: Ino,
    },
}

/// What was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// Nothing: the outcome is unknown.
    Unknown,
    /// Done; nothing more to say.
    Done,
    /// Done; this inode.
    Inode(Ino),
    /// The entries of a directory.
    Entries(BTreeMap<Name, Ino>),
    /// The number of names of a file.
    Links(u32),
    /// Refused.
    Refused(Refusal),
}

/// An operation on the name space. `id` is unique in its history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameOp {
    /// Which one.
    pub id: u32,
    /// What was asked.
    pub ask: Ask,
    /// What was answered.
    pub told: Told,
}

/// The name space at one time.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Tree {
    dirs: BTreeMap<Node, BTreeMap<Name, Node>>,
    files: BTreeSet<Node>,
    /// Numbers of inodes that are gone: they never come back.
    gone: BTreeSet<Ino>,
}

impl Tree {
    /// A tree of some empty directories that are never removed.
    pub fn of_directories(dirs: &[Ino]) -> Self {
        Self { dirs: dirs.iter().map(|&d| (Node::Known(d), BTreeMap::new())).collect(), ..Self::default() }
    }
    fn links(&self, node: Node) -> u32 {
        self.dirs.values().flat_map(|entries| entries.values()).filter(|&&n| n == node).count() as u32
    }
    fn knows(&self, ino: Ino) -> bool {
        self.dirs.contains_key(&Node::Known(ino)) || self.files.contains(&Node::Known(ino))
    }
    /// The same tree, if `node` may have the number `ino`.
    fn bind(mut self, node: Node, ino: Ino) -> Option<Self> {
        let new = Node::Known(ino);
        match node {
            Node::Known(own) => return (own == ino).then_some(self),
            Node::MadeBy(_) if self.knows(ino) || self.gone.contains(&ino) => return None,
            Node::MadeBy(_) => {}
        }
        for entries in self.dirs.values_mut() {
            entries.values_mut().filter(|n| **n == node).for_each(|n| *n = new);
        }
        if let Some(entries) = self.dirs.remove(&node) {
            self.dirs.insert(new, entries);
        }
        if self.files.remove(&node) {
            self.files.insert(new);
        }
        Some(self)
    }
    fn forget(&mut self, node: Node) {
        if let Node::Known(ino) = node {
            self.gone.insert(ino);
        }
        self.dirs.remove(&node);
        self.files.remove(&node);
    }
    fn drop_name(&mut self, dir: Node, name: Name) {
        let Some(node) = self.dirs.get_mut(&dir).and_then(|d| d.remove(&name)) else { return };
        if self.links(node) == 0 {
            self.forget(node);
        }
    }
    fn set(&mut self, dir: Node, name: Name, node: Node) {
        self.dirs.entry(dir).or_default().insert(name, node);
    }
    /// Whether `dir` lies in `top`'s tree (or is it).
    fn is_below(&self, dir: Node, top: Node) -> bool {
        let mut at = dir;
        for _ in 0..=self.dirs.len() {
            if at == top {
                return true;
            }
            let parent = self.dirs.iter().find(|(_, entries)| entries.values().any(|&n| n == at));
            match parent {
                Some((&parent, _)) => at = parent,
                None => return false,
            }
        }
        true
    }
}

type Outcome = Result<(Tree, Fact), Refusal>;

/// What the model itself answers.
enum Fact {
    Done,
    Node(Node),
    Entries(BTreeMap<Name, Node>),
    Links(u32),
}

fn apply(tree: &Tree, id: u32, ask: &Ask) -> Outcome {
    let mut after = tree.clone();
    let known = |ino: Ino| Node::Known(ino);
    let entries = |dir: Ino| tree.dirs.get(&known(dir)).ok_or(Refusal::NotFound);
    let entry = |dir: Ino, name: Name| entries(dir)?.get(&name).copied().ok_or(Refusal::NotFound);
    match *ask {
        Ask::Create { dir, name, exclusive } => match entries(dir)?.get(&name) {
            Some(_) if exclusive => Err(Refusal::Exists),
            Some(node) if tree.dirs.contains_key(node) => Err(Refusal::IsDirectory),
            Some(&node) => Ok((after, Fact::Node(node))),
            None => {
                after.files.insert(Node::MadeBy(id));
                after.set(known(dir), name, Node::MadeBy(id));
                Ok((after, Fact::Node(Node::MadeBy(id))))
            }
        },
        Ask::MakeDirectory { dir, name } => match entries(dir)?.contains_key(&name) {
            true => Err(Refusal::Exists),
            false => {
                after.dirs.insert(Node::MadeBy(id), BTreeMap::new());
                after.set(known(dir), name, Node::MadeBy(id));
                Ok((after, Fact::Node(Node::MadeBy(id))))
            }
        },
        Ask::Link { inode, dir, name } => {
            if !tree.files.contains(&known(inode)) {
                return Err(Refusal::NotFound);
            }
            if entries(dir)?.contains_key(&name) {
                return Err(Refusal::Exists);
            }
            after.set(known(dir), name, known(inode));
            Ok((after, Fact::Node(known(inode))))
        }
        Ask::Unlink { dir, name } => match tree.dirs.contains_key(&entry(dir, name)?) {
            true => Err(Refusal::IsDirectory),
            false => {
                after.drop_name(known(dir), name);
                Ok((after, Fact::Done))
            }
        },
        Ask::RemoveDirectory { dir, name } => match tree.dirs.get(&entry(dir, name)?) {
            None => Err(Refusal::NotDirectory),
            Some(inside) if !inside.is_empty() => Err(Refusal::NotEmpty),
            Some(_) => {
                after.drop_name(known(dir), name);
                Ok((after, Fact::Done))
            }
        },
        Ask::Rename { .. } => rename(tree, ask),
        Ask::Lookup { dir, name } => Ok((after, Fact::Node(entry(dir, name)?))),
        Ask::List { dir } => Ok((after, Fact::Entries(entries(dir)?.clone()))),
        Ask::Links { inode } => match tree.files.contains(&known(inode)) {
            true => Ok((after, Fact::Links(tree.links(known(inode))))),
            false => Err(Refusal::NotFound),
        },
    }
}

fn rename(tree: &Tree, ask: &Ask) -> Outcome {
    let Ask::Rename { dir, name, new_dir, new_name, no_replace } = *ask else {
        return Err(Refusal::NotFound);
    };
    let (from, to) = (Node::Known(dir), Node::Known(new_dir));
    let moved = *tree.dirs.get(&from).and_then(|d| d.get(&name)).ok_or(Refusal::NotFound)?;
    let target = tree.dirs.get(&to).ok_or(Refusal::NotFound)?.get(&new_name).copied();
    let mut after = tree.clone();
    if tree.dirs.contains_key(&moved) && tree.is_below(to, moved) {
        return Err(Refusal::Loop);
    }
    match target {
        Some(_) if no_replace => return Err(Refusal::Exists),
        Some(target) if target == moved => return Ok((after, Fact::Done)),
        Some(target) => match (tree.dirs.contains_key(&moved), tree.dirs.get(&target)) {
            (true, Some(inside)) if !inside.is_empty() => return Err(Refusal::NotEmpty),
            (true, None) => return Err(Refusal::NotDirectory),
            (false, Some(_)) => return Err(Refusal::IsDirectory),
            _ => {}
        },
        None => {}
    }
    if let Some(entries) = after.dirs.get_mut(&from) {
        entries.remove(&name);
    }
    after.drop_name(to, new_name);
    after.set(to, new_name, moved);
    Ok((after, Fact::Done))
}

/// The model of the name space.
pub struct NameModel;

impl Model for NameModel {
    type State = Tree;
    type Op = NameOp;

    fn step(&self, tree: &Tree, op: &NameOp) -> Option<Tree> {
        match (apply(tree, op.id, &op.ask), &op.told) {
            (Ok((after, _)), Told::Unknown | Told::Done) => Some(after),
            (Err(_), Told::Unknown) => Some(tree.clone()),
            (Ok((after, Fact::Node(node))), Told::Inode(ino)) => after.bind(node, *ino),
            (Ok((mut after, Fact::Entries(own))), Told::Entries(seen)) => {
                if !own.keys().eq(seen.keys()) {
                    return None;
                }
                for (name, ino) in seen {
                    after = after.bind(*own.get(name)?, *ino)?;
                }
                Some(after)
            }
            (Ok((after, Fact::Links(own))), Told::Links(seen)) => (own == *seen).then_some(after),
            // An inode without a name, which somebody still has open or which is not collected yet.
            (Err(Refusal::NotFound), Told::Links(0)) => Some(tree.clone()),
            (Err(Refusal::NotFound), Told::Entries(seen)) if seen.is_empty() => Some(tree.clone()),
            (Err(own), Told::Refused(seen)) => {
                (same(own, *seen) || also(tree, &op.ask, *seen)).then(|| tree.clone())
            }
            _ => None,
        }
    }
}

/// Whether a second reason holds too, where several do and a service may name either.
fn also(tree: &Tree, ask: &Ask, seen: Refusal) -> bool {
    match *ask {
        Ask::Link { dir, name, .. } => {
            let taken = tree.dirs.get(&Node::Known(dir)).is_some_and(|d| d.contains_key(&name));
            taken && seen == Refusal::Exists
        }
        Ask::Rename { dir, name, new_dir, new_name, no_replace } => {
            let at = |dir: Ino, name: Name| tree.dirs.get(&Node::Known(dir))?.get(&name).copied();
            let (moved, target) = (at(dir, name), at(new_dir, new_name));
            let inside = |node: Option<Node>| node.and_then(|node| tree.dirs.get(&node));
            match seen {
                Refusal::NotFound => moved.is_none() || !tree.dirs.contains_key(&Node::Known(new_dir)),
                Refusal::Exists => no_replace && target.is_some(),
                Refusal::NotEmpty => inside(target).is_some_and(|entries| !entries.is_empty()),
                Refusal::IsDirectory => inside(target).is_some() && inside(moved).is_none(),
                Refusal::NotDirectory => {
                    target.is_some() && inside(target).is_none() && inside(moved).is_some()
                }
                Refusal::Loop => moved.is_some_and(|moved| tree.is_below(Node::Known(new_dir), moved)),
                Refusal::Stale => !tree.dirs.contains_key(&Node::Known(new_dir)),
            }
        }
        _ => false,
    }
}

/// Whether a service may give the second reason where the model has the first.
fn same(own: Refusal, seen: Refusal) -> bool {
    own == seen || matches!((own, seen), (Refusal::NotFound, Refusal::Stale | Refusal::NotDirectory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::wgl::{Event, Verdict, check};

    fn run(ops: &[(u64, Option<u64>, Ask, Told)]) -> Verdict {
        let history: Vec<_> = ops
            .iter()
            .enumerate()
            .map(|(id, (begin, end, ask, told))| Event {
                begin: *begin,
                end: *end,
                op: NameOp { id: id as u32, ask: ask.clone(), told: told.clone() },
            })
            .collect();
        check(&NameModel, Tree::of_directories(&[10, 11]), &history, 100_000)
    }
    fn create(dir: Ino, name: Name) -> Ask {
        Ask::Create { dir, name, exclusive: true }
    }
    fn lookup(dir: Ino, name: Name) -> Ask {
        Ask::Lookup { dir, name }
    }
    fn rename(from: (Ino, Name), to: (Ino, Name)) -> Ask {
        Ask::Rename { dir: from.0, name: from.1, new_dir: to.0, new_name: to.1, no_replace: false }
    }

    #[test]
    fn a_file_lives_and_dies() {
        let mut ops = vec![
            (1, Some(2), create(10, 1), Told::Inode(50)),
            (3, Some(4), Ask::Link { inode: 50, dir: 11, name: 2 }, Told::Inode(50)),
            (5, Some(6), Ask::Links { inode: 50 }, Told::Links(2)),
            (7, Some(8), Ask::Unlink { dir: 10, name: 1 }, Told::Done),
            (9, Some(10), rename((11, 2), (10, 3)), Told::Done),
            (11, Some(12), Ask::List { dir: 10 }, Told::Entries([(3, 50)].into())),
            (13, Some(14), Ask::Unlink { dir: 10, name: 3 }, Told::Done),
            (15, Some(16), lookup(10, 3), Told::Refused(Refusal::NotFound)),
            (17, Some(18), Ask::Links { inode: 50 }, Told::Refused(Refusal::Stale)),
        ];
        assert_eq!(run(&ops), Verdict::Linearizable);
        ops[7].3 = Told::Inode(50);
        assert_eq!(run(&ops), Verdict::Violation(7));
    }

    #[test]
    fn a_number_is_never_used_twice() {
        let ops = [
            (1, Some(2), create(10, 1), Told::Inode(50)),
            (3, Some(4), Ask::Unlink { dir: 10, name: 1 }, Told::Done),
            (5, Some(6), create(10, 1), Told::Inode(50)),
        ];
        assert_eq!(run(&ops), Verdict::Violation(2));
    }

    #[test]
    fn an_unknown_creation_may_have_happened() {
        let mut ops = vec![
            (1, None, create(10, 1), Told::Unknown),
            (3, Some(4), lookup(10, 1), Told::Refused(Refusal::NotFound)),
            (5, Some(6), lookup(10, 1), Told::Inode(60)),
            (7, Some(8), create(10, 1), Told::Refused(Refusal::Exists)),
        ];
        assert_eq!(run(&ops), Verdict::Linearizable);
        ops.push((9, Some(10), lookup(10, 1), Told::Inode(61)));
        assert_eq!(run(&ops), Verdict::Violation(4));
    }

    #[test]
    fn directories_and_renames_keep_their_rules() {
        let mkdir = |dir, name| Ask::MakeDirectory { dir, name };
        let ops = [
            (1, Some(2), mkdir(10, 1), Told::Inode(70)),
            (3, Some(4), create(70, 5), Told::Inode(71)),
            (5, Some(6), Ask::RemoveDirectory { dir: 10, name: 1 }, Told::Refused(Refusal::NotEmpty)),
            (7, Some(8), rename((70, 5), (10, 1)), Told::Refused(Refusal::IsDirectory)),
            (9, Some(10), rename((70, 5), (10, 2)), Told::Done),
            (11, Some(12), rename((10, 1), (10, 2)), Told::Refused(Refusal::NotDirectory)),
            (13, Some(14), Ask::RemoveDirectory { dir: 10, name: 1 }, Told::Done),
            (15, Some(16), create(70, 5), Told::Refused(Refusal::Stale)),
            (17, Some(18), create(10, 2), Told::Refused(Refusal::Exists)),
        ];
        assert_eq!(run(&ops), Verdict::Linearizable);
    }
}
