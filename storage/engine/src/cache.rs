//! Checksum pages in memory, within a bound: those that were used lately.

use crate::sums::{Page, PageId};
use ember_types::collections::FixedHashMap;
use std::rc::Rc;

struct Cached {
    id: PageId,
    sequence: u32,
    page: Rc<Page>,
    /// Since the hand came by.
    used: bool,
}

/// Pages, replaced by the clock algorithm.
pub(crate) struct Cache {
    limit: usize,
    at: FixedHashMap<PageId, usize>,
    all: Vec<Cached>,
    hand: usize,
}

impl Cache {
    /// Takes no more than `bytes` bytes, about.
    pub(crate) fn new(bytes: u64) -> Self {
        let limit = bytes / (size_of::<Page>() + size_of::<Cached>() + 48) as u64;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self { limit, at: FixedHashMap::default(), all: Vec::new(), hand: 0 }
    }
    pub(crate) fn get(&mut self, id: PageId) -> Option<&Rc<Page>> {
        let cached = &mut self.all[*self.at.get(&id)?];
        cached.used = true;
        Some(&cached.page)
    }
    pub(crate) fn contains(&self, id: PageId) -> bool {
        self.at.contains_key(&id)
    }
    /// Takes a page as it is, or will be, on the disk with a sequence.
    pub(crate) fn insert(&mut self, id: PageId, sequence: u32, page: Rc<Page>) {
        let new = Cached { id, sequence, page, used: false };
        if let Some(&at) = self.at.get(&id) {
            if self.all[at].sequence <= sequence {
                self.all[at] = Cached { used: true, ..new };
            }
            return;
        }
        if self.all.len() < self.limit {
            self.at.insert(id, self.all.len());
            self.all.push(new);
            return;
        }
        // Twice around at most: the first time takes the marks away.
        for _ in 0..self.all.len() * 2 {
            let at = self.hand;
            self.hand = (at + 1) % self.all.len();
            if !std::mem::take(&mut self.all[at].used) {
                self.at.remove(&self.all[at].id);
                self.at.insert(id, at);
                self.all[at] = new;
                return;
            }
        }
    }
    /// The page is on the disk with `sequence`: an older copy goes.
    pub(crate) fn supersede(&mut self, id: PageId, sequence: u32) {
        let Some(&at) = self.at.get(&id) else { return };
        if self.all[at].sequence < sequence {
            self.at.remove(&id);
            self.all.swap_remove(at);
            if let Some(moved) = self.all.get(at) {
                self.at.insert(moved.id, at);
            }
            self.hand = if self.hand < self.all.len() { self.hand } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_bound_holds() {
        let id = |page| PageId { class: 1, page };
        let mut cache = Cache::new(5 * 4200);
        let limit = cache.limit as u32;
        assert!((3..6).contains(&limit), "{limit}");
        for page in 0..40 {
            cache.insert(id(page), 1, Rc::default());
            assert!(cache.get(id(0)).is_some(), "page 0 is used all the time");
            assert!(cache.all.len() <= limit as usize && cache.at.len() == cache.all.len());
        }
        assert!(!cache.contains(id(1)));
        cache.supersede(id(0), 1);
        assert!(cache.contains(id(0)));
        cache.supersede(id(0), 2);
        assert!(!cache.contains(id(0)));
        for (at, cached) in cache.all.iter().enumerate() {
            assert_eq!(cache.at[&cached.id], at);
        }
        let mut none = Cache::new(0);
        none.insert(id(0), 1, Rc::default());
        assert!(none.get(id(0)).is_none());
    }
}
