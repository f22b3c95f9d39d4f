//! Faults that are aimed: at the files of one target, at the moment that hurts. Files are named by a part of
//! their names.

use super::{SimFs, State};
use crate::trace::Entry;
use crate::world::{World, between};
use ember_rt::disk::OpKind;
use ember_types::layout::SplitMix64;
use std::rc::Rc;

/// Tries to find another place for a write that goes astray.
const ASTRAY_TRIES: u32 = 16;
/// Pages of a range that can't be read, at most.
const UNREADABLE_PAGES_MAX: u64 = 8;

/// What a power loss leaves of the pages that were written and not synced.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum PowerCut {
    /// Of each page the old content, the new one, or sectors of both, as chance has it.
    #[default]
    Any,
    /// Nothing new.
    Lost,
    /// Sectors of both, of every page.
    Torn,
}

/// What the next operations of a disk run into.
#[derive(Default)]
pub(super) struct Aims {
    pub(super) cut: PowerCut,
    /// The next write to such a file goes astray.
    astray: Option<String>,
    failing: Option<Failing>,
    /// Operations on such files don't end.
    hanging: Option<String>,
    /// Those that hang.
    pub(super) hung: Vec<u64>,
    /// Writes that went astray, and changes that failed.
    done: u64,
}

/// What fails with EIO.
struct Failing {
    /// Part of the names of the files.
    part: String,
    /// So many in a million.
    ppm: u64,
    flushes_only: bool,
}

impl State {
    fn is_named(&self, inode: u64, part: &str) -> bool {
        self.names.files().iter().any(|(name, own)| *own == inode && name.contains(part))
    }

    /// Whether an operation fails by aim.
    pub(super) fn fails(&mut self, inode: u64, kind: &OpKind, rng: &mut SplitMix64) -> bool {
        let Some(Failing { part, ppm, flushes_only }) = &self.aims.failing else { return false };
        let changes = match kind {
            OpKind::Sync => true,
            OpKind::Write { .. } | OpKind::Allocate { .. } => !flushes_only,
            OpKind::Read { .. } | OpKind::Punch { .. } => false,
        };
        let fails = changes && self.is_named(inode, part) && rng.below(1_000_000) < *ppm;
        self.aims.done += u64::from(fails);
        fails
    }

    /// Whether an operation that was started hangs.
    pub(super) fn hangs(&mut self, inode: u64, key: u64) -> bool {
        let hangs = self.aims.hanging.as_ref().is_some_and(|part| self.is_named(inode, part));
        if hangs {
            self.aims.hung.push(key);
        }
        hangs
    }
    /// The process that used the disk has ended: what hung is gone with it.
    pub(super) fn forget_hung(&mut self) {
        self.aims.hanging = None;
        self.aims.hung.clear();
    }

    /// Where a write lands that goes astray: on other bytes of its file, in whole pages.
    pub(super) fn astray(&mut self, inode: u64, kind: &OpKind, rng: &mut SplitMix64) -> Option<u64> {
        let OpKind::Write { offset, data } = kind else { return None };
        let part = self.aims.astray.as_ref()?;
        let len = data.len() as u64;
        if !self.is_named(inode, part) {
            return None;
        }
        let places = self.files.get(&inode)?.len().checked_sub(len)? / 4096;
        let apart = |at: &u64| at.abs_diff(*offset) >= len;
        let found = (0..ASTRAY_TRIES).map(|_| between(rng, 0, places) * 4096).find(apart)?;
        self.aims.astray = None;
        self.aims.done += 1;
        Some(found)
    }
}

impl SimFs {
    /// What the next power loss does.
    pub fn set_power_cut(&self, cut: PowerCut) {
        self.state.borrow_mut().aims.cut = cut;
    }
    /// The next write to a file whose name contains `part` lands elsewhere in that file.
    pub fn misdirect(&self, part: &str) {
        let aims = &mut self.state.borrow_mut().aims;
        (aims.astray, aims.done) = (Some(part.to_owned()), 0);
    }
    /// Flushes of files whose names contain `part`, and their writes and allocations unless it is flushes only,
    /// fail with EIO from now on, so many in a million.
    pub fn fail_changes(&self, part: &str, ppm: u64, flushes_only: bool) {
        let aims = &mut self.state.borrow_mut().aims;
        let part = part.to_owned();
        (aims.failing, aims.done) = (Some(Failing { part, ppm, flushes_only }), 0);
    }
    /// Operations on files whose names contain `part` don't end from now on, until [`SimFs::let_go`] or the end of
    /// the process.
    pub fn hang(&self, part: &str) {
        self.state.borrow_mut().aims.hanging = Some(part.to_owned());
    }
    /// Operations that hang, on files whose names contain `part`.
    pub fn hung(&self, part: &str) -> usize {
        let state = self.state.borrow();
        let inode = |key: &u64| state.in_flight.get(key).map(|flight| flight.inode);
        let named = |inode: &u64| state.is_named(*inode, part);
        state.aims.hung.iter().filter_map(inode).filter(named).count()
    }
    /// What hangs ends now, late as it is.
    pub fn let_go(self: &Rc<Self>, world: &World) {
        let mut state = self.state.borrow_mut();
        state.aims.hanging = None;
        let latency_max_ns = state.config.latency_max_ns;
        for key in std::mem::take(&mut state.aims.hung) {
            let delay = between(&mut world.0.disk_rng.borrow_mut(), 1, latency_max_ns);
            let fs = self.clone();
            world.after(delay, move |world| fs.complete(world, key));
        }
    }
    /// How often the aim that was set last was hit.
    pub fn hits(&self) -> u64 {
        self.state.borrow().aims.done
    }
    /// Ends every aim but a hang.
    pub fn take_aims_away(&self) {
        let aims = &mut self.state.borrow_mut().aims;
        (aims.cut, aims.astray, aims.failing) = (PowerCut::default(), None, None);
    }
    /// Pages, of files whose names contain `part`, that a power loss would forget.
    pub fn unsynced(&self, part: &str) -> usize {
        let state = self.state.borrow();
        let files = state.files.iter().filter(|(_, file)| file.dirty_pages() > 0);
        files.filter(|(inode, _)| state.is_named(**inode, part)).map(|(_, file)| file.dirty_pages()).sum()
    }

    /// Flips some bits of a file whose name contains `part`, in pages that aren't zeros; which file and where the
    /// first of them is.
    pub fn rot(&self, world: &World, part: &str, bits: u64) -> Option<(String, u64)> {
        let (name, inode, page) = self.used_page(world, part)?;
        let mut state = self.state.borrow_mut();
        let mut rng = world.0.disk_rng.borrow_mut();
        let file = state.files.get_mut(&inode)?;
        let first = file.flip_in(page, &mut rng)?;
        for _ in 1..bits {
            file.flip_in(page, &mut rng);
        }
        world.record(Entry::Fault, &[5, self.owner.number(), inode, first]);
        Some((name, first))
    }

    /// A range of a file whose name contains `part` can't be read until it is written again; which file and from
    /// where on.
    pub fn make_unreadable(&self, world: &World, part: &str) -> Option<(String, u64)> {
        let (name, inode, page) = self.used_page(world, part)?;
        let mut state = self.state.borrow_mut();
        let pages = between(&mut world.0.disk_rng.borrow_mut(), 1, UNREADABLE_PAGES_MAX);
        state.files.get_mut(&inode)?.make_unreadable(page..page + pages);
        world.record(Entry::Fault, &[6, self.owner.number(), inode, page]);
        Some((name, page * 4096))
    }

    /// A page with data, of a file whose name contains `part`.
    fn used_page(&self, world: &World, part: &str) -> Option<(String, u64, u64)> {
        let state = self.state.borrow();
        let mut rng = world.0.disk_rng.borrow_mut();
        let used = |(name, inode): (String, u64)| {
            let pages = state.files.get(&inode)?.used_pages();
            (name.contains(part) && !pages.is_empty()).then_some((name, inode, pages))
        };
        let files: Vec<_> = state.names.files().into_iter().filter_map(used).collect();
        let (name, inode, pages) = files.get(rng.below(files.len().max(1) as u64) as usize)?;
        let page = pages.get(rng.below(pages.len() as u64) as usize)?;
        Some((name.clone(), *inode, *page))
    }
}
