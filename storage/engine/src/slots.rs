//! Which slots are free. Rebuilt from the index at recovery; a slot comes back only after the record that
//! frees it is flushed and no reader holds it (R17).

use crate::class::{CLASSES, SlotId, slot_bytes};
use crate::used::Used;
use ember_types::mutant;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default, Debug)]
struct Class {
    /// Slots that the file holds.
    total: u32,
    free: BTreeSet<u32>,
    /// Free slots whose space was given back to the file system.
    punched: BTreeSet<u32>,
}

/// Free and held slots of a target.
#[derive(Debug)]
pub(crate) struct Slots {
    classes: Vec<Class>,
    /// Readers per slot.
    readers: BTreeMap<SlotId, u32>,
    /// Slots that become free when their last reader ends.
    held: BTreeSet<SlotId>,
    /// Slots behind whose written part a write failed: nothing is appended in place.
    burnt: BTreeSet<SlotId>,
    /// Slots whose bytes were found bad: not used again before a restart.
    bad: BTreeSet<SlotId>,
    bad_bytes: u64,
}

/// Most bytes of slots that are kept from being used again: a whole file of bad bytes must not fill the disk.
const QUARANTINE_MAX: u64 = 1 << 30;

impl Slots {
    pub(crate) fn new() -> Self {
        Self {
            classes: (0..CLASSES).map(|_| Class::default()).collect(),
            readers: BTreeMap::new(),
            held: BTreeSet::new(),
            burnt: BTreeSet::new(),
            bad: BTreeSet::new(),
            bad_bytes: 0,
        }
    }
    fn class(&mut self, class: u8) -> &mut Class {
        &mut self.classes[usize::from(class)]
    }
    pub(crate) fn total(&self, class: u8) -> u32 {
        self.classes[usize::from(class)].total
    }
    /// The class' file holds `total` slots now; the new ones are free.
    pub(crate) fn grow(&mut self, class: u8, total: u32) {
        let class = self.class(class);
        class.free.extend(class.total..total);
        class.total = class.total.max(total);
    }
    /// What recovery found: the class' file holds `total` slots, and those in `used` are taken.
    pub(crate) fn load(&mut self, class: u8, total: u32, used: &Used) {
        // The file may end within its last slot, if the power failed before its growth was flushed.
        let total = total.max(used.last(class).map_or(0, |last| last.saturating_add(1)));
        let state = self.class(class);
        state.total = total;
        state.free = used.others(class, total).collect();
    }
    /// Takes the first free slot of a class.
    pub(crate) fn allocate(&mut self, class: u8) -> Option<SlotId> {
        let state = self.class(class);
        let slot = state.free.pop_first()?;
        state.punched.remove(&slot);
        Some(SlotId { class, slot })
    }
    pub(crate) fn has_free(&self, class: u8) -> bool {
        !self.classes[usize::from(class)].free.is_empty()
    }
    /// Gives a slot back, now or when its last reader ends.
    pub(crate) fn free(&mut self, at: SlotId) {
        self.burnt.remove(&at);
        if self.bad.contains(&at) {
            return;
        }
        if self.readers.contains_key(&at) && !mutant!(r17_slot_free_under_reader) {
            self.held.insert(at);
        } else {
            let fresh = self.class(at.class).free.insert(at.slot);
            assert!(fresh, "slot {at:?} freed twice");
        }
    }
    pub(crate) fn hold(&mut self, at: SlotId) {
        *self.readers.entry(at).or_default() += 1;
    }
    pub(crate) fn unhold(&mut self, at: SlotId) {
        let Some(count) = self.readers.get_mut(&at) else { return };
        *count -= 1;
        if *count == 0 {
            self.readers.remove(&at);
            if self.held.remove(&at) && !self.bad.contains(&at) {
                self.class(at.class).free.insert(at.slot);
            }
        }
    }
    pub(crate) fn burn(&mut self, at: SlotId) {
        self.burnt.insert(at);
    }
    pub(crate) fn is_burnt(&self, at: SlotId) -> bool {
        self.burnt.contains(&at) || self.bad.contains(&at)
    }
    /// The slot's bytes are not what was written: once it is free nothing is put there.
    pub(crate) fn quarantine(&mut self, at: SlotId) {
        let bytes = self.bad_bytes + slot_bytes(at.class);
        if bytes <= QUARANTINE_MAX && self.bad.insert(at) {
            self.bad_bytes = bytes;
        }
    }
    pub(crate) fn quarantined(&self) -> usize {
        self.bad.len()
    }
    /// Takes up to `limit` free slots whose space was not given back yet, so that it can be.
    pub(crate) fn take_unpunched(&mut self, class: u8, limit: usize) -> Vec<u32> {
        let state = self.class(class);
        let slots: Vec<u32> = state.free.difference(&state.punched).rev_take(limit);
        for slot in &slots {
            state.free.remove(slot);
        }
        slots
    }
    /// The slot's space was given back; it is free again.
    pub(crate) fn punched(&mut self, at: SlotId) {
        let state = self.class(at.class);
        state.punched.insert(at.slot);
        state.free.insert(at.slot);
    }
    /// Bytes of the files, and of the free slots that still occupy space.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let (mut total, mut free) = (0, 0);
        for (class, state) in (0..CLASSES).zip(&self.classes) {
            total +=
                u64::from(state.total) * slot_bytes(class) - state.punched.len() as u64 * slot_bytes(class);
            free += (state.free.len() - state.punched.len()) as u64 * slot_bytes(class);
        }
        (total, free)
    }
}

trait RevTake {
    fn rev_take(self, limit: usize) -> Vec<u32>;
}

impl<'a, I: Iterator<Item = &'a u32>> RevTake for I {
    /// The last `limit` items: those that are reused last.
    fn rev_take(self, limit: usize) -> Vec<u32> {
        let all: Vec<u32> = self.copied().collect();
        all[all.len().saturating_sub(limit)..].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r17_a_slot_is_not_free_while_a_reader_holds_it() {
        let mut slots = Slots::new();
        slots.grow(0, 2);
        let a = slots.allocate(0).unwrap();
        let b = slots.allocate(0).unwrap();
        assert_eq!(slots.allocate(0), None);
        slots.hold(a);
        slots.hold(a);
        slots.free(a);
        slots.unhold(a);
        assert_eq!(slots.allocate(0), None);
        slots.unhold(a);
        assert_eq!(slots.allocate(0), Some(a));
        slots.free(b);
        assert_eq!(slots.bytes(), (8192, 4096));
        assert_eq!(slots.take_unpunched(0, 9), [1]);
        assert!(!slots.has_free(0));
        slots.punched(b);
        assert_eq!(slots.bytes(), (4096, 0));
        assert_eq!(slots.allocate(0), Some(b));
    }

    #[test]
    fn a_bad_slot_is_not_used_again() {
        let mut slots = Slots::new();
        slots.grow(0, 3);
        let (a, b) = (slots.allocate(0).unwrap(), slots.allocate(0).unwrap());
        slots.quarantine(a);
        assert!(slots.is_burnt(a), "nothing is appended to it");
        slots.free(a);
        // Freed first, found bad by the reader that still holds it.
        slots.hold(b);
        slots.free(b);
        slots.quarantine(b);
        slots.unhold(b);
        assert_eq!(slots.allocate(0), Some(SlotId { class: 0, slot: 2 }));
        assert_eq!((slots.allocate(0), slots.quarantined()), (None, 2));
        // A whole file of bad bytes doesn't fill the disk.
        slots.grow(14, 17);
        let all: Vec<SlotId> = (0..17).filter_map(|_| slots.allocate(14)).collect();
        for &at in &all {
            slots.quarantine(at);
            slots.free(at);
        }
        assert_eq!(slots.quarantined(), 2 + 15);
        assert!(slots.has_free(14));
    }
}
