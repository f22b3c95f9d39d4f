//! Power loss: what a disk may hold afterwards. Every sector that was written and not flushed, and every name
//! that was made, moved or removed and not flushed, may be there or not, each on its own.

use super::pages::{PAGE, PageRef, Pages, SECTORS, mix, same, sector};
use ember_types::layout::SplitMix64;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

#[derive(Clone)]
pub enum Change {
    /// Pages from a page on.
    Write(usize, Rc<Vec<PageRef>>),
    Allocate(u64, u64),
    Punch(u64, u64),
    /// A small file's content.
    Content(Pages),
}

impl Change {
    pub fn apply(&self, bytes: &mut Pages) {
        match self {
            Self::Write(first, pages) => {
                pages.iter().enumerate().for_each(|(i, page)| bytes.put(first + i, page.clone()));
            }
            Self::Allocate(offset, len) => bytes.extend(offset + len),
            Self::Punch(offset, len) => bytes.zero(*offset, *len),
            Self::Content(content) => *bytes = content.clone(),
        }
    }
}

#[derive(Clone)]
pub struct Unflushed {
    pub id: u64,
    pub change: Change,
    pub done: bool,
}

#[derive(Clone, Default)]
pub struct Inode {
    pub durable: Pages,
    pub view: Pages,
    pub unflushed: Vec<Unflushed>,
    /// Pages with a place on the device that the file system has noted durably.
    pub settled: BTreeSet<usize>,
}

impl Inode {
    /// A flush of this file: the changes that `flushed` names become durable, and the places of their bytes.
    pub fn flush(&mut self, flushed: impl Fn(u64) -> bool) {
        let Self { durable, unflushed, settled, .. } = self;
        unflushed.retain(|u| {
            let gone = flushed(u.id);
            if gone {
                u.change.apply(durable);
                match &u.change {
                    Change::Write(first, pages) => settled.extend(*first..first + pages.len()),
                    Change::Punch(offset, len) => {
                        let given = *offset as usize / PAGE..(offset + len) as usize / PAGE;
                        settled.retain(|page| !given.contains(page));
                    }
                    Change::Allocate(..) | Change::Content(_) => {}
                }
            }
            !gone
        });
    }
    /// Pages that a change which is not durable gives back.
    fn punched(&self) -> BTreeSet<usize> {
        let mut pages = BTreeSet::new();
        for unflushed in &self.unflushed {
            if let Change::Punch(offset, len) = unflushed.change {
                pages.extend(offset as usize / PAGE..(offset + len) as usize / PAGE);
            }
        }
        pages
    }
    /// Pages of whose place the file system says so, in order.
    pub fn written(&self) -> Vec<usize> {
        let punched = self.punched();
        self.settled.iter().copied().filter(|page| !punched.contains(page)).collect()
    }
    /// A flush of the device alone: of the changes that `flushed` names, the pages that lay in settled places become
    /// durable, nothing else.
    pub fn overwrite(&mut self, flushed: impl Fn(u64) -> bool) {
        let punched = self.punched();
        let mut left = Vec::with_capacity(self.unflushed.len());
        for unflushed in std::mem::take(&mut self.unflushed) {
            let Change::Write(first, pages) = &unflushed.change else {
                left.push(unflushed);
                continue;
            };
            if !unflushed.done || !flushed(unflushed.id) {
                left.push(unflushed);
                continue;
            }
            for (page, bytes) in (*first..).zip(pages.iter()) {
                if self.settled.contains(&page) && !punched.contains(&page) {
                    self.durable.put(page, bytes.clone());
                } else {
                    let change = Change::Write(page, Rc::new(vec![bytes.clone()]));
                    left.push(Unflushed { id: unflushed.id, change, done: true });
                }
            }
        }
        self.unflushed = left;
    }
}

#[derive(Clone)]
pub enum Naming {
    Dir(String),
    Link(String, usize),
    Unlink(String),
    Rename(String, String, usize),
}

impl Naming {
    /// The name that it is about.
    pub fn name(&self) -> &str {
        match self {
            Self::Dir(name) | Self::Link(name, _) | Self::Unlink(name) | Self::Rename(_, name, _) => name,
        }
    }
}

pub fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Names of files and directories.
#[derive(Clone, Default)]
pub struct Names {
    pub files: BTreeMap<String, usize>,
    pub dirs: BTreeSet<String>,
}

impl Names {
    pub fn root() -> Self {
        Self { files: BTreeMap::new(), dirs: BTreeSet::from([String::new()]) }
    }
    pub fn apply(&mut self, naming: &Naming) {
        match naming {
            Naming::Dir(name) => drop(self.dirs.insert(name.clone())),
            Naming::Link(name, inode) => drop(self.files.insert(name.clone(), *inode)),
            Naming::Unlink(name) => drop(self.files.remove(name)),
            Naming::Rename(from, to, inode) => {
                self.files.remove(from);
                self.files.insert(to.clone(), *inode);
            }
        }
    }
}

/// Something that may survive on its own.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    Naming(usize),
    Sector {
        inode: usize,
        change: usize,
        page: usize,
        sector: usize,
    },
    /// A change that changes no byte, only the length; or one that is there as a whole or not at all.
    Whole {
        inode: usize,
        change: usize,
    },
}

impl Unit {
    fn change(self) -> (usize, usize) {
        match self {
            Self::Naming(_) => (usize::MAX, 0),
            Self::Sector { inode, change, .. } | Self::Whole { inode, change } => (inode, change),
        }
    }
}

/// A disk at one moment.
#[derive(Clone)]
pub struct Moment {
    pub inodes: Vec<Inode>,
    pub durable: Names,
    pub view: Names,
    pub namings: Vec<Naming>,
}

impl Moment {
    fn reachable(&self) -> BTreeSet<usize> {
        let named = self.namings.iter().filter_map(|naming| match naming {
            Naming::Link(_, inode) | Naming::Rename(_, _, inode) => Some(*inode),
            _ => None,
        });
        self.durable.files.values().chain(self.view.files.values()).copied().chain(named).collect()
    }

    /// All that may survive or not.
    pub fn units(&self) -> Vec<Unit> {
        let mut units: Vec<Unit> = (0..self.namings.len()).map(Unit::Naming).collect();
        for inode in self.reachable() {
            let Inode { durable, unflushed, .. } = &self.inodes[inode];
            let mut touched = BTreeSet::new();
            for (change, Unflushed { change: what, .. }) in unflushed.iter().enumerate() {
                let end = match what {
                    Change::Write(first, pages) => {
                        for (i, new) in pages.iter().enumerate() {
                            let old = durable.get(first + i);
                            if same(new, old) && !touched.contains(&(first + i)) {
                                continue;
                            }
                            let again = !touched.insert(first + i);
                            let differs = |s: &usize| again || sector(new, *s) != sector(old, *s);
                            let page = first + i;
                            units.extend((0..SECTORS).filter(differs).map(|sector| Unit::Sector {
                                inode,
                                change,
                                page,
                                sector,
                            }));
                        }
                        ((first + pages.len()) * PAGE) as u64
                    }
                    Change::Allocate(offset, len) => offset + len,
                    Change::Punch(offset, len) => {
                        touched.extend(*offset as usize / PAGE..(offset + len) as usize / PAGE);
                        u64::MAX
                    }
                    Change::Content(_) => u64::MAX,
                };
                if end > durable.len() {
                    units.push(Unit::Whole { inode, change });
                }
            }
        }
        units
    }

    /// What is there if exactly the units that `survives` names survive.
    pub fn after(&self, units: &[Unit], survives: &[bool]) -> (Names, Vec<Inode>) {
        let mut names = self.durable.clone();
        let mut inodes: Vec<Pages> = self.inodes.iter().map(|inode| inode.durable.clone()).collect();
        for unit in units.iter().zip(survives).filter_map(|(unit, survives)| survives.then_some(unit)) {
            match *unit {
                Unit::Naming(i) => names.apply(&self.namings[i]),
                Unit::Sector { inode, change, page, sector } => {
                    let Change::Write(first, pages) = &self.inodes[inode].unflushed[change].change else {
                        continue;
                    };
                    inodes[inode].put_sector(page, sector, &pages[page - first]);
                }
                Unit::Whole { inode, change } => match &self.inodes[inode].unflushed[change].change {
                    Change::Write(first, pages) => {
                        inodes[inode].extend(((first + pages.len()) * PAGE) as u64);
                    }
                    change => change.apply(&mut inodes[inode]),
                },
            }
        }
        let Names { files, dirs } = &mut names;
        // In order: what lies in a directory that is not there went with it.
        for dir in std::mem::take(dirs) {
            if dir.is_empty() || dirs.contains(parent(&dir)) {
                dirs.insert(dir);
            }
        }
        files.retain(|name, _| dirs.contains(parent(name)));
        let named: BTreeSet<usize> = files.values().copied().collect();
        let mut settled: Vec<BTreeSet<usize>> =
            self.inodes.iter().map(|inode| inode.settled.clone()).collect();
        for unit in units.iter().zip(survives).filter_map(|(unit, survives)| survives.then_some(unit)) {
            if let Unit::Sector { inode, page, .. } = unit {
                settled[*inode].insert(*page);
            }
        }
        let inodes = inodes.into_iter().zip(settled).enumerate();
        let inodes = inodes.map(|(i, (bytes, settled))| match named.contains(&i) {
            true => Inode { durable: bytes.clone(), view: bytes, unflushed: Vec::new(), settled },
            false => Inode::default(),
        });
        let inodes = inodes.collect();
        (names, inodes)
    }
}

/// Tells disks with different content apart.
pub fn hash_of(names: &Names, inodes: &[Inode]) -> u64 {
    let text = |hash, name: &str| name.bytes().fold(hash, |hash, byte| mix(hash, u64::from(byte)));
    let hash = names.dirs.iter().fold(7, |hash, dir| text(hash, dir));
    names.files.iter().fold(hash, |hash, (name, inode)| mix(text(hash, name), inodes[*inode].durable.hash()))
}

/// Which units survive, in one of [`WAYS`] ways.
pub fn pick(units: &[Unit], way: u64, random: &mut SplitMix64) -> Vec<bool> {
    let n = units.len() as u64;
    let one = random.below(n.max(1)) as usize;
    let mut of_change = BTreeMap::new();
    let mut mood = |unit: &Unit, bound: u64, random: &mut SplitMix64| {
        *of_change.entry(unit.change()).or_insert_with(|| random.below(bound))
    };
    let odds = 1 + random.below(15);
    let all = units.iter().enumerate();
    all.map(|(i, unit)| match way {
        0 => false,
        1 => true,
        2 => i == one,
        3 => i != one,
        // Whole changes, the names each on its own.
        4 if matches!(unit, Unit::Naming(_)) => random.below(2) == 0,
        4 => mood(unit, 2, random) == 0,
        // Names and none of the content; content and no name; what came first.
        5 => matches!(unit, Unit::Naming(_)),
        6 => !matches!(unit, Unit::Naming(_)),
        7 => i < one,
        8 => random.below(16) < odds,
        // Some changes whole, some torn, some not at all.
        _ => match mood(unit, 4, random) {
            0 => false,
            1 => random.below(2) == 0,
            _ => true,
        },
    })
    .collect()
}

pub const WAYS: u64 = 10;
