//! Random sequences against a simple model of POSIX: a tree in memory, without permissions or times.

use super::*;
use crate::RenameFlags;
use ember_types::layout::SplitMix64;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
struct Node {
    /// Entries, if it is a directory.
    entries: Option<BTreeMap<String, u64>>,
    links: u32,
    parent: u64,
}

#[derive(Default)]
struct Model {
    nodes: BTreeMap<u64, Node>,
}

impl Model {
    fn new() -> Self {
        let root = Node { entries: Some(BTreeMap::new()), links: 1, parent: 1 };
        Self { nodes: [(1, root)].into() }
    }

    fn dir(&mut self, id: u64) -> std::result::Result<&mut BTreeMap<String, u64>, Status> {
        self.nodes.get_mut(&id).unwrap().entries.as_mut().ok_or(Status::NotDirectory)
    }

    fn find(&mut self, dir: u64, name: &str) -> std::result::Result<Option<u64>, Status> {
        Ok(self.dir(dir)?.get(name).copied())
    }

    fn is_dir(&self, id: u64) -> bool {
        self.nodes[&id].entries.is_some()
    }

    fn is_empty(&self, id: u64) -> bool {
        self.nodes[&id].entries.as_ref().is_some_and(BTreeMap::is_empty)
    }

    fn make(&mut self, dir: u64, name: &str, id: u64, directory: bool) -> Status {
        match self.find(dir, name) {
            Err(status) => return status,
            Ok(Some(_)) => return Status::Exists,
            Ok(None) if self.nodes[&dir].links == 0 => return Status::NotFound,
            Ok(None) => {}
        }
        let entries = directory.then(BTreeMap::new);
        self.nodes.insert(id, Node { entries, links: 1, parent: dir });
        self.dir(dir).unwrap().insert(name.to_owned(), id);
        Status::Ok
    }

    fn drop_link(&mut self, id: u64) {
        self.nodes.get_mut(&id).unwrap().links -= 1;
    }

    fn remove(&mut self, dir: u64, name: &str, directory: bool) -> Status {
        let id = match self.find(dir, name) {
            Err(status) => return status,
            Ok(None) => return Status::NotFound,
            Ok(Some(id)) => id,
        };
        match (self.is_dir(id), directory) {
            (true, false) => return Status::IsDirectory,
            (false, true) => return Status::NotDirectory,
            (true, true) if !self.is_empty(id) => return Status::NotEmpty,
            _ => {}
        }
        self.dir(dir).unwrap().remove(name);
        self.drop_link(id);
        Status::Ok
    }

    fn link(&mut self, id: u64, dir: u64, name: &str) -> Status {
        match self.find(dir, name) {
            Err(status) => status,
            Ok(Some(_)) => Status::Exists,
            Ok(None) if self.nodes[&dir].links == 0 => Status::NotFound,
            Ok(None) if self.is_dir(id) => Status::NotPermitted,
            Ok(None) if self.nodes[&id].links == 0 => Status::NotFound,
            Ok(None) => {
                self.nodes.get_mut(&id).unwrap().links += 1;
                self.dir(dir).unwrap().insert(name.to_owned(), id);
                Status::Ok
            }
        }
    }

    fn within(&self, mut at: u64, ancestor: u64) -> bool {
        while at != ancestor && at != 1 {
            at = self.nodes[&at].parent;
        }
        at == ancestor
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: RenameFlags) -> Status {
        if !self.is_dir(to.0) {
            return Status::NotDirectory;
        }
        let source = match self.find(from.0, from.1) {
            Err(status) => return status,
            Ok(None) => return Status::NotFound,
            Ok(Some(id)) => id,
        };
        if self.nodes[&to.0].links == 0 {
            return Status::NotFound;
        }
        let target = self.find(to.0, to.1).unwrap();
        match target {
            Some(_) if flags.no_replace => return Status::Exists,
            None if flags.exchange => return Status::NotFound,
            _ => {}
        }
        if from.0 != to.0 {
            if self.is_dir(source) && self.within(to.0, source) {
                return Status::InvalidArgument;
            }
            if target.is_some_and(|t| self.is_dir(t) && self.within(from.0, t)) {
                return if flags.exchange { Status::InvalidArgument } else { Status::NotEmpty };
            }
        }
        if target == Some(source) {
            return Status::Ok;
        }
        if let Some(target) = target.filter(|_| !flags.exchange) {
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Status::NotDirectory,
                (false, true) => return Status::IsDirectory,
                (true, true) if !self.is_empty(target) => return Status::NotEmpty,
                _ => {}
            }
            self.drop_link(target);
        }
        self.dir(from.0).unwrap().remove(from.1);
        self.dir(to.0).unwrap().insert(to.1.to_owned(), source);
        if self.is_dir(source) {
            self.nodes.get_mut(&source).unwrap().parent = to.0;
        }
        if let Some(target) = target.filter(|_| flags.exchange) {
            self.dir(from.0).unwrap().insert(from.1.to_owned(), target);
            if self.is_dir(target) {
                self.nodes.get_mut(&target).unwrap().parent = from.0;
            }
        }
        Status::Ok
    }

    fn links(&self, id: u64) -> u32 {
        let node = &self.nodes[&id];
        match &node.entries {
            Some(entries) if node.links > 0 => {
                2 + entries.values().filter(|e| self.is_dir(**e)).count() as u32
            }
            _ => node.links,
        }
    }
}

fn status<T>(result: Result<T>) -> Status {
    match result {
        Ok(_) => Status::Ok,
        Err(error) => error.status(),
    }
}

struct Run {
    world: World,
    model: Model,
    random: SplitMix64,
}

impl Run {
    fn below(&mut self, bound: usize) -> usize {
        (self.random.next() % bound as u64) as usize
    }

    fn node(&mut self) -> u64 {
        let ids: Vec<_> = self.model.nodes.keys().copied().collect();
        ids[self.below(ids.len())]
    }

    fn directory(&mut self) -> u64 {
        for _ in 0..4 {
            let id = self.node();
            if self.model.is_dir(id) {
                return id;
            }
        }
        self.node()
    }

    /// Few names, so that they meet; some share a hash.
    fn name(&mut self) -> String {
        match self.below(2) {
            0 => format!("n{}", self.below(4)),
            _ => format!("collide-{}", self.below(4)),
        }
    }

    fn step(&mut self) {
        let (dir, name) = (self.directory(), self.name());
        let d = InodeId(dir);
        let (got, want) = match self.below(8) {
            0 | 1 => {
                let made = self.world.mkdir(d, &name, 0o755);
                let id = self.world.next;
                (status(made), self.model.make(dir, &name, id, true))
            }
            2 => {
                let made = self.world.mkfile(d, &name, 0o644);
                let id = self.world.next;
                (status(made), self.model.make(dir, &name, id, false))
            }
            3 => {
                let id = self.node();
                let linked = self.world.link(InodeId(id), d, &name);
                (status(linked), self.model.link(id, dir, &name))
            }
            4 => (status(self.world.unlink(d, &name)), self.model.remove(dir, &name, false)),
            5 => (status(self.world.rmdir(d, &name)), self.model.remove(dir, &name, true)),
            _ => {
                let (to, new_name) = (self.directory(), self.name());
                let kind = self.below(4);
                let flags = RenameFlags { no_replace: kind == 0, exchange: kind == 1 };
                let moved = self.world.rename((d, &name), (InodeId(to), &new_name), flags);
                (status(moved), self.model.rename((dir, &name), (to, &new_name), flags))
            }
        };
        assert_eq!(got, want, "in {dir} of {name}");
    }

    fn compare(&mut self) {
        let ids: Vec<_> = self.model.nodes.keys().copied().collect();
        for id in ids {
            assert_eq!(self.world.stat(InodeId(id)).unwrap().links, self.model.links(id), "links of {id}");
            let Some(entries) = self.model.nodes[&id].entries.clone() else { continue };
            let mut names = self.world.names(InodeId(id), 3);
            names.sort();
            assert_eq!(names, entries.keys().cloned().collect::<Vec<_>>(), "entries of {id}");
            for (name, entry) in entries {
                assert_eq!(self.world.lookup(InodeId(id), &name).unwrap().inode.0, entry);
                if self.model.is_dir(entry) {
                    assert_eq!(self.world.lookup(InodeId(entry), "..").unwrap().inode.0, id);
                }
            }
        }
    }
}

#[test]
fn random_sequences_agree_with_the_model() {
    for seed in 0..40 {
        let mut run = Run { world: World::new(), model: Model::new(), random: SplitMix64(seed) };
        for _ in 0..150 {
            run.step();
        }
        run.compare();
    }
}
